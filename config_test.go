package cluster_test

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"math"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"
	"github.com/google/uuid"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest/observer"
	"golang.org/x/oauth2"

	"github.com/mimiktech/cluster"
	"github.com/mimiktech/cluster/clustertest"
)

func TestConfigFromEnv(t *testing.T) {
	setenv(t, testEnv())
	got, err := cluster.ConfigFromEnv()
	if err != nil {
		t.Fatal(err)
	}
	want := cluster.Config{
		Type:               "my-svc",
		ID:                 "node-1",
		Version:            "2.1.0",
		Port:               8080,
		BasePath:           "/my/v2",
		LocalIPv4:          "10.0.0.7",
		ClusterBaseURL:     "https://node-1.internal:8443/my/v2",
		PublicProtocol:     "https:",
		PublicDomainName:   "my.example.com",
		PublicIPv4:         "203.0.113.7",
		Location:           &cluster.Location{Lon: -123.1207, Lat: 49.2827},
		Management:         true,
		NoRegistration:     true,
		RegistrationRetry:  4 * time.Second,
		RequestTimeout:     1500 * time.Millisecond,
		RegistryURL:        "https://mit.example.com/mIT/v1",
		RegistryAudience:   "https://mit.audience",
		PeerAudience:       "https://my-svc.audience",
		Issuer:             "https://mst.example.com/oauth/token",
		ClientID:           "the id",
		ClientSecret:       "hidden client secret",
		ClientAccessKey:    "hidden access key",
		ClientAudience:     "https://client.audience",
		GenericKey:         "hidden generic key",
		GenericPreviousKey: "hidden previous key",
		GenericAudience:    "https://generic.audience",
	}
	if diff := cmp.Diff(want, got); diff != "" { // different secrets look the same in the diff
		t.Errorf("(-want +got):\n%s", diff)
	}
	if _, err := cluster.New(got); err != nil {
		t.Errorf("New rejects it: %v", err)
	}
}

