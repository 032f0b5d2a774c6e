package cluster

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"os"
	"path"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
	"unicode/utf8"

	"github.com/google/uuid"
	"go.uber.org/zap"

	"github.com/mimiktech/cluster/internal/peeraddr"
	"github.com/mimiktech/cluster/internal/redact"
	"github.com/mimiktech/cluster/internal/token"
	"github.com/mimiktech/cluster/internal/wire"
)

// A Config has the settings that differ from node to node. The zero value of a field means its
// default. [New] reports all missing and invalid fields in one error.
//
// The brackets contain the environment variable from which [ConfigFromEnv] reads a field.
type Config struct {
	// Type is the service that the node is an instance of, such as "mds" [SERVER_TYPE]. Mandatory.
	// The nodes of one type form one cluster.
	Type string
	// ID identifies the node [SERVER_ID]; a new UUID by default. A node that keeps its id when it
	// restarts replaces its old entry.
	ID string
	// Version is sent in the user agent [SERVER_VERSION]; "1.0" by default.
	Version string

	// Port is the port at which the node listens [SERVER_PORT]. Mandatory.
	Port int
	// BasePath is the prefix of all paths of the node [SERVER_BASE_PATH]; "/{type}/v1" by default.
	// A slash at its end is removed.
	BasePath string
	// LocalIPv4 or LocalIP is the address at which peers reach the node [SERVER_LOCAL_IPV4, or
	// SERVER_LOCAL_IP, which may be IPv4 or IPv6]. LocalIPv4 has precedence.
	//
	// By default it is an address of a network interface that is up. Loopback and link-local
	// addresses do not count. IPv4 comes before IPv6, point-to-point interfaces come after others,
	// and the rest is in the order of the system. The choice is logged. If the machine no longer
	// has the address when the node renews its lease, the node chooses again and announces its new
	// address.
	LocalIPv4, LocalIP string
	// ClusterBaseURL is the base URL at which peers call the node [SERVER_CLUSTER_BASE_URL];
	// "http://{LocalIPv4 or LocalIP}:{Port}{BasePath}" by default. Set it if the node is behind
	// TLS.
	ClusterBaseURL string
	// PublicProtocol, PublicDomainName and PublicIPv4 are the parts of the cluster's public base
	// URL, which is "{protocol}//{domain name}{base path}". Without a domain name, its host is
	// "{PublicIPv4, LocalIPv4 or LocalIP}:{Port}". [SERVER_PUBLIC_PROTOCOL, "http:" by default;
	// SERVER_PUBLIC_DOMAIN_NAME; SERVER_PUBLIC_IPV4]
	PublicProtocol   string
	PublicDomainName string
	PublicIPv4       string
	// Location is the location of the node; none by default [SERVER_LOCATION_LON and
	// SERVER_LOCATION_LAT].
	Location *Location

	// Management makes the node call its peers: it announces itself, fans out and evicts
	// [CLUSTER_MANAGEMENT, "on" or "off"]. By default it only registers.
	Management bool
	// PeerNetworks are the networks in which peers may be, in CIDR notation and separated by
	// commas [CLUSTER_PEER_NETWORKS]. If [PeerPolicy].Networks is set, too, a peer's address
	// must be in both.
	PeerNetworks string
	// VerifyAnnouncements sets [PeerPolicy].VerifyWithRegistry [CLUSTER_VERIFY_ANNOUNCEMENTS, "on"
	// or "off"].
	VerifyAnnouncements bool
	// NoRegistration makes [Cluster.Serve] serve without registering [REGISTRATION_SET=off;
	// "on" by default].
	NoRegistration bool
	// RegistrationRetry is the delay after the first failed attempt to register
	// [REGISTRATION_RETRY, in milliseconds]; 3 s by default, with a jitter of a third. Further
	// delays grow to 30 s. A Retry-After in the response of the registry takes precedence.
	RegistrationRetry time.Duration
	// RenewalFraction is the fraction of its lease after which the node renews it; 2/3 by default,
	// and at most 0.9. The time has a jitter of a tenth.
	RenewalFraction float64

	// RequestTimeout bounds each request [REQUEST_TIMEOUT, in milliseconds]; 10 s by default.
	RequestTimeout time.Duration
	// MaxResponseBytes bounds the responses that the node reads; 16 MiB by default.
	MaxResponseBytes int64
	// MaxCallBytes bounds the bodies of all responses to one call together; 256 MiB by default.
	// A peer whose response exceeds it fails with [KindTooLarge]. Peers that the registry has
	// not confirmed yet do not count: these share a bound of their own, a quarter of
	// MaxCallBytes. If they exceed it, the node renews, so that the registry confirms them.
	// After calls with at least 16 MiB of responses, the node runs the garbage collector twice,
	// unless GOGC is off. It does so when there has been no further such call for 20 s, and at
	// most a minute after the first of them.
	MaxCallBytes int64
	// MaxRequestBytes bounds the request bodies that the peer endpoints read; 1 MiB by default.
	MaxRequestBytes int64
	// MaxInFlight is the number of slots for requests to peers: it bounds how many are in flight;
	// 256 by default. All calls share the slots evenly. With four or more peers, at most a quarter
	// of the slots go to one peer; retries are exempt.
	MaxInFlight int

	// RegistryURL is the base URL of the registry [MIT_URL]. Mandatory. It may be a comma-separated
	// list of the URLs of replicas. The node uses one of them, and fails over to another if there
	// is no usable response.
	RegistryURL string
	// RegistryAudience is the audience of tokens for the registry [MIT_AUDIENCE]. Mandatory.
	RegistryAudience string
	// PeerAudience is the audience of tokens for peers [{TYPE}_AUDIENCE, such as MDS_AUDIENCE].
	// Mandatory with Management.
	PeerAudience string

	// TokenURL is the URL at which tokens are fetched [OAUTH_TOKEN_URL]; the Issuer by default.
	// Like RegistryURL, it may be a list of the URLs of replicas.
	TokenURL string
	// Issuer is the URL of the token service, and the issuer that received tokens must have
	// [OAUTH_ISSUER]. Mandatory unless both [WithTokens] and [WithVerifier] are given.
	Issuer string
	// ClientID and ClientSecret are the node's credentials at the token service [OAUTH_CLIENT_ID,
	// OAUTH_CLIENT_SECRET]. Mandatory unless [WithTokens] is given.
	ClientID     string
	ClientSecret Secret
	// GenericKey and GenericPreviousKey are the keys with which received tokens are verified
	// [OAUTH_GENERIC_KEY, OAUTH_GENERIC_PREVIOUS_KEY]. ClientAccessKey is used if GenericKey is
	// empty [OAUTH_CLIENT_ACCESS_KEY]. GenericKey or ClientAccessKey is mandatory unless
	// [WithVerifier] is given. In the environment, "noGeneric" means empty.
	GenericKey         Secret
	GenericPreviousKey Secret
	ClientAccessKey    Secret
	// ClientSecretFile, GenericKeyFile, GenericPreviousKeyFile and ClientAccessKeyFile are
	// files with these secrets [OAUTH_CLIENT_SECRET_FILE, OAUTH_GENERIC_KEY_FILE,
	// OAUTH_GENERIC_PREVIOUS_KEY_FILE, OAUTH_CLIENT_ACCESS_KEY_FILE]. White space at their ends
	// is ignored. A file is read again when it has changed. While a file cannot be used, its
	// last good value applies. Until a file has had a good value, the field without the suffix
	// File applies, such as ClientSecret.
	ClientSecretFile       string
	GenericKeyFile         string
	GenericPreviousKeyFile string
	ClientAccessKeyFile    string
	// GenericAudience is the audience that received tokens must have [OAUTH_GENERIC_AUDIENCE].
	// ClientAudience is used if it is empty [OAUTH_CLIENT_AUDIENCE]. One of the two is mandatory
	// unless [WithVerifier] is given.
	GenericAudience string
	ClientAudience  string
}

