package cluster_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"

	"github.com/mimiktech/cluster"
	"github.com/mimiktech/cluster/clustertest"
	"github.com/mimiktech/cluster/mit"
)

func TestRenewalFraction(t *testing.T) {
	parallel(t)
	for _, fraction := range []float64{0, 0.5, 0.9} { // 0: the default
		t.Run(fmt.Sprint(fraction), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := clustertest.Start(t, 0, clustertest.WithConfig(func(cfg *cluster.Config) {
					cfg.RenewalFraction = fraction
					cfg.Management = false // no recheck
				}))
				requests := recordRequests(w)
				n := w.Join()
				time.Sleep(7 * 24 * time.Hour)
				synctest.Wait()

				want := time.Duration(fraction * float64(time.Hour))
				if fraction == 0 {
					want = 40 * time.Minute
				}
				distinct := map[time.Duration]bool{}
				for _, gap := range intervals(requests.renewals(n)) {
					distinct[gap] = true
					if gap < want*9/10 || gap > want*11/10 {
						t.Errorf("%v between two renewals, want %v, plus or minus a tenth", gap, want)
					}
				}
				// Four standard deviations of the sum of that many jittered waits.
				week := int(7 * 24 * time.Hour / want)
				if got := len(requests.renewals(n)); got < week-8 || got > week+8 {
					t.Errorf("%d POSTs in a week, want about %d", got, week)
				}
				if len(distinct) < 100 {
					t.Errorf("only %d different waits in a week: they are not jittered", len(distinct))
				}
				wantState(t, n, cluster.Registered)
			})
		})
	}
}

// Nodes that register at the same moment spread their renewals. Nodes of the npm module renew at
// the same moment for as long as they run.
func TestRenewalsAreJittered(t *testing.T) {
	parallel(t)
	synctest.Test(t, func(t *testing.T) {
		const size = 200
		w := clustertest.Start(t, 0, clustertest.WithConfig(func(cfg *cluster.Config) { cfg.Management = false }))
		registryFault(w, listOnlyCaller())
		for range size {
			w.Join() // all at the same virtual time
		}
		began := time.Now()
		requests := recordRequests(w)
		time.Sleep(45 * time.Minute)
		synctest.Wait()
		perSecond := map[time.Duration]int{}
		first, last := time.Hour, time.Duration(0)
		renewals := requests.matching(http.MethodPost, clustertest.Any, clustertest.RegistryHost)
		for _, x := range renewals {
			after := x.Start.Sub(began)
			perSecond[after.Truncate(time.Second)]++
			first, last = min(first, after), max(last, after)
		}
		if len(renewals) != size {
			t.Fatalf("%d renewals of %d nodes", len(renewals), size)
		}
		if first < 36*time.Minute || last > 44*time.Minute || last-first < 7*time.Minute {
			t.Errorf("the nodes renewed %v to %v after registering, want a spread of 36 to 44 minutes", first, last)
		}
		for second, count := range perSecond {
			if count > 8 {
				t.Errorf("%d of %d nodes renewed within the second at %v", count, size, second)
			}
		}
	})
}

// Without a leaseTime the lease is two hours. The timer of the npm module would fire at once.
func TestDefaultLeaseTime(t *testing.T) {
	parallel(t)
	synctest.Test(t, func(t *testing.T) {
		w := clustertest.Start(t, 0, clustertest.WithLease(mit.NoLease))
		requests := recordRequests(w)
		n := w.Join()
		if got := n.Status().LeaseTime; got != 2*time.Hour {
			t.Errorf("the lease is %v, want 2 h", got)
		}
		time.Sleep(24 * time.Hour)
		synctest.Wait()
		if got := len(requests.renewals(n)); got < 16 || got > 23 { // one of them is the recheck
			t.Errorf("%d POSTs in a day, want one about every 80 minutes", got)
		}
	})
}

