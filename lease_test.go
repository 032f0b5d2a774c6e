package cluster_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"sync"
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

// A diary is what the hooks of one node told, in order.
type diary struct {
	mu      sync.Mutex
	entries []entry
}

type entry struct {
	at   time.Time
	text string
	to   cluster.Status // of a new state
}

func (d *diary) write(to cluster.Status, format string, args ...any) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.entries = append(d.entries, entry{time.Now(), fmt.Sprintf(format, args...), to})
}

func (d *diary) trace() *cluster.Trace {
	return &cluster.Trace{
		StateChanged: func(from, to cluster.Status) {
			if to.Reason == nil {
				d.write(to, "%s→%s", from.State, to.State)
				return
			}
			d.write(to, "%s→%s: %v", from.State, to.State, to.Reason)
		},
		Renewed:     func(lease, _ time.Duration) { d.write(cluster.Status{}, "renewed for %v", lease) },
		RenewFailed: func(err error, _ time.Duration) { d.write(cluster.Status{}, "failed: %v", err) },
		Evicted:     func(s cluster.Server) { d.write(cluster.Status{}, "evicted %s", s.ServerID) },
		TokenFetched: func(key cluster.TokenKey, err error) {
			d.write(cluster.Status{}, "token for %s: %v", key.Audience, err)
		},
	}
}

func (d *diary) copy() []entry {
	d.mu.Lock()
	defer d.mu.Unlock()
	return slices.Clone(d.entries)
}

// all is what was told, tokens apart.
func (d *diary) all() []string {
	var texts []string
	for _, e := range d.copy() {
		if !strings.HasPrefix(e.text, "token ") {
			texts = append(texts, e.text)
		}
	}
	return texts
}

// states are the changes of state, without their reasons.
func (d *diary) states() []string {
	var texts []string
	for _, e := range d.copy() {
		if e.to.State != "" {
			text, _, _ := strings.Cut(e.text, ":")
			texts = append(texts, text)
		}
	}
	return texts
}

// when finds the first change to a state.
func (d *diary) when(t *testing.T, state cluster.State) entry {
	t.Helper()
	for _, e := range d.copy() {
		if e.to.State == state {
			return e
		}
	}
	t.Fatalf("never %s: %q", state, d.all())
	return entry{}
}

func answerBody(body string) clustertest.Fault { return answerStatus(http.StatusOK, body) }

func answerStatus(code int, body string) clustertest.Fault {
	return clustertest.Answer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(code)
		_, _ = io.WriteString(w, body)
	}))
}

// resourceOf is an itResource of the nodes' type as JSON. An entry has the date given, in
// the wire's spelling; none if it is empty.
func resourceOf(date string, ids ...string) string {
	type server struct {
		ServerID       string `json:"serverId"`
		ClusterBaseURL string `json:"clusterBaseUrl"`
		CreatedAt      string `json:"createdAt,omitempty"`
	}
	servers := []server{}
	for _, id := range ids {
		servers = append(servers, server{id, "http://" + id + ":8080/mds/v1", date})
	}
	b, _ := json.Marshal(map[string]any{"id": mit.ResourceID("mds"), "publicBaseUrl": "http://x/mds/v1", "servers": servers}) // nothing in it can fail
	return string(b)
}

// endless is an answer without end, or of a length declared beforehand.
func endless(declared bool) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		if declared {
			w.Header().Set("Content-Length", "1048577")
		}
		line := []byte(strings.Repeat(" ", 1<<16-1) + "\n")
		for {
			if _, err := w.Write(line); err != nil {
				return
			}
		}
	}
}

func redirect(to string) clustertest.Fault {
	return clustertest.Answer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		http.Redirect(w, r, to, http.StatusTemporaryRedirect)
	}))
}

func announcement(ids ...string) string { return resourceOf("2000-01-01T00:00:00.000Z", ids...) }

// announce tells n of servers, as a peer does.
func announce(t *testing.T, w *clustertest.World, n *clustertest.Node, resource string) {
	t.Helper()
	tell(t, w, n, http.MethodPost, "/mds/v1/itResources", resource)
}

// gone tells n that a server is gone, as a peer does.
func gone(t *testing.T, w *clustertest.World, n *clustertest.Node, id string) {
	t.Helper()
	tell(t, w, n, http.MethodDelete, "/mds/v1/itResources/"+mit.ResourceID("mds")+"/servers/"+id, "")
}

func tell(t *testing.T, w *clustertest.World, n *clustertest.Node, method, path, body string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, "http://"+n.Host+path, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+w.Token("mds", true))
	resp, err := w.Network.Client("somebody").Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if b, _ := io.ReadAll(resp.Body); resp.StatusCode != http.StatusOK {
		t.Fatalf("%s %s: %s: %s", method, path, resp.Status, b)
	}
}