// ConfigFromEnv reads the configuration from the environment variables of a mimik service. One
// error names all variables that are missing or invalid. The parameters opts are the options of the
// later call of [New]. Variables that [WithTokens] or [WithVerifier] replaces may be missing.
//
// Each secret may also come from a file, named by the variable with the suffix _FILE; see
// Config.ClientSecretFile. Setting both is an error.
func ConfigFromEnv(opts ...Option) (Config, error) {
	return ConfigFrom(os.LookupEnv, opts...)
}

// ConfigFrom is like [ConfigFromEnv], for variables from another source, such as a file or flags.
// The function lookup returns the value of a variable, and whether it is set.
func ConfigFrom(lookup func(name string) (string, bool), opts ...Option) (Config, error) {
	e := env{lookup: lookup}
	cfg := Config{
		Type:              e.str("SERVER_TYPE"),
		ID:                e.str("SERVER_ID"),
		Version:           e.str("SERVER_VERSION"),
		Port:              e.positiveInt("SERVER_PORT"),
		BasePath:          e.str("SERVER_BASE_PATH"),
		LocalIPv4:         e.str("SERVER_LOCAL_IPV4"),
		LocalIP:           e.str("SERVER_LOCAL_IP"),
		ClusterBaseURL:    e.str("SERVER_CLUSTER_BASE_URL"),
		PublicProtocol:    e.str("SERVER_PUBLIC_PROTOCOL"),
		PublicDomainName:  e.str("SERVER_PUBLIC_DOMAIN_NAME"),
		PublicIPv4:        e.str("SERVER_PUBLIC_IPV4"),
		Location:          e.location("SERVER_LOCATION_LON", "SERVER_LOCATION_LAT"),
		Management:        e.onOff("CLUSTER_MANAGEMENT", false),
		PeerNetworks:      e.str("CLUSTER_PEER_NETWORKS"),
		NoRegistration:    !e.onOff("REGISTRATION_SET", true),
		RegistrationRetry: e.milliseconds("REGISTRATION_RETRY"),
		RequestTimeout:    e.milliseconds("REQUEST_TIMEOUT"),
		RegistryURL:       e.str("MIT_URL"),
		RegistryAudience:  e.str("MIT_AUDIENCE"),
		TokenURL:          e.str("OAUTH_TOKEN_URL"),
		Issuer:            e.str("OAUTH_ISSUER"),
		ClientID:          e.str("OAUTH_CLIENT_ID"),
		GenericAudience:   e.generic("OAUTH_GENERIC_AUDIENCE"),
		ClientAudience:    e.str("OAUTH_CLIENT_AUDIENCE"),
	}
	cfg.VerifyAnnouncements = e.onOff("CLUSTER_VERIFY_ANNOUNCEMENTS", false)
	cfg.ClientSecret, cfg.ClientSecretFile = e.secret("OAUTH_CLIENT_SECRET", e.str)
	cfg.GenericKey, cfg.GenericKeyFile = e.secret("OAUTH_GENERIC_KEY", e.generic)
	cfg.GenericPreviousKey, cfg.GenericPreviousKeyFile = e.secret("OAUTH_GENERIC_PREVIOUS_KEY", e.generic)
	cfg.ClientAccessKey, cfg.ClientAccessKeyFile = e.secret("OAUTH_CLIENT_ACCESS_KEY", e.str)
	if cfg.Type != "" {
		cfg.PeerAudience = e.str(audienceVariable(cfg.Type))
	}
	return cfg, configError(append(e.problems, cfg.validate(applyOptions(opts), e.malformed)...))
}