func TestConfigFromEnvValues(t *testing.T) {
	for _, tt := range []struct {
		name string
		env  map[string]string // replaces variables of testEnv
		want func(*cluster.Config)
	}{
		{
			"only required variables",
			map[string]string{
				"SERVER_ID": "", "SERVER_VERSION": "", "SERVER_BASE_PATH": "", "SERVER_LOCAL_IPV4": "", "SERVER_PUBLIC_PROTOCOL": "",
				"SERVER_PUBLIC_DOMAIN_NAME": "", "SERVER_PUBLIC_IPV4": "", "SERVER_LOCATION_LON": "", "SERVER_LOCATION_LAT": "",
				"CLUSTER_MANAGEMENT": "", "REGISTRATION_SET": "", "REGISTRATION_RETRY": "", "REQUEST_TIMEOUT": "", "MY_SVC_AUDIENCE": "",
				"OAUTH_GENERIC_KEY": "", "OAUTH_GENERIC_PREVIOUS_KEY": "", "OAUTH_GENERIC_AUDIENCE": "",
			},
			func(c *cluster.Config) {
				*c = cluster.Config{
					Type: c.Type, Port: c.Port, ClusterBaseURL: c.ClusterBaseURL, RegistryURL: c.RegistryURL, RegistryAudience: c.RegistryAudience,
					Issuer: c.Issuer, ClientID: c.ClientID, ClientSecret: c.ClientSecret, ClientAccessKey: c.ClientAccessKey, ClientAudience: c.ClientAudience,
				}
			},
		},
		{
			"noGeneric as generic values",
			map[string]string{"OAUTH_GENERIC_KEY": "noGeneric", "OAUTH_GENERIC_PREVIOUS_KEY": "noGeneric", "OAUTH_GENERIC_AUDIENCE": "noGeneric"},
			func(c *cluster.Config) { c.GenericKey, c.GenericPreviousKey, c.GenericAudience = "", "", "" },
		},
		{
			"noGeneric as other values",
			map[string]string{"OAUTH_CLIENT_SECRET": "noGeneric", "OAUTH_CLIENT_ACCESS_KEY": "noGeneric", "OAUTH_CLIENT_AUDIENCE": "noGeneric"},
			func(c *cluster.Config) {
				c.ClientSecret, c.ClientAccessKey, c.ClientAudience = "noGeneric", "noGeneric", "noGeneric"
			},
		},
		{"management off", map[string]string{"CLUSTER_MANAGEMENT": "off"}, func(c *cluster.Config) { c.Management = false }},
		{"registration on", map[string]string{"REGISTRATION_SET": "on"}, func(c *cluster.Config) { c.NoRegistration = false }},
		{"one millisecond", map[string]string{"REQUEST_TIMEOUT": "1"}, func(c *cluster.Config) { c.RequestTimeout = time.Millisecond }},
		{"a year of milliseconds", map[string]string{"REGISTRATION_RETRY": "31536000000"}, func(c *cluster.Config) { c.RegistrationRetry = 365 * 24 * time.Hour }},
		{"extreme coordinates", map[string]string{"SERVER_LOCATION_LON": "-180", "SERVER_LOCATION_LAT": "90.0"}, func(c *cluster.Config) { c.Location = &cluster.Location{Lon: -180, Lat: 90} }},
		{"coordinates of zero", map[string]string{"SERVER_LOCATION_LON": "0", "SERVER_LOCATION_LAT": "0"}, func(c *cluster.Config) { c.Location = &cluster.Location{} }},
		{"no location", map[string]string{"SERVER_LOCATION_LON": "", "SERVER_LOCATION_LAT": " "}, func(c *cluster.Config) { c.Location = nil }},
		{"white space around values", map[string]string{"SERVER_PORT": " 8081\n", "SERVER_ID": "\tnode-2 ", "CLUSTER_MANAGEMENT": " off"}, func(c *cluster.Config) {
			c.Port, c.ID, c.Management = 8081, "node-2", false
		}},
		{"only white space", map[string]string{"SERVER_ID": " \t\n"}, func(c *cluster.Config) { c.ID = "" }},
		{"the highest port", map[string]string{"SERVER_PORT": "65535"}, func(c *cluster.Config) { c.Port = 65535 }},
		{"the root as base path", map[string]string{"SERVER_BASE_PATH": "/"}, func(c *cluster.Config) { c.BasePath = "/" }},
		{"a protocol without its colon", map[string]string{"SERVER_PUBLIC_PROTOCOL": "https"}, func(c *cluster.Config) { c.PublicProtocol = "https" }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			setenv(t, testEnv())
			want, err := cluster.ConfigFromEnv()
			if err != nil {
				t.Fatal(err)
			}
			tt.want(&want)
			for name, value := range tt.env {
				t.Setenv(name, value)
			}
			got, err := cluster.ConfigFromEnv()
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

func TestConfigFromEnvPeerAudience(t *testing.T) {
	for typ, variable := range map[string]string{
		"mds":       "MDS_AUDIENCE",
		"my-svc":    "MY_SVC_AUDIENCE",
		"my.svc_2":  "MY_SVC_2_AUDIENCE",
		"MixedCase": "MIXEDCASE_AUDIENCE",
		"a:b":       "A_B_AUDIENCE",
	} {
		t.Run(typ, func(t *testing.T) {
			env := testEnv()
			delete(env, "MY_SVC_AUDIENCE")
			env["SERVER_TYPE"] = typ
			setenv(t, env)

			_, err := cluster.ConfigFromEnv()
			if diff := cmp.Diff([]string{variable}, namedVariables(err)); diff != "" {
				t.Errorf("missing variables (-want +got):\n%s", diff)
			}
			t.Setenv(variable, "peers")
			cfg, err := cluster.ConfigFromEnv()
			if err != nil || cfg.PeerAudience != "peers" {
				t.Errorf("PeerAudience = %q, %v", cfg.PeerAudience, err)
			}
		})
	}
}

func TestConfigFromEmptyEnv(t *testing.T) {
	setenv(t, nil)
	_, err := cluster.ConfigFromEnv()
	want := []string{
		"SERVER_TYPE", "SERVER_PORT", "MIT_URL", "MIT_AUDIENCE", "OAUTH_CLIENT_ID", "OAUTH_CLIENT_SECRET", "OAUTH_ISSUER",
		"OAUTH_GENERIC_KEY", "OAUTH_GENERIC_AUDIENCE",
	}
	if diff := cmp.Diff(want, namedVariables(err)); diff != "" {
		t.Errorf("missing variables (-want +got):\n%s\n%v", diff, err)
	}
	if _, newErr := cluster.New(cluster.Config{}); newErr == nil || newErr.Error() != err.Error() {
		t.Errorf("the error of New with a zero Config is\n%v\nand of ConfigFromEnv with an empty environment\n%v", newErr, err)
	}
}

func TestConfigFromEnvReportsAllErrors(t *testing.T) {
	setenv(t, map[string]string{
		"SERVER_TYPE":             "no type",
		"SERVER_ID":               "me@here",
		"SERVER_PORT":             "70000",
		"SERVER_VERSION":          "2\n1",
		"SERVER_BASE_PATH":        "mds",
		"SERVER_LOCAL_IPV4":       "::1",
		"SERVER_CLUSTER_BASE_URL": "node-1:8080",
		"SERVER_PUBLIC_PROTOCOL":  "ftp:",
		"SERVER_PUBLIC_IPV4":      "203.0.113",
		"SERVER_LOCATION_LON":     "west",
		"SERVER_LOCATION_LAT":     "91",
		"CLUSTER_MANAGEMENT":      "yes",
		"REGISTRATION_SET":        "true",
		"REGISTRATION_RETRY":      "3s",
		"REQUEST_TIMEOUT":         "0",
		"MIT_URL":                 "mit.example.com",
		"OAUTH_CLIENT_SECRET":     "hidden client secret",
	})
	_, err := cluster.ConfigFromEnv()
	got := namedVariables(err)
	want := []string{
		"SERVER_TYPE", "SERVER_ID", "SERVER_PORT", "SERVER_VERSION", "SERVER_BASE_PATH", "SERVER_LOCAL_IPV4", "SERVER_CLUSTER_BASE_URL",
		"SERVER_PUBLIC_PROTOCOL", "SERVER_PUBLIC_IPV4", "SERVER_LOCATION_LON", "SERVER_LOCATION_LAT", "CLUSTER_MANAGEMENT", "REGISTRATION_SET",
		"REGISTRATION_RETRY", "REQUEST_TIMEOUT", "MIT_URL", "MIT_AUDIENCE", "OAUTH_ISSUER", "OAUTH_CLIENT_ID", "OAUTH_GENERIC_KEY", "OAUTH_GENERIC_AUDIENCE",
	}
	slices.Sort(got)
	slices.Sort(want)
	if diff := cmp.Diff(want, got); diff != "" { // each variable once
		t.Errorf("variables in the error (-want +got):\n%s\n%v", diff, err)
	}
}

func TestConfigFromEnvMalformed(t *testing.T) {
	for name, values := range map[string][]string{
		"SERVER_TYPE":               {"a b", "a/b", ".", "..", "é", strings.Repeat("a", 257)},
		"SERVER_ID":                 {"a b", "a/b", "a@b", ".", "..", "a\x01", strings.Repeat("a", 257)},
		"SERVER_VERSION":            {"1.\x010", "é"},
		"SERVER_PORT":               {"0", "-1", "65536", "70000", "80.5", "http", "0x50", "1e3", "99999999999999999999"},
		"SERVER_BASE_PATH":          {"a", "a/b", "a/", "/a//", "//", "/a//b", "/a/../b", "/./a", "/..", "/{id}", "/a?b", "/a#b", "/a%2fb", "/a b", "/a\x01b", "/a\x7f", "/a\xff"},
		"SERVER_LOCAL_IPV4":         {"localhost", "10.0.0", "10.0.0.256", "10.0.0.7:80", "::1", "::ffff:10.0.0.7", "0.0.0.0", "10.0.0.07"},
		"SERVER_PUBLIC_IPV4":        {"example.com", "2001:db8::1", "::ffff:203.0.113.7", "0.0.0.0"},
		"SERVER_CLUSTER_BASE_URL":   {"/a", "node:80", "ftp://node", "http://", "http:///a", "http://:80", "http://a b/", "http://node:port", "http://node?x", "http://node?", "http://node#x", "http://node/#", "http://user@node"},
		"SERVER_PUBLIC_PROTOCOL":    {"https://", "HTTPS:", "ws:"},
		"SERVER_PUBLIC_DOMAIN_NAME": {"a b", "a/b", "https://a", "a?b", "a#b", "user@a", ":80", "a:port", "a<b>"},
		"SERVER_LOCATION_LON":       {"180.1", "-181", "NaN", "Inf", "12°", "1,5", ""},
		"SERVER_LOCATION_LAT":       {"90.1", "-91", "NaN", "-Inf", "north"},
		"CLUSTER_MANAGEMENT":        {"ON", "true", "1"},
		"REGISTRATION_SET":          {"Off", "false", "0"},
		"REGISTRATION_RETRY":        {"0", "-1", "1.5", "3s", "31536000001", "9223372036854775807", "99999999999999999999"},
		"REQUEST_TIMEOUT":           {"0", "-1", "1e3", "10s", "31536000001"},
		"MIT_URL":                   {"mit", "//mit/mIT/v1", "http://mit?x=y", "http://mit/#", "http://user:password@mit", "http://a,mit", "http://user:password@mit,http://a", "http://a, http://b/?x=y", "http://a;http://b/#", "http://a/b,c", ",", " , ,"},
		"OAUTH_TOKEN_URL":           {"mst", "http://a,mst", "http://mst?x=y", "http://user:password@mst", ",", " , ,"},
		"OAUTH_GENERIC_KEY":         {"-----BEGIN PUBLIC KEY-----\nabc\n-----END PUBLIC KEY-----"},
		"OAUTH_CLIENT_ACCESS_KEY":   {"-----BEGIN CERTIFICATE-----\nabc\n-----END CERTIFICATE-----"},
		"OAUTH_ISSUER":              {"mst", "ftp://mst", "http://mst?x=y", "http://user:password@mst"},
	} {
		for _, value := range values {
			t.Run(fmt.Sprintf("%s=%.20q", name, value), func(t *testing.T) {
				env := testEnv()
				env[name] = value
				setenv(t, env)
				_, err := cluster.ConfigFromEnv()
				if got := namedVariables(err); len(got) == 0 || got[0] != name {
					t.Errorf("the error names %v: %v", got, err)
				}
				if err != nil && (strings.Contains(err.Error(), "password") || len(err.Error()) > 250) {
					t.Errorf("the error has a password or is too long: %v", err)
				}
			})
		}
	}
}

// Half a location is an error, whichever half is missing.
func TestHalfALocation(t *testing.T) {
	for _, name := range []string{"SERVER_LOCATION_LON", "SERVER_LOCATION_LAT"} {
		env := testEnv()
		env[name] = " "
		setenv(t, env)
		_, err := cluster.ConfigFromEnv()
		if err == nil || !strings.Contains(err.Error(), "SERVER_LOCATION_LON and SERVER_LOCATION_LAT must be set together") {
			t.Errorf("without %s: %v", name, err)
		}
	}
}

// A value that the options make needless is checked all the same.
func TestMalformedValueOfUnusedVariable(t *testing.T) {
	env := testEnv()
	env["OAUTH_ISSUER"] = "mst"
	setenv(t, env)
	_, err := cluster.ConfigFromEnv(cluster.WithVerifier(fixedVerifier{}), cluster.WithTokens(func(context.Context, cluster.TokenKey) (*oauth2.Token, error) {
		return nil, errors.New("no token")
	}))
	if got := namedVariables(err); !slices.Equal(got, []string{"OAUTH_ISSUER"}) {
		t.Errorf("the error names %v: %v", got, err)
	}
}

// ConfigFrom reads all variables from its source, and none from the environment.
func TestConfigFrom(t *testing.T) {
	setenv(t, map[string]string{"SERVER_TYPE": "another"})
	variables := testEnv()
	got, err := cluster.ConfigFrom(func(name string) (string, bool) {
		value, ok := variables[name]
		return value, ok
	})
	if err != nil {
		t.Fatal(err)
	}
	setenv(t, variables)
	want, err := cluster.ConfigFromEnv()
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	_, err = cluster.ConfigFrom(func(string) (string, bool) { return "", false })
	if names := namedVariables(err); len(names) < 9 {
		t.Errorf("an empty source: %v", err)
	}
}

// Each secret may come from a file. An error names the variable and the file.
func TestSecretFiles(t *testing.T) {
	for name, field := range map[string]func(cluster.Config) (cluster.Secret, string){
		"OAUTH_CLIENT_SECRET":        func(c cluster.Config) (cluster.Secret, string) { return c.ClientSecret, c.ClientSecretFile },
		"OAUTH_GENERIC_KEY":          func(c cluster.Config) (cluster.Secret, string) { return c.GenericKey, c.GenericKeyFile },
		"OAUTH_GENERIC_PREVIOUS_KEY": func(c cluster.Config) (cluster.Secret, string) { return c.GenericPreviousKey, c.GenericPreviousKeyFile },
		"OAUTH_CLIENT_ACCESS_KEY":    func(c cluster.Config) (cluster.Secret, string) { return c.ClientAccessKey, c.ClientAccessKeyFile },
	} {
		path := filepath.Join(t.TempDir(), "secret")
		read := func(extra map[string]string) (cluster.Config, error) {
			variables := testEnv()
			delete(variables, name)
			variables[name+"_FILE"] = path
			maps.Copy(variables, extra)
			return cluster.ConfigFrom(func(name string) (string, bool) { return variables[name], true })
		}
		for _, text := range []string{"hidden word", "hidden word\n", " hidden word\r\n\n"} {
			writeFile(t, path, text)
			cfg, err := read(nil)
			if value, file := field(cfg); err != nil || string(value) != "hidden word" || file != path {
				t.Errorf("%s: %q of %q, %v", name, string(value), file, err)
			}
		}
		wantError := func(err error, want string) {
			t.Helper()
			if !slices.Equal(namedVariables(err), []string{name + "_FILE"}) || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "hidden") {
				t.Errorf("%s: %v, want %q", name, err, want)
			}
		}
		_, err := read(map[string]string{name: "hidden"})
		wantError(err, "and so is "+name)
		writeFile(t, path, " \n")
		_, err = read(nil)
		wantError(err, path+" is empty")
		if err := os.Remove(path); err != nil {
			t.Fatal(err)
		}
		_, err = read(nil)
		wantError(err, path+": no such file")
	}
}

func FuzzConfigFromEnv(f *testing.F) {
	names := []string{
		"SERVER_TYPE", "SERVER_ID", "SERVER_VERSION", "SERVER_PORT", "SERVER_BASE_PATH", "SERVER_LOCAL_IPV4", "SERVER_CLUSTER_BASE_URL",
		"SERVER_PUBLIC_PROTOCOL", "SERVER_PUBLIC_DOMAIN_NAME", "SERVER_PUBLIC_IPV4", "SERVER_LOCATION_LON", "SERVER_LOCATION_LAT", "REQUEST_TIMEOUT", "MIT_URL",
		"OAUTH_ISSUER",
	}
	good := testEnv()
	for i, name := range names {
		f.Add(uint8(i), good[name], "")
	}
	for _, seed := range []struct{ name, value, path string }{
		{"SERVER_BASE_PATH", "/", "/"},
		{"SERVER_BASE_PATH", "/é", ""},
		{"SERVER_BASE_PATH", "/\xff", ""},
		{"SERVER_BASE_PATH", "/a\x01", ""},
		{"SERVER_BASE_PATH", "/{x}", ""},
		{"SERVER_LOCAL_IPV4", "::ffff:10.0.0.7", ""},
		{"SERVER_LOCAL_IPV4", "", ""},
		{"SERVER_PUBLIC_DOMAIN_NAME", ":80", ""},
		{"SERVER_PUBLIC_DOMAIN_NAME", "[::1%25a]", ""},
		{"SERVER_PUBLIC_DOMAIN_NAME", "", "/a\"b"},
		{"SERVER_PORT", "+80", ""},
		{"SERVER_LOCATION_LON", "NaN", ""},
		{"SERVER_LOCATION_LON", "0x1p4", ""},
		{"SERVER_LOCATION_LAT", " ", ""},
		{"SERVER_ID", "a@b", ""},
		{"REQUEST_TIMEOUT", "9223372036854775807", ""},
		{"MIT_URL", "http://mit/#", ""},
		{"MIT_URL", "http://a/,, http://b:80/c ,http://a", ""},
		{"MIT_URL", "http://a,http://user:hidden@b", ""},
		{"MIT_URL", ",", ""},
		{"SERVER_CLUSTER_BASE_URL", "HTTP://[::1]:80//", ""},
		{"SERVER_VERSION", "1 (x)", "/a"},
		{"SERVER_CLUSTER_BASE_URL", "", "/a'b;c,d"},
		{"SERVER_TYPE", "..", ""},
		{"SERVER_TYPE", "a.b:c", ""},
		{"SERVER_TYPE", "ﬀ", ""},
	} {
		f.Add(uint8(slices.Index(names, seed.name)), seed.value, seed.path)
	}
	f.Fuzz(func(t *testing.T, which uint8, value, basePath string) {
		name := names[int(which)%len(names)]
		setFuzzedEnv(t, name, value, basePath)
		cfg, err := cluster.ConfigFromEnv()
		registry := &decodingRegistry{t: t, cfg: cfg}
		c, newErr := cluster.New(cfg, cluster.WithoutEnv(), cluster.WithHTTPClient(&http.Client{Transport: registry}))
		checkNoSecrets(t, err)
		// Only ConfigFromEnv sees a malformed value, or one coordinate without the other.
		ofEnvironment := strings.Contains(fmt.Sprint(err), "\" is not ") || strings.Contains(fmt.Sprint(err), "must be set together")
		if err == nil != (newErr == nil) && !ofEnvironment {
			t.Fatalf("the error of ConfigFromEnv is %v, that of New is %v", err, newErr)
		}
		if err != nil && !strings.Contains(err.Error(), name) && !strings.Contains(err.Error(), "SERVER_BASE_PATH") {
			t.Errorf("%s=%q: the error names neither variable: %v", name, value, err)
		}
		if err != nil {
			return
		}
		defer c.Close()

		c.Mount(http.NewServeMux())
		if _, err := c.Register(t.Context()); err != nil {
			t.Fatal(err)
		}
		checkRegistration(t, c, cfg, registry.body)
	})
}

// setFuzzedEnv sets valid variables, and one fuzzed variable and a base path.
func setFuzzedEnv(t *testing.T, name, value, basePath string) {
	t.Helper()
	// A variable cannot have a NUL.
	set := func(name, value string) { t.Setenv(name, strings.ReplaceAll(value, "\x00", "\x01")) }
	setenv(t, testEnv())
	set("SERVER_CLUSTER_BASE_URL", "")
	set("SERVER_PUBLIC_DOMAIN_NAME", "")
	set("SERVER_BASE_PATH", basePath)
	set(name, value)
	if name == "SERVER_TYPE" && strings.TrimSpace(value) != "" {
		set("CLUSTER_MANAGEMENT", "off") // otherwise the audience of the type is missing
	}
}

// A decodingRegistry accepts any registration that can be encoded and decoded, and keeps its body.
type decodingRegistry struct {
	t    *testing.T
	cfg  cluster.Config
	body []byte
}

func (d *decodingRegistry) RoundTrip(r *http.Request) (*http.Response, error) {
	if issuer := mustParse(d.t, d.cfg.Issuer); r.URL.Path == issuer.Path && r.URL.Host == issuer.Host {
		return newHTTPResponse(r, http.StatusOK, `{"data":{"access_token":"x"}}`), nil
	}
	var encoded bytes.Buffer
	if err := r.Write(&encoded); err != nil {
		d.t.Errorf("the request of the configuration %+v cannot be sent: %v", d.cfg, err)
	}
	decoded, err := http.ReadRequest(bufio.NewReader(&encoded))
	if err != nil {
		d.t.Fatalf("the request of the configuration %+v cannot be decoded: %v", d.cfg, err)
	}
	if d.body, err = io.ReadAll(decoded.Body); err != nil {
		d.t.Error(err)
	}
	id := d.cfg.ID
	if id == "" {
		var reg struct{ ServerID string }
		_ = json.Unmarshal(d.body, &reg) // checkRegistration reports the error
		id = reg.ServerID
	}
	return newHTTPResponse(r, http.StatusOK, registrationResponse(time.Hour, id)), nil
}

// checkRegistration checks the body of a registration against the configuration.
func checkRegistration(t *testing.T, c *cluster.Cluster, cfg cluster.Config, body []byte) {
	t.Helper()
	var reg struct{ Type, ServerID, PublicBaseURL, ClusterBaseURL string }
	if err := json.Unmarshal(body, &reg); err != nil || !utf8.Valid(body) {
		t.Fatalf("the registration is %q: %v", body, err)
	}
	basePath := strings.TrimSuffix(cfg.BasePath, "/")
	if cfg.BasePath == "" {
		basePath = "/" + cfg.Type + "/v1"
	}
	if reg.Type != cfg.Type || reg.ServerID != c.Status().ServerID {
		t.Errorf("the registration is %q", body)
	}
	for what, address := range map[string]string{"publicBaseUrl": reg.PublicBaseURL, "clusterBaseUrl": reg.ClusterBaseURL} {
		u := mustParse(t, address)
		if u.Scheme != "http" && u.Scheme != "https" || u.Hostname() == "" || u.User != nil || u.RawQuery != "" || u.Fragment != "" || strings.HasSuffix(address, "/") {
			t.Errorf("%s is %q", what, address)
		}
		if (what == "publicBaseUrl" || cfg.ClusterBaseURL == "") && u.Path != basePath {
			t.Errorf("%s is %q, its path is not %q", what, address, basePath)
		}
	}
}

// ConfigFromEnv and New do not require the fields that an option replaces.
func TestOptionsReplaceRequiredFields(t *testing.T) {
	var (
		tokens   = cluster.WithTokens(func(context.Context, cluster.TokenKey) (*oauth2.Token, error) { return nil, nil })
		verifier = cluster.WithVerifier(fixedVerifier{})
	)
	for _, tt := range []struct {
		name string
		opts []cluster.Option
		want []string
	}{
		{"neither", nil, []string{"OAUTH_CLIENT_ID", "OAUTH_CLIENT_SECRET", "OAUTH_ISSUER", "OAUTH_GENERIC_KEY", "OAUTH_GENERIC_AUDIENCE"}},
		{"tokens", []cluster.Option{tokens}, []string{"OAUTH_ISSUER", "OAUTH_GENERIC_KEY", "OAUTH_GENERIC_AUDIENCE"}},
		{"verifier", []cluster.Option{verifier}, []string{"OAUTH_CLIENT_ID", "OAUTH_CLIENT_SECRET", "OAUTH_ISSUER"}},
		{"both", []cluster.Option{tokens, verifier}, nil},
		{"others", []cluster.Option{cluster.WithoutEnv(), cluster.WithHTTPClient(http.DefaultClient)}, []string{
			"OAUTH_CLIENT_ID", "OAUTH_CLIENT_SECRET", "OAUTH_ISSUER", "OAUTH_GENERIC_KEY", "OAUTH_GENERIC_AUDIENCE",
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			env := testEnv()
			maps.DeleteFunc(env, func(name, _ string) bool { return strings.HasPrefix(name, "OAUTH_") })
			setenv(t, env)
			cfg, err := cluster.ConfigFromEnv(tt.opts...)
			if diff := cmp.Diff(tt.want, namedVariables(err)); diff != "" {
				t.Errorf("missing for ConfigFromEnv (-want +got):\n%s", diff)
			}
			_, err = cluster.New(cfg, tt.opts...)
			if diff := cmp.Diff(tt.want, namedVariables(err)); diff != "" {
				t.Errorf("missing for New (-want +got):\n%s", diff)
			}
		})
	}
}

// The public address equals the one of a node of the npm module with the same settings. All nodes
// of a cluster share this address in the registry.
func TestAdvertisedAddresses(t *testing.T) {
	for _, tt := range []struct {
		name             string
		edit             func(*cluster.Config)
		public, clusterU string
	}{
		{"local address", func(*cluster.Config) {}, "http://10.0.0.7:8080/mds/v1", "http://10.0.0.7:8080/mds/v1"},
		{"public address", func(c *cluster.Config) { c.PublicIPv4 = "203.0.113.7" }, "http://203.0.113.7:8080/mds/v1", "http://10.0.0.7:8080/mds/v1"},
		{"domain name, without the port", func(c *cluster.Config) { c.PublicDomainName = "example.com" }, "http://example.com/mds/v1", "http://10.0.0.7:8080/mds/v1"},
		{
			"domain name before the public address",
			func(c *cluster.Config) { c.PublicDomainName, c.PublicIPv4 = "example.com", "203.0.113.7" },
			"http://example.com/mds/v1", "http://10.0.0.7:8080/mds/v1",
		},
		{"domain name with a port", func(c *cluster.Config) { c.PublicDomainName = "example.com:8443" }, "http://example.com:8443/mds/v1", "http://10.0.0.7:8080/mds/v1"},
		{
			"https in the public address only",
			func(c *cluster.Config) { c.PublicProtocol, c.PublicDomainName = "https:", "example.com" },
			"https://example.com/mds/v1", "http://10.0.0.7:8080/mds/v1",
		},
		{"https without its colon", func(c *cluster.Config) { c.PublicProtocol = "https" }, "https://10.0.0.7:8080/mds/v1", "http://10.0.0.7:8080/mds/v1"},
		{"the port of http", func(c *cluster.Config) { c.Port = 80 }, "http://10.0.0.7/mds/v1", "http://10.0.0.7:80/mds/v1"},
		{
			"the port of https",
			func(c *cluster.Config) { c.Port, c.PublicProtocol = 443, "https:" },
			"https://10.0.0.7/mds/v1", "http://10.0.0.7:443/mds/v1",
		},
		{
			"the port of https in a domain name",
			func(c *cluster.Config) { c.PublicDomainName, c.PublicProtocol = "example.com:443", "https:" },
			"https://example.com/mds/v1", "http://10.0.0.7:8080/mds/v1",
		},
		{"another base path", func(c *cluster.Config) { c.BasePath = "/a/b-c" }, "http://10.0.0.7:8080/a/b-c", "http://10.0.0.7:8080/a/b-c"},
		{"an IPv6 address as domain name", func(c *cluster.Config) { c.PublicDomainName = "[2001:db8::1]" }, "http://[2001:db8::1]/mds/v1", "http://10.0.0.7:8080/mds/v1"},
		{"the root as base path", func(c *cluster.Config) { c.BasePath = "/" }, "http://10.0.0.7:8080", "http://10.0.0.7:8080"},
		{"a base path with a slash at its end", func(c *cluster.Config) { c.BasePath = "/shop/v1/" }, "http://10.0.0.7:8080/shop/v1", "http://10.0.0.7:8080/shop/v1"},
		{
			"a cluster URL with trailing slashes",
			func(c *cluster.Config) { c.ClusterBaseURL = "https://node-1.internal/mds/v1//" },
			"http://10.0.0.7:8080/mds/v1", "https://node-1.internal/mds/v1",
		},
		{
			"an IPv6 address",
			func(c *cluster.Config) { c.ClusterBaseURL = "http://[2001:db8::7]:8080/mds/v1" },
			"http://10.0.0.7:8080/mds/v1", "http://[2001:db8::7]:8080/mds/v1",
		},
		// The npm module omits the port here, so that its address does not work.
		{
			"https on the port of http",
			func(c *cluster.Config) { c.Port, c.PublicProtocol = 80, "https:" },
			"https://10.0.0.7:80/mds/v1", "http://10.0.0.7:80/mds/v1",
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			cfg := testConfig()
			tt.edit(&cfg)
			got := captureRegistration(t, cfg)
			if got.URL != "http://mit.test/mIT/v1/itResources" {
				t.Errorf("registered at %s", got.URL)
			}
			if got.Body.PublicBaseURL != tt.public {
				t.Errorf("publicBaseUrl = %q, want %q", got.Body.PublicBaseURL, tt.public)
			}
			if got.Body.ClusterBaseURL != tt.clusterU {
				t.Errorf("clusterBaseUrl = %q, want %q", got.Body.ClusterBaseURL, tt.clusterU)
			}
		})
	}
}

// Without an address the node uses one of this machine.
func TestDefaultAddresses(t *testing.T) {
	cfg := testConfig()
	cfg.LocalIPv4 = ""
	if _, err := cluster.New(cfg); err != nil {
		// This machine has none, and the error says so.
		if slices.Equal(namedVariables(err), []string{"SERVER_LOCAL_IPV4"}) {
			return
		}
		t.Fatal(err)
	}
	got := captureRegistration(t, cfg).Body
	form := regexp.MustCompile(`^http://\d+\.\d+\.\d+\.\d+:8080/mds/v1$`)
	for _, address := range []string{got.PublicBaseURL, got.ClusterBaseURL} {
		if !form.MatchString(address) || strings.Contains(address, "//127.") {
			t.Errorf("address %q", address)
		}
	}
}

// A node without a configured address chooses one of its machine, by the documented rule.
func TestChosenAddress(t *testing.T) {
	tests := map[string]struct {
		locals []string // interface and address
		want   string   // host of the base URL; "" if there is none
	}{
		"the only one":               {[]string{"lo 127.0.0.1", "eth0 10.1.2.3"}, "10.1.2.3"},
		"not a link-local one":       {[]string{"eth1 169.254.7.7", "eth0 10.1.2.3"}, "10.1.2.3"},
		"the first of several":       {[]string{"eth0 10.1.2.3", "docker0 172.17.0.1"}, "10.1.2.3"},
		"not that of a tunnel":       {[]string{"tun0 10.8.0.2", "eth0 10.1.2.3"}, "10.1.2.3"},
		"that of a tunnel at last":   {[]string{"lo 127.0.0.1", "tun0 10.8.0.2"}, "10.8.0.2"},
		"IPv4 before IPv6":           {[]string{"eth0 2001:db8::7", "eth0 10.1.2.3"}, "10.1.2.3"},
		"IPv6 if there is no other":  {[]string{"lo ::1", "eth0 fe80::1", "eth0 2001:db8::7"}, "[2001:db8::7]"},
		"none but loopback":          {[]string{"lo 127.0.0.1", "lo ::1"}, ""},
		"none but link-local":        {[]string{"eth0 169.254.7.7", "eth0 fe80::1"}, ""},
		"none at all":                {nil, ""},
		"nor unspecified, multicast": {[]string{"a 0.0.0.0", "a ::", "a 224.0.0.1", "a ff02::1", "a 255.255.255.255"}, ""},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			cfg := testConfig()
			cfg.LocalIPv4 = ""
			core, logs := observer.New(zap.InfoLevel)
			c, err := cluster.New(cfg, cluster.WithLogger(zap.New(core)), cluster.WithLocals(func() []string { return test.locals }))
			if test.want == "" {
				if !slices.Equal(namedVariables(err), []string{"SERVER_LOCAL_IPV4"}) || !strings.Contains(err.Error(), "SERVER_LOCAL_IP (IPv4 or IPv6)") {
					t.Errorf("the error is %v, want one that names the variables to set", err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			url := "http://" + test.want + ":8080/mds/v1"
			if got := c.Config().ClusterBaseURL; got != url {
				t.Errorf("ClusterBaseURL is %s, want %s", got, url)
			}
			lines := logs.FilterMessage("local address chosen").All()
			if len(lines) != 1 || lines[0].ContextMap()["clusterBaseUrl"] != url {
				t.Errorf("log lines about the choice: %v", lines)
			}
		})
	}
}

// Addresses at which no peer can call a node are refused, with the remedy.
func TestAddressesThatNoPeerCanCall(t *testing.T) {
	for _, host := range []string{
		"0.0.0.0", "0.1.2.3", "[::]", "224.0.0.1", "239.1.2.3", "[ff02::1]", "255.255.255.255", "240.0.0.1", "169.254.7.7", "[fe80::1]",
		"[::ffff:0.0.0.0]", "[::ffff:169.254.7.7]", "[fe80::1%25eth0]",
	} {
		cfg := testConfig()
		cfg.ClusterBaseURL = "http://" + host + ":8080/mds/v1"
		_, err := cluster.New(cfg)
		if !slices.Equal(namedVariables(err), []string{"SERVER_CLUSTER_BASE_URL"}) || !strings.Contains(err.Error(), "set it to one at which peers reach this machine") {
			t.Errorf("%s: %v", host, err)
		}
	}
	for _, ip := range []string{"0.0.0.0", "224.0.0.1", "255.255.255.255", "169.254.7.7"} {
		cfg := testConfig()
		cfg.LocalIPv4, cfg.PublicIPv4 = ip, ip
		if _, err := cluster.New(cfg); !slices.Equal(namedVariables(err), []string{"SERVER_LOCAL_IPV4", "SERVER_PUBLIC_IPV4"}) {
			t.Errorf("%s: %v", ip, err)
		}
	}
	for _, ip := range []string{"::", "ff02::1", "fe80::1", "fe80::1%eth0", "0.0.0.0", "node-1", "::1:80:"} {
		cfg := testConfig()
		cfg.LocalIP = ip
		if _, err := cluster.New(cfg); !slices.Equal(namedVariables(err), []string{"SERVER_LOCAL_IP"}) {
			t.Errorf("%s: %v", ip, err)
		}
	}
	// The policy of the cluster may name link-local addresses.
	cfg := testConfig()
	cfg.LocalIPv4 = "169.254.7.7"
	if _, err := cluster.New(cfg, cluster.WithPeerPolicy(cluster.PeerPolicy{Networks: prefixes("169.254.0.0/16")})); err != nil {
		t.Error(err)
	}
}

func TestLocalIP(t *testing.T) {
	for _, test := range []struct{ v4, ip, want string }{
		{"", "2001:db8::7", "http://[2001:db8::7]:8080/mds/v1"},
		{"", "10.0.0.8", "http://10.0.0.8:8080/mds/v1"},
		{"10.0.0.7", "2001:db8::7", "http://10.0.0.7:8080/mds/v1"},
		{"", "::1", "http://[::1]:8080/mds/v1"},
	} {
		env := testEnv()
		env["SERVER_LOCAL_IPV4"], env["SERVER_LOCAL_IP"] = test.v4, test.ip
		delete(env, "SERVER_CLUSTER_BASE_URL")
		setenv(t, env)
		cfg, err := cluster.ConfigFromEnv()
		if err != nil {
			t.Fatal(err)
		}
		cfg.BasePath, cfg.PublicDomainName, cfg.PublicIPv4, cfg.PublicProtocol = "", "", "", ""
		cfg.Type, cfg.Port = "mds", 8080
		c, err := cluster.New(cfg)
		if err != nil {
			t.Fatal(err)
		}
		if got := c.Config().ClusterBaseURL; got != test.want {
			t.Errorf("%+v: ClusterBaseURL %s", test, got)
		}
		_ = c.Close()
	}
}

// Config returns each default that the documentation of Config names.
func TestConfigHasDefaults(t *testing.T) {
	cfg := testConfig()
	cfg.ID, cfg.LocalIPv4, cfg.PublicProtocol = "", "", ""
	c, err := cluster.New(cfg)
	if err != nil {
		t.Skip("this machine has no address: ", err)
	}
	defer c.Close()
	got := c.Config()
	if got.LocalIPv4 == "" || got.ClusterBaseURL != "http://"+got.LocalIPv4+":8080/mds/v1" || got.PublicProtocol != "http:" {
		t.Errorf("LocalIPv4 %q, ClusterBaseURL %q, PublicProtocol %q", got.LocalIPv4, got.ClusterBaseURL, got.PublicProtocol)
	}
	if _, err := uuid.Parse(got.ID); err != nil || got.BasePath != "/mds/v1" || got.Version != "1.0" {
		t.Errorf("ID %q, BasePath %q, Version %q", got.ID, got.BasePath, got.Version)
	}
	if got.RegistrationRetry == 0 || got.RenewalFraction == 0 || got.RequestTimeout == 0 || got.MaxResponseBytes == 0 || got.MaxRequestBytes == 0 || got.MaxInFlight == 0 {
		t.Errorf("limits without a default: %+v", got)
	}
}

func TestRegistrationRequest(t *testing.T) {
	cfg := testConfig()
	cfg.Management = false
	cfg.Version = "2.1"
	cfg.RegistryURL = "http://mit.test/mIT/v1//"
	cfg.Location = &cluster.Location{Lon: -123.5, Lat: 49}
	got := captureRegistration(t, cfg)
	if want := "http://mit.test/mIT/v1/itResources?managedCluster=off"; got.URL != want {
		t.Errorf("registered at %q, want %q", got.URL, want)
	}
	want := `{"type":"mds","serverId":"node-1","location":{"type":"Point","coordinates":[-123.5,49]},` +
		`"publicBaseUrl":"http://10.0.0.7:8080/mds/v1","clusterBaseUrl":"http://10.0.0.7:8080/mds/v1"}`
	if diff := cmp.Diff(want, got.Raw); diff != "" {
		t.Errorf("the registration (-want +got):\n%s", diff)
	}
	if agent := got.Header.Get("User-Agent"); !strings.HasPrefix(agent, "mimik-mds/2.1/node-1 (") {
		t.Errorf("user agent %q", agent)
	}
}

// Duplicates and white space in the list of URLs are ignored.
func TestRegistryURLs(t *testing.T) {
	for list, want := range map[string]string{
		"http://a":                             "http://a",
		"http://a/mIT/v1//":                    "http://a/mIT/v1",
		"http://a,http://b/,https://c:1/d":     "http://a,http://b,https://c:1/d",
		" http://b ,, http://a/ ,\thttp://b/,": "http://b,http://a",
		"http://a/x%2Cy,http://a/x":            "http://a/x%2Cy,http://a/x",
	} {
		cfg := testConfig()
		cfg.RegistryURL = list
		c, err := cluster.New(cfg, cluster.WithoutEnv())
		if err != nil {
			t.Errorf("%q: %v", list, err)
			continue
		}
		defer c.Close()
		if got := c.Config().RegistryURL; got != want {
			t.Errorf("%q becomes %q, want %q", list, got, want)
		}
	}
	for list, want := range map[string]string{
		"":                               "MIT_URL is missing",
		" ":                              "MIT_URL is missing",
		" ,, ":                           "MIT_URL is missing",
		"mit":                            "MIT_URL is invalid: not an absolute http or https URL",
		"http://a,mit":                   "MIT_URL is invalid: entry 2 of 2 is not an absolute http or https URL",
		"http://u:hidden@a,,http://b/?c": "MIT_URL is invalid: entry 1 of 3 is a URL with credentials in it, entry 3 of 3 is a URL with more than a path",
		"http://a/b,c":                   "MIT_URL is invalid: entry 2 of 2 is not an absolute http or https URL",
	} {
		cfg := testConfig()
		cfg.RegistryURL = list
		if _, err := cluster.New(cfg); err == nil || err.Error() != "cluster: configuration: "+want {
			t.Errorf("%q: %v, want %s", list, err, want)
		}
	}
}

// The zero values of fields are their defaults. The test observes a node for a month.
func TestDefaults(t *testing.T) {
	parallel(t)
	for _, tt := range []struct {
		name string
		edit func(*cluster.Config)

		timeout, retry time.Duration
		fraction       float64
		version        string
	}{
		{"zero", func(*cluster.Config) {}, 10 * time.Second, 3 * time.Second, 2.0 / 3, "1.0"},
		{"set", func(c *cluster.Config) {
			c.RequestTimeout, c.RegistrationRetry, c.RenewalFraction, c.Version = 2*time.Second, time.Minute, 0.5, "3"
		}, 2 * time.Second, time.Minute, 0.5, "3"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				const lease, failures = time.Hour, 410
				start, attempts := time.Now(), 0
				var retries, renewals []time.Duration
				cfg := testConfig()
				tt.edit(&cfg)
				c := newNode(t, cfg, clustertest.RoundTripperFunc(func(r *http.Request) (*http.Response, error) {
					switch attempts++; {
					case attempts > failures:
						return newHTTPResponse(r, http.StatusOK, registrationResponse(lease, cfg.ID)), nil
					case attempts > 1:
						return newHTTPResponse(r, http.StatusServiceUnavailable, ""), nil
					}
					if want := "mimik-mds/" + tt.version + "/node-1 ("; !strings.HasPrefix(r.UserAgent(), want) {
						t.Errorf("user agent %q, want it to begin with %q", r.UserAgent(), want)
					}
					<-r.Context().Done()
					return nil, r.Context().Err()
				}), onRenewal(func(r cluster.RenewalResult) {
					if r.Err == nil {
						renewals = append(renewals, r.RenewIn)
						return
					}
					if took := time.Since(start); len(retries) == 0 && took != tt.timeout {
						t.Errorf("a hanging request ended after %v, want %v", took, tt.timeout)
					}
					retries = append(retries, r.RetryIn)
				}))
				if _, err := c.Register(t.Context()); err != nil {
					t.Fatal(err)
				}
				time.Sleep(30 * 24 * time.Hour)
				_ = c.Close()
				synctest.Wait()
				if first := retries[0]; first < tt.retry*2/3 || first > tt.retry*4/3 {
					t.Errorf("the first pause was %v, want %v, plus or minus a third", first, tt.retry)
				}
				wantJitter(t, "late pauses between attempts", retries[10:], max(tt.retry, 30*time.Second), 1.0/3)
				wantJitter(t, "waits until a renewal", renewals, time.Duration(tt.fraction*float64(lease)), 0.1)
			})
		})
	}
}

