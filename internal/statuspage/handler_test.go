package statuspage_test

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/mimiktech/cluster"
	"github.com/mimiktech/cluster/clustertest"
	"github.com/mimiktech/cluster/internal/statuspage"
)

func TestFormats(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSite(t)
		s.join()
		for _, c := range []struct {
			query, accept string
			json          bool
		}{
			{"", "", false},
			{"", "*/*", false},
			{"", "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8", false},
			{"", "application/json", true},
			{"", "text/html;q=0.5, application/json", true},
			{"", "application/json;q=0.5, text/html", false},
			{"", "application/json;q=none", false},
			{"?format=json", "text/html", true},
			{"?format=html", "application/json", false},
		} {
			got := s.request(0, "GET", "/status"+c.query, "Accept", c.accept)
			want := "text/html; charset=utf-8"
			if c.json {
				want = "application/json"
			}
			if got.Header().Get("Content-Type") != want || json.Valid(got.Body.Bytes()) != c.json {
				t.Errorf("%q, Accept %q: %s", c.query, c.accept, got.Header().Get("Content-Type"))
			}
			if got.Header().Get("Cache-Control") != "no-store" || got.Header().Get("X-Content-Type-Options") != "nosniff" {
				t.Errorf("headers %v", got.Header())
			}
		}
	})
}

func TestRefreshCanBeSwitchedOff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSite(t)
		s.join()
		const refresh = `<meta http-equiv="refresh" content="10">`
		if body := s.request(0, "GET", "/status").Body.String(); !strings.Contains(body, refresh) || strings.Contains(body, "<script") {
			t.Errorf("got %s", body)
		}
		if body := s.request(0, "GET", "/status?refresh=off").Body.String(); strings.Contains(body, refresh) {
			t.Errorf("got %s", body)
		}
	})
}

// The check needs both Actions and Auth, and a request from a page of the same site.
func TestCheckIsOffByDefault(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSite(t)
		n := s.join()
		s.join()
		requests := 0
		stop := s.Network.Observe(func(clustertest.Exchange) { requests++ })
		defer stop()
		allow := func(h http.Handler) http.Handler { return h }
		for _, c := range []struct {
			options cluster.StatusOptions
			origin  string
			code    int
		}{
			{cluster.StatusOptions{}, "", http.StatusMethodNotAllowed},
			{cluster.StatusOptions{Actions: true}, "", http.StatusMethodNotAllowed},
			{cluster.StatusOptions{Auth: allow}, "", http.StatusMethodNotAllowed},
			{cluster.StatusOptions{Actions: true, Auth: n.Authenticate}, "", http.StatusUnauthorized},
			{cluster.StatusOptions{Actions: true, Auth: allow}, "https://evil.test", http.StatusForbidden},
		} {
			w, r := httptest.NewRecorder(), httptest.NewRequest("POST", "/status", nil)
			if c.origin != "" {
				r.Header.Set("Origin", c.origin)
			}
			n.StatusHandler(c.options).ServeHTTP(w, r)
			if w.Code != c.code {
				t.Errorf("%+v: status %d, want %d", c.options, w.Code, c.code)
			}
		}
		synctest.Wait()
		if requests != 0 {
			t.Errorf("%d requests were sent", requests)
		}
		w := httptest.NewRecorder()
		n.StatusHandler(cluster.StatusOptions{Auth: n.Authenticate}).ServeHTTP(w, httptest.NewRequest("GET", "/status", nil))
		if w.Code != http.StatusUnauthorized || strings.Contains(w.Body.String(), "node-2") {
			t.Errorf("without a token: %d %s", w.Code, w.Body)
		}
	})
}

// Peers put secrets of this node and HTML into their responses. The page shows neither.
func TestPageShowsNoSecret(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSite(t)
		for range 3 {
			s.join()
		}
		var sent string
		s.Network.Fault(s.Nodes[0].Host, s.Nodes[1].Host, clustertest.Answer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			sent = strings.TrimPrefix(r.Header.Get("Authorization"), "Bearer ")
			w.Header().Set("Content-Type", "application/json")
			w.WriteHeader(http.StatusTeapot)
			fmt.Fprintf(w, `{"statusCode":418,"message":"<script>alert(1)</script> %s secret of mds"}`, sent)
		})))
		s.calls(0)
		s.request(0, "POST", "/status")
		if sent == "" {
			t.Fatal("no request")
		}
		for _, query := range []string{"", "?format=json"} {
			body := s.request(0, "GET", "/status"+query).Body.String()
			if !strings.Contains(body, "418") || !strings.Contains(body, "[redacted]") {
				t.Errorf("the page does not show the error: %s", body)
			}
			for _, secret := range []string{sent, "secret of mds", "a key for tests only", "<script"} {
				if strings.Contains(body, secret) {
					t.Errorf("the page %q has %q", query, secret)
				}
			}
		}
	})
}

