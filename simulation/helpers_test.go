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
