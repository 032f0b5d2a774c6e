package peeraddr

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
)

func TestParse(t *testing.T) {
	for text, want := range map[string]string{
		"http://mds-1:8080/mds/v1":  "http://mds-1:8080/mds/v1",
		"https://mds-1/mds/v1//":    "https://mds-1/mds/v1",
		"http://[2001:db8::1]:80":   "http://[2001:db8::1]:80",
		"http://mds-1/a%2Fb/":       "http://mds-1/a%2Fb",
		"":                          "not an absolute http or https URL",
		"mds-1:8080":                "not an absolute http or https URL",
		"/mds/v1":                   "not an absolute http or https URL",
		"ftp://mds-1":               "not an absolute http or https URL",
		"http://user:word@mds-1/":   "a URL with credentials in it",
		"http://user:wo\nrd@mds-1/": "not a URL",
		"http:///mds/v1":            "a URL without a host",
		"http://:8080":              "a URL without a host",
		"http://mds-1/?":            "a URL with more than a path",
		"http://mds-1/?q=1":         "a URL with more than a path",
		"http://mds-1/#":            "a URL with more than a path",
	} {
		got := ""
		if u, err := Parse(text); err != nil {
			got = err.Error()
		} else {
			got = u.String()
		}
		if got != want {
			t.Errorf("%q: %s, want %s", text, got, want)
		}
	}
}

func TestParseList(t *testing.T) {
	urls, err := ParseList(" http://a/ ,, http://b, http://a")
	if want := []string{"http://a", "http://b"}; err != nil || !slices.Equal(urls, want) {
		t.Errorf("got %q, %v, want %q", urls, err, want)
	}
	if _, err := ParseList("a"); err == nil || err.Error() != "not an absolute http or https URL" {
		t.Errorf("a single malformed URL: %v", err)
	}
	_, err = ParseList("http://a,b,http://c:secret@d")
	want := "entry 2 of 3 is not an absolute http or https URL, entry 3 of 3 is a URL with credentials in it"
	if err == nil || err.Error() != want {
		t.Errorf("error %v, want %s", err, want)
	}
}

func TestNetworks(t *testing.T) {
	ten := Networks{netip.MustParsePrefix("10.0.0.0/8")}
	for _, tc := range []struct {
		networks Networks
		host     string
		refused  bool
	}{
		{nil, "10.1.2.3", false},
		{nil, "127.0.0.1", false},
		{nil, "2001:db8::1", false},
		{nil, "a.name", false},
		{nil, "169.254.169.254", true},
		{nil, "::ffff:169.254.169.254", true},
		{nil, "fe80::1", true},
		{nil, "fe80::1%eth0", true},
		{Networks{netip.MustParsePrefix("fe80::/10")}, "fe80::1%eth0", false},
		{Networks{netip.MustParsePrefix("fe80::/10")}, "2001:db8::1", true},
		{nil, "224.0.0.1", true},
		{nil, "fd00:ec2::254", true},
		{nil, "fd20:ce::254", true},
		{nil, "100.100.100.200", true},
		{nil, "168.63.129.16", true},
		{nil, "192.0.0.192", true},
		{nil, "64:ff9b::a9fe:a9fe", true},
		{nil, "64:ff9b::0a01:0203", false},
		{nil, "2002:a9fe:a9fe::1", true},
		{nil, "::169.254.169.254", true},
		{nil, "::1", false},
		{Networks{netip.MustParsePrefix("fd00::/8")}, "fd00:ec2::254", true},
		{Networks{netip.MustParsePrefix("fd00::/8")}, "fd00::1", false},
		{Networks{netip.MustParsePrefix("169.254.169.254/32")}, "169.254.169.254", false},
		{nil, "0.0.0.0", true},
		{ten, "10.1.2.3", false},
		{ten, "::ffff:10.1.2.3", false},
		{ten, "192.168.0.1", true},
		{ten, "a.name", false},
	} {
		if err := tc.networks.CheckHost(tc.host); (err != nil) != tc.refused {
			t.Errorf("%v: %s: %v", tc.networks, tc.host, err)
		}
		address := tc.host + ":80"
		if strings.Contains(tc.host, ":") {
			address = "[" + tc.host + "]:80"
		}
		// What is dialed is never a name: one that arrives here is refused.
		refused := tc.refused || tc.host == "a.name"
		if err := tc.networks.Control("tcp", address, nil); (err != nil) != refused {
			t.Errorf("%v: dialing %s: %v", tc.networks, address, err)
		}
	}
}

func TestParseNetworks(t *testing.T) {
	n, err := ParseNetworks(" 10.1.2.3/8 ,, fd00::/8, 192.168.0.1 ")
	if want := "[10.0.0.0/8 fd00::/8 192.168.0.1/32]"; err != nil || fmt.Sprint(n) != want {
		t.Errorf("%v, %v, want %s", n, err, want)
	}
	for _, list := range []string{"10.0.0.0/33", "10.0.0.0/8;fd00::/8", "mds-1", "fe80::1%eth0"} {
		if n, err := ParseNetworks(list); err == nil {
			t.Errorf("%s: %v", list, n)
		}
	}
}

func TestIntersect(t *testing.T) {
	for _, tc := range []struct{ a, b, want string }{
		{"", "", "[]"},
		{"10.0.0.0/8", "", "[10.0.0.0/8]"},
		{"", "10.0.0.0/8", "[10.0.0.0/8]"},
		{"10.0.0.0/8, fd00::/8", "10.1.0.0/16", "[10.1.0.0/16]"},
		{"10.1.0.0/16", "10.0.0.0/8, fd00::/8", "[10.1.0.0/16]"},
		{"10.0.0.0/8", "192.168.0.0/16", "[]"},
	} {
		a, _ := ParseNetworks(tc.a)
		b, _ := ParseNetworks(tc.b)
		if got := fmt.Sprint(a.Intersect(b)); got != tc.want {
			t.Errorf("%q and %q: %s, want %s", tc.a, tc.b, got, tc.want)
		}
	}
}
