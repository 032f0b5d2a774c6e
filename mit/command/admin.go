package command

import (
	"crypto/sha256"
	"crypto/subtle"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"os"
	"strings"

	"github.com/mimiktech/cluster"
	"github.com/mimiktech/cluster/internal/httpjson"
)

// statusHandler returns the status page of the registry, which is at the path /; nil if there is
// none. The page needs the admin token. Without --admin-token-file, there is a page in development
// only, for callers on this machine.
func (v *services) statusHandler(s *settings, listen net.Addr) (http.Handler, error) {
	options := cluster.StatusOptions{Actions: true}
	switch {
	case s.adminTokenFile != "":
		token, err := readAdminToken(s.adminTokenFile)
		if err != nil {
			return nil, err
		}
		options.Auth = func(next http.Handler) http.Handler { return requireToken(token, next) }
	case s.development != nil && isLoopback(listen.String()):
		options.Auth = requireLoopback
	default:
		return nil, nil
	}
	return v.registry.StatusHandler(options), nil
}

// minTokenBytes is the length of an admin token that cannot be guessed.
const minTokenBytes = 16

// readAdminToken reads the file with the admin token. The error does not quote it.
func readAdminToken(name string) (string, error) {
	text, err := os.ReadFile(name)
	if err != nil {
		return "", fmt.Errorf("--admin-token-file: %w", err)
	}
	token := strings.TrimSpace(string(text))
	if len(token) < minTokenBytes || isPlaceholder(token) {
		return "", fmt.Errorf("--admin-token-file: the token in %s is a placeholder, or has less than %d bytes", name, minTokenBytes)
	}
	return token, nil
}

// requireToken lets requests with the admin token through: as a bearer token, or as the password of
// a browser, with any name.
func requireToken(token string, next http.Handler) http.Handler {
	want := sha256.Sum256([]byte(token))
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		given, err := httpjson.BearerToken(r.Header)
		if err != nil {
			_, given, _ = r.BasicAuth()
		}
		got := sha256.Sum256([]byte(given))
		if subtle.ConstantTimeCompare(got[:], want[:]) != 1 {
			w.Header().Set("WWW-Authenticate", `Basic realm="registry", charset="UTF-8"`)
			httpjson.WriteError(w, http.StatusUnauthorized, "the admin token is required: as a bearer token, or as the password")
			return
		}
		next.ServeHTTP(w, r)
	})
}

// requireLoopback lets requests from this machine through that name it by a loopback address, or as
// localhost. A page of another site could otherwise use a name of its own for this machine.
func requireLoopback(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !isLoopback(r.RemoteAddr) || !isLoopback(r.Host) {
			httpjson.WriteError(w, http.StatusForbidden, "without --admin-token-file, the status page is for callers on this machine")
			return
		}
		next.ServeHTTP(w, r)
	})
}

// isLoopback reports whether an address, with or without a port, is one of this machine only.
func isLoopback(address string) bool {
	host := address
	if h, _, err := net.SplitHostPort(address); err == nil {
		host = h
	}
	if strings.EqualFold(host, "localhost") {
		return true
	}
	ip, err := netip.ParseAddr(strings.Trim(host, "[]"))
	return err == nil && ip.IsLoopback()
}
