package clustertest_test

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/mimiktech/cluster/clustertest"
	"github.com/mimiktech/cluster/internal/testrun"
)

func TestMain(m *testing.M) {
	flag.Parse()
	testrun.CollectRarely()
	os.Exit(m.Run())
}

const timeout = 10 * time.Second // of each request

// A result is what a client sees of a request.
type result struct {
	status int
	body   string
	header http.Header
	err    error // of the request, or of reading the response body
	took   time.Duration
}

func fetch(t *testing.T, n *clustertest.Network, from, url string) result {
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
		return result{err: err, took: time.Since(start)}
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	return result{resp.StatusCode, string(body), resp.Header, err, time.Since(start)}
}

func respondWith(body string) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, body) })
}

// want checks the body, the error (with errors.Is) and the duration of a result.
func (r result) want(t *testing.T, body string, err error, took time.Duration) {
	t.Helper()
	if !errors.Is(r.err, err) {
		t.Errorf("got error %v, want %v", r.err, err)
	}
	if r.body != body {
		t.Errorf("got body %q, want %q", r.body, body)
	}
	if r.took != took {
		t.Errorf("took %v, want %v", r.took, took)
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