// Lease times that are missing or out of range are replaced. The npm module passes the value to
// setInterval, which takes 1 ms for values above 2^31 and for those that are not numbers.
func TestLeaseTimeValues(t *testing.T) {
	parallel(t)
	tests := map[string]struct {
		leaseTime string // JSON; "" for none
		want      time.Duration
		warning   string // "" for none
	}{
		"missing":          {"", 2 * time.Hour, ""},
		"null":             {"null", 2 * time.Hour, ""},
		"zero":             {"0", 2 * time.Hour, "leaseTime 0 is not above 0"},
		"negative":         {"-3600000", 2 * time.Hour, "leaseTime -3.6e+06 is not above 0"},
		"very negative":    {"-1e300", 2 * time.Hour, "leaseTime -1e+300 is not above 0"},
		"an hour":          {"3600000", time.Hour, ""},
		"a fraction":       {"1500.5", 1500*time.Millisecond + 500*time.Microsecond, ""},
		"with an exponent": {"36e5", time.Hour, ""},
		"a second":         {"1000", time.Second, ""},
		"tiny":             {"5", time.Second, "leaseTime 5 is below 1000"},
		"almost zero":      {"1e-300", time.Second, "leaseTime 1e-300 is below 1000"},
		"beyond 2^31":      {"4294967296", 4294967296 * time.Millisecond, ""},
		"beyond 2^63":      {"1e300", 365 * 24 * time.Hour, "leaseTime 1e+300 is above 31536000000"},
		"a word":           {`"soon"`, 2 * time.Hour, "leaseTime is not a number"},
		"an empty string":  {`""`, 2 * time.Hour, "leaseTime is not a number"},
		"an object":        {`{"ms":1}`, 2 * time.Hour, "leaseTime is not a number"},
		"beyond numbers":   {"1e999", 2 * time.Hour, "leaseTime is out of range"},
		"a string":         {`"3600000"`, time.Hour, ""},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := clustertest.Start(t, 0, clustertest.WithConfig(func(cfg *cluster.Config) { cfg.Management = false }))
				response := `{"itResource":` + announcement("node-1") + `}`
				if test.leaseTime != "" {
					response = strings.TrimSuffix(response, "}") + `,"leaseTime":` + test.leaseTime + `}`
				}
				registryFault(w, respondOK(response))
				requests := recordRequests(w)
				core, logs := observer.New(zap.WarnLevel)
				n := w.Join(cluster.WithLogger(zap.New(core)))
				if got := n.Status().LeaseTime; got != test.want {
					t.Fatalf("the lease is %v, want %v", got, test.want)
				}
				time.Sleep(10 * test.want)
				synctest.Wait()
				if got := len(requests.renewals(n)); got < 14 || got > 18 {
					t.Errorf("%d POSTs in ten leases, want about 16", got)
				}
				wantState(t, n, cluster.Registered)
				var warnings []string
				for _, line := range logs.FilterMessage("unusual lease time of the registry").All() {
					warnings = append(warnings, fmt.Sprint(line.ContextMap()["reason"]))
				}
				if got := strings.Join(warnings, "\n"); got != test.warning {
					t.Errorf("warnings %q, want %q", got, test.warning)
				}
			})
		})
	}
}

// The lease time of each renewal replaces the last one. The npm module keeps the first.
func TestLeaseTimeFollowsTheRegistry(t *testing.T) {
	parallel(t)
	synctest.Test(t, func(t *testing.T) {
		w := clustertest.Start(t, 0)
		n := w.Join()
		time.Sleep(2 * time.Minute) // beyond the recheck
		requests := recordRequests(w)
		w.Registry.SetLease(10 * time.Minute)
		time.Sleep(35 * time.Minute)
		if got := n.Status().LeaseTime; got != time.Hour {
			t.Errorf("before a renewal the lease is %v", got)
		}
		time.Sleep(205 * time.Minute)
		synctest.Wait()
		if got := n.Status().LeaseTime; got != 10*time.Minute {
			t.Errorf("after a renewal the lease is %v", got)
		}
		for _, gap := range intervals(requests.renewals(n)) {
			if gap < 6*time.Minute || gap > 440*time.Second {
				t.Errorf("%v between two renewals, want 6:40, plus or minus a tenth", gap)
			}
		}

		w.Registry.SetLease(6 * time.Hour)
		time.Sleep(8 * time.Minute)
		if s := n.Status(); s.LeaseTime != 6*time.Hour || s.ExpiresAt().Sub(s.RenewedAt) != 6*time.Hour {
			t.Errorf("the longer lease is not used: %+v", s)
		}
		before := len(requests.renewals(n))
		time.Sleep(3 * time.Hour)
		synctest.Wait()
		if got := len(requests.renewals(n)) - before; got != 0 {
			t.Errorf("%d renewals in half a lease", got)
		}
	})
}

