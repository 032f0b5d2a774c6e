package cluster

import (
	"errors"
	"fmt"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"syscall"

	"github.com/mimiktech/cluster/internal/wire"
)

// A PeerPolicy says which servers this node calls. Addresses come from the network, and every
// call carries a token, so each is checked before it is called: it must be an absolute http or
// https URL without credentials, and no proxy is used and no redirect followed. Where the
// policy says more, that is checked too. A server that is refused stays in the view if mIT names
// it, and fails every fan-out with [KindNotAllowed]; one that a peer announces is left out.
type PeerPolicy struct {
	// Networks are where peers may be. They are checked on the address that is dialled, so
	// that a name which resolves to somewhere else is of no use; with [WithHTTPClient] only
	// addresses that are written as numbers are checked. By default peers may be anywhere but
	// at link-local, multicast and unspecified addresses, where cloud machines keep their
	// credentials and no peer lives.
	Networks []netip.Prefix
	// Allow, if set, has the last word on each server: an error keeps it from being called. It
	// is called when the server or its address is new, possibly with many servers in a row,
	// and must not block.
	Allow func(Server) error
	// MaxServers bounds how large announcements may make the view; 10,000 by default. What mIT
	// answers is bound by Config.MaxResponseBytes alone.
	MaxServers int
	// VerifyWithRegistry takes what peers announce, and whom they report gone, for a hint only: nothing
	// they say is believed, but the node asks mIT at once, at most once every
	// Config.RegistrationRetry.
	VerifyWithRegistry bool
}

func (p PeerPolicy) maxServers() int {
	if p.MaxServers > 0 {
		return p.MaxServers
	}
	return 10_000
}

// check parses the address of a server, or says why it must not be called.
func (p PeerPolicy) checkServer(s wire.Server) (*url.URL, error) {
	base, err := parseBase(s.ClusterBaseURL)
	if err != nil {
		return nil, fmt.Errorf("clusterBaseUrl of server %.80q: %w: %w", s.ServerID, ErrNotAllowed, err)
	}
	if ip, err := netip.ParseAddr(base.Hostname()); err == nil {
		if err := p.checkIP(ip); err != nil {
			return nil, fmt.Errorf("clusterBaseUrl of server %.80q: %w", s.ServerID, err)
		}
	}
	if p.Allow != nil {
		if err := p.Allow(Server(s)); err != nil {
			return nil, fmt.Errorf("server %.80q: %w: %w", s.ServerID, ErrNotAllowed, err)
		}
	}
	return base, nil
}

func (p PeerPolicy) checkIP(ip netip.Addr) error {
	ip = ip.Unmap()
	if len(p.Networks) == 0 {
		if ip.IsLinkLocalUnicast() || ip.IsMulticast() || ip.IsUnspecified() {
			return fmt.Errorf("%w: no peer is at %s", ErrNotAllowed, ip)
		}
		return nil
	}
	if !slices.ContainsFunc(p.Networks, func(n netip.Prefix) bool { return n.Contains(ip) }) {
		return fmt.Errorf("%w: %s is in none of the allowed networks", ErrNotAllowed, ip)
	}
	return nil
}

// parseBase parses the absolute URL of a party: http or https, a host, and no more than a path.
func parseBase(text string) (*url.URL, error) {
	u, err := url.Parse(text)
	switch {
	case err != nil:
		return nil, errors.New("not a URL") // the error would quote what may be a password
	case u.Scheme != "http" && u.Scheme != "https":
		return nil, errors.New("not an absolute http or https URL")
	case u.User != nil:
		return nil, errors.New("a URL with credentials in it")
	case u.Hostname() == "":
		return nil, errors.New("a URL without a host")
	case strings.ContainsAny(text, "?#"): // also those with nothing behind them
		return nil, errors.New("a URL with more than a path")
	}
	u.Path, u.RawPath = strings.TrimRight(u.Path, "/"), strings.TrimRight(u.RawPath, "/")
	return u, nil
}

// control is for a dialler: it has the policy look at the address that a name resolved to.
func (p PeerPolicy) dialControl(_, address string, _ syscall.RawConn) error {
	ap, err := netip.ParseAddrPort(address)
	if err != nil {
		return fmt.Errorf("%w: %s", ErrNotAllowed, address)
	}
	return p.checkIP(ap.Addr())
}
