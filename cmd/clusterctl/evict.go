package main

import (
	"bufio"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/mimiktech/cluster"
	"github.com/mimiktech/cluster/internal/wire"
)

func (a *app) evictCommand() *cobra.Command {
	yes := false
	cmd := &cobra.Command{
		Use:   "evict ID",
		Short: "Remove a server from the cluster",
		Long: `evict makes the registry delete the entry of a server, and reports the departure to all other
servers, so that they no longer call it. If the server renews its lease in the meantime, its entry
stays.

evict does not stop the server. A running server registers again with its next renewal, so evict
only removes servers that are gone. Other servers evict such a server themselves when they call it.
So evict first calls the server, shows what the eviction will do, and asks for a confirmation.

The exit code is 1 if the server was not evicted.`,
		Example: `  clusterctl evict 7d4b0a3e
  clusterctl evict 7d4b0a3e --yes -o json`,
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: a.completeIDs,
		RunE:              func(cmd *cobra.Command, args []string) error { return a.evict(cmd.Context(), args[0], yes) },
	}
	cmd.Flags().BoolVarP(&yes, "yes", "y", false, "do not ask for a confirmation")
	return cmd
}

// An eviction is the result of evict.
type eviction struct {
	ServerID string   `json:"serverId"`
	Effect   string   `json:"effect"` // as stated beforehand
	Evicted  bool     `json:"evicted"`
	Reason   string   `json:"reason,omitempty"` // why it was not evicted
	Notified []string `json:"notified,omitempty"`
	Missed   []string `json:"missed,omitempty"` // servers that could not be notified
}

func (a *app) evict(ctx context.Context, id string, yes bool) error {
	if !yes && !a.canAsk {
		return &usageError{errors.New("a confirmation is needed, and the standard input is not a terminal: use --yes")}
	}
	s, err := a.open()
	if err != nil {
		return err
	}
	defer s.Close()
	if s.cfg.RegistryURL == "" {
		return &usageError{errors.New("MIT_URL (or --registry) is missing: only the registry can delete a server")}
	}
	if err := s.read(ctx); err != nil {
		return err
	}
	servers := s.Servers()
	i := slices.IndexFunc(servers, func(server cluster.Server) bool { return server.ServerID == id })
	if i < 0 {
		return fmt.Errorf("no server has the id %q", id)
	}
	result := eviction{ServerID: id}
	if result.Effect, err = s.effect(ctx, servers[i]); err != nil {
		return err
	}
	fmt.Fprintln(a.errOut, a.clean(result.Effect))
	if !yes && !a.confirm(ctx, "Evict it?") {
		result.Reason = "not confirmed"
		return a.printEviction(result)
	}
	done := a.progress("evicting %s", id)
	err = s.evict(ctx, servers[i], &result)
	done()
	if err != nil {
		return err
	}
	return a.printEviction(result)
}

func (a *app) printEviction(r eviction) error {
	switch {
	case a.settings.output == outputJSON:
		if err := a.json(r); err != nil {
			return err
		}
	case r.Evicted:
		a.printf("%s is evicted. %d servers are notified.", r.ServerID, len(r.Notified))
		if len(r.Missed) > 0 {
			a.printf("Not notified; these call it until their next renewal: %s", some(r.Missed))
		}
	default:
		a.printf("%s is not evicted: %s.", r.ServerID, r.Reason)
	}
	if !r.Evicted {
		return errProblem
	}
	return nil
}

// effect calls a server, and returns what its eviction will do.
func (s *session) effect(ctx context.Context, server cluster.Server) (string, error) {
	req := viewRequest(s.ResourceID(), s.cfg.Type)
	req.Filter = func(other cluster.Server) bool { return other.ServerID == server.ServerID }
	done := s.app.progress("calling %s", server.ServerID)
	res, err := s.RPCluster(ctx, req)
	done()
	if err != nil {
		return "", err
	}
	text := fmt.Sprintf("%s at %s renewed %s", server.ServerID, server.ClusterBaseURL, ago(cmp.Or(server.UpdatedAt, server.CreatedAt)))
	if len(res.Failures) == 0 {
		return text + ", and responds: it will be back with its next renewal.", nil
	}
	switch o := res.Failures[0]; o.Kind {
	case cluster.KindWrongServer:
		return text + ", and another server responds at its address: it has likely stopped.", nil
	case cluster.KindStatus:
		return fmt.Sprintf("%s, and responds with %d: it will be back with its next renewal.", text, o.StatusCode), nil
	default:
		return fmt.Sprintf("%s, and does not respond (%s): it has likely stopped. If it is running, it will be back with its next renewal.", text, o.Kind), nil
	}
}

