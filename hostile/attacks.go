package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

const mebibyte = 1 << 20

// An attack is one kind of input. run sends it, and returns an error if the attack has achieved
// something. check finds what shows only later, such as a secret in the log, and returns it as an
// error.
type attack struct {
	name   string
	inputs int   // that must arrive at the node; an attack that does not arrive shows nothing
	memory int64 // bytes that the node may need, beyond those at rest
	files  int   // descriptors, in the same way
	bare   bool  // the victim is a node with a bare http.Server
	run    func(ctx context.Context, w *world) (report, error)
	check  func(ctx context.Context, w *world) error
}

// A report says what an attack did.
type report struct {
	arrived int    // inputs that the node has received
	figure  string // for the table
}

func attacks() []attack {
	return []attack{
		{name: "text", inputs: len(hostileTexts()), memory: 100 * mebibyte, files: 40, run: repeatTokens, check: checkTexts},
		{name: "tokens", inputs: 300, memory: 150 * mebibyte, files: 320, run: sendTokens},
		{name: "slow", inputs: 500, memory: 100 * mebibyte, files: 520, bare: true, run: openSlowConnections},
		{name: "long entries", inputs: 200, memory: 150 * mebibyte, files: 40, run: announceLongEntries},
		{name: "escapes", inputs: 40, memory: 150 * mebibyte, files: 40, run: announceEscapes},
		{name: "gzip", inputs: 60, memory: 500 * mebibyte, files: 100, run: callBombs},
		{name: "heads", inputs: 50, memory: 30 * mebibyte, files: 100, run: callEndlessHeads},
		{name: "forged", inputs: 200, memory: 100 * mebibyte, files: 100, run: announceForged},
		{name: "metadata", inputs: 5, memory: 50 * mebibyte, files: 40, run: announceMetadata},
	}
}

// hostileTexts are responses of the registry. %s stands for the authorization header that the
// registry has received.
func hostileTexts() []string {
	const failed, chunked = "HTTP/1.1 500 Error\r\nConnection: close\r\n\r\n", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
	return []string{
		"HTTP/1.1 %s\r\n\r\n", "%s\r\n\r\n", "HTTP/1.1 200 OK\r\n%s\r\n\r\n", "HTTP/1.1 200 OK\r\nContent-Length: %s\r\n\r\n",
		"HTTP/1.1 200 OK\r\nTransfer-Encoding: %s\r\n\r\n", chunked + "%s\r\n", chunked + "0\r\n%s\r\n\r\n",
		"HTTP/1.1 200 " + strings.Repeat("\xff", 9*mebibyte), failed + `{"message":"` + strings.Repeat("\xff", 63<<10) + `"}`,
		failed + `{"message":"\u202e%s"}`, failed + `{"message":"no","info":{"a":"%s"}}`,
		"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}HTTP/1.1 200 %s\r\n\r\n",
	}
}

// repeatTokens lets the registry repeat the token of the victim, in many ways.
func repeatTokens(ctx context.Context, w *world) (report, error) {
	raws := hostileTexts()
	var requests, sent atomic.Int64
	answer := answerFunc(func(authorization string) []byte {
		i := int(requests.Add(1)) - 1
		if i/2 >= len(raws) || i%2 == 1 { // the registry gets every second one
			return nil
		}
		sent.Add(1)
		return []byte(strings.ReplaceAll(raws[i/2], "%s", authorization))
	})
	w.answer.Store(&answer)
	defer w.answer.Store(nil)
	// Many renewals are due: after each failure, and after each report of the victim's departure.
	token, err := w.token(ctx)
	if err != nil {
		return report{}, err
	}
	longest := 0
	for i := 0; i < 150 && requests.Load() < int64(2*len(raws)); i++ {
		w.reportDeparture(ctx, token)
		status, _ := w.victim.get(ctx, "/status", time.Second) // it may be busy
		longest = max(longest, len(status))
		if sleep(ctx, 200*time.Millisecond) != nil {
			break
		}
	}
	if longest > maxStatus {
		err = fmt.Errorf("a status of %d bytes", longest)
	}
	return report{int(sent.Load()), fmt.Sprintf("status of %d bytes, log of %d KiB", longest, len(w.victim.log.String())>>10)}, err
}

// The bounds of what the hostile texts can add, in bytes.
const (
	maxStatus = 8 << 10
	maxLog    = mebibyte / 4
)

