package mit

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/mimiktech/cluster"
	"github.com/mimiktech/cluster/internal/exposition"
	"github.com/mimiktech/cluster/internal/httpjson"
)

// MetricsHandler responds to a GET with the figures of a registry and of a token service since they
// were created, in the text format of Prometheus. Either may be nil. docs/registry.md lists the
// metrics.
//
// The response has no secret, no id and no address. The values of labels are closed sets, except
// for the types of service: the first 50 types have series of their own, and all further types
// share the series of the type "other". MetricsHandler asks callers for no token: put it behind a
// check of your own if types and counts must not be public.
func MetricsHandler(g *Registry, s *TokenService) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		r = httpjson.Correlate(w, r)
		if r.Method != http.MethodGet && r.Method != http.MethodHead {
			w.Header().Set("Allow", "GET, HEAD")
			httpjson.WriteError(w, http.StatusMethodNotAllowed, "only GET and HEAD are served here")
			return
		}
		var families []*exposition.Family
		if g != nil {
			families = append(families, g.families(r.Context())...)
		}
		if s != nil {
			families = append(families, s.metrics.requests, s.metrics.tokens)
		}
		var b bytes.Buffer
		exposition.Write(&b, families...)
		w.Header().Set("Content-Type", exposition.ContentType)
		w.Header().Set("Cache-Control", "no-store")
		_, _ = w.Write(b.Bytes()) // fails if the caller has disconnected
	})
}

const (
	// maxMetricTypes bounds the types of service with series of their own.
	maxMetricTypes = 50
	otherType      = "other"

	// countInterval is the time for which the numbers of servers are reused, because the callers of
	// the endpoint need no token.
	countInterval = time.Second
)

// registryMetrics are the figures that a registry counts. The others are read from its parts.
type registryMetrics struct {
	requests, store        *exposition.Family
	registrations, deletes *exposition.Family

	mu      sync.Mutex        // guards the fields below
	types   map[string]string // labels by type: copies, which keep no memory of a request
	servers *exposition.Family
	counted time.Time // when servers was set
}

func newRegistryMetrics() *registryMetrics {
	m := &registryMetrics{
		requests: newRequestMetric(),
		store: exposition.NewHistogram("mimik_mit_store_duration_seconds", "Duration of the calls of the store.",
			durationBounds(), "operation", "outcome"),
		registrations: exposition.NewCounter("mimik_mit_registrations_total", "Registrations, by kind: new servers and renewals.", "type", "kind"),
		deletes:       exposition.NewCounter("mimik_mit_deletes_total", "Deletes that callers requested, by cause.", "type", "cause"),
		types:         map[string]string{},
	}
	for _, operation := range []string{opPut, opGet, opDelete, opDeleteIf} {
		for _, outcome := range []string{outcomeOK, outcomeFailed, outcomeCanceled} {
			m.store.Add(0, operation, outcome)
		}
	}
	return m
}

func newRequestMetric() *exposition.Family {
	return exposition.NewHistogram("mimik_mit_request_duration_seconds",
		"Duration of requests until the response was sent, by route and class of the status.", durationBounds(), "route", "status")
}

func durationBounds() []float64 {
	return []float64{.0001, .0005, .001, .005, .01, .05, .1, .5, 1, 5, 10}
}

// typeLocked returns the value of the label for a type of service.
func (m *registryMetrics) typeLocked(typ string) string {
	label, known := m.types[typ]
	switch {
	case known:
		return label
	case len(m.types) >= maxMetricTypes:
		return otherType
	}
	label = strings.Clone(typ)
	m.types[label] = label
	return label
}

func (m *registryMetrics) typeLabel(typ string) string {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.typeLocked(typ)
}

func (m *registryMetrics) registered(typ string, added bool) {
	kind := "renewal"
	if added {
		kind = "new"
	}
	m.registrations.Add(1, m.typeLabel(typ), kind)
}

// deleted counts a request that has deleted a server, or has found none.
func (m *registryMetrics) deleted(typ, cause string) { m.deletes.Add(1, m.typeLabel(typ), cause) }

// serverCounts returns the numbers of servers by type; none if the store cannot list them.
func (m *registryMetrics) serverCounts(ctx context.Context, store Store) *exposition.Family {
	m.mu.Lock()
	defer m.mu.Unlock()
	if now := time.Now(); m.servers == nil || now.Sub(m.counted) >= countInterval {
		f := exposition.NewGauge("mimik_mit_servers", "Registered servers.", "type")
		list, _ := store.List(ctx) // its failure shows in the figures of the store
		for _, res := range list {
			f.Add(float64(len(res.Servers)), m.typeLocked(res.Type))
		}
		m.servers, m.counted = f, now
	}
	return m.servers
}

// families returns all metrics of the registry.
func (g *Registry) families(ctx context.Context) []*exposition.Family {
	responses, size, limit := g.admission.load()
	ready := 1.0
	if g.store.Ready() != nil {
		ready = 0
	}
	m := g.metrics
	families := []*exposition.Family{
		m.requests, m.store, m.registrations, m.deletes, m.serverCounts(ctx, g.store),
		single(exposition.NewGauge("mimik_mit_store_ready", "1 while the store can be read and written, otherwise 0."), ready),
		single(exposition.NewGauge("mimik_mit_responses_in_flight", "Lists that are being encoded or sent."), float64(responses)),
		single(exposition.NewGauge("mimik_mit_responses_in_flight_bytes", "Bytes of the lists that are being encoded or sent."), float64(size)),
		single(exposition.NewGauge("mimik_mit_responses_limit_bytes", "Bound of the bytes of lists in flight."), float64(limit)),
		single(exposition.NewCounter("mimik_mit_address_conflicts_total",
			"Changes of a server's address back to an earlier one: two processes have one server id."), float64(g.AddressConflicts())),
	}
	if s, ok := g.store.Store.(interface{ Expirations() uint64 }); ok {
		families = append(families, single(exposition.NewCounter("mimik_mit_expirations_total",
			"Servers that expired, as seen by this process."), float64(s.Expirations())))
	}
	return families
}