// A Location is a point on earth, in degrees.
type Location struct{ Lon, Lat float64 }

// MarshalJSON encodes a GeoJSON point.
func (l Location) MarshalJSON() ([]byte, error) {
	return json.Marshal(struct {
		Type        string     `json:"type"`
		Coordinates [2]float64 `json:"coordinates"`
	}{"Point", [2]float64{l.Lon, l.Lat}})
}

// A Secret is a string that is redacted when it is printed, logged or encoded. Convert it to a
// string to get its value.
type Secret string

// String returns "[redacted]", or "" for an empty secret.
func (s Secret) String() string {
	if s == "" {
		return ""
	}
	return redacted
}

// Format prints String under any verb. Without it, fmt would show the value for a verb that does
// not fit a string.
func (s Secret) Format(f fmt.State, verb rune) {
	_, _ = fmt.Fprintf(f, fmt.FormatString(f, verb), s.String())
}

// MarshalText returns String, for encoding/json and loggers.
func (s Secret) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

const redacted = redact.Mark

// noGeneric is the value of a generic variable that is not set.
const noGeneric = "noGeneric"

// audienceVariable returns the name of the variable with the audience of a type.
func audienceVariable(serverType string) string {
	return strings.Map(func(r rune) rune {
		if r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' {
			return r
		}
		return '_'
	}, strings.ToUpper(serverType)) + "_AUDIENCE"
}

func configError(problems []error) error {
	if len(problems) == 0 {
		return nil
	}
	return fmt.Errorf("cluster: configuration: %w", errors.Join(problems...))
}

// An env reads variables and collects the errors.
type env struct {
	lookup    func(string) (string, bool)
	problems  []error
	malformed map[string]bool // not to be reported as missing, too
}

func (e *env) str(name string) string {
	v, _ := e.lookup(name)
	return strings.TrimSpace(v)
}

func (e *env) generic(name string) string {
	if v := e.str(name); v != noGeneric {
		return v
	}
	return ""
}

// secret reads a secret from the variable, or from the file that the variable with the suffix _FILE
// names.
func (e *env) secret(name string, read func(name string) string) (value Secret, path string) {
	value, path = Secret(read(name)), e.str(name+"_FILE")
	if path == "" {
		return value, ""
	}
	if value != "" {
		e.problems = append(e.problems, fmt.Errorf("%s_FILE is set, and so is %s", name, name))
		return value, path
	}
	text, err := token.ReadSecret(path)
	if err != nil {
		e.problems = append(e.problems, fmt.Errorf("%s_FILE cannot be used: %w", name, err))
	}
	return Secret(text), path
}

