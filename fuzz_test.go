package cluster_test

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"path"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"

	"github.com/mimiktech/cluster"
	"github.com/mimiktech/cluster/clustertest"
)

// The targets below put one hostile party before a node, and good ones in the place of all others.

// others is everybody that a node speaks to, as good as they can be but for what a target says.
type others struct {
	t    *testing.T
	view []string // who is in the cluster, as mIT has it

	registry func(*http.Request) (int, string) // nil: good
	tokens   func(*http.Request) (int, string)
	peer     func(*http.Request) (*http.Response, error)
}

func (o *others) RoundTrip(r *http.Request) (*http.Response, error) {
	if r.Body != nil {
		defer r.Body.Close()
	}
	switch r.URL.Host {
	case "mst.test":
		status, body := o.tokens(r)
		return answer(r, status, body), nil
	case "mit.test":
		if o.registry != nil {
			status, body := o.registry(r)
			return answer(r, status, body), nil
		}
		return answer(r, http.StatusOK, registration(time.Hour, o.view...)), nil
	}
	mustBeAllowed(o.t, r.URL)
	if o.peer != nil {
		return o.peer(r)
	}
	id, _, _ := strings.Cut(r.URL.Host, ".")
	return answer(r, http.StatusOK, fmt.Sprintf(`{"data":[%q],"server":{"serverId":%q}}`, id, id)), nil
}

// mustBeAllowed holds a URL that was called, or is to be, against what the policy for peers promises.
func mustBeAllowed(t *testing.T, u *url.URL) {
	t.Helper()
	if u.Scheme != "http" && u.Scheme != "https" || u.User != nil || u.Hostname() == "" || u.Opaque != "" {
		t.Errorf("not to be called: %q", u)
	}
	if ip, err := netip.ParseAddr(u.Hostname()); err == nil {
		if ip = ip.Unmap(); ip.IsLinkLocalUnicast() || ip.IsMulticast() || ip.IsUnspecified() {
			t.Errorf("not to be called: %q", u)
		}
	}
}

// mustHoldView checks what holds for the view of node-1 whatever it was told.
func mustHoldView(t *testing.T, c *cluster.Cluster) (ids []string) {
	t.Helper()
	for _, s := range c.Servers() {
		ids = append(ids, s.ServerID)
	}
	if !slices.IsSorted(ids) || len(slices.Compact(slices.Clone(ids))) != len(ids) {
		t.Errorf("the view is not sorted, or has somebody twice: %q", ids)
	}
	if !slices.Contains(ids, "node-1") {
		t.Errorf("the node is not in its own view: %q", ids)
	}
	if s := c.Status(); s.Servers != len(ids) {
		t.Errorf("status says %d servers, there are %d", s.Servers, len(ids))
	}
	return ids
}

// mustBeDiscreet checks that an error says nothing that it should keep to itself.
func mustBeDiscreet(t *testing.T, err error) {
	t.Helper()
	if err == nil {
		return
	}
	for _, secret := range []string{
		"hidden client secret", "hidden access key", "hidden generic key", "hidden previous key", "hidden-token-for-mit", "hidden-token-for-peers",
	} {
		if strings.Contains(err.Error(), secret) {
			t.Errorf("a secret in the error: %v", err)
		}
	}
}

// newMember is node-1 of a cluster of these nodes, registered. Whoever is asked later is told by changing o.
func newMember(t *testing.T, o *others, opts ...cluster.Option) *cluster.Cluster {
	t.Helper()
	o.t = t
	c := newNode(t, config(), o, append([]cluster.Option{cluster.WithRetry(cluster.Retry{MaxRetries: -1})}, opts...)...)
	if _, err := c.Register(t.Context()); err != nil {
		t.Fatal(err)
	}
	return c
}

// mustAnswer gives the data of an endpoint's answer, checked for what holds for all of them.
func mustAnswer(t *testing.T, w *httptest.ResponseRecorder) (data json.RawMessage) {
	t.Helper()
	var got struct {
		Data           json.RawMessage
		Server         struct{ ServerID string }
		StatusCode     int
		Title, Message string
	}
	if err := json.Unmarshal(w.Body.Bytes(), &got); err != nil {
		t.Fatalf("answered %q: %v", w.Body, err)
	}
	if ct := w.Header().Get("Content-Type"); ct != "application/json" {
		t.Errorf("content type %q", ct)
	}
	if w.Header().Get("X-Correlation-Id") == "" {
		t.Error("no correlation id")
	}
	if w.Code == http.StatusOK {
		if got.Server.ServerID != "node-1" || got.Data == nil {
			t.Errorf("answered %s", w.Body)
		}
	} else if got.StatusCode != w.Code || got.Title != http.StatusText(w.Code) || got.Message == "" {
		t.Errorf("answered %d %s", w.Code, w.Body)
	}
	return got.Data
}