func checkTexts(ctx context.Context, w *world) error {
	text := w.victim.log.String()
	status, err := w.victim.get(ctx, "/status", 5*time.Second)
	if err != nil {
		return err
	}
	switch {
	case !strings.Contains(text, "registration failed"):
		return errors.New("the victim has not noticed the responses of the registry")
	case strings.Contains(text+status, "eyJ"):
		return errors.New("a token is in the log or in the status")
	case strings.Contains(text+status, clientSecret) || strings.Contains(text+status, key):
		return errors.New("a secret is in the log or in the status")
	case len(status) > maxStatus || len(text) > maxLog:
		return fmt.Errorf("a status of %d bytes, a log of %d", len(status), len(text))
	}
	return nil
}

// sendTokens sends tokens of three lengths with a bad signature and a bad claim, a hundred at a
// time. The shortest ones must be rejected for their signature. The second length exceeds the limit
// of a token, the third that of a head. The reason of a rejection shows which check came first.
func sendTokens(ctx context.Context, w *world) (report, error) {
	var rejected, unsafe atomic.Int64
	var figure atomic.Value
	kinds := []struct {
		bytes  int
		status int
		reason string
	}{
		{15 << 10, http.StatusForbidden, "token with a bad signature"},
		{60 << 10, http.StatusForbidden, "token of more than"},
		{933 << 10, http.StatusRequestHeaderFieldsTooLarge, ""},
	}
	each(100, func(int) {
		for _, kind := range kinds {
			status, body, err := w.sendToken(ctx, kind.bytes)
			switch {
			case ctx.Err() != nil:
			case status == kind.status && strings.Contains(body, kind.reason):
				rejected.Add(1)
			case kind.reason == "" && isClosed(err): // while the header is being sent
				rejected.Add(1)
			default:
				unsafe.Add(1)
				figure.Store(fmt.Sprintf("a token of %d KiB got %d, %.200q, %v", kind.bytes>>10, status, body, err))
			}
		}
	})
	r := report{arrived: int(rejected.Load()), figure: "rejected before claims are read"}
	if n := unsafe.Load(); n > 0 {
		return r, fmt.Errorf("%d tokens were not rejected as they must be: %v", n, figure.Load())
	}
	return r, nil
}

// sendToken sends a token of a length to the victim.
func (w *world) sendToken(ctx context.Context, length int) (status int, body string, err error) {
	// {"exp":"x","x":"xxx…"}
	claims := "eyJleHAiOiJ4IiwieCI6Inh4" + strings.Repeat("eHh4", length/4-20) + "In0"
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, w.victim.url+"/mds/v1/things", http.NoBody)
	if err != nil {
		return 0, "", err
	}
	req.Header.Set("Authorization", "Bearer eyJhbGciOiJIUzI1NiIsInR5cCI6IkpXVCJ9."+claims+".c2lnbmF0dXJl")
	return do(http.DefaultClient, req)
}

// isClosed reports whether the node has closed a connection while a request was being sent.
func isClosed(err error) bool {
	return errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE) || errors.Is(err, io.EOF)
}

// openSlowConnections opens connections that send the beginning of a request, and waits for the
// node to close each.
func openSlowConnections(ctx context.Context, w *world) (report, error) {
	const connections = 500
	var closed atomic.Int64
	start := time.Now()
	each(connections, func(int) {
		c, err := new(net.Dialer).DialContext(ctx, "tcp", strings.TrimPrefix(w.victim.url, "http://"))
		if err != nil {
			return
		}
		defer c.Close()
		_ = c.SetDeadline(time.Now().Add(15 * time.Second))
		if _, err := c.Write([]byte("GET /healthz HTTP/1.1\r\nHost: a\r\nX-A:")); err != nil {
			return
		}
		if _, err := io.Copy(io.Discard, c); err == nil || isClosed(err) {
			closed.Add(1)
		}
	})
	n := int(closed.Load())
	r := report{n, fmt.Sprintf("%d connections closed after %v", n, time.Since(start).Round(time.Second))}
	if n < connections {
		return r, fmt.Errorf("%d slow connections were not closed", connections-n)
	}
	return r, nil
}

// do sends a request, and reads the response.
func do(client *http.Client, req *http.Request) (status int, body string, err error) {
	resp, err := client.Do(req)
	if err != nil {
		return 0, "", err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(io.LimitReader(resp.Body, maxBody))
	return resp.StatusCode, string(b), err
}

// each calls f for 0 to n-1, all at once.
func each(n int, f func(i int)) {
	var wg sync.WaitGroup
	for i := range n {
		wg.Go(func() { f(i) })
	}
	wg.Wait()
}
