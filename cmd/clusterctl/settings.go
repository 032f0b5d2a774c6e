package main

import (
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net/http"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"

	"github.com/mimiktech/cluster"
	"github.com/mimiktech/cluster/internal/wire"
)

// settings are the flags that all commands share.
type settings struct {
	values  map[string]*string // of the flags that replace variables, by the name of the variable
	timeout time.Duration
	server  string
	output  string
	ca      string
	cert    string
	key     string
}

const (
	outputTable = "table"
	outputJSON  = "json"

	// peerAudience is the key of the flag for a variable whose name depends on the type.
	peerAudience = "{TYPE}_AUDIENCE"
)

func (s *settings) addFlags(root *cobra.Command) {
	flags := root.PersistentFlags()
	s.values = make(map[string]*string)
	for _, f := range []struct{ variable, flag, usage string }{
		{"SERVER_TYPE", "type", "type of service"},
		{"MIT_URL", "registry", "base `URL` of the registry, or several, separated by commas"},
		{"MIT_AUDIENCE", "registry-audience", "audience of tokens for the registry"},
		{peerAudience, "peer-audience", "audience of tokens for servers"},
		{"OAUTH_ISSUER", "issuer", "`URL` of the token service"},
		{"OAUTH_TOKEN_URL", "token-url", "`URL` at which tokens are fetched"},
		{"OAUTH_CLIENT_ID", "client-id", "client `id` at the token service"},
		{"OAUTH_CLIENT_SECRET_FILE", "client-secret-file", "`file` with the client secret"},
		{"CLUSTER_PEER_NETWORKS", "peer-networks", "networks of the servers, separated by commas"},
	} {
		s.values[f.variable] = flags.String(f.flag, "", f.usage)
	}
	flags.DurationVar(&s.timeout, "timeout", 0, "timeout of each request (default 10s)")
	flags.StringVar(&s.server, "server", "", "base `URL` of a server; its view is read instead of the list of the registry")
	flags.StringVarP(&s.output, "output", "o", outputTable, "format of the output: table or json")
	flags.StringVar(&s.ca, "ca", "", "`file` with the CA certificates for https URLs, in PEM")
	flags.StringVar(&s.cert, "cert", "", "`file` with a client certificate, in PEM")
	flags.StringVar(&s.key, "key", "", "`file` with the key of --cert, in PEM")
	_ = root.RegisterFlagCompletionFunc("output", cobra.FixedCompletions([]string{outputTable, outputJSON}, cobra.ShellCompDirectiveNoFileComp))
}

func (s *settings) validate() error {
	switch {
	case s.output != outputTable && s.output != outputJSON:
		return &usageError{fmt.Errorf("the output %q is neither %s nor %s", s.output, outputTable, outputJSON)}
	case s.timeout < 0:
		return &usageError{fmt.Errorf("the timeout %v is negative", s.timeout)}
	case (s.cert == "") != (s.key == ""):
		return &usageError{errors.New("--cert and --key must be given together")}
	}
	if err := wire.CheckBaseURL(s.server); s.server != "" && err != nil {
		return &usageError{fmt.Errorf("--server %w", err)}
	}
	return nil
}

// lookup returns the value of a variable of a node, from its flag or from the environment.
// Variables that a guest does not need are left out: they may be missing or invalid.
func (a *app) lookup(name string) (string, bool) {
	flag := name
	switch name {
	case "SERVER_PORT":
		return "1", true
	case "SERVER_LOCAL_IP":
		return "127.0.0.1", true
	case "REQUEST_TIMEOUT":
		if a.settings.timeout > 0 {
			return strconv.FormatInt(max(1, a.settings.timeout.Milliseconds()), 10), true
		}
		return a.lookupEnv(name)
	case "OAUTH_CLIENT_SECRET":
		if *a.settings.values["OAUTH_CLIENT_SECRET_FILE"] != "" {
			return "", false // the flag takes precedence
		}
		return a.lookupEnv(name)
	case "SERVER_VERSION", "MIT_AUDIENCE":
	default:
		if strings.HasSuffix(name, "_AUDIENCE") && !strings.HasPrefix(name, "OAUTH_") {
			flag = peerAudience
		} else if a.settings.values[name] == nil {
			return "", false
		}
	}
	if value := a.settings.values[flag]; value != nil && *value != "" {
		return *value, true
	}
	return a.lookupEnv(name)
}

// noVerifier is the Verifier of a program that receives no tokens.
type noVerifier struct{}

