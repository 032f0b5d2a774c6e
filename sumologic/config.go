package sumologic

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"go.uber.org/zap/zapcore"
)

// Config is the configuration of a [Sink]. The zero value writes every line to standard output
// and sends none. In brackets: the variable that [ConfigFromEnv] reads.
type Config struct {
	// Endpoint is the URL of Sumo Logic's HTTP source up to and including the slash before the
	// collector code [SUMO_LOGIC_ENDPOINT]. If empty, lines are written to the console only, as
	// with LOG_MODE none.
	Endpoint string
	// Code is the collector code [SUMO_LOGIC_COLLECTOR_CODE]. It is a credential. The sink never
	// prints it, and masks it in log lines if it has at least eight characters.
	Code Secret

	// ServerType and ServerID identify the service in each line [SERVER_TYPE, SERVER_ID]. The
	// defaults are unknownServerType and unknownServerId. "@clients" is appended to the id.
	ServerType string
	ServerID   string

	// Level enables lines for Sumo Logic [LOG_LEVEL], and ConsoleLevel for the console
	// [CONSOLE_LEVEL]. If nil, all levels are enabled. [zapcore.InvalidLevel] enables none.
	Level        zapcore.LevelEnabler
	ConsoleLevel zapcore.LevelEnabler
	// Console is the writer of the console lines. If nil, it is standard output.
	Console zapcore.WriteSyncer

	// Stacks makes [Sink.Logger] record a stack trace at every level [NO_STACK other than yes,
	// with NODE_ENV local, dev or development].
	Stacks bool
	// Mask lists JSONPath expressions (RFC 9535) [the JSON array in FILTER_FILE]. Each value in
	// metadata that one of them selects is replaced by "-------". A path without a leading $
	// starts at the root.
	Mask []string

	// ExitDelay limits [Sink.Sync] and [Sink.Close] [EXIT_DELAY, in milliseconds]. The default is
	// two seconds.
	ExitDelay time.Duration

	// SourceName, SourceCategory, SourceHost and SourceFields override the settings of the HTTP
	// source [SUMO_LOGIC_SOURCE_NAME, SUMO_LOGIC_SOURCE_CATEGORY, SUMO_LOGIC_SOURCE_HOST,
	// SUMO_LOGIC_SOURCE_FIELDS]. SourceFields has the form k=v,k=v.
	SourceName     string
	SourceCategory string
	SourceHost     string
	SourceFields   string

	// Transport sends the requests. If nil, the sink uses its own, limited to one connection.
	Transport http.RoundTripper
}

// A Secret is text that does not print, log or marshal.
type Secret string

// String returns "[redacted]". Convert the secret to a string to read it.
func (s Secret) String() string {
	if s == "" {
		return ""
	}
	return redacted
}

// Format writes [Secret.String] for every verb, including %q and %#v.
func (s Secret) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, s.String()) }

// MarshalText returns [Secret.String], for encoding/json and loggers.
func (s Secret) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// ConfigFromEnv reads the configuration from the environment. lookup is [os.LookupEnv] if nil.
// One error names every variable that is missing or malformed. LOG_MODE is sumologic or none, the
// default; the modes awsS3, awsKinesis and all, which the npm module has in addition, are errors.
func ConfigFromEnv(lookup func(string) (string, bool)) (Config, error) {
	if lookup == nil {
		lookup = os.LookupEnv //nolint:forbidigo // nothing else reads the process environment
	}
	e := env{lookup: lookup}
	cfg := Config{
		ServerType:     e.str("SERVER_TYPE"),
		ServerID:       e.str("SERVER_ID"),
		Level:          e.level("LOG_LEVEL"),
		ConsoleLevel:   e.level("CONSOLE_LEVEL"),
		Stacks:         e.stacks(),
		Mask:           e.paths("FILTER_FILE"),
		ExitDelay:      e.milliseconds("EXIT_DELAY"),
		SourceName:     e.str("SUMO_LOGIC_SOURCE_NAME"),
		SourceCategory: e.str("SUMO_LOGIC_SOURCE_CATEGORY"),
		SourceHost:     e.str("SUMO_LOGIC_SOURCE_HOST"),
		SourceFields:   e.str("SUMO_LOGIC_SOURCE_FIELDS"),
	}
	if e.sumologic() {
		cfg.Endpoint = e.required("SUMO_LOGIC_ENDPOINT")
		cfg.Code = Secret(e.required("SUMO_LOGIC_COLLECTOR_CODE"))
	}
	problems := e.problems
	if !e.missing {
		_, invalid := cfg.validate()
		problems = append(problems, invalid...)
	}
	return cfg, configError(problems)
}