func TestSizeLimits(t *testing.T) {
	for _, tt := range []struct {
		name                    string
		maxResponse, maxRequest int64
		response, request       int // sizes
		responseTooLarge        bool
		requestTooLarge         bool
	}{
		{"default, within", 0, 0, 1 << 20, 1 << 10, false, false},
		{"default, above", 0, 0, 16<<20 + 1, 1<<20 + 1, true, true},
		{"set, exactly", 200_000, 100, 200_000, 100, false, false},
		{"set, above", 200_000, 100, 200_001, 101, true, true},
		{"maximum", math.MaxInt64, math.MaxInt64, 1 << 20, 1 << 20, false, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			cfg := testConfig()
			cfg.MaxResponseBytes, cfg.MaxRequestBytes = tt.maxResponse, tt.maxRequest
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			var failed error
			full := registrationResponse(time.Hour, cfg.ID)
			full += strings.Repeat(" ", tt.response-len(full))
			c := newNode(t, cfg, stubClient(func(*http.Request) (int, string) { return http.StatusOK, full }).Transport, onRenewalFailure(func(err error) { failed = err; cancel() }))
			_, err := c.Register(ctx)
			if got := errors.Is(failed, cluster.ErrResponseTooLarge); got != tt.responseTooLarge || (err == nil) == tt.responseTooLarge {
				t.Errorf("a response of %d bytes: %v, %v", tt.response, failed, err)
			}

			it := `{"id":"it","servers":[]}`
			it += strings.Repeat(" ", tt.request-len(it))
			r := httptest.NewRequest(http.MethodPost, "/mds/v1/itResources", strings.NewReader(it))
			r.Header.Set("Authorization", "Bearer peer")
			w := httptest.NewRecorder()
			c.CreateItResource(w, r)
			if got := w.Code == http.StatusRequestEntityTooLarge; got != tt.requestTooLarge || (w.Code == http.StatusOK) == tt.requestTooLarge {
				t.Errorf("a body of %d bytes: %d %s", tt.request, w.Code, w.Body)
			}
		})
	}
}