func FuzzCreateItResource(f *testing.F) {
	for _, seed := range []string{
		resource("node-1", "node-2", "node-3"), resource("node-3"), resource("node-3", "node-3"), resource(),
		resource("node-3", "node-4", "node-5"), resource("node-3", "node-4", "node-5", "node-6"), // as many as there may be, and one more
		`{"id":"another","servers":[{"serverId":"x","clusterBaseUrl":"http://x.test"}]}`,
		`{"id":"it","servers":[{"serverId":"x","clusterBaseUrl":"http://169.254.169.254/latest"}]}`,
		`{"id":"it","servers":[{"serverId":"x","clusterBaseUrl":"http://[::ffff:169.254.169.254]/"},{"serverId":"y","clusterBaseUrl":"http://[fe80::1%25eth0]:80"}]}`,
		`{"id":"it","servers":[{"serverId":"x","clusterBaseUrl":"http://user:pass@x.test"},{"serverId":"y","clusterBaseUrl":"file:///etc/passwd"}]}`,
		`{"id":"it","servers":[{"serverId":"x","clusterBaseUrl":"//x.test"},{"serverId":"y","clusterBaseUrl":"http:x.test"},{"serverId":"z"}]}`,
		`{"id":"it","servers":[{"serverId":"node-1","clusterBaseUrl":"http://evil.test","updatedAt":"9999-12-31T23:59:59Z"}]}`,
		`{"id":"it","servers":[{"serverId":"node-2","clusterBaseUrl":"http://evil.test","updatedAt":"9999-12-31T23:59:59Z"}]}`,
		`{"id":"it","servers":[{"serverId":"a/../b","clusterBaseUrl":"http://a.test/../.."},{"serverId":"\u0000","clusterBaseUrl":"http://a.test/%00"}]}`,
		`{"ID":"it","SERVERS":[{"SERVERID":"x","clusterbaseurl":"https://x.test:99999/"}]}`,
		`{"id":"it","servers":[{"serverId":"x","clusterBaseUrl":5,"updatedAt":7},{"serverId":"y","clusterBaseUrl":"http://y.test","updatedAt":{}}]}`,
		`{"id":"it","servers":[{"serverId":"x"},null]}`, `null`, `[]`, `"it"`, `{`, ``, `{"id":"it","servers":{}}`, `{"id":"\ud800"}`,
		`{"id":"it","servers":[` + strings.Repeat(`{"serverId":"x","clusterBaseUrl":"http://x.test"},`, 20) + `{"serverId":"y"}]}`,
		strings.Repeat(`{"id":`, 50),
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		const most = 5
		c := newMember(t, &others{view: []string{"node-1", "node-2"}}, cluster.WithPeerPolicy(cluster.PeerPolicy{MaxServers: most}))
		self := c.Servers()[0]
		r := httptest.NewRequest(http.MethodPost, "/mds/v1/itResources", bytes.NewReader(body))
		r.Header.Set("Authorization", "Bearer peer")
		w := httptest.NewRecorder()
		c.CreateItResource(w, r)

		data := mustAnswer(t, w)
		ids := mustHoldView(t, c)
		if !slices.Contains(ids, "node-2") || len(ids) > most {
			t.Errorf("the view became %q", ids)
		}
		switch w.Code {
		case http.StatusOK:
			var told struct {
				ID      string
				Servers []cluster.Server
			}
			if err := json.Unmarshal(data, &told); err != nil || told.ID != "it" {
				t.Errorf("answered %s: %v", data, err)
			}
			// Compared as text: what was told has no blanks.
			if got, want := mustMarshal(t, told.Servers), mustMarshal(t, c.Servers()); got != want {
				t.Errorf("told %s, but knows %s", got, want)
			}
		case http.StatusBadRequest:
			if len(ids) != 2 {
				t.Errorf("refused, but the view became %q", ids)
			}
		default:
			t.Errorf("answered %d", w.Code)
		}
		if got := c.Servers()[slices.Index(ids, "node-1")]; got.ClusterBaseURL != self.ClusterBaseURL {
			t.Errorf("it was told who it is: %+v", got)
		}
		for _, s := range c.Servers() {
			mustBeAllowed(t, mustParse(t, s.ClusterBaseURL))
		}
		res, err := c.RPCluster(t.Context(), cluster.Request{Path: "/things"}) // calls them all
		if err != nil || len(res.Results)+len(res.Failures) != len(ids)-1 {
			t.Errorf("%d peers, but the outcome is %+v, %v", len(ids)-1, res, err)
		}
	})
}

