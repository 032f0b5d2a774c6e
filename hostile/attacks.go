package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

const mebibyte = 1 << 20

// An attack is one kind of input. run makes it, and returns a figure for the table. check returns
// an error if the attack has achieved something; nil means that the bound on memory suffices.
type attack struct {
	name   string
	memory int64 // how many bytes the peak may exceed the memory at rest
	run    func(ctx context.Context, w *world) (figure string, err error)
	check  func(ctx context.Context, w *world) error
}

func attacks() []attack {
	return []attack{
		{"text", 100 * mebibyte, repeatTokens, checkTexts},
		{"tokens", 150 * mebibyte, sendLongTokens, nil},
		{"slow", 100 * mebibyte, openSlowConnections, nil},
		{"long entries", 150 * mebibyte, announceLongEntries, nil},
		{"gzip", 500 * mebibyte, callBombs, nil},
		{"heads", 30 * mebibyte, callEndlessHeads, nil},
		{"forged", 100 * mebibyte, announceForged, nil},
		{"metadata", 50 * mebibyte, announceMetadata, nil},
	}
}

// repeatTokens lets the registry repeat the token of the victim, in many ways.
func repeatTokens(ctx context.Context, w *world) (string, error) {
	const failed, chunked = "HTTP/1.1 500 Error\r\nConnection: close\r\n\r\n", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
	raws := []string{
		"HTTP/1.1 %s\r\n\r\n", "%s\r\n\r\n", "HTTP/1.1 200 OK\r\n%s\r\n\r\n", "HTTP/1.1 200 OK\r\nContent-Length: %s\r\n\r\n",
		"HTTP/1.1 200 OK\r\nTransfer-Encoding: %s\r\n\r\n", chunked + "%s\r\n", chunked + "0\r\n%s\r\n\r\n",
		"HTTP/1.1 200 " + strings.Repeat("\xff", 9*mebibyte), failed + `{"message":"` + strings.Repeat("\xff", 63<<10) + `"}`,
		failed + `{"message":"\u202e%s"}`, failed + `{"message":"no","info":{"a":"%s"}}`,
		"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}HTTP/1.1 200 %s\r\n\r\n",
	}
	var n atomic.Int64
	answer := answerFunc(func(authorization string) []byte {
		i := int(n.Add(1)) - 1
		if i/2 >= len(raws) || i%2 == 1 { // the lease is renewed meanwhile
			return nil
		}
		return []byte(strings.ReplaceAll(raws[i/2], "%s", authorization))
	})
	w.answer.Store(&answer)
	defer w.answer.Store(nil)
	// Many renewals are due: after each failure, and after each report of the victim's departure.
	token, err := w.token(ctx)
	if err != nil {
		return "", err
	}
	longest := 0
	for i := 0; i < 100 && n.Load() < int64(2*len(raws)); i++ {
		w.reportDeparture(ctx, token)
		status, _ := w.victim.get(ctx, "/status", time.Second) // it may be busy
		longest = max(longest, len(status))
		if err := sleep(ctx, 200*time.Millisecond); err != nil {
			break
		}
	}
	return fmt.Sprintf("%d responses, status of %d bytes, log of %d KiB", n.Load()/2, longest, len(w.victim.log.String())>>10), nil
}

func checkTexts(ctx context.Context, w *world) error {
	text := w.victim.log.String()
	status, err := w.victim.get(ctx, "/status", 5*time.Second)
	if err != nil {
		return err
	}
	switch {
	case strings.Contains(text+status, "eyJ"):
		return errors.New("a token is in the log or in the status")
	case strings.Contains(text+status, clientSecret) || strings.Contains(text+status, key):
		return errors.New("a secret is in the log or in the status")
	case len(status) > 8<<10 || len(text) > mebibyte:
		return fmt.Errorf("a status of %d bytes, a log of %d", len(status), len(text))
	}
	return nil
}

// sendLongTokens sends tokens of 933 KiB without a valid signature, a hundred at a time.
func sendLongTokens(ctx context.Context, w *world) (string, error) {
	claims := "eyJ4Ijoi" + strings.Repeat("eHh4", 233<<10) + "In0"
	authorization := "Bearer eyJhbGciOiJIUzI1NiIsInR5cCI6IkpXVCJ9." + claims + ".c2lnbmF0dXJl"
	var rejected atomic.Int64
	each(100, func(int) {
		for range 3 {
			req, err := http.NewRequestWithContext(ctx, http.MethodGet, w.victim.url+"/mds/v1/things", http.NoBody)
			if err != nil {
				return
			}
			req.Header.Set("Authorization", authorization)
			resp, err := http.DefaultClient.Do(req)
			if err != nil {
				rejected.Add(1) // the connection is closed while the header is being sent
				continue
			}
			_, _ = io.Copy(io.Discard, io.LimitReader(resp.Body, mebibyte))
			_ = resp.Body.Close()
			if resp.StatusCode >= http.StatusBadRequest {
				rejected.Add(1)
			}
		}
	})
	return fmt.Sprintf("%d of 300 rejected", rejected.Load()), nil
}

