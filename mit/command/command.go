// Package command is a program that serves a registry (mIT) and a token service (mST) on one
// address, over any store. A main package only calls [Main]:
//
//	func main() { command.Main(command.Command{Name: "mit"}) }
package command

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/signal"
	"regexp"
	"strings"
	"syscall"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"

	"github.com/mimiktech/cluster/mit"
)

// A Command is such a program. The zero value keeps the servers in memory.
type Command struct {
	// Name is the name of the program in messages; "mit" by default.
	Name string
	// About, if set, is the second paragraph of the help.
	About string
	// Flags, if set, adds further flags.
	Flags func(*flag.FlagSet)
	// Open opens the store after the flags are parsed; if nil, the store is in memory. The function
	// it returns closes the store and is called after the last request. ctx ends when the program
	// shuts down.
	Open func(ctx context.Context, log *zap.Logger) (mit.Store, func() error, error)
	// VerifyJWKS, if set, adds the flags --jwks-url and --jwks-issuer. With them the registry accepts
	// the tokens of another token service, and the program is none. VerifyJWKS returns the check of
	// these tokens; ctx ends when the program shuts down. The module clusterjwks has such a check.
	VerifyJWKS func(ctx context.Context, keys JWKS, log *zap.Logger) (VerifyToken, error)
}

// Main runs the program with the command line of the process until SIGINT or SIGTERM. After an
// error it prints the error and exits with status 1.
func Main(c Command) {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop) // a second signal kills the program
	err := c.Run(ctx, os.Args[1:], os.Stdout, os.Stderr)
	if err != nil {
		fmt.Fprintf(os.Stderr, "%s: %v\n", c.name(), err)
		os.Exit(1)
	}
}

// Run runs the program until ctx ends, then completes the requests in flight and returns nil. It
// prints the environment of a node to stdout and logs to stderr. It reads the files with keys and
// clients again on SIGHUP, and notifies systemd if that has started it.
func (c Command) Run(ctx context.Context, args []string, stdout, stderr io.Writer) (err error) {
	var s settings
	fs := c.flags(&s)
	fs.SetOutput(io.Discard) // the caller prints the error
	if err := fs.Parse(args); errors.Is(err, flag.ErrHelp) {
		c.help(fs, stdout)
		return nil
	} else if err != nil {
		return fmt.Errorf("%w (%s --help lists the flags)", err, c.name())
	}
	if fs.NArg() > 0 {
		return fmt.Errorf("unexpected argument %q (%s --help lists the flags)", fs.Arg(0), c.name())
	}
	var given []string
	fs.Visit(func(f *flag.Flag) { given = append(given, f.Name) })
	if err := errors.Join(s.checkJWKS(given), s.resolve()); err != nil {
		return err
	}
	log := newLogger(s.level, stderr)

	store, closeStore, err := c.open(ctx, log)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, closeStore()) }()

	var listen net.ListenConfig
	ln, err := listen.Listen(ctx, "tcp", s.listen)
	if err != nil {
		return err
	}
	defer ln.Close() // for errors before the server runs
	files, err := newTLSFiles(s.tlsCert, s.tlsKey, s.clientCA, log)
	if err != nil {
		return err
	}
	base := cmp.Or(strings.TrimSuffix(s.url, "/"), localURL(ln.Addr(), files != nil))
	services, err := s.start(ctx, c, base, store, log)
	if err != nil {
		return err
	}
	if services.status, err = services.statusHandler(&s, ln.Addr()); err != nil {
		return err
	}
	defer services.reloadOnHangup(ctx, &s)()
	defer newNotifier().start(ctx, log)()
	s.printEnv(stdout, base, ln.Addr())
	return serve(ctx, limitConnections(ln, s.maxConns, s.maxPerAddr), files, services, log)
}

const (
	registryPath = "/mIT/v1"
	issuerPath   = "/mST/v1/oauth/token"
	jwksPath     = "/mST/v1/jwks.json"
	metricsPath  = "/metrics"

	// Environment variables for secrets: all users of the machine can see a command line.
	keyVariable    = "MIT_SIGNING_KEY"
	secretVariable = "MIT_CLIENT_SECRET"

	shutdownTimeout = 10 * time.Second // for requests in flight
)

