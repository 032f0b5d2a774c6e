package cluster_test

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/mimiktech/cluster"
	"github.com/mimiktech/cluster/clustertest"
)

func TestRetry(t *testing.T) {
	never := cluster.Retry{MaxRetries: -1}
	reference := cluster.RetryNPM()
	thrice := cluster.Retry{MaxRetries: 3, Delay: time.Second}
	conflicts := cluster.Retry{RetryIf: func(method string, err error) bool {
		se, ok := errors.AsType[*cluster.StatusError](err)
		return ok && se.Code == 409 && method == "PUT"
	}}
	for name, tt := range map[string]struct {
		retry    cluster.Retry
		method   string
		fault    clustertest.Fault
		timeout  time.Duration
		attempts int
		executed int // by the peer
		took     time.Duration
	}{
		"default: cannot be dialled":           {cluster.Retry{}, "GET", clustertest.Refuse, 0, 2, 0, 10 * time.Millisecond},
		"default: cannot be dialled, POST":     {cluster.Retry{}, "POST", clustertest.Refuse, 0, 2, 0, 10 * time.Millisecond},
		"default: POST, the second goes well":  {cluster.Retry{}, "POST", clustertest.FirstN(1, clustertest.Refuse), 0, 2, 1, 10 * time.Millisecond},
		"default: breaks, GET":                 {cluster.Retry{}, "GET", clustertest.Reset, 0, 2, 2, 10 * time.Millisecond},
		"default: breaks, PUT":                 {cluster.Retry{}, "PUT", clustertest.Reset, 0, 2, 2, 10 * time.Millisecond},
		"default: breaks, DELETE":              {cluster.Retry{}, "DELETE", clustertest.Reset, 0, 2, 2, 10 * time.Millisecond},
		"default: breaks, OPTIONS":             {cluster.Retry{}, "OPTIONS", clustertest.Reset, 0, 2, 2, 10 * time.Millisecond},
		"default: breaks, POST: at most once":  {cluster.Retry{}, "POST", clustertest.Reset, 0, 1, 1, 0},
		"default: breaks, PATCH: at most once": {cluster.Retry{}, "PATCH", clustertest.Reset, 0, 1, 1, 0},
		"default: too late, POST":              {cluster.Retry{}, "POST", delayResponse(11 * time.Second), 0, 1, 1, 10 * time.Second},
		"default: hangs, GET":                  {cluster.Retry{}, "GET", clustertest.Hang, 0, 1, 0, 10 * time.Second},
		"default: 503":                         {cluster.Retry{}, "GET", clustertest.Status(503), 0, 1, 0, 0},
		"default: 429":                         {cluster.Retry{}, "GET", clustertest.Status(429), 0, 1, 0, 0},
		"reference: cannot be dialled":         {reference, "GET", clustertest.Refuse, 0, 3, 0, 2 * time.Second},
		"reference: breaks, POST":              {reference, "POST", clustertest.Reset, 0, 3, 3, 2 * time.Second},
		"reference: hangs":                     {reference, "GET", clustertest.Hang, 0, 3, 0, 32 * time.Second},
		"reference: 503":                       {reference, "POST", clustertest.Status(503), 0, 3, 0, 2 * time.Second},
		"reference: 429":                       {reference, "POST", clustertest.Status(429), 0, 3, 0, 2 * time.Second},
		"reference: 404":                       {reference, "GET", clustertest.Status(404), 0, 1, 0, 0},
		"reference: the third goes well":       {reference, "POST", clustertest.FirstN(2, clustertest.Status(500)), 0, 3, 1, 2 * time.Second},
		"reference: none begins after 50 s":    {reference, "GET", clustertest.Hang, 30 * time.Second, 2, 0, 61 * time.Second},
		"never":                                {never, "GET", clustertest.Refuse, 0, 1, 0, 0},
		"thrice":                               {thrice, "GET", clustertest.Refuse, 0, 4, 0, 3 * time.Second},
		"thrice: hangs":                        {thrice, "GET", clustertest.Hang, 0, 1, 0, 10 * time.Second},
		"what I say":                           {conflicts, "PUT", clustertest.Status(409), 0, 2, 0, 10 * time.Millisecond},
		"what I say: else never":               {conflicts, "POST", clustertest.Status(409), 0, 1, 0, 0},
	} {
		for _, own := range []bool{false, true} {
			where := "of the node"
			if own {
				where = "of the request"
			}
			t.Run(name+"/"+where, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					var executed atomic.Int64
					ofNode, req := tt.retry, cluster.Request{Method: tt.method, Path: "/things", Timeout: tt.timeout}
					if own {
						ofNode, req.Retry = cluster.Retry{MaxRetries: 7, Delay: time.Minute}, &tt.retry
					}
					w := clustertest.Start(t, 2,
						clustertest.WithOptions(cluster.WithRetry(ofNode), cluster.WithEviction(cluster.Eviction{Disabled: true})),
						clustertest.WithHandler(func(n *clustertest.Node) http.Handler {
							return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
								executed.Add(1)
								n.Reply(w, r, nil)
							})
						}))
					w.Network.Fault(w.Nodes[0].Host, w.Nodes[1].Host, tt.fault)
					start := time.Now()
					res := rpc(t, w.Nodes[0], req)
					wantOneOutcomeEach(t, res, w.Nodes[1:])
					got := slices.Concat(res.Results, res.Failures)[0]
					if took := time.Since(start); got.Attempts != tt.attempts || int(executed.Load()) != tt.executed || took != tt.took || got.Duration != took {
						t.Errorf("%d attempts, executed %d times, in %v; want %d, %d, %v", got.Attempts, executed.Load(), took, tt.attempts, tt.executed, tt.took)
					}
				})
			})
		}
	}
	t.Run("the pause ends with the call", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			w := clustertest.Start(t, 2, clustertest.WithOptions(cluster.WithRetry(cluster.RetryNPM())))
			w.Network.Down(w.Nodes[1].Host)
			ctx, cancel := context.WithTimeout(t.Context(), 1500*time.Millisecond)
			defer cancel()
			start := time.Now()
			res, err := w.Nodes[0].RPCluster(ctx, cluster.Request{Path: "/things"})
			if err != nil {
				t.Fatal(err)
			}
			if o := singleFailure(t, res); time.Since(start) != 1500*time.Millisecond || o.Kind != cluster.KindCanceled || o.Attempts != 2 {
				t.Errorf("%s after %v and %d attempts", o.Kind, time.Since(start), o.Attempts)
			}
		})
	})
}