// The lease starts when the request is sent, which is the earliest time at which the registry may
// start it.
func TestLeaseStartsWhenTheRequestIsSent(t *testing.T) {
	parallel(t)
	synctest.Test(t, func(t *testing.T) {
		var hooks traceLog
		w := clustertest.Start(t, 0, clustertest.WithLease(time.Minute))
		registryFault(w, clustertest.Delay(5*time.Second))
		sent := time.Now()
		n := w.Join(cluster.WithTrace(hooks.trace()))
		registryDown(w)
		registryFault(w, nil)
		if s := n.Status(); !s.RenewedAt.Equal(sent) || !s.ExpiresAt().Equal(sent.Add(time.Minute)) {
			t.Errorf("RenewedAt is %v after the request was sent", s.RenewedAt.Sub(sent))
		}
		time.Sleep(2 * time.Minute)
		synctest.Wait()
		if got := hooks.first(t, cluster.Lost).at.Sub(sent); got != time.Minute {
			t.Errorf("lost %v after the request was sent, want the lease", got)
		}
	})
}

// A slow registry does not cost a lease: the renewal fraction includes the time of the request.
func TestSlowRegistryKeepsTheLease(t *testing.T) {
	parallel(t)
	synctest.Test(t, func(t *testing.T) {
		var hooks traceLog
		w := clustertest.Start(t, 0, clustertest.WithLease(time.Minute))
		registryFault(w, clustertest.Delay(9*time.Second))
		w.Join(cluster.WithTrace(hooks.trace()))
		time.Sleep(6 * time.Hour)
		synctest.Wait()
		if got := hooks.states(); !cmp.Equal(got, []string{"orphan→registered"}) {
			t.Errorf("%d changes of state in six hours, from %q on", len(got), got[:min(len(got), 5)])
		}
	})
}

// A renewal removes servers that were only announced, and adds those that were not.
func TestRenewalReplacesTheView(t *testing.T) {
	parallel(t)
	synctest.Test(t, func(t *testing.T) {
		w := clustertest.Start(t, 1)
		n := w.Nodes[0]
		announce(t, w, n, announcement("announced"))
		wantView(t, n, "announced", "node-1")
		w.Network.Fault(clustertest.Any, n.Host, clustertest.Status(500)) // announcements do not reach it
		w.Join()
		wantView(t, n, "announced", "node-1")
		time.Sleep(time.Hour)
		wantView(t, n, "node-1", "node-2")
	})
}

// Departures and announcements that arrive during a renewal stay in effect, because the response is
// older. The npm module loses them.
func TestViewChangesDuringRenewal(t *testing.T) {
	parallel(t)
	synctest.Test(t, func(t *testing.T) {
		w := clustertest.Start(t, 3)
		n := w.Nodes[0]
		w.Network.Fault(n.Host, clustertest.RegistryHost, clustertest.FirstN(1, delayResponse(8*time.Second)))
		renewing := registerAsync(t.Context(), n)
		time.Sleep(time.Second) // the registry has executed the request
		w.Nodes[2].UnRegister(t.Context())
		w.Join()
		wantView(t, n, "node-1", "node-2", "node-4")
		if err := <-renewing; err != nil {
			t.Fatal(err)
		}
		wantView(t, n, "node-1", "node-2", "node-4")
	})
}

