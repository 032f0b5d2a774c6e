package cluster

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"net"
	"net/netip"
	"os"
	"path"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/google/uuid"
)

// A Config is what differs from node to node. It is plain data: the zero value of a field is
// its default, and [New] names every field that is missing or wrong in one error.
//
// The name in brackets is the environment variable that [ConfigFromEnv] reads the field from.
type Config struct {
	// Type is the service that the node is an instance of, such as "mds" [SERVER_TYPE].
	// Mandatory. Nodes of one type form one cluster.
	Type string
	// ID identifies the node [SERVER_ID]; a new UUID by default. A node that keeps its id over
	// a restart takes its old place in the cluster.
	ID string
	// Version is told in the user agent [SERVER_VERSION]; "1.0" by default.
	Version string

	// Port is where the node listens [SERVER_PORT]. Mandatory.
	Port int
	// BasePath is what every path of the node begins with [SERVER_BASE_PATH]; "/{type}/v1" by
	// default.
	BasePath string
	// LocalIPv4 is where peers reach the node [SERVER_LOCAL_IPV4]; the machine's first IPv4
	// that is no loopback by default.
	LocalIPv4 string
	// ClusterBaseURL is the address that peers are told [SERVER_CLUSTER_BASE_URL];
	// "http://{LocalIPv4}:{Port}{BasePath}" by default. Set it for a node behind TLS.
	ClusterBaseURL string
	// PublicProtocol, PublicDomainName and PublicIPv4 make up the address that the public is
	// told: "{protocol}//{domain name}{base path}", or with "{public or local IPv4}:{Port}"
	// where there is no domain name [SERVER_PUBLIC_PROTOCOL, "http:" by default;
	// SERVER_PUBLIC_DOMAIN_NAME; SERVER_PUBLIC_IPV4].
	PublicProtocol   string
	PublicDomainName string
	PublicIPv4       string
	// Location is where the node stands, nil if nobody needs to know [SERVER_LOCATION_LON and
	// SERVER_LOCATION_LAT].
	Location *Location

	// Management makes the node speak to its peers [CLUSTER_MANAGEMENT, "on" or "off"]: announce
	// itself, fan out, evict. Off by default: it only registers.
	Management bool
	// NoRegistration makes [Cluster.ListenAndServe] serve without registering
	// [REGISTRATION_SET, "on" or "off"].
	NoRegistration bool
	// RegistrationRetry is the pause between two tries to register [REGISTRATION_RETRY, in
	// milliseconds]; 3 s by default. Each pause is jittered by a third.
	RegistrationRetry time.Duration
	// RenewalFraction is the share of its lease after which a node renews it; 2/3 by default, at
	// most 0.9. Each wait is jittered by a tenth.
	RenewalFraction float64

	// RequestTimeout bounds each request [REQUEST_TIMEOUT, in milliseconds]; 10 s by default.
	RequestTimeout time.Duration
	// MaxResponseBytes bounds the answers that are read, in bytes; 16 MiB by default.
	MaxResponseBytes int64
	// MaxRequestBytes bounds the bodies that the peer endpoints read, in bytes; 1 MiB by default.
	MaxRequestBytes int64
	// MaxInFlight bounds the requests to peers under way at once, those of all calls together, which
	// share them evenly; 256 by default. Of four peers or more, none gets more than a quarter of them, but
	// for repetitions.
	MaxInFlight int

	// RegistryURL is where mIT is [MIT_URL]. Mandatory. It may list several URLs, with commas
	// between: those of replicas of one registry. The node keeps to one of them, and goes on to
	// another when that one gives no answer in time, or none that can be used.
	RegistryURL string
	// RegistryAudience is the audience of tokens for mIT, at whatever URL [MIT_AUDIENCE].
	// Mandatory.
	RegistryAudience string
	// PeerAudience is the audience of tokens for peers [{TYPE}_AUDIENCE, such as MDS_AUDIENCE].
	// Mandatory with Management.
	PeerAudience string

	// Issuer is mST's token URL, and the issuer that received tokens must name [OAUTH_ISSUER].
	// Mandatory unless both [WithTokens] and [WithVerifier] are given.
	Issuer string
	// ClientID and ClientSecret are the node's own at mST [OAUTH_CLIENT_ID,
	// OAUTH_CLIENT_SECRET]. Mandatory unless [WithTokens] is given.
	ClientID     string
	ClientSecret Secret
	// GenericKey and GenericPreviousKey are what received tokens are signed with
	// [OAUTH_GENERIC_KEY, OAUTH_GENERIC_PREVIOUS_KEY]; ClientAccessKey stands in for the first
	// [OAUTH_CLIENT_ACCESS_KEY]. One is mandatory unless [WithVerifier] is given. In the
	// environment "noGeneric" means unset.
	GenericKey         Secret
	GenericPreviousKey Secret
	ClientAccessKey    Secret
	// GenericAudience is the audience that received tokens must name [OAUTH_GENERIC_AUDIENCE];
	// ClientAudience stands in for it [OAUTH_CLIENT_AUDIENCE]. One is mandatory unless
	// [WithVerifier] is given.
	GenericAudience string
	ClientAudience  string
}