func (c Command) name() string { return cmp.Or(c.Name, "mit") }

func (c Command) open(ctx context.Context, log *zap.Logger) (mit.Store, func() error, error) {
	if c.Open != nil {
		return c.Open(ctx, log)
	}
	return &mit.Memory{Logger: log}, func() error { return nil }, nil
}

// settings are the flags and the values derived from them.
type settings struct {
	listen, url, audience string
	typ, id, secret       string
	clientsFile           string
	key, keyFile          string
	signingFile           string
	secrets               secrets // of the files and flags above, at the start
	lease, grace, access  time.Duration
	maxServers            int
	maxConns, maxPerAddr  int
	level                 string
	tlsCert, tlsKey       string
	clientCA              string
	adminTokenFile        string
	insecureDev           bool
	jwks                  JWKS
	development           *mit.Client // the client whose environment is printed; nil: none
}

func (c Command) flags(s *settings) *flag.FlagSet {
	fs := flag.NewFlagSet(c.name(), flag.ContinueOnError)
	fs.StringVar(&s.listen, "listen", "127.0.0.1:4000", "`address` to listen on; port 0 takes a free one")
	fs.StringVar(&s.url, "url", "", "`URL` of this program for nodes (default: that of the listen address)")
	fs.StringVar(&s.audience, "audience", "", "`audience` of the tokens for the registry (default: the registry's URL)")
	fs.StringVar(&s.typ, "type", "", "`type` of service to create a client for and print the environment of (default \"example\" without --clients)")
	fs.StringVar(&s.id, "client-id", "", "`id` of that client (default: its type)")
	fs.StringVar(&s.secret, "client-secret", "", "`secret` of that client (default: the variable "+secretVariable+", otherwise random)")
	fs.StringVar(&s.clientsFile, "clients", "", "`file` with clients: a JSON array of {\"id\", \"secret\", \"type\", \"scope\", \"audiences\", \"customers\", \"serverIds\"}, of which the last four are optional; read again on SIGHUP")
	fs.StringVar(&s.key, "key", "", "`key` to sign tokens with (default: the variable "+keyVariable+", otherwise random)")
	fs.StringVar(&s.keyFile, "key-file", "", "`file` with that key; tokens signed with the keys in further lines are accepted, too; read again on SIGHUP")
	fs.StringVar(&s.signingFile, "signing-key", "", "PEM `file` with a private key to sign access tokens with, RSA (RS256) or ECDSA on P-256 (ES256); its public key is served at "+jwksPath+", with those of further keys in the file; read again on SIGHUP (default: HS256 with --key, for npm nodes)")
	fs.DurationVar(&s.lease, "lease", 2*time.Hour, "lease: time within which nodes must renew, at least 1s")
	fs.DurationVar(&s.grace, "grace", 0, "time that a server is kept after its lease (default: half the lease, at least 5s)")
	fs.DurationVar(&s.access, "token-life", 24*time.Hour, "lifetime of access tokens")
	fs.IntVar(&s.maxServers, "max-servers", 10_000, "maximum number of servers of one type")
	fs.IntVar(&s.maxConns, "max-connections", 10_000, "maximum number of connections, at most seven eighths of the files that the process may open; 0 for no limit")
	fs.IntVar(&s.maxPerAddr, "max-connections-per-address", 256, "maximum number of connections of one address (IPv6: one /64), which may also use at most an eighth of the memory for responses; 0 for no limit, for a registry behind a proxy")
	fs.StringVar(&s.tlsCert, "tls-cert", "", "PEM `file` with the certificate of this program; read again when it changes")
	fs.StringVar(&s.tlsKey, "tls-key", "", "PEM `file` with the key of that certificate; read again when it changes")
	fs.StringVar(&s.clientCA, "client-ca", "", "PEM `file` with the authorities of client certificates, which are then required; read again when it changes")
	fs.StringVar(&s.adminTokenFile, "admin-token-file", "", "`file` with the token for the status page at /, which is a bearer token or the password in a browser (default: no page, except in development for callers on this machine)")
	fs.BoolVar(&s.insecureDev, "insecure-dev", false, "accept short keys and placeholders, for tests")
	fs.StringVar(&s.level, "log", "info", "`level` of the log on stderr: debug, info, warn, error or off")
	if c.VerifyJWKS != nil {
		s.jwks.addFlags(fs)
	}
	if c.Flags != nil {
		c.Flags(fs)
	}
	return fs
}