// Whoever recovers from a panic of a function of his has lost the call, and nothing else.
func TestPanicReleasesSlot(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := clustertest.Start(t, 2)
		n := w.Nodes[0]
		w.Network.Fault(n.Host, w.Nodes[1].Host, clustertest.FirstN(1, clustertest.Refuse))
		func() {
			defer func() {
				if recover() == nil {
					t.Error("nobody panicked")
				}
			}()
			rpc(t, n, cluster.Request{Path: "/things", Retry: &cluster.Retry{RetryIf: func(string, error) bool { panic("of the caller's") }}})
		}()
		if got := cluster.SlotsInFlight(n.Cluster); got != 0 {
			t.Errorf("%d places are taken", got)
		}
		if res := rpc(t, n, cluster.Request{Path: "/things"}); len(res.Results) != 1 {
			t.Errorf("failures %v", failures(res))
		}
	})
}

func TestHedge(t *testing.T) {
	for name, tt := range map[string]struct {
		fault    clustertest.Fault
		inFlight int
		took     time.Duration
		attempts int
		kind     cluster.Kind
	}{
		"fast":                        {nil, 0, 0, 1, cluster.KindOK},
		"slow once":                   {delayFirst(5 * time.Second), 0, time.Second, 2, cluster.KindOK},
		"slow twice, the first first": {delayResponse(1500 * time.Millisecond), 0, 1500 * time.Millisecond, 2, cluster.KindOK},
		"slow, and no place is free":  {delayFirst(5 * time.Second), 1, 5 * time.Second, 1, cluster.KindOK},
		"hanging":                     {clustertest.Hang, 0, 10 * time.Second, 2, cluster.KindTimeout},
		"hanging once":                {clustertest.FirstN(1, clustertest.Hang), 0, time.Second, 2, cluster.KindOK},
		"an error is an answer":       {clustertest.Chain(delayFirst(1100*time.Millisecond), clustertest.Status(500)), 0, time.Second, 2, cluster.KindStatus},
		"refused: not slow":           {clustertest.Refuse, 0, 10 * time.Millisecond, 2, cluster.KindRefused},
		"slow, then broken":           {clustertest.FirstN(1, clustertest.Chain(clustertest.Delay(2*time.Second), clustertest.Reset)), 0, time.Second, 2, cluster.KindOK},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := clustertest.Start(t, 2,
					clustertest.WithOptions(cluster.WithEviction(cluster.Eviction{Disabled: true})),
					clustertest.WithConfig(func(cfg *cluster.Config) { cfg.MaxInFlight = tt.inFlight }))
				n := w.Nodes[0]
				w.Network.Fault(n.Host, w.Nodes[1].Host, tt.fault)
				start := time.Now()
				res := rpc(t, n, cluster.Request{Path: "/things", HedgeAfter: time.Second})
				took := time.Since(start)
				wantOneOutcomeEach(t, res, w.Nodes[1:])
				o := slices.Concat(res.Results, res.Failures)[0]
				if took != tt.took || o.Attempts != tt.attempts || o.Kind != tt.kind {
					t.Errorf("%q, %v, after %d attempts in %v", o.Kind, o.Err, o.Attempts, took)
				}
				synctest.Wait()
			})
		})
	}
}

