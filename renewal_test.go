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

	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"

	"github.com/google/go-cmp/cmp"

	"github.com/mimiktech/cluster"
	"github.com/mimiktech/cluster/clustertest"
	"github.com/mimiktech/cluster/mit"
)

func TestRenewalFraction(t *testing.T) {
	for _, share := range []float64{0, 0.5, 0.9} { // 0: the default
		t.Run(fmt.Sprint(share), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := clustertest.Start(t, 0, clustertest.WithConfig(func(cfg *cluster.Config) {
					cfg.RenewalFraction = share
					cfg.Management = false // no second look
				}))
				l := recordRequests(w)
				n := w.Join()
				time.Sleep(7 * 24 * time.Hour)
				synctest.Wait()

				want := time.Duration(share * float64(time.Hour))
				if share == 0 {
					want = 40 * time.Minute
				}
				distinct := map[time.Duration]bool{}
				for _, gap := range intervals(l.renewals(n)) {
					distinct[gap] = true
					if gap < want*9/10 || gap > want*11/10 {
						t.Errorf("%v between two renewals, want %v give or take a tenth", gap, want)
					}
				}
				// Of the sum of this many jittered waits, four standard deviations.
				week := int(7 * 24 * time.Hour / want)
				if got := len(l.renewals(n)); got < week-8 || got > week+8 {
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

// All npm nodes that registered at the same moment, after a restart of mIT say, renew at the
// same moment for as long as they run.
func TestRenewalsAreJittered(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const size = 200
		w := clustertest.Start(t, 0, clustertest.WithConfig(func(cfg *cluster.Config) { cfg.Management = false }))
		registryFault(w, listOnlyCaller())
		for range size {
			w.Join() // virtual time stands still
		}
		began := time.Now()
		l := recordRequests(w)
		time.Sleep(45 * time.Minute)
		synctest.Wait()
		perSecond := map[time.Duration]int{}
		first, last := time.Hour, time.Duration(0)
		renewals := l.matching(http.MethodPost, clustertest.Any, clustertest.RegistryHost)
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

// The npm module's first timer would be one of 0 ms if mIT named no leaseTime at first.
func TestDefaultLeaseTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := clustertest.Start(t, 0, clustertest.WithLease(mit.NoLease))
		l := recordRequests(w)
		n := w.Join()
		if got := n.Status().LeaseTime; got != 2*time.Hour {
			t.Errorf("the lease is %v, want 2 h", got)
		}
		time.Sleep(24 * time.Hour)
		synctest.Wait()
		if got := len(l.renewals(n)); got < 16 || got > 23 { // one of them is the second look
			t.Errorf("%d POSTs in a day, want one about every 80 minutes", got)
		}
	})
}

// The npm module hands whatever mIT answers to setInterval, which takes 5 for 5 ms, and what
// is no number or beyond 2^31 for 1 ms.
func TestLeaseTimeValues(t *testing.T) {
	tests := map[string]struct {
		leaseTime string // JSON; "" for none
		want      time.Duration
	}{
		"missing":          {"", 2 * time.Hour},
		"null":             {"null", 2 * time.Hour},
		"zero":             {"0", 2 * time.Hour},
		"negative":         {"-3600000", 2 * time.Hour},
		"minus a lot":      {"-1e300", 2 * time.Hour},
		"an hour":          {"3600000", time.Hour},
		"a fraction":       {"1500.5", 1500*time.Millisecond + 500*time.Microsecond},
		"with an exponent": {"36e5", time.Hour},
		"a second":         {"1000", time.Second},
		"tiny":             {"5", time.Second},
		"next to nothing":  {"1e-300", time.Second},
		"beyond 2^31":      {"4294967296", 4294967296 * time.Millisecond},
		"beyond 2^63":      {"1e300", 365 * 24 * time.Hour},
		"a text":           {`"3600000"`, time.Hour},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := clustertest.Start(t, 0, clustertest.WithConfig(func(cfg *cluster.Config) { cfg.Management = false }))
				answer := `{"itResource":` + announcement("node-1") + `}`
				if test.leaseTime != "" {
					answer = strings.TrimSuffix(answer, "}") + `,"leaseTime":` + test.leaseTime + `}`
				}
				registryFault(w, respondOK(answer))
				l := recordRequests(w)
				n := w.Join()
				if got := n.Status().LeaseTime; got != test.want {
					t.Fatalf("the lease is %v, want %v", got, test.want)
				}
				time.Sleep(10 * test.want)
				synctest.Wait()
				if got := len(l.renewals(n)); got < 14 || got > 18 {
					t.Errorf("%d POSTs in ten leases, want about 16", got)
				}
				wantState(t, n, cluster.Registered)
			})
		})
	}
}

