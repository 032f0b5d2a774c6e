package mit_test

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/mimiktech/cluster"
	"github.com/mimiktech/cluster/mit"
)

// scrape returns the lines of the metrics, without those of buckets.
func scrape(t *testing.T, g *mit.Registry, s *mit.TokenService) map[string]string {
	t.Helper()
	w := httptest.NewRecorder()
	mit.MetricsHandler(g, s).ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/metrics", nil))
	if got := w.Header().Get("Content-Type"); w.Code != http.StatusOK || !strings.HasPrefix(got, "text/plain; version=0.0.4") {
		t.Fatalf("%d %s", w.Code, got)
	}
	values := map[string]string{}
	for line := range strings.Lines(w.Body.String()) {
		line = strings.TrimSuffix(line, "\n")
		i := strings.LastIndexByte(line, ' ')
		if values[line[:i]] != "" {
			t.Errorf("%s appears twice", line[:i])
		}
		if !strings.Contains(line, "_bucket{") {
			values[line[:i]] = line[i+1:]
		}
	}
	return values
}

func checkMetrics(t *testing.T, got, want map[string]string) {
	t.Helper()
	for name, value := range want {
		if got["mimik_mit_"+name] != value {
			t.Errorf("%s = %q, want %q", name, got["mimik_mit_"+name], value)
		}
	}
}

func TestMetrics(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newServices(t, nil)
		token := p.token("mds-client", audience)
		for _, id := range []string{"a", "b", "c", "a"} {
			time.Sleep(time.Second)
			p.join(id)
		}
		date := time.Now().UTC().Format(time.RFC3339Nano)
		for _, ref := range []string{"a@1970-01-01T00:00:00Z", "b@" + date, "c"} {
			send(p.registry, http.MethodDelete, serverPath(ref), token, "")
		}
		checkMetrics(t, scrape(t, p.registry, p.tokens), map[string]string{
			`servers{type="mds"}`: "1",
			`expirations_total`:   "0",
		})
		time.Sleep(4 * time.Hour)
		p.registry.ServeHTTP(httptest.NewRecorder(), httptest.NewRequest(http.MethodGet, "/health", nil))
		p.registry.ServeHTTP(httptest.NewRecorder(), httptest.NewRequest(http.MethodPost, "/other", nil))
		p.registry.ServeHTTP(httptest.NewRecorder(), httptest.NewRequest(http.MethodPut, "/itResources", nil))
		for range 2 {
			send(p.tokens, http.MethodPost, "/", "", `{"grant_type":"client_credentials","client_id":"mds-client","client_secret":"hunter2"}`)
		}
		send(p.tokens, http.MethodPost, "/", "", `{`)
		p.tokens.ServeJWKS(httptest.NewRecorder(), httptest.NewRequest(http.MethodGet, "/", nil))
		got := scrape(t, p.registry, p.tokens)
		checkMetrics(t, got, map[string]string{
			`servers{type="mds"}`:                            "0",
			`expirations_total`:                              "1",
			`registrations_total{type="mds",kind="new"}`:     "3",
			`registrations_total{type="mds",kind="renewal"}`: "1",
			`deletes_total{type="mds",cause="client"}`:       "1",
			`deletes_total{type="mds",cause="conditional"}`:  "1",
			`tokens_total{outcome="issued"}`:                 got[`mimik_mit_request_duration_seconds_count{route="token",status="2xx"}`],
			`tokens_total{outcome="invalid_client"}`:         "2",
			`tokens_total{outcome="invalid_request"}`:        "1",
			`tokens_total{outcome="throttled"}`:              "0",

			`request_duration_seconds_count{route="register",status="2xx"}`: "4",
			`request_duration_seconds_count{route="register",status="4xx"}`: "1",
			`request_duration_seconds_count{route="delete",status="2xx"}`:   "3",
			`request_duration_seconds_count{route="health",status="2xx"}`:   "1",
			`request_duration_seconds_count{route="other",status="4xx"}`:    "1",
			`request_duration_seconds_count{route="token",status="4xx"}`:    "3",
			`request_duration_seconds_count{route="jwks",status="4xx"}`:     "1",

			`store_duration_seconds_count{operation="put",outcome="ok"}`:                  "4",
			`store_duration_seconds_count{operation="put",outcome="failed"}`:              "0",
			`store_duration_seconds_count{operation="delete",outcome="ok"}`:               "1",
			`store_duration_seconds_count{operation="delete_if_unmodified",outcome="ok"}`: "2",

			`store_ready`:               "1",
			`responses_in_flight`:       "0",
			`responses_in_flight_bytes`: "0",
			`responses_limit_bytes`:     "6.7108864e+07",
			`address_conflicts_total`:   "0",
		})
		all := fmt.Sprint(got)
		for _, hidden := range []string{secret, key, "hunter2", issuer, "http://10.", "mds-client", token} {
			if strings.Contains(all, hidden) {
				t.Errorf("the metrics contain %q", hidden)
			}
		}
	})
}