func TestRenewalAtAShareOfTheLease(t *testing.T) {
	for _, share := range []float64{0, 0.5, 0.9} { // 0: the default
		t.Run(fmt.Sprint(share), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := clustertest.Start(t, 0, clustertest.WithConfig(func(cfg *cluster.Config) {
					cfg.RenewalFraction = share
					cfg.Management = false // no second look
				}))
				l := keepLedger(w)
				n := w.Join()
				time.Sleep(7 * 24 * time.Hour)
				synctest.Wait()

				want := time.Duration(share * float64(time.Hour))
				if share == 0 {
					want = 40 * time.Minute
				}
				distinct := map[time.Duration]bool{}
				for _, gap := range gaps(l.renewals(n)) {
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

// The npm module's first timer would be one of 0 ms if mIT named no leaseTime at first.
func TestReferenceMissingLeaseTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := clustertest.Start(t, 0, clustertest.WithLease(mit.NoLease))
		l := keepLedger(w)
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
func TestLeaseTimeOfAnAnswer(t *testing.T) {
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
				registryFault(w, answerBody(answer))
				l := keepLedger(w)
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
func TestReferenceChangedLease(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := clustertest.Start(t, 0)
		n := w.Join()
		time.Sleep(2 * time.Minute) // beyond the second look
		l := keepLedger(w)
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
		for _, gap := range gaps(l.renewals(n)) {
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

// The npm module waits a whole lease after a renewal that failed; by then mIT has let it go.
func TestReferenceFailedRenewal(t *testing.T) {
	faults := map[string]clustertest.Fault{
		"refused": clustertest.Refuse, "lost": clustertest.Hang, "broken": clustertest.Reset,
		"500": clustertest.Status(500), "429": clustertest.Status(429), "404": clustertest.Status(404),
		"garbage": answerBody("<html>"), "half": clustertest.Truncate(20), "stalled": clustertest.Stall(20),
	}
	for name, fault := range faults {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var d diary
				w := clustertest.Start(t, 1)
				n := w.Join(cluster.WithTrace(d.trace()))
				l := keepLedger(w)
				w.Network.Fault(n.Host, clustertest.RegistryHost, clustertest.FirstN(1, fault))
				time.Sleep(59 * time.Minute)
				synctest.Wait()
				if got, want := d.states(), []string{"orphan→registered", "registered→degraded", "degraded→registered"}; !cmp.Equal(got, want) {
					t.Errorf("the states were %q, want %q", got, want)
				}
				if got := len(l.renewals(n)); got != 2 {
					t.Errorf("%d tries, want the one that failed and the one that did not", got)
				}
				ill, well := d.copy(), d.copy()
				ill = slices.DeleteFunc(ill, func(e entry) bool { return e.to.State != cluster.Degraded })
				well = slices.DeleteFunc(well, func(e entry) bool { return e.to.State != cluster.Registered })
				if took := well[1].at.Sub(ill[0].at); took > 4*time.Second {
					t.Errorf("it took %v from the failure to the next success, want RegistrationRetry", took)
				}
				if got := ill[0].to.Registration(); got != "registered" {
					t.Errorf("REGISTRATION_STATUS of a degraded node is %q", got)
				}
				if len(l.announcements(n, clustertest.Any)) != 0 {
					t.Error("it announced itself, although peers have known it all the time")
				}
			})
		})
	}
}

// In a long outage the tries go on, ever less often, but so often that mIT need not wait
// for its servers when it is back.
func TestRetriesBackOff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := clustertest.Start(t, 1)
		n := w.Nodes[0]
		l := keepLedger(w)
		registryDown(w)
		time.Sleep(24 * time.Hour)
		synctest.Wait()
		between := gaps(l.renewals(n)) // the first try is the second look
		if between[0] < 2*time.Second || between[0] > 4*time.Second {
			t.Errorf("the first pause was %v, want RegistrationRetry, jittered", between[0])
		}
		for _, gap := range between[10:] {
			if gap < 20*time.Second || gap > 40*time.Second {
				t.Errorf("a late pause was %v, want 30 s give or take a third", gap)
			}
		}
		if got := len(between); got < 2500 || got > 3100 {
			t.Errorf("%d tries in a day", got)
		}

		registryUp(w)
		time.Sleep(2 * time.Minute)
		wantState(t, n, cluster.Registered)
		before := len(l.renewals(n))
		registryDown(w)
		time.Sleep(50 * time.Minute)
		synctest.Wait()
		if gap := gaps(l.renewals(n)[before:])[0]; gap > 4*time.Second {
			t.Errorf("the first pause of the next outage was %v, want RegistrationRetry again", gap)
		}
	})
}

// The pauses are well inside a short lease, too.
func TestRetriesOfAShortLease(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := clustertest.Start(t, 1, clustertest.WithLease(12*time.Second))
		n := w.Nodes[0]
		l := keepLedger(w)
		time.Sleep(time.Second)
		registryDown(w)
		time.Sleep(time.Until(n.Status().ExpiresAt()) - time.Nanosecond)
		wantState(t, n, cluster.Degraded)
		if got := len(l.renewals(n)); got < 3 {
			t.Errorf("%d tries in the last third of the lease, want one a second", got)
		}
	})
}

