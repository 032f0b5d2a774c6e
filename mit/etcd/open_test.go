package etcd_test

import (
	"context"
	"crypto/x509"
	"errors"
	"net"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.etcd.io/etcd/client/pkg/v3/transport"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"

	"github.com/mimiktech/cluster/mit/etcd"
	"github.com/mimiktech/cluster/mit/etcd/internal/etcdtest"
)

func TestConfig(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		cfg  etcd.Config
		says []string
	}{
		"nothing":        {etcd.Config{}, []string{"Endpoints"}},
		"empty endpoint": {etcd.Config{Endpoints: []string{"127.0.0.1:1", ""}}, []string{"Endpoints"}},
		"all at once": {
			etcd.Config{Username: "u", Timeout: -1},
			[]string{"Endpoints", "Password", "Timeout"},
		},
		"password alone": {etcd.Config{Endpoints: []string{"127.0.0.1:1"}, Password: "hunter2"}, []string{"Username"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			_, err := etcd.Open(t.Context(), test.cfg)
			if err == nil {
				t.Fatal("opened")
			}
			for _, part := range test.says {
				if !strings.Contains(err.Error(), part) {
					t.Errorf("error %q does not say %s", err, part)
				}
			}
			if strings.Contains(err.Error(), "hunter2") {
				t.Errorf("error %q tells the password", err)
			}
		})
	}
}

// If etcd is unusable, Open returns one error with the endpoints and the cause within its timeout.
func TestUnreachable(t *testing.T) {
	t.Parallel()
	closed, silent := listen(t), listen(t)
	_ = closed.Close()
	_, port, err := net.SplitHostPort(closed.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	good := etcdtest.Run(t, 1)
	for name, test := range map[string]struct {
		endpoints []string
		reason    string
	}{
		"refused":          {[]string{closed.Addr().String()}, "connection refused"},
		"refused, as URLs": {[]string{"http://" + closed.Addr().String(), "http://localhost:" + port}, "connection refused"},
		"silent":           {[]string{silent.Addr().String()}, "no answer within 2s"},
		"not TLS":          {[]string{"https://" + good.Endpoints[0]}, "authentication handshake failed"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			start := time.Now()
			_, err := etcd.Open(t.Context(), etcd.Config{Endpoints: test.endpoints, Timeout: 2 * time.Second})
			if err == nil {
				t.Fatal("opened")
			}
			for _, part := range append(test.endpoints, test.reason) {
				if !strings.Contains(err.Error(), part) {
					t.Errorf("error %q does not say %s", err, part)
				}
			}
			if took := time.Since(start); took > 4*time.Second {
				t.Errorf("it took %v", took)
			}
		})
	}
	t.Run("one of two", func(t *testing.T) {
		t.Parallel()
		put(t, open(t, etcd.Config{Endpoints: []string{closed.Addr().String(), good.Endpoints[0]}, Prefix: "/one-of-two"}), "a")
	})
	t.Run("caller gone", func(t *testing.T) {
		t.Parallel()
		ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
		defer cancel()
		if _, err := etcd.Open(ctx, etcd.Config{Endpoints: []string{silent.Addr().String()}}); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("error %v, want that of the context", err)
		}
	})
}

// listen returns an address that accepts connections and never responds.
func listen(t *testing.T) net.Listener {
	t.Helper()
	ln, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = ln.Close() })
	return ln
}

