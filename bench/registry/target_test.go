//go:build linux

package main

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/mimiktech/cluster/mit"
)

// The number of nodes of a test, and of registrations after which some faults begin or end.
const (
	testNodes = 30
	early     = testNodes + 5
)

// A fault changes how a registry responds to its nth registration. It reports whether it has
// responded itself.
type fault func(w http.ResponseWriter, r *http.Request, n int64) bool

// faults returns the faults by name, those of registrations and those of health checks.
func faults() (registrations, health map[string]fault) {
	var large sync.Once
	var mu sync.Mutex
	var kept [][]byte
	keep := func(bytes int) {
		b := make([]byte, bytes)
		for i := 0; i < bytes; i += 4096 {
			b[i] = 1 // a page counts when it is written
		}
		mu.Lock()
		defer mu.Unlock()
		kept = append(kept, b)
	}
	later := func(f fault) fault {
		return func(w http.ResponseWriter, r *http.Request, n int64) bool { return n > early && f(w, r, n) }
	}
	first := func(f fault) fault {
		return func(w http.ResponseWriter, r *http.Request, n int64) bool { return n <= early && f(w, r, n) }
	}
	fail := func(w http.ResponseWriter, _ *http.Request, _ int64) bool {
		w.WriteHeader(http.StatusInternalServerError)
		return true
	}
	exit := func(http.ResponseWriter, *http.Request, int64) bool { os.Exit(1); return true }
	sleep := func(d time.Duration) fault {
		return func(http.ResponseWriter, *http.Request, int64) bool { time.Sleep(d); return false }
	}
	registrations = map[string]fault{
		"silent": func(_ http.ResponseWriter, r *http.Request, _ int64) bool { <-r.Context().Done(); return true },
		"late":   sleep(300 * time.Millisecond),
		"reject later": later(func(w http.ResponseWriter, _ *http.Request, _ int64) bool {
			w.Header().Set("Retry-After", "1")
			w.WriteHeader(http.StatusServiceUnavailable)
			return true
		}),
		"hang":       first(sleep(300 * time.Millisecond)),
		"fail":       fail,
		"fail later": later(fail),
		"exit":       exit,
		"exit later": later(exit),
		"no list": first(func(w http.ResponseWriter, _ *http.Request, _ int64) bool {
			_, _ = io.WriteString(w, "{}")
			return true
		}),
		"truncate": first(func(w http.ResponseWriter, _ *http.Request, _ int64) bool {
			w.Header().Set("Content-Length", "10")
			_, _ = io.WriteString(w, "{")
			return true
		}),
		"large": func(http.ResponseWriter, *http.Request, int64) bool {
			large.Do(func() { keep(96 << 20) })
			return false
		},
		"leak later": later(func(http.ResponseWriter, *http.Request, int64) bool { keep(4 << 20); return false }),
	}
	return registrations, map[string]fault{"unhealthy": fail, "slow health": sleep(time.Second)}
}

// serveFault runs a registry with faults, which may be nil. It prints its URL as the program does.
func serveFault(registration, health fault) error {
	const issuer = "load"
	var clients []mit.Client
	for _, typ := range []string{typeGood, typeHostile} {
		clients = append(clients, mit.Client{ID: typ, Secret: clientSecret, Type: typ})
	}
	tokens, err := mit.NewTokenService(mit.TokenConfig{Issuer: issuer, Key: signingKey, Clients: clients})
	if err != nil {
		return err
	}
	registry, err := mit.NewRegistry(mit.NewMemory(), mit.RegistryConfig{
		Issuer: issuer, Audience: "mIT", Keys: []string{signingKey}, BasePath: registryPath,
	})
	if err != nil {
		return err
	}
	var n atomic.Int64
	mux := http.NewServeMux()
	mux.Handle(issuerPath, tokens)
	mux.Handle(registryPath+"/", registry)
	mux.HandleFunc("POST "+resourcesPath, func(w http.ResponseWriter, r *http.Request) {
		if registration == nil || !registration(w, r, n.Add(1)) {
			registry.ServeHTTP(w, r)
		}
	})
	mux.HandleFunc(healthPath, func(w http.ResponseWriter, r *http.Request) {
		if health == nil || !health(w, r, 0) {
			registry.ServeHTTP(w, r)
		}
	})
	ln, err := net.Listen("tcp", "127.0.0.1:0") //nolint:noctx // it ends with the process
	if err != nil {
		return err
	}
	fmt.Printf("http://%s\n", ln.Addr())
	return http.Serve(ln, mux) //nolint:gosec // for the tests of this package
}