func (e *env) invalid(name, value, want string) {
	if e.malformed == nil {
		e.malformed = map[string]bool{}
	}
	e.malformed[name] = true
	e.problems = append(e.problems, fmt.Errorf("%s %.40q is not %s", name, value, want))
}

func (e *env) positiveInt(name string) int {
	v := e.str(name)
	if v == "" {
		return 0
	}
	n, err := strconv.Atoi(v)
	if err != nil || n <= 0 {
		e.invalid(name, v, "a whole number above 0")
		return 0
	}
	return n
}

func (e *env) milliseconds(name string) time.Duration {
	v := e.str(name)
	if v == "" {
		return 0
	}
	n, err := strconv.ParseInt(v, 10, 64)
	if err != nil || n <= 0 || n > int64(maxLease/time.Millisecond) {
		e.invalid(name, v, "a number of milliseconds above 0")
		return 0
	}
	return time.Duration(n) * time.Millisecond
}

func (e *env) onOff(name string, byDefault bool) bool {
	switch v := e.str(name); v {
	case "":
		return byDefault
	case "on":
		return true
	case "off":
		return false
	default:
		e.invalid(name, v, `"on" or "off"`)
		return byDefault
	}
}

func (e *env) location(lonName, latName string) *Location {
	lon, lat := e.str(lonName), e.str(latName)
	if (lon == "") != (lat == "") {
		e.problems = append(e.problems, fmt.Errorf("%s and %s must be set together", lonName, latName))
	}
	if lon == "" || lat == "" {
		return nil
	}
	return &Location{e.degrees(lonName, lon, 180), e.degrees(latName, lat, 90)}
}

func (e *env) degrees(name, value string, limit float64) float64 {
	f, err := strconv.ParseFloat(value, 64)
	if err != nil || !(f >= -limit && f <= limit) {
		e.invalid(name, value, fmt.Sprintf("a number of degrees from -%g to %g", limit, limit))
		return 0
	}
	return f
}

// problems collects the errors of a configuration. Variables in known have been reported already.
type problems struct {
	known map[string]bool
	list  []error
}

func (p *problems) add(name, format string, args ...any) {
	if !p.known[name] {
		p.list = append(p.list, fmt.Errorf("%s %w", name, fmt.Errorf(format, args...)))
	}
}

func (p *problems) require(name, value string) {
	if value == "" {
		p.add(name, "is missing")
	}
}

func (p *problems) checkURL(name, value string) {
	if _, err := peeraddr.Parse(value); err != nil {
		p.add(name, "is invalid: %v", err)
	}
}

// checkCallable rejects an address that no peer can call, unless the policy for peers names it.
func (p *problems) checkCallable(name string, ip netip.Addr, allowed peeraddr.Networks) {
	if err := peeraddr.CheckCallable(ip); err != nil && (len(allowed) == 0 || allowed.CheckIP(ip) != nil) {
		p.add(name, "is an address that no peer can call: %w; set it to one at which peers reach this machine", err)
	}
}

// validate returns the missing and invalid variables, except for those in known.
func (cfg Config) validate(o options, known map[string]bool) []error {
	p := &problems{known: known}
	policy, err := cfg.peerPolicy(o.policy)
	if err != nil {
		p.add("CLUSTER_PEER_NETWORKS", "is invalid: %w", err)
	}
	o.policy = policy
	cfg.validateIdentity(p)
	cfg.validatePaths(p)
	cfg.validateAddresses(p, o)
	cfg.validateLimits(p)
	o.validate(p)
	cfg.validateAudiences(p)
	cfg.validateCredentials(p, o)
	return p.list
}

// validateGuest is validate for a guest. It does not listen, receives no tokens, and may do without
// a registry.
func (cfg Config) validateGuest(o options) []error {
	p := new(problems)
	policy, err := cfg.peerPolicy(o.policy)
	if err != nil {
		p.add("CLUSTER_PEER_NETWORKS", "is invalid: %w", err)
	}
	o.policy, o.verifier = policy, keyVerifier{}
	cfg.validateIdentity(p)
	cfg.validateLimits(p)
	o.validate(p)
	if cfg.RegistryURL != "" {
		cfg.validateRegistryURL(p)
		p.require("MIT_AUDIENCE", cfg.RegistryAudience)
	}
	cfg.requirePeerAudience(p)
	cfg.validateCredentials(p, o)
	return p.list
}

