// Package mitcmd is the program of cmd/mit. Tests that kill it run it in a process of their own.
package mitcmd

import (
	"context"
	"crypto/tls"
	"errors"
	"flag"
	"fmt"
	"os"
	"strings"
	"time"

	"go.etcd.io/etcd/client/pkg/v3/transport"
	"go.uber.org/zap"

	"github.com/mimiktech/cluster"
	"github.com/mimiktech/cluster/clusterjwks"
	"github.com/mimiktech/cluster/mit"
	"github.com/mimiktech/cluster/mit/command"
	"github.com/mimiktech/cluster/mit/etcd"
)

const (
	passwordVariable = "MIT_ETCD_PASSWORD"

	about = `
It keeps the servers in etcd. Several processes over one etcd are replicas of one registry:
give them the same key, clients, --url and --etcd-prefix.
`
)

// New returns the program, whose flags have not been parsed yet.
func New() command.Command {
	var f flags
	return command.Command{Name: "mit", About: about, Flags: f.add, Open: f.open, VerifyJWKS: verifyJWKS}
}

type flags struct {
	endpoints, prefix  string
	ca, cert, key      string
	user, passwordFile string
	timeout            time.Duration
}

func (f *flags) add(fs *flag.FlagSet) {
	fs.StringVar(&f.endpoints, "etcd-endpoints", "127.0.0.1:2379", "`addresses` of the members of etcd, separated by commas")
	fs.StringVar(&f.prefix, "etcd-prefix", "/mit", "`prefix` of all keys in etcd")
	fs.StringVar(&f.ca, "etcd-cacert", "", "`file` with the authority of etcd's certificates (default for https: the system's authorities)")
	fs.StringVar(&f.cert, "etcd-cert", "", "`file` with the client certificate for etcd")
	fs.StringVar(&f.key, "etcd-key", "", "`file` with the key of that certificate")
	fs.StringVar(&f.user, "etcd-user", "", "`name` of the etcd user; its password is in the variable "+passwordVariable+" or in a file")
	fs.StringVar(&f.passwordFile, "etcd-password-file", "", "`file` with the password of that user")
	fs.DurationVar(&f.timeout, "etcd-timeout", 5*time.Second, "timeout of calls to etcd, including the first")
}

// verifyJWKS returns the check of tokens with the keys of another token service.
func verifyJWKS(ctx context.Context, keys command.JWKS, log *zap.Logger) (command.VerifyToken, error) {
	verifier, err := clusterjwks.New(clusterjwks.Config{URL: keys.URL, Issuer: keys.Issuer, Audience: keys.Audience, Logger: log})
	if err != nil {
		return nil, fmt.Errorf("--jwks-url: %w", err)
	}
	return func(token string) (cluster.Claims, error) { return verifier.Verify(ctx, token) }, nil
}

func (f *flags) open(ctx context.Context, log *zap.Logger) (mit.Store, func() error, error) {
	cfg, err := f.config(log)
	if err != nil {
		return nil, nil, err
	}
	s, err := etcd.Open(ctx, cfg)
	if err != nil {
		return nil, nil, err
	}
	return s, s.Close, nil
}

func (f *flags) config(log *zap.Logger) (etcd.Config, error) {
	tlsConfig, tlsErr := f.tls()
	password, passwordErr := f.password()
	var timeoutErr error
	if f.timeout <= 0 {
		timeoutErr = fmt.Errorf("invalid --etcd-timeout %v: not positive", f.timeout)
	}
	endpoints := strings.Split(f.endpoints, ",")
	for i := range endpoints {
		endpoints[i] = strings.TrimSpace(endpoints[i])
	}
	return etcd.Config{
		Endpoints: endpoints,
		Prefix:    f.prefix,
		TLS:       tlsConfig,
		Username:  f.user,
		Password:  password,
		Timeout:   f.timeout,
		Logger:    log,
	}, errors.Join(tlsErr, passwordErr, timeoutErr)
}

// tls returns nil if none of its flags is given.
func (f *flags) tls() (*tls.Config, error) {
	if f.ca == "" && f.cert == "" && f.key == "" {
		return nil, nil
	}
	if (f.cert == "") != (f.key == "") {
		return nil, errors.New("--etcd-cert and --etcd-key must be given together")
	}
	// The files are read again for every connection, so they may be replaced while it runs.
	cfg, err := transport.TLSInfo{TrustedCAFile: f.ca, CertFile: f.cert, KeyFile: f.key}.ClientConfig()
	if err != nil {
		return nil, fmt.Errorf("certificates for etcd: %w", err)
	}
	return cfg, nil
}

func (f *flags) password() (cluster.Secret, error) {
	if f.user == "" {
		if f.passwordFile != "" {
			return "", errors.New("--etcd-password-file needs --etcd-user")
		}
		return "", nil
	}
	if f.passwordFile == "" {
		password := os.Getenv(passwordVariable) //nolint:forbidigo // a program reads its environment
		if password == "" {
			return "", fmt.Errorf("--etcd-user needs a password, in the variable %s or in a file given by --etcd-password-file", passwordVariable)
		}
		return cluster.Secret(password), nil
	}
	b, err := os.ReadFile(f.passwordFile)
	if err != nil {
		return "", err
	}
	return cluster.Secret(strings.TrimRight(string(b), "\r\n")), nil
}
