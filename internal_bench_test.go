package cluster

import (
	"bytes"
	"fmt"
	"net/url"
	"testing"

	"github.com/mimiktech/cluster/internal/membership"
	"github.com/mimiktech/cluster/internal/wire"
)

// BenchmarkReadEnvelope reads what a peer answered: little, and a lot.
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