// A Location is a point on the earth, in degrees.
type Location struct{ Lon, Lat float64 }

// MarshalJSON gives a GeoJSON point.
func (l Location) MarshalJSON() ([]byte, error) {
	return json.Marshal(struct {
		Type        string     `json:"type"`
		Coordinates [2]float64 `json:"coordinates"`
	}{"Point", [2]float64{l.Lon, l.Lat}})
}

// A Secret is text that does not print, log or marshal.
type Secret string

const redacted = "[redacted]"

// String does not give the secret away; convert it to a string for that.
func (s Secret) String() string {
	if s == "" {
		return ""
	}
	return redacted
}

// Format is String under any verb: of one that does not fit, fmt would show the text itself.
func (s Secret) Format(f fmt.State, verb rune) {
	_, _ = fmt.Fprintf(f, fmt.FormatString(f, verb), s.String())
}

// MarshalText is String, for encoding/json and loggers.
func (s Secret) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// noGeneric is how mimik's environments say that a generic value is not set.
const noGeneric = "noGeneric"

// ConfigFromEnv reads the configuration from the environment, as every mimik service does. One
// error names every variable that is missing or malformed. Pass it the options that New will
// get: with [WithTokens] and [WithVerifier], what they replace is not missed.
func ConfigFromEnv(opts ...Option) (Config, error) {
	e := env{lookup: os.LookupEnv}
	cfg := Config{
		Type:               e.str("SERVER_TYPE"),
		ID:                 e.str("SERVER_ID"),
		Version:            e.str("SERVER_VERSION"),
		Port:               e.positiveInt("SERVER_PORT"),
		BasePath:           e.str("SERVER_BASE_PATH"),
		LocalIPv4:          e.str("SERVER_LOCAL_IPV4"),
		ClusterBaseURL:     e.str("SERVER_CLUSTER_BASE_URL"),
		PublicProtocol:     e.str("SERVER_PUBLIC_PROTOCOL"),
		PublicDomainName:   e.str("SERVER_PUBLIC_DOMAIN_NAME"),
		PublicIPv4:         e.str("SERVER_PUBLIC_IPV4"),
		Location:           e.location("SERVER_LOCATION_LON", "SERVER_LOCATION_LAT"),
		Management:         e.onOff("CLUSTER_MANAGEMENT", false),
		NoRegistration:     !e.onOff("REGISTRATION_SET", true),
		RegistrationRetry:  e.milliseconds("REGISTRATION_RETRY"),
		RequestTimeout:     e.milliseconds("REQUEST_TIMEOUT"),
		RegistryURL:        e.str("MIT_URL"),
		RegistryAudience:   e.str("MIT_AUDIENCE"),
		Issuer:             e.str("OAUTH_ISSUER"),
		ClientID:           e.str("OAUTH_CLIENT_ID"),
		ClientSecret:       Secret(e.str("OAUTH_CLIENT_SECRET")),
		GenericKey:         Secret(e.generic("OAUTH_GENERIC_KEY")),
		GenericPreviousKey: Secret(e.generic("OAUTH_GENERIC_PREVIOUS_KEY")),
		ClientAccessKey:    Secret(e.str("OAUTH_CLIENT_ACCESS_KEY")),
		GenericAudience:    e.generic("OAUTH_GENERIC_AUDIENCE"),
		ClientAudience:     e.str("OAUTH_CLIENT_AUDIENCE"),
	}
	if cfg.Type != "" {
		cfg.PeerAudience = e.str(audienceVariable(cfg.Type))
	}
	o := applyOptions(opts)
	return cfg, configError(append(e.problems, cfg.validate(o, e.malformed)...))
}