// A response without a list, or with a list that lacks the node, does not change the view. The npm
// module uses any response: an empty list leaves it without peers, a missing one crashes it.
func TestPartialListKeepsView(t *testing.T) {
	parallel(t)
	withMe := announcement("node-1", "node-2")
	tests := map[string]struct {
		fault clustertest.Fault
		want  string // part of the reason
	}{
		"without this node": {respondOK(`{"itResource":` + announcement("node-2", "node-3") + `,"leaseTime":3600000}`), "this node is not among its 2 servers"},
		"an empty list":     {respondOK(`{"itResource":` + announcement() + `,"leaseTime":3600000}`), "this node is not among its 0 servers"},
		"no list":           {respondOK(`{"itResource":{"id":"x","publicBaseUrl":"http://x"},"leaseTime":3600000}`), "this node is not among its 0 servers"},
		"no itResource":     {respondOK(`{"leaseTime":3600000}`), "it has no itResource"},
		"a null itResource": {respondOK(`{"itResource":null}`), "it has no itResource"},
		"an itResource without id": {
			respondOK(`{"itResource":{"servers":[{"serverId":"node-1","clusterBaseUrl":"http://node-1:8080"}]}}`), "itResource without id",
		},
		"a server without id":  {respondOK(`{"itResource":{"id":"x","servers":[{"clusterBaseUrl":"http://y"}]}}`), "not among its 0 servers; 1 of 1 entries left out: server without serverId"},
		"an object of servers": {respondOK(`{"itResource":{"id":"x","servers":{"node-1":{}}}}`), "its servers cannot be read"},
		"an array":             {respondOK(`[]`), "not an object"},
		"a string":             {respondOK(`"ok"`), "not an object"},
		"null":                 {respondOK(`null`), "it has no itResource"},
		"HTML":                 {respondOK(`<html>`), "invalid character '<'"},
		"an empty body":        {respondOK(``), "unexpected end of JSON input"},
		"no content":           {respond(http.StatusNoContent, ""), "unexpected end of JSON input"},
		"half a response":      {respondOK(`{"itResource":` + withMe[:len(withMe)/2]), "unexpected end of JSON input"},
		"two values":           {respondOK(`{"itResource":` + withMe + `}{}`), "invalid character '{' after top-level value"},
		"deeply nested":        {respondOK(strings.Repeat("[", 100_000)), "exceeded max depth"},
		"a leaseTime of NaN":   {respondOK(`{"itResource":` + withMe + `,"leaseTime":NaN}`), "invalid character 'N'"},
		"truncated":            {clustertest.Truncate(30), "response truncated"},
		"stalled":              {clustertest.Stall(30), "response truncated: context deadline exceeded"},
		"declared too large":   {endlessBody(true), "response too large: 1048577 bytes, 1048576 allowed"},
		"endless":              {endlessBody(false), "response too large: more than 1048576 bytes"},
		"a redirect":           {redirect("http://node-2:8080/"), "mIT answered 307 Temporary Redirect"},
		"a teapot":             {clustertest.Status(http.StatusTeapot), "mIT answered 418 I'm a teapot"},
		"an unknown status":    {clustertest.Status(799), "mIT answered 799 "},
		"an error with HTML":   {respond(http.StatusBadGateway, "<html>"), "mIT answered 502 Bad Gateway"},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var hooks traceLog
				w := clustertest.Start(t, 0, clustertest.WithConfig(func(cfg *cluster.Config) { cfg.MaxResponseBytes = 1 << 20 }))
				n := w.Join(cluster.WithTrace(hooks.trace()))
				w.Join()
				requests := recordRequests(w)
				w.Network.Fault(n.Host, clustertest.RegistryHost, test.fault)
				time.Sleep(50 * time.Minute)
				synctest.Wait()

				wantState(t, n, cluster.Degraded)
				wantView(t, n, "node-1", "node-2")
				reason := fmt.Sprint(n.Status().Reason)
				if !strings.Contains(reason, "mIT") || !strings.Contains(reason, "POST http://mit.test/mIT/v1/itResources") || !strings.Contains(reason, test.want) {
					t.Errorf("the reason is %q, want mIT and %q in it", reason, test.want)
				}
				if len(reason) > 300 {
					t.Errorf("the reason has %d bytes", len(reason))
				}
				if attempts := len(requests.renewals(n)); attempts < 10 {
					t.Errorf("only %d attempts", attempts)
				}
				if called := requests.countToPeers(n); called != 0 {
					t.Errorf("%d requests to peers", called)
				}
				w.Network.Fault(n.Host, clustertest.RegistryHost, nil)
				time.Sleep(time.Minute)
				wantState(t, n, cluster.Registered)
			})
		})
	}
}