// A store that fails counts as failed, but not one whose caller has disconnected.
func TestMetricsOfStore(t *testing.T) {
	open := mit.RegistryConfig{Verify: func(token string) (cluster.Claims, error) { return cluster.Claims{SubType: token}, nil }}
	g, err := mit.NewRegistry(refusingStore{}, open)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	post := func() {
		r := newRegistration("mds", "10.0.0.1", body("mds", "a")).WithContext(ctx)
		g.ServeHTTP(httptest.NewRecorder(), r)
	}
	post()
	cancel()
	post()
	got := scrape(t, g, nil)
	checkMetrics(t, got, map[string]string{
		`store_ready`: "0",
		`store_duration_seconds_count{operation="put",outcome="failed"}`:   "1",
		`store_duration_seconds_count{operation="put",outcome="canceled"}`: "1",
		`request_duration_seconds_count{route="register",status="5xx"}`:    "2",
	})
	if _, known := got["mimik_mit_expirations_total"]; known {
		t.Error("a store that does not count expirations has some")
	}
}

// A refusingStore can be read but not written.
type refusingStore struct{ brokenStore }

func (refusingStore) Ready() error { return errors.New("no space") }

func (refusingStore) List(context.Context) ([]mit.Resource, error) { return nil, errStore }

// Types of service come from tokens. However many there are, the number of series is bounded.
func TestMetricTypesAreBounded(t *testing.T) {
	g := newOpenRegistry(t, mit.RegistryConfig{})
	for i := range 70 {
		typ := fmt.Sprintf("type-%d", i)
		g.ServeHTTP(httptest.NewRecorder(), newRegistration(typ, "10.0.0.1", body(typ, "a")))
	}
	got := scrape(t, g, nil)
	checkMetrics(t, got, map[string]string{
		`servers{type="type-0"}`: "1", `servers{type="other"}`: "20", `servers{type="type-69"}`: "",
		`registrations_total{type="other",kind="new"}`: "20",
	})
	types := 0
	for name := range got {
		if strings.HasPrefix(name, "mimik_mit_servers{") {
			types++
		}
	}
	if types != 51 {
		t.Errorf("%d types, want 50 and one for the others", types)
	}
}

func TestMetricsOfResponsesInFlight(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newOpenRegistry(t, mit.RegistryConfig{})
		release := make(chan struct{})
		for range 3 {
			go g.ServeHTTP(stuckWriter{httptest.NewRecorder(), release}, newRegistration("mds", "10.0.0.1", body("mds", "a")))
		}
		synctest.Wait()
		got := scrape(t, g, nil)
		if n := got["mimik_mit_responses_in_flight_bytes"]; n == "0" || n == "" {
			t.Errorf("%q bytes in flight", n)
		}
		checkMetrics(t, got, map[string]string{"responses_in_flight": "3", `servers{type="mds"}`: "1"})
		close(release)
		synctest.Wait()
		checkMetrics(t, scrape(t, g, nil), map[string]string{"responses_in_flight": "0", "responses_in_flight_bytes": "0"})
	})
}

func TestMetricsMethods(t *testing.T) {
	for method, want := range map[string]int{http.MethodGet: 200, http.MethodHead: 200, http.MethodPost: 405} {
		w := httptest.NewRecorder()
		mit.MetricsHandler(nil, nil).ServeHTTP(w, httptest.NewRequest(method, "/metrics", nil))
		if w.Code != want {
			t.Errorf("%s: %d, want %d", method, w.Code, want)
		}
	}
}

// The server closes the connection after a body that is too long, instead of reading all of it.
func TestLongBodyClosesConnection(t *testing.T) {
	srv := httptest.NewServer(newOpenRegistry(t, mit.RegistryConfig{}))
	defer srv.Close()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, srv.URL+"/itResources", strings.NewReader(strings.Repeat("x", 70<<10)))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer mds")
	resp, err := srv.Client().Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusRequestEntityTooLarge || !resp.Close {
		t.Errorf("%d, closed: %v", resp.StatusCode, resp.Close)
	}
}
