package clustertest_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/mimiktech/cluster/clustertest"
)

// timeout is what the requests of these tests are given.
const timeout = 10 * time.Second

// An outcome is all that a client learns.
type outcome struct {
	status int
	body   string
	header http.Header
	err    error // of the request, or of reading the answer
	took   time.Duration
}

func fetch(t *testing.T, n *clustertest.Network, from, url string) outcome {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), timeout)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, url, strings.NewReader("ping"))
	if err != nil {
		t.Fatal(err)
	}
	start := time.Now()
	resp, err := n.Client(from).Do(req)
	if err != nil {
		return outcome{err: err, took: time.Since(start)}
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	return outcome{resp.StatusCode, string(body), resp.Header, err, time.Since(start)}
}

// answering answers with a word.
func answering(word string) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, word) })
}

// want checks what an outcome must be: an error of that kind, or a body.
func (o outcome) want(t *testing.T, body string, kind error, took time.Duration) {
	t.Helper()
	if !errors.Is(o.err, kind) {
		t.Errorf("got error %v, want %v", o.err, kind)
	}
	if o.body != body {
		t.Errorf("got body %q, want %q", o.body, body)
	}
	if o.took != took {
		t.Errorf("took %v, want %v", o.took, took)
	}
}

func isNotFound(err error) bool {
	dns, ok := errors.AsType[*net.DNSError](err)
	return ok && dns.IsNotFound
}

func isOp(err error, op string) bool {
	oe, ok := errors.AsType[*net.OpError](err)
	return ok && oe.Op == op
}
