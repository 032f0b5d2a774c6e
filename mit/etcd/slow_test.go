package etcd_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/mimiktech/cluster/mit/etcd"
	"github.com/mimiktech/cluster/mit/etcd/internal/etcdtest"
)

// The timeout of the configuration is the one that applies: a request to etcd may take most of it.
func TestSlowEtcd(t *testing.T) {
	t.Parallel()
	for _, test := range []struct{ delay, timeout time.Duration }{
		{1500 * time.Millisecond, 5 * time.Second},
		{2500 * time.Millisecond, 8 * time.Second}, // longer than any interval of the store
	} {
		t.Run(test.delay.String(), func(t *testing.T) {
			t.Parallel()
			c := etcdtest.Run(t, 1)
			p := etcdtest.NewProxy(t, c.Endpoints[0])
			s := open(t, etcd.Config{Endpoints: []string{p.Addr}, Timeout: test.timeout})
			p.Slow(test.delay, 0)
			for range 2 { // the second needs no lease
				start := time.Now()
				put(t, s, "a")
				took := time.Since(start)
				t.Logf("registered in %v", took)
				if took > test.timeout {
					t.Errorf("it took %v", took)
				}
			}
			if err := s.Delete(t.Context(), mds, "a"); err != nil {
				t.Error(err)
			}
			put(t, s, "a")
			for end := time.Now().Add(2 * test.timeout); time.Now().Before(end); time.Sleep(50 * time.Millisecond) {
				if err := ready(s); err != nil {
					t.Fatal(err)
				}
			}
		})
	}
}

// Requests to a member that does not respond are sent to another, long before their timeout.
func TestSilentMember(t *testing.T) {
	t.Parallel()
	c := etcdtest.Run(t, 3)
	var endpoints []string
	var proxies []*etcdtest.Proxy
	for _, endpoint := range c.Endpoints {
		p := etcdtest.NewProxy(t, endpoint)
		proxies, endpoints = append(proxies, p), append(endpoints, p.Addr)
	}
	s := open(t, etcd.Config{Endpoints: endpoints, Timeout: 4 * time.Second})
	for i := range 12 { // through all members
		put(t, s, fmt.Sprint(i))
	}
	proxies[(c.Leader()+1)%3].Blackhole()
	for i := range 12 {
		start := time.Now()
		put(t, s, fmt.Sprint(i))
		if took := time.Since(start); took > 3*time.Second {
			t.Errorf("renewal %d took %v", i, took)
		}
	}
}

// A list that takes longer than the timeout to load is loaded all the same.
func TestSlowLink(t *testing.T) {
	t.Parallel()
	c := etcdtest.Run(t, 1)
	const servers, size = 1500, 2000
	value := fmt.Sprintf(`{"clusterBaseUrl":"http://10.0.0.1/%s","createdAt":"2026-01-02T03:04:05Z","updatedAt":"2026-01-02T03:04:05Z"}`,
		strings.Repeat("x", size))
	client := c.Client(t)
	for i := range servers {
		if _, err := client.Put(t.Context(), fmt.Sprintf("/mit/servers/mds/%04d", i), value); err != nil {
			t.Fatal(err)
		}
	}
	p := etcdtest.NewProxy(t, c.Endpoints[0])
	p.Slow(0, 300_000)
	const timeout = 6 * time.Second
	start := time.Now()
	s := open(t, etcd.Config{Endpoints: []string{p.Addr}, Timeout: timeout})
	took := time.Since(start)
	t.Logf("loaded in %v", took)
	if took < 3*timeout/2 {
		t.Fatalf("3 MB took %v: the link is not slow", took)
	}
	res, err := s.Get(t.Context(), mds)
	if err != nil || len(res.Servers) != servers {
		t.Fatalf("%d servers, %v; want %d", len(res.Servers), err, servers)
	}
	if err := ready(s); err != nil {
		t.Error(err)
	}
	put(t, s, "0000")
}
