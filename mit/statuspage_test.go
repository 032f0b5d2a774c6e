package mit_test

import (
	"context"
	"fmt"
	"html"
	"net/http"
	"net/http/httptest"
	"net/url"
	"regexp"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"

	"github.com/mimiktech/cluster"
	"github.com/mimiktech/cluster/mit"
)

func allow(h http.Handler) http.Handler { return h }

// request sends a request to a status page, which is not a part of the API.
func request(h http.Handler, method, target string, form url.Values) *httptest.ResponseRecorder {
	r := httptest.NewRequest(method, target, strings.NewReader(form.Encode()))
	r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	return w
}

var (
	styles = regexp.MustCompile(`(?s)<style>.*?</style>`)
	tags   = regexp.MustCompile(`<[^>]*>`)
	spaces = regexp.MustCompile(`\s+`)
)

// pageText returns what a reader sees on a page.
func pageText(t *testing.T, h http.Handler, target string) string {
	t.Helper()
	w := request(h, "GET", target, nil)
	if w.Code != http.StatusOK {
		t.Fatalf("%d %s", w.Code, w.Body)
	}
	return spaces.ReplaceAllString(html.UnescapeString(tags.ReplaceAllString(styles.ReplaceAllString(w.Body.String(), ""), " ")), " ")
}

func checkText(t *testing.T, text string, parts ...string) {
	t.Helper()
	for _, part := range parts {
		if !strings.Contains(text, part) {
			t.Errorf("the page does not say %q:\n%s", part, text)
		}
	}
}

func TestStatusPage(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newServices(t, func(cfg *mit.RegistryConfig) { cfg.MaxServers, cfg.Lease = 3, time.Hour })
		page := p.registry.StatusHandler(cluster.StatusOptions{})
		checkText(t, pageText(t, page, "/"), "0 servers of 0 types", "No problem found", "in the memory of this process")
		for _, id := range []string{"a", "b", "c"} {
			p.join(id)
		}
		checkText(t, pageText(t, page, "/"), "3 servers of 1 types", "mds (3 of at most 3 servers)", "The cluster mds is full")

		send(p.registry, "POST", "/itResources", p.token("mds-client", audience), body("mds", "d"))
		send(p.registry, "POST", "/itResources", p.token("mds-client", "https://other.test"), body("mds", "e"))
		checkText(t, pageText(t, page, "/"), "d was rejected, because the cluster is full", "A request from 192.0.2.1 was rejected (wrong audience)",
			"MIT_AUDIENCE of that node", "Rejected requests (2)")

		send(p.registry, "DELETE", serverPath("a"), p.token("mds-client", audience), "")
		time.Sleep(70 * time.Minute)
		p.join("b")
		checkText(t, pageText(t, page, "/"), "c of mds has not renewed for 1 h 10 min, which is longer than its lease", "It is removed in 20 min",
			"deleted by 192.0.2.1, which could not reach it, or reported its departure")
		time.Sleep(30 * time.Minute)
		checkText(t, pageText(t, page, "/"), "Servers that left (2)", "expired: it has not renewed since 2000-01-01 00:00:00 UTC", "1 servers of 1 types")
	})
}

// The history of a replica has no servers that renew at another one. So they take no room from
// those that are gone.
func TestStatusPageOfOneReplica(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var cfg mit.RegistryConfig
		p := newServices(t, func(c *mit.RegistryConfig) {
			c.Lease = time.Hour
			cfg = *c
		})
		page := p.registry.StatusHandler(cluster.StatusOptions{})
		other, err := mit.NewRegistry(p.store, cfg)
		if err != nil {
			t.Fatal(err)
		}
		token := p.token("mds-client", audience)
		moving := func(register func(id string)) {
			for i := range 150 {
				register(fmt.Sprint("moving-", i))
			}
		}
		moving(func(id string) { p.join(id) })
		p.join("dead")
		for _, id := range []string{"deleted", "back"} {
			p.join(id)
			send(p.registry, "DELETE", serverPath(id), token, "")
		}
		p.join("back")
		for range 3 {
			time.Sleep(time.Hour)
			moving(func(id string) { send(other, "POST", "/itResources", token, body("mds", id)) })
			p.join("back") // records servers that have expired
		}
		checkText(t, pageText(t, page, "/"), "151 servers of 1 types", "Servers that left (3)", "dead", "deleted", "back")
	})
}

// A listingStore calls a function after it has read a list.
type listingStore struct {
	*mit.Memory
	listed func()
}

func (s *listingStore) List(ctx context.Context) ([]mit.Resource, error) {
	list, err := s.Memory.List(ctx)
	s.listed()
	return list, err
}

// A server that is deleted after the list was read, and before the list is compared with the
// history, is in the history once.
func TestStatusPageDuringDelete(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := &listingStore{mit.NewMemory(), func() {}}
		p := newServices(t, nil)
		registry, err := mit.NewRegistry(store, mit.RegistryConfig{Issuer: issuer, Audience: audience, Keys: []string{key}})
		if err != nil {
			t.Fatal(err)
		}
		page := registry.StatusHandler(cluster.StatusOptions{})
		token := p.token("mds-client", audience)
		join := func(id string) { send(registry, "POST", "/itResources", token, body("mds", id)) }
		join("a")
		store.listed = sync.OnceFunc(func() { send(registry, "DELETE", serverPath("a"), token, "") })
		pageText(t, page, "/")
		time.Sleep(2 * time.Minute)
		join("b")
		checkText(t, pageText(t, page, "/"), "1 servers of 1 types", "Servers that left (1)", "deleted by 192.0.2.1")
	})
}