func TestBasePathOfEndpoints(t *testing.T) {
	for base, path := range map[string]string{"": "/mds/v1/itResources", "/": "/itResources", "/a/b": "/a/b/itResources", "/a/": "/a/itResources", "/é": "/%C3%A9/itResources"} {
		cfg := testConfig()
		cfg.BasePath = base
		mux := http.NewServeMux()
		newNode(t, cfg, stubClient(nil).Transport).Mount(mux)
		for method, path := range map[string]string{http.MethodPost: path, http.MethodDelete: path + "/it/servers/a"} {
			w := httptest.NewRecorder()
			mux.ServeHTTP(w, httptest.NewRequest(method, path, nil))
			if w.Code != http.StatusUnauthorized { // the status of the endpoint
				t.Errorf("base path %q: %s %s gives %d", base, method, path, w.Code)
			}
		}
	}
}

// No form of printing, logging or encoding a Config or a Cluster reveals a secret.
func TestSecretsAreNotPrinted(t *testing.T) {
	setenv(t, testEnv())
	cfg, err := cluster.ConfigFromEnv()
	if err != nil {
		t.Fatal(err)
	}
	c, err := cluster.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	texts := map[string]string{}
	for name, v := range map[string]any{
		"a Config": cfg, "a pointer to one": &cfg, "several": []cluster.Config{cfg}, "in a map": map[string]cluster.Config{"a": cfg},
		"a Secret": cfg.ClientSecret, "a pointer to it": &cfg.ClientSecret, "secrets": []cluster.Secret{cfg.ClientSecret},
		"a Cluster": c, "in a struct": struct{ Service any }{c},
	} {
		for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%d", "%t", "%99v", "%.3s"} {
			texts[name+" as "+verb] = fmt.Sprintf(verb, v)
		}
		b, err := json.Marshal(v)
		if err != nil {
			t.Error(err)
		}
		texts[name+" as JSON"] = string(b)
		for kind, field := range map[string]zap.Field{"Any": zap.Any("v", v), "Reflect": zap.Reflect("v", v)} {
			for encoder, enc := range map[string]zapcore.Encoder{
				"JSON":    zapcore.NewJSONEncoder(zap.NewProductionEncoderConfig()),
				"console": zapcore.NewConsoleEncoder(zap.NewDevelopmentEncoderConfig()),
			} {
				var buf bytes.Buffer
				zap.New(zapcore.NewCore(enc, zapcore.AddSync(&buf), zap.DebugLevel)).Info("hello", field)
				texts[name+" in zap."+kind+" as "+encoder] = buf.String()
			}
		}
		var buf bytes.Buffer
		slog.New(slog.NewTextHandler(&buf, nil)).Info("hello", "v", v)
		slog.New(slog.NewJSONHandler(&buf, nil)).Info("hello", "v", v)
		texts[name+" in slog"] = buf.String()
	}
	cfg.Type, cfg.RegistryURL, cfg.Issuer = "", "http://user:hidden@mit.test", "hidden client secret"
	_, err = cluster.New(cfg)
	texts["the error of New"] = err.Error()
	t.Setenv("SERVER_TYPE", "")
	t.Setenv("MIT_URL", "http://user:hidden@mit.test")
	_, err = cluster.ConfigFromEnv()
	texts["the error of ConfigFromEnv"] = err.Error()

	for where, text := range texts {
		if strings.Contains(text, "hidden") || strings.Contains(text, fmt.Sprintf("%x", "hidden")) {
			t.Errorf("%s: %s", where, text)
		}
		if text == "" {
			t.Errorf("%s: no text", where)
		}
	}
	if got := fmt.Sprintf("%v|%v", cluster.Secret(""), cluster.Secret("hidden")); got != "|[redacted]" {
		t.Errorf("an empty secret and one print as %q", got)
	}
}

