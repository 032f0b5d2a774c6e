package command

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"sync"

	"go.uber.org/zap"

	"github.com/mimiktech/cluster/internal/reread"
)

// tlsFiles are the PEM files of the server. They are read again when they change, so that a
// certificate can be renewed without a restart.
type tlsFiles struct {
	value *reread.Value[*tls.Config]
	log   *zap.Logger

	mu       sync.Mutex // guards the field below
	reported string     // the last error that was logged; "" if the files are valid
}

// newTLSFiles returns nil if no file is set. The files must be valid now.
func newTLSFiles(cert, key, clientCA string, log *zap.Logger) (*tlsFiles, error) {
	switch {
	case cert == "" && key == "" && clientCA == "":
		return nil, nil
	case cert == "" || key == "":
		return nil, errors.New("--tls-cert, --tls-key and --client-ca: the first two are needed")
	}
	paths := []string{cert, key}
	if clientCA != "" { // otherwise clients need no certificate
		paths = append(paths, clientCA)
	}
	f := &tlsFiles{log: log, value: reread.New(func(contents [][]byte) (*tls.Config, error) {
		return parseTLSFiles(paths, contents)
	}, paths...)}
	if _, _, err := f.value.Get(); err != nil {
		return nil, fmt.Errorf("--tls-cert, --tls-key and --client-ca: %w", err)
	}
	return f, nil
}

func parseTLSFiles(paths []string, contents [][]byte) (*tls.Config, error) {
	pair, err := tls.X509KeyPair(contents[0], contents[1])
	if err != nil {
		return nil, fmt.Errorf("certificate %s with key %s: %w", paths[0], paths[1], err)
	}
	cfg := &tls.Config{
		MinVersion:   tls.VersionTLS12,
		Certificates: []tls.Certificate{pair},
		NextProtos:   []string{"h2", "http/1.1"},
	}
	if len(contents) > 2 {
		cfg.ClientCAs, cfg.ClientAuth = x509.NewCertPool(), tls.RequireAndVerifyClientCert
		if !cfg.ClientCAs.AppendCertsFromPEM(contents[2]) {
			return nil, fmt.Errorf("%s contains no certificate", paths[2])
		}
	}
	return cfg, nil
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

// latest returns the configuration of the files. If they have become invalid, it logs the reason
// once and returns the last valid configuration.
func (f *tlsFiles) latest() *tls.Config {
	cfg, _, err := f.value.Get()
	text := ""
	if err != nil {
		text = err.Error()
	}
	f.mu.Lock()
	isNew := text != f.reported
	f.reported = text
	f.mu.Unlock()
	if isNew && err != nil {
		f.log.Error("certificate files are not valid: the previous ones stay in use", zap.Error(err))
	}
	return cfg
}
