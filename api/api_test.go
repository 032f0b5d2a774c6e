package api_test

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/mimiktech/cluster"
	"github.com/mimiktech/cluster/api"
	"github.com/mimiktech/cluster/clustertest"
	"github.com/mimiktech/cluster/mit"
)

var update = flag.Bool("update", false, "write the examples of the documents") //nolint:gochecknoglobals // a flag

func TestNode(t *testing.T) {
	document := api.Node("/a/b: #c")
	if !strings.Contains(document, "\nservers:\n  - url: \"/a/b: #c\"\n") {
		t.Error("the document does not have the base path")
	}
	if with, without := strings.Count(document, "\n"), strings.Count(api.Node("/mds/v1"), "\n"); with != without {
		t.Errorf("%d lines, %d without a base path", with, without)
	}
	if !strings.Contains(api.Node(""), "- url: \"/\"\n") {
		t.Error("an empty base path is not /")
	}
}

// An example is a body in a document, and why it was sent.
type example struct{ name, summary, body string }

// TestExamples compares the examples of the documents with the exchanges of a cluster in memory.
func TestExamples(t *testing.T) {
	var node, registry []example
	synctest.Test(t, func(t *testing.T) { node, registry = recordExamples(t) })
	for file, examples := range map[string][]example{"node.yaml": node, "mit.yaml": registry} {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		const marker = "\n  examples:\n"
		head, _, ok := strings.Cut(string(text), marker)
		if !ok {
			t.Fatalf("%s has no examples", file)
		}
		var want strings.Builder
		want.WriteString(head + marker)
		for _, e := range examples {
			var indented bytes.Buffer
			if err := json.Indent(&indented, []byte(shortenTokens(e.body)), "        ", "  "); err != nil {
				t.Fatalf("%s: %v: %s", e.name, err, e.body)
			}
			fmt.Fprintf(&want, "    %s:\n      summary: %q\n      value:\n        %s\n", e.name, e.summary, &indented)
		}
		if want.String() == string(text) {
			continue
		}
		if !*update {
			t.Errorf("the examples of %s are not what was recorded (-update writes them):\n%s", file, want.String()[len(head):])
			continue
		}
		if err := os.WriteFile(file, []byte(want.String()), 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

func shortenTokens(text string) string {
	return regexp.MustCompile(`eyJ[\w-]+\.[\w-]+\.[\w-]+`).ReplaceAllString(text, "eyJ…")
}

// recordExamples returns the examples of both documents, from a cluster of two nodes.
func recordExamples(t *testing.T) (node, registry []example) {
	t.Helper()
	w := clustertest.Start(t, 0)
	var r recording
	w.Network.Fault(clustertest.Any, clustertest.Any, r.fault)
	one, two := w.Join(), w.Join()
	id := mit.ResourceID("mds")
	cluster, plain, other := w.Token("mds", true), w.Token("mds", false), w.Token("other", true)
	client := caller{t, w.Network.Client("caller")}
	base := "http://" + one.Host + "/mds/v1"
	resources := "http://" + clustertest.RegistryHost + "/mIT/v1/itResources"
	tokenURL := "http://" + clustertest.TokenHost + "/mST/v1/oauth/token"

	registration := r.last(t, "POST", clustertest.RegistryHost)
	announcement := r.last(t, "POST", one.Host)
	tokenRequest, clusterRequest := r.first(t, `"audience":"https://mit.test"`), r.first(t, `"type":"cluster"`)
	registryToken := decodeTokens(t, tokenRequest.response).AccessToken
	full := client.send("POST", base+"/itResources", cluster, announcement.request)
	plainToken := client.send("POST", base+"/itResources", plain, announcement.request)
	otherType := client.send("POST", base+"/itResources", other, announcement.request)
	noToken := client.send("POST", base+"/itResources", "", announcement.request)
	invalidToken := client.send("POST", base+"/itResources", "not-a-token", announcement.request)
	elsewhere := client.send("DELETE", base+"/itResources/another/servers/node-2", cluster, "")

	read := client.send("GET", resources+"/"+id, registryToken, "")
	notRemoved := client.send("DELETE", resources+"/"+id+"/servers/node-2@1970-01-01T00:00:00.000Z", registryToken, "")
	malformed := client.send("POST", resources, registryToken, `{"type":"mds","serverId":"a/b"}`)
	noRegistryToken := client.send("GET", resources+"/"+id, "", "")
	otherResource := client.send("GET", resources+"/"+mit.ResourceID("other"), registryToken, "")
	wrongSecret := client.send("POST", tokenURL, "", strings.Replace(tokenRequest.request, "secret of mds", "a guess", 1))
	refresh := `{"refresh_token":"` + decodeTokens(t, tokenRequest.response).RefreshToken + `","grant_type":"refresh_token"}`
	client.send("POST", tokenURL, "", refresh)
	time.Sleep(time.Minute) // a token may be used again for 30 s, because a response may be lost
	reused := client.send("POST", tokenURL, "", refresh)

	if d := two.UnRegister(t.Context()); d.Errors != nil {
		t.Fatal(d.Errors)
	}
	departure, removed := r.last(t, "DELETE", one.Host), r.last(t, "DELETE", clustertest.RegistryHost)
	node = []example{
		{"announcement", "node-2 announces itself", announcement.request},
		{"announced", "with `Prefer: return=minimal`", announcement.response},
		{"announcedInFull", "without the preference", full},
		{"departed", "node-2 has left", departure.response},
		{"departedElsewhere", "the id is that of another itResource", elsewhere},
		{"plainToken", "the token is not a cluster token", plainToken},
		{"otherType", "the token is of another type", otherType},
		{"noToken", "the request has no token", noToken},
		{"invalidToken", "the token is malformed", invalidToken},
	}
	registry = []example{
		{"registration", "node-2 registers", registration.request},
		{"registered", "node-1 has registered before", registration.response},
		{"read", "both are registered", read},
		{"removed", "node-2 has left", removed.response},
		{"notRemoved", "node-2 has renewed since the date", notRemoved},
		{"malformed", "the registration is malformed", malformed},
		{"noToken", "the request has no token", noRegistryToken},
		{"otherType", "the token is of another type", otherResource},
		{"clusterFull", "the registry allows one server of a type", registerTwo(t, registryToken, registration.request)},
		{"tokenRequest", "a token for the registry", tokenRequest.request},
		{"clusterTokenRequest", "a token for the peers", clusterRequest.request},
		{"refreshRequest", "a refresh", refresh},
		{"tokens", "the tokens", tokenRequest.response},
		{"refreshTokenReused", "the refresh token was used before", reused},
		{"wrongSecret", "the secret is wrong", wrongSecret},
	}
	return node, registry
}

// registerTwo registers a second server at a registry that allows one, and returns the response.
func registerTwo(t *testing.T, token, registration string) (response string) {
	t.Helper()
	g, err := mit.NewRegistry(mit.NewMemory(), mit.RegistryConfig{
		MaxServers: 1, Verify: func(string) (cluster.Claims, error) { return cluster.Claims{SubType: "mds"}, nil },
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, body := range []string{registration, strings.ReplaceAll(registration, "node-2", "node-1")} {
		r := httptest.NewRequestWithContext(t.Context(), http.MethodPost, "/itResources", strings.NewReader(body))
		r.Header.Set("Authorization", "Bearer "+token)
		w := httptest.NewRecorder()
		g.ServeHTTP(w, r)
		response = w.Body.String()
	}
	return response
}

type tokens struct {
	AccessToken  string `json:"access_token"`
	RefreshToken string `json:"refresh_token"`
}

func decodeTokens(t *testing.T, body string) tokens {
	t.Helper()
	var in struct{ Data tokens }
	if err := json.Unmarshal([]byte(body), &in); err != nil || cmp.Or(in.Data.AccessToken, in.Data.RefreshToken) == "" {
		t.Fatalf("no tokens in %s: %v", body, err)
	}
	return in.Data
}

// A caller sends requests that no node sends.
type caller struct {
	*testing.T
	*http.Client
}

func (c caller) send(method, url, token, body string) (response string) {
	c.Helper()
	req, err := http.NewRequestWithContext(context.Background(), method, url, strings.NewReader(body))
	if err != nil {
		c.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/json")
	if token != "" {
		req.Header.Set("Authorization", "Bearer "+token)
	}
	resp, err := c.Do(req)
	if err != nil {
		c.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		c.Fatal(err)
	}
	return string(b)
}

// A recording has the exchanges of a network.
type recording struct{ all []exchange }

type exchange struct{ method, host, request, response string }

func (r *recording) fault(next http.RoundTripper) http.RoundTripper {
	return clustertest.RoundTripperFunc(func(req *http.Request) (*http.Response, error) {
		x := exchange{method: req.Method, host: req.URL.Host}
		if req.Body != nil {
			b, err := io.ReadAll(req.Body)
			if err != nil {
				return nil, err
			}
			x.request, req.Body = string(b), io.NopCloser(bytes.NewReader(b))
		}
		resp, err := next.RoundTrip(req)
		if err != nil {
			return nil, err
		}
		b, err := io.ReadAll(resp.Body)
		if err != nil {
			return nil, err
		}
		x.response, resp.Body = string(b), io.NopCloser(bytes.NewReader(b))
		r.all = append(r.all, x) // the requests of this test do not overlap
		return resp, nil
	})
}

func (r *recording) last(t *testing.T, method, host string) exchange {
	t.Helper()
	for _, x := range slices.Backward(r.all) {
		if x.method == method && x.host == host {
			return x
		}
	}
	t.Fatalf("no %s to %s", method, host)
	return exchange{}
}

// first returns the first request whose body contains text.
func (r *recording) first(t *testing.T, text string) exchange {
	t.Helper()
	for _, x := range r.all {
		if strings.Contains(x.request, text) {
			return x
		}
	}
	t.Fatalf("no request contains %s", text)
	return exchange{}
}