func (cfg Config) validateIdentity(p *problems) {
	const allowed = "may only contain letters, digits, '-', '_', '.' and ':'"
	if cfg.Type == "" {
		p.add("SERVER_TYPE", "is missing")
	} else if !validName(cfg.Type) {
		p.add("SERVER_TYPE", "%.40q is not a valid name, which "+allowed, cfg.Type)
	}
	if cfg.ID != "" && !validName(cfg.ID) {
		p.add("SERVER_ID", "%.40q is not a valid name, which "+allowed, cfg.ID)
	}
	if strings.ContainsFunc(cfg.Version, func(r rune) bool { return r < ' ' || r > '~' }) {
		p.add("SERVER_VERSION", "%.40q is not printable ASCII", cfg.Version)
	}
	if l := cfg.Location; l != nil && !(l.Lon >= -180 && l.Lon <= 180 && l.Lat >= -90 && l.Lat <= 90) {
		p.add("SERVER_LOCATION_LON", "and SERVER_LOCATION_LAT are not a longitude and a latitude")
	}
}

func (cfg Config) validatePaths(p *problems) {
	if cfg.Port == 0 {
		p.add("SERVER_PORT", "is missing")
	} else if cfg.Port < 0 || cfg.Port > 65535 {
		p.add("SERVER_PORT", "%d is not a port", cfg.Port)
	}
	if cfg.BasePath != "" && !validBasePath(cfg.BasePath) {
		p.add("SERVER_BASE_PATH", "%.40q is not a clean absolute path", cfg.BasePath)
	}
}

func (cfg Config) validateAddresses(p *problems, o options) {
	allowed := peeraddr.Networks(o.policy.Networks)
	for _, a := range []struct {
		name, value, want string
		is                func(netip.Addr) bool
	}{
		{"SERVER_LOCAL_IPV4", cfg.LocalIPv4, "IPv4", netip.Addr.Is4},
		{"SERVER_LOCAL_IP", cfg.LocalIP, "IP", netip.Addr.IsValid},
		{"SERVER_PUBLIC_IPV4", cfg.PublicIPv4, "IPv4", netip.Addr.Is4},
	} {
		ip, err := netip.ParseAddr(a.value)
		switch {
		case a.value == "":
		case err != nil || !a.is(ip) || ip.Zone() != "":
			p.add(a.name, "%.40q is not an %s address", a.value, a.want)
		default:
			p.checkCallable(a.name, ip, allowed)
		}
	}
	if cfg.localIP() == "" && cfg.ClusterBaseURL == "" && !o.local.Addr.IsValid() {
		p.add("SERVER_LOCAL_IPV4", "is missing, and this machine has no address that peers can call: "+
			"set it, or SERVER_LOCAL_IP (IPv4 or IPv6), or SERVER_CLUSTER_BASE_URL")
	}
	if cfg.ClusterBaseURL != "" {
		p.checkURL("SERVER_CLUSTER_BASE_URL", cfg.ClusterBaseURL)
		if u, err := peeraddr.Parse(cfg.ClusterBaseURL); err == nil {
			if ip, err := netip.ParseAddr(u.Hostname()); err == nil {
				p.checkCallable("SERVER_CLUSTER_BASE_URL", ip, allowed)
			}
		}
	}
	switch cfg.PublicProtocol {
	case "", "http:", "https:", "http", "https":
	default:
		p.add("SERVER_PUBLIC_PROTOCOL", `%.40q is neither "http:" nor "https:"`, cfg.PublicProtocol)
	}
	if d := cfg.PublicDomainName; d != "" {
		if u, err := peeraddr.Parse("http://" + d); err != nil || u.Host != d || strings.ContainsAny(d, "<>\"") {
			p.add("SERVER_PUBLIC_DOMAIN_NAME", "%.40q is not a domain name", d)
		}
	}
	cfg.validateRegistryURL(p)
}

func (cfg Config) validateRegistryURL(p *problems) {
	if urls, err := peeraddr.ParseList(cfg.RegistryURL); err != nil {
		p.add("MIT_URL", "is invalid: %v", err)
	} else if len(urls) == 0 {
		p.add("MIT_URL", "is missing")
	}
}

func (cfg Config) validateLimits(p *problems) {
	if !(cfg.RenewalFraction >= 0 && cfg.RenewalFraction <= maxRenewalFraction) {
		p.add("RenewalFraction", "%g is not between 0 and %g", cfg.RenewalFraction, maxRenewalFraction)
	}
	checkDuration := func(name string, d time.Duration) {
		if d < 0 || d > maxLease {
			p.add(name, "%v is not between 0 and %v", d, maxLease)
		}
	}
	checkDuration("REQUEST_TIMEOUT", cfg.RequestTimeout)
	checkDuration("REGISTRATION_RETRY", cfg.RegistrationRetry)
	if cfg.MaxResponseBytes < 0 || cfg.MaxCallBytes < 0 || cfg.MaxRequestBytes < 0 || cfg.MaxInFlight < 0 {
		p.add("MaxResponseBytes, MaxCallBytes, MaxRequestBytes or MaxInFlight", "is negative")
	}
}