// testEnv returns a value for each variable that ConfigFromEnv reads for a node of type "my-svc".
func testEnv() map[string]string {
	return map[string]string{
		"SERVER_TYPE":                "my-svc",
		"SERVER_ID":                  "node-1",
		"SERVER_VERSION":             "2.1.0",
		"SERVER_PORT":                "8080",
		"SERVER_BASE_PATH":           "/my/v2",
		"SERVER_LOCAL_IPV4":          "10.0.0.7",
		"SERVER_CLUSTER_BASE_URL":    "https://node-1.internal:8443/my/v2",
		"SERVER_PUBLIC_PROTOCOL":     "https:",
		"SERVER_PUBLIC_DOMAIN_NAME":  "my.example.com",
		"SERVER_PUBLIC_IPV4":         "203.0.113.7",
		"SERVER_LOCATION_LON":        "-123.1207",
		"SERVER_LOCATION_LAT":        "49.2827",
		"CLUSTER_MANAGEMENT":         "on",
		"REGISTRATION_SET":           "off",
		"REGISTRATION_RETRY":         "4000",
		"REQUEST_TIMEOUT":            "1500",
		"MIT_URL":                    "https://mit.example.com/mIT/v1",
		"MIT_AUDIENCE":               "https://mit.audience",
		"MY_SVC_AUDIENCE":            "https://my-svc.audience",
		"OAUTH_ISSUER":               "https://mst.example.com/oauth/token",
		"OAUTH_CLIENT_ID":            "the id",
		"OAUTH_CLIENT_SECRET":        "hidden client secret",
		"OAUTH_CLIENT_ACCESS_KEY":    "hidden access key",
		"OAUTH_CLIENT_AUDIENCE":      "https://client.audience",
		"OAUTH_GENERIC_KEY":          "hidden generic key",
		"OAUTH_GENERIC_PREVIOUS_KEY": "hidden previous key",
		"OAUTH_GENERIC_AUDIENCE":     "https://generic.audience",
	}
}

