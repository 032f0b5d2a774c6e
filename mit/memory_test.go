package mit_test

import (
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
			t.Errorf("%d log lines for one expiry: %v", n, logs.All())
		}
	})
}

// If the machine's clock goes back, no entry gets an older date than one before it.
func TestMemoryClockGoesBack(t *testing.T) {
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	m := mit.NewMemory()
	m.SetClock(func() time.Time { return now })
	put := func(id string) time.Time {
		t.Helper()
		res, err := m.Put(t.Context(), mit.Registration{Type: "mds", ServerID: id}, 100*365*24*time.Hour)
		if err != nil {
			t.Fatal(err)
		}
		for _, s := range res.Servers {
			if s.ServerID == id {
				return s.UpdatedAt
			}
		}
		t.Fatalf("%s is not listed", id)
		return time.Time{}
	}
	first := put("a")
	if err := m.Delete(t.Context(), mit.ResourceID("mds"), "a"); err != nil {
		t.Fatal(err)
	}
	now = now.Add(-time.Hour)
	for _, id := range []string{"a", "b", "a"} {
		if got := put(id); got.Before(first) {
			t.Errorf("%s has the date %v, which is before %v", id, got, first)
		}
	}
}
