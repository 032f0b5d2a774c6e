package main

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/mimiktech/cluster"
	"github.com/mimiktech/cluster/mit"
	"github.com/mimiktech/cluster/mit/command"
	"github.com/mimiktech/cluster/mit/etcd/internal/etcdtest"
)

const (
	signingKey = "the key that all replicas sign tokens with"
	maxWait    = 20 * time.Second
	// url is the public URL of all replicas; no server listens there.
	url = "http://mit.example.com"
)

// TestMain runs the program instead of the tests if the variable is set.
func TestMain(m *testing.M) {
	if os.Getenv("MIT_TEST_RUNS_MAIN") != "" {
		main()
		return
	}
	os.Exit(m.Run())
}

func program(t *testing.T, args ...string) *exec.Cmd {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), os.Args[0], args...)
	cmd.Env = append(os.Environ(), "MIT_TEST_RUNS_MAIN=1", "MIT_SIGNING_KEY="+signingKey, "MIT_CLIENT_SECRET=hunter2")
	return cmd
}

// A replica is a running program.
type replica struct {
	base string // where it listens
	cmd  *exec.Cmd
	log  *output
}

// startReplica starts a replica for the duration of the test.
func startReplica(t *testing.T, args ...string) *replica {
	t.Helper()
	r := &replica{cmd: program(t, append([]string{"--listen", "127.0.0.1:0", "--url", url, "--log", "debug"}, args...)...), log: &output{}}
	r.cmd.Stderr = r.log
	if err := r.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	exited := make(chan struct{})
	go func() {
		defer close(exited)
		_ = r.cmd.Wait() // how it ended is for the tests of signals
	}()
	t.Cleanup(func() {
		_ = r.cmd.Process.Signal(syscall.SIGTERM)
		select {
		case <-exited:
		case <-time.After(maxWait):
			t.Error("the replica does not end when it is told to")
			_ = r.cmd.Process.Kill()
			<-exited
		}
	})
	listening := regexp.MustCompile(`listening.*"address": ?"([^"]+)"`)
	for end := time.Now().Add(maxWait); ; time.Sleep(10 * time.Millisecond) {
		if m := listening.FindStringSubmatch(r.log.String()); m != nil {
			r.base = "http://" + m[1]
			return r
		}
		select {
		case <-exited:
			t.Fatalf("the replica ended: %s", r.log)
		default:
		}
		if time.Now().After(end) {
			t.Fatalf("the replica does not listen: %s", r.log)
		}
	}
}

// metrics returns the response of the replica's endpoint.
func (r *replica) metrics(t *testing.T) string {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, r.base+"/metrics", nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != http.StatusOK {
		t.Fatalf("%d, %v", resp.StatusCode, err)
	}
	return string(text)
}

// An output may be read while a program writes to it.
type output struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (o *output) Write(b []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.buf.Write(b)
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.buf.String()
}

// through sends requests for the public URL to one replica, as a load balancer does.
type through struct{ to *replica }

func (b *through) RoundTrip(r *http.Request) (*http.Response, error) {
	r = r.Clone(r.Context())
	r.URL.Host = strings.TrimPrefix(b.to.base, "http://")
	r.Host = ""
	return http.DefaultTransport.RoundTrip(r)
}

// join registers a node through a replica. The node never deregisters.
func join(t *testing.T, id string, via *through) *cluster.Cluster {
	t.Helper()
	c, err := cluster.New(cluster.Config{
		Type:             "example",
		ID:               id,
		Port:             8080,
		LocalIPv4:        "127.0.0.1",
		RegistryURL:      url + "/mIT/v1",
		RegistryAudience: url + "/mIT/v1",
		Issuer:           url + "/mST/v1/oauth/token",
		ClientID:         "example",
		ClientSecret:     "hunter2",
		ClientAccessKey:  signingKey,
		ClientAudience:   "example",
		PeerAudience:     "example",
	}, cluster.WithHTTPClient(&http.Client{Transport: via}), cluster.WithoutEnv())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	ctx, cancel := context.WithTimeout(t.Context(), maxWait)
	defer cancel()
	if _, err := c.Register(ctx); err != nil {
		t.Fatalf("node %s: %v", id, err)
	}
	return c
}

func serverIDs(c *cluster.Cluster) string {
	var ids []string
	for _, s := range c.Servers() {
		ids = append(ids, s.ServerID)
	}
	return strings.Join(ids, " ")
}

// Two replicas are one registry, and one is enough to serve it.
func TestReplicas(t *testing.T) {
	c := etcdtest.Run(t, 1)
	args := []string{"--etcd-endpoints", strings.Join(c.Endpoints, ", "), "--etcd-prefix", "/registry"}
	one, other := startReplica(t, args...), startReplica(t, args...)

	join(t, "a", &through{one})
	second := join(t, "b", &through{other})
	if got := serverIDs(second); got != "a b" {
		t.Errorf("b, registered through the other replica, lists %q", got)
	}

	if err := one.cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	third := join(t, "c", &through{other})
	if got := serverIDs(third); got != "a b c" {
		t.Errorf("c, registered after a replica was killed, lists %q", got)
	}

	again := startReplica(t, args...)
	fourth := join(t, "d", &through{again})
	if got := serverIDs(fourth); got != "a b c d" {
		t.Errorf("d, registered through a new replica, lists %q", got)
	}
	fourth.UnRegister(t.Context())
	fifth := join(t, "e", &through{other})
	if got := serverIDs(fifth); got != "a b c e" {
		t.Errorf("e, registered after d left, lists %q", got)
	}

	// A replica counts all servers, and the registrations that it has received.
	metrics := other.metrics(t)
	for _, line := range []string{
		`mimik_mit_servers{type="example"} 4`, `mimik_mit_registrations_total{type="example",kind="new"} 3`, `mimik_mit_store_ready 1`,
		`mimik_mit_store_duration_seconds_count{operation="put",outcome="ok"} 3`, `mimik_mit_expirations_total 0`,
	} {
		if !strings.Contains(metrics, "\n"+line+"\n") {
			t.Errorf("no line %s in:\n%s", line, metrics)
		}
	}

	kvs, err := c.Client(t).Get(t.Context(), "/registry/servers/example/e")
	if err != nil || len(kvs.Kvs) != 1 || !json.Valid(kvs.Kvs[0].Value) {
		t.Errorf("e is not where the documentation has it: %v, %v", kvs, err)
	}
	for _, r := range []*replica{one, other, again} {
		for _, secret := range []string{signingKey, "hunter2"} {
			if strings.Contains(r.log.String()+metrics, secret) {
				t.Errorf("the log or the metrics tell %q", secret)
			}
		}
	}
}

