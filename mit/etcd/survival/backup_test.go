//go:build unix

package survival

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/client/v3/snapshot"
	"go.uber.org/zap"

	"github.com/mimiktech/cluster"
	"github.com/mimiktech/cluster/mit/etcd/internal/etcdtest"
)

// The flags for restoring a backup, as documented, without those that name the member.
const restoreFlags = "--bump-revision 1000000000 --mark-compacted"

// etcd loses its data and is restored from a backup while the replicas run. Servers in the backup
// are listed as in it. Servers that joined later return with their next renewal. Servers that have
// left since are removed when their TTL is over.
func TestBackupRestored(t *testing.T) {
	t.Parallel()
	w := newWorld(t, worldConfig{members: 3, replicas: 2, share: renewalShare})
	left := w.newNode("left", renewalShare, w.registryURL(true))
	left.register()
	file := filepath.Join(t.TempDir(), "mit.db")
	if _, err := snapshot.SaveWithVersion(t.Context(), zap.NewNop(), clientv3.Config{Endpoints: w.endpoints[:1]}, file); err != nil {
		t.Fatal(err)
	}
	if d := left.UnRegister(t.Context()); d.Errors != nil {
		t.Fatalf("leaving: %v", d.Errors)
	}
	late := w.newNode("late", renewalShare, w.registryURL(true))
	late.register()

	for _, m := range w.members {
		m.kill()
	}
	for _, m := range w.members {
		restore(t, m, file)
		m.start()
	}
	w.eventually("etcd has a leader", func() bool { return w.leader() >= 0 })
	for _, r := range w.replicas {
		w.eventually(r.name+" knows the backup", func() bool { _, knows := w.list(r.url)["left"]; return knows })
	}
	w.nodes = append(w.nodes, late)
	w.allRenew("after the restore")
	w.allHealthy()
	w.eventually("all nodes are registered", func() bool { return w.allAre(cluster.Registered) })
	for _, r := range w.replicas {
		w.eventually(r.name+" lists the server that joined after the backup, not the one that left", func() bool {
			listed := w.list(r.url)
			_, knowsLate := listed["late"]
			_, knowsLeft := listed["left"]
			return knowsLate && !knowsLeft
		})
	}
	w.eventually("all nodes know each other", w.viewsWhole)
	w.eventually("no replica lists the server that left", func() bool {
		for _, n := range w.nodes {
			if len(n.Servers()) != len(w.nodes) {
				return false
			}
		}
		return true
	})
	w.checkNoLoss()
}

// restore restores the data of a killed member from a backup, in a new directory.
func restore(t *testing.T, m *process, file string) {
	t.Helper()
	var settings etcdtest.Member
	if err := json.Unmarshal([]byte(m.args[0]), &settings); err != nil {
		t.Fatal(err)
	}
	settings.Dir = filepath.Join(t.TempDir(), "restored")
	run := newProcess(t, "etcdutl", roleRestore, append([]string{
		"restore", file,
		"--name", settings.Name, "--data-dir", settings.Dir,
		"--initial-cluster", settings.Cluster, "--initial-advertise-peer-urls", settings.PeerURL,
	}, strings.Fields(restoreFlags)...)...)
	run.start()
	if err := run.wait(); err != nil {
		t.Fatalf("etcdutl snapshot restore: %v", err)
	}
	arg, err := json.Marshal(settings)
	if err != nil {
		t.Fatal(err)
	}
	m.args = []string{string(arg)}
}

// The documentation must have the flags of the test.
func TestRestoreFlags(t *testing.T) {
	text, err := os.ReadFile("../../../docs/registry.md")
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(text), restoreFlags) {
		t.Errorf("docs/registry.md does not have %s", restoreFlags)
	}
}
