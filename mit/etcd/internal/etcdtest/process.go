package etcdtest

import (
	"encoding/json"
	"errors"
	"net/url"
	"syscall"
	"time"

	"go.etcd.io/etcd/server/v3/embed"
	"go.uber.org/zap"
)

// A Member is the configuration of a process that runs a member of etcd.
type Member struct{ Name, Dir, PeerURL, ClientURL, Cluster string }

// RunMember runs a member of etcd in this process until it fails. settings is a [Member] as JSON.
func RunMember(settings string) error {
	var m Member
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
	// The writes of a killed process stay in the memory of the machine. They must be on disk only if
	// the machine fails, which these tests do not cover.
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
		time.Sleep(100 * time.Millisecond) // the port may be in use for a moment
	}
	return err
}
