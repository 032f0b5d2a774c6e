// Package peeraddr parses the addresses of other machines, and checks those of peers, which come
// from the network, before they are dialed.
package peeraddr

import (
	"errors"
	"fmt"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"syscall"
)

// Parse parses a base URL: http or https, a host, and at most a path. The path of the result has
// no slash at its end. The error does not quote text, which may contain a password.
func Parse(text string) (*url.URL, error) {
	u, err := url.Parse(text)
	switch {
	case err != nil:
		return nil, errors.New("not a URL")
	case u.Scheme != "http" && u.Scheme != "https":
		return nil, errors.New("not an absolute http or https URL")
	case u.User != nil:
		return nil, errors.New("a URL with credentials in it")
	case u.Hostname() == "":
		return nil, errors.New("a URL without a host")
	case strings.ContainsAny(text, "?#"): // u does not show an empty query or fragment
		return nil, errors.New("a URL with more than a path")
	}
	u.Path, u.RawPath = strings.TrimRight(u.Path, "/"), strings.TrimRight(u.RawPath, "/")
	return u, nil
}

// Same reports whether two texts are the same base URL, whatever the case of its host and the
// slashes at its end.
func Same(a, b string) bool {
	if a == b {
		return true
	}
	u, err := Parse(a)
	if err != nil {
		return false
	}
	v, err := Parse(b)
	return err == nil && Equal(u, v)
}

// Equal is Same for the results of Parse.
func Equal(u, v *url.URL) bool {
	return u.Scheme == v.Scheme && strings.EqualFold(u.Host, v.Host) && u.EscapedPath() == v.EscapedPath()
}

// ParseList returns the base URLs in a comma-separated list, each once and without slashes at its
// end. It skips blank entries.
func ParseList(list string) (urls []string, err error) {
	entries := strings.Split(list, ",")
	var problems []string
	for i, entry := range entries {
		entry = strings.TrimRight(strings.TrimSpace(entry), "/")
		if entry == "" || slices.Contains(urls, entry) {
			continue
		}
		_, err := Parse(entry)
		switch {
		case err == nil:
			urls = append(urls, entry)
		case len(entries) == 1:
			return nil, err
		default:
			problems = append(problems, fmt.Sprintf("entry %d of %d is %v", i+1, len(entries), err))
		}
	}
	if problems != nil {
		return nil, errors.New(strings.Join(problems, ", "))
	}
	return urls, nil
}

// Networks are the networks that may be dialed. If empty, all addresses may be dialed except those
// that [CheckCallable] rejects.
type Networks []netip.Prefix

// ParseNetworks parses a comma-separated list of networks in CIDR notation. A single address is a
// network, too. Blank entries are skipped.
func ParseNetworks(list string) (Networks, error) {
	var n Networks
	for entry := range strings.SplitSeq(list, ",") {
		entry = strings.TrimSpace(entry)
		if entry == "" {
			continue
		}
		prefix, err := netip.ParsePrefix(entry)
		if ip, ipErr := netip.ParseAddr(entry); ipErr == nil && ip.Zone() == "" {
			prefix, err = ip.Prefix(ip.BitLen())
		}
		if err != nil {
			return nil, fmt.Errorf("%.40q is not a network like 10.0.0.0/8", entry)
		}
		n = append(n, prefix.Masked())
	}
	return n, nil
}

// Intersect returns the networks that are in both n and o. An empty one of the two does not
// restrict the other.
func (n Networks) Intersect(o Networks) Networks {
	if len(n) == 0 || len(o) == 0 {
		return append(slices.Clip(n), o...)
	}
	var both Networks
	for _, a := range n {
		for _, b := range o {
			if a.Overlaps(b) { // then one contains the other
				if a.Bits() < b.Bits() {
					both = append(both, b)
				} else {
					both = append(both, a)
				}
			}
		}
	}
	return both
}

// CheckIP returns an error if ip must not be dialed. A metadata service may be dialed only if a
// network consists of its address alone. The zone of a link-local address does not matter: a
// network has none.
func (n Networks) CheckIP(ip netip.Addr) error {
	ip = ip.Unmap().WithZone("")
	if len(n) == 0 {
		return CheckCallable(ip)
	}
	metadata := isMetadata(ip)
	if !slices.ContainsFunc(n, func(p netip.Prefix) bool { return p.Contains(ip) && (!metadata || p.IsSingleIP()) }) {
		return fmt.Errorf("%s is in none of the allowed networks", ip)
	}
	return nil
}

// CheckHost returns an error if host is an IP address that must not be dialed. A name passes: the
// addresses it resolves to are checked by Control.
func (n Networks) CheckHost(host string) error {
	if ip, err := netip.ParseAddr(host); err == nil {
		return n.CheckIP(ip)
	}
	return nil
}

// Control has the signature of net.Dialer.Control. It checks the resolved address before the
// connection is made.
func (n Networks) Control(_, address string, _ syscall.RawConn) error {
	ap, err := netip.ParseAddrPort(address)
	if err != nil {
		return fmt.Errorf("%q is not an IP address and port", address)
	}
	return n.CheckIP(ap.Addr())
}
