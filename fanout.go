package cluster

import (
	"bytes"
	"cmp"
	"context"
	"io"
	"iter"
	"maps"
	"math"
	"net/http"
	"runtime"
	"runtime/metrics"
	"slices"
	"strings"
	"sync"
	"time"

	"go.uber.org/zap"

	"github.com/mimiktech/cluster/internal/breaker"
	"github.com/mimiktech/cluster/internal/ctxutil"
	"github.com/mimiktech/cluster/internal/fanout"
	"github.com/mimiktech/cluster/internal/membership"
	"github.com/mimiktech/cluster/internal/token"
)

// A peerClient sends requests to the peers of a view.
type peerClient struct {
	ctx       context.Context // the object's own: all calls end with it
	selfID    string          // is not called
	audience  string
	timeout   time.Duration // of a request that has none of its own
	retry     Retry
	http      *httpClient
	tokens    tokenSource
	scheduler *fanout.Scheduler
	unproven  *fanout.Class // the slots for peers that may not exist
	maxBytes  int64         // of the bodies of all responses to a call
	breakers  *breaker.Set
	evictor   *evictor // not used by calls with noEviction
	confirm   func()   // asks for a renewal, which confirms announced peers or drops them
	trace     *hooks
	log       *zap.Logger

	localWarning minuteLimit
	collector    collector
}

// close ends the calls in progress, and cancels the scheduled garbage collections.
func (c *peerClient) close() {
	c.scheduler.Close()
	c.collector.close()
}

func newPeerClient(ctx context.Context, client *httpClient, tokens tokenSource, cfg Config, o options) *peerClient {
	return &peerClient{
		ctx:       ctx,
		audience:  cfg.PeerAudience,
		timeout:   cfg.RequestTimeout,
		retry:     o.retry,
		http:      client,
		tokens:    tokens,
		scheduler: fanout.New(cfg.MaxInFlight),
		unproven:  fanout.NewClass(max(2, cfg.MaxInFlight/unprovenShare)),
		maxBytes:  cfg.MaxCallBytes,
		breakers:  breaker.New(cfg.RequestTimeout, cfg.MaxInFlight),
		trace:     client.trace,
		log:       o.log,
	}
}

// warnLocalFault logs that this node cannot send requests. All requests may fail for the same
// reason.
func (c *peerClient) warnLocalFault(ctx context.Context, err error) {
	if !c.localWarning.due(time.Now()) {
		return
	}
	c.log.Warn("local fault: requests to peers cannot be sent", zap.Error(err), stackOf(err), correlationField(ctx))
}

// A minuteLimit is due once a minute at most.
type minuteLimit struct {
	mu   sync.Mutex // guards the field below
	next time.Time
}

func (w *minuteLimit) due(now time.Time) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	if now.Before(w.next) {
		return false
	}
	w.next = now.Add(time.Minute)
	return true
}

// collect sends a request to the peers of a view, and waits for them.
func (c *peerClient) collect(ctx context.Context, call *preparedRequest, view membership.View) *Response {
	return newResponse(c.callAll(ctx, call, view))
}

// stream yields the outcomes of a call as they arrive. prepare runs when the loop begins.
func (c *peerClient) stream(ctx context.Context, prepare func() (*preparedRequest, membership.View, error)) iter.Seq[Outcome] {
	return func(yield func(Outcome) bool) {
		call, view, err := prepare()
		if err != nil {
			yield(Outcome{Err: err, Kind: KindInvalid})
			return
		}
		f := c.newFanOut(call, view)
		for i := range f.run(ensureCorrelationID(ctx)) {
			if !yield(f.outcomes[i]) {
				return
			}
		}
	}
}

func (c *peerClient) callAll(ctx context.Context, call *preparedRequest, view membership.View) []Outcome {
	f := c.newFanOut(call, view)
	f.waitForAll = f.minResults == 0
	for range f.run(ctx) { // the outcomes are complete when it ends
	}
	return f.outcomes
}

