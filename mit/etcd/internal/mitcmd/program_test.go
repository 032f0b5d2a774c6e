package mitcmd

import (
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"go.etcd.io/etcd/client/pkg/v3/transport"
	"go.uber.org/zap"
)

func TestConfig(t *testing.T) {
	dir := t.TempDir()
	self, err := transport.SelfCert(zap.NewNop(), dir, []string{"127.0.0.1:0"}, 1)
	if err != nil {
		t.Fatal(err)
	}
	passwordFile := filepath.Join(dir, "password")
	if err := os.WriteFile(passwordFile, []byte("from the file\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, test := range map[string]struct {
		args     []string
		variable string
		says     string // the error; none
		password string
		tls      bool
	}{
		"defaults":             {},
		"password unused":      {variable: "p"},
		"password of variable": {args: []string{"--etcd-user", "u"}, variable: "p", password: "p"},
		"password of file":     {args: []string{"--etcd-user", "u", "--etcd-password-file", passwordFile}, variable: "p", password: "from the file"},
		"no password":          {args: []string{"--etcd-user", "u"}, says: passwordVariable},
		"no such file":         {args: []string{"--etcd-user", "u", "--etcd-password-file", dir + "/none"}, says: dir + "/none"},
		"file without user":    {args: []string{"--etcd-password-file", passwordFile}, says: "--etcd-user"},
		"authority":            {args: []string{"--etcd-cacert", self.CertFile}, tls: true},
		"certificate":          {args: []string{"--etcd-cert", self.CertFile, "--etcd-key", self.KeyFile}, tls: true},
		"no key":               {args: []string{"--etcd-cert", self.CertFile}, says: "--etcd-key"},
		"no certificate":       {args: []string{"--etcd-key", self.KeyFile}, says: "--etcd-cert"},
		"no such authority":    {args: []string{"--etcd-cacert", dir + "/none"}, says: dir + "/none"},
		"not a key":            {args: []string{"--etcd-cert", self.CertFile, "--etcd-key", passwordFile}, says: "certificates for etcd"},
		"no time":              {args: []string{"--etcd-timeout", "0s"}, says: "--etcd-timeout"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Setenv(passwordVariable, test.variable)
			var f flags
			fs := flag.NewFlagSet("", flag.ContinueOnError)
			f.add(fs)
			if err := fs.Parse(test.args); err != nil {
				t.Fatal(err)
			}
			cfg, err := f.config(zap.NewNop())
			if test.says != "" {
				if err == nil || !strings.Contains(err.Error(), test.says) {
					t.Errorf("error %v, want one that says %s", err, test.says)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if string(cfg.Password) != test.password || (cfg.TLS != nil) != test.tls {
				t.Errorf("password %q, TLS %v; want %q, %v", string(cfg.Password), cfg.TLS != nil, test.password, test.tls)
			}
		})
	}
}