// A store needs a user with access to its prefix only.
func TestPassword(t *testing.T) {
	t.Parallel()
	c := etcdtest.RunWith(t, etcdtest.Options{Members: 1, Dir: t.TempDir(), TokenTTL: time.Second})
	client := c.Client(t)
	ctx := t.Context()
	prefix := clientv3.GetPrefixRangeEnd("/mit/")
	for _, err := range []error{
		second(client.UserAdd(ctx, "root", "toor")),
		second(client.UserGrantRole(ctx, "root", "root")),
		second(client.RoleAdd(ctx, "mit")),
		second(client.RoleGrantPermission(ctx, "mit", "/mit/", prefix, clientv3.PermissionType(clientv3.PermReadWrite))),
		second(client.UserAdd(ctx, "mit", "hunter2")),
		second(client.UserGrantRole(ctx, "mit", "mit")),
		second(client.AuthEnable(ctx)),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	s := open(t, etcd.Config{Endpoints: c.Endpoints, Username: "mit", Password: "hunter2"})
	put(t, s, "a")
	put(t, s, "a")
	if err := s.Delete(ctx, mds, "a"); err != nil {
		t.Error(err)
	}
	if !reads(t, s) {
		t.Error("the deleted server is read")
	}

	for name, test := range map[string]struct {
		cfg    etcd.Config
		reason string
	}{
		"wrong password": {etcd.Config{Username: "mit", Password: "hunter3"}, "authentication failed"},
		"no password":    {etcd.Config{}, "user name is empty"},
		"other prefix":   {etcd.Config{Username: "mit", Password: "hunter2", Prefix: "/other"}, "permission denied"},
	} {
		test.cfg.Endpoints, test.cfg.Timeout = c.Endpoints, maxWait
		start := time.Now()
		_, err := etcd.Open(ctx, test.cfg)
		if err == nil || !strings.Contains(err.Error(), test.reason) || strings.Contains(err.Error(), "hunter") {
			t.Errorf("%s: error %v, want one that says %s", name, err, test.reason)
		}
		if took := time.Since(start); took > maxWait/2 {
			t.Errorf("%s: it took %v to find out", name, took)
		}
	}

	// Unused tokens expire.
	time.Sleep(3 * time.Second)
	put(t, s, "a")
	if err := s.Delete(ctx, mds, "a"); err != nil {
		t.Error(err)
	}

	// A restart of etcd invalidates the tokens that it has issued.
	c.Kill(0)
	if err := c.Restart(0); err != nil {
		t.Fatal(err)
	}
	eventually(t, "servers register again", func() bool {
		_, err := s.Put(ctx, registration("b"), hour)
		return err == nil
	})
	eventually(t, "all is well", func() bool { return s.Health() == nil })
	put(t, s, "c")
	eventually(t, "the store follows again", func() bool { return reads(t, s, "b", "c") })
}

func second[T any](_ T, err error) error { return err }

// Both sides use certificates.
func TestTLS(t *testing.T) {
	t.Parallel()
	certs := filepath.Join(t.TempDir(), "certs")
	self, err := transport.SelfCert(zap.NewNop(), certs, []string{"127.0.0.1:0"}, 1, x509.ExtKeyUsageClientAuth)
	if err != nil {
		t.Fatal(err)
	}
	info := transport.TLSInfo{CertFile: self.CertFile, KeyFile: self.KeyFile, TrustedCAFile: self.CertFile, ClientCertAuth: true}
	c := etcdtest.RunWith(t, etcdtest.Options{Members: 1, Dir: t.TempDir(), TLS: info})
	good, err := info.ClientConfig()
	if err != nil {
		t.Fatal(err)
	}
	url := "https://" + c.Endpoints[0]
	for _, endpoint := range []string{url, c.Endpoints[0]} {
		put(t, open(t, etcd.Config{Endpoints: []string{endpoint}, TLS: good}), "a")
	}

	anonymous := good.Clone()
	anonymous.GetClientCertificate = nil
	// With TLS 1.3, the member may close the connection before the client has read its alert.
	if _, err := etcd.Open(t.Context(), etcd.Config{Endpoints: []string{url}, TLS: anonymous, Timeout: 3 * time.Second}); err == nil || !strings.Contains(err.Error(), url) {
		t.Errorf("without a certificate of its own: %v", err)
	}
	if _, err := etcd.Open(t.Context(), etcd.Config{Endpoints: []string{url}, Timeout: 3 * time.Second}); err == nil || !strings.Contains(err.Error(), "x509: certificate signed by unknown authority") {
		t.Errorf("with an unknown authority: %v", err)
	}
}