// An invalid entry does not invalidate the list. If it has an id it stays, so that each call
// reports it. Without an id it is skipped with a warning.
func TestInvalidEntriesAreSkipped(t *testing.T) {
	parallel(t)
	synctest.Test(t, func(t *testing.T) {
		w := clustertest.Start(t, 2)
		core, logs := observer.New(zap.WarnLevel)
		n := w.Add(cluster.WithLogger(zap.New(core)))
		list := resourceWithDate("2000-01-01T00:00:00.000Z", "node-1", "node-3")
		list = strings.Replace(list, `"servers":[`, `"servers":[null,{"clusterBaseUrl":"http://y"},{"serverId":"node-2","clusterBaseUrl":5,"updatedAt":7,"x":1},`, 1)
		w.Network.Fault(n.Host, clustertest.RegistryHost, respondOK(`{"itResource":`+list+`,"leaseTime":3600000}`))
		if _, err := n.Register(t.Context()); err != nil {
			t.Fatal(err)
		}
		wantView(t, n, "node-1", "node-2", "node-3")
		if got, want := string(n.Servers()[1].Raw), `{"serverId":"node-2","clusterBaseUrl":5,"updatedAt":7,"x":1}`; got != want {
			t.Errorf("the invalid entry is %s, want %s", got, want)
		}
		res := rpc(t, n, cluster.Request{Path: "/things"})
		if len(res.Results) != 1 || len(res.Failures) != 1 || res.Failures[0].Kind != cluster.KindNotAllowed || res.Failures[0].Evicted {
			t.Errorf("a call: %+v", res)
		}
		warned := logs.FilterMessage("registry response contains invalid entries").All()
		if len(warned) != 1 || warned[0].ContextMap()["error"] != "2 of 5 entries left out: server without serverId" {
			t.Errorf("logged: %+v", logs.All())
		}
	})
}

// A node does not pass on a public address that clients must not follow. It does not join a cluster
// whose type could hide a part of a log line.
func TestForeignRegistryResource(t *testing.T) {
	parallel(t)
	synctest.Test(t, func(t *testing.T) {
		w := clustertest.Start(t, 1)
		core, logs := observer.New(zap.WarnLevel)
		n := w.Add(cluster.WithLogger(zap.New(core)))
		respondWith := func(field string) {
			const public = `"publicBaseUrl":"http://x/mds/v1"`
			list := strings.Replace(resourceWithDate("2000-01-01T00:00:00.000Z", "node-1", "node-2"), public, field, 1)
			w.Network.Fault(n.Host, clustertest.RegistryHost, respondOK(`{"itResource":`+list+`,"leaseTime":3600000}`))
		}
		respondWith(`"type":"mds\u202e"`)
		_, err := n.Register(withTimeout(t, time.Second))
		if invalid, ok := errors.AsType[*cluster.InvalidResponseError](err); !ok || !strings.Contains(invalid.Error(), "its type must not contain") {
			t.Errorf("an invalid type: %v", err)
		}
		w.Network.Heal()
		respondWith(`"publicBaseUrl":"javascript:alert(1)"`)
		if _, err := n.Register(t.Context()); err != nil {
			t.Fatal(err)
		}
		wantView(t, n, "node-1", "node-2")
		warned := logs.FilterMessage("registry response contains invalid entries").All()
		if len(warned) != 1 || warned[0].ContextMap()["error"] != "publicBaseUrl left out: it is not an absolute http or https URL" {
			t.Errorf("logged: %+v", logs.All())
		}
	})
}