func FuzzDeleteServer(f *testing.F) {
	for _, seed := range [][2]string{
		{"it", "node-2"},
		{"it", "node-1"},
		{"it", "node-9"},
		{"another", "node-2"},
		{"it", "node-2@2020-01-01T00:00:00.000Z"},
		{"", ""},
		{"", "node-2"},
		{"it", ""},
		{"it", ".."},
		{"..", "."},
		{"it/servers/x", "node-2"},
		{"it", "x/servers/node-2"},
		{"it", "\x00"},
		{"it", "\xff"},
		{"it", "node-2 "},
		{"it", "node-%32"},
		{"IT", "node-2"},
		{"it", "<script>"},
		{"it", "é"},
		{"itResources", "servers"},
	} {
		f.Add(seed[0], seed[1])
	}
	f.Fuzz(func(t *testing.T, id, serverID string) {
		c := newMember(t, &others{view: []string{"node-1", "node-2", "node-3"}})
		r := &http.Request{
			Method: http.MethodDelete, Body: http.NoBody, Header: http.Header{"Authorization": {"Bearer peer"}},
			URL: &url.URL{
				Path:    "/mds/v1/itResources/" + id + "/servers/" + serverID,
				RawPath: "/mds/v1/itResources/" + url.PathEscape(id) + "/servers/" + url.PathEscape(serverID),
			},
		}
		w := httptest.NewRecorder()
		c.DeleteServer(w, r)

		data := mustAnswer(t, w)
		if w.Code != http.StatusOK {
			t.Fatalf("answered %d %s", w.Code, w.Body)
		}
		wantData, wantView := "null", []string{"node-1", "node-2", "node-3"}
		if id == "it" {
			wantData = mustMarshal(t, serverID)
			if serverID != "node-1" {
				wantView = slices.DeleteFunc(wantView, func(id string) bool { return id == serverID })
			}
		}
		if string(data) != wantData {
			t.Errorf("answered %s, want %s", data, wantData)
		}
		if diff := cmp.Diff(wantView, mustHoldView(t, c)); diff != "" {
			t.Errorf("the view (-want +got):\n%s", diff)
		}
	})
}