// The loser of a race is given up at once, and is nothing against the peer.
func TestHedgeCancelsTheSlowerRequest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := clustertest.Start(t, 3)
		n := w.Nodes[0]
		var ended atomic.Int64
		w.Network.Fault(n.Host, w.Nodes[1].Host, clustertest.FirstN(1, func(next http.RoundTripper) http.RoundTripper {
			return clustertest.RoundTripperFunc(func(req *http.Request) (*http.Response, error) {
				<-req.Context().Done()
				ended.Add(1)
				return nil, context.Cause(req.Context())
			})
		}))
		res := rpc(t, n, cluster.Request{Path: "/things", HedgeAfter: 100 * time.Millisecond})
		if len(res.Results) != 2 || ended.Load() != 1 {
			t.Errorf("%d results, %d requests given up, failures: %v", len(res.Results), ended.Load(), failures(res))
		}
		if res := rpc(t, n, cluster.Request{Path: "/things"}); len(res.Results) != 2 || res.Results[0].Attempts != 1 {
			t.Errorf("then %d results, failures: %v", len(res.Results), failures(res))
		}
	})
}

// A request that lost a race, but has not ended, still counts among those in flight.
func TestMaxInFlightCountsHedgedRequests(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const most = 16
		w := clustertest.Start(t, 9, clustertest.WithConfig(func(cfg *cluster.Config) { cfg.MaxInFlight = most }))
		n := w.Nodes[0]
		var now, peak atomic.Int64
		for _, peer := range w.Nodes[1:] {
			var asked atomic.Int64
			w.Network.Fault(n.Host, peer.Host, func(next http.RoundTripper) http.RoundTripper {
				return clustertest.RoundTripperFunc(func(req *http.Request) (*http.Response, error) {
					for at, was := now.Add(1), peak.Load(); at > was && !peak.CompareAndSwap(was, at); was = peak.Load() {
					}
					defer now.Add(-1)
					if asked.Add(1)%2 == 0 {
						time.Sleep(10 * time.Millisecond)
						return next.RoundTrip(req)
					}
					<-req.Context().Done()
					time.Sleep(time.Second) // it takes its time to end
					return nil, context.Cause(req.Context())
				})
			})
		}
		var wg sync.WaitGroup
		for i := range 4 {
			wg.Go(func() {
				time.Sleep(time.Duration(i) * 150 * time.Millisecond)
				rpc(t, n, cluster.Request{Path: "/things", HedgeAfter: 100 * time.Millisecond})
			})
		}
		wg.Wait()
		if got := peak.Load(); got > most {
			t.Errorf("%d requests at once, %d allowed", got, most)
		}
	})
}