// The npm module takes the lease that the first answer named for ever.
func TestLeaseTimeFollowsTheRegistry(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := clustertest.Start(t, 0)
		n := w.Join()
		time.Sleep(2 * time.Minute) // beyond the second look
		l := recordRequests(w)
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
		for _, gap := range intervals(l.renewals(n)) {
			if gap < 6*time.Minute || gap > 440*time.Second {
				t.Errorf("%v between two renewals, want 6:40 give or take a tenth", gap)
			}
		}

		w.Registry.SetLease(6 * time.Hour)
		time.Sleep(8 * time.Minute)
		if s := n.Status(); s.LeaseTime != 6*time.Hour || s.ExpiresAt().Sub(s.RenewedAt) != 6*time.Hour {
			t.Errorf("the longer lease is not followed: %+v", s)
		}
		before := len(l.renewals(n))
		time.Sleep(3 * time.Hour)
		synctest.Wait()
		if got := len(l.renewals(n)) - before; got != 0 {
			t.Errorf("%d renewals in half a lease", got)
		}
	})
}

// The lease is counted from when the request was sent: mIT may have started it then.
func TestLeaseStartsWhenTheRequestIsSent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var d traceLog
		w := clustertest.Start(t, 0, clustertest.WithLease(time.Minute))
		registryFault(w, clustertest.Delay(5*time.Second))
		sent := time.Now()
		n := w.Join(cluster.WithTrace(d.trace()))
		registryDown(w)
		registryFault(w, nil)
		if s := n.Status(); !s.RenewedAt.Equal(sent) || !s.ExpiresAt().Equal(sent.Add(time.Minute)) {
			t.Errorf("renewed %v after it was sent", s.RenewedAt.Sub(sent))
		}
		time.Sleep(2 * time.Minute)
		synctest.Wait()
		if got := d.first(t, cluster.Lost).at.Sub(sent); got != time.Minute {
			t.Errorf("lost %v after the request was sent, want the lease", got)
		}
	})
}

// A slow mIT costs no lease: the share is one of the lease, which runs while mIT answers.
func TestSlowRegistryKeepsTheLease(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var d traceLog
		w := clustertest.Start(t, 0, clustertest.WithLease(time.Minute))
		registryFault(w, clustertest.Delay(9*time.Second))
		w.Join(cluster.WithTrace(d.trace()))
		time.Sleep(6 * time.Hour)
		synctest.Wait()
		if got := d.states(); !cmp.Equal(got, []string{"orphan→registered"}) {
			t.Errorf("%d changes of state in six hours, from %q on", len(got), got[:min(len(got), 5)])
		}
	})
}

// mIT is the truth: what was only announced goes, and what was not announced comes.
func TestRenewalReplacesTheView(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := clustertest.Start(t, 1)
		n := w.Nodes[0]
		announce(t, w, n, announcement("rumour"))
		wantView(t, n, "node-1", "rumour")
		w.Network.Fault(clustertest.Any, n.Host, clustertest.Status(500)) // it hears of nobody
		w.Join()
		wantView(t, n, "node-1", "rumour")
		time.Sleep(time.Hour)
		wantView(t, n, "node-1", "node-2")
	})
}

