//go:build linux

package netns

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"regexp"
	"runtime"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// A network is hosts around a router, each a network namespace.
type network struct {
	*testing.T
	router string // the name of its namespace
	hosts  int
}

// A host is a namespace with one address.
type host struct {
	namespace string
	addr      string
	gateway   string // the address of the router
	link      string // the name of the router's link to the host
}

// newNetwork creates a network without hosts. Without the permission or a program that it takes,
// the test is skipped, or fails if INTEROP=require.
func newNetwork(t *testing.T) *network {
	t.Helper()
	n := &network{T: t, router: fmt.Sprintf("cluster-%d-router", os.Getpid())}
	for _, command := range []string{"nft --version", "ip netns add " + n.router} {
		if out, err := exec.CommandContext(t.Context(), "sh", "-c", command).CombinedOutput(); err != nil {
			reason := fmt.Sprintf("network namespaces are not available: %s: %v: %s", command, err, strings.TrimSpace(string(out)))
			if os.Getenv("INTEROP") == "require" {
				t.Fatal(reason)
			}
			t.Skip(reason)
		}
	}
	n.removeAtEnd(n.router)
	n.run("ip -n %s link set lo up", n.router)
	// A flow that is lost is not taken up again from a packet in its middle.
	n.run("ip netns exec %s sysctl -q -w net.ipv4.ip_forward=1 net.netfilter.nf_conntrack_tcp_loose=0", n.router)
	n.setRules()
	return n
}

func (n *network) removeAtEnd(namespace string) {
	n.Cleanup(func() {
		_ = exec.CommandContext(context.Background(), "ip", "netns", "delete", namespace).Run()
	})
}

// run runs a command, and fails the test if the command fails.
func (n *network) run(format string, args ...any) {
	n.Helper()
	command := strings.Fields(fmt.Sprintf(format, args...))
	if out, err := exec.CommandContext(n.Context(), command[0], command[1:]...).CombinedOutput(); err != nil {
		n.Fatalf("%q: %v: %s", command, err, out)
	}
}

// addHost creates a host.
func (n *network) addHost(name string) host {
	n.Helper()
	n.hosts++
	h := host{
		namespace: fmt.Sprintf("cluster-%d-%s", os.Getpid(), name),
		addr:      fmt.Sprintf("10.77.%d.2", n.hosts), gateway: fmt.Sprintf("10.77.%d.1", n.hosts),
		link: fmt.Sprintf("to-%s", name),
	}
	n.run("ip netns add %s", h.namespace)
	n.removeAtEnd(h.namespace)
	n.run("ip link add eth0 netns %s type veth peer name %s netns %s", h.namespace, h.link, n.router)
	n.run("ip -n %s addr add %s/24 dev %s", n.router, h.gateway, h.link)
	n.run("ip -n %s link set %s up", n.router, h.link)
	n.run("ip -n %s addr add %s/24 dev eth0", h.namespace, h.addr)
	n.run("ip -n %s link set lo up", h.namespace)
	n.setLink(h, "up")
	return h
}

// setLink sets the link of a host up or down. A link that goes down loses its routes.
func (n *network) setLink(h host, state string) {
	n.Helper()
	n.run("ip -n %s link set eth0 %s", h.namespace, state)
	if state == "up" {
		n.run("ip -n %s route replace default via %s", h.namespace, h.gateway)
	}
}

// setRules replaces the rules of the router for the packets that it forwards.
func (n *network) setRules(rules ...string) {
	n.Helper()
	n.load("add table ip faults\ndelete table ip faults\ntable ip faults {\nchain forward {\ntype filter hook forward priority 0;\n" +
		strings.Join(rules, "\n") + "\n}\n}\n")
}

// load loads rules of nftables in the router.
func (n *network) load(text string) {
	n.Helper()
	cmd := exec.CommandContext(n.Context(), "ip", "netns", "exec", n.router, "nft", "-f", "-")
	cmd.Stdin = strings.NewReader(text)
	if out, err := cmd.CombinedOutput(); err != nil {
		n.Fatalf("nft: %v: %s\n%s", err, out, text)
	}
}

// dropped returns how many packets the rules of the router have counted.
func (n *network) dropped() (packets int) {
	n.Helper()
	out, err := exec.CommandContext(n.Context(), "ip", "netns", "exec", n.router, "nft", "list", "table", "ip", "faults").Output()
	if err != nil {
		n.Fatalf("nft: %v", err)
	}
	for _, match := range regexp.MustCompile(`counter packets (\d+)`).FindAllSubmatch(out, -1) {
		count, err := strconv.Atoi(string(match[1]))
		if err != nil {
			n.Fatal(err)
		}
		packets += count
	}
	return packets
}

// inNamespace calls f on a thread that is in a network namespace meanwhile. Sockets that f opens
// belong to it. The thread must not end: processes that it has started would be killed.
func inNamespace(namespace string, f func() error) error {
	runtime.LockOSThread()
	own, err := unix.Open("/proc/thread-self/ns/net", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer func() { _ = unix.Close(own) }()
	other, err := unix.Open("/run/netns/"+namespace, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer func() { _ = unix.Close(other) }()
	if err := unix.Setns(other, unix.CLONE_NEWNET); err != nil {
		return err
	}
	err = f()
	if back := unix.Setns(own, unix.CLONE_NEWNET); back != nil {
		return back // the thread stays locked, and ends with the goroutine
	}
	runtime.UnlockOSThread()
	return err
}

// dial connects from the router to a host.
func (n *network) dial(ctx context.Context, network, addr string) (conn net.Conn, err error) {
	err = inNamespace(n.router, func() error {
		conn, err = new(net.Dialer).DialContext(ctx, network, addr)
		return err
	})
	return conn, err
}

// listen opens a socket on a host, for a process to inherit.
func (h host) listen(port int) (file *os.File, err error) {
	err = inNamespace(h.namespace, func() error {
		ln, err := new(net.ListenConfig).Listen(context.Background(), "tcp", fmt.Sprintf("%s:%d", h.addr, port))
		if err != nil {
			return err
		}
		defer ln.Close() // only the process keeps the socket open
		file, err = ln.(*net.TCPListener).File()
		return err
	})
	return file, err
}