// A fanOut is one call to the peers of a view.
type fanOut struct {
	*preparedRequest
	client       *peerClient
	peers        []*membership.Peer // to be called
	all          []*membership.Peer // in the view, called or not
	outcomes     []Outcome          // in the order of peers
	waitForAll   bool               // no outcome is read before all are complete
	reported     []bool             // to the hook PeerDone, if it is set
	done         chan int           // indices of complete outcomes; nil if waitForAll
	start        time.Time
	initialToken string

	wg               sync.WaitGroup
	proven, unproven peerGroup
	isUnproven       map[*membership.Peer]bool // at the start of the call

	confirmed, unconfirmed bodyBudget

	mu        sync.Mutex // guards the fields below
	bearer    string
	template  *http.Request // what all requests have in common; replaced as a whole, never edited
	deadlines sharedDeadline
}

// A peerGroup is a part of the peers of a call, which share slots. Peers that are known from
// announcements only and have never answered form a group of their own. Such entries may be forged,
// and must not delay requests to the other peers.
type peerGroup struct {
	slots *fanout.Call
	peers []int // indices in the peers of the call; nil for all
}

// A bodyBudget bounds the bodies of the responses of some peers of a call. Those that are known
// from announcements only share one of their own, even if they have answered: they may be forged,
// and answer with as much as they can.
type bodyBudget struct {
	bytes *byteBudget
	form  requestForm // guarded by fanOut.mu
}

// index returns the index in the peers of the call of the i-th peer in the group.
func (g *peerGroup) index(i int) int {
	if g.peers == nil {
		return i
	}
	return g.peers[i]
}

func (f *fanOut) group(p *membership.Peer) *peerGroup {
	if f.isUnproven[p] {
		return &f.unproven
	}
	return &f.proven
}

func (f *fanOut) bodies(p *membership.Peer) *bodyBudget {
	if p.Announced {
		return &f.unconfirmed
	}
	return &f.confirmed
}

// unprovenShare is the part of the slots that unproven peers get together, and of the budget of a
// call that unconfirmed ones get.
const unprovenShare = 4

func (c *peerClient) newFanOut(call *preparedRequest, view membership.View) *fanOut {
	peers := view.Without(c.selfID).Peers()
	f := &fanOut{preparedRequest: call, client: c, peers: peers, all: peers}
	if call.filter != nil {
		f.peers = nil // the array belongs to the view
		for _, p := range peers {
			if call.filter(Server(p.Server)) {
				f.peers = append(f.peers, p)
			}
		}
	}
	f.outcomes = make([]Outcome, len(f.peers))
	if c.trace.set().hasPeerDone {
		f.reported = make([]bool, len(f.peers))
	}
	f.formGroups()
	return f
}

func (f *fanOut) formGroups() {
	c := f.client
	f.confirmed.bytes, f.unconfirmed.bytes = newByteBudget(c.maxBytes), newByteBudget(c.maxBytes/unprovenShare)
	for i, p := range f.peers {
		switch proven := p.Proven(); {
		case proven && f.isUnproven != nil:
			f.proven.peers = append(f.proven.peers, i)
		case !proven && f.isUnproven == nil:
			f.isUnproven = make(map[*membership.Peer]bool)
			f.proven.peers = make([]int, i, len(f.peers))
			for k := range i {
				f.proven.peers[k] = k
			}
			fallthrough
		case !proven:
			f.isUnproven[p] = true
			f.unproven.peers = append(f.unproven.peers, i)
		}
	}
	n := len(f.unproven.peers)
	f.proven.slots, f.unproven.slots = c.scheduler.NewCall(len(f.peers)-n, nil), c.scheduler.NewCall(n, c.unproven)
}

