// Package etcdtest runs etcd in the process, for tests and for measuring.
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

const patience = 30 * time.Second // for a member to be ready

// Options say what a [Cluster] is to be.
type Options struct {
	Members int
	// Dir is where the members keep their data.
	Dir string
	// Durable makes the members wait for their disk, as they do in earnest.
	Durable bool
	// Tick is the heartbeat between members, a tenth of the time after which they elect a
	// new leader; 50 ms by default. On a busy machine 10 ms make members elect all the
	// time, and with every new leader all leases begin anew.
	Tick time.Duration
	// TLS, if set, is what the members serve clients with.
	TLS transport.TLSInfo
	// TokenTTL is how long the tokens are good for that a password gets, unless they are
	// used; in whole seconds, 5 minutes by default.
	TokenTTL time.Duration
}

// A Cluster is a few members of etcd on loopback. Its methods are for one goroutine.
type Cluster struct {
	// Endpoints are where clients reach the members. They stay over restarts.
	Endpoints []string

	configs []*embed.Config
	members []*embed.Etcd // nil where stopped
}

// Run starts a cluster that ends with its test.
func Run(tb testing.TB, members int) *Cluster {
	tb.Helper()
	return RunWith(tb, Options{Members: members, Dir: tb.TempDir()})
}

// RunWith is Run with more to say.
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
	for try := range 5 { // others may listen at a port that was free, before its member is up
		o := o
		o.Dir = filepath.Join(o.Dir, fmt.Sprint(try))
		c, err := start(o)
		if err == nil {
			return c, nil
		}
		errs = append(errs, err)
	}
	return nil, errors.Join(errs...)
}

func start(o Options) (*Cluster, error) {
	c := &Cluster{members: make([]*embed.Etcd, o.Members)}
	tick := cmp.Or(o.Tick, 50*time.Millisecond)
	var initial []string
	for i := range o.Members {
		client, err := address()
		if err != nil {
			return nil, err
		}
		peer, err := address()
		if err != nil {
			return nil, err
		}
		cfg := embed.NewConfig()
		cfg.Name = fmt.Sprintf("m%d", i)
		cfg.Dir = filepath.Join(o.Dir, cfg.Name)
		cfg.TickMs = uint(tick / time.Millisecond)
		cfg.ElectionMs = 10 * cfg.TickMs
		cfg.BcryptCost = 4 // the least there is
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
		c.configs = append(c.configs, cfg)
		c.Endpoints = append(c.Endpoints, client)
		initial = append(initial, fmt.Sprintf("%s=http://%s", cfg.Name, peer))
	}
	for i, cfg := range c.configs {
		cfg.InitialCluster = strings.Join(initial, ",")
		if err := c.begin(i); err != nil {
			c.Close()
			return nil, err
		}
	}
	for i := range c.members {
		if err := c.ready(i); err != nil {
			c.Close()
			return nil, err
		}
	}
	return c, nil
}

// address is one that a member finds free whenever it starts again.
func address() (string, error) {
	port, err := freeport.Next(context.Background())
	return fmt.Sprintf("127.0.0.1:%d", port), err
}

func (c *Cluster) begin(i int) error {
	cfg := *c.configs[i]
	m, err := embed.StartEtcd(&cfg)
	if err != nil {
		return err
	}
	c.members[i] = m
	return nil
}

func (c *Cluster) ready(i int) error {
	late := time.NewTimer(patience)
	defer late.Stop()
	select {
	case <-c.members[i].Server.ReadyNotify():
		return nil
	case err := <-c.members[i].Err():
		return err
	case <-late.C:
		return fmt.Errorf("etcd member %d is not ready after %v", i, patience)
	}
}

// Leader is the member that leads, -1 for none.
func (c *Cluster) Leader() int {
	for i, m := range c.members {
		if m != nil && m.Server.Leader() == m.Server.MemberID() {
			return i
		}
	}
	return -1
}

// Kill stops members at once: they hand nothing over.
func (c *Cluster) Kill(members ...int) {
	var wg sync.WaitGroup
	for _, i := range members {
		if m := c.members[i]; m != nil {
			c.members[i] = nil
			m.Server.HardStop()
			wg.Go(m.Close) // which waits for those who are still connected
		}
	}
	wg.Wait()
}

// Restart starts a member that was killed, with the data that it had, at the address that it had.
// It does not wait for the others.
func (c *Cluster) Restart(i int) error {
	return c.begin(i)
}

// Wipe makes a member that was killed lose its data.
func (c *Cluster) Wipe(i int) error { return os.RemoveAll(c.configs[i].Dir) }

// Client returns a client of the cluster, for looking at it and for meddling with it.
func (c *Cluster) Client(tb testing.TB) *clientv3.Client {
	tb.Helper()
	client, err := clientv3.New(clientv3.Config{Endpoints: c.Endpoints, Logger: zap.NewNop()})
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { _ = client.Close() })
	return client
}

// Close ends all members.
func (c *Cluster) Close() {
	var all []int
	for i := range c.members {
		all = append(all, i)
	}
	c.Kill(all...)
}