// The npm module never tells that its lease has run out, neither to the application nor in the
// environment.
func TestReferenceLeaseRunsOut(t *testing.T) {
	faults := map[string]struct {
		host  string
		fault clustertest.Fault
	}{
		"mIT refuses":     {clustertest.RegistryHost, clustertest.Refuse},
		"mIT hangs":       {clustertest.RegistryHost, clustertest.Hang},
		"mIT stalls":      {clustertest.RegistryHost, clustertest.Stall(10)},
		"mIT answers 503": {clustertest.RegistryHost, clustertest.Status(503)},
		"mST refuses":     {clustertest.TokenHost, clustertest.Refuse},
		"mST hangs":       {clustertest.TokenHost, clustertest.Hang},
	}
	for name, test := range faults {
		for _, lease := range []time.Duration{time.Second, 15 * time.Second, time.Hour} {
			t.Run(fmt.Sprint(name, ", ", lease), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					var d diary
					w := clustertest.Start(t, 0, clustertest.WithLease(lease), clustertest.WithTokenTTL(max(lease/2, time.Second)),
						clustertest.WithConfig(func(cfg *cluster.Config) { cfg.Management = false }))
					l := keepLedger(w)
					n := w.Join(cluster.WithTrace(d.trace()))
					w.Network.Fault(clustertest.Any, test.host, test.fault)
					time.Sleep(3 * lease)
					synctest.Wait()

					if got, want := d.states(), []string{"orphan→registered", "registered→degraded", "degraded→lost"}; !cmp.Equal(got, want) {
						t.Fatalf("the states were %q, want %q", got, want)
					}
					lost := d.when(t, cluster.Lost)
					var renewed time.Time
					for _, x := range l.renewals(n) {
						if x.Status == http.StatusOK && x.Err == nil && x.Received > 10 {
							renewed = x.Start
						}
					}
					if got := lost.at.Sub(renewed); got != lease {
						t.Errorf("lost %v after the last good renewal was sent, want %v", got, lease)
					}
					if !strings.HasPrefix(lost.to.Registration(), "orphan: ") || strings.Contains(lost.to.Registration(), "ran out") {
						t.Errorf("REGISTRATION_STATUS of a lost node is %q, want why it could not renew", lost.to.Registration())
					}
					wantState(t, n, cluster.Lost)

					w.Network.Fault(clustertest.Any, test.host, nil)
					time.Sleep(51 * time.Second) // a try that hangs, and the longest pause
					wantState(t, n, cluster.Registered)
				})
			})
		}
	}
}

// The lease is counted from when the request was sent: mIT may have started it then.
func TestLeaseRunsFromWhenTheRenewalWasSent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var d diary
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
		if got := d.when(t, cluster.Lost).at.Sub(sent); got != time.Minute {
			t.Errorf("lost %v after the request was sent, want the lease", got)
		}
	})
}

// A slow mIT costs no lease: the share is one of the lease, which runs while mIT answers.
func TestSlowRegistryLosesNoLease(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var d diary
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

// The view is what mIT last said, however long that is ago, and peers can be asked by it.
func TestOutagesHeal(t *testing.T) {
	for _, outage := range []time.Duration{time.Minute, time.Hour, 24 * time.Hour} {
		t.Run(outage.String(), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := clustertest.Start(t, 3)
				time.Sleep(30 * time.Minute)
				registryDown(w)
				time.Sleep(outage)
				for _, n := range w.Nodes {
					wantView(t, n, "node-1", "node-2", "node-3")
				}
				res, err := w.Nodes[0].RPCluster(t.Context(), cluster.Request{Path: "/things"})
				if err != nil || len(res.Results) != 2 {
					t.Errorf("asking peers during the outage: %+v, %v", res, err)
				}

				registryUp(w)
				time.Sleep(41 * time.Second)
				synctest.Wait()
				if got := ids(w.Registered()); outage > 2*time.Hour && !cmp.Equal(got, []string{"node-1", "node-2", "node-3"}) {
					t.Errorf("mIT lists %q", got)
				}
				for _, n := range w.Nodes {
					wantState(t, n, cluster.Registered)
					wantView(t, n, "node-1", "node-2", "node-3")
				}
			})
		})
	}
}

// A node whose lease had run out announces itself: its peers may have heard from mIT that it is
// gone, or from each other.
func TestLostNodeAnnouncesItself(t *testing.T) {
	tests := map[string]struct {
		outage time.Duration
		others []string // what its peers know by then
	}{
		"while mIT still lists it": {61 * time.Minute, []string{"node-1", "node-2", "node-3"}},
		"when mIT has let it go":   {3 * time.Hour, []string{"node-2", "node-3"}},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := clustertest.Start(t, 3)
				n := w.Nodes[0]
				w.Network.Cut(n.Host, clustertest.RegistryHost)
				time.Sleep(test.outage)
				wantState(t, n, cluster.Lost)
				wantView(t, n, "node-1", "node-2", "node-3")
				for _, peer := range w.Nodes[1:] {
					wantView(t, peer, test.others...)
				}
				l := keepLedger(w)
				w.Network.Heal()
				time.Sleep(51 * time.Second)
				wantState(t, n, cluster.Registered)
				for _, peer := range w.Nodes[1:] {
					wantView(t, peer, "node-1", "node-2", "node-3")
					if got := len(l.announcements(n, peer.Host)); got != 1 {
						t.Errorf("%d announcements to %s, want one", got, peer.ID)
					}
				}
			})
		})
	}
}