// audienceVariable is the name of the variable that holds the audience of a type.
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

// env reads variables and remembers what was wrong with them.
type env struct {
	lookup    func(string) (string, bool)
	problems  []error
	malformed map[string]bool // those in problems: present, so not missing
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

func (e *env) invalid(name, value, want string) {
	if e.malformed == nil {
		e.malformed = map[string]bool{}
	}
	e.malformed[name] = true
	e.problems = append(e.problems, fmt.Errorf("%s is %.40q, not %s", name, value, want))
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

func (e *env) onOff(name string, preset bool) bool {
	switch v := e.str(name); v {
	case "":
		return preset
	case "on":
		return true
	case "off":
		return false
	default:
		e.invalid(name, v, `"on" or "off"`)
		return preset
	}
}

func (e *env) location(lonName, latName string) *Location {
	lon, lat := e.str(lonName), e.str(latName)
	if lon == "" || lat == "" {
		return nil
	}
	return &Location{e.degrees(lonName, lon, 180), e.degrees(latName, lat, 90)}
}

func (e *env) degrees(name, value string, most float64) float64 {
	f, err := strconv.ParseFloat(value, 64)
	if err != nil || !(f >= -most && f <= most) {
		e.invalid(name, value, fmt.Sprintf("a number of degrees from -%g to %g", most, most))
		return 0
	}
	return f
}

// problems lists what is missing or malformed. Those in known have been reported already.
func (cfg Config) validate(o options, known map[string]bool) []error {
	var found []error
	report := func(name, format string, args ...any) {
		if !known[name] {
			found = append(found, fmt.Errorf("%s %w", name, fmt.Errorf(format, args...)))
		}
	}
	need := func(name, value string) {
		if value == "" {
			report(name, "is missing")
		}
	}
	needURL := func(name, value string) {
		if value == "" {
			report(name, "is missing")
		} else if _, err := parseBase(value); err != nil {
			report(name, "is wrong: %v", err)
		}
	}

	if cfg.Type == "" {
		report("SERVER_TYPE", "is missing")
	} else if !validName(cfg.Type) {
		report("SERVER_TYPE", "is %.40q: letters, digits, '-', '_', '.' and ':' are what it may hold", cfg.Type)
	}
	if cfg.ID != "" && !validName(cfg.ID) {
		report("SERVER_ID", "is %.40q: letters, digits, '-', '_', '.' and ':' are what it may hold", cfg.ID)
	}
	if strings.ContainsFunc(cfg.Version, func(r rune) bool { return r < ' ' || r > '~' }) {
		report("SERVER_VERSION", "is %.40q: it must fit a header", cfg.Version)
	}
	if cfg.Port == 0 {
		report("SERVER_PORT", "is missing")
	} else if cfg.Port < 0 || cfg.Port > 65535 {
		report("SERVER_PORT", "is %d, not a port", cfg.Port)
	}
	if p := cfg.BasePath; p != "" && (p[0] != '/' || path.Clean(p) != p || !validPath(p)) {
		report("SERVER_BASE_PATH", "is %.40q, not a clean path from / on", p)
	}
	if cfg.LocalIPv4 != "" && !isIPv4(cfg.LocalIPv4) {
		report("SERVER_LOCAL_IPV4", "is %.40q, not an IPv4 address", cfg.LocalIPv4)
	}
	if cfg.PublicIPv4 != "" && !isIPv4(cfg.PublicIPv4) {
		report("SERVER_PUBLIC_IPV4", "is %.40q, not an IPv4 address", cfg.PublicIPv4)
	}
	if cfg.LocalIPv4 == "" && cfg.ClusterBaseURL == "" && localIPv4() == "" {
		report("SERVER_LOCAL_IPV4", "is missing, and this machine has no IPv4 address but its loopback")
	}
	if cfg.ClusterBaseURL != "" {
		needURL("SERVER_CLUSTER_BASE_URL", cfg.ClusterBaseURL)
	}
	switch cfg.PublicProtocol {
	case "", "http:", "https:", "http", "https":
	default:
		report("SERVER_PUBLIC_PROTOCOL", `is %.40q, neither "http:" nor "https:"`, cfg.PublicProtocol)
	}
	if d := cfg.PublicDomainName; d != "" {
		if u, err := parseBase("http://" + d); err != nil || u.Host != d || strings.ContainsAny(d, "<>\"") {
			report("SERVER_PUBLIC_DOMAIN_NAME", "is %.40q, not a domain name", d)
		}
	}
	if l := cfg.Location; l != nil && !(l.Lon >= -180 && l.Lon <= 180 && l.Lat >= -90 && l.Lat <= 90) {
		report("SERVER_LOCATION_LON", "and SERVER_LOCATION_LAT are no place on earth")
	}
	if !(cfg.RenewalFraction >= 0 && cfg.RenewalFraction <= maxRenewalShare) {
		report("RenewalFraction", "is %g, not between 0 and %g", cfg.RenewalFraction, maxRenewalShare)
	}
	needDuration := func(name string, d time.Duration) {
		if d < 0 || d > maxLease {
			report(name, "is %v, not from 0 to %v", d, maxLease)
		}
	}
	needDuration("REQUEST_TIMEOUT", cfg.RequestTimeout)
	needDuration("REGISTRATION_RETRY", cfg.RegistrationRetry)
	if cfg.MaxResponseBytes < 0 || cfg.MaxRequestBytes < 0 || cfg.MaxInFlight < 0 {
		report("MaxResponseBytes, MaxRequestBytes or MaxInFlight", "is negative")
	}

	if e := o.eviction; !(e.MaxSuspectFraction >= 0 && e.MaxSuspectFraction <= 1) || e.Timeout < 0 {
		report("WithEviction", "has a MaxSuspectFraction of %g and a Wait of %v: a share is from 0 to 1, and no wait is negative", e.MaxSuspectFraction, e.Timeout)
	}
	if r := o.retry; r.Delay < 0 || r.MaxElapsed < 0 {
		report("WithRetry", "has a Delay of %v and Within %v: neither can be negative", r.Delay, r.MaxElapsed)
	}

	if urls, err := parseURLList(cfg.RegistryURL); err != nil {
		report("MIT_URL", "is wrong: %v", err)
	} else if len(urls) == 0 {
		report("MIT_URL", "is missing")
	}
	need("MIT_AUDIENCE", cfg.RegistryAudience)
	if cfg.Management {
		name := "{TYPE}_AUDIENCE"
		if cfg.Type != "" && validName(cfg.Type) {
			name = audienceVariable(cfg.Type)
		}
		need(name, cfg.PeerAudience)
	}
	if o.tokens == nil {
		need("OAUTH_CLIENT_ID", cfg.ClientID)
		need("OAUTH_CLIENT_SECRET", string(cfg.ClientSecret))
	}
	if o.tokens == nil || o.verifier == nil {
		needURL("OAUTH_ISSUER", cfg.Issuer)
	}
	if o.verifier == nil {
		need("OAUTH_GENERIC_KEY (or OAUTH_CLIENT_ACCESS_KEY)", string(cfg.receivedKey()))
		need("OAUTH_GENERIC_AUDIENCE (or OAUTH_CLIENT_AUDIENCE)", cfg.receivedAudience())
	}
	return found
}

// listedURLs are the base URLs in a list, each once, without slashes at their ends. Blank entries
// count for nothing.
func parseURLList(list string) (urls []string, err error) {
	entries := strings.Split(list, ",")
	var problems []string
	for i, entry := range entries {
		entry = strings.TrimRight(strings.TrimSpace(entry), "/")
		if entry == "" || slices.Contains(urls, entry) {
			continue
		}
		_, err := parseBase(entry)
		switch {
		case err == nil:
			urls = append(urls, entry)
		case len(entries) == 1:
			return nil, err
		default:
			problems = append(problems, fmt.Sprintf("entry %d of %d is %v", i+1, len(entries), err))
		}
	}
	if problems != nil {
		return nil, errors.New(strings.Join(problems, ", "))
	}
	return urls, nil
}

// plainName tells whether s can stand in a path, a header and an env variable as it is. An '@'
// is left out on purpose: a dated delete would take what follows it for the date.
func validName(s string) bool {
	return s != "." && s != ".." && len(s) <= 256 && !strings.ContainsFunc(s, func(r rune) bool {
		return (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') && (r < '0' || r > '9') && !strings.ContainsRune("-_.:", r)
	})
}

// plainPath tells whether p can stand in a URL and in the pattern of a mux as it is.
func validPath(p string) bool {
	return utf8.ValidString(p) && !strings.ContainsFunc(p, func(r rune) bool {
		return r <= ' ' || r == 0x7f || strings.ContainsRune("{}?#%", r)
	})
}

// isIPv4 tells whether s is an address that somebody can be reached at.
func isIPv4(s string) bool {
	ip, err := netip.ParseAddr(s)
	return err == nil && ip.Is4() && !ip.IsUnspecified()
}

// localIPv4 is the machine's first IPv4 address that is no loopback, "" if it has none.
func localIPv4() string {
	addrs, err := net.InterfaceAddrs()
	if err != nil {
		return ""
	}
	for _, a := range addrs {
		if n, ok := a.(*net.IPNet); ok && n.IP.To4() != nil && !n.IP.IsLoopback() {
			return n.IP.String()
		}
	}
	return ""
}

// withDefaults is cfg with what must not change from one use to the next filled in.
func (cfg Config) withDefaults() Config {
	cfg.ID = cmp.Or(cfg.ID, uuid.NewString())
	cfg.Version = cmp.Or(cfg.Version, "1.0")
	cfg.BasePath = strings.TrimSuffix(cmp.Or(cfg.BasePath, "/"+cfg.Type+"/v1"), "/")
	if cfg.ClusterBaseURL == "" {
		cfg.ClusterBaseURL = fmt.Sprintf("http://%s:%d%s", cmp.Or(cfg.LocalIPv4, localIPv4()), cfg.Port, cfg.BasePath)
	}
	cfg.ClusterBaseURL = strings.TrimRight(cfg.ClusterBaseURL, "/")
	urls, _ := parseURLList(cfg.RegistryURL) // they have been checked
	cfg.RegistryURL = strings.Join(urls, ",")
	cfg.RegistrationRetry = cmp.Or(cfg.RegistrationRetry, 3*time.Second)
	cfg.RenewalFraction = cmp.Or(cfg.RenewalFraction, 2.0/3)
	cfg.RequestTimeout = cmp.Or(cfg.RequestTimeout, 10*time.Second)
	cfg.MaxResponseBytes = min(cmp.Or(cfg.MaxResponseBytes, 16<<20), math.MaxInt64-1) // one more byte is read, to see that there is one
	cfg.MaxRequestBytes = cmp.Or(cfg.MaxRequestBytes, 1<<20)
	cfg.MaxInFlight = cmp.Or(cfg.MaxInFlight, 256)
	return cfg
}

func (cfg Config) publicBaseURL() string {
	host := cfg.PublicDomainName
	if host == "" {
		host = fmt.Sprintf("%s:%d", cmp.Or(cfg.PublicIPv4, cfg.LocalIPv4, localIPv4()), cfg.Port)
	}
	// As npm nodes have it, without the port that is understood: the nodes of a cluster share
	// one public address, and must not give it to mIT in two spellings.
	if strings.TrimSuffix(cfg.PublicProtocol, ":") == "https" {
		return "https://" + strings.TrimSuffix(host, ":443") + cfg.BasePath
	}
	return "http://" + strings.TrimSuffix(host, ":80") + cfg.BasePath
}

func (cfg Config) receivedKey() Secret { return cmp.Or(cfg.GenericKey, cfg.ClientAccessKey) }

func (cfg Config) receivedAudience() string { return cmp.Or(cfg.GenericAudience, cfg.ClientAudience) }
