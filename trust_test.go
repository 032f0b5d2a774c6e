package cluster_test

import (
	"bytes"
	"fmt"
	"net/http"
	"testing"
	"testing/synctest"
	"time"

	"github.com/mimiktech/cluster"
	"github.com/mimiktech/cluster/clustertest"
	"github.com/mimiktech/cluster/mit"
)

// Whoever holds a cluster token can announce another address, and any date, for a healthy server.
// That may cost a request; it must not have the server deleted. The npm module quotes whatever
// date it was told when it asks mIT to delete, and the server is gone.
func TestForgedAnnouncementEvictsNobody(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := clustertest.Start(t, 4)
		victim := w.Nodes[1]
		announceAs(t, w, w.Nodes[0], fmt.Sprintf(`{"id":%q,"publicBaseUrl":"x","servers":[
			{"serverId":%q,"clusterBaseUrl":"http://nowhere:1/mds/v1","updatedAt":"2099-01-01T00:00:00.000Z"}]}`,
			mit.ResourceID("mds"), victim.ID))

		res, err := w.Nodes[0].RPCluster(t.Context(), cluster.Request{Path: "/things"})
		if err != nil {
			t.Fatal(err)
		}
		if len(res.Results) != 3 {
			t.Errorf("%d of 3 peers answered; the failures: %v", len(res.Results), res.Failures)
		}
		synctest.Wait()
		for _, n := range w.Nodes {
			if got := len(n.Servers()); got != 4 {
				t.Errorf("%s knows %d of 4 servers", n.ID, got)
			}
		}
		if got := len(w.Registered()); got != 4 {
			t.Errorf("mIT lists %d of 4 servers", got)
		}
	})
}

// A server that is known by an announcement only is still evicted when it is gone.
func TestAnnouncedServerIsEvicted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := clustertest.Start(t, 3)
		w.Nodes[2].Kill() // node-1 never renewed since it was told of it
		res, err := w.Nodes[0].RPCluster(t.Context(), cluster.Request{Path: "/things"})
		if err != nil {
			t.Fatal(err)
		}
		if len(res.Failures) != 1 || !res.Failures[0].Evicted {
			t.Errorf("failures %v, want node-3, evicted", res.Failures)
		}
		if got := len(w.Registered()); got != 2 {
			t.Errorf("mIT lists %d servers, want 2", got)
		}
	})
}

// With VerifyWithRegistry, a node believes neither an announcement nor a report that somebody is gone.
func TestHintsOnly(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := clustertest.Start(t, 3, clustertest.WithOptions(cluster.WithPeerPolicy(cluster.PeerPolicy{VerifyWithRegistry: true})))
		synctest.Wait()
		n := w.Nodes[0]
		announceAs(t, w, n, fmt.Sprintf(`{"id":%q,"publicBaseUrl":"x","servers":[{"serverId":"stranger","clusterBaseUrl":"http://nowhere:1"}]}`, mit.ResourceID("mds")))
		send(t, w, n, http.MethodDelete, "/itResources/"+mit.ResourceID("mds")+"/servers/node-2", "")
		synctest.Wait()
		for _, s := range n.Servers() {
			if s.ServerID == "stranger" {
				t.Error("a stranger was believed")
			}
		}
		settle(n)
		if got := len(n.Servers()); got != 3 {
			t.Errorf("it knows %d of 3 servers after asking mIT", got)
		}
	})
}

func announceAs(t *testing.T, w *clustertest.World, to *clustertest.Node, body string) {
	t.Helper()
	send(t, w, to, http.MethodPost, "/itResources", body)
}

// send is a request with a cluster token of the nodes' own type, which must be answered 200.
func send(t *testing.T, w *clustertest.World, to *clustertest.Node, method, path, body string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, "http://"+to.Host+to.Config().BasePath+path, bytes.NewBufferString(body))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+w.Token("mds", true))
	resp, err := w.Network.Client("somebody").Do(req)
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		t.Fatalf("%s %s: %s", method, path, resp.Status)
	}
}

// settle gives a node the time to renew when it is hurried.
func settle(n *clustertest.Node) {
	time.Sleep(n.Config().RegistrationRetry)
	synctest.Wait()
}
