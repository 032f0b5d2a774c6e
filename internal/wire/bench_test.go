package wire_test

import (
	"encoding/json"
	"fmt"
	"testing"
	"time"

	"github.com/mimiktech/cluster/internal/wire"
)

// answer is what mIT answers in a cluster of that many servers.
func answer(b *testing.B, servers int) []byte {
	b.Helper()
	it := wire.ItResource{ID: "d3b07384-d9a0-4c9b-8f5e-0c6a1c1b1e11", Type: "mds", PublicBaseURL: "https://mds.example.com/mds/v1"}
	for i := range servers {
		it.Servers = append(it.Servers, wire.Server{
			ServerID:       fmt.Sprintf("%08d-4f1c-4a56-9a3b-0d5f6c7e8a9b", i),
			ClusterBaseURL: fmt.Sprintf("http://10.0.%d.%d:8080/mds/v1", i/250, i%250),
			Location:       json.RawMessage(`{"type":"Point","coordinates":[-123.1207,49.2827]}`),
			CreatedAt:      time.UnixMilli(int64(i)),
			UpdatedAt:      time.UnixMilli(2e12 + int64(i)),
		})
	}
	body, err := json.Marshal(wire.Registered{ItResource: &it})
	if err != nil {
		b.Fatal(err)
	}
	return body
}

func BenchmarkDecode(b *testing.B) {
	for _, servers := range []int{1, 1000} {
		body := answer(b, servers)
		b.Run(fmt.Sprintf("servers=%d", servers), func(b *testing.B) {
			b.ReportAllocs()
			b.SetBytes(int64(len(body)))
			for b.Loop() {
				var r wire.Registered
				if err := json.Unmarshal(body, &r); err != nil || len(r.ItResource.Servers) != servers {
					b.Fatal(r, err)
				}
			}
		})
	}
}

// BenchmarkEncode writes what was received, as an answer to an announcement does.
func BenchmarkEncode(b *testing.B) {
	for _, servers := range []int{1, 1000} {
		body := answer(b, servers)
		var r wire.Registered
		if err := json.Unmarshal(body, &r); err != nil {
			b.Fatal(err)
		}
		b.Run(fmt.Sprintf("servers=%d", servers), func(b *testing.B) {
			b.ReportAllocs()
			b.SetBytes(int64(len(body)))
			for b.Loop() {
				if _, err := json.Marshal(r.ItResource); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