const redacted = "[redacted]"

func configError(problems []error) error {
	if len(problems) == 0 {
		return nil
	}
	return fmt.Errorf("sumologic: configuration: %w", errors.Join(problems...))
}

// env reads variables and collects their problems.
type env struct {
	lookup   func(string) (string, bool)
	problems []error
	missing  bool // a mandatory variable is missing, and reported
}

func (e *env) str(name string) string {
	v, _ := e.lookup(name)
	return strings.TrimSpace(v)
}

func (e *env) add(format string, args ...any) {
	e.problems = append(e.problems, fmt.Errorf(format, args...))
}

// required does not trim: a code with a line break is an error, not a different code.
func (e *env) required(name string) string {
	v, _ := e.lookup(name)
	if v == "" {
		e.missing = true
		e.add("%s is missing", name)
	}
	return v
}

// sumologic reports whether LOG_MODE asks for lines to be sent.
func (e *env) sumologic() bool {
	mode := e.str("LOG_MODE")
	if mode == "" {
		return false
	}
	var words []string
	for word := range strings.SplitSeq(mode, ",") {
		words = append(words, strings.TrimSpace(word))
	}
	for _, word := range words {
		switch word {
		case "sumologic", "none":
		case "awsS3", "awsKinesis":
			e.add("LOG_MODE %s is not supported: this library sends to sumologic only", word)
		case "all":
			e.add("LOG_MODE all means sumologic and awsS3, and awsS3 is not supported: this library sends to sumologic only")
		default:
			e.add("LOG_MODE contains the unknown word %.40q: the modes are sumologic and none", word)
		}
	}
	if slices.Contains(words, "none") && len(words) > 1 {
		e.add("LOG_MODE none cannot be combined with other modes")
	}
	return slices.Contains(words, "sumologic")
}

// level maps winston's levels to those of zap, which has none between info and debug.
func (e *env) level(name string) zapcore.LevelEnabler {
	switch v := e.str(name); v {
	case "", "debug", "verbose", "silly":
		return zapcore.DebugLevel
	case "info", "http":
		return zapcore.InfoLevel
	case "warn":
		return zapcore.WarnLevel
	case "error":
		return zapcore.ErrorLevel
	default:
		e.add("%s %.40q is not one of error, warn, info, http, verbose, debug and silly", name, v)
		return nil
	}
}

func (e *env) stacks() bool {
	if v := e.str("NO_STACK"); v == "" || v == "yes" {
		return false
	}
	switch strings.ToLower(e.str("NODE_ENV")) {
	case "", "local", "dev", "development":
		return true
	}
	return false
}

const maxFilterFile = 1 << 20

// paths reads a file with a JSON array of strings.
func (e *env) paths(name string) (paths []string) {
	file := e.str(name)
	if file == "" {
		return nil
	}
	f, err := os.Open(file)
	if err != nil {
		e.add("%s: %w", name, err)
		return nil
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxFilterFile+1))
	switch {
	case err != nil:
		e.add("%s: %w", name, err)
	case len(b) > maxFilterFile:
		e.add("%s: %s has more than %d bytes", name, file, maxFilterFile)
	default:
		if err := json.Unmarshal(b, &paths); err != nil {
			e.add("%s: %s is not a JSON array of JSONPath strings: %w", name, file, err)
			return nil
		}
	}
	return paths
}

// milliseconds returns 0, which means the default, for a variable that is unset or 0.
func (e *env) milliseconds(name string) time.Duration {
	v := e.str(name)
	if v == "" {
		return 0
	}
	n, err := strconv.Atoi(v)
	if err != nil || n < 0 || n > int(maxExitDelay/time.Millisecond) {
		e.add("%s %.40q is not a number of milliseconds from 0 to %d", name, v, maxExitDelay/time.Millisecond)
		return 0
	}
	return time.Duration(n) * time.Millisecond
}

