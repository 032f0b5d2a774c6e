package linear

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/anishathalye/porcupine"

	"github.com/mimiktech/cluster"
	"github.com/mimiktech/cluster/mit"
)

// A Config describes the calls of a history. Each client registers servers at an address of its
// own: a store may take two equal registrations at the same moment for one.
type Config struct {
	Clients int
	// Servers is the number of servers that all clients change.
	Servers int
	TTL     time.Duration
	// Slack is how long an entry may be listed after its TTL.
	Slack time.Duration
	// DatesRecur allows an entry to have the dates of one that was deleted before.
	DatesRecur bool
	// RepeatAfter is how long a call takes at least if it may take effect twice: a store repeats
	// requests whose response was lost. 0: each call takes effect once.
	RepeatAfter time.Duration
	// Pause is the mean pause of a client between two calls.
	Pause time.Duration
	// Store returns the store that a client calls next.
	Store func(client int) mit.Store
	// Lag returns by how much a read of the store that is about to begin may lag behind, and false
	// if that has no limit; nil: not at all.
	Lag func(mit.Store) (time.Duration, bool)
}

// A History is the calls of several clients.
type History struct {
	cfg   Config
	start time.Time

	mu    sync.Mutex                       // guards the fields below
	calls map[string][]porcupine.Operation // by server
	count map[string]int                   // by kind and result
	seen  map[string]entry                 // last seen, by server
	read  map[string]int64                 // when a read was last kept, by server
}

const serverType = "mds"

// Record lets clients call a store until ctx ends.
func Record(ctx context.Context, cfg Config) *History {
	h := &History{
		cfg: cfg, start: time.Now(), calls: map[string][]porcupine.Operation{},
		count: map[string]int{}, seen: map[string]entry{}, read: map[string]int64{},
	}
	var wg sync.WaitGroup
	for client := range cfg.Clients {
		wg.Go(func() {
			rnd := rand.New(rand.NewPCG(uint64(client), 0)) //nolint:gosec // not negative
			for ctx.Err() == nil {
				pause := time.Duration(rnd.Int64N(int64(2 * cfg.Pause)))
				if !h.call(ctx, rnd, client) {
					pause += failurePause
				}
				select {
				case <-ctx.Done():
				case <-time.After(pause):
				}
			}
		})
	}
	wg.Wait()
	return h
}

// failurePause is the pause of a client after a call has failed. Each call without a result
// multiplies the possible histories.
const failurePause = 300 * time.Millisecond

// call makes one call, and reports whether it has a result.
func (h *History) call(ctx context.Context, rnd *rand.Rand, client int) bool {
	in := input{
		kind:   []kind{put, put, put, renew, get, get, get, remove, conditionalDelete, conditionalDelete}[rnd.IntN(10)],
		server: fmt.Sprintf("server-%d", rnd.IntN(h.cfg.Servers)), ttl: int64(h.cfg.TTL),
		address: fmt.Sprintf("http://10.0.0.%d:8080/mds/v1", client),
	}
	h.mu.Lock()
	seen := h.seen[in.server]
	h.mu.Unlock()
	switch in.kind {
	case renew:
		in.date = seen.created
	case conditionalDelete:
		in.date = seen.updated - int64(rnd.IntN(2))
	}
	store := h.cfg.Store(client)
	ctx = context.WithoutCancel(ctx) // the history ends with whole calls
	in.begin = h.now()
	if in.kind == get {
		return h.get(ctx, client, in, store)
	}
	out := change(ctx, store, in)
	in.end = h.now()
	h.add(client, in, out)
	if d := int64(h.cfg.RepeatAfter); d > 0 && in.end-in.begin >= d {
		h.add(client, in, output{unknown: true})
	}
	return !out.unknown
}

// change makes a call for one server.
func change(ctx context.Context, store mit.Store, in input) output {
	id := mit.ResourceID(serverType)
	switch in.kind {
	case remove:
		return output{unknown: store.Delete(ctx, id, in.server) != nil}
	case conditionalDelete:
		newer, err := store.DeleteIfUnmodifiedSince(ctx, id, in.server, time.UnixMilli(in.date))
		if err != nil || newer == nil {
			return output{unknown: err != nil}
		}
		return output{found: true, entry: entryOf(*newer)}
	}
	reg := mit.Registration{Type: serverType, ServerID: in.server, ClusterBaseURL: in.address}
	if in.kind == renew {
		reg.RenewalOf = time.UnixMilli(in.date)
	}
	res, err := store.Put(ctx, reg, time.Duration(in.ttl))
	if err != nil {
		return output{unknown: !errors.Is(err, mit.ErrNotFound)}
	}
	return find(res, in.server)
}