func (cfg Config) validateAudiences(p *problems) {
	p.require("MIT_AUDIENCE", cfg.RegistryAudience)
	if cfg.Management {
		cfg.requirePeerAudience(p)
	}
}

func (cfg Config) requirePeerAudience(p *problems) {
	name := "{TYPE}_AUDIENCE"
	if cfg.Type != "" && validName(cfg.Type) {
		name = audienceVariable(cfg.Type)
	}
	p.require(name, cfg.PeerAudience)
}

func (cfg Config) validateCredentials(p *problems, o options) {
	if o.tokens == nil {
		p.require("OAUTH_CLIENT_ID", cfg.ClientID)
		p.require("OAUTH_CLIENT_SECRET", string(cfg.ClientSecret)+cfg.ClientSecretFile)
	}
	if o.tokens == nil || o.verifier == nil {
		p.require("OAUTH_ISSUER", cfg.Issuer)
	}
	if cfg.Issuer != "" {
		p.checkURL("OAUTH_ISSUER", cfg.Issuer)
	}
	if urls, err := peeraddr.ParseList(cfg.TokenURL); err != nil {
		p.add("OAUTH_TOKEN_URL", "is invalid: %v", err)
	} else if len(urls) == 0 && cfg.TokenURL != "" {
		p.add("OAUTH_TOKEN_URL", "%.40q has no URL", cfg.TokenURL)
	}
	for name, key := range map[string]Secret{
		"OAUTH_GENERIC_KEY": cfg.GenericKey, "OAUTH_GENERIC_PREVIOUS_KEY": cfg.GenericPreviousKey, "OAUTH_CLIENT_ACCESS_KEY": cfg.ClientAccessKey,
	} {
		if o.verifier == nil && token.IsPublicKey(string(key)) {
			p.add(name, "is a public key: tokens are verified with a secret key, unless WithVerifier is given")
		}
	}
	if o.verifier == nil {
		p.require("OAUTH_GENERIC_KEY (or OAUTH_CLIENT_ACCESS_KEY)", string(cfg.GenericKey+cfg.ClientAccessKey)+cfg.GenericKeyFile+cfg.ClientAccessKeyFile)
		p.require("OAUTH_GENERIC_AUDIENCE (or OAUTH_CLIENT_AUDIENCE)", cfg.receivedAudience())
	}
}

// peerPolicy combines p, the policy of the program, with the settings of the operator.
func (cfg Config) peerPolicy(p PeerPolicy) (PeerPolicy, error) {
	p.VerifyWithRegistry = p.VerifyWithRegistry || cfg.VerifyAnnouncements
	networks, err := peeraddr.ParseNetworks(cfg.PeerNetworks)
	if err != nil {
		return p, err
	}
	both := peeraddr.Networks(p.Networks).Intersect(networks)
	if len(both) == 0 && len(networks) > 0 {
		return p, errors.New("it has no network in common with PeerPolicy.Networks")
	}
	p.Networks = both
	return p, nil
}

// minKeyBytes is the length of the shortest key of HS256 that cannot be guessed (RFC 7518, section
// 3.2).
const minKeyBytes = 32

// unsafeSettings returns the settings that are valid, but unsafe outside a trusted network.
func (cfg Config) unsafeSettings(policy PeerPolicy, sharedKey bool) (warnings []string) {
	for name, list := range map[string]string{"MIT_URL": cfg.RegistryURL, "OAUTH_TOKEN_URL": cfg.TokenURL} {
		for url := range strings.SplitSeq(list, ",") {
			if u, err := peeraddr.Parse(url); err == nil && u.Scheme == "http" && !isLoopback(u.Hostname()) {
				warnings = append(warnings, name+" is an http URL: tokens and secrets are sent in clear text")
				break
			}
		}
	}
	key := cmp.Or(cfg.GenericKey, cfg.ClientAccessKey)
	for _, k := range []Secret{key, cfg.GenericPreviousKey} {
		if sharedKey && k != "" && len(k) < minKeyBytes {
			warnings = append(warnings, fmt.Sprintf("a key of received tokens has less than %d bytes: it may be guessed from a token", minKeyBytes))
			break
		}
	}
	if u, err := peeraddr.Parse(cfg.ClusterBaseURL); err == nil && len(policy.Networks) == 0 && policy.Allow == nil {
		if ip, err := netip.ParseAddr(u.Hostname()); err == nil && ip.IsGlobalUnicast() && !ip.IsPrivate() {
			warnings = append(warnings, "the node has a public address, and CLUSTER_PEER_NETWORKS is not set: peers may be anywhere")
		}
	}
	slices.Sort(warnings)
	return warnings
}

