package cluster

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/url"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/mimiktech/cluster/internal/membership"
	"github.com/mimiktech/cluster/internal/wire"
)

// SlotsInFlight returns the number of slots of the scheduler that are taken.
func SlotsInFlight(c *Cluster) int { return c.peers.scheduler.InFlight() }

// Requests to peers do not use a proxy: it would see their tokens, and would dial addresses that
// the policy forbids. The test inspects the transports, because net/http never takes a proxy from
// the environment for the loopback addresses that a test can listen on.
func TestNoProxyTowardsPeers(t *testing.T) {
	r := newTransports(nil, PeerPolicy{}, 256)
	if len(r.owned) != 3 || r.owned[0] != r.backend || r.owned[1] != r.peers || r.owned[2] != r.newConn {
		t.Fatalf("not the transports for the back end and the peers: %v", r.owned)
	}
	if r.owned[0].Proxy == nil {
		t.Error("requests to the registry and the token service do not use the proxy of the environment")
	}
	for _, transport := range r.owned[1:] {
		if transport.Proxy != nil || transport.OnProxyConnectResponse != nil {
			t.Error("requests to peers use a proxy")
		}
	}
}

// Of several calls that fail over from one replica at the same time, only the first switches.
func TestPromoteOnlyOnce(t *testing.T) {
	r := newReplicas("a,b,c")
	previous, urls := r.order(false)
	if !r.promote(previous, urls[1]) {
		t.Error("the first call did not switch")
	}
	if r.promote(previous, urls[2]) {
		t.Error("a call that began before the switch switched again")
	}
	if current, _ := r.order(false); current != urls[1] {
		t.Errorf("the current replica is %s, want %s", current, urls[1])
	}
}

// A node that announces a loopback address listens on that address only.
func TestListenAddr(t *testing.T) {
	for ip, want := range map[string]string{"": ":8080", "10.0.0.1": ":8080", "127.0.0.1": "127.0.0.1:8080", "127.0.0.2": "127.0.0.2:8080"} {
		c := &Cluster{cfg: Config{LocalIPv4: ip, Port: 8080}}
		if got := c.listenAddr(); got != want {
			t.Errorf("for %q: %q, want %q", ip, got, want)
		}
	}
}

// Splitting an array at its commas gives the same elements as decoding it.
func FuzzAppendData(f *testing.F) {
	for _, seed := range []string{
		``, `null`, `1.50`, `"a,[]"`, `{"a":[1,2]}`, `[]`, `[ ]`, `[1]`, `[ 1 , 2 ]`, `[[1,2],{"a":[3,"]"]},"\"],[\\",null]`, `["\\"]`, `["é,\u002c"]`, `[{},[],[[]]]`,
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		data = bytes.TrimSpace(data)
		if len(data) > 0 && !json.Valid(data) {
			return // appendData is only called with valid JSON
		}
		var want []json.RawMessage
		switch {
		case len(data) == 0:
		case data[0] != '[':
			want = []json.RawMessage{data}
		default:
			if err := json.Unmarshal(data, &want); err != nil {
				t.Fatal(err)
			}
		}
		before := json.RawMessage(`"before"`)
		got := appendData([]json.RawMessage{before}, data)
		if diff := cmp.Diff(append([]json.RawMessage{before}, want...), got); diff != "" {
			t.Errorf("%s (-want +got):\n%s", data, diff)
		}
	})
}

// BenchmarkReadEnvelope decodes small and large responses of peers.
func BenchmarkReadEnvelope(b *testing.B) {
	base, err := url.Parse("http://mds-1:8080/mds/v1")
	if err != nil {
		b.Fatal(err)
	}
	peer := &membership.Peer{Server: wire.Server{ServerID: "mds-1"}, Base: base}
	for _, things := range []int{1, 100, 10_000} {
		body := fmt.Appendf(nil, `{"data":[%s{"id":"last"}],"server":{"serverId":"mds-1"}}`,
			bytes.Repeat([]byte(`{"id":"d3b07384-d9a0-4c9b-8f5e-0c6a1c1b1e11","name":"thing"},`), things-1))
		b.Run(fmt.Sprintf("things=%d", things), func(b *testing.B) {
			b.ReportAllocs()
			b.SetBytes(int64(len(body)))
			for b.Loop() {
				if _, data, err := readEnvelope(body, peer, "GET"); err != nil || data == nil {
					b.Fatal(err)
				}
			}
		})
	}
}
