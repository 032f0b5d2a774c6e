//go:build linux

package netns

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"testing"
	"time"

	"github.com/mimiktech/cluster"
	"github.com/mimiktech/cluster/mit/command"
	"github.com/mimiktech/cluster/mit/etcd/internal/etcdtest"
	"github.com/mimiktech/cluster/mit/etcd/internal/mitcmd"
)

// roleVariable selects what the test binary runs as: tests start it again as the processes on their
// hosts.
const (
	roleVariable = "NETNS_ROLE"
	roleMember   = "etcd"
	roleReplica  = "mit"
	roleNode     = "node"
)

func TestMain(m *testing.M) {
	switch role := os.Getenv(roleVariable); role {
	case "":
		os.Exit(m.Run())
	case roleNode:
		fmt.Fprintln(os.Stderr, runNode())
		os.Exit(1)
	default:
		go func() { // it ends with its standard input, and so with the test that started it
			_, _ = io.Copy(io.Discard, os.Stdin)
			os.Exit(1)
		}()
		if role == roleReplica {
			command.Main(mitcmd.New())
		}
		fmt.Fprintln(os.Stderr, etcdtest.RunMember(os.Args[1]))
		os.Exit(1)
	}
}

// The descriptors of a node, for both kinds: those that npm/node.js of package interop uses.
const (
	resultsFD  = 3
	listenerFD = 4
)

// A message is a command of a test or its result, each a line of JSON.
type message struct {
	ID      int             `json:"id"`
	Command string          `json:"command,omitempty"`
	Args    any             `json:"args,omitempty"`
	Result  json.RawMessage `json:"result,omitempty"`
	Error   string          `json:"error,omitempty"`
}

// runNode runs a Go node in this process until standard input is closed.
func runNode() error {
	cfg, err := cluster.ConfigFromEnv()
	if err != nil {
		return err
	}
	cfg.RenewalFraction = renewalFraction
	c, err := cluster.New(cfg)
	if err != nil {
		return err
	}
	ln, err := net.FileListener(os.NewFile(listenerFD, "listener"))
	if err != nil {
		return err
	}
	mux := http.NewServeMux()
	c.Mount(mux)
	mux.Handle("GET "+c.Config().BasePath+"/things", c.Authenticate(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		c.Reply(w, r, []string{cfg.ID})
	})))
	srv := &http.Server{Handler: mux, ReadHeaderTimeout: 5 * time.Second}
	go func() { _ = srv.Serve(ln) }() // until the process ends

	results := json.NewEncoder(os.NewFile(resultsFD, "results"))
	if err := results.Encode(message{Result: json.RawMessage(`"ready"`)}); err != nil {
		return err
	}
	lines := bufio.NewScanner(os.Stdin)
	for lines.Scan() {
		var m message
		if err := json.Unmarshal(lines.Bytes(), &m); err != nil {
			return err
		}
		reply := message{ID: m.ID}
		result, err := runCommand(c, m.Command)
		if err != nil {
			reply.Error = err.Error()
		}
		if reply.Result, err = json.Marshal(result); err != nil {
			return err
		}
		if err := results.Encode(reply); err != nil {
			return err
		}
	}
	return lines.Err()
}

func runCommand(c *cluster.Cluster, name string) (any, error) {
	ctx := context.Background()
	switch name {
	case "register":
		go func() { _, _ = c.Register(ctx) }()
		return struct{}{}, nil
	case "fanout":
		before := serverIDs(c.Servers())
		res, err := c.RPCluster(ctx, cluster.Request{Path: "/things"})
		return map[string]any{"response": res, "before": before, "after": serverIDs(c.Servers())}, err
	}
	return nil, fmt.Errorf("unknown command %q", name)
}

func serverIDs(servers []cluster.Server) []string {
	var ids []string
	for _, s := range servers {
		ids = append(ids, s.ServerID)
	}
	return ids
}
