package main

import (
	"flag"
	"os"
	"testing"
	"time"

	"github.com/mimiktech/cluster/clustertest"
	"github.com/mimiktech/cluster/internal/testrun"
)

func TestMain(m *testing.M) {
	flag.Parse()
	testrun.CollectRarely()
	os.Exit(m.Run())
}

// full reports whether the environment variable SIMULATION asks for the full length of the tests.
// If not, it logs what runs instead.
func full(t *testing.T, instead string) bool {
	t.Helper()
	if os.Getenv("SIMULATION") == "full" {
		return true
	}
	t.Logf("shortened: %s. SIMULATION=full runs it in full", instead)
	return false
}

// registerAll registers new nodes at that interval, and fails the test if one of them cannot.
func registerAll(t *testing.T, w *clustertest.World, count int, interval time.Duration) {
	t.Helper()
	for range count {
		n := w.Add()
		go func() {
			if _, err := n.Register(t.Context()); err != nil {
				t.Error(err)
			}
		}()
		time.Sleep(interval)
	}
}