// run calls all peers, and yields the index of each as soon as its outcome is complete. For
// suspects that is when all peers have been called and eviction has been decided.
func (f *fanOut) run(ctx context.Context) iter.Seq[int] {
	return func(yield func(int) bool) {
		ctx, end := f.client.trace.call(ctx, CallInfo{f.operation, f.name, f.method, len(f.peers)})
		if !end.isEmpty() {
			start := time.Now()
			defer func() { end.call(f.result(start)) }()
		}
		if len(f.peers) == 0 {
			return
		}
		ctx, cancel := ctxutil.Merge(ctx, f.client.ctx)
		callCtx, enough := ctx, context.CancelCauseFunc(func(error) {})
		if f.minResults > 0 {
			callCtx, enough = context.WithCancelCause(ctx)
		}
		defer f.reportAll(ctx)
		defer func() { f.client.collector.received(f.receivedBytes()) }()
		defer f.wg.Wait()
		defer cancel()
		defer enough(nil)

		if f.waitForAll { // without a wake-up of this goroutine for each outcome
			f.callPeers(callCtx)
			f.wg.Wait()
		} else {
			f.done = make(chan int, len(f.peers))
			f.wg.Go(func() { f.callPeers(callCtx) })
		}
		if suspects, results, ok := f.yieldOutcomes(enough, yield); ok {
			f.yieldSuspects(ctx, suspects, results, yield)
		}
	}
}

// yieldOutcomes yields all outcomes except those of suspects, and returns their indices. ok is
// false if yield has returned false. enough is called with the result that reaches MinResults.
func (f *fanOut) yieldOutcomes(enough context.CancelCauseFunc, yield func(int) bool) (suspects []int, results int, ok bool) {
	for i := range f.peers {
		if !f.waitForAll {
			i = <-f.done
		}
		o := &f.outcomes[i]
		if o.Err == nil {
			if results++; results == f.minResults {
				enough(ErrEnoughResults)
			}
		}
		if f.isSuspect(i) {
			suspects = append(suspects, i)
		} else if !yield(i) {
			return nil, 0, false
		}
	}
	return suspects, results, true
}

func (f *fanOut) yieldSuspects(ctx context.Context, suspects []int, results int, yield func(int) bool) {
	if len(suspects) == 0 {
		return
	}
	f.client.evictor.review(ctx, batch{
		peers:    f.peers,
		outcomes: f.outcomes,
		all:      f.all,
		enough:   f.minResults > 0 && results >= f.minResults,
		timeout:  f.timeout,
		retry:    f.retryPeer,
		keep:     f.keepReason,
	}, suspects)
	f.reportAll(ctx)
	for _, i := range suspects {
		if !yield(i) {
			return
		}
	}
}

// callPeers calls the peers, as many at a time as the scheduler allows.
func (f *fanOut) callPeers(ctx context.Context) {
	f.start = time.Now()
	skip := func(i int, err error) {
		f.outcomes[i] = Outcome{Server: Server(f.peers[i].Server), Duration: time.Since(f.start)}
		f.setError(ctx, &f.outcomes[i], err)
		f.deliver(ctx, i)
	}
	if err := f.buildTemplate(ctx, ""); err != nil {
		for i := range f.peers {
			skip(i, err)
		}
		return
	}
	f.initialToken = f.bearer
	if len(f.unproven.peers) > 0 {
		f.wg.Go(func() { f.callUnproven(ctx, skip) })
	}
	f.callGroup(ctx, &f.proven, skip)
}

func (f *fanOut) callGroup(ctx context.Context, g *peerGroup, skip func(i int, err error)) {
	g.slots.Run(ctx, func(i int) {
		i = g.index(i)
		f.callPeer(ctx, f.peers[i], &f.outcomes[i], f.start)
		f.deliver(ctx, i)
	}, func(i int, err error) { skip(g.index(i), err) })
}