// Peers that refuse a token get another one, once, whatever their number: 403 is how mimik's
// parties say it, 401 what one says whose key has changed.
func TestRejectedTokenIsReplacedOncePerCall(t *testing.T) {
	for _, code := range []int{http.StatusForbidden, http.StatusUnauthorized} {
		t.Run(fmt.Sprint(code), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := clustertest.Start(t, 6, clustertest.WithHandler(anyMethod))
				n := w.Nodes[0]
				seen := recordRequests(w)
				rpc(t, n, cluster.Request{Path: "/things"})
				old := seen.matching("GET", n.Host, w.Nodes[1].Host)[0].Header.Get("Authorization")
				for i, peer := range w.Nodes[1:] { // one after the other: the last when the new one is long there
					w.Network.Fault(n.Host, peer.Host, clustertest.If(func(r *http.Request) bool {
						return r.Header.Get("Authorization") == old
					}, clustertest.Chain(clustertest.Delay(time.Duration(1+i)*time.Second), clustertest.Status(code))))
				}
				fetched := len(seen.matching("POST", n.Host, clustertest.TokenHost))
				res := rpc(t, n, cluster.Request{Method: "POST", Path: "/things"})
				if len(res.Results) != 5 {
					t.Errorf("failures: %v", failures(res))
				}
				if extra := len(seen.matching("POST", n.Host, clustertest.TokenHost)) - fetched; extra != 1 {
					t.Errorf("%d tokens were fetched, want 1", extra)
				}
				for _, peer := range w.Nodes[1:] {
					if asked := len(seen.matching("POST", n.Host, peer.Host)); asked != 2 {
						t.Errorf("%s was asked %d times", peer.ID, asked)
					}
				}
			})
		})
	}
}

// Peers that refuse every token are failures. They cost mST one token a call, and each peer two
// requests at most, however many there are and however few may be asked at once.
func TestAllTokensRejected(t *testing.T) {
	for _, inFlight := range []int{256, 2, 1} {
		t.Run(fmt.Sprintf("%d in flight", inFlight), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := clustertest.Start(t, 7, clustertest.WithConfig(func(cfg *cluster.Config) { cfg.MaxInFlight = inFlight }))
				n := w.Nodes[0]
				rpc(t, n, cluster.Request{Path: "/things"})
				w.Network.Fault(n.Host, clustertest.Any, clustertest.If(func(r *http.Request) bool {
					return strings.HasPrefix(r.URL.Host, "node-")
				}, clustertest.Status(403)))
				seen := recordRequests(w)
				for call := 1; call <= 3; call++ {
					res := rpc(t, n, cluster.Request{Path: "/things"})
					wantOneOutcomeEach(t, res, w.Nodes[1:])
					for _, o := range res.Failures {
						if se, ok := errors.AsType[*cluster.StatusError](o.Err); !ok || se.Code != 403 || o.Kind != cluster.KindStatus || o.Evicted || o.EvictionSkipped != nil {
							t.Errorf("%s: %s, %v, evicted %t, spared %v", o.Server.ServerID, o.Kind, o.Err, o.Evicted, o.EvictionSkipped)
						}
					}
					if len(res.Failures) != 6 || len(n.Servers()) != 7 {
						t.Errorf("%d failures, %d servers", len(res.Failures), len(n.Servers()))
					}
					if fetched := len(seen.matching("POST", n.Host, clustertest.TokenHost)); fetched > call {
						t.Errorf("%d tokens were fetched for %d calls", fetched, call)
					}
					for _, peer := range w.Nodes[1:] {
						if asked := len(seen.matching("GET", n.Host, peer.Host)); asked > 2*call {
							t.Errorf("%s was asked %d times by %d calls", peer.ID, asked, call)
						}
					}
				}
			})
		})
	}
}

