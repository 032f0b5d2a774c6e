package membership

import (
	"encoding/json"
	"fmt"
	"net/url"
	"testing"
	"time"

	"github.com/mimiktech/cluster/internal/wire"
)

// response is the registry's response to a renewal, with different times for all servers.
func response(b *testing.B, servers int, updated time.Time) []byte {
	b.Helper()
	it := wire.ItResource{ID: "d3b07384-d9a0-4c9b-8f5e-0c6a1c1b1e11", Type: "mds", PublicBaseURL: "https://mds.example.com/mds/v1"}
	for i := range servers {
		it.Servers = append(it.Servers, wire.Server{
			ServerID:       fmt.Sprintf("%08d-4f1c-4a56-9a3b-0d5f6c7e8a9b", i),
			ClusterBaseURL: fmt.Sprintf("http://10.0.%d.%d:8080/mds/v1", i/250, i%250),
			Location:       json.RawMessage(`{"type":"Point","coordinates":[-123.1207,49.2827]}`),
			CreatedAt:      time.UnixMilli(int64(i)),
			UpdatedAt:      updated.Add(time.Duration(i) * time.Millisecond),
		})
	}
	body, err := json.Marshal(it)
	if err != nil {
		b.Fatal(err)
	}
	return body
}

func decode(b *testing.B, body []byte) wire.ItResource {
	b.Helper()
	var it wire.ItResource
	if err := json.Unmarshal(body, &it); err != nil {
		b.Fatal(err)
	}
	return it
}

func parse(s wire.Server) (*url.URL, error) { return url.Parse(s.ClusterBaseURL) }

// BenchmarkRenewal measures a renewal in a cluster of a thousand servers, without its request: it
// decodes the response, makes a view of it, and reconciles that with the current one. Only the last
// step is done with the state locked.
func BenchmarkRenewal(b *testing.B) {
	body := response(b, 1000, time.UnixMilli(2e12))
	it := decode(b, body)
	before := New(decode(b, response(b, 1000, time.UnixMilli(1e12))), parse, View{})
	answered := New(it, parse, before)
	b.Run("whole", func(b *testing.B) {
		b.ReportAllocs()
		b.SetBytes(int64(len(body)))
		for b.Loop() {
			New(decode(b, body), parse, before).Reconcile(before, before)
		}
	})
	b.Run("decode", func(b *testing.B) {
		b.ReportAllocs()
		b.SetBytes(int64(len(body)))
		for b.Loop() {
			decode(b, body)
		}
	})
	b.Run("new", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			New(it, parse, before)
		}
	})
	b.Run("new to a node with an empty view", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			New(it, parse, View{})
		}
	})
	b.Run("reconcile", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			answered.Reconcile(before, before)
		}
	})
}

// BenchmarkMerge merges announcements into a view of a thousand servers.
func BenchmarkMerge(b *testing.B) {
	view := New(decode(b, response(b, 1000, time.UnixMilli(1e12))), parse, View{})
	for _, announced := range []int{1, 1000} {
		news := New(decode(b, response(b, announced, time.UnixMilli(2e12))), parse, view)
		b.Run(fmt.Sprintf("announced=%d", announced), func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				view.Merge(news)
			}
		})
	}
}

func BenchmarkGet(b *testing.B) {
	view := New(decode(b, response(b, 1000, time.UnixMilli(1e12))), parse, View{})
	id := view.Peers()[777].ServerID
	b.ReportAllocs()
	for b.Loop() {
		if _, ok := view.Get(id); !ok {
			b.Fatal("not found")
		}
	}
}
