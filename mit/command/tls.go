package command

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"os"
	"sync"
	"time"

	"go.uber.org/zap"
)

// tlsFiles are the PEM files of the server. They are read again when they change, so that a
// certificate can be renewed without a restart.
type tlsFiles struct {
	cert, key string
	clientCA  string // if "", clients need no certificate
	log       *zap.Logger

	mu       sync.Mutex // guards the fields below
	modified [3]time.Time
	current  *tls.Config
}

// newTLSFiles returns nil if no file is set. The files must be valid now.
func newTLSFiles(cert, key, clientCA string, log *zap.Logger) (*tlsFiles, error) {
	switch {
	case cert == "" && key == "" && clientCA == "":
		return nil, nil
	case cert == "" || key == "":
		return nil, errors.New("--tls-cert, --tls-key and --client-ca: the first two are needed")
	}
	f := &tlsFiles{cert: cert, key: key, clientCA: clientCA, log: log}
	if err := f.reloadLocked(); err != nil {
		return nil, err
	}
	return f, nil
}

func (f *tlsFiles) serverConfig() *tls.Config {
	return &tls.Config{
		MinVersion:         tls.VersionTLS12,
		GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) { return f.latest(), nil },
		GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) { // ServeTLS requires one
			return &f.latest().Certificates[0], nil
		},
	}
}

// latest returns the configuration of the files. If they have become invalid, it logs that and
// returns the last valid one.
func (f *tlsFiles) latest() *tls.Config {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.modifiedAt() != f.modified {
		if err := f.reloadLocked(); err != nil {
			f.log.Error("certificate files are not valid: the previous ones stay in use", zap.Error(err))
		}
	}
	return f.current
}

func (f *tlsFiles) modifiedAt() (times [3]time.Time) {
	for i, name := range []string{f.cert, f.key, f.clientCA} {
		if info, err := os.Stat(name); err == nil {
			times[i] = info.ModTime()
		}
	}
	return times
}

func (f *tlsFiles) reloadLocked() error {
	f.modified = f.modifiedAt() // before the files are read, and also if they are invalid
	pair, err := tls.LoadX509KeyPair(f.cert, f.key)
	if err != nil {
		return fmt.Errorf("--tls-cert and --tls-key: %w", err)
	}
	cfg := &tls.Config{
		MinVersion:   tls.VersionTLS12,
		Certificates: []tls.Certificate{pair},
		NextProtos:   []string{"h2", "http/1.1"},
	}
	if f.clientCA != "" {
		pem, err := os.ReadFile(f.clientCA)
		if err != nil {
			return fmt.Errorf("--client-ca: %w", err)
		}
		cfg.ClientCAs, cfg.ClientAuth = x509.NewCertPool(), tls.RequireAndVerifyClientCert
		if !cfg.ClientCAs.AppendCertsFromPEM(pem) {
			return fmt.Errorf("--client-ca: %s contains no certificate", f.clientCA)
		}
	}
	f.current = cfg
	return nil
}