// get lists all servers, which is one read of each server.
func (h *History) get(ctx context.Context, client int, in input, store mit.Store) bool {
	lag, limited := time.Duration(0), true
	if h.cfg.Lag != nil {
		lag, limited = h.cfg.Lag(store)
	}
	res, err := store.Get(ctx, mit.ResourceID(serverType))
	in.end = h.now()
	if err != nil && !errors.Is(err, mit.ErrNotFound) || !limited {
		return err == nil // a read without a result, or of any earlier state, proves nothing
	}
	for i := range h.cfg.Servers {
		in.server = fmt.Sprintf("server-%d", i)
		if h.keepRead(in, lag) {
			early := in
			early.begin = max(0, in.begin-int64(lag))
			h.add(client, early, find(res, in.server))
		}
	}
	return true
}

// keepRead reports whether to keep a read. Each read may take effect at any moment within the lag,
// so many reads would have too many orders.
func (h *History) keepRead(in input, lag time.Duration) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	if last, ok := h.read[in.server]; ok && in.begin-last < int64(lag/4) {
		return false
	}
	h.read[in.server] = in.begin
	return true
}

func find(res mit.Resource, server string) output {
	i := slices.IndexFunc(res.Servers, func(s cluster.Server) bool { return s.ServerID == server })
	if i < 0 {
		return output{}
	}
	return output{found: true, entry: entryOf(res.Servers[i])}
}

func entryOf(s cluster.Server) entry {
	return entry{s.CreatedAt.UnixMilli(), s.UpdatedAt.UnixMilli(), s.ClusterBaseURL}
}

// now returns the time since the start, which is never zero.
func (h *History) now() int64 { return int64(time.Since(h.start)) + 1 }

func (h *History) add(client int, in input, out output) {
	if out.unknown {
		in.end = forever
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if out.found {
		h.seen[in.server] = out.entry
	}
	result := "absent"
	switch {
	case out.unknown:
		result = "unknown"
	case out.found:
		result = "present"
	}
	h.count[string(in.kind)+": "+result]++
	h.calls[in.server] = append(h.calls[in.server], porcupine.Operation{
		ClientId: client, Input: in, Output: out, Call: in.begin, Return: in.end,
	})
}

// String counts the calls.
func (h *History) String() string {
	var parts []string
	for _, name := range slices.Sorted(maps.Keys(h.count)) {
		parts = append(parts, fmt.Sprintf("%s %d", name, h.count[name]))
	}
	return strings.Join(parts, ", ")
}

// Count returns how many calls of a kind have a result: "absent", "present" or "unknown".
func (h *History) Count(kind, result string) int { return h.count[kind+": "+result] }

// Check returns an error if the calls for a server are not linearizable, or if the check takes
// longer than a timeout.
func (h *History) Check(timeout time.Duration) error {
	var errs []error
	for _, server := range slices.Sorted(maps.Keys(h.calls)) {
		m, calls := model(h.cfg), h.calls[server]
		result, info := porcupine.CheckOperationsVerbose(m, calls, timeout)
		switch result {
		case porcupine.Ok:
		case porcupine.Unknown:
			errs = append(errs, fmt.Errorf("%s: %d calls: not decided within %v", server, len(calls), timeout))
		case porcupine.Illegal:
			errs = append(errs, fmt.Errorf("%s: the calls are not linearizable: %s", server, describe(m, calls, longestPrefix(info))))
		}
	}
	return errors.Join(errs...)
}

// longestPrefix returns the most calls that can be ordered.
func longestPrefix(info porcupine.LinearizationInfo) []porcupine.Operation {
	var longest []porcupine.Operation
	for _, partition := range info.PartialLinearizationsOperations() {
		for _, calls := range partition {
			if len(calls) > len(longest) {
				longest = calls
			}
		}
	}
	return longest
}

// describe describes the last calls that can be ordered, and the first ones of the others.
func describe(m porcupine.Model, calls, ordered []porcupine.Operation) string {
	const shown = 6
	rest := slices.DeleteFunc(slices.Clone(calls), func(c porcupine.Operation) bool {
		return slices.ContainsFunc(ordered, func(o porcupine.Operation) bool { return o.Input == c.Input })
	})
	slices.SortFunc(rest, func(a, b porcupine.Operation) int { return cmp.Compare(a.Return, b.Return) })
	lines := []string{fmt.Sprintf("%d of %d can be ordered, up to", len(ordered), len(calls))}
	for _, c := range ordered[max(0, len(ordered)-shown):] {
		lines = append(lines, "  "+m.DescribeOperation(c.Input, c.Output))
	}
	lines = append(lines, "but not")
	for _, c := range rest[:min(shown, len(rest))] {
		lines = append(lines, "  "+m.DescribeOperation(c.Input, c.Output))
	}
	return strings.Join(lines, "\n")
}
