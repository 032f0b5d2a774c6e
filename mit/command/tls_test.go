package command

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"io"
	"math/big"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"
)

// writeCertificate writes a certificate that is its own authority, and its key.
func writeCertificate(t *testing.T, name, certFile, keyFile string) tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: name}, DNSNames: []string{"localhost"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true,
		KeyUsage:    x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	certPEM := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	keyPEM := pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: keyDER})
	for file, b := range map[string][]byte{certFile: certPEM, keyFile: keyPEM} {
		if err := os.WriteFile(file, b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	pair, err := tls.X509KeyPair(certPEM, keyPEM)
	if err != nil {
		t.Fatal(err)
	}
	return pair
}

// serverName returns the name in the certificate of the server at a new connection.
func serverName(t *testing.T, url string, client ...tls.Certificate) (name string, err error) {
	t.Helper()
	hc := http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{
		DisableKeepAlives: true,
		// The test compares the certificate by its name.
		TLSClientConfig: &tls.Config{InsecureSkipVerify: true, Certificates: client}, //nolint:gosec // see above
	}}
	r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url+registryPath+"/health", nil)
	if err != nil {
		t.Fatal(err)
	}
	res, err := hc.Do(r)
	if err != nil {
		return "", err
	}
	defer res.Body.Close()
	if res.StatusCode != http.StatusOK {
		t.Errorf("health: %d", res.StatusCode)
	}
	return res.TLS.PeerCertificates[0].Subject.CommonName, nil
}

// The files are read again when they change. Invalid ones are not used.
func TestTLS(t *testing.T) {
	dir := t.TempDir()
	cert, key := filepath.Join(dir, "tls.crt"), filepath.Join(dir, "tls.key")
	writeCertificate(t, "first", cert, key)
	env := start(t, Command{}, "--tls-cert", cert, "--tls-key", key)
	if !strings.HasPrefix(env["MIT_URL"], "https://127.0.0.1:") || !strings.HasPrefix(env["OAUTH_ISSUER"], "https://") {
		t.Errorf("the environment has no https URLs: %v", env)
	}
	want := func(name string) {
		t.Helper()
		if got, err := serverName(t, env["base"]); err != nil || got != name {
			t.Errorf("the server presents %q, %v, want %q", got, err, name)
		}
	}
	want("first")
	writeCertificate(t, "second", cert, key)
	want("second")
	if err := os.WriteFile(key, []byte("broken"), 0o600); err != nil {
		t.Fatal(err)
	}
	want("second")
	writeCertificate(t, "third", cert, key)
	want("third")
}

// Files are also read again if the new ones are as old as the previous ones.
func TestTLSFilesOfTheSameTime(t *testing.T) {
	dir := t.TempDir()
	cert, key := filepath.Join(dir, "tls.crt"), filepath.Join(dir, "tls.key")
	write := func(name, certFile, keyFile string, modified time.Time) {
		t.Helper()
		writeCertificate(t, name, certFile, keyFile)
		for _, file := range []string{certFile, keyFile} {
			if err := os.Chtimes(file, modified, modified); err != nil {
				t.Fatal(err)
			}
		}
	}
	recent, old := time.Now(), time.Now().Add(-time.Hour)
	write("first", cert, key, recent)
	env := start(t, Command{}, "--tls-cert", cert, "--tls-key", key)
	want := func(name string) {
		t.Helper()
		if got, err := serverName(t, env["base"]); err != nil || got != name {
			t.Errorf("the server presents %q, %v, want %q", got, err, name)
		}
	}
	want("first")
	write("second", cert, key, recent) // twice within one tick of the file system's clock
	// Files that look the same are read again after a second. The time is real, because the
	// connections are.
	for end := time.Now().Add(5 * time.Second); time.Now().Before(end); time.Sleep(50 * time.Millisecond) {
		if got, err := serverName(t, env["base"]); err == nil && got == "second" {
			break
		}
	}
	want("second")
	for _, name := range []string{"third", "fourth"} { // as a restored backup, or a mounted secret
		write(name, cert+".new", key+".new", old)
		for _, file := range []string{cert, key} {
			if err := os.Rename(file+".new", file); err != nil {
				t.Fatal(err)
			}
		}
		want(name)
	}
}

// Invalid files are logged once, not for each connection.
func TestInvalidTLSFilesAreLoggedOnce(t *testing.T) {
	dir := t.TempDir()
	cert, key := filepath.Join(dir, "tls.crt"), filepath.Join(dir, "tls.key")
	writeCertificate(t, "first", cert, key)
	core, logs := observer.New(zap.InfoLevel)
	files, err := newTLSFiles(cert, key, "", zap.New(core))
	if err != nil {
		t.Fatal(err)
	}
	for round := range 2 {
		if err := os.WriteFile(key, []byte("broken"), 0o600); err != nil {
			t.Fatal(err)
		}
		for range 5 {
			files.latest()
		}
		if got := logs.Len(); got != round+1 {
			t.Errorf("%d log lines after the files became invalid %d times", got, round+1)
		}
		writeCertificate(t, "second", cert, key)
		if name := files.latest().Certificates[0].Leaf.Subject.CommonName; name != "second" {
			t.Errorf("the certificate is that of %q", name)
		}
	}
}

func TestClientCA(t *testing.T) {
	dir := t.TempDir()
	file := func(name string) string { return filepath.Join(dir, name) }
	writeCertificate(t, "server", file("tls.crt"), file("tls.key"))
	trusted := writeCertificate(t, "client", file("ca.crt"), file("client.key"))
	other := writeCertificate(t, "other", file("other.crt"), file("other.key"))
	env := start(t, Command{}, "--tls-cert", file("tls.crt"), "--tls-key", file("tls.key"), "--client-ca", file("ca.crt"))
	if _, err := serverName(t, env["base"]); err == nil {
		t.Error("a client without a certificate is served")
	}
	if _, err := serverName(t, env["base"], other); err == nil {
		t.Error("a client of another authority is served")
	}
	if _, err := serverName(t, env["base"], trusted); err != nil {
		t.Errorf("a client with a certificate: %v", err)
	}
	err := Command{}.Run(context.Background(), []string{
		"--listen", "127.0.0.1:0", "--log", "off",
		"--tls-cert", file("tls.crt"), "--tls-key", file("tls.key"), "--client-ca", file("tls.key"),
	}, io.Discard, io.Discard)
	if err == nil || !strings.Contains(err.Error(), "contains no certificate") {
		t.Errorf("an authority without a certificate: %v", err)
	}
}
