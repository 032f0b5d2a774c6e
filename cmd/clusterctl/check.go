package main

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/mimiktech/cluster"
	"github.com/mimiktech/cluster/internal/statuspage"
	"github.com/mimiktech/cluster/internal/wire"
)

// checkLimits are the limits of the checks.
type checkLimits struct {
	clock       time.Duration
	certificate time.Duration
}

func (a *app) checkCommand() *cobra.Command {
	limits := checkLimits{}
	days := 0
	cmd := &cobra.Command{
		Use:   "check",
		Short: "Check that the cluster works",
		Long: `check calls the token service, the registry and all servers, and shows what fails:

  token service  issues a token for the registry and one for servers
  registry       responds with its list of servers, which is not empty
  servers        each server responds to this program with its view
  views          the registry and all servers list the same servers at the same addresses
  clocks         the clocks of this machine, the back end and the servers agree
  certificates   the certificates of https URLs and of --cert do not expire soon

check changes nothing. While a server joins or leaves, some views may differ for a moment. A check
is skipped if an earlier check did not get what it needs.

Exit codes: 0 if no check has failed; 1 if one has; 2 if an argument or a setting is invalid.`,
		Example: `  clusterctl check
  clusterctl check --certificate-days 30 -o json
  clusterctl check --server http://10.0.0.7:8080/mds/v1`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if limits.clock <= 0 || days < 0 {
				return &usageError{fmt.Errorf("--clock-difference %v must be positive, and --certificate-days %d must not be negative", limits.clock, days)}
			}
			limits.certificate = time.Duration(days) * 24 * time.Hour
			return a.check(cmd.Context(), limits)
		},
	}
	cmd.Flags().DurationVar(&limits.clock, "clock-difference", 10*time.Second, "largest difference between two clocks")
	cmd.Flags().IntVar(&days, "certificate-days", 14, "`days` for which certificates must be valid")
	return cmd
}

// The results of a check.
const (
	checkOK      = "ok"
	checkFailed  = "failed"
	checkSkipped = "skipped"
)

// A finding is the result of one check.
type finding struct {
	Check    string   `json:"check"`
	Result   string   `json:"result"`
	Detail   string   `json:"detail"`
	Problems []string `json:"problems,omitempty"`
}

// fail adds a problem.
func (f *finding) fail(format string, args ...any) {
	f.Result = checkFailed
	f.Problems = append(f.Problems, fmt.Sprintf(format, args...))
}

func (f *finding) skip(reason string) { f.Result, f.Detail = checkSkipped, reason }

// A checker runs the checks. Each check may use the results of earlier ones.
type checker struct {
	*session
	limits   checkLimits
	findings []*finding

	hasTokens bool
	listed    []cluster.Server // nil if there is no list
	source    string           // of the list
	serverErr error            // of reading the view of the server of --server
	outcomes  []cluster.Outcome
	views     map[string][]cluster.Server // by the id of the server
}

func (a *app) check(ctx context.Context, limits checkLimits) error {
	s, err := a.open()
	if err != nil {
		return err
	}
	defer s.Close()
	if err := s.checkSource(); err != nil {
		return err
	}
	c := &checker{session: s, limits: limits, views: make(map[string][]cluster.Server)}
	for _, check := range []struct {
		name string
		run  func(context.Context, *finding)
	}{
		{"token service", c.checkTokens},
		{"registry", c.checkRegistry},
		{"servers", c.checkServers},
		{"views", c.checkViews},
		{"clocks", c.checkClocks},
		{"certificates", c.checkCertificates},
	} {
		done := a.progress("checking: %s", check.name)
		f := &finding{Check: check.name, Result: checkOK}
		check.run(ctx, f)
		done()
		c.findings = append(c.findings, f)
	}
	return c.report()
}

func (c *checker) report() error {
	failed := 0
	for _, f := range c.findings {
		if f.Result == checkFailed {
			failed++
		}
	}
	if c.app.settings.output == outputJSON {
		err := c.app.json(struct {
			OK     bool       `json:"ok"`
			Checks []*finding `json:"checks"`
		}{failed == 0, c.findings})
		if err != nil {
			return err
		}
	} else {
		rows := [][]string{{"CHECK", "RESULT", "DETAIL"}}
		for _, f := range c.findings {
			rows = append(rows, []string{f.Check, f.Result, f.Detail})
			for _, problem := range f.Problems {
				rows = append(rows, []string{"", "", "- " + problem})
			}
		}
		c.app.table(rows)
	}
	if failed > 0 {
		return errProblem
	}
	return nil
}

