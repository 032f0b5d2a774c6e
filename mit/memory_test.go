package mit_test

import (
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"

	"github.com/mimiktech/cluster/mit"
	"github.com/mimiktech/cluster/mit/storetest"
)

func TestMemory(t *testing.T) {
	storetest.Run(t, func(*testing.T) mit.Store { return mit.NewMemory() }, storetest.Options{Run: synctest.Test})
}

func TestMemoryZeroValue(t *testing.T) {
	storetest.Run(t, func(*testing.T) mit.Store { return new(mit.Memory) }, storetest.Options{Run: synctest.Test, TTL: time.Millisecond * 20})
}

func TestMemoryLogsExpiry(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		core, logs := observer.New(zap.InfoLevel)
		m := mit.NewMemory()
		m.Logger = zap.New(core)
		if _, err := m.Put(t.Context(), mit.Registration{Type: "mds", ServerID: "a"}, time.Second); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Second)
		for range 2 {
			if _, err := m.Get(t.Context(), mit.ResourceID("mds")); err != nil {
				t.Fatal(err)
			}
		}
		if n := logs.FilterMessage("server expired").FilterField(zap.String("serverId", "a")).Len(); n != 1 {
			t.Errorf("%d lines for one expiry: %v", n, logs.All())
		}
	})
}

// The id is part of the contract: nodes that outlive the registry still match it.
func TestResourceID(t *testing.T) {
	const want = "09d8f1f0-7477-5c54-9770-74879a6d3b25"
	if got := mit.ResourceID("mds"); got != want {
		t.Errorf("ResourceID(mds) = %s, want %s", got, want)
	}
	if mit.ResourceID("mds") == mit.ResourceID("MDS") {
		t.Error("types that differ in case share a resource")
	}
}

func BenchmarkMemoryRenew(b *testing.B) {
	for _, n := range []int{100, 10_000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			m := mit.NewMemory()
			put := func(i int) {
				if _, err := m.Put(b.Context(), mit.Registration{Type: "mds", ServerID: fmt.Sprint(i)}, time.Hour); err != nil {
					b.Fatal(err)
				}
			}
			for i := range n {
				put(i)
			}
			i := 0
			for b.Loop() {
				put(i % n)
				i++
			}
		})
	}
}