// confirm asks a question, and reports whether the answer is yes.
func (a *app) confirm(ctx context.Context, question string) bool {
	fmt.Fprintf(a.errOut, "%s [y/N] ", question)
	answer := make(chan string, 1)
	go func() {
		line, _ := bufio.NewReader(a.in).ReadString('\n') // the end of the input is no answer
		answer <- strings.ToLower(strings.TrimSpace(line))
	}()
	select {
	case line := <-answer:
		return line == "y" || line == "yes"
	case <-ctx.Done():
		return false
	}
}

// evict deletes the entry of a server, and notifies the others.
func (s *session) evict(ctx context.Context, server cluster.Server, result *eviction) error {
	date := wire.Server(server).UpdatedAtText()
	if date == "" {
		return errors.New("its entry has no date, which a conditional delete needs")
	}
	newer, err := s.deleteEntry(ctx, server.ServerID, date)
	if err != nil {
		return err
	}
	if newer != nil {
		result.Reason = "it has renewed its lease since, " + ago(newer.LastUpdate())
		return nil
	}
	result.Evicted = true
	res, err := s.RPCluster(ctx, cluster.Request{
		Name: "departure", Method: http.MethodDelete,
		Path:   "/itResources/" + url.PathEscape(s.ResourceID()) + "/servers/" + url.PathEscape(server.ServerID),
		Header: http.Header{"X-Unmodified-Since": {date}},
		Filter: func(other cluster.Server) bool { return other.ServerID != server.ServerID },
	})
	if err != nil {
		return err
	}
	for _, o := range res.Results {
		result.Notified = append(result.Notified, o.Server.ServerID)
	}
	for _, o := range res.Failures {
		result.Missed = append(result.Missed, o.Server.ServerID)
	}
	return nil
}

// deleteEntry deletes a server from the registry unless it has been updated since date. It returns
// the newer entry, or nil if the server is gone.
func (s *session) deleteEntry(ctx context.Context, id, date string) (newer *wire.Server, err error) {
	bearer, err := s.Token(ctx, cluster.TokenKey{Audience: s.cfg.RegistryAudience})
	if err != nil {
		return nil, err
	}
	transport := &http.Transport{Proxy: http.ProxyFromEnvironment, TLSClientConfig: s.tls.Clone(), DisableKeepAlives: true}
	client := &http.Client{
		Transport:     s.seen.record(transport),
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		Timeout:       cmp.Or(s.cfg.RequestTimeout, 10*time.Second),
	}
	path := "/itResources/" + url.PathEscape(s.ResourceID()) + "/servers/" + url.PathEscape(id) + "@" + url.PathEscape(date)
	var failures error
	for base := range strings.SplitSeq(s.cfg.RegistryURL, ",") {
		address := strings.TrimRight(strings.TrimSpace(base), "/") + path
		newer, err := sendDelete(ctx, client, address, bearer, id)
		if err == nil {
			return newer, nil
		}
		failures = errors.Join(failures, err)
		if ctx.Err() != nil {
			break
		}
	}
	return nil, failures
}

// maxDeleteResponse bounds the response to a delete, which has one entry at most.
const maxDeleteResponse = 1 << 20

func sendDelete(ctx context.Context, client *http.Client, address, bearer, id string) (*wire.Server, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodDelete, address, nil)
	if err != nil {
		return nil, err
	}
	req.Header.Set("Authorization", "Bearer "+bearer)
	req.Header.Set("Accept", "application/json")
	req.Header.Set("User-Agent", "clusterctl")
	resp, err := client.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxDeleteResponse))
	if err != nil {
		return nil, err
	}
	if resp.StatusCode != http.StatusOK {
		var envelope wire.Error
		_ = json.Unmarshal(body, &envelope) // or there is no message
		return nil, fmt.Errorf("the registry answered %s to DELETE %s: %s", resp.Status, address, envelope.Message)
	}
	var deleted wire.DeleteResponse
	if err := json.Unmarshal(body, &deleted); err != nil {
		return nil, fmt.Errorf("the registry sent an invalid response to DELETE %s: %w", address, err)
	}
	switch {
	case deleted.Server != nil && deleted.Server.ServerID != id:
		return nil, fmt.Errorf("the registry sent the entry of another server in response to DELETE %s", address)
	case deleted.Server == nil && (len(deleted.Data) == 0 || string(deleted.Data) == "null"):
		return nil, fmt.Errorf("the registry sent neither data nor a server in response to DELETE %s", address)
	}
	return deleted.Server, nil
}