func isLoopback(host string) bool {
	ip, err := netip.ParseAddr(host)
	return err == nil && ip.IsLoopback() || host == "localhost"
}

// validName reports whether s needs no escaping in a path, a header and an environment variable. An
// '@' is not allowed: in a conditional delete, it separates the server id from the time.
func validName(s string) bool {
	return s != "." && s != ".." && len(s) <= 256 && !strings.ContainsFunc(s, func(r rune) bool {
		return (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') && (r < '0' || r > '9') && !strings.ContainsRune("-_.:", r)
	})
}

// validBasePath reports whether base is a clean absolute path, with or without a slash at its end.
func validBasePath(base string) bool {
	trimmed := strings.TrimSuffix(base, "/")
	return base[0] == '/' && trimmed != "/" && path.Clean(base) == cmp.Or(trimmed, "/") && validPath(base)
}

// validPath reports whether p needs no escaping in a URL and in a pattern of http.ServeMux.
func validPath(p string) bool {
	return utf8.ValidString(p) && !strings.ContainsFunc(p, func(r rune) bool {
		return r <= ' ' || r == 0x7f || strings.ContainsRune("{}?#%", r)
	})
}

// localIP returns the configured address; "" if there is none.
func (cfg Config) localIP() string { return cmp.Or(cfg.LocalIPv4, cfg.LocalIP) }

// withDefaults returns a valid cfg with the defaults filled in. local is the address to use if none
// is configured.
func (cfg Config) withDefaults(local netip.Addr) Config {
	cfg.ID = cmp.Or(cfg.ID, uuid.NewString())
	cfg.Version = cmp.Or(cfg.Version, "1.0")
	switch {
	case cfg.localIP() != "" || !local.IsValid():
	case local.Is4():
		cfg.LocalIPv4 = local.String()
	default:
		cfg.LocalIP = local.String()
	}
	cfg.PublicProtocol = strings.TrimSuffix(cmp.Or(cfg.PublicProtocol, "http"), ":") + ":"
	cfg.BasePath = strings.TrimSuffix(cmp.Or(cfg.BasePath, "/"+cfg.Type+"/v1"), "/")
	if cfg.ClusterBaseURL == "" {
		cfg.ClusterBaseURL = "http://" + net.JoinHostPort(cfg.localIP(), strconv.Itoa(cfg.Port)) + cfg.BasePath
	}
	cfg.ClusterBaseURL = strings.TrimRight(cfg.ClusterBaseURL, "/")
	urls, _ := peeraddr.ParseList(cfg.RegistryURL)
	cfg.RegistryURL = strings.Join(urls, ",")
	tokenURLs, _ := peeraddr.ParseList(cfg.TokenURL)
	cfg.TokenURL = cmp.Or(strings.Join(tokenURLs, ","), cfg.Issuer)
	cfg.RegistrationRetry = cmp.Or(cfg.RegistrationRetry, 3*time.Second)
	cfg.RenewalFraction = cmp.Or(cfg.RenewalFraction, 2.0/3)
	cfg.RequestTimeout = cmp.Or(cfg.RequestTimeout, 10*time.Second)
	cfg.MaxResponseBytes = cmp.Or(cfg.MaxResponseBytes, 16<<20)
	cfg.MaxCallBytes = cmp.Or(cfg.MaxCallBytes, 256<<20)
	cfg.MaxRequestBytes = cmp.Or(cfg.MaxRequestBytes, 1<<20)
	cfg.MaxInFlight = cmp.Or(cfg.MaxInFlight, 256)
	return cfg
}

func (cfg Config) publicBaseURL() string {
	host := cfg.PublicDomainName
	if host == "" {
		host = net.JoinHostPort(cmp.Or(cfg.PublicIPv4, cfg.localIP()), strconv.Itoa(cfg.Port))
	}
	// Without the default port, as npm nodes do: all nodes of a cluster must register their common
	// public base URL in the same spelling.
	if cfg.PublicProtocol == "https:" {
		return "https://" + strings.TrimSuffix(host, ":443") + cfg.BasePath
	}
	return "http://" + strings.TrimSuffix(host, ":80") + cfg.BasePath
}

// registration returns the body of a registration.
func (cfg Config) registration() (wire.Registration, error) {
	r := wire.Registration{
		Type:           cfg.Type,
		ServerID:       cfg.ID,
		PublicBaseURL:  cfg.publicBaseURL(),
		ClusterBaseURL: cfg.ClusterBaseURL,
	}
	if cfg.Location == nil {
		return r, nil
	}
	var err error
	r.Location, err = json.Marshal(cfg.Location)
	return r, err
}

func (cfg Config) receivedAudience() string { return cmp.Or(cfg.GenericAudience, cfg.ClientAudience) }

// An address is where peers call this node.
type address struct {
	cfg    Config // with its defaults
	chosen bool   // from the addresses of the machine; otherwise it is configured, and never changes
	locals func() ([]peeraddr.Local, error)

	mu    sync.Mutex // guards the fields below
	local peeraddr.Local
	self  wire.Registration
	base  *url.URL // of self
}

func newAddress(cfg Config, o *options) (*address, error) {
	chosen := cfg.localIP() == "" && cfg.ClusterBaseURL == ""
	a := &address{cfg: cfg.withDefaults(o.local.Addr), chosen: chosen, locals: o.locals}
	return a, a.setLocked(a.cfg, o.local)
}

// setLocked replaces the registration by that of cfg.
func (a *address) setLocked(cfg Config, local peeraddr.Local) (err error) {
	if a.self, err = cfg.registration(); err != nil {
		return err
	}
	a.local = local
	a.base, err = peeraddr.Parse(a.self.ClusterBaseURL)
	return err
}

// registration returns the body of a registration at the current address.
func (a *address) registration() wire.Registration {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.self
}

// is reports whether a base URL is this node's.
func (a *address) is(clusterBaseURL string) bool {
	u, err := peeraddr.Parse(clusterBaseURL)
	return err == nil && a.isURL(u)
}

func (a *address) isURL(u *url.URL) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return peeraddr.Equal(u, a.base)
}