func (c *checker) checkTokens(ctx context.Context, f *finding) {
	keys := []cluster.TokenKey{{Audience: c.cfg.PeerAudience, Cluster: true}}
	if c.cfg.RegistryURL != "" {
		keys = append(keys, cluster.TokenKey{Audience: c.cfg.RegistryAudience})
	}
	var first time.Time
	for _, key := range keys {
		token, err := c.Token(ctx, key)
		if err != nil {
			f.fail("%v", err)
			continue
		}
		if exp := expiryOf(claimsOf(token)); first.IsZero() || !exp.IsZero() && exp.Before(first) {
			first = exp
		}
	}
	c.hasTokens = f.Result == checkOK
	f.Detail = fmt.Sprintf("%d of %d tokens issued", len(keys)-len(f.Problems), len(keys))
	if !first.IsZero() {
		f.Detail += fmt.Sprintf("; the first one expires in %s", short(time.Until(first)))
	}
}

// checkRegistry reads the list of servers for the other checks. If the registry gives none, it
// reads the view of the server of --server.
func (c *checker) checkRegistry(ctx context.Context, f *finding) {
	switch {
	case !c.hasTokens:
		f.skip("there is no token")
		return
	case c.cfg.RegistryURL == "":
		f.skip("MIT_URL (or --registry) is missing")
	default:
		start := time.Now()
		if err := c.ReadRegistry(ctx); err != nil {
			f.fail("%v", err)
			f.Detail = "it cannot be read"
		} else {
			c.listed, c.source = c.Servers(), "registry"
			if f.Detail = fmt.Sprintf("%d servers in %s", len(c.listed), short(time.Since(start))); len(c.listed) == 0 {
				f.fail("it lists no server")
			}
		}
	}
	if server := c.app.settings.server; c.listed == nil && server != "" {
		if c.serverErr = c.ReadServer(ctx, server); c.serverErr == nil {
			c.listed, c.source = c.Servers(), server
		}
	}
}

// checkServers asks each server for its view.
func (c *checker) checkServers(ctx context.Context, f *finding) {
	if c.listed == nil {
		f.skip("there is no list of servers")
		if c.serverErr != nil {
			f.fail("%v", c.serverErr)
		}
		return
	}
	res, err := c.RPCluster(ctx, viewRequest(c.ResourceID(), c.cfg.Type))
	if err != nil {
		f.fail("%v", err)
		return
	}
	c.outcomes = slices.Concat(res.Results, res.Failures)
	for _, o := range res.Results {
		var it wire.ItResource
		if err := json.Unmarshal(o.Data, &it); err != nil {
			f.fail("%s: its view cannot be read: %v", o.Server.ServerID, err)
			continue
		}
		view := make([]cluster.Server, len(it.Servers))
		for i, s := range it.Servers {
			view[i] = cluster.Server(s)
		}
		c.views[o.Server.ServerID] = view
	}
	for _, o := range res.Failures {
		f.fail("%s at %s: %s: %v%s", o.Server.ServerID, o.Server.ClusterBaseURL, o.Kind, o.Err, hint(o.StatusCode))
	}
	f.Detail = fmt.Sprintf("%d of %d respond with their views", len(c.views), len(c.outcomes))
}

// viewRequest returns a request to which a server responds with its view. It is an announcement
// without servers, which changes nothing.
func viewRequest(resourceID, typ string) cluster.Request {
	body, _ := wire.ItResource{ID: resourceID, Type: typ}.MarshalJSON() // valid texts
	return cluster.Request{Name: "view", Method: http.MethodPost, Path: "/itResources", Body: json.RawMessage(body)}
}

// hint returns the likely cause of a status.
func hint(status int) string {
	switch status {
	case http.StatusUnauthorized, http.StatusForbidden:
		return " (do the server and this program use the same token service and audience?)"
	case http.StatusNotFound, http.StatusMethodNotAllowed:
		return " (are the endpoints for peers mounted under this base path?)"
	}
	return ""
}

// checkViews compares the list with the views of all servers.
func (c *checker) checkViews(_ context.Context, f *finding) {
	if len(c.views) == 0 {
		f.skip("there are no views to compare")
		return
	}
	known := map[string][]string{c.source: idsOf(c.listed)}
	listedAt := addresses(c.listed)
	moved := map[string][]string{} // the viewers, by server and address
	for viewer, view := range c.views {
		known[viewer] = idsOf(view)
		for id, address := range addresses(view) {
			if listed, ok := listedAt[id]; ok && listed != address {
				key := fmt.Sprintf("%s is at %s", id, address)
				moved[key] = append(moved[key], viewer)
			}
		}
	}
	rows := statuspage.Compare("", known)
	for _, row := range rows {
		if len(row.MissingIn) > 0 {
			f.fail("%s is missing in the views of %s", row.ID, some(row.MissingIn))
		}
	}
	for _, key := range slices.Sorted(maps.Keys(moved)) {
		id, _, _ := strings.Cut(key, " is at ")
		slices.Sort(moved[key])
		f.fail("%s in the views of %s, and at %s in that of %s", key, some(moved[key]), listedAt[id], c.source)
	}
	f.Detail = fmt.Sprintf("%d views of %d servers", len(known), len(rows))
}