// A peer that refuses the token while mST has no other one did answer.
func TestRejectedTokenWithoutReplacement(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := clustertest.Start(t, 2)
		n := w.Nodes[0]
		rpc(t, n, cluster.Request{Path: "/things"})
		w.Network.Fault(n.Host, w.Nodes[1].Host, clustertest.Status(403))
		w.Network.Down(clustertest.TokenHost)
		o := singleFailure(t, rpc(t, n, cluster.Request{Path: "/things"}))
		if se, ok := errors.AsType[*cluster.StatusError](o.Err); !ok || se.Code != 403 || o.Kind != cluster.KindStatus || o.Evicted {
			t.Errorf("%s, %v, evicted %t", o.Kind, o.Err, o.Evicted)
		}
	})
}

// A node needs one token for mIT and one for all its peers; the npm module fetches N + 1 to
// speak to N peers.
func TestTokensPerNode(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := clustertest.Start(t, 0)
		seen := recordRequests(w)
		for range 6 {
			w.Join()
		}
		for range 3 {
			rpc(t, w.Nodes[0], cluster.Request{Path: "/things"})
		}
		for _, n := range w.Nodes {
			if fetched := len(seen.matching("POST", n.Host, clustertest.TokenHost)); fetched != 2 {
				t.Errorf("%s fetched %d tokens", n.ID, fetched)
			}
		}
	})
}

func TestNoToken(t *testing.T) {
	for name, tt := range map[string]struct {
		fault clustertest.Fault
		took  time.Duration
	}{
		"mST is down":    {clustertest.Refuse, 0},
		"mST hangs":      {clustertest.Hang, 10 * time.Second},
		"mST answers no": {clustertest.Status(401), 0},
		"mST is garbage": {respondOK("?"), 0},
	} {
		for _, nodes := range []int{4, 2} { // of two, mIT alone would decide on a suspect
			t.Run(fmt.Sprintf("%s/%d nodes", name, nodes), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					w := clustertest.Start(t, nodes)
					n := w.Nodes[0] // it has spoken to no peer yet
					w.Network.Fault(n.Host, clustertest.TokenHost, tt.fault)
					seen := recordRequests(w)
					start := time.Now()
					res := rpc(t, n, cluster.Request{Path: "/things"})
					if took := time.Since(start); took != tt.took {
						t.Errorf("took %v, want %v", took, tt.took)
					}
					wantOneOutcomeEach(t, res, w.Nodes[1:])
					for _, o := range res.Failures {
						if _, ok := errors.AsType[*cluster.TokenError](o.Err); !ok || o.Kind != cluster.KindNoToken || o.Attempts != 0 || o.Evicted || o.EvictionSkipped != nil {
							t.Errorf("%s: %s, %v, %d attempts, evicted %t, spared %v", o.Server.ServerID, o.Kind, o.Err, o.Attempts, o.Evicted, o.EvictionSkipped)
						}
					}
					if len(res.Failures) != nodes-1 || len(n.Servers()) != nodes {
						t.Errorf("%d failures, %d servers", len(res.Failures), len(n.Servers()))
					}
					if all := seen.sentBy(n); len(all) != 1 {
						t.Errorf("%d requests, want the one to mST", len(all))
					}
				})
			})
		}
	}
	t.Run("the call ends first", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			w := clustertest.Start(t, 3)
			w.Network.Fault(clustertest.Any, clustertest.TokenHost, clustertest.Hang)
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			defer cancel()
			start := time.Now()
			res, err := w.Nodes[0].RPCluster(ctx, cluster.Request{Path: "/things"})
			if err != nil {
				t.Fatal(err)
			}
			wantOneOutcomeEach(t, res, w.Nodes[1:])
			for _, o := range res.Failures {
				if o.Kind != cluster.KindCanceled || !errors.Is(o.Err, context.DeadlineExceeded) {
					t.Errorf("%s: %s, %v", o.Server.ServerID, o.Kind, o.Err)
				}
			}
			if took := time.Since(start); took != time.Second {
				t.Errorf("took %v", took)
			}
		})
	})
}