// While mIT is gone peers still join, leave and are told: its return keeps what is true of it.
func TestViewDuringAnOutage(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := clustertest.Start(t, 3)
		n := w.Nodes[0]
		registryDown(w)
		time.Sleep(10 * time.Hour)
		w.Nodes[2].UnRegister(t.Context()) // peers hear of it, mIT does not
		wantView(t, n, "node-1", "node-2")
		registryUp(w)
		time.Sleep(time.Minute)
		wantState(t, n, cluster.Registered)
		wantView(t, n, "node-1", "node-2")
	})
}

// The npm module takes whatever mIT answers for its view: one that lists nobody leaves it
// without peers, one without servers crashes it.
func TestReferenceHalfList(t *testing.T) {
	withMe := announcement("node-1", "node-2")
	tests := map[string]struct {
		fault clustertest.Fault
		want  string // in the reason
	}{
		"without this node": {answerBody(`{"itResource":` + announcement("node-2", "node-3") + `,"leaseTime":3600000}`), "this node is not among its 2 servers"},
		"an empty list":     {answerBody(`{"itResource":` + announcement() + `,"leaseTime":3600000}`), "this node is not among its 0 servers"},
		"no list":           {answerBody(`{"itResource":{"id":"x","publicBaseUrl":"http://x"},"leaseTime":3600000}`), "this node is not among its 0 servers"},
		"no itResource":     {answerBody(`{"leaseTime":3600000}`), "no itResource in it"},
		"a null itResource": {answerBody(`{"itResource":null}`), "no itResource in it"},
		"an itResource with no id": {
			answerBody(`{"itResource":{"servers":[{"serverId":"node-1","clusterBaseUrl":"http://node-1:8080"}]}}`), "itResource without id",
		},
		"a nameless server":       {answerBody(`{"itResource":{"id":"x","servers":[{"clusterBaseUrl":"http://y"}]}}`), "not among its 0 servers; 1 of 1 entries left out: server without serverId"},
		"servers of another kind": {answerBody(`{"itResource":{"id":"x","servers":{"node-1":{}}}}`), "its servers cannot be read"},
		"an array":                {answerBody(`[]`), "not an object"},
		"text":                    {answerBody(`"ok"`), "not an object"},
		"null":                    {answerBody(`null`), "no itResource in it"},
		"HTML":                    {answerBody(`<html>`), "invalid character '<'"},
		"nothing":                 {answerBody(``), "unexpected end of JSON input"},
		"no content":              {answerStatus(http.StatusNoContent, ""), "unexpected end of JSON input"},
		"half an answer":          {answerBody(`{"itResource":` + withMe[:len(withMe)/2]), "unexpected end of JSON input"},
		"more than an answer":     {answerBody(`{"itResource":` + withMe + `}{}`), "invalid character '{' after top-level value"},
		"nested without end":      {answerBody(strings.Repeat("[", 100_000)), "exceeded max depth"},
		"a leaseTime beyond all":  {answerBody(`{"itResource":` + withMe + `,"leaseTime":1e999}`), "leaseTime"},
		"a leaseTime of words":    {answerBody(`{"itResource":` + withMe + `,"leaseTime":"soon"}`), "leaseTime"},
		"a leaseTime of NaN":      {answerBody(`{"itResource":` + withMe + `,"leaseTime":NaN}`), "invalid character 'N'"},
		"an object for leaseTime": {answerBody(`{"itResource":` + withMe + `,"leaseTime":{}}`), "leaseTime"},
		"broken off":              {clustertest.Truncate(30), "it broke off"},
		"stalled":                 {clustertest.Stall(30), "it broke off: context deadline exceeded"},
		"declared too large":      {clustertest.Answer(endless(true)), "answer too large: 1048577 bytes, 1048576 allowed"},
		"endless":                 {clustertest.Answer(endless(false)), "answer too large: more than 1048576 bytes"},
		"a redirect":              {redirect("http://node-2:8080/"), "mIT answered 307 Temporary Redirect"},
		"a teapot":                {clustertest.Status(http.StatusTeapot), "mIT answered 418 I'm a teapot"},
		"a status of its own":     {clustertest.Status(799), "mIT answered 799 "},
		"an error with HTML":      {answerStatus(http.StatusBadGateway, "<html>"), "mIT answered 502 Bad Gateway"},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var d diary
				w := clustertest.Start(t, 0, clustertest.WithConfig(func(cfg *cluster.Config) { cfg.MaxResponseBytes = 1 << 20 }))
				n := w.Join(cluster.WithTrace(d.trace()))
				w.Join()
				l := keepLedger(w)
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
				if called := l.toPeers(n); called != 0 {
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
func TestRegistryListsBadEntries(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := clustertest.Start(t, 2)
		core, logs := observer.New(zap.WarnLevel)
		n := w.Add(cluster.WithLogger(zap.New(core)))
		list := resourceOf("2000-01-01T00:00:00.000Z", "node-1", "node-3")
		list = strings.Replace(list, `"servers":[`, `"servers":[null,{"clusterBaseUrl":"http://y"},{"serverId":"node-2","clusterBaseUrl":5,"updatedAt":7,"x":1},`, 1)
		w.Network.Fault(n.Host, clustertest.RegistryHost, answerBody(`{"itResource":`+list+`,"leaseTime":3600000}`))
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

// The npm module does what it is told, and is no longer in its own view.
func TestReferenceToldToForgetItself(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := clustertest.Start(t, 3)
		n := w.Nodes[0]
		time.Sleep(10 * time.Minute)
		for _, peer := range w.Nodes[1:] {
			gone(t, w, peer, n.ID)
			wantView(t, peer, "node-2", "node-3")
		}
		l := keepLedger(w)
		gone(t, w, n, n.ID)
		synctest.Wait()

		wantView(t, n, "node-1", "node-2", "node-3")
		if got := len(l.renewals(n)); got != 1 {
			t.Errorf("%d POSTs at once, want one", got)
		}
		for _, peer := range w.Nodes[1:] {
			wantView(t, peer, "node-1", "node-2", "node-3")
		}
		wantState(t, n, cluster.Registered)
	})
}

// Whoever keeps telling a node that it is gone must not make it hammer mIT.
func TestToldToForgetItselfOverAndOver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := clustertest.Start(t, 2)
		n := w.Nodes[0]
		l := keepLedger(w)
		for range 300 {
			gone(t, w, n, n.ID)
			time.Sleep(200 * time.Millisecond)
		}
		synctest.Wait()
		if got := len(l.renewals(n)); got < 15 || got > 21 {
			t.Errorf("%d POSTs in a minute, want one every RegistrationRetry", got)
		}
		wantState(t, n, cluster.Registered)
		wantView(t, n, "node-1", "node-2")
	})
}

