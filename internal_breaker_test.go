package cluster

import (
	"context"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/mimiktech/cluster/internal/roster"
	"github.com/mimiktech/cluster/internal/wire"
)

// Peers that come, time out once and go for good are forgotten, whatever they were given.
func TestBreakersForgetWhoIsGone(t *testing.T) {
	for _, timeout := range []time.Duration{time.Second, 10 * time.Second, time.Minute} {
		t.Run(timeout.String(), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				bs := newBreakers(Config{RequestTimeout: 10 * time.Second, MaxInFlight: 16})
				for i := range 1000 {
					p := &roster.Peer{Server: wire.Server{ServerID: fmt.Sprint("node-", i)}}
					began := time.Now()
					if turn, err := bs.ask(p, 5, timeout, false, false); turn != nil || err != nil {
						t.Fatal(turn, err)
					}
					time.Sleep(timeout)
					bs.told(p, &UnreachableError{Err: context.DeadlineExceeded}, false, began, timeout)
					time.Sleep(time.Minute)
				}
				if got := len(bs.of); got > 20 {
					t.Errorf("%d peers are remembered", got)
				}
			})
		})
	}
}