func FuzzRegistryAnswer(f *testing.F) {
	for _, seed := range []struct {
		status uint16
		body   string
	}{
		{200, registration(time.Hour, "node-1", "node-2", "node-3")},
		{200, registration(time.Hour, "node-1")},
		{201, registration(time.Nanosecond, "node-2", "node-1", "node-1")},
		{200, registration(time.Hour, "node-2", "node-3")},
		{200, registration(time.Hour)},
		{200, `{"itResource":{"id":"another","servers":[{"serverId":"node-1"}]},"leaseTime":1e308}`},
		{200, `{"itResource":{"id":"it","servers":[{"serverId":"node-1"}]},"leaseTime":-1}`},
		{200, `{"itResource":{"id":"it","servers":[{"serverId":"node-1"}]},"leaseTime":1e-300}`},
		{200, `{"itResource":{"id":"it","servers":[{"serverId":"node-1"}]},"leaseTime":"7200000"}`},
		{200, `{"itResource":{"id":"it","servers":[{"serverId":"node-1"},{"serverId":"x","clusterBaseUrl":"http://user:pass@169.254.169.254"}]}}`},
		{200, `{"itResource":{"id":"../..","servers":[{"serverId":"node-1"},{"serverId":"..","clusterBaseUrl":"http://x.test/../"}]}}`},
		{200, `{"itResource":{"id":"it","servers":[{"serverId":"node-1"},{}]}}`},
		{200, `{"itResource":{"id":"it","servers":[null,{"serverId":"node-2","clusterBaseUrl":5,"updatedAt":7},{"serverId":"node-1"},["x"]]},"leaseTime":"x"}`},
		{200, `{"ITRESOURCE":{"Id":"it","id":null,"servers":[],"SERVERS":[{"serverId":"node-1","serverid":"node-2"},{"\u0073erverId":"node-1"}]}}`},
		{200, `{"itResource":{"id":"it","servers":null}}`},
		{200, `{"itResource":null}`},
		{200, `{"data":{}}`},
		{200, `{}`},
		{200, `null`},
		{200, ``},
		{200, `<html>`},
		{204, ``},
		{200, `{"itResource":`},
		{301, registration(time.Hour, "node-1")},
		{400, `{"statusCode":400,"message":"no","info":{"a":1}}`},
		{401, ``},
		{403, `hidden-token-for-mit`},
		{403, `{"message":"bad token hidden-token-for-mit","info":"hidden-token-for-mit"}`},
		{500, `{"message":"hidden client secret"}`},
		{503, `{"message":1}`},
	} {
		f.Add(seed.status, []byte(seed.body))
	}
	f.Fuzz(func(t *testing.T, status uint16, body []byte) {
		var failed error
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		o := &others{view: []string{"node-1", "node-2"}}
		c := newMember(t, o, cluster.WithTrace(&cluster.Trace{
			RenewFailed: func(err error, _ time.Duration) { failed = err; cancel() },
		}))
		before := c.Servers()
		o.registry = func(*http.Request) (int, string) { return valid(status), string(body) }
		_, err := c.Register(ctx)
		mustBeDiscreet(t, err)
		mustBeDiscreet(t, failed)
		ids := mustHoldView(t, c)
		if (err == nil) != (failed == nil) {
			t.Fatalf("Register returns %v, the trace has %v", err, failed)
		}
		s := c.Status()
		if err != nil {
			if !strings.Contains(failed.Error(), "mIT") || !errors.Is(err, context.Canceled) {
				t.Errorf("the errors are %v and %v", failed, err)
			}
			if diff := cmp.Diff(before, c.Servers()); diff != "" {
				t.Errorf("it failed, but changed the view (-before +after):\n%s", diff)
			}
			if s.State != cluster.Degraded || s.ResourceID != "it" || s.LeaseTime != time.Hour {
				t.Errorf("it failed, and the status is %+v", s)
			}
			return
		}
		var told struct {
			ItResource struct{ Servers []json.RawMessage }
		}
		if valid(status)/100 != 2 || json.Unmarshal(body, &told) != nil || len(ids) > len(told.ItResource.Servers) {
			t.Errorf("%d %q was taken for an answer: %q", valid(status), body, ids)
		}
		if s.State != cluster.Registered || s.ResourceID == "" || s.LeaseTime < time.Second || s.LeaseTime > 366*24*time.Hour {
			t.Errorf("the status is %+v", s)
		}
		if _, err := json.Marshal(s); err != nil {
			t.Error(err)
		}
	})
}

// valid makes a status of any number.
func valid(status uint16) int { return 200 + int(status-200)%400 }