func FuzzRegistryResponse(f *testing.F) {
	for _, seed := range []struct {
		status uint16
		body   string
	}{
		{200, registrationResponse(time.Hour, "node-1", "node-2", "node-3")},
		{200, registrationResponse(time.Hour, "node-1")},
		{201, registrationResponse(time.Nanosecond, "node-2", "node-1", "node-1")},
		{200, registrationResponse(time.Hour, "node-2", "node-3")},
		{200, registrationResponse(time.Hour)},
		{200, `{"itResource":{"id":"another","servers":[{"serverId":"node-1"}]},"leaseTime":1e308}`},
		{200, `{"itResource":{"id":"it","servers":[{"serverId":"node-1"}]},"leaseTime":-1}`},
		{200, `{"itResource":{"id":"it","servers":[{"serverId":"node-1"}]},"leaseTime":1e-300}`},
		{200, `{"itResource":{"id":"it","servers":[{"serverId":"node-1"}]},"leaseTime":"7200000"}`},
		{200, `{"itResource":{"id":"it","servers":[{"serverId":"node-1"},{"serverId":"x","clusterBaseUrl":"http://user:pass@169.254.169.254"}]}}`},
		{200, `{"itResource":{"id":"../..","servers":[{"serverId":"node-1"},{"serverId":"..","clusterBaseUrl":"http://x.test/../"}]}}`},
		{200, `{"itResource":{"id":"it","servers":[{"serverId":"node-1"},{}]}}`},
		{200, `{"itResource":{"id":"it","servers":[null,{"serverId":"node-2","clusterBaseUrl":5,"updatedAt":7},{"serverId":"node-1"},["x"]]},"leaseTime":"x"}`},
		{200, `{"ITRESOURCE":{"Id":"it","id":null,"servers":[],"SERVERS":[{"serverId":"node-1","serverid":"node-2"},{"\u0073erverId":"node-1"}]}}`},
		{200, `{"itResource":{"id":"it","servers":null}}`},
		{200, `{"itResource":null}`},
		{200, `{"data":{}}`},
		{200, `{}`},
		{200, `null`},
		{200, ``},
		{200, `<html>`},
		{204, ``},
		{200, `{"itResource":`},
		{301, registrationResponse(time.Hour, "node-1")},
		{400, `{"statusCode":400,"message":"no","info":{"a":1}}`},
		{401, ``},
		{403, `hidden-token-for-mit`},
		{403, `{"message":"bad token hidden-token-for-mit","info":"hidden-token-for-mit"}`},
		{500, `{"message":"hidden client secret"}`},
		{503, `{"message":1}`},
	} {
		f.Add(seed.status, []byte(seed.body))
	}
	f.Fuzz(func(t *testing.T, status uint16, body []byte) {
		var failed error
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		o := &remotes{view: []string{"node-1", "node-2"}}
		c := newRegisteredNode(t, o, onRenewalFailure(func(err error) { failed = err; cancel() }))
		before := c.Servers()
		o.registry = func(*http.Request) (int, string) { return validStatus(status), string(body) }
		_, err := c.Register(ctx)
		checkNoSecrets(t, err)
		checkNoSecrets(t, failed)
		ids := checkView(t, c)
		if (err == nil) != (failed == nil) {
			t.Fatalf("Register returns %v, the trace has %v", err, failed)
		}
		s := c.Status()
		if err != nil {
			if !strings.Contains(failed.Error(), "mIT") || !errors.Is(err, context.Canceled) {
				t.Errorf("the errors are %v and %v", failed, err)
			}
			if diff := cmp.Diff(before, c.Servers()); diff != "" {
				t.Errorf("Register failed, but changed the view (-before +after):\n%s", diff)
			}
			if s.State != cluster.Degraded || s.ResourceID != "it" || s.LeaseTime != time.Hour {
				t.Errorf("Register failed, and the status is %+v", s)
			}
			return
		}
		var listed struct {
			ItResource struct{ Servers []json.RawMessage }
		}
		if validStatus(status)/100 != 2 || json.Unmarshal(body, &listed) != nil || len(ids) > len(listed.ItResource.Servers) {
			t.Errorf("the response %d %q was accepted: %q", validStatus(status), body, ids)
		}
		if s.State != cluster.Registered || s.ResourceID == "" || s.LeaseTime < time.Second || s.LeaseTime > 366*24*time.Hour {
			t.Errorf("the status is %+v", s)
		}
		if _, err := json.Marshal(s); err != nil {
			t.Error(err)
		}
	})
}