// What mIT answers is a moment old when it comes. The npm module forgets what it was told in
// that moment.
func TestViewChangesDuringRenewal(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := clustertest.Start(t, 3)
		n := w.Nodes[0]
		w.Network.Fault(n.Host, clustertest.RegistryHost, clustertest.FirstN(1, delayResponse(8*time.Second)))
		renewing := registerAsync(t.Context(), n)
		time.Sleep(time.Second) // mIT has said who is there
		w.Nodes[2].UnRegister(t.Context())
		w.Join()
		wantView(t, n, "node-1", "node-2", "node-4")
		if err := <-renewing; err != nil {
			t.Fatal(err)
		}
		wantView(t, n, "node-1", "node-2", "node-4")
	})
}

// The npm module takes whatever mIT answers for its view: one that lists nobody leaves it
// without peers, one without servers crashes it.
func TestPartialListKeepsView(t *testing.T) {
	withMe := announcement("node-1", "node-2")
	tests := map[string]struct {
		fault clustertest.Fault
		want  string // in the reason
	}{
		"without this node": {respondOK(`{"itResource":` + announcement("node-2", "node-3") + `,"leaseTime":3600000}`), "this node is not among its 2 servers"},
		"an empty list":     {respondOK(`{"itResource":` + announcement() + `,"leaseTime":3600000}`), "this node is not among its 0 servers"},
		"no list":           {respondOK(`{"itResource":{"id":"x","publicBaseUrl":"http://x"},"leaseTime":3600000}`), "this node is not among its 0 servers"},
		"no itResource":     {respondOK(`{"leaseTime":3600000}`), "no itResource in it"},
		"a null itResource": {respondOK(`{"itResource":null}`), "no itResource in it"},
		"an itResource with no id": {
			respondOK(`{"itResource":{"servers":[{"serverId":"node-1","clusterBaseUrl":"http://node-1:8080"}]}}`), "itResource without id",
		},
		"a nameless server":       {respondOK(`{"itResource":{"id":"x","servers":[{"clusterBaseUrl":"http://y"}]}}`), "not among its 0 servers; 1 of 1 entries left out: server without serverId"},
		"servers of another kind": {respondOK(`{"itResource":{"id":"x","servers":{"node-1":{}}}}`), "its servers cannot be read"},
		"an array":                {respondOK(`[]`), "not an object"},
		"text":                    {respondOK(`"ok"`), "not an object"},
		"null":                    {respondOK(`null`), "no itResource in it"},
		"HTML":                    {respondOK(`<html>`), "invalid character '<'"},
		"nothing":                 {respondOK(``), "unexpected end of JSON input"},
		"no content":              {respond(http.StatusNoContent, ""), "unexpected end of JSON input"},
		"half an answer":          {respondOK(`{"itResource":` + withMe[:len(withMe)/2]), "unexpected end of JSON input"},
		"more than an answer":     {respondOK(`{"itResource":` + withMe + `}{}`), "invalid character '{' after top-level value"},
		"nested without end":      {respondOK(strings.Repeat("[", 100_000)), "exceeded max depth"},
		"a leaseTime beyond all":  {respondOK(`{"itResource":` + withMe + `,"leaseTime":1e999}`), "leaseTime"},
		"a leaseTime of words":    {respondOK(`{"itResource":` + withMe + `,"leaseTime":"soon"}`), "leaseTime"},
		"a leaseTime of NaN":      {respondOK(`{"itResource":` + withMe + `,"leaseTime":NaN}`), "invalid character 'N'"},
		"an object for leaseTime": {respondOK(`{"itResource":` + withMe + `,"leaseTime":{}}`), "leaseTime"},
		"broken off":              {clustertest.Truncate(30), "it broke off"},
		"stalled":                 {clustertest.Stall(30), "it broke off: context deadline exceeded"},
		"declared too large":      {endlessBody(true), "answer too large: 1048577 bytes, 1048576 allowed"},
		"endless":                 {endlessBody(false), "answer too large: more than 1048576 bytes"},
		"a redirect":              {redirect("http://node-2:8080/"), "mIT answered 307 Temporary Redirect"},
		"a teapot":                {clustertest.Status(http.StatusTeapot), "mIT answered 418 I'm a teapot"},
		"a status of its own":     {clustertest.Status(799), "mIT answered 799 "},
		"an error with HTML":      {respond(http.StatusBadGateway, "<html>"), "mIT answered 502 Bad Gateway"},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var d traceLog
				w := clustertest.Start(t, 0, clustertest.WithConfig(func(cfg *cluster.Config) { cfg.MaxResponseBytes = 1 << 20 }))
				n := w.Join(cluster.WithTrace(d.trace()))
				w.Join()
				l := recordRequests(w)
				w.Network.Fault(n.Host, clustertest.RegistryHost, test.fault)
				time.Sleep(50 * time.Minute)
				synctest.Wait()

				wantState(t, n, cluster.Degraded)
				wantView(t, n, "node-1", "node-2")
				reason := fmt.Sprint(n.Status().Reason)
				if !strings.Contains(reason, "mIT") || !strings.Contains(reason, "POST http://mit.test/mIT/v1/itResources") || !strings.Contains(reason, test.want) {
					t.Errorf("the reason is %q, want one that names mIT and %q", reason, test.want)
				}
				if len(reason) > 300 {
					t.Errorf("the reason has %d bytes", len(reason))
				}
				if tries := len(l.renewals(n)); tries < 10 {
					t.Errorf("%d tries: it did not go on", tries)
				}
				if called := l.countToPeers(n); called != 0 {
					t.Errorf("%d requests to peers", called)
				}
				w.Network.Fault(n.Host, clustertest.RegistryHost, nil)
				time.Sleep(time.Minute)
				wantState(t, n, cluster.Registered)
			})
		})
	}
}