func FuzzRemovedAnswer(f *testing.F) {
	for _, seed := range []struct {
		status uint16
		body   string
	}{
		{200, `{"data":"node-2"}`},
		{200, `{"data":{}}`},
		{200, `{"data":null}`},
		{200, `{"data":false}`},
		{200, `{}`},
		{200, ``},
		{200, `null`},
		{204, ``},
		{200, `{"server":{"serverId":"node-2","clusterBaseUrl":"http://node-2.test:8081/mds/v1","updatedAt":"2030-01-01T00:00:00.000Z"}}`},
		{200, `{"server":{"serverId":"node-2","clusterBaseUrl":"http://node-2.test:8080/mds/v1","updatedAt":"2010-01-01T00:00:00.000Z"}}`},
		{200, `{"server":{"serverId":"node-2","clusterBaseUrl":"http://169.254.169.254","updatedAt":"2030-01-01T00:00:00.000Z"}}`},
		{200, `{"server":{"serverId":"node-2"}}`},
		{200, `{"server":{"serverId":"node-3","clusterBaseUrl":"http://node-3.test"}}`},
		{200, `{"server":{"serverId":"node-1"}}`},
		{200, `{"server":{}}`},
		{200, `{"server":null,"data":"node-2"}`},
		{200, `{"data":"node-2","server":{"serverId":"node-2","updatedAt":"yesterday"}}`},
		{400, `{"message":"no date"}`},
		{403, `{"message":"hidden-token-for-mit"}`},
		{404, `{"data":"node-2"}`},
		{500, `{"data":"node-2"}`},
		{302, `{"data":"node-2"}`},
	} {
		f.Add(seed.status, []byte(seed.body))
	}
	f.Fuzz(func(t *testing.T, status uint16, body []byte) {
		o := &others{view: []string{"node-1", "node-2"}}
		c := newMember(t, o)
		deletes := 0
		o.registry = func(r *http.Request) (int, string) {
			if deletes++; r.Method != http.MethodDelete || !strings.HasPrefix(r.URL.Path, "/mIT/v1/itResources/it/servers/node-2@") {
				t.Errorf("mIT was asked to %s %s", r.Method, r.URL)
			}
			return valid(status), string(body)
		}
		o.peer = func(r *http.Request) (*http.Response, error) {
			return nil, &net.OpError{Op: "dial", Net: "tcp", Err: syscall.ECONNREFUSED}
		}
		res, err := c.RPCluster(t.Context(), cluster.Request{Path: "/things"})
		if err != nil || len(res.Results) != 0 || len(res.Failures) != 1 {
			t.Fatalf("nobody answers, but the outcome is %+v, %v", res, err)
		}
		got := res.Failures[0]
		mustBeDiscreet(t, got.Err)
		mustBeDiscreet(t, got.EvictionSkipped)
		ids := mustHoldView(t, c)
		inView := slices.Contains(ids, "node-2")
		if len(ids) > 2 {
			t.Errorf("asked about one server, it learned of another: %q", ids)
		}
		if got.Server.ServerID != "node-2" || got.Evicted == inView {
			t.Errorf("evicted %t, but in the view %t: %+v", got.Evicted, inView, got)
		}
		if deletes < 1 || deletes > 6 { // three entries, and each once more with a new token
			t.Errorf("mIT was asked %d times", deletes)
		}
		var said struct {
			Data   any
			Server any
		}
		agreed := valid(status)/100 == 2 && json.Unmarshal(body, &said) == nil && said.Data != nil && said.Server == nil
		if got.Evicted && !agreed {
			t.Errorf("%d %q was taken for consent", valid(status), body)
		}
		if agreed && !got.Evicted {
			t.Errorf("%d %q was not taken for consent: %v", valid(status), body, got.EvictionSkipped)
		}
		if !got.Evicted && got.Kind != cluster.KindNotAllowed && (got.EvictionSkipped == nil || !strings.Contains(got.EvictionSkipped.Error(), "mIT")) {
			t.Errorf("it was spared because of %v", got.EvictionSkipped)
		}
	})
}

func FuzzTokenAnswer(f *testing.F) {
	for _, seed := range []struct {
		status uint16
		body   string
	}{
		{200, `{"data":{"access_token":"opaque","expires_in":3600}}`},
		{200, `{"access_token":"opaque"}`},
		{201, `{"data":{"access_token":"a.b.c"}}`},
		{200, `{"data":{"access_token":"two words"}}`},
		{200, `{"data":{"access_token":"line\nbreak"}}`},
		{200, `{"data":{"access_token":"é"}}`},
		{200, `{"data":{"access_token":""}}`},
		{200, `{"data":{"access_token":1}}`},
		{200, `{"data":{"access_token":"x","expires_in":-1}}`},
		{200, `{"data":{"access_token":"x","expires_in":1e300}}`},
		{200, `{"data":"hidden client secret"}`},
		{200, `hidden client secret`},
		{200, `{"data":null}`},
		{200, `{"data":{"access_token":"eyJhbGciOiJIUzI1NiJ9.eyJleHAiOjF9.x"}}`},
		{200, ``},
		{200, `null`},
		{204, ``},
		{302, `{"access_token":"x"}`},
		{400, `{"message":"client_secret hidden client secret is wrong","info":{"secret":"hidden client secret"}}`},
		{401, `hidden client secret`},
		{403, `{"message":"no"}`},
		{500, `{"message":{"a":"hidden client secret"}}`},
		{503, ``},
	} {
		f.Add(seed.status, []byte(seed.body))
	}
	f.Fuzz(func(t *testing.T, status uint16, body []byte) {
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		var failed error
		bearer := ""
		o := &others{t: t, view: []string{"node-1"}}
		o.tokens = func(*http.Request) (int, string) { return valid(status), string(body) }
		o.registry = func(r *http.Request) (int, string) {
			bearer = r.Header.Get("Authorization")
			return http.StatusOK, registration(time.Hour, "node-1")
		}
		c := newNode(t, config(), o, cluster.WithTokens(nil), cluster.WithTrace(&cluster.Trace{
			RenewFailed: func(err error, _ time.Duration) { failed = err; cancel() },
		}))
		_, err := c.Register(ctx)
		mustBeDiscreet(t, err)
		mustBeDiscreet(t, failed)
		if err == nil {
			token, found := strings.CutPrefix(bearer, "Bearer ")
			if !found || token == "" || strings.ContainsFunc(token, func(r rune) bool { return r <= ' ' || r > '~' }) {
				t.Errorf("%q was shown for a token", bearer)
			}
			if valid(status)/100 != 2 {
				t.Errorf("a %d was taken for an answer", valid(status))
			}
			return
		}
		if _, ok := errors.AsType[*cluster.TokenError](failed); !ok || !strings.Contains(failed.Error(), "mST") || bearer != "" {
			t.Errorf("no token, and the error is %v", failed)
		}
	})
}

