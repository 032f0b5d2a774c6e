// Package etcdtest runs etcd in this process, for tests and measurements.
package etcdtest

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"go.etcd.io/etcd/client/pkg/v3/transport"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/server/v3/embed"
	"go.uber.org/zap"

	"github.com/mimiktech/cluster/internal/freeport"
)

// Options configure a [Cluster].
type Options struct {
	Members int
	// Dir is the directory of the members' data.
	Dir string
	// Durable makes members wait for the disk, as they do in production.
	Durable bool
	// HeartbeatInterval is the interval of heartbeats between members, a tenth of the election
	// timeout; 50 ms by default. With 10 ms, members of a busy machine elect leaders all the
	// time, and every new leader renews all leases.
	HeartbeatInterval time.Duration
	// TLS, if set, is the configuration that members serve clients with.
	TLS transport.TLSInfo
	// TokenTTL is the lifetime of unused authentication tokens, in whole seconds; 5 minutes by
	// default.
	TokenTTL time.Duration
}

// A Cluster is a cluster of etcd on loopback. Its methods are not safe for concurrent use.
type Cluster struct {
	// Endpoints are the client addresses of the members. They do not change at a restart.
	Endpoints []string

	configs []*embed.Config
	members []*embed.Etcd // nil where stopped
}

// Run starts a cluster for the duration of the test.
func Run(tb testing.TB, members int) *Cluster {
	tb.Helper()
	return RunWith(tb, Options{Members: members, Dir: tb.TempDir()})
}

// RunWith is Run with options.
func RunWith(tb testing.TB, o Options) *Cluster {
	tb.Helper()
	c, err := Start(o)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(c.Close)
	return c
}

// Start starts a cluster and waits until it is ready.
func Start(o Options) (*Cluster, error) {
	var errs []error
	for attempt := range 5 { // another process may take a free port first
		o := o
		o.Dir = filepath.Join(o.Dir, fmt.Sprint(attempt))
		c, err := start(o)
		if err == nil {
			return c, nil
		}
		errs = append(errs, err)
	}
	return nil, errors.Join(errs...)
}

// Leader returns the index of the leader, -1 if there is none.
func (c *Cluster) Leader() int {
	for i, m := range c.members {
		if m != nil && m.Server.Leader() == m.Server.MemberID() {
			return i
		}
	}
	return -1
}

// Kill stops members without a graceful shutdown.
func (c *Cluster) Kill(members ...int) {
	var wg sync.WaitGroup
	for _, i := range members {
		if m := c.members[i]; m != nil {
			c.members[i] = nil
			m.Server.HardStop()
			wg.Go(m.Close) // waits for connected clients
		}
	}
	wg.Wait()
}

// Restart starts a killed member with its data, at its address. It does not wait until it is ready.
func (c *Cluster) Restart(i int) error {
	return c.startMember(i)
}

// EraseData deletes the data of a killed member.
func (c *Cluster) EraseData(i int) error { return os.RemoveAll(c.configs[i].Dir) }

// CopyData copies the data of a killed member to a directory.
func (c *Cluster) CopyData(i int, dir string) error {
	return os.CopyFS(dir, os.DirFS(c.configs[i].Dir))
}

// RestoreData replaces the data of a killed member by those that CopyData copied.
func (c *Cluster) RestoreData(i int, dir string) error {
	if err := c.EraseData(i); err != nil {
		return err
	}
	return os.CopyFS(c.configs[i].Dir, os.DirFS(dir))
}

// Client returns a client that reads and changes keys directly.
func (c *Cluster) Client(tb testing.TB) *clientv3.Client {
	tb.Helper()
	client, err := clientv3.New(clientv3.Config{Endpoints: c.Endpoints, Logger: zap.NewNop()})
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { _ = client.Close() })
	return client
}

// Close stops all members.
func (c *Cluster) Close() {
	var all []int
	for i := range c.members {
		all = append(all, i)
	}
	c.Kill(all...)
}

const readyTimeout = 30 * time.Second

func start(o Options) (*Cluster, error) {
	c := &Cluster{members: make([]*embed.Etcd, o.Members)}
	var initial []string
	for i := range o.Members {
		cfg, err := memberConfig(fmt.Sprintf("m%d", i), o)
		if err != nil {
			return nil, err
		}
		c.configs = append(c.configs, cfg)
		c.Endpoints = append(c.Endpoints, cfg.ListenClientUrls[0].Host)
		initial = append(initial, fmt.Sprintf("%s=http://%s", cfg.Name, cfg.ListenPeerUrls[0].Host))
	}
	for i, cfg := range c.configs {
		cfg.InitialCluster = strings.Join(initial, ",")
		if err := c.startMember(i); err != nil {
			c.Close()
			return nil, err
		}
	}
	for i := range c.members {
		if err := c.waitReady(i); err != nil {
			c.Close()
			return nil, err
		}
	}
	return c, nil
}

func memberConfig(name string, o Options) (*embed.Config, error) {
	client, err := address()
	if err != nil {
		return nil, err
	}
	peer, err := address()
	if err != nil {
		return nil, err
	}
	cfg := embed.NewConfig()
	cfg.Name = name
	cfg.Dir = filepath.Join(o.Dir, name)
	cfg.TickMs = uint(cmp.Or(o.HeartbeatInterval, 50*time.Millisecond) / time.Millisecond) //nolint:gosec // not negative
	cfg.ElectionMs = 10 * cfg.TickMs
	cfg.BcryptCost = 4 // the minimum
	cfg.UnsafeNoFsync = !o.Durable
	if o.TokenTTL > 0 {
		cfg.AuthTokenTTL = uint(o.TokenTTL / time.Second)
	}
	cfg.ZapLoggerBuilder = embed.NewZapLoggerBuilder(zap.NewNop())
	cfg.ListenPeerUrls = []url.URL{{Scheme: "http", Host: peer}}
	cfg.AdvertisePeerUrls = cfg.ListenPeerUrls
	cfg.ListenClientUrls = []url.URL{{Scheme: "http", Host: client}}
	if !o.TLS.Empty() {
		cfg.ListenClientUrls[0].Scheme, cfg.ClientTLSInfo = "https", o.TLS
	}
	cfg.AdvertiseClientUrls = cfg.ListenClientUrls
	return cfg, nil
}

// address returns a free address. It stays free while its member is stopped.
func address() (string, error) {
	port, err := freeport.Next(context.Background())
	return fmt.Sprintf("127.0.0.1:%d", port), err
}

func (c *Cluster) startMember(i int) error {
	cfg := *c.configs[i]
	m, err := embed.StartEtcd(&cfg)
	if err != nil {
		return err
	}
	c.members[i] = m
	return nil
}

func (c *Cluster) waitReady(i int) error {
	timeout := time.NewTimer(readyTimeout)
	defer timeout.Stop()
	select {
	case <-c.members[i].Server.ReadyNotify():
		return nil
	case err := <-c.members[i].Err():
		return err
	case <-timeout.C:
		return fmt.Errorf("etcd member %d is not ready after %v", i, readyTimeout)
	}
}
