// Command mtls runs two nodes, the registry (mIT) and the token service (mST) over mutual TLS, with
// a private CA. The certificates are short-lived and are renewed on disk, while the nodes call each
// other:
//
//	go run ./examples/mtls
//
// In production, a tool such as cert-manager writes the files. A node needs nothing else than what
// newNode does.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"github.com/mimiktech/cluster"
	"github.com/mimiktech/cluster/internal/testca"
)

const (
	certificateTTL = 3 * time.Second
	renewInterval  = time.Second
	callInterval   = 50 * time.Millisecond
	duration       = 2 * certificateTTL // no certificate of the beginning is valid at the end
)

func main() {
	if err := run(context.Background(), os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "mtls:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, out io.Writer) error {
	ca, err := testca.New()
	if err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "mtls")
	if err != nil {
		return err
	}
	defer func() { _ = os.RemoveAll(dir) }()
	return demo(ctx, out, files{ca, dir})
}

func demo(ctx context.Context, out io.Writer, files files) error {
	if err := files.renew("registry", "ada", "ben"); err != nil {
		return err
	}
	registryURL, seenByRegistry, stopRegistry, err := startRegistry(ctx, files)
	if err != nil {
		return err
	}
	defer stopRegistry()
	var nodes []*node
	for _, name := range []string{"ada", "ben"} {
		n, err := startNode(ctx, name, registryURL, files)
		if err != nil {
			return err
		}
		defer n.cancel()
		nodes = append(nodes, n)
	}
	for _, n := range nodes {
		if err := n.waitForPeers(ctx, 1); err != nil {
			return err
		}
	}
	fmt.Fprintln(out, "ada and ben know each other, over TLS with client certificates.")
	calls, err := callWhileRenewing(ctx, nodes, files)
	if err != nil {
		return err
	}
	fmt.Fprintf(out, "%d calls succeeded in %v, with certificates valid for %v.\n", calls, duration, certificateTTL)
	if n := seenByRegistry.count(); n <= len(nodes) {
		return fmt.Errorf("the registry has seen %d certificates of %d nodes", n, len(nodes))
	}
	fmt.Fprintln(out, "The registry has seen several certificates of its nodes.")
	return finish(out, nodes)
}

// finish checks that the nodes have used renewed certificates, and stops them.
func finish(out io.Writer, nodes []*node) error {
	for _, n := range nodes {
		seen := n.seen.count()
		if seen < 3 {
			return fmt.Errorf("%s has seen %d certificates of its peer", n.name, seen)
		}
		fmt.Fprintf(out, "%s has seen several certificates of its peer.\n", n.name)
	}
	for _, n := range nodes {
		n.cancel()
		if err := <-n.done; err != nil {
			return err
		}
	}
	fmt.Fprintln(out, "Both have left. Done.")
	return nil
}

// callWhileRenewing makes the nodes call each other, and renews all certificates meanwhile. It
// returns the number of calls.
func callWhileRenewing(ctx context.Context, nodes []*node, files files) (calls int, err error) {
	end := time.Now().Add(duration)
	renewAt := time.Now().Add(renewInterval)
	for time.Now().Before(end) {
		if time.Now().After(renewAt) {
			renewAt = renewAt.Add(renewInterval)
			if err := files.renew("registry", "ada", "ben"); err != nil {
				return calls, err
			}
		}
		for _, n := range nodes {
			resp, err := n.RPCluster(ctx, cluster.Request{Path: "/hello"})
			if err != nil {
				return calls, err
			}
			if len(resp.Results) != 1 {
				return calls, errors.Join(fmt.Errorf("a call of %s failed", n.name), firstError(resp))
			}
			calls++
		}
		time.Sleep(callInterval) // X.509 certificates have real times
	}
	return calls, nil
}

func firstError(resp *cluster.Response) error {
	for _, o := range resp.Failures {
		return o.Err
	}
	return errors.New("no peer is known")
}

// files are the certificates and keys of the demo, in one folder.
type files struct {
	ca  *testca.CA
	dir string
}

// renew replaces the certificates of the given names, all for the loopback address.
func (f files) renew(names ...string) error {
	for _, name := range names {
		cert, key := f.paths(name)
		if err := f.ca.IssueFiles("127.0.0.1", certificateTTL, cert, key); err != nil {
			return err
		}
	}
	return nil
}

func (f files) paths(name string) (cert, key string) {
	return filepath.Join(f.dir, name+".crt"), filepath.Join(f.dir, name+".key")
}

// load returns the certificate of a name, which is read again when it is renewed.
func (f files) load(name string) (*cluster.KeyPair, error) {
	cert, key := f.paths(name)
	return cluster.LoadKeyPair(cert, key, nil)
}
