//go:build unix

package interop

import (
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/oauth2"

	"github.com/mimiktech/cluster"
)

// Callers of the npm module pass a query as the params of axios. Each form of params has an
// equivalent Request, which sends the same names and values in the same order. docs/protocol.md
// lists them.
func TestAxiosParams(t *testing.T) {
	t.Parallel()
	modules := install(t)
	cases := []struct {
		name   string
		params string // in JavaScript
		req    cluster.Request
	}{
		{"text and number", `{a: 'x', b: 1.5}`, cluster.Request{Query: url.Values{"a": {"x"}, "b": {"1.5"}}}},
		{"boolean", `{a: true, b: false}`, cluster.Request{Query: url.Values{"a": {"true"}, "b": {"false"}}}},
		{"array", `{a: ['x', 'y']}`, cluster.Request{Query: url.Values{"a[]": {"x", "y"}}}},
		{"array of one", `{a: [1]}`, cluster.Request{Query: url.Values{"a[]": {"1"}}}},
		{"empty array", `{a: [], b: 1}`, cluster.Request{Query: url.Values{"b": {"1"}}}},
		{"object", `{a: {b: 1, c: 'x'}}`, cluster.Request{Query: url.Values{"a[b]": {"1"}, "a[c]": {"x"}}}},
		{"object in an object", `{a: {b: {c: 1}}}`, cluster.Request{Query: url.Values{"a[b][c]": {"1"}}}},
		{"array in an object", `{a: {b: [1, 2]}}`, cluster.Request{Query: url.Values{"a[b][0]": {"1"}, "a[b][1]": {"2"}}}},
		{"objects in an array", `{a: [{b: 1}, {b: 2}]}`, cluster.Request{Query: url.Values{"a[0][b]": {"1"}, "a[1][b]": {"2"}}}},
		{"null and undefined", `{a: null, b: undefined, c: 1}`, cluster.Request{Query: url.Values{"c": {"1"}}}},
		{"empty text", `{a: ''}`, cluster.Request{Query: url.Values{"a": {""}}}},
		{"date", `{a: new Date(0)}`, cluster.Request{Query: url.Values{"a": {time.UnixMilli(0).UTC().Format("2006-01-02T15:04:05.000Z")}}}},
		{"reserved characters", `{'a&b': 'c=d&e +%#?/:$,'}`, cluster.Request{Query: url.Values{"a&b": {"c=d&e +%#?/:$,"}}}},
		{"outside ASCII", `{a: 'größe 日本'}`, cluster.Request{Query: url.Values{"a": {"größe 日本"}}}},
		{"URLSearchParams", `new URLSearchParams([['a', '1'], ['a', '2']])`, cluster.Request{Query: url.Values{"a": {"1", "2"}}}},
		{"added to the query of the URL", `{b: 2}`, cluster.Request{Path: "?a=1", Query: url.Values{"b": {"2"}}}},
		{"none", `undefined`, cluster.Request{}},
	}
	var (
		mu      sync.Mutex
		queries = map[string]string{} // by client and path
	)
	var server *httptest.Server
	server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/mIT/itResources" {
			fmt.Fprintf(w, `{"itResource":{"id":"it","publicBaseUrl":"","servers":[{"serverId":"node-1","clusterBaseUrl":"http://10.0.0.7:8080/mds/v1"},`+
				`{"serverId":"node-2","clusterBaseUrl":"%s/go"}]}}`, server.URL)
			return
		}
		mu.Lock()
		queries[r.URL.Path] = r.URL.RawQuery
		mu.Unlock()
		fmt.Fprint(w, `{"data":[],"server":{"serverId":"node-2"}}`)
	}))
	t.Cleanup(server.Close)

	script := &strings.Builder{}
	fmt.Fprintln(script, `const axios = require('axios'); (async () => {`)
	for i, c := range cases {
		fmt.Fprintf(script, "await axios.get('%s/npm/%d%s', {params: %s});\n", server.URL, i, c.req.Path, c.params)
	}
	fmt.Fprintln(script, `})().catch((e) => { console.error(e); process.exit(1); });`)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	node := exec.CommandContext(ctx, "node", "-e", script.String())
	node.Env = append(os.Environ(), "NODE_PATH="+modules)
	if out, err := node.CombinedOutput(); err != nil {
		t.Fatalf("node: %v\n%s", err, out)
	}

	c, err := cluster.New(cluster.Config{
		Type: "mds", ID: "node-1", Port: 8080, LocalIPv4: "10.0.0.7", Management: true,
		RegistryURL: server.URL + "/mIT", RegistryAudience: "mit", PeerAudience: "peers", Issuer: server.URL,
		ClientID: "id", ClientSecret: "secret", ClientAccessKey: "key", ClientAudience: "peers",
	}, cluster.WithoutEnv(), cluster.WithTokens(func(context.Context, cluster.TokenKey) (*oauth2.Token, error) {
		return &oauth2.Token{AccessToken: "token"}, nil
	}))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	if _, err := c.Register(t.Context()); err != nil {
		t.Fatal(err)
	}
	for i, tt := range cases {
		t.Run(tt.name, func(t *testing.T) {
			req := tt.req
			req.Path = fmt.Sprintf("/%d%s", i, tt.req.Path)
			if res, err := c.RPCluster(t.Context(), req); err != nil || len(res.Results) != 1 {
				t.Fatalf("%+v, %v", res, err)
			}
			mu.Lock()
			defer mu.Unlock()
			npm, err := url.ParseQuery(queries[fmt.Sprintf("/npm/%d", i)])
			if err != nil {
				t.Fatal(err)
			}
			got, err := url.ParseQuery(queries[fmt.Sprintf("/go/%d", i)])
			if diff := cmp.Diff(npm, got); diff != "" || err != nil {
				t.Errorf("axios sends %s (-npm +Go): %v\n%s", queries[fmt.Sprintf("/npm/%d", i)], err, diff)
			}
		})
	}
}