// A node that has left is not called back by being told that it is gone.
func TestToldToForgetItselfAfterLeaving(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := clustertest.Start(t, 2)
		n := w.Nodes[0]
		n.UnRegister(t.Context())
		l := keepLedger(w)
		gone(t, w, n, n.ID)
		time.Sleep(24 * time.Hour)
		if got := len(l.renewals(n)); got != 0 {
			t.Errorf("%d POSTs of a node that has left", got)
		}
		wantState(t, n, cluster.Left)
	})
}

// Somebody else had mIT delete this node, in good faith: for a while it could not be reached.
// Peers learn from the node itself that it is there.
func TestEvictedWhileAlive(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := clustertest.Start(t, 3)
		n, other := w.Nodes[0], w.Nodes[1]
		time.Sleep(5 * time.Minute)
		w.Network.Cut(n.Host, other.Host)
		if _, err := other.RPCluster(t.Context(), cluster.Request{Path: "/things"}); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Second) // the word spreads
		w.Network.Heal()
		wantView(t, other, "node-2", "node-3")
		wantView(t, w.Nodes[2], "node-2", "node-3")
		if got := ids(w.Registered()); !cmp.Equal(got, []string{"node-2", "node-3"}) {
			t.Fatalf("mIT lists %q", got)
		}
		wantView(t, n, "node-1", "node-2", "node-3")

		l := keepLedger(w)
		renewed := make(chan struct{}, 1)
		w.Network.Fault(n.Host, clustertest.RegistryHost, telling(renewed, clustertest.FirstN(0, clustertest.Refuse)))
		<-renewed
		synctest.Wait()
		for _, peer := range w.Nodes[1:] {
			if got := len(l.announcements(n, peer.Host)); got != 1 {
				t.Errorf("%d announcements to %s, want one", got, peer.ID)
			}
			wantView(t, peer, "node-1", "node-2", "node-3")
		}
		time.Sleep(24 * time.Hour)
		synctest.Wait()
		if got := len(l.announcements(n, other.Host)); got != 1 {
			t.Errorf("%d announcements in a day, want one", got)
		}
	})
}

// A restart of an mIT that keeps all in its memory.
func TestForgottenByTheRegistry(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := clustertest.Start(t, 3)
		w.ResetRegistry()
		time.Sleep(2 * time.Hour)
		synctest.Wait()
		if got := ids(w.Registered()); !cmp.Equal(got, []string{"node-1", "node-2", "node-3"}) {
			t.Errorf("mIT lists %q", got)
		}
		for _, n := range w.Nodes {
			wantState(t, n, cluster.Registered)
			wantView(t, n, "node-1", "node-2", "node-3")
		}
	})
}