// callUnproven calls the peers that may not exist. Those that get a slot within a quarter of the
// timeout have a whole timeout from then on, as other peers do. The others have what is left of the
// first timeout.
func (f *fanOut) callUnproven(ctx context.Context, skip func(i int, err error)) {
	timeout := cmp.Or(f.timeout, f.client.timeout)
	groupCtx, cancel := context.WithTimeoutCause(ctx, timeout, errNotConfirmed)
	defer cancel()
	if len(f.unproven.peers) > f.client.unproven.Limit() {
		f.client.confirm()
	}
	f.unproven.slots.Run(groupCtx, func(i int) {
		i = f.unproven.index(i)
		callCtx := groupCtx
		if time.Since(f.start) < timeout/4 { // not shorter: on a busy machine, requests begin late
			callCtx = ctx
		}
		f.callPeer(callCtx, f.peers[i], &f.outcomes[i], f.start)
		f.deliver(ctx, i)
	}, func(i int, err error) { skip(f.unproven.index(i), err) })
}

// deliver passes on an outcome. That of a suspect is not final before eviction has been decided.
func (f *fanOut) deliver(ctx context.Context, i int) {
	if f.reported != nil && !f.isSuspect(i) {
		f.report(ctx, i)
	}
	if !f.waitForAll {
		f.done <- i
	}
}

func (f *fanOut) isSuspect(i int) bool {
	return !f.noEviction && f.client.evictor.isSuspect(&f.outcomes[i], f.timeout)
}

// report passes an outcome to the hook PeerDone.
func (f *fanOut) report(ctx context.Context, i int) {
	f.reported[i] = true
	f.client.trace.peerDone(ctx, f.outcomes[i])
}

// reportAll reports the outcomes that have not been reported. It is called when all are final.
func (f *fanOut) reportAll(ctx context.Context) {
	for i, reported := range f.reported {
		if !reported {
			f.report(ctx, i)
		}
	}
}

// receivedBytes returns how much memory the responses to the call have taken, also those that
// exceeded a limit and were dropped.
func (f *fanOut) receivedBytes() int64 {
	return f.confirmed.bytes.taken.Load() + f.unconfirmed.bytes.taken.Load()
}

// A collector collects garbage some time after the last call with long responses. Otherwise an idle
// node would keep that memory for up to four minutes: the runtime collects after two minutes at the
// latest, and returns what was in dense use before a collection only after the next one. Forged
// peers make calls as long as they can. Pools do not matter here: hardly anything is left on the
// heap after the first collection.
type collector struct {
	mu     sync.Mutex // guards the fields below
	timer  *time.Timer
	latest time.Time // of the next collections, if they are scheduled
	closed bool
}

const (
	longCall        = 16 << 20 // bytes of the responses to a call
	collectDelay    = 20 * time.Second
	maxCollectDelay = time.Minute
)

// received schedules collections after a long call. Each further long call postpones the
// collections, because its responses may be in use. They run maxCollectDelay after the first long
// call at the latest.
func (c *collector) received(n int64) {
	if n < longCall {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return
	}
	now := time.Now()
	if !now.Before(c.latest) {
		c.latest = now.Add(maxCollectDelay)
	}
	if d := min(collectDelay, c.latest.Sub(now)); c.timer == nil {
		c.timer = time.AfterFunc(d, c.collect)
	} else {
		c.timer.Reset(d)
	}
}

func (c *collector) collect() {
	c.mu.Lock()
	c.latest = time.Time{}
	c.mu.Unlock()
	collect()
}

// close cancels the scheduled collections, and schedules no more.
func (c *collector) close() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.closed = true
	if c.timer != nil {
		c.timer.Stop()
	}
}

// collect collects twice: the second collection returns the memory that the first one has freed. It
// does nothing if the program has disabled the collector.
func collect() {
	gogc := []metrics.Sample{{Name: "/gc/gogc:percent"}}
	if metrics.Read(gogc); gogc[0].Value.Uint64() == math.MaxUint64 {
		return
	}
	runtime.GC()
	runtime.GC()
}