func single(f *exposition.Family, value float64) *exposition.Family {
	f.Add(value)
	return f
}

// tokenMetrics are the figures of a token service.
type tokenMetrics struct{ requests, tokens *exposition.Family }

func newTokenMetrics() tokenMetrics {
	m := tokenMetrics{
		requests: newRequestMetric(),
		tokens:   exposition.NewCounter("mimik_mit_tokens_total", "Requests for tokens, by outcome.", "outcome"),
	}
	for _, outcome := range []string{
		tokenIssued, tokenThrottled, outcomeFailed, "invalid_client", "invalid_grant", "invalid_request", "invalid_target", "unsupported_grant_type",
	} {
		m.tokens.Add(0, outcome)
	}
	return m
}

const (
	tokenIssued    = "issued"
	tokenThrottled = "throttled"
)

// tokenOutcome returns the outcome of a request that was answered with an error.
func tokenOutcome(err *apiError) string {
	switch {
	case err.status == http.StatusTooManyRequests:
		return tokenThrottled
	case err.status >= http.StatusInternalServerError:
		return outcomeFailed
	case err.oauthCode == "":
		return "invalid_request"
	}
	return err.oauthCode
}

// measure records the duration of a request and the class of its status. serve returns the route.
func measure(f *exposition.Family, w http.ResponseWriter, serve func(http.ResponseWriter) (route string)) {
	start := time.Now()
	recorder := &statusRecorder{ResponseWriter: w, status: http.StatusOK}
	route := serve(recorder)
	f.Observe(time.Since(start).Seconds(), route, strconv.Itoa(recorder.status/100)+"xx")
}

// route returns the name of a route by its pattern.
func route(pattern string) string {
	for suffix, name := range map[string]string{
		"/itResources": "register", "/itResources/{id}": "get", "/servers/{server}": "delete", "/health": "health", "/openapi.yaml": "openapi",
	} {
		if strings.HasSuffix(pattern, suffix) {
			return name
		}
	}
	return "other"
}

// A statusRecorder remembers the status of a response.
type statusRecorder struct {
	http.ResponseWriter
	status int
}

// WriteHeader implements http.ResponseWriter.
func (w *statusRecorder) WriteHeader(status int) {
	w.status = status
	w.ResponseWriter.WriteHeader(status)
}

// Unwrap is for http.ResponseController.
func (w *statusRecorder) Unwrap() http.ResponseWriter { return w.ResponseWriter }

const (
	opPut      = "put"
	opGet      = "get"
	opDelete   = "delete"
	opDeleteIf = "delete_if_unmodified"

	outcomeOK       = "ok"
	outcomeFailed   = "failed"
	outcomeCanceled = "canceled"
)

// A measuredStore records the durations of the calls of a store.
type measuredStore struct {
	Store

	durations *exposition.Family
}

// Ready returns why the store is not ready; nil if it is, or has no such method.
func (s measuredStore) Ready() error {
	if r, ok := s.Store.(interface{ Ready() error }); ok {
		return r.Ready()
	}
	return nil
}

// String describes the store.
func (s measuredStore) String() string {
	if named, ok := s.Store.(fmt.Stringer); ok {
		return named.String()
	}
	return fmt.Sprintf("%T", s.Store)
}

// Put implements Store.
func (s measuredStore) Put(ctx context.Context, reg Registration, ttl time.Duration) (res Resource, err error) {
	defer s.record(ctx, opPut, time.Now(), &err)
	return s.Store.Put(ctx, reg, ttl)
}

// Get implements Store.
func (s measuredStore) Get(ctx context.Context, id string) (res Resource, err error) {
	defer s.record(ctx, opGet, time.Now(), &err)
	return s.Store.Get(ctx, id)
}

// Delete implements Store.
func (s measuredStore) Delete(ctx context.Context, id, serverID string) (err error) {
	defer s.record(ctx, opDelete, time.Now(), &err)
	return s.Store.Delete(ctx, id, serverID)
}

// DeleteIfUnmodifiedSince implements Store.
func (s measuredStore) DeleteIfUnmodifiedSince(ctx context.Context, id, serverID string, date time.Time) (newer *cluster.Server, err error) {
	defer s.record(ctx, opDeleteIf, time.Now(), &err)
	return s.Store.DeleteIfUnmodifiedSince(ctx, id, serverID, date)
}

// record records a call. A caller that has disconnected is no failure of the store.
func (s measuredStore) record(ctx context.Context, operation string, start time.Time, err *error) {
	outcome := outcomeOK
	switch {
	case *err == nil || errors.Is(*err, ErrNotFound):
	case ctx.Err() != nil:
		outcome = outcomeCanceled
	default:
		outcome = outcomeFailed
	}
	s.durations.Observe(time.Since(start).Seconds(), operation, outcome)
}