// setenv sets these variables, and clears the others of testEnv.
func setenv(t *testing.T, values map[string]string) {
	t.Helper()
	for name := range testEnv() {
		t.Setenv(name, "") // restores it after the test
	}
	for name, value := range values {
		t.Setenv(name, value)
	}
}

// wantJitter checks that durations are spread around a middle. The mean of hundreds of them differs
// from it by at most a fifth of the spread, which is seven standard deviations.
func wantJitter(t *testing.T, what string, got []time.Duration, middle time.Duration, spread float64) {
	t.Helper()
	if len(got) < 400 {
		t.Fatalf("%s: only %d", what, len(got))
	}
	var sum float64
	for _, d := range got {
		off := float64(d-middle) / float64(middle)
		if sum += off; math.Abs(off) > spread {
			t.Errorf("%s: %v is not within %.0f %% of %v", what, d, 100*spread, middle)
		}
	}
	if off := sum / float64(len(got)); math.Abs(off) > spread/5 {
		t.Errorf("%s: on average %.1f %% off %v", what, 100*off, middle)
	}
	if slices.Min(got) == slices.Max(got) {
		t.Errorf("%s: all are %v", what, got[0])
	}
}

// A registrationRequest is the request of a node that registers.
type registrationRequest struct {
	URL    string
	Header http.Header
	Raw    string
	Body   struct{ PublicBaseURL, ClusterBaseURL string }
}