// openSlowConnections opens connections that send the beginning of a request, and counts those that
// are still open after some time.
func openSlowConnections(ctx context.Context, w *world) (string, error) {
	var open []net.Conn
	defer func() {
		for _, c := range open {
			_ = c.Close()
		}
	}()
	for range 500 {
		c, err := new(net.Dialer).DialContext(ctx, "tcp", strings.TrimPrefix(w.victim.url, "http://"))
		if err != nil {
			break
		}
		open = append(open, c)
		_, _ = c.Write([]byte("GET /healthz HTTP/1.1\r\nHost: a\r\nX-A:"))
	}
	for range 24 {
		if u, err := w.victim.usage(); err != nil || u.descriptors < 100 {
			return fmt.Sprintf("%d of %d connections closed", len(open), len(open)), err
		}
		if err := sleep(ctx, 500*time.Millisecond); err != nil {
			return "", err
		}
	}
	return "", fmt.Errorf("%d slow connections are still open after 12 s", len(open))
}

// announceLongEntries announces entries of a mebibyte each.
func announceLongEntries(ctx context.Context, w *world) (string, error) {
	token, err := w.token(ctx)
	if err != nil {
		return "", err
	}
	more := fmt.Sprintf(`,"x":%q`, strings.Repeat("x", mebibyte-512))
	each(8, func(worker int) {
		for i := range 25 {
			_ = w.announce(ctx, token, entry(fmt.Sprintf("long-%d-%d", worker, i), w.hostile.url+"/hang/long", more))
		}
	})
	n, err := w.servers(ctx)
	return fmt.Sprintf("%d servers after 200 announcements of 1 MiB", n), err
}

// callBombs lets the victim call peers with 15 MiB in 15 KiB each.
func callBombs(ctx context.Context, w *world) (string, error) {
	return w.callForged(ctx, "gzip", 60)
}

func callEndlessHeads(ctx context.Context, w *world) (string, error) {
	return w.callForged(ctx, "head", 50)
}

// callForged announces n hostile peers of a kind, and lets the victim call all its peers.
func (w *world) callForged(ctx context.Context, kind string, n int) (string, error) {
	token, err := w.token(ctx)
	if err != nil {
		return "", err
	}
	var entries []string
	for i := range n {
		id := fmt.Sprintf("%s-%d", kind, i)
		entries = append(entries, entry(id, fmt.Sprintf("%s/%s/%s", w.hostile.url, kind, id), ""))
	}
	if err := w.announce(ctx, token, entries...); err != nil {
		return "", err
	}
	start := time.Now()
	body, err := w.fanOut(ctx)
	return fmt.Sprintf("a call took %v, with a response of %d MiB", time.Since(start).Round(time.Millisecond), len(body)/mebibyte), err
}

// announceForged announces a thousand servers that hang. A call must not take much longer than a
// timeout, and must evict a peer that is really gone.
func announceForged(ctx context.Context, w *world) (string, error) {
	token, err := w.token(ctx)
	if err != nil {
		return "", err
	}
	for i := range 10 {
		var entries []string
		for k := range 100 {
			id := fmt.Sprintf("forged-%d-%d", i, k)
			entries = append(entries, entry(id, w.hostile.url+"/hang/"+id, ""))
		}
		if err := w.announce(ctx, token, entries...); err != nil {
			return "", err
		}
	}
	w.other.stop()
	start := time.Now()
	body, err := w.fanOut(ctx)
	took := time.Since(start)
	if err != nil {
		return "", err
	}
	figure := fmt.Sprintf("a call took %v, with %d hanging peers", took.Round(time.Millisecond), strings.Count(body, "forged-"))
	if !evicted(body, "other") {
		err = errors.New("a peer that is gone was not evicted")
	}
	if took > 2*requestTimeout {
		err = errors.Join(err, fmt.Errorf("a call took %v", took))
	}
	return figure, err
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

// announceMetadata announces servers at the metadata services of clouds.
func announceMetadata(ctx context.Context, w *world) (string, error) {
	token, err := w.token(ctx)
	if err != nil {
		return "", err
	}
	for i, host := range []string{"[fd00:ec2::254]", "100.100.100.200", "[64:ff9b::a9fe:a9fe]", "168.63.129.16", "169.254.169.254"} {
		if err := w.announce(ctx, token, entry(fmt.Sprintf("metadata-%d", i), "http://"+host+"/latest", "")); err != nil {
			return "", err
		}
	}
	n, err := w.servers(ctx)
	if err == nil && n > 3 {
		err = fmt.Errorf("the victim would call %d metadata services", n-3)
	}
	return fmt.Sprintf("%d servers", n), err
}

// servers returns how many servers the victim knows.
func (w *world) servers(ctx context.Context) (int, error) {
	body, err := w.victim.get(ctx, "/status", 10*time.Second)
	if err != nil {
		return 0, err
	}
	var status struct{ Servers int }
	return status.Servers, errors.Join(json.NewDecoder(bytes.NewReader([]byte(body))).Decode(&status))
}

// reportDeparture tells the victim that it has departed, so that it renews.
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

// each calls f for 0 to n-1, all at once.
func each(n int, f func(i int)) {
	var wg sync.WaitGroup
	for i := range n {
		wg.Go(func() { f(i) })
	}
	wg.Wait()
}
