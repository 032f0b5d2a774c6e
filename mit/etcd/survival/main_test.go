//go:build unix

package survival

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net/url"
	"os"
	"strconv"
	"syscall"
	"testing"
	"time"

	"go.etcd.io/etcd/etcdutl/v3/etcdutl"
	"go.etcd.io/etcd/server/v3/embed"
	"go.uber.org/zap"

	"github.com/mimiktech/cluster/mit/command"
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
		flag.Parse()
		atOnce(8)
		os.Exit(m.Run())
	}
	go func() { // it ends with its standard input, and so with the test that started it
		_, _ = io.Copy(io.Discard, os.Stdin)
		os.Exit(1)
	}()
	switch role {
	case roleMember:
		fmt.Fprintln(os.Stderr, runMember(os.Args[1]))
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

// atOnce sets the number of parallel tests unless the command line does. The tests mostly wait.
func atOnce(n int) {
	chosen := false
	flag.Visit(func(f *flag.Flag) { chosen = chosen || f.Name == "test.parallel" })
	if !chosen {
		_ = flag.Set("test.parallel", strconv.Itoa(n)) // the flag is there, and takes a number
	}
}

// A member is the configuration of a process that runs a member of etcd.
type member struct{ Name, Dir, PeerURL, ClientURL, Cluster string }

// runMember runs a member of etcd until it fails.
func runMember(settings string) error {
	var m member
	if err := json.Unmarshal([]byte(settings), &m); err != nil {
		return err
	}
	cfg := embed.NewConfig()
	cfg.Name, cfg.Dir, cfg.InitialCluster = m.Name, m.Dir, m.Cluster
	peer, err := url.Parse(m.PeerURL)
	if err != nil {
		return err
	}
	client, err := url.Parse(m.ClientURL)
	if err != nil {
		return err
	}
	cfg.ListenPeerUrls, cfg.AdvertisePeerUrls = []url.URL{*peer}, []url.URL{*peer}
	cfg.ListenClientUrls, cfg.AdvertiseClientUrls = []url.URL{*client}, []url.URL{*client}
	cfg.TickMs, cfg.ElectionMs = 50, 500
	// What a killed process has written is the machine's to keep: only a machine that dies needs
	// it on its disk, and these tests are not to wait for that.
	cfg.UnsafeNoFsync = true
	log := zap.NewProductionConfig()
	log.Level.SetLevel(zap.WarnLevel)
	logger, err := log.Build()
	if err != nil {
		return err
	}
	cfg.ZapLoggerBuilder = embed.NewZapLoggerBuilder(logger)
	for range 100 {
		var etcd *embed.Etcd
		if etcd, err = embed.StartEtcd(cfg); err == nil {
			return <-etcd.Err()
		}
		if !errors.Is(err, syscall.EADDRINUSE) {
			return err
		}
		_ = sleep(context.Background(), 100*time.Millisecond) // the port may be in use for a moment
	}
	return err
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
