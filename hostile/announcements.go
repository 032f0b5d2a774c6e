package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// The attacks in this file come from the holder of a peer token.

// announceLongEntries announces entries of a mebibyte each.
func announceLongEntries(ctx context.Context, w *world) (report, error) {
	token, err := w.token(ctx)
	if err != nil {
		return report{}, err
	}
	more := fmt.Sprintf(`,"x":%q`, strings.Repeat("x", mebibyte-512))
	var (
		rejected atomic.Int64
		mu       sync.Mutex // guards the field below
		accepted error
	)
	each(8, func(worker int) {
		for i := 0; i < 25 && ctx.Err() == nil; i++ {
			status, body, err := w.postAnnouncement(ctx, token, entry(fmt.Sprintf("long-%d-%d", worker, i), w.hostile.url+"/hang/long", more))
			if status == http.StatusBadRequest && strings.Contains(body, "the body is not an itResource") {
				rejected.Add(1)
			} else if ctx.Err() == nil {
				mu.Lock()
				accepted = errors.Join(fmt.Errorf("an entry of 1 MiB was not rejected: %d, %.200q", status, body), err)
				mu.Unlock()
			}
		}
	})
	n := int(rejected.Load())
	return report{n, fmt.Sprintf("%d announcements of 1 MiB rejected", n)}, accepted
}

// maxEscapesCost bounds the CPU time of an announcement with escapes in escapes, as a multiple of
// that with plain text. The victim searches them for its tokens in all forms.
const maxEscapesCost = 4

// announceEscapes makes announcements of a mebibyte, at first with plain text, then with escapes.
func announceEscapes(ctx context.Context, w *world) (report, error) {
	token, err := w.token(ctx)
	if err != nil {
		return report{}, err
	}
	plain, cost, err := w.announceText(ctx, token, "plain", "abcdefgh")
	escapes, escapesCost, escapesErr := w.announceText(ctx, token, "escapes", `\u0041%41+\\u005cu0041%2541`)
	err = errors.Join(err, escapesErr)
	if limit := maxEscapesCost * max(cost, time.Millisecond); escapesCost > limit && !w.together {
		err = errors.Join(err, fmt.Errorf("an announcement with escapes takes %v of CPU time", escapesCost))
	}
	return report{plain + escapes, fmt.Sprintf("1 MiB takes %v of CPU time, %v with escapes", cost, escapesCost)}, err
}

// announceText makes announcements until 20 have arrived: one may time out while other attacks run.
// The entries repeat a text. cost is the CPU time of the victim for one announcement.
func (w *world) announceText(ctx context.Context, token, name, text string) (arrived int, cost time.Duration, err error) {
	text = strings.Repeat(text, (15<<10)/len(text))
	before, err := w.victim.usage()
	sent := 0
	for ; sent < 60 && arrived < 20 && ctx.Err() == nil; sent++ {
		var entries []string
		for k := range 64 {
			id := fmt.Sprintf("%s-%d-%d", name, sent, k)
			entries = append(entries, entry(id, w.hostile.url+"/gone/"+id, `,"x":"`+text+`"`))
		}
		if status, _, err := w.postAnnouncement(ctx, token, entries...); err == nil && status == http.StatusOK {
			arrived++
		}
	}
	after, afterErr := w.victim.usage()
	return arrived, (after.CPU - before.CPU) / time.Duration(max(sent, 1)), errors.Join(err, afterErr)
}

// callBombs lets the victim call peers whose responses have 15 MiB, compressed to 15 KiB.
func callBombs(ctx context.Context, w *world) (report, error) {
	c, err := w.callForged(ctx, "gzip", 60)
	// All responses of peers that the registry has not confirmed share a quarter of 256 MiB.
	// The JSON has the data twice.
	if len(c.body) > 130*mebibyte {
		err = errors.Join(err, fmt.Errorf("a response of %d MiB", len(c.body)/mebibyte))
	}
	return report{c.arrived, fmt.Sprintf("a call took %v, with a response of %d MiB, %d were too large",
		c.took, len(c.body)/mebibyte, strings.Count(c.body, `"kind":"too_large"`))}, err
}

// callEndlessHeads lets the victim call peers that send header fields without an end.
func callEndlessHeads(ctx context.Context, w *world) (report, error) {
	whole := w.hostile.whole.Load()
	c, err := w.callForged(ctx, "head", 50)
	if n := w.hostile.whole.Load() - whole; n > 0 {
		err = fmt.Errorf("%d heads of 16 MiB were read", n)
	}
	return report{c.arrived, fmt.Sprintf("a call took %v", c.took)}, err
}

// A forgedCall is a call of the victim to all its peers, and to hostile ones.
type forgedCall struct {
	arrived int // hostile peers of the kind that have responded
	took    time.Duration
	body    string
}

// callForged announces n hostile peers of a kind, and lets the victim call all its peers.
func (w *world) callForged(ctx context.Context, kind string, n int) (forgedCall, error) {
	token, err := w.token(ctx)
	if err != nil {
		return forgedCall{}, err
	}
	var entries []string
	for i := range n {
		id := fmt.Sprintf("%s-%d", kind, i)
		entries = append(entries, entry(id, fmt.Sprintf("%s/%s/%s", w.hostile.url, kind, id), ""))
	}
	if _, err := w.announce(ctx, token, entries...); err != nil {
		return forgedCall{}, err
	}
	start, before := time.Now(), w.hostile.calls(kind)
	body, err := w.fanOut(ctx)
	return forgedCall{int(w.hostile.calls(kind) - before), time.Since(start).Round(time.Millisecond), body}, err
}

// maxUnconfirmed is how many servers a node takes from announcements alone.
const maxUnconfirmed = 256

