package peeraddr

import (
	"fmt"
	"net"
	"net/netip"
	"slices"
)

// A Local is an address of this machine.
type Local struct {
	Interface    string
	PointToPoint bool // the interface, such as that of a VPN
	Addr         netip.Addr
}

// Locals returns the addresses of the interfaces that are up, in the order of the system.
func Locals() ([]Local, error) {
	interfaces, err := net.Interfaces()
	if err != nil {
		return nil, fmt.Errorf("listing the interfaces: %w", err)
	}
	var locals []Local
	for _, i := range interfaces {
		if i.Flags&net.FlagUp == 0 {
			continue
		}
		addrs, err := i.Addrs()
		if err != nil {
			continue // the interface was removed meanwhile
		}
		for _, a := range addrs {
			if prefix, err := netip.ParsePrefix(a.String()); err == nil {
				locals = append(locals, Local{i.Name, i.Flags&net.FlagPointToPoint != 0, prefix.Addr().Unmap()})
			}
		}
	}
	return locals, nil
}

// Choose returns the address at which other machines are likely to reach this one. It never
// chooses a loopback address, nor one that [CheckCallable] rejects. It prefers IPv4 to IPv6, then
// other interfaces to point-to-point ones, then the order of candidates.
func Choose(candidates []Local) (chosen Local, ok bool) {
	rank := func(l Local) int {
		n := 0
		if !l.Addr.Is4() {
			n += 2
		}
		if l.PointToPoint {
			n++
		}
		return n
	}
	usable := slices.DeleteFunc(slices.Clone(candidates), func(l Local) bool {
		return l.Addr.IsLoopback() || CheckCallable(l.Addr) != nil
	})
	if len(usable) == 0 {
		return Local{}, false
	}
	return slices.MinFunc(usable, func(a, b Local) int { return rank(a) - rank(b) }), true
}

// CheckCallable returns an error if no peer can call ip, whatever network the peer is in.
// Link-local addresses count as such, because peers reject them by default.
func CheckCallable(ip netip.Addr) error {
	ip = ip.Unmap()
	switch {
	case !ip.IsValid() || ip.IsUnspecified() || ip.Is4() && ip.As4()[0] == 0:
		return fmt.Errorf("%s is an unspecified address", ip)
	case ip.Is4() && ip.As4()[0] >= 240: // 255.255.255.255 among them
		return fmt.Errorf("%s is a broadcast or reserved address", ip)
	case ip.IsMulticast():
		return fmt.Errorf("%s is a multicast address", ip)
	case ip.IsLinkLocalUnicast():
		return fmt.Errorf("%s is a link-local address", ip)
	}
	return nil
}