// If the registry rejects the token, the request is repeated once with a new one, as by the npm
// module.
func TestTokenRejectedByRegistryIsReplacedOnce(t *testing.T) {
	parallel(t)
	synctest.Test(t, func(t *testing.T) {
		w := clustertest.Start(t, 1)
		n := w.Nodes[0]
		time.Sleep(2 * time.Minute)
		requests := recordRequests(w)
		registryFault(w, clustertest.FirstN(1, clustertest.Status(http.StatusForbidden)))
		time.Sleep(50 * time.Minute)
		synctest.Wait()
		if posted, fetched := len(requests.renewals(n)), len(requests.tokenRequests(n)); posted != 2 || fetched != 1 {
			t.Errorf("%d POSTs and %d tokens, want 2 and 1", posted, fetched)
		}
		wantState(t, n, cluster.Registered)

		registryFault(w, clustertest.Status(http.StatusForbidden))
		d := n.UnRegister(t.Context())
		if len(d.Errors) != 1 {
			t.Fatalf("UnRegister: %+v", d)
		}
		if se, ok := errors.AsType[*cluster.StatusError](d.Errors[0]); !ok || se.Code != http.StatusForbidden || se.Remote != "mIT" {
			t.Errorf("the error is %v, want 403 from the registry", d.Errors[0])
		}
		if deleted, fetched := len(requests.deletes(n)), len(requests.tokenRequests(n)); deleted != 2 || fetched != 2 {
			t.Errorf("%d DELETEs and %d tokens, want 2 and 1 more than before", deleted, fetched)
		}
	})
}

// Nodes that register at the same moment may each find themselves alone in the list. One of them
// checks again after a minute, and announces itself. The npm module checks again, too, but renews
// twice from then on.
func TestRecheckOfTwoSimultaneousRegistrations(t *testing.T) {
	parallel(t)
	synctest.Test(t, func(t *testing.T) {
		w := clustertest.Start(t, 0)
		nodes := []*clustertest.Node{w.Add(), w.Add()}
		for _, n := range nodes {
			w.Network.Fault(n.Host, clustertest.RegistryHost, clustertest.FirstN(1, hideOtherServers))
		}
		began := time.Now()
		requests := recordRequests(w)
		for _, n := range nodes {
			if err := <-registerAsync(t.Context(), n); err != nil {
				t.Fatal(err)
			}
			wantView(t, n, n.ID)
		}
		time.Sleep(60*time.Second - time.Nanosecond)
		for _, n := range nodes {
			wantView(t, n, n.ID)
		}
		time.Sleep(10 * time.Second)
		synctest.Wait()
		for _, n := range nodes {
			wantView(t, n, "node-1", "node-2")
		}
		rechecks := append(requests.renewals(nodes[0])[1:], requests.renewals(nodes[1])[1:]...)
		if len(rechecks) != 1 { // the other node received the announcement by then
			t.Errorf("%d rechecks, want one", len(rechecks))
		}
		for _, x := range rechecks {
			if after := x.Start.Sub(began); after < time.Minute || after > 70*time.Second {
				t.Errorf("a recheck after %v", after)
			}
		}
		if got := len(requests.announcements(nodes[0], nodes[1].Host)) + len(requests.announcements(nodes[1], nodes[0].Host)); got != 1 {
			t.Errorf("%d announcements, want one", got)
		}
	})
}