// A node whose registry fails for long, and which is called with bad tokens, keeps 200 events.
func TestEventsAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := statuspage.NewRecorder(func(id string) bool { return id == "known" })
		for i := range 1000 {
			r.Add(statuspage.Event{At: time.Now(), Kind: statuspage.Joined, ServerID: fmt.Sprint(i)})
			r.Add(statuspage.Event{At: time.Now(), Kind: statuspage.Rejected, Cause: "no_token", Text: fmt.Sprint(i)})
			r.Outcome(fmt.Sprint(i), false, statuspage.Result{Kind: "ok"})
			r.Accepted(fmt.Sprint(i%5000), time.Now())
		}
		var page statuspage.Page
		r.Fill(&page, func(string) string { return "" })
		if len(page.Events) != statuspage.MaxEvents {
			t.Errorf("%d events", len(page.Events))
		}
		if e := page.Events[0]; e.Kind != statuspage.Rejected || e.Count != 1000 || e.Text != "999" {
			t.Errorf("the last event is %+v, want the rejection, 1000 times", e)
		}
		if n := r.Peers(); n > 64 {
			t.Errorf("%d peers are kept, none of which is in the view", n)
		}
	})
}

// Of a large cluster, the page shows the servers with problems.
func TestLargeClusters(t *testing.T) {
	var page statuspage.Page
	for i := range 2000 {
		page.Peers = append(page.Peers, statuspage.Peer{ID: fmt.Sprintf("server-%04d", i)})
	}
	page.Peers[1500].Last = &statuspage.Result{Kind: "refused"}
	page.Diagnose()
	w := httptest.NewRecorder()
	statuspage.Write(w, httptest.NewRequest("GET", "/status", nil), statuspage.NodePage, page)
	body := w.Body.String()
	if rows := strings.Count(body, `<th scope="row">`); rows != 500 || !strings.Contains(body, `<th scope="row">server-1500</th>`) {
		t.Errorf("%d rows, want 500 with the server that has a problem", rows)
	}
}

// Each kind of failure has a diagnosis. Only a malformed or too large response is called unusable.
func TestKindsOfFailures(t *testing.T) {
	const unusable = "does not give a usable response"
	for kind, want := range map[cluster.Kind]bool{
		cluster.KindRefused: false, cluster.KindConnectionLost: false, cluster.KindTimeout: false, cluster.KindTLS: false,
		cluster.KindLocal: false, cluster.KindStatus: false, cluster.KindWrongServer: false, cluster.KindMalformed: true,
		cluster.KindTooLarge: true, cluster.KindCircuitOpen: false, cluster.KindNotAllowed: false,
		cluster.KindNotConfirmed: false, cluster.KindNoToken: false,
	} {
		result := statuspage.Result{Kind: string(kind)}
		if kind == cluster.KindStatus {
			result.StatusCode = http.StatusInternalServerError
		}
		page := statuspage.Page{Peers: []statuspage.Peer{{ID: "node-2", Last: &result}}}
		page.Diagnose()
		if problem := page.Peers[0].Problem; problem == "" || (problem == unusable) != want {
			t.Errorf("%s: %q", kind, problem)
		}
	}
}

func TestDurations(t *testing.T) {
	for d, want := range map[time.Duration]string{
		0: "0 µs", 1500 * time.Microsecond: "1 ms", 999 * time.Millisecond: "999 ms", 59 * time.Second: "59 s", time.Minute: "1 min",
		61 * time.Second: "1 min 1 s", 65 * time.Minute: "1 h 5 min", 49 * time.Hour: "2 d 1 h", -time.Second: "-1 s",
	} {
		if got := statuspage.Duration(d).String(); got != want {
			t.Errorf("%v: %q, want %q", d, got, want)
		}
	}
}
