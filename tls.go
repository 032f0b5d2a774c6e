package cluster

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/mimiktech/cluster/internal/reread"
)

// WithPeerTLS sets the TLS configuration of requests to peers: a private CA in RootCAs, or a client
// certificate. It is cloned. See [KeyPair] for certificates that are renewed on disk.
//
// InsecureSkipVerify is an error unless VerifyPeerCertificate or VerifyConnection is set, too. If
// one of these or GetClientCertificate panics, the request fails with a [PanicError].
func WithPeerTLS(cfg *tls.Config) Option {
	return optionFunc(func(o *options) { o.peerTLS = markErrors(cfg) })
}

// WithBackendTLS is like [WithPeerTLS], for requests to the registry and the token service.
func WithBackendTLS(cfg *tls.Config) Option {
	return optionFunc(func(o *options) { o.backendTLS = markErrors(cfg) })
}

// A KeyPair is a certificate and its private key in two PEM files. It reads them again when they
// change, so that a certificate can be renewed on disk without a restart. Its methods have the
// signatures of the functions of a [tls.Config], and are safe for concurrent use:
//
//	pair, err := cluster.LoadKeyPair("tls.crt", "tls.key", logError)
//	server := &tls.Config{GetCertificate: pair.GetCertificate}
//	client := &tls.Config{GetClientCertificate: pair.GetClientCertificate}
//
// The files may be symbolic links that are replaced, as in a secret that Kubernetes mounts.
// Connections that are open keep the certificate that they began with.
type KeyPair struct {
	certFile string
	value    *reread.Value[*tls.Certificate]
	onError  func(error)

	mu       sync.Mutex // guards the field below
	reported string     // the last error passed to onError
}

// LoadKeyPair reads a certificate, the intermediate certificates that follow it, and its key. It
// returns an error that names the files if they cannot be read or do not match, or if the
// certificate has expired.
//
// If the files change later and cannot be used, the last certificate stays in use until it expires,
// and onError is called with the reason. It is called again when the reason changes. It is called
// during a TLS handshake and must not block. It may be nil.
func LoadKeyPair(certFile, keyFile string, onError func(error)) (*KeyPair, error) {
	k := &KeyPair{certFile: certFile, onError: onError}
	k.value = reread.New(func(contents [][]byte) (*tls.Certificate, error) {
		cert, err := tls.X509KeyPair(contents[0], contents[1])
		if err != nil {
			return nil, fmt.Errorf("certificate %s with key %s: %w", certFile, keyFile, err)
		}
		return &cert, k.checkValidity(&cert)
	}, certFile, keyFile)
	if _, _, err := k.value.Get(); err != nil {
		return nil, fmt.Errorf("cluster: %w", err)
	}
	return k, nil
}

// GetCertificate has the signature of [tls.Config].GetCertificate, for a server.
func (k *KeyPair) GetCertificate(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	return k.certificate()
}

// GetClientCertificate has the signature of [tls.Config].GetClientCertificate, for a client.
func (k *KeyPair) GetClientCertificate(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
	return k.certificate()
}

func (k *KeyPair) certificate() (*tls.Certificate, error) {
	cert, _, err := k.value.Get()
	expired := k.checkValidity(cert)
	k.report(errors.Join(err, expired))
	if expired != nil {
		return nil, fmt.Errorf("cluster: %w", expired)
	}
	return cert, nil
}

func (k *KeyPair) report(err error) {
	text := ""
	if err != nil {
		text = err.Error()
	}
	k.mu.Lock()
	isNew := text != k.reported
	k.reported = text
	k.mu.Unlock()
	if isNew && err != nil && k.onError != nil {
		k.onError(fmt.Errorf("cluster: %w", err))
	}
}

func (k *KeyPair) checkValidity(cert *tls.Certificate) error {
	now, leaf := time.Now(), cert.Leaf
	if now.After(leaf.NotAfter) {
		return fmt.Errorf("certificate %s has expired at %s", k.certFile, leaf.NotAfter.Format(time.RFC3339))
	}
	if now.Before(leaf.NotBefore) {
		return fmt.Errorf("certificate %s is not valid before %s", k.certFile, leaf.NotBefore.Format(time.RFC3339))
	}
	return nil
}

// A handshakeError is the error of a function of a tls.Config. It means that a server responded,
// but the TLS handshake failed. So the server must not be treated as unreachable.
type handshakeError struct{ err error }

func (e *handshakeError) Error() string { return e.err.Error() }
func (e *handshakeError) Unwrap() error { return e.err }

// markErrors returns a copy of cfg whose functions return a *handshakeError, also if they panic:
// they run on goroutines of net/http, which does not recover a panic.
func markErrors(cfg *tls.Config) *tls.Config {
	cfg = cfg.Clone()
	if cfg == nil {
		return nil
	}
	mark := func(err *error) {
		if *err != nil {
			*err = &handshakeError{*err}
		}
	}
	if get := cfg.GetClientCertificate; get != nil {
		cfg.GetClientCertificate = func(info *tls.CertificateRequestInfo) (_ *tls.Certificate, err error) {
			defer mark(&err)
			defer catchPanic("GetClientCertificate", &err)
			return get(info)
		}
	}
	if verify := cfg.VerifyPeerCertificate; verify != nil {
		cfg.VerifyPeerCertificate = func(raw [][]byte, chains [][]*x509.Certificate) (err error) {
			defer mark(&err)
			defer catchPanic("VerifyPeerCertificate", &err)
			return verify(raw, chains)
		}
	}
	if verify := cfg.VerifyConnection; verify != nil {
		cfg.VerifyConnection = func(state tls.ConnectionState) (err error) {
			defer mark(&err)
			defer catchPanic("VerifyConnection", &err)
			return verify(state)
		}
	}
	return cfg
}

// validateTLS rejects a configuration that does not verify the certificate of the remote.
func validateTLS(p *problems, option string, cfg *tls.Config) {
	if cfg != nil && cfg.InsecureSkipVerify && cfg.VerifyPeerCertificate == nil && cfg.VerifyConnection == nil {
		p.add(option, "has InsecureSkipVerify: set RootCAs to the CA of the certificates instead")
	}
}