// The first node that checks again announces all nodes to all, because the others will not check
// again: they are no longer alone.
func TestRecheckOfManySimultaneousRegistrations(t *testing.T) {
	parallel(t)
	synctest.Test(t, func(t *testing.T) {
		w := clustertest.Start(t, 0)
		nodes := []*clustertest.Node{w.Add(), w.Add(), w.Add(), w.Add()}
		for _, n := range nodes {
			w.Network.Fault(n.Host, clustertest.RegistryHost, clustertest.FirstN(1, hideOtherServers))
			if err := <-registerAsync(t.Context(), n); err != nil {
				t.Fatal(err)
			}
			wantView(t, n, n.ID)
		}
		time.Sleep(70 * time.Second)
		synctest.Wait()
		for _, n := range nodes {
			wantView(t, n, "node-1", "node-2", "node-3", "node-4")
		}
	})
}

func TestRecheckOfSingleNode(t *testing.T) {
	parallel(t)
	synctest.Test(t, func(t *testing.T) {
		w := clustertest.Start(t, 0)
		requests := recordRequests(w)
		n := w.Join()
		time.Sleep(30 * time.Minute)
		synctest.Wait()
		if got := len(requests.renewals(n)); got != 2 {
			t.Errorf("%d POSTs, want the registration and one recheck", got)
		}
		wantState(t, n, cluster.Registered)
	})
}

// A recheck that fails is repeated after the outage. The other node learns of this one from the
// announcement, although it cannot reach the registry yet.
func TestRecheckDuringOutage(t *testing.T) {
	parallel(t)
	synctest.Test(t, func(t *testing.T) {
		w := clustertest.Start(t, 0)
		nodes := []*clustertest.Node{w.Add(), w.Add()}
		for _, n := range nodes {
			w.Network.Fault(n.Host, clustertest.RegistryHost, clustertest.FirstN(1, hideOtherServers))
			if err := <-registerAsync(t.Context(), n); err != nil {
				t.Fatal(err)
			}
			w.Network.Cut(n.Host, clustertest.RegistryHost)
		}
		time.Sleep(5 * time.Minute)
		wantState(t, nodes[0], cluster.Degraded)
		w.Network.Mend(nodes[0].Host, clustertest.RegistryHost)
		time.Sleep(51 * time.Second)
		wantState(t, nodes[0], cluster.Registered)
		wantState(t, nodes[1], cluster.Degraded)
		for _, n := range nodes {
			wantView(t, n, "node-1", "node-2")
		}
	})
}

func TestNoRecheckWithPeers(t *testing.T) {
	parallel(t)
	synctest.Test(t, func(t *testing.T) {
		w := clustertest.Start(t, 1)
		time.Sleep(2 * time.Minute)
		requests := recordRequests(w)
		n := w.Join()
		time.Sleep(10 * time.Minute)
		synctest.Wait()
		if got := len(requests.renewals(n)); got != 1 {
			t.Errorf("%d POSTs of a node with peers, want only its registration", got)
		}
	})
}

func redirect(to string) clustertest.Fault {
	return clustertest.Answer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		http.Redirect(w, r, to, http.StatusTemporaryRedirect)
	}))
}

// hideOtherServers registers a node, and lists only this node, which can happen to nodes that
// register at the same moment.
func hideOtherServers(next http.RoundTripper) http.RoundTripper {
	onlyCaller := listOnlyCaller()(next)
	return clustertest.RoundTripperFunc(func(req *http.Request) (*http.Response, error) {
		body, err := req.GetBody()
		if err != nil {
			return nil, err
		}
		resp, err := next.RoundTrip(req)
		if err != nil {
			return nil, err
		}
		resp.Body.Close()
		again := req.Clone(req.Context())
		again.Body = body
		return onlyCaller.RoundTrip(again)
	})
}

// listOnlyCaller answers each registration with a list of the caller alone and a lease of an hour.
func listOnlyCaller() clustertest.Fault {
	return clustertest.Answer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var reg struct {
			ServerID string `json:"serverId"`
		}
		if err := json.NewDecoder(r.Body).Decode(&reg); err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		_, _ = io.WriteString(w, `{"itResource":`+announcement(reg.ServerID)+`,"leaseTime":3600000}`)
	}))
}