// result describes the call when all its outcomes are final.
func (f *fanOut) result(start time.Time) CallResult {
	r := CallResult{Duration: time.Since(start)}
	for i := range f.outcomes {
		if f.outcomes[i].Err == nil {
			r.Results++
		} else {
			r.Failures++
		}
	}
	return r
}

// buildTemplate makes the template of all requests. If rejected is set, it replaces that token
// first.
func (f *fanOut) buildTemplate(ctx context.Context, rejected string) error {
	key := f.tokenKey()
	if rejected != "" {
		f.client.tokens.Drop(key, rejected)
	}
	bearer, err := f.client.tokens.Token(ctx, key)
	if err != nil {
		return err
	}
	header := f.client.http.header(ctx, bearer)
	if f.body != nil {
		header["Content-Type"] = []string{"application/json"}
	}
	addHeader(header, f.header)
	template := &http.Request{Method: f.method, Header: header, ContentLength: int64(len(f.body))}
	if f.body != nil {
		template.GetBody = func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(f.body)), nil }
	}
	direct := f.client.http.directCall(f.method, header, f.body)
	f.mu.Lock()
	defer f.mu.Unlock()
	f.bearer, f.template = bearer, template
	for _, b := range []*bodyBudget{&f.confirmed, &f.unconfirmed} {
		b.form = newForm(direct, b.bytes)
	}
	return nil
}

func (f *fanOut) tokenKey() token.Key {
	return token.Key{Audience: f.client.audience, Cluster: true, Customer: f.key.Customer}
}

// addHeader adds the caller's header fields to a request. The values of a name that is spelled in
// several ways are merged, in the order of the spellings.
func addHeader(header, added http.Header) {
	hopByHop := make(map[string]bool)
	for name, values := range added {
		if http.CanonicalHeaderKey(name) == "Connection" {
			for option := range strings.SplitSeq(strings.Join(values, ","), ",") {
				hopByHop[http.CanonicalHeaderKey(strings.TrimSpace(option))] = true
			}
		}
	}
	merged := make(http.Header, len(added))
	for _, spelling := range slices.Sorted(maps.Keys(added)) {
		if name := http.CanonicalHeaderKey(spelling); !hopByHop[name] && isForwarded(name) {
			merged[name] = append(merged[name], added[spelling]...)
		}
	}
	maps.Copy(header, merged)
}

// isForwarded reports whether the caller may set the header of that canonical name.
func isForwarded(name string) bool {
	switch name {
	case "Authorization", "User-Agent", "X-Correlation-Id":
		return false // set for each call
	case "Accept-Encoding", "Connection", "Expect", "Http2-Settings", "Keep-Alive", "Te", "Trailer", "Transfer-Encoding", "Upgrade":
		return false // hop-by-hop, or about the connection
	case "Content-Encoding", "Content-Length", "Host":
		return false // about the incoming request; the body is encoded again
	}
	return !strings.HasPrefix(name, "Proxy-")
}

// A sharedDeadline gives one context to requests that begin at about the same moment. A timer for
// each request would cost more than all other work of this package for the request. A request may
// lose up to 2 % of its timeout, and at most 5 ms.
type sharedDeadline struct {
	parent     context.Context    //nolint:containedctx // that of a call, which outlives it
	current    context.Context    //nolint:containedctx // derived from parent
	cancel     context.CancelFunc // not called: the end of the call's context releases the timer
	validUntil time.Time          // for requests that begin later, there is a new context
}

func (d *sharedDeadline) context(ctx context.Context, now time.Time, timeout time.Duration) context.Context {
	if d.parent != ctx || now.After(d.validUntil) {
		d.parent = ctx
		d.current, d.cancel = context.WithDeadline(ctx, now.Add(timeout)) //nolint:gosec // see cancel
		d.validUntil = now.Add(min(timeout/50, 5*time.Millisecond))
	}
	return d.current
}