const (
	defaultExitDelay = 2 * time.Second
	maxExitDelay     = time.Hour
	maxName          = 256 // bytes of a server type or id
	maxHeader        = 1024
)

// validate returns the parsed mask and the problems of cfg. None of them quotes the endpoint: it
// may contain the code by mistake.
func (cfg Config) validate() (masks, []error) {
	masks, problems := parseMasks(cfg.Mask)
	add := func(format string, args ...any) { problems = append(problems, fmt.Errorf(format, args...)) }

	switch {
	case cfg.Endpoint == "" && cfg.Code != "":
		add("SUMO_LOGIC_ENDPOINT is missing")
	case cfg.Endpoint != "" && endpointHost(cfg.Endpoint) == "":
		add("SUMO_LOGIC_ENDPOINT is not an http or https URL that ends with a slash, such as " +
			"https://endpoint1.collection.sumologic.com/receiver/v1/http/")
	}
	switch {
	case cfg.Endpoint != "" && cfg.Code == "":
		add("SUMO_LOGIC_COLLECTOR_CODE is missing")
	case !validCode(string(cfg.Code)):
		add("SUMO_LOGIC_COLLECTOR_CODE is not a collector code: it contains a line break, a blank or " +
			"another character that is not Base64")
	}
	if len(cfg.ServerType) > maxName {
		add("SERVER_TYPE has more than %d bytes", maxName)
	}
	if len(cfg.ServerID) > maxName {
		add("SERVER_ID has more than %d bytes", maxName)
	}
	if cfg.ExitDelay < 0 || cfg.ExitDelay > maxExitDelay {
		add("EXIT_DELAY %v is not between 0 and %v", cfg.ExitDelay, maxExitDelay)
	}
	for _, h := range cfg.sourceHeaders() {
		if len(h.value) > maxHeader || strings.ContainsFunc(h.value, func(r rune) bool { return r < ' ' || r > '~' }) {
			add("%s does not fit into a header: it is limited to %d printable ASCII characters", h.variable, maxHeader)
		}
	}
	return masks, problems
}

type sourceHeader struct{ variable, name, value string }

func (cfg Config) sourceHeaders() []sourceHeader {
	return []sourceHeader{
		{"SUMO_LOGIC_SOURCE_NAME", "X-Sumo-Name", cfg.SourceName},
		{"SUMO_LOGIC_SOURCE_CATEGORY", "X-Sumo-Category", cfg.SourceCategory},
		{"SUMO_LOGIC_SOURCE_HOST", "X-Sumo-Host", cfg.SourceHost},
		{"SUMO_LOGIC_SOURCE_FIELDS", "X-Sumo-Fields", cfg.SourceFields},
	}
}

func (cfg Config) withDefaults() Config {
	cfg.ServerType = cmp.Or(cfg.ServerType, "unknownServerType")
	cfg.ServerID = cmp.Or(cfg.ServerID, "unknownServerId")
	cfg.ExitDelay = cmp.Or(cfg.ExitDelay, defaultExitDelay)
	if cfg.Level == nil {
		cfg.Level = zapcore.DebugLevel
	}
	if cfg.ConsoleLevel == nil {
		cfg.ConsoleLevel = zapcore.DebugLevel
	}
	if cfg.Console == nil {
		cfg.Console = unsynced{os.Stdout}
	}
	return cfg
}

func (cfg Config) remote() bool { return cfg.Endpoint != "" }

// unsynced hides the Sync of standard output, which fails for terminals and pipes.
type unsynced struct{ io.Writer }

func (unsynced) Sync() error { return nil }

// endpointHost returns the host of a valid endpoint, "" for any other text.
func endpointHost(endpoint string) string {
	u, err := url.Parse(endpoint)
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.User != nil || u.Hostname() == "" ||
		u.RawQuery != "" || u.ForceQuery || strings.Contains(endpoint, "#") || !strings.HasSuffix(u.Path, "/") {
		return ""
	}
	return u.Host
}

// validCode reports whether code consists of the characters of both Base64 alphabets, or of others
// that are the same in a URL and in JSON.
func validCode(code string) bool {
	return !strings.ContainsFunc(code, func(r rune) bool {
		return (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') && (r < '0' || r > '9') && !strings.ContainsRune("+/=-_.~", r)
	})
}