// While a registry that lost its memory fills again, nobody loses sight of anybody: who has renewed
// keeps those that have yet to, for a lease.
func TestRegistryThatForgotAll(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const lease = time.Hour
		w := clustertest.Start(t, 5, clustertest.WithLease(lease))
		time.Sleep(lease) // all have renewed, and know each other from mIT
		dead := w.Nodes[4]
		dead.Kill()
		l := keepLedger(w)
		w.ResetRegistry()
		began, shortest := time.Now(), 5
		for time.Since(began) < 3*lease {
			time.Sleep(time.Minute)
			if listed := len(w.Registered()); listed > 0 {
				shortest = min(shortest, listed)
			}
			for _, n := range w.Nodes[:4] {
				got := ids(n.Servers())
				if len(got) == 5 && time.Since(began) < 5*lease/2 { // the dead one, which nobody has missed yet
					got = got[:4]
				}
				if !cmp.Equal(got, []string{"node-1", "node-2", "node-3", "node-4"}) {
					t.Fatalf("after %v %s knows %q", time.Since(began), n.ID, ids(n.Servers()))
				}
			}
		}
		if shortest > 2 {
			t.Errorf("mIT listed at least %d servers at any time: that shows nothing", shortest)
		}
		for _, n := range w.Nodes[:4] {
			if got := len(l.announcements(n, w.Nodes[0].Host)) + len(l.announcements(n, w.Nodes[1].Host)); got == 0 {
				t.Errorf("%s, whose entry is a new one, announced itself to nobody", n.ID)
			}
		}
	})
}

// Some renew soon again, because they are hurried, or others late, as npm nodes do, which let the whole
// lease pass.
func TestForgottenAndRenewedTwice(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const nodes, lease = 5, time.Hour
		w := clustertest.Start(t, nodes, clustertest.WithLease(lease))
		time.Sleep(3 * lease)
		w.ResetRegistry()
		late := w.Nodes[4].Host
		w.Network.Fault(late, clustertest.RegistryHost, clustertest.Refuse)
		time.AfterFunc(lease*9/10, func() { w.Network.Fault(late, clustertest.RegistryHost, nil) })
		if _, err := w.Nodes[0].Register(t.Context()); err != nil { // and the lease renews once more
			t.Fatal(err)
		}
		for began := time.Now(); time.Since(began) < 3*lease; time.Sleep(time.Minute) {
			for _, n := range w.Nodes {
				if got := len(n.Servers()); got != nodes {
					t.Fatalf("after %v %s knows %d servers", time.Since(began), n.ID, got)
				}
			}
		}
	})
}

// Of a peer that has renewed already a node may know before it renews itself: that mIT remembers such
// a one does not show that it remembers anybody from before.
func TestForgottenAndOneLearntSince(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := startRenewed(t, 5)
		n, peer := w.Nodes[0], w.Nodes[1]
		time.Sleep(time.Minute) // all are quiet
		w.ResetRegistry()
		unnoticed(t, w, n, peer)
		w.Network.Fault(n.Host, peer.Host, clustertest.FirstN(2, clustertest.Refuse)) // so that n learns mIT's entry
		if res := rpc(t, n, cluster.Request{Path: "/things"}); len(res.Results) != 4 {
			t.Fatalf("%v", failures(res))
		}
		gone(t, w, n, n.ID) // so that it renews at once
		synctest.Wait()
		if got := ids(w.Registered()); !cmp.Equal(got, []string{"node-1", "node-2"}) {
			t.Errorf("mIT lists %q", got)
		}
		wantView(t, n, "node-1", "node-2", "node-3", "node-4", "node-5")
	})
}

// Whom an mIT that lost its memory does not list is kept by those who knew it, but not spread; if it
// is dead, the first call that asks it has it evicted.
func TestKeptPeerIsNotSpread(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := clustertest.Start(t, 3)
		time.Sleep(time.Hour) // all have renewed, and know each other from mIT
		n, other, dead := w.Nodes[0], w.Nodes[1], w.Nodes[2]
		dead.Kill()
		gone(t, w, other, dead.ID)
		w.ResetRegistry()
		gone(t, w, n, n.ID) // so that it renews at once
		synctest.Wait()
		wantView(t, n, "node-1", "node-2", "node-3")
		wantView(t, other, "node-1", "node-2")
		if got := ids(w.Registered()); !cmp.Equal(got, []string{"node-1"}) {
			t.Errorf("mIT lists %q", got)
		}
		if o := onlyFailure(t, rpc(t, n, cluster.Request{Path: "/things"})); o.Server.ServerID != dead.ID || !o.Evicted {
			t.Errorf("%s: evicted %t, spared %v", o.Server.ServerID, o.Evicted, o.EvictionSkipped)
		}
		wantView(t, n, "node-1", "node-2")
	})
}

// An mIT that forgot this node, but not the others, is right about them.
func TestForgottenAlone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := mit.NewMemory()
		w := clustertest.Start(t, 4, clustertest.WithStore(store))
		time.Sleep(time.Hour)
		n, dead := w.Nodes[0], w.Nodes[3]
		dead.Kill()
		for _, forgotten := range []*clustertest.Node{n, dead} {
			if err := store.Delete(t.Context(), mit.ResourceID("mds"), forgotten.ID); err != nil {
				t.Fatal(err)
			}
		}
		gone(t, w, n, n.ID) // so that it renews at once
		synctest.Wait()
		wantView(t, n, "node-1", "node-2", "node-3")
	})
}