func idsOf(servers []cluster.Server) []string {
	ids := make([]string, len(servers))
	for i, s := range servers {
		ids[i] = s.ServerID
	}
	return ids
}

// some returns the first names of a list, and the number of the others.
func some(names []string) string {
	const limit = 5
	if len(names) > limit {
		return fmt.Sprintf("%s and %d more", strings.Join(names[:limit], ", "), len(names)-limit)
	}
	return strings.Join(names, ", ")
}

// names returns the names of the registry, the token service and the servers by their hosts.
func (c *checker) names() map[string]string {
	names := make(map[string]string)
	add := func(address, name string) {
		u, err := url.Parse(address)
		if err == nil && u.Host != "" && !slices.Contains(strings.Split(names[u.Host], ", "), name) {
			names[u.Host] = strings.TrimPrefix(names[u.Host]+", "+name, ", ")
		}
	}
	for address := range strings.SplitSeq(c.cfg.RegistryURL, ",") {
		add(strings.TrimSpace(address), "registry")
	}
	for address := range strings.SplitSeq(cmp.Or(c.cfg.TokenURL, c.cfg.Issuer), ",") {
		add(strings.TrimSpace(address), "token service")
	}
	for _, s := range c.listed {
		add(s.ClusterBaseURL, s.ServerID)
	}
	return names
}

func (c *checker) checkClocks(_ context.Context, f *finding) {
	names, ahead := c.names(), map[string]time.Duration{}
	for host, o := range c.seen.snapshot() {
		if o.hasDate {
			ahead[cmp.Or(names[host], host)] = o.ahead
		}
	}
	if len(ahead) == 0 {
		f.skip("no response had a date")
		return
	}
	hosts := slices.SortedFunc(maps.Keys(ahead), func(a, b string) int { return cmp.Or(cmp.Compare(ahead[a], ahead[b]), cmp.Compare(a, b)) })
	fastest, slowest := hosts[0], hosts[len(hosts)-1]
	switch spread := ahead[slowest] - ahead[fastest]; {
	case spread > c.limits.clock:
		for _, host := range hosts {
			if d := ahead[host]; d.Abs() > c.limits.clock {
				f.fail("the clock of %s is %s that of this machine", host, aheadOrBehind(-d))
			}
		}
		if len(f.Problems) == 0 {
			f.fail("the clock of %s is %s that of %s", fastest, aheadOrBehind(spread), slowest)
		}
	case ahead[fastest] > c.limits.clock || -ahead[slowest] > c.limits.clock:
		f.fail("the clock of this machine is %s all others", aheadOrBehind(ahead[fastest]))
	}
	f.Detail = fmt.Sprintf("%d clocks, besides that of this machine", len(hosts))
}

func aheadOrBehind(d time.Duration) string {
	if d < 0 {
		return short(-d) + " behind"
	}
	return short(d) + " ahead of"
}

func (c *checker) checkCertificates(_ context.Context, f *finding) {
	names := c.names()
	count, first := 0, time.Time{}
	add := func(name string, notAfter time.Time) {
		if count++; first.IsZero() || notAfter.Before(first) {
			first = notAfter
		}
		switch left := time.Until(notAfter); {
		case left <= 0:
			f.fail("the certificate of %s has expired at %s", name, notAfter.UTC().Format(time.RFC3339))
		case left < c.limits.certificate:
			f.fail("the certificate of %s expires in %s", name, short(left))
		}
	}
	seen := c.seen.snapshot()
	for _, host := range slices.Sorted(maps.Keys(seen)) {
		chain := seen[host].chain
		for i, cert := range chain {
			name := cmp.Or(names[host], host)
			if i > 0 {
				name = fmt.Sprintf("the issuer %s of %s", cert.Subject, name)
			}
			add(name, cert.NotAfter)
		}
	}
	if c.tls != nil && c.tls.GetClientCertificate != nil {
		if pair, err := c.tls.GetClientCertificate(nil); err != nil {
			f.fail("the certificate %s: %v", c.app.settings.cert, err)
		} else {
			add("this program", pair.Leaf.NotAfter)
		}
	}
	for _, o := range c.outcomes {
		if o.Kind == cluster.KindTLS {
			f.fail("no TLS connection to %s", o.Server.ServerID)
		}
	}
	if count == 0 && len(f.Problems) == 0 {
		f.skip("no https URL is in use")
		return
	}
	if f.Detail = fmt.Sprintf("%d certificates", count); count > 0 {
		f.Detail += fmt.Sprintf("; the first one expires in %s", short(max(0, time.Until(first))))
	}
}
