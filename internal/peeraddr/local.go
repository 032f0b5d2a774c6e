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
	case isMetadata(ip):
		return fmt.Errorf("%s is an address of a metadata service", ip)
	}
	if v4, ok := embedded(ip); ok {
		return CheckCallable(v4)
	}
	return nil
}

// isMetadata reports whether a cloud provider serves metadata, often with credentials, at ip.
func isMetadata(ip netip.Addr) bool {
	if v4, ok := embedded(ip); ok {
		ip = v4
	}
	switch ip.String() {
	case "169.254.169.254", // most clouds
		"169.254.170.2", "169.254.170.23", "fd00:ec2::23", // containers at AWS
		"fd00:ec2::254",                // AWS
		"fd20:ce::254",                 // Google
		"168.63.129.16",                // Azure
		"100.100.100.200",              // Alibaba
		"192.0.0.192",                  // Oracle
		"169.254.42.42", "fd00:42::42": // Scaleway
		return true
	}
	return false
}

// embedded returns the IPv4 address that a gateway reaches at an IPv6 address: by NAT64 (RFC 6052),
// 6to4 (RFC 3056), or as an IPv4-compatible address (RFC 4291).
func embedded(ip netip.Addr) (v4 netip.Addr, ok bool) {
	if !ip.Is6() || ip.Is4In6() {
		return netip.Addr{}, false
	}
	b := ip.As16()
	switch {
	case [12]byte(b[:12]) == [12]byte{0x00, 0x64, 0xff, 0x9b}, [6]byte(b[:6]) == [6]byte{0x00, 0x64, 0xff, 0x9b, 0x00, 0x01}:
		return netip.AddrFrom4([4]byte(b[12:])), true
	case b[0] == 0x20 && b[1] == 0x02:
		return netip.AddrFrom4([4]byte(b[2:6])), true
	case [12]byte(b[:12]) == [12]byte{} && b[12] != 0:
		return netip.AddrFrom4([4]byte(b[12:])), true
	}
	return netip.Addr{}, false
}