// A newborn is a store that makes every entry anew whenever it is renewed.
type newborn struct{ *mit.Memory }

func (s newborn) Put(ctx context.Context, reg mit.Registration, life time.Duration) (mit.Resource, error) {
	if err := s.Delete(ctx, mit.ResourceID(reg.Type), reg.ServerID); err != nil {
		return mit.Resource{}, err
	}
	return s.Memory.Put(ctx, reg, life)
}

// An mIT that seems to forget everybody all the time is believed a lease later.
func TestKeptPeersGoInTheEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := clustertest.Start(t, 3, clustertest.WithStore(newborn{mit.NewMemory()}),
			clustertest.WithOptions(cluster.WithEviction(cluster.Eviction{Disabled: true})))
		time.Sleep(time.Hour)
		w.Nodes[2].Kill()
		time.Sleep(4 * time.Hour) // its lease and the grace, and two renewals of the others
		wantView(t, w.Nodes[0], "node-1", "node-2")
		wantView(t, w.Nodes[1], "node-1", "node-2")
	})
}

// alone has mIT register a node and yet answer as if it were the only one: what two nodes can
// be told that register at the same moment.
func alone(next http.RoundTripper) http.RoundTripper {
	lie := onlyYou()(next)
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

// The npm module, too, looks again; from then on it keeps two leases, of which unRegister stops
// one.
func TestSecondLookOfTwoThatRegisteredAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := clustertest.Start(t, 0)
		nodes := []*clustertest.Node{w.Add(), w.Add()}
		for _, n := range nodes {
			w.Network.Fault(n.Host, clustertest.RegistryHost, clustertest.FirstN(1, alone))
		}
		began := time.Now()
		l := keepLedger(w)
		for _, n := range nodes {
			if err := <-registering(t.Context(), n); err != nil {
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
func TestSecondLookOfManyThatRegisteredAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := clustertest.Start(t, 0)
		nodes := []*clustertest.Node{w.Add(), w.Add(), w.Add(), w.Add()}
		for _, n := range nodes {
			w.Network.Fault(n.Host, clustertest.RegistryHost, clustertest.FirstN(1, alone))
			if err := <-registering(t.Context(), n); err != nil {
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

func TestNoSecondLookOfTheOneAmongMany(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := clustertest.Start(t, 1)
		time.Sleep(2 * time.Minute)
		l := keepLedger(w)
		n := w.Join()
		time.Sleep(10 * time.Minute)
		synctest.Wait()
		if got := len(l.renewals(n)); got != 1 {
			t.Errorf("%d POSTs of a node with peers, want its registration alone", got)
		}
	})
}

func TestSecondLookOfOneThatIsAloneIndeed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := clustertest.Start(t, 0)
		l := keepLedger(w)
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
func TestSecondLookDuringAnOutage(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := clustertest.Start(t, 0)
		nodes := []*clustertest.Node{w.Add(), w.Add()}
		for _, n := range nodes {
			w.Network.Fault(n.Host, clustertest.RegistryHost, clustertest.FirstN(1, alone))
			if err := <-registering(t.Context(), n); err != nil {
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
func TestToldWhileRenewing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := clustertest.Start(t, 3)
		n := w.Nodes[0]
		w.Network.Fault(n.Host, clustertest.RegistryHost, clustertest.FirstN(1, late(8*time.Second)))
		renewing := registering(t.Context(), n)
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

// The same, when it is the registration that is under way: nothing was known before.
func TestAnnouncedWhileRegistering(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := clustertest.Start(t, 1)
		n := w.Add()
		w.Network.Fault(n.Host, clustertest.RegistryHost, late(2*time.Second))
		done := registering(t.Context(), n)
		time.Sleep(time.Second)
		w.Join() // mIT tells it of node-2, which mIT has told of node-1 alone
		wantView(t, n, "node-3")
		if err := <-done; err != nil {
			t.Fatal(err)
		}
		wantView(t, n, "node-1", "node-2", "node-3")
	})
}

// Neither the end of a token nor an outage of mST is one of mIT's: what is good is used, and
// what is not is fetched when it is needed.
func TestTokensAndOutages(t *testing.T) {
	tests := map[string]struct {
		tokenLife time.Duration
		down      string
		outage    time.Duration
		during    cluster.State
	}{
		"the token expires while mIT is down":     {30 * time.Minute, clustertest.RegistryHost, 10 * time.Hour, cluster.Lost},
		"mST is down and the token is good":       {48 * time.Hour, clustertest.TokenHost, 24 * time.Hour, cluster.Registered},
		"mST is down, the token is to be renewed": {time.Hour, clustertest.TokenHost, 59 * time.Minute, cluster.Registered},
		"mST is down and the token has expired":   {time.Hour, clustertest.TokenHost, 10 * time.Hour, cluster.Lost},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := clustertest.Start(t, 2, clustertest.WithTokenTTL(test.tokenLife))
				n := w.Nodes[0]
				w.Network.Down(test.down)
				time.Sleep(test.outage)
				wantState(t, n, test.during)
				wantView(t, n, "node-1", "node-2")
				w.Network.Up(test.down)
				time.Sleep(time.Minute)
				wantState(t, n, cluster.Registered)
				if res, err := n.RPCluster(t.Context(), cluster.Request{Path: "/things"}); err != nil || len(res.Results) != 1 {
					t.Errorf("asking the peer: %+v, %v", res, err)
				}
			})
		})
	}
}

