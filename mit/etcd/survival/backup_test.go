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
)

// The flags of the documentation with which a backup is restored, but for those of the member.
const restoreFlags = "--bump-revision 1000000000 --mark-compacted"

// etcd loses all its data and gets those of a backup, while the replicas run: everybody who was in the
// backup is as in it, who came later is back with its next renewal, and who has left since goes when
// its life is over.
func TestBackupRestored(t *testing.T) {
	t.Parallel()
	w := newWorld(t, setting{members: 3, replicas: 2, share: renewalShare})
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
		w.eventually(r.name+" knows who came after the backup, and not who left", func() bool {
			listed := w.list(r.url)
			_, knowsLate := listed["late"]
			_, knowsLeft := listed["left"]
			return knowsLate && !knowsLeft
		})
	}
	w.eventually("all nodes know each other", w.viewsWhole)
	w.eventually("nobody knows the one who left", func() bool {
		for _, n := range w.nodes {
			if len(n.Servers()) != len(w.nodes) {
				return false
			}
		}
		return true
	})
	w.nobodyLost()
}

// restore gives a member that was killed the data of a backup, in a folder of its own.
func restore(t *testing.T, m *process, file string) {
	t.Helper()
	var settings member
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

// The documentation restores with the flags of the test.
func TestRestoreFlags(t *testing.T) {
	text, err := os.ReadFile("../../../docs/registry.md")
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(text), restoreFlags) {
		t.Errorf("docs/registry.md does not have %s", restoreFlags)
	}
}