func FuzzTokenResponse(f *testing.F) {
	for _, seed := range []struct {
		status uint16
		body   string
	}{
		{200, `{"data":{"access_token":"opaque","expires_in":3600}}`},
		{200, `{"access_token":"opaque"}`},
		{201, `{"data":{"access_token":"a.b.c"}}`},
		{200, `{"data":{"access_token":"two words"}}`},
		{200, `{"data":{"access_token":"line\nbreak"}}`},
		{200, `{"data":{"access_token":"é"}}`},
		{200, `{"data":{"access_token":""}}`},
		{200, `{"data":{"access_token":1}}`},
		{200, `{"data":{"access_token":"x","expires_in":-1}}`},
		{200, `{"data":{"access_token":"x","expires_in":1e300}}`},
		{200, `{"data":"hidden client secret"}`},
		{200, `hidden client secret`},
		{200, `{"data":null}`},
		{200, `{"data":{"access_token":"eyJhbGciOiJIUzI1NiJ9.eyJleHAiOjF9.x"}}`},
		{200, ``},
		{200, `null`},
		{204, ``},
		{302, `{"access_token":"x"}`},
		{400, `{"message":"client_secret hidden client secret is wrong","info":{"secret":"hidden client secret"}}`},
		{401, `hidden client secret`},
		{403, `{"message":"no"}`},
		{500, `{"message":{"a":"hidden client secret"}}`},
		{503, ``},
	} {
		f.Add(seed.status, []byte(seed.body))
	}
	f.Fuzz(func(t *testing.T, status uint16, body []byte) {
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		var failed error
		bearer := ""
		o := &remotes{t: t, view: []string{"node-1"}}
		o.tokens = func(*http.Request) (int, string) { return validStatus(status), string(body) }
		o.registry = func(r *http.Request) (int, string) {
			bearer = r.Header.Get("Authorization")
			return http.StatusOK, registrationResponse(time.Hour, "node-1")
		}
		c := newNode(t, testConfig(), o, cluster.WithTokens(nil), cluster.WithTrace(&cluster.Trace{
			RenewFailed: func(err error, _ time.Duration) { failed = err; cancel() },
		}))
		_, err := c.Register(ctx)
		checkNoSecrets(t, err)
		checkNoSecrets(t, failed)
		if err == nil {
			token, found := strings.CutPrefix(bearer, "Bearer ")
			if !found || token == "" || strings.ContainsFunc(token, func(r rune) bool { return r <= ' ' || r > '~' }) {
				t.Errorf("%q was shown for a token", bearer)
			}
			if validStatus(status)/100 != 2 {
				t.Errorf("a %d was taken for an answer", validStatus(status))
			}
			return
		}
		if _, ok := errors.AsType[*cluster.TokenError](failed); !ok || !strings.Contains(failed.Error(), "mST") || bearer != "" {
			t.Errorf("no token, and the error is %v", failed)
		}
	})
}

// slowOnce makes the first request to each peer so slow.
func delayFirst(d time.Duration) clustertest.Fault { return clustertest.FirstN(1, delayResponse(d)) }