// The npm module drops a refused token as well, and repeats the request.
func TestRefusedTokenIsReplacedOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := clustertest.Start(t, 1)
		n := w.Nodes[0]
		time.Sleep(2 * time.Minute)
		l := keepLedger(w)
		registryFault(w, clustertest.FirstN(1, clustertest.Status(http.StatusForbidden)))
		time.Sleep(50 * time.Minute)
		synctest.Wait()
		if posted, fetched := len(l.renewals(n)), len(l.of(http.MethodPost, n.Host, clustertest.TokenHost)); posted != 2 || fetched != 1 {
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
		if deleted, fetched := len(l.of(http.MethodDelete, n.Host, clustertest.RegistryHost)), len(l.of(http.MethodPost, n.Host, clustertest.TokenHost)); deleted != 2 || fetched != 2 {
			t.Errorf("%d DELETEs and %d tokens, want 2 and 1 more than before", deleted, fetched)
		}
	})
}

func TestTraceTellsInOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var d diary
		w := clustertest.Start(t, 0, clustertest.WithLease(time.Minute),
			clustertest.WithConfig(func(cfg *cluster.Config) { cfg.Management = false }))
		registryFault(w, clustertest.FirstN(1, clustertest.Status(503)))
		n := w.Join(cluster.WithTrace(d.trace()))
		const failed = "mIT answered 500 Internal Server Error to POST http://mit.test/mIT/v1/itResources: not from the server: a fault of the network"
		registryFault(w, clustertest.Status(500))
		time.Sleep(2 * time.Minute)
		registryFault(w, nil)
		time.Sleep(10 * time.Second)
		n.UnRegister(t.Context())
		n.Close()

		got := make([]string, 0, 100)
		for _, e := range d.copy() {
			if e.text != "failed: "+failed || got[len(got)-1] != e.text { // however often it tried
				got = append(got, e.text)
			}
		}
		want := []string{
			"token for https://mit.test: <nil>",
			"failed: mIT answered 503 Service Unavailable to POST http://mit.test/mIT/v1/itResources: not from the server: a fault of the network",
			"orphan→registered",
			"renewed for 1m0s",
			"registered→degraded: " + failed,
			"failed: " + failed,
			"degraded→lost: " + failed,
			"failed: " + failed,
			"lost→registered",
			"renewed for 1m0s",
			"registered→left: cluster: not registered: it has left",
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("(-want +got):\n%s", diff)
		}
	})
}

// onlyYou has mIT answer each that it is the only one, for an hour: that keeps answers short.
func onlyYou() clustertest.Fault {
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

// All npm nodes that registered at the same moment, after a restart of mIT say, renew at the
// same moment for as long as they run.
func TestReferenceHerd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const size = 200
		w := clustertest.Start(t, 0, clustertest.WithConfig(func(cfg *cluster.Config) { cfg.Management = false }))
		registryFault(w, onlyYou())
		for range size {
			w.Join() // virtual time stands still
		}
		began := time.Now()
		l := keepLedger(w)
		time.Sleep(45 * time.Minute)
		synctest.Wait()
		perSecond := map[time.Duration]int{}
		first, last := time.Hour, time.Duration(0)
		renewals := l.of(http.MethodPost, clustertest.Any, clustertest.RegistryHost)
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

// The npm module's timers keep a process busy after unRegister: the second look for a minute,
// and one lease for good if there was a second look.
func TestReferenceTimers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := clustertest.Start(t, 0)
		w.Join() // so that the others are not alone
		synctest.Wait()
		rest := goroutines(t)
		n := w.Add()
		if got := goroutines(t); got != rest {
			t.Errorf("New started %d goroutines", got-rest)
		}
		if _, err := n.Register(t.Context()); err != nil {
			t.Fatal(err)
		}
		for range 10 {
			time.Sleep(25 * time.Minute)
			synctest.Wait()
			if got := goroutines(t); got != rest+1 {
				t.Errorf("a registered node at rest has %d goroutines, want one", got-rest)
			}
		}
		n.UnRegister(t.Context())
		synctest.Wait()
		if got := goroutines(t); got != rest {
			t.Errorf("%d goroutines are left after UnRegister", got-rest)
		}

		m := w.Join()
		m.Close()
		synctest.Wait()
		if got := goroutines(t); got != rest {
			t.Errorf("%d goroutines are left after Close", got-rest)
		}
	})
}
