package freeport_test

import (
	"fmt"
	"net"
	"testing"

	"github.com/mimiktech/cluster/internal/freeport"
)

func TestNext(t *testing.T) {
	seen := map[int]bool{}
	for range 100 {
		port, err := freeport.Next(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if seen[port] {
			t.Errorf("got %d twice", port)
		}
		seen[port] = true
		ln, err := new(net.ListenConfig).Listen(t.Context(), "tcp", fmt.Sprintf("127.0.0.1:%d", port))
		if err != nil {
			t.Error(err)
			continue
		}
		defer ln.Close()
	}
}