// With --jwks-url, the registry accepts the tokens of another token service, and of no other.
func TestJWKSOfAnotherTokenService(t *testing.T) {
	c := etcdtest.Run(t, 1)
	tokens, others := startTokenService(t), startTokenService(t)
	r := startReplica(t, "--etcd-endpoints", strings.Join(c.Endpoints, ", "), "--jwks-url", tokens+"/jwks.json", "--jwks-issuer", tokens+"/token")
	for issuer, want := range map[string]bool{tokens: true, others: false} {
		n, err := cluster.New(cluster.Config{
			Type: "example", Port: 8080, LocalIPv4: "127.0.0.1", RegistryURL: r.base + "/mIT/v1", RegistryAudience: url + "/mIT/v1",
			Issuer: issuer + "/token", ClientID: "example", ClientSecret: "hunter2", ClientAccessKey: signingKey, ClientAudience: "example",
		}, cluster.WithoutEnv())
		if err != nil {
			t.Fatal(err)
		}
		defer n.Close()
		ctx, cancel := context.WithTimeout(t.Context(), maxWait)
		if !want {
			ctx, cancel = context.WithTimeout(t.Context(), time.Second) // it would try again
		}
		_, err = n.Register(ctx)
		cancel()
		rejected, ok := errors.AsType[*cluster.StatusError](err)
		if (err == nil) != want || !want && (!ok || rejected.Code != http.StatusForbidden) {
			t.Errorf("registered with a token of the service of the JWKS (%v): %v", want, err)
		}
	}
}

// startTokenService serves a token service with a key and a JWKS of its own, and returns its URL.
func startTokenService(t *testing.T) string {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	mux := http.NewServeMux()
	srv := httptest.NewServer(mux)
	t.Cleanup(srv.Close)
	tokens, err := mit.NewTokenService(mit.TokenConfig{
		Issuer: srv.URL + "/token", Key: signingKey, SigningKey: key,
		Clients: []mit.Client{{ID: "example", Secret: "hunter2", Type: "example"}},
	})
	if err != nil {
		t.Fatal(err)
	}
	mux.Handle("/token", tokens)
	mux.HandleFunc("/jwks.json", tokens.ServeJWKS)
	return srv.URL
}

// The program prints one line with the endpoint and the cause, and exits with status 1.
func TestUnreachable(t *testing.T) {
	cmd := program(t, "--listen", "127.0.0.1:0", "--etcd-endpoints", "127.0.0.1:1", "--etcd-timeout", "1s")
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	start := time.Now()
	err := cmd.Run()
	if exit, ok := errors.AsType[*exec.ExitError](err); !ok || exit.ExitCode() != 1 {
		t.Errorf("ended with %v, want exit status 1", err)
	}
	if took := time.Since(start); took > 4*time.Second {
		t.Errorf("it took %v", took)
	}
	got := stderr.String()
	if strings.Count(got, "\n") != 1 || !strings.Contains(got, "127.0.0.1:1:") || !strings.Contains(got, "connection refused") {
		t.Errorf("stderr: %q", got)
	}
	if stdout.Len() > 0 {
		t.Errorf("stdout: %q", stdout.String())
	}
}

// The program has all flags of the in-memory program and its own.
func TestHelp(t *testing.T) {
	out, err := program(t, "--help").Output()
	if err != nil {
		t.Fatal(err)
	}
	var memory bytes.Buffer
	if err := (command.Command{}).Run(t.Context(), []string{"--help"}, &memory, io.Discard); err != nil {
		t.Fatal(err)
	}
	flags := regexp.MustCompile(`(?m)^ +-([\w-]+)`)
	want := []string{"etcd-endpoints", "etcd-prefix", "etcd-cacert", "etcd-cert", "etcd-key", "etcd-user", "etcd-password-file", "etcd-timeout"}
	for _, m := range flags.FindAllStringSubmatch(memory.String(), -1) {
		want = append(want, m[1])
	}
	if len(want) < 15 {
		t.Fatalf("flags of the program in memory not found: %v", want)
	}
	got := map[string]bool{}
	for _, m := range flags.FindAllStringSubmatch(string(out), -1) {
		got[m[1]] = true
	}
	for _, name := range want {
		if !got[name] {
			t.Errorf("no flag --%s", name)
		}
	}
	for _, part := range []string{"in etcd", "MIT_ETCD_PASSWORD", "127.0.0.1:2379"} {
		if !strings.Contains(string(out), part) {
			t.Errorf("the help does not say %s", part)
		}
	}
}