// announceForged announces servers that hang, and as many that refuse connections. A call must not
// take more than two timeouts. It must evict a peer that is really gone, unless other attacks need
// all peers.
func announceForged(ctx context.Context, w *world) (report, error) {
	token, err := w.token(ctx)
	if err != nil {
		return report{}, err
	}
	var r report
	known := 0
	for i := 0; i < w.forged/50 || !w.together && known < 200 && i < 60; i++ { // a renewal drops them
		var entries []string
		for k := range 25 {
			id := fmt.Sprintf("forged-%d-%d", i, k)
			entries = append(entries, entry(id, w.hostile.url+"/hang/"+id, ""), entry("refusing-"+id, w.hostile.refusing+"/"+id, ""))
		}
		ids, err := w.announce(ctx, token, entries...)
		if err != nil {
			return r, err
		}
		known = 0
		for id := range ids {
			if strings.Contains(id, "forged-") {
				known++
			}
		}
		r.arrived = max(r.arrived, known)
	}
	if !w.together {
		w.other.stop()
	}
	start := time.Now()
	body, err := w.fanOut(ctx)
	took := time.Since(start).Round(time.Millisecond)
	called := strings.Count(body, `{"serverId":"forged-`) + strings.Count(body, `{"serverId":"refusing-`)
	r.figure = fmt.Sprintf("a call took %v, with %d forged peers, of which %d were called at a time", took, called, w.hostile.mostHanging.Load())
	if took > 2*requestTimeout {
		err = errors.Join(err, fmt.Errorf("a call took %v", took))
	}
	if r.arrived > maxUnconfirmed {
		err = errors.Join(err, fmt.Errorf("the victim knows %d forged servers", r.arrived))
	}
	if w.together {
		return r, err
	}
	if called < 200 {
		err = errors.Join(err, fmt.Errorf("a call with only %d forged peers", called))
	}
	if !evicted(body, "other") {
		err = errors.Join(err, errors.New("a peer that is gone was not evicted"))
	}
	return r, err
}

// evicted reports whether a response of RPCluster says that a peer was evicted.
func evicted(body, id string) bool {
	var r struct {
		Failures []struct {
			Error  struct{ Evicted bool }
			Server struct{ ServerID string }
		}
	}
	if json.Unmarshal([]byte(body), &r) != nil {
		return false
	}
	for _, f := range r.Failures {
		if f.Server.ServerID == id {
			return f.Error.Evicted
		}
	}
	return false
}

// announceMetadata announces servers at the metadata services of clouds. Each announcement also has
// a server at an allowed address, which shows that the victim has read it.
func announceMetadata(ctx context.Context, w *world) (report, error) {
	token, err := w.token(ctx)
	if err != nil {
		return report{}, err
	}
	var r report
	for i, host := range []string{"[fd00:ec2::254]", "100.100.100.200", "[64:ff9b::a9fe:a9fe]", "168.63.129.16", "169.254.169.254"} {
		id, allowed := fmt.Sprintf("metadata-%d", i), fmt.Sprintf("allowed-%d", i)
		ids, err := w.announce(ctx, token, entry(id, "http://"+host+"/latest", ""), entry(allowed, w.hostile.url+"/gone/"+allowed, ""))
		if err != nil {
			return r, err
		}
		if ids[id] {
			return r, errors.New("the victim would call a metadata service: " + host)
		}
		if ids[allowed] {
			r.arrived++
		}
	}
	r.figure = "none of them is a peer"
	return r, nil
}

// announce announces servers to the victim. It returns the ids of the servers that the victim knows
// afterwards. An error says that the announcement was not accepted.
func (w *world) announce(ctx context.Context, token string, entries ...string) (map[string]bool, error) {
	status, body, err := w.postAnnouncement(ctx, token, entries...)
	if err != nil {
		return nil, err
	}
	if status != http.StatusOK {
		return nil, fmt.Errorf("an announcement got %d: %.200q", status, body)
	}
	var in struct {
		Data struct {
			Servers []struct{ ServerID string }
		}
	}
	if err := json.Unmarshal([]byte(body), &in); err != nil {
		return nil, fmt.Errorf("the response to an announcement: %w", err)
	}
	ids := make(map[string]bool)
	for _, s := range in.Data.Servers {
		ids[s.ServerID] = true
	}
	return ids, nil
}

func (w *world) postAnnouncement(ctx context.Context, token string, entries ...string) (status int, body string, err error) {
	it := fmt.Sprintf(`{"id":%q,"publicBaseUrl":"","servers":[%s]}`, resourceID, strings.Join(entries, ","))
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, w.victim.url+"/mds/v1/itResources", strings.NewReader(it))
	if err != nil {
		return 0, "", err
	}
	req.Header.Set("Authorization", "Bearer "+token)
	sender := w.newSender()
	defer sender.CloseIdleConnections()
	return do(sender, req)
}

func entry(id, url, more string) string {
	return fmt.Sprintf(`{"serverId":%q,"clusterBaseUrl":%q,"updatedAt":"2030-01-01T00:00:00.000Z"%s}`, id, url, more)
}

// reportDeparture sends the victim a report of its own departure, so that it renews.
func (w *world) reportDeparture(ctx context.Context, token string) {
	req, err := http.NewRequestWithContext(ctx, http.MethodDelete, w.victim.url+"/mds/v1/itResources/"+resourceID+"/servers/victim", http.NoBody)
	if err != nil {
		return
	}
	req.Header.Set("Authorization", "Bearer "+token)
	if resp, err := http.DefaultClient.Do(req); err == nil {
		_ = resp.Body.Close()
	}
}
