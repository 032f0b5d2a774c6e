package etcd_test

import (
	"context"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"go.etcd.io/etcd/api/v3/etcdserverpb"

	"github.com/mimiktech/cluster/mit"
	"github.com/mimiktech/cluster/mit/etcd"
	"github.com/mimiktech/cluster/mit/etcd/internal/etcdtest"
	"github.com/mimiktech/cluster/mit/etcd/internal/linear"
)

// A linearWorld is an etcd and its replicas, which clients call while faults begin and end.
type linearWorld struct {
	*testing.T
	etcd     *etcdtest.Cluster
	timeout  time.Duration
	proxies  [][]*etcdtest.Proxy // of each replica, to each member
	replicas []atomic.Pointer[etcd.Store]
	clock    atomic.Int64 // added to the clock of the first replica
	killed   int          // the member, -1 if there was no leader
}

func newLinearWorld(t *testing.T, members int) *linearWorld {
	t.Helper()
	// The timeout of calls is shorter than the faults, so that calls also fail, but longer than it
	// takes to elect a leader.
	timeout := 800 * time.Millisecond
	if members > 1 {
		timeout = 3 * time.Second
	}
	w := &linearWorld{T: t, timeout: timeout, etcd: etcdtest.Run(t, members), replicas: make([]atomic.Pointer[etcd.Store], 3)}
	for i := range w.replicas {
		var proxies []*etcdtest.Proxy
		for _, endpoint := range w.etcd.Endpoints {
			proxies = append(proxies, etcdtest.NewProxy(t, endpoint))
		}
		w.proxies = append(w.proxies, proxies)
		w.start(i)
	}
	first := w.replicas[0].Load()
	first.SetClock(func() time.Time { return time.Now().Add(time.Duration(w.clock.Load())) })
	return w
}

func (w *linearWorld) start(i int) {
	w.Helper()
	var endpoints []string
	for _, p := range w.proxies[i] {
		endpoints = append(endpoints, p.Addr)
	}
	w.replicas[i].Store(open(w.T, etcd.Config{Endpoints: endpoints, Timeout: w.timeout}))
}

// forReplica changes the connections of a replica.
func forReplica(i int, change func(*etcdtest.Proxy)) func(*linearWorld) {
	return func(w *linearWorld) {
		for _, p := range w.proxies[i] {
			change(p)
		}
	}
}

// The calls of several clients of several replicas are linearizable, whatever fails meanwhile.
// Reads of a replica may lag behind as long as it is ready, and without a limit while it is not.
func TestLinearizable(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		name    string
		members int
		begin   func(*linearWorld)
		end     func(*linearWorld)
	}{
		{"replica killed", 1, (*linearWorld).killReplica, (*linearWorld).restartReplica},
		{"replica cut off", 1, forReplica(0, (*etcdtest.Proxy).Cut), forReplica(0, (*etcdtest.Proxy).Heal)},
		{"responses to a replica lost", 1, forReplica(0, (*etcdtest.Proxy).Blackhole), forReplica(0, (*etcdtest.Proxy).Heal)},
		{"leader killed", 3, (*linearWorld).killLeader, (*linearWorld).restartMember},
		{"clock set forward", 1, func(w *linearWorld) { w.clock.Store(int64(hour)) }, func(w *linearWorld) { w.clock.Store(0) }},
		{"clock set back", 1, func(w *linearWorld) { w.clock.Store(-int64(hour)) }, func(w *linearWorld) { w.clock.Store(0) }},
		{"no space", 1, (*linearWorld).fillSpace, (*linearWorld).freeSpace},
		{"no fault", 1, func(*linearWorld) {}, func(*linearWorld) {}},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			w := newLinearWorld(t, test.members)
			cfg := w.config()
			// A replica whose clock was set back continues with the latest date that it has seen. So
			// does another one, which may not have seen a delete yet.
			cfg.DatesRecur = strings.HasPrefix(test.name, "clock")
			ctx, cancel := context.WithTimeout(t.Context(), 4*time.Second)
			defer cancel()
			recorded := make(chan *linear.History, 1)
			go func() { recorded <- linear.Record(ctx, cfg) }()
			for range 2 {
				time.Sleep(500 * time.Millisecond)
				test.begin(w)
				time.Sleep(1200 * time.Millisecond)
				test.end(w)
			}
			h := <-recorded
			t.Log(h)
			if err := h.Check(20 * time.Second); err != nil {
				t.Error(err)
			}
			if h.Count("put", "present") < 10 || h.Count("get", "present") == 0 {
				t.Errorf("too few calls have a result: %v", h)
			}
		})
	}
}

// config returns the calls of six clients, two of each replica. A new leader of etcd extends
// leases, so entries may live long.
func (w *linearWorld) config() linear.Config {
	return linear.Config{
		Clients: 6, Servers: 3, TTL: time.Second, Slack: hour, Pause: 20 * time.Millisecond, RepeatAfter: w.timeout / 4,
		Store: func(client int) mit.Store { return w.replicas[client%len(w.replicas)].Load() },
		Lag:   func(s mit.Store) (time.Duration, bool) { return w.timeout, s.(*etcd.Store).Ready() == nil },
	}
}

// killReplica cuts the connections of a replica and ends it. Calls in progress fail.
func (w *linearWorld) killReplica() {
	forReplica(1, (*etcdtest.Proxy).Cut)(w)
	_ = w.replicas[1].Load().Close()
}

func (w *linearWorld) restartReplica() {
	forReplica(1, (*etcdtest.Proxy).Heal)(w)
	w.start(1)
}

// killLeader kills the leader of etcd. Connections to it are cut first: a member in this process
// would otherwise answer on them until it is closed.
func (w *linearWorld) killLeader() {
	if w.killed = w.etcd.Leader(); w.killed < 0 {
		return
	}
	for _, proxies := range w.proxies {
		proxies[w.killed].Cut()
	}
	w.etcd.Kill(w.killed)
}

func (w *linearWorld) restartMember() {
	w.Helper()
	if w.killed < 0 {
		return
	}
	if err := w.etcd.Restart(w.killed); err != nil {
		w.Error(err)
	}
	for _, proxies := range w.proxies {
		proxies[w.killed].Heal()
	}
}

func (w *linearWorld) fillSpace() {
	w.Helper()
	if err := alarm(etcdserverpb.AlarmRequest_ACTIVATE, etcdserverpb.AlarmType_NOSPACE)(w.Context(), w.etcd.Client(w)); err != nil {
		w.Error(err)
	}
}

func (w *linearWorld) freeSpace() {
	w.Helper()
	if err := alarm(etcdserverpb.AlarmRequest_DEACTIVATE, etcdserverpb.AlarmType_NOSPACE)(w.Context(), w.etcd.Client(w)); err != nil {
		w.Error(err)
	}
}