func FuzzPeerAnswer(f *testing.F) {
	for _, seed := range []struct {
		status uint16
		body   string
	}{
		{200, `{"data":["a"],"server":{"serverId":"node-2"}}`},
		{200, `{"data":{"a":[1]},"server":{"serverId":"node-2","more":1}}`},
		{200, `{"server":{"serverId":"node-2"}}`},
		{200, `{"data":null,"server":{"serverId":"node-2"}}`},
		{200, `{"data":[],"server":{"serverId":"node-2"}}`},
		{200, `{"data":["a"],"server":{"serverId":"node-3"}}`},
		{200, `{"data":["a"],"server":{"serverId":"node-1"}}`},
		{200, `{"data":["a"],"server":{}}`},
		{200, `{"data":["a"]}`},
		{200, `{"data":["a"],"server":"node-2"}`},
		{200, `{"server":{"serverId":"node-2"},"server":{"serverId":"node-3"}}`},
		{200, `{"server":{"serverId":"\u006eode-2"}}`},
		{200, `{"\u0073erver":{"server\u0049d":"node-2"},"d\u0061ta":1}`},
		{200, `{"SERVER":{"serverId":"node-2"}}`},
		{200, `{"server":{"serverid":"node-2"}}`},
		{200, `{"server":{"serverId":"node-2"},"server":{}}`},
		{200, `{"data":{"server":{"serverId":"node-3"}},"server":{"x":{"serverId":"node-3"},"serverId":"node-2"}}`},
		{200, `["node-2"]`},
		{200, `null`},
		{200, ``},
		{200, `<html>`},
		{206, `{"data":[1,`},
		{204, ``},
		{200, ` {"data" : [ 1 , [2] , null ] , "server" : {"serverId":"node-2"} } `},
		{200, `{"data":"\ud800","server":{"serverId":"node-2"}}`},
		{301, `{"data":["a"],"server":{"serverId":"node-2"}}`},
		{400, `{"statusCode":400,"message":"no","info":{"a":1}}`},
		{401, ``},
		{403, `{"message":"hidden-token-for-peers"}`},
		{404, `{"message":1}`},
		{429, `{"message":"hidden"}`},
		{500, `{"server":{"serverId":"node-3"}}`},
		{503, `oops`},
	} {
		f.Add(seed.status, []byte(seed.body))
	}
	f.Fuzz(func(t *testing.T, status uint16, body []byte) {
		o := &others{view: []string{"node-1", "node-2"}}
		c := newMember(t, o)
		o.registry = func(r *http.Request) (int, string) {
			t.Errorf("mIT was asked to %s %s, and the peer did answer", r.Method, r.URL)
			return http.StatusInternalServerError, ""
		}
		asked := 0
		o.peer = func(r *http.Request) (*http.Response, error) {
			asked++
			return answer(r, valid(status), string(body)), nil
		}
		res, err := c.RPCluster(t.Context(), cluster.Request{Path: "/things"})
		if err != nil || len(res.Results)+len(res.Failures) != 1 {
			t.Fatalf("one peer, but the outcome is %+v, %v", res, err)
		}
		if len(mustHoldView(t, c)) != 2 {
			t.Errorf("the view became %v", c.Servers())
		}
		var (
			said, server map[string]json.RawMessage // exactly so named, and the last of two counts
			id           string
		)
		good := valid(status)/100 == 2 && json.Unmarshal(body, &said) == nil && json.Unmarshal(said["server"], &server) == nil &&
			json.Unmarshal(server["serverId"], &id) == nil && id == "node-2"
		if good != (len(res.Results) == 1) {
			t.Fatalf("%d %q gives %+v", valid(status), body, res)
		}
		again := valid(status) == http.StatusUnauthorized || valid(status) == http.StatusForbidden
		if want := map[bool]int{false: 1, true: 2}[again]; asked != want {
			t.Errorf("%d requests, want %d", asked, want)
		}
		if !json.Valid([]byte(mustMarshal(t, res))) {
			t.Errorf("the response marshals to %s", mustMarshal(t, res))
		}
		if !good {
			got := res.Failures[0]
			if got.Evicted || got.EvictionSkipped != nil || !strings.Contains(got.Err.Error(), "node-2") || len(res.Data) != 0 || got.Body != nil {
				t.Errorf("it failed, with %+v", got)
			}
			want := []cluster.Kind{cluster.KindMalformed, cluster.KindWrongServer}
			if valid(status)/100 != 2 {
				want = []cluster.Kind{cluster.KindStatus}
			}
			if !slices.Contains(want, got.Kind) {
				t.Errorf("it failed as %q: %v", got.Kind, got.Err)
			}
			mustBeDiscreet(t, got.Err)
			return
		}
		var elements []json.RawMessage
		switch {
		case len(said["data"]) == 0:
		case json.Unmarshal(said["data"], &elements) != nil:
			elements = []json.RawMessage{said["data"]}
		case elements == nil && string(said["data"]) == "null":
			elements = []json.RawMessage{said["data"]}
		}
		values, err := cluster.Decode[json.RawMessage](res)
		if err != nil || len(values) != len(elements) {
			t.Errorf("%q gives the joint data %q, want %q: %v", body, values, elements, err)
		}
	})
}

