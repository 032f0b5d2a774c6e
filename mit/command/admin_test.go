package command

import (
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"go.uber.org/zap"

	"github.com/mimiktech/cluster/mit"
)

func TestStatusPageNeedsAdminToken(t *testing.T) {
	const token = "an admin token for this test"
	file := filepath.Join(t.TempDir(), "admin")
	writeFile(t, file, token+"\n")
	development := &mit.Client{ID: "mds", Secret: "s", Type: "mds"}
	local, public := &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: 4000}, &net.TCPAddr{IP: net.IPv4(10, 0, 0, 1), Port: 4000}
	basic := func(r *http.Request) { r.SetBasicAuth("operator", token) }
	bearer := func(r *http.Request) { r.Header.Set("Authorization", "Bearer "+token) }
	wrong := func(r *http.Request) { r.SetBasicAuth("operator", token+"?") }
	fromThisMachine := func(r *http.Request) { r.RemoteAddr, r.Host = "127.0.0.1:5", "localhost:4000" }
	rebound := func(r *http.Request) { r.RemoteAddr, r.Host = "127.0.0.1:5", "evil.test:4000" }
	none := func(*http.Request) {}
	for name, c := range map[string]struct {
		settings settings
		listen   net.Addr
		request  func(*http.Request)
		code     int
	}{
		"password":                      {settings{adminTokenFile: file}, public, basic, 200},
		"bearer token":                  {settings{adminTokenFile: file}, public, bearer, 200},
		"wrong token":                   {settings{adminTokenFile: file}, public, wrong, 401},
		"no token":                      {settings{adminTokenFile: file}, local, fromThisMachine, 401},
		"development":                   {settings{development: development}, local, fromThisMachine, 200},
		"development, another machine":  {settings{development: development}, local, none, 403},
		"development, name of a site":   {settings{development: development}, local, rebound, 403},
		"development, public address":   {settings{development: development}, public, fromThisMachine, 404},
		"no development, local address": {settings{}, local, fromThisMachine, 404},
	} {
		t.Run(name, func(t *testing.T) {
			registry, err := mit.NewRegistry(mit.NewMemory(), mit.RegistryConfig{Issuer: "i", Audience: "a", Keys: []string{"key"}})
			if err != nil {
				t.Fatal(err)
			}
			v := &services{registry: registry, log: zap.NewNop()}
			if v.status, err = v.statusHandler(&c.settings, c.listen); err != nil {
				t.Fatal(err)
			}
			for _, method := range []string{"GET", "POST"} {
				w, r := httptest.NewRecorder(), httptest.NewRequest(method, "/", nil)
				c.request(r)
				v.ServeHTTP(w, r)
				want := c.code
				if method == "POST" && want == 200 {
					want = 400 // a form without fields
				}
				if w.Code != want {
					t.Errorf("%s: status %d, want %d: %.200s", method, w.Code, want, w.Body)
				}
			}
		})
	}
}

func TestAdminTokenMustBeSecret(t *testing.T) {
	file := filepath.Join(t.TempDir(), "admin")
	for _, token := range []string{"", "short token", "change-me-----------"} {
		writeFile(t, file, token)
		_, err := readAdminToken(file)
		if err == nil || token != "" && strings.Contains(err.Error(), token) {
			t.Errorf("%q: %v", token, err)
		}
	}
	if err := os.Remove(file); err != nil {
		t.Fatal(err)
	}
	if _, err := readAdminToken(file); err == nil || !strings.Contains(err.Error(), "--admin-token-file") {
		t.Errorf("no file: %v", err)
	}
}