// One bad entry costs nobody the others. Who can be named stays, so that no fan-out is silent about
// it; who cannot is left out, with a warning.
func TestInvalidEntriesAreSkipped(t *testing.T) {
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
			t.Errorf("the bad entry is kept as %s, want %s", got, want)
		}
		res := rpc(t, n, cluster.Request{Path: "/things"})
		if len(res.Results) != 1 || len(res.Failures) != 1 || res.Failures[0].Kind != cluster.KindNotAllowed || res.Failures[0].Evicted {
			t.Errorf("asking them: %+v", res)
		}
		warned := logs.FilterMessage("mIT answered bad entries").All()
		if len(warned) != 1 || warned[0].ContextMap()["error"] != "2 of 5 entries left out: server without serverId" {
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
		c := newRegisteredNode(t, o, cluster.WithTrace(&cluster.Trace{
			RenewFailed: func(err error, _ time.Duration) { failed = err; cancel() },
		}))
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
				t.Errorf("it failed, but changed the view (-before +after):\n%s", diff)
			}
			if s.State != cluster.Degraded || s.ResourceID != "it" || s.LeaseTime != time.Hour {
				t.Errorf("it failed, and the status is %+v", s)
			}
			return
		}
		var told struct {
			ItResource struct{ Servers []json.RawMessage }
		}
		if validStatus(status)/100 != 2 || json.Unmarshal(body, &told) != nil || len(ids) > len(told.ItResource.Servers) {
			t.Errorf("%d %q was taken for an answer: %q", validStatus(status), body, ids)
		}
		if s.State != cluster.Registered || s.ResourceID == "" || s.LeaseTime < time.Second || s.LeaseTime > 366*24*time.Hour {
			t.Errorf("the status is %+v", s)
		}
		if _, err := json.Marshal(s); err != nil {
			t.Error(err)
		}
	})
}