func (c Command) help(fs *flag.FlagSet, w io.Writer) {
	fmt.Fprintf(w, `%s serves an mIT (the registry of clusters) and an mST (its token service).
%s
It prints the environment of a node, ready to paste into a shell, and runs until
SIGINT or SIGTERM.

Usage: %[1]s [flags]

`, c.name(), cmp.Or(c.About, "It keeps the servers in memory. After a restart they are listed again once they renew.\n"))
	fs.SetOutput(w)
	fs.PrintDefaults()
	fmt.Fprintf(w, `
The key and the secret change with every start unless they are given. Prefer the
variables %s and %s, or files, to the flags: the arguments of
a program are not secret.
`, keyVariable, secretVariable)
}

// envType matches types whose {TYPE}_AUDIENCE is a valid name of a variable.
var envType = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_]*$`)

// resolve fills in defaults. Its error names every problem.
func (s *settings) resolve() error {
	var errs []error
	s.key = cmp.Or(s.key, os.Getenv(keyVariable))
	if s.key != "" && s.keyFile != "" {
		errs = append(errs, fmt.Errorf("--key-file is given, and so is --key or %s", keyVariable))
	}
	s.key = cmp.Or(s.key, rand.Text()+rand.Text())
	if s.clientsFile == "" && !s.jwks.isSet() {
		s.typ = cmp.Or(s.typ, "example")
	}
	if s.typ != "" {
		if !envType.MatchString(s.typ) {
			errs = append(errs, fmt.Errorf("invalid --type %q: must be letters, digits and _, to be part of the name of a variable", s.typ))
		}
		s.development = &mit.Client{
			ID:     cmp.Or(s.id, s.typ),
			Secret: cmp.Or(s.secret, os.Getenv(secretVariable), rand.Text()),
			Type:   s.typ,
		}
	}
	var err error
	s.secrets, err = s.readSecrets()
	errs = append(errs, err)
	if u, err := url.Parse(s.url); s.url != "" && (err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" || u.User != nil || u.RawQuery != "" || u.Fragment != "") {
		errs = append(errs, errors.New("invalid --url: not an absolute http or https URL without credentials"))
	}
	if s.lease < time.Second {
		errs = append(errs, fmt.Errorf("invalid --lease %v: below 1s, nodes would renew continuously", s.lease))
	}
	if s.maxConns < 0 || s.maxPerAddr < 0 {
		errs = append(errs, errors.New("invalid --max-connections or --max-connections-per-address: negative"))
	}
	if limit := descriptorLimit(); limit > 0 {
		s.maxConns = min(cmp.Or(s.maxConns, limit), limit/8*7)
	}
	if _, err := zapcore.ParseLevel(s.level); err != nil && s.level != "off" {
		errs = append(errs, fmt.Errorf("invalid --log %q: not debug, info, warn, error or off", s.level))
	}
	return errors.Join(errs...)
}

func newLogger(level string, w io.Writer) *zap.Logger {
	parsed, err := zapcore.ParseLevel(level)
	if err != nil { // off
		return zap.NewNop()
	}
	cfg := zap.NewProductionEncoderConfig()
	cfg.EncodeTime = zapcore.ISO8601TimeEncoder
	return zap.New(zapcore.NewCore(zapcore.NewJSONEncoder(cfg), zapcore.Lock(zapcore.AddSync(w)), parsed))
}

// localURL returns the base URL of a listen address for callers on this machine.
func localURL(addr net.Addr, withTLS bool) string {
	scheme := "http://"
	if withTLS {
		scheme = "https://"
	}
	host, port, err := net.SplitHostPort(addr.String())
	if err != nil {
		return scheme + addr.String()
	}
	if ip := net.ParseIP(host); ip != nil && ip.IsUnspecified() {
		host = "127.0.0.1"
	}
	return scheme + net.JoinHostPort(host, port)
}

func (s *settings) registryAudience(base string) string { return cmp.Or(s.audience, base+registryPath) }

// printEnv prints the address and, with a development client, the environment of a node.
func (s *settings) printEnv(w io.Writer, base string, addr net.Addr) {
	fmt.Fprintf(w, "# mIT on %s\n", base)
	if s.jwks.isSet() {
		s.printVerified(w, base)
	}
	if s.development == nil {
		return
	}
	audience := s.typ
	key := [2]string{"OAUTH_CLIENT_ACCESS_KEY", s.secrets.keys[0]}
	if len(s.secrets.signing) > 0 {
		key = [2]string{"OAUTH_JWKS_URL", base + jwksPath}
	}
	vars := [][2]string{
		{"MIT_URL", base + registryPath},
		{"MIT_AUDIENCE", s.registryAudience(base)},
		{"OAUTH_ISSUER", base + issuerPath},
		{"OAUTH_CLIENT_ID", s.development.ID},
		{"OAUTH_CLIENT_SECRET", s.development.Secret},
		key,
		{"OAUTH_CLIENT_AUDIENCE", audience},
		{strings.ToUpper(s.typ) + "_AUDIENCE", audience},
		{"CLUSTER_MANAGEMENT", "on"},
		{"SERVER_TYPE", s.typ},
	}
	if tcp, ok := addr.(*net.TCPAddr); ok && tcp.IP.IsLoopback() {
		vars = append(vars, [2]string{"SERVER_LOCAL_IPV4", "127.0.0.1"})
	}
	vars = append(vars, [2]string{"SERVER_PORT", "8080"})
	fmt.Fprintf(w, "# the environment of a node of type %s; each node on a machine needs its own SERVER_PORT\n", s.typ)
	for _, v := range vars {
		fmt.Fprintf(w, "export %s=%s\n", v[0], shellQuote(v[1]))
	}
}

// shellQuote quotes a value for a shell.
func shellQuote(value string) string {
	return "'" + strings.ReplaceAll(value, "'", `'\''`) + "'"
}

// serve handles requests until ctx ends, then completes those in flight. Without files it serves
// plain HTTP.
func serve(ctx context.Context, ln *connections, files *tlsFiles, handler http.Handler, log *zap.Logger) error {
	errorLog, err := zap.NewStdLogAt(log, zap.WarnLevel)
	if err != nil {
		return err
	}
	srv := &http.Server{
		Handler:           handler,
		ReadHeaderTimeout: 5 * time.Second,
		ReadTimeout:       30 * time.Second,
		WriteTimeout:      30 * time.Second,
		IdleTimeout:       2 * time.Minute,
		MaxHeaderBytes:    64 << 10,
		ErrorLog:          errorLog,
		ConnState:         ln.onState,
	}
	served := make(chan error, 1)
	go func() {
		if files == nil {
			served <- srv.Serve(ln)
			return
		}
		srv.TLSConfig = files.serverConfig()
		served <- srv.ServeTLS(ln, "", "")
	}()
	log.Info("listening", zap.Stringer("address", ln.Addr()))
	select {
	case err := <-served:
		return err
	case <-ctx.Done():
	}
	log.Info("shutting down")
	shutdownCtx, cancel := context.WithTimeout(context.WithoutCancel(ctx), shutdownTimeout)
	defer cancel()
	if err := srv.Shutdown(shutdownCtx); err != nil {
		log.Warn("shutdown timed out", zap.Error(err))
		_ = srv.Close() // aborts the requests in flight
	}
	if err := <-served; !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}