func captureRegistration(t *testing.T, cfg cluster.Config) registrationRequest {
	t.Helper()
	var got registrationRequest
	c := newNode(t, cfg, stubClient(func(r *http.Request) (int, string) {
		b, err := io.ReadAll(r.Body)
		if err != nil {
			t.Error(err)
		}
		got = registrationRequest{URL: r.URL.String(), Header: r.Header, Raw: string(b)}
		if err := json.Unmarshal(b, &got.Body); err != nil {
			t.Error(err)
		}
		return http.StatusOK, registrationResponse(time.Hour, cfg.ID)
	}).Transport)
	if _, err := c.Register(t.Context()); err != nil {
		t.Fatal(err)
	}
	return got
}

// What is valid, but unsafe, is logged once when a node is made.
func TestUnsafeConfiguration(t *testing.T) {
	safe := testConfig()
	safe.RegistryURL, safe.TokenURL, safe.Issuer = "https://mit.test", "http://127.0.0.1:1/oauth/token", "https://mst.test"
	safe.ClientAccessKey = cluster.Secret(strings.Repeat("k", 32))
	for name, tt := range map[string]struct {
		change func(*cluster.Config)
		want   []string // beginnings
	}{
		"safe":                {func(*cluster.Config) {}, nil},
		"http":                {func(c *cluster.Config) { c.RegistryURL, c.TokenURL = "https://a,http://b", "" }, []string{"MIT_URL is an http URL"}},
		"http, token service": {func(c *cluster.Config) { c.TokenURL = "http://mst.test" }, []string{"OAUTH_TOKEN_URL is an http URL"}},
		"short keys":          {func(c *cluster.Config) { c.GenericKey, c.GenericPreviousKey = "short", "short" }, []string{"a key of received tokens"}},
		"public":              {func(c *cluster.Config) { c.LocalIPv4 = "203.0.113.7" }, []string{"the node has a public address"}},
		"public, restricted": {func(c *cluster.Config) {
			c.LocalIPv4, c.PeerNetworks = "203.0.113.7", "203.0.113.0/24"
		}, nil},
	} {
		t.Run(name, func(t *testing.T) {
			cfg := safe
			tt.change(&cfg)
			observed, lines := observer.New(zap.WarnLevel)
			if _, err := cluster.New(cfg, cluster.WithLogger(zap.New(observed)), cluster.WithoutEnv()); err != nil {
				t.Fatal(err)
			}
			got := lines.FilterMessage("unsafe configuration").All()
			if len(got) != len(tt.want) {
				t.Fatalf("%v, want %q", got, tt.want)
			}
			for i, want := range tt.want {
				if reason := got[i].ContextMap()["reason"].(string); !strings.HasPrefix(reason, want) {
					t.Errorf("%q, want %q", reason, want)
				}
			}
		})
	}
}