// The npm module drops a refused token as well, and repeats the request.
func TestTokenRejectedByRegistryIsReplacedOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := clustertest.Start(t, 1)
		n := w.Nodes[0]
		time.Sleep(2 * time.Minute)
		l := recordRequests(w)
		registryFault(w, clustertest.FirstN(1, clustertest.Status(http.StatusForbidden)))
		time.Sleep(50 * time.Minute)
		synctest.Wait()
		if posted, fetched := len(l.renewals(n)), len(l.matching(http.MethodPost, n.Host, clustertest.TokenHost)); posted != 2 || fetched != 1 {
			t.Errorf("%d POSTs and %d tokens, want 2 and 1", posted, fetched)
		}
		wantState(t, n, cluster.Registered)

		registryFault(w, clustertest.Status(http.StatusForbidden))
		d := n.UnRegister(t.Context())
		if len(d.Errors) != 1 {
			t.Fatalf("leaving: %+v", d)
		}
		if se, ok := errors.AsType[*cluster.StatusError](d.Errors[0]); !ok || se.Code != http.StatusForbidden || se.Remote != "mIT" {
			t.Errorf("the error is %v, want mIT's 403", d.Errors[0])
		}
		if deleted, fetched := len(l.matching(http.MethodDelete, n.Host, clustertest.RegistryHost)), len(l.matching(http.MethodPost, n.Host, clustertest.TokenHost)); deleted != 2 || fetched != 2 {
			t.Errorf("%d DELETEs and %d tokens, want 2 and 1 more than before", deleted, fetched)
		}
	})
}

// The npm module, too, looks again; from then on it keeps two leases, of which unRegister stops
// one.
func TestRecheckOfTwoSimultaneousRegistrations(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := clustertest.Start(t, 0)
		nodes := []*clustertest.Node{w.Add(), w.Add()}
		for _, n := range nodes {
			w.Network.Fault(n.Host, clustertest.RegistryHost, clustertest.FirstN(1, hideOtherServers))
		}
		began := time.Now()
		l := recordRequests(w)
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
		looks := append(l.renewals(nodes[0])[1:], l.renewals(nodes[1])[1:]...)
		if len(looks) != 1 { // the other one heard of it by then
			t.Errorf("%d second looks, want one", len(looks))
		}
		for _, x := range looks {
			if after := x.Start.Sub(began); after < time.Minute || after > 70*time.Second {
				t.Errorf("a second look after %v", after)
			}
		}
		if got := len(l.announcements(nodes[0], nodes[1].Host)) + len(l.announcements(nodes[1], nodes[0].Host)); got != 1 {
			t.Errorf("%d announcements, want one", got)
		}
	})
}

// The first to look again tells all others of all, for those who hear of it do not look: they are
// alone no more.
func TestRecheckOfManySimultaneousRegistrations(t *testing.T) {
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
	synctest.Test(t, func(t *testing.T) {
		w := clustertest.Start(t, 0)
		l := recordRequests(w)
		n := w.Join()
		time.Sleep(30 * time.Minute)
		synctest.Wait()
		if got := len(l.renewals(n)); got != 2 {
			t.Errorf("%d POSTs, want the registration and one second look", got)
		}
		wantState(t, n, cluster.Registered)
	})
}

// A second look that mIT does not answer is still to be had: the other one may have to wait
// for mIT much longer, and hears of this one all the same.
func TestRecheckDuringOutage(t *testing.T) {
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
	synctest.Test(t, func(t *testing.T) {
		w := clustertest.Start(t, 1)
		time.Sleep(2 * time.Minute)
		l := recordRequests(w)
		n := w.Join()
		time.Sleep(10 * time.Minute)
		synctest.Wait()
		if got := len(l.renewals(n)); got != 1 {
			t.Errorf("%d POSTs of a node with peers, want its registration alone", got)
		}
	})
}

func redirect(to string) clustertest.Fault {
	return clustertest.Answer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		http.Redirect(w, r, to, http.StatusTemporaryRedirect)
	}))
}

// alone has mIT register a node and yet answer as if it were the only one: what two nodes can
// be told that register at the same moment.
func hideOtherServers(next http.RoundTripper) http.RoundTripper {
	lie := listOnlyCaller()(next)
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
		return lie.RoundTrip(again)
	})
}

// onlyYou has mIT answer each that it is the only one, for an hour: that keeps answers short.
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
