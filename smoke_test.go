package cluster_test

import (
	"encoding/json"
	"testing"
	"testing/synctest"
	"time"

	"github.com/mimiktech/cluster"
	"github.com/mimiktech/cluster/clustertest"
)

func TestSmoke(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := clustertest.Start(t, 4)
		for _, n := range w.Nodes {
			if len(n.Servers()) != 4 {
				t.Errorf("%s: %d", n.ID, len(n.Servers()))
			}
		}
		res, err := w.Nodes[0].RPCluster(t.Context(), cluster.Request{Path: "/things"})
		if err != nil {
			t.Fatal(err)
		}
		b, _ := json.MarshalIndent(res, "", " ")
		t.Log(string(b))
		w.Nodes[3].Kill()
		start := time.Now()
		res, err = w.Nodes[0].RPCluster(t.Context(), cluster.Request{Path: "/things"})
		b, _ = json.MarshalIndent(res.Failures, "", " ")
		t.Log(string(b), time.Since(start))
		t.Log(res.Failures[0].Evicted, res.Failures[0].Spared, res.Failures[0].Err)
		synctest.Wait()
		for _, n := range w.Nodes[:3] {
			if len(n.Servers()) != 3 {
				t.Errorf("%s: %d", n.ID, len(n.Servers()))
			}
		}
		time.Sleep(24 * 7 * time.Hour)
		t.Logf("%+v", w.Nodes[0].Status())
		t.Log(w.Nodes[1].UnRegister(t.Context()))
		synctest.Wait()
		t.Log(len(w.Nodes[0].Servers()), len(w.Listed()))
	})
}