func FuzzRequestPath(f *testing.F) {
	for _, seed := range []string{
		"/things", "/things?x=1", "/", "/a//b", "/a/./b", "/a/../b", "/..", "/../x", "/%2e%2e/x", "/a%2f..%2f..%2fb", "/..%5c..", `/..\..\x`, "/%252e%252e/x",
		"//evil.test/x", "/\\evil.test", "http://evil.test/", "evil.test", "", "/a?b#c", "/a#b", "/a?x y", "/a b", "/é", "/a\nb", "/a\r\nHost: evil.test", "/%zz",
		"/%00", "/a;b", "/a:b", "/*", "*", "/a?../../x", "/a@b", "/ HTTP/1.1", "/a?b HTTP/1.1", "/%2F%2Fevil.test", "/things/%2e", "/..;/x", "/\xff", "/a%20b%3F%23",
	} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, p string) {
		var sent []*http.Request
		o := &others{view: []string{"node-1", "node-2"}}
		c := newMember(t, o)
		o.peer = func(r *http.Request) (*http.Response, error) {
			sent = append(sent, r)
			return answer(r, http.StatusOK, `{"server":{"serverId":"node-2"}}`), nil
		}
		res, err := c.RPCluster(t.Context(), cluster.Request{Path: p, Query: url.Values{"q": {"1"}}})
		if err != nil {
			if res != nil || len(sent) != 0 || !strings.HasPrefix(err.Error(), "cluster: ") {
				t.Errorf("refused with %v, but %d requests were sent", err, len(sent))
			}
			return
		}
		if len(sent) != 1 || len(res.Results) != 1 {
			t.Fatalf("%d requests, %+v", len(sent), res)
		}
		// As the peer will read it.
		var wire bytes.Buffer
		if err := sent[0].Clone(t.Context()).Write(&wire); err != nil {
			t.Fatalf("%q was accepted, but cannot be sent: %v", p, err)
		}
		r, err := http.ReadRequest(bufio.NewReader(&wire))
		if err != nil {
			t.Fatalf("%q was accepted, but nobody can read %q: %v", p, wire.String(), err)
		}
		for _, got := range []string{r.URL.Path, strings.ReplaceAll(r.URL.Path, `\`, "/")} {
			if clean := path.Clean(got); clean != "/mds/v1" && !strings.HasPrefix(clean, "/mds/v1/") {
				t.Errorf("%q left its place: %q", p, got)
			}
		}
		if sent[0].URL.Host != "node-2.test:8080" || r.Host != "node-2.test:8080" || sent[0].URL.Scheme != "http" || sent[0].URL.User != nil {
			t.Errorf("%q went to %s", p, sent[0].URL)
		}
		before, _, _ := strings.Cut(p, "?")
		if want, err := url.PathUnescape(before); err != nil || r.URL.Path != "/mds/v1"+want {
			t.Errorf("%q is %q at the peer", p, r.URL.Path)
		}
		if q := "&" + r.URL.RawQuery; !strings.HasSuffix(q, "&q=1") {
			t.Errorf("%q lost its query: %q", p, r.URL.RawQuery)
		}
	})
}

func FuzzConfigFromEnv(f *testing.F) {
	names := []string{
		"SERVER_TYPE", "SERVER_ID", "SERVER_VERSION", "SERVER_PORT", "SERVER_BASE_PATH", "SERVER_LOCAL_IPV4", "SERVER_CLUSTER_BASE_URL",
		"SERVER_PUBLIC_PROTOCOL", "SERVER_PUBLIC_DOMAIN_NAME", "SERVER_PUBLIC_IPV4", "SERVER_LOCATION_LON", "SERVER_LOCATION_LAT", "REQUEST_TIMEOUT", "MIT_URL",
		"OAUTH_ISSUER",
	}
	good := variables()
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
		set := func(name, value string) { t.Setenv(name, strings.ReplaceAll(value, "\x00", "\x01")) } // no environment has a NUL
		setenv(t, good)
		set("SERVER_CLUSTER_BASE_URL", "")
		set("SERVER_PUBLIC_DOMAIN_NAME", "")
		set("SERVER_BASE_PATH", basePath)
		name := names[int(which)%len(names)]
		set(name, value)
		if typ := []rune(strings.TrimSpace(value)); name == "SERVER_TYPE" && len(typ) > 0 {
			set("CLUSTER_MANAGEMENT", "off") // else another variable has to be set as well
		}

		cfg, err := cluster.ConfigFromEnv()
		var body []byte
		c, newErr := cluster.New(cfg, cluster.WithoutEnv(), cluster.WithHTTPClient(&http.Client{Transport: clustertest.RoundTripperFunc(func(r *http.Request) (*http.Response, error) {
			if r.URL.Path == mustParse(t, cfg.Issuer).Path && r.URL.Host == mustParse(t, cfg.Issuer).Host {
				return answer(r, http.StatusOK, `{"data":{"access_token":"x"}}`), nil
			}
			var wire bytes.Buffer
			if err := r.Write(&wire); err != nil {
				t.Errorf("the configuration %+v makes a request that cannot be sent: %v", cfg, err)
			}
			sent, err := http.ReadRequest(bufio.NewReader(&wire))
			if err != nil {
				t.Fatalf("the configuration %+v makes a request that cannot be read: %v", cfg, err)
			}
			body = make([]byte, sent.ContentLength)
			if _, err := sent.Body.Read(body); err != nil && len(body) == 0 {
				t.Error(err)
			}
			id := cfg.ID
			if id == "" {
				var said struct{ ServerID string }
				_ = json.Unmarshal(body, &said)
				id = said.ServerID
			}
			return answer(r, http.StatusOK, registration(time.Hour, id)), nil
		})}))
		mustBeDiscreet(t, err)
		if err == nil != (newErr == nil) && !strings.Contains(fmt.Sprint(err), " is \"") {
			t.Fatalf("ConfigFromEnv says %v, New says %v", err, newErr)
		}
		if err != nil && !strings.Contains(err.Error(), name) && !strings.Contains(err.Error(), "SERVER_BASE_PATH") {
			t.Errorf("%s=%q: the error names neither: %v", name, value, err)
		}
		if err != nil {
			return
		}
		defer c.Close()

		// What was accepted makes a node that works.
		c.Mount(http.NewServeMux())
		if _, err := c.Register(t.Context()); err != nil {
			t.Fatal(err)
		}
		var said struct{ Type, ServerID, PublicBaseURL, ClusterBaseURL string }
		if err := json.Unmarshal(body, &said); err != nil || !utf8.Valid(body) {
			t.Fatalf("registered with %q: %v", body, err)
		}
		base := strings.TrimSuffix(cfg.BasePath, "/")
		if cfg.BasePath == "" {
			base = "/" + cfg.Type + "/v1"
		}
		if said.Type != cfg.Type || said.ServerID != c.Status().ServerID {
			t.Errorf("registered with %q", body)
		}
		for what, address := range map[string]string{"publicBaseUrl": said.PublicBaseURL, "clusterBaseUrl": said.ClusterBaseURL} {
			u := mustParse(t, address)
			if u.Scheme != "http" && u.Scheme != "https" || u.Hostname() == "" || u.User != nil || u.RawQuery != "" || u.Fragment != "" || strings.HasSuffix(address, "/") {
				t.Errorf("%s is %q", what, address)
			}
			if (what == "publicBaseUrl" || cfg.ClusterBaseURL == "") && u.Path != base {
				t.Errorf("%s is %q, whose path is not %q", what, address, base)
			}
		}
	})
}

func mustParse(t *testing.T, address string) *url.URL {
	t.Helper()
	u, err := url.Parse(address)
	if err != nil {
		t.Fatal(err)
	}
	return u
}

func mustMarshal(t *testing.T, v any) string {
	t.Helper()
	b, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}
