package cluster

import "testing"

// A node whose peers are told a loopback address is for this machine, and listens to no other.
func TestListenAddr(t *testing.T) {
	for ip, want := range map[string]string{"": ":8080", "10.0.0.1": ":8080", "127.0.0.1": "127.0.0.1:8080", "127.0.0.2": "127.0.0.2:8080"} {
		c := &Cluster{cfg: Config{LocalIPv4: ip, Port: 8080}}
		if got := c.listenAddr(); got != want {
			t.Errorf("for %q: %q, want %q", ip, got, want)
		}
	}
}