// follow chooses another address if the machine no longer has the chosen one. While it has no
// usable address at all, the last one stays.
func (a *address) follow(log *zap.Logger) {
	if !a.chosen {
		return
	}
	candidates, err := a.locals()
	if err != nil {
		return
	}
	local, ok := peeraddr.Choose(candidates)
	a.mu.Lock()
	previous := a.local
	kept := slices.ContainsFunc(candidates, func(l peeraddr.Local) bool { return l.Addr == previous.Addr })
	if ok && !kept {
		cfg := a.cfg
		cfg.LocalIPv4, cfg.LocalIP, cfg.ClusterBaseURL = "", "", ""
		_ = a.setLocked(cfg.withDefaults(local.Addr), local) // it succeeded with the first address
	}
	a.mu.Unlock()
	if ok && !kept {
		log.Warn("local address has changed", zap.Stringer("previous", previous.Addr))
		a.logChoice(log)
	}
}

func (a *address) logChoice(log *zap.Logger) {
	a.mu.Lock()
	local, url := a.local, a.self.ClusterBaseURL
	a.mu.Unlock()
	if a.chosen {
		log.Info("local address chosen", zap.Stringer("address", local.Addr), zap.String("interface", local.Interface), zap.String("clusterBaseUrl", url))
	}
}

// credentials are the secrets of a node. They may change.
type credentials struct {
	clientSecret     *token.Secret
	key, previousKey *token.Secret // verify received tokens
	unused           *token.Secret // the ClientAccessKey of a node with a GenericKey
}

func newCredentials(cfg Config, log *zap.Logger) *credentials {
	secret := func(value Secret, name, path string) *token.Secret {
		return token.NewSecret(string(value), name, path, func(err error) {
			log.Warn("secret file cannot be used", zap.Error(err))
		})
	}
	s := &credentials{
		clientSecret: secret(cfg.ClientSecret, "OAUTH_CLIENT_SECRET_FILE", cfg.ClientSecretFile),
		key:          secret(cfg.GenericKey, "OAUTH_GENERIC_KEY_FILE", cfg.GenericKeyFile),
		previousKey:  secret(cfg.GenericPreviousKey, "OAUTH_GENERIC_PREVIOUS_KEY_FILE", cfg.GenericPreviousKeyFile),
		unused:       secret(cfg.ClientAccessKey, "OAUTH_CLIENT_ACCESS_KEY_FILE", cfg.ClientAccessKeyFile),
	}
	if cfg.GenericKey == "" && cfg.GenericKeyFile == "" {
		s.key, s.unused = s.unused, s.key
	}
	return s
}

// values returns the values that must not be shown.
func (s *credentials) values() (all []string) {
	for _, secret := range []*token.Secret{s.clientSecret, s.key, s.previousKey, s.unused} {
		all = append(all, secret.Values()...)
	}
	return all
}