// An operator can restrict peers without code. Program and operator must both allow an address.
func TestPeerPolicyFromEnv(t *testing.T) {
	vars := map[string]string{
		"SERVER_TYPE": "mds", "SERVER_PORT": "8080", "SERVER_LOCAL_IPV4": "10.0.0.7", "MIT_URL": "http://mit.test", "MIT_AUDIENCE": "mit",
		"OAUTH_ISSUER": "http://mst.test", "OAUTH_CLIENT_ID": "id", "OAUTH_CLIENT_SECRET": "s", "OAUTH_GENERIC_KEY": "k", "OAUTH_GENERIC_AUDIENCE": "a",
		"CLUSTER_PEER_NETWORKS": "10.0.0.0/8, fd00::/8", "CLUSTER_VERIFY_ANNOUNCEMENTS": "on",
	}
	lookup := func(name string) (string, bool) { v, ok := vars[name]; return v, ok }
	cfg, err := cluster.ConfigFrom(lookup)
	if err != nil || cfg.PeerNetworks != "10.0.0.0/8, fd00::/8" || !cfg.VerifyAnnouncements {
		t.Fatalf("%+v, %v", cfg, err)
	}
	disjoint := cluster.WithPeerPolicy(cluster.PeerPolicy{Networks: prefixes("192.168.0.0/16")})
	if _, err := cluster.New(cfg, disjoint); err == nil || !strings.Contains(err.Error(), "CLUSTER_PEER_NETWORKS is invalid: it has no network in common") {
		t.Errorf("disjoint networks: %v", err)
	}
	if _, err := cluster.New(cfg, cluster.WithHTTPClient(http.DefaultClient)); err == nil || !strings.Contains(err.Error(), "Networks") {
		t.Errorf("with a client of the program: %v", err)
	}
	vars["CLUSTER_PEER_NETWORKS"], vars["CLUSTER_VERIFY_ANNOUNCEMENTS"] = "10.0.0.0", "maybe"
	if _, err := cluster.ConfigFrom(lookup); err == nil || !slices.Equal(namedVariables(err), []string{"CLUSTER_VERIFY_ANNOUNCEMENTS"}) {
		t.Errorf("%v", err)
	}
	vars["CLUSTER_PEER_NETWORKS"] = "10.0.0.0/99"
	if _, err := cluster.ConfigFrom(lookup); err == nil || !strings.Contains(err.Error(), `CLUSTER_PEER_NETWORKS is invalid: "10.0.0.0/99"`) {
		t.Errorf("%v", err)
	}

	cfg.PeerNetworks, cfg.VerifyAnnouncements = "10.1.0.0/16", false
	synctest.Test(t, func(t *testing.T) {
		w := clustertest.Start(t, 1, clustertest.WithConfig(func(c *cluster.Config) { c.PeerNetworks = cfg.PeerNetworks }),
			clustertest.WithOptions(cluster.WithPeerPolicy(cluster.PeerPolicy{Networks: prefixes("10.0.0.0/8")})))
		for address, allowed := range map[string]bool{"10.1.2.3": true, "10.2.3.4": false, "11.1.2.3": false} {
			announce(t, w, w.Nodes[0], strings.ReplaceAll(announcement(address), "//"+address, "//"+address))
			if known := slices.Contains(idsOf(w.Nodes[0].Servers()), address); known != allowed {
				t.Errorf("%s: in the view %t, want %t", address, known, allowed)
			}
		}
	})
}