func (noVerifier) Verify(context.Context, string) (cluster.Claims, error) {
	return cluster.Claims{}, errors.New("no token is accepted")
}

// config returns the configuration of a guest. It may lack a registry.
func (a *app) config() (cluster.Config, error) {
	const none = "http://registry.invalid"
	missing := false
	cfg, err := cluster.ConfigFrom(func(name string) (string, bool) {
		value, ok := a.lookup(name)
		if name == "MIT_URL" && value == "" {
			missing = true
			return none, true
		}
		if name == "MIT_AUDIENCE" && value == "" && missing {
			return none, true
		}
		return value, ok
	}, cluster.WithVerifier(noVerifier{}))
	if missing {
		cfg.RegistryURL, cfg.RegistryAudience = "", ""
	}
	return cfg, err
}

// tlsConfig returns the TLS configuration of the flags; nil for the default.
func (s *settings) tlsConfig() (*tls.Config, error) {
	if s.ca == "" && s.cert == "" {
		return nil, nil //nolint:nilnil // it is the default
	}
	cfg := &tls.Config{MinVersion: tls.VersionTLS12}
	if s.ca != "" {
		pem, err := os.ReadFile(s.ca)
		if err != nil {
			return nil, err
		}
		cfg.RootCAs = x509.NewCertPool()
		if !cfg.RootCAs.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("the file %s has no certificate", s.ca)
		}
	}
	if s.cert != "" {
		pair, err := cluster.LoadKeyPair(s.cert, s.key, nil)
		if err != nil {
			return nil, err
		}
		cfg.GetClientCertificate = pair.GetClientCertificate
	}
	return cfg, nil
}

// A session is a guest with its settings.
type session struct {
	*cluster.Guest
	app  *app
	cfg  cluster.Config
	tls  *tls.Config // nil for the default
	seen *responses
}

// open returns a session, which the caller must close.
func (a *app) open(opts ...cluster.Option) (*session, error) {
	cfg, err := a.config()
	if err != nil {
		return nil, &usageError{err}
	}
	a.secrets.add(string(cfg.ClientSecret))
	tlsConfig, err := a.settings.tlsConfig()
	if err != nil {
		return nil, &usageError{err}
	}
	s := &session{app: a, cfg: cfg, tls: tlsConfig, seen: newResponses(&a.secrets)}
	opts = append(slices.Clip(opts), cluster.WithLogger(a.logger()), cluster.WithTransport(func(rt http.RoundTripper) http.RoundTripper { return s.seen.record(rt) }))
	if tlsConfig != nil {
		opts = append(opts, cluster.WithPeerTLS(tlsConfig), cluster.WithBackendTLS(tlsConfig))
	}
	if s.Guest, err = cluster.Observe(cfg, opts...); err != nil {
		return nil, &usageError{err}
	}
	return s, nil
}

// logger returns a logger that writes the warnings of the library to the standard error, such as
// that entries of a list are invalid.
func (a *app) logger() *zap.Logger {
	encoder := zapcore.NewConsoleEncoder(zapcore.EncoderConfig{MessageKey: "msg", LevelKey: "level", EncodeLevel: zapcore.LowercaseLevelEncoder, ConsoleSeparator: " "})
	return zap.New(zapcore.NewCore(encoder, zapcore.Lock(zapcore.AddSync(warnings{a})), zapcore.WarnLevel))
}

// warnings is the standard error for whole lines: they replace a line of progress.
type warnings struct{ app *app }

func (w warnings) Write(line []byte) (int, error) {
	if w.app.showProgress {
		fmt.Fprint(w.app.errOut, "\r\x1b[K")
	}
	return w.app.errOut.Write(line)
}

// checkSource checks that the settings name a source of the list.
func (s *session) checkSource() error {
	if s.cfg.RegistryURL == "" && s.app.settings.server == "" {
		return &usageError{errors.New("MIT_URL (or --registry) is missing, and so is --server")}
	}
	return nil
}

// read reads the list of servers from the source that the settings name.
func (s *session) read(ctx context.Context) error {
	if err := s.checkSource(); err != nil {
		return err
	}
	done := s.app.progress("reading the list of servers")
	defer done()
	if s.app.settings.server != "" {
		return s.ReadServer(ctx, s.app.settings.server)
	}
	return s.ReadRegistry(ctx)
}

// source returns the base URL that read uses.
func (s *session) source() string { return cmp.Or(s.app.settings.server, s.cfg.RegistryURL) }