// The page states what a delete does, deletes the entry that it has shown, and logs it.
func TestStatusPageDeletes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		core, logs := observer.New(zap.InfoLevel)
		p := newServices(t, func(cfg *mit.RegistryConfig) { cfg.Lease, cfg.Logger = time.Hour, zap.New(core) })
		page := p.registry.StatusHandler(cluster.StatusOptions{Actions: true, Auth: allow})
		p.join("a")
		time.Sleep(3 * time.Second)
		confirm := request(page, "GET", "/?type=mds&delete=a", nil).Body.String()
		checkText(t, confirm, "It renewed 3 s ago, within its lease: it is likely running, and will be back with its next renewal", `<form method="post"`)
		if strings.Contains(confirm, `http-equiv="refresh"`) {
			t.Error("the page loads itself again during the confirmation")
		}
		form := func() url.Values {
			html := request(page, "GET", "/?type=mds&delete=a", nil).Body.String()
			values := url.Values{}
			for _, field := range regexp.MustCompile(`name="(\w+)" value="([^"]*)"`).FindAllStringSubmatch(html, -1) {
				values.Set(field[1], field[2])
			}
			return values
		}
		shown := form()
		p.join("a") // renews
		if w := request(page, "POST", "/", shown); w.Code != http.StatusSeeOther || w.Header().Get("Location") != "?result=renewed" {
			t.Errorf("%d %v", w.Code, w.Header())
		}
		if got := p.servers(); len(got) != 1 {
			t.Errorf("servers %v, want the one that has renewed", got)
		}
		checkText(t, pageText(t, page, "/?result=renewed"), "The server was not deleted, because it has renewed since.")
		if w := request(page, "POST", "/", form()); w.Code != http.StatusSeeOther || w.Header().Get("Location") != "?result=deleted" {
			t.Errorf("%d %v", w.Code, w.Header())
		}
		if got := p.servers(); len(got) != 0 {
			t.Errorf("servers %v, want none", got)
		}
		checkText(t, pageText(t, page, "/?result=deleted"), "The server was deleted.", "deleted on the status page")
		lines := logs.FilterMessage("server deleted").All()
		if len(lines) != 1 || lines[0].ContextMap()["serverId"] != "a" || lines[0].ContextMap()["statusPage"] != true {
			t.Errorf("logged %v", lines)
		}
	})
}

func TestStatusPageIsReadOnlyByDefault(t *testing.T) {
	p := newServices(t, nil)
	p.join("a")
	form := url.Values{"type": {"mds"}, "id": {"a"}, "updatedAt": {"2999-01-01T00:00:00Z"}}
	for _, o := range []cluster.StatusOptions{{}, {Actions: true}, {Auth: allow}} {
		page := p.registry.StatusHandler(o)
		if w := request(page, "POST", "/", form); w.Code != http.StatusMethodNotAllowed {
			t.Errorf("%+v: %d", o, w.Code)
		}
		if w := request(page, "GET", "/?type=mds&delete=a", nil); strings.Contains(w.Body.String(), "<form") {
			t.Errorf("%+v: a form", o)
		}
	}
	page := p.registry.StatusHandler(cluster.StatusOptions{Actions: true, Auth: allow})
	r := httptest.NewRequest("POST", "/", strings.NewReader(form.Encode()))
	r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	r.Header.Set("Origin", "https://evil.test")
	w := httptest.NewRecorder()
	page.ServeHTTP(w, r)
	if w.Code != http.StatusForbidden {
		t.Errorf("from another site: %d", w.Code)
	}
	for _, bad := range []url.Values{{}, {"type": {"mds"}, "id": {"a"}}, {"type": {"mds"}, "id": {"a"}, "updatedAt": {"yesterday"}}} {
		if w := request(page, "POST", "/", bad); w.Code != http.StatusBadRequest {
			t.Errorf("%v: %d", bad, w.Code)
		}
	}
	if got := p.servers(); len(got) != 1 {
		t.Errorf("servers %v, want one", got)
	}
}

// A store that fails is shown, without the error of the store, which may name its addresses.
func TestStatusPageOfBrokenStore(t *testing.T) {
	g, err := mit.NewRegistry(brokenStore{}, mit.RegistryConfig{Issuer: issuer, Audience: audience, Keys: []string{key}})
	if err != nil {
		t.Fatal(err)
	}
	text := pageText(t, g.StatusHandler(cluster.StatusOptions{}), "/")
	checkText(t, text, "store failed", "The store has a problem", "the list of servers could not be read")
}

// The history of a registry is bounded, whatever its callers send.
func TestStatusHistoryIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newServices(t, func(cfg *mit.RegistryConfig) { cfg.Lease = time.Minute })
		page := p.registry.StatusHandler(cluster.StatusOptions{})
		token := p.token("mds-client", audience)
		for i := range 300 {
			id := fmt.Sprintf("s%d", i)
			p.join(id)
			send(p.registry, "DELETE", serverPath(id), token, "")
			send(p.registry, "POST", "/itResources", token, body("mfs", id))
		}
		text := pageText(t, page, "/")
		checkText(t, text, "Servers that left (100)", "Rejected requests (100)", "s299", "its token is of type")
		if strings.Contains(text, "s199 ") {
			t.Error("the page has old changes")
		}
	})
}

func (brokenStore) List(context.Context) ([]mit.Resource, error) { return nil, errStore }
