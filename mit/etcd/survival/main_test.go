//go:build unix

package survival

import (
	"context"
	"fmt"
	"io"
	"os"
	"testing"
	"time"

	"go.etcd.io/etcd/etcdutl/v3/etcdutl"

	"github.com/mimiktech/cluster/internal/testrun"
	"github.com/mimiktech/cluster/mit/command"
	"github.com/mimiktech/cluster/mit/etcd/internal/etcdtest"
	"github.com/mimiktech/cluster/mit/etcd/internal/mitcmd"
)

// roleVariable selects what the test binary runs as: tests start it again as the processes they
// kill.
const (
	roleVariable = "SURVIVAL_ROLE"
	roleMember   = "etcd"
	roleReplica  = "mit"
	roleRestore  = "etcdutl snapshot"
)

func TestMain(m *testing.M) {
	role := os.Getenv(roleVariable)
	if role == "" {
		testrun.Parallel(8)
		os.Exit(m.Run())
	}
	go func() { // it ends with its standard input, and so with the test that started it
		_, _ = io.Copy(io.Discard, os.Stdin)
		os.Exit(1)
	}()
	switch role {
	case roleMember:
		fmt.Fprintln(os.Stderr, etcdtest.RunMember(os.Args[1]))
		os.Exit(1)
	case roleReplica:
		command.Main(mitcmd.New())
	case roleRestore: // the program itself, for the flags that the documentation names
		etcdutl := etcdutl.NewSnapshotCommand()
		etcdutl.SetArgs(os.Args[1:])
		if err := etcdutl.Execute(); err != nil {
			os.Exit(1)
		}
	}
}

func sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
