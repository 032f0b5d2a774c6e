// Package mit is the other side of a cluster: the registry that its servers register with
// (mIT) and the token service that lets them in (mST), for those who have no mimik back end,
// and for tests.
//
// [Registry] and [TokenService] are [http.Handler] values, to be mounted wherever the nodes are
// told to look; nodes of this module and npm nodes use them alike. A [Store] keeps the
// servers: [Memory] in this process, or one that several registries share.
//
//	tokens, err := mit.NewTokenService(mit.TokenConfig{
//		Issuer:  "http://127.0.0.1:4000/oauth/token",
//		Key:     key,
//		Clients: []mit.Client{{ID: "mds", Secret: secret, Type: "mds"}},
//	})
//	registry, err := mit.NewRegistry(mit.NewMemory(), mit.RegistryConfig{
//		Issuer:   "http://127.0.0.1:4000/oauth/token",
//		Audience: "mIT",
//		Keys:     []string{key},
//		BasePath: "/mIT/v1",
//	})
//	mux.Handle("/oauth/token", tokens)
//	mux.Handle("/mIT/v1/", registry)
//
// Package command has both as a program.
package mit

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"net/http"
	"net/url"
	"path"
	"slices"
	"strings"
	"sync"
	"time"

	"go.uber.org/zap"

	"github.com/mimiktech/cluster"
	"github.com/mimiktech/cluster/internal/token"
	"github.com/mimiktech/cluster/internal/wire"
)

// NoLease, as a lease, makes a registry name none in its answers. Nodes then assume the
// default, and so does the registry.
const NoLease time.Duration = -1

const (
	defaultLease = 2 * time.Hour

	// maxLease is the longest time that the timer of an npm node can wait for. A longer one
	// rings at once, so the node would renew without a pause.
	maxLease = math.MaxInt32 * time.Millisecond

	maxBody     = 1 << 20
	maxName     = 256 // of types and server ids
	maxURL      = 2048
	maxLocation = 4096
)

// RegistryConfig says how a [Registry] behaves. Issuer, Audience and Keys are mandatory,
// unless Verify is set; the zero value of any other field is its default.
type RegistryConfig struct {
	// Lease is the time that nodes are told to renew within; 2 hours by default, [NoLease]
	// to tell them none, at most about 24 days.
	Lease time.Duration
	// Grace is how long beyond its lease a silent server is kept; half the lease by default.
	// The nodes take the lease as the time between two renewals, so some is needed.
	Grace time.Duration
	// MaxServers bounds the servers of one resource; 10,000 by default. One more is
	// answered 409; those that are in may renew.
	MaxServers int

	// BasePath is the path that the endpoints are under, such as /mIT/v1; none by default.
	BasePath string

	// Issuer and Audience are what a token must name as its iss and aud, Keys are those it
	// may be signed with (HS256).
	Issuer, Audience string
	Keys             []string
	// Verify, if set, checks tokens instead, and returns the type that a good one was given
	// to. It may be called from any goroutine. Its error goes to the log, not to the caller,
	// and must not quote the token.
	Verify func(token string) (typ string, err error)
	// InvalidTokenStatus answers a token that is not, or no longer, good; 401 by default. npm
	// nodes keep a token until it nears its end unless they are answered 403: choose that
	// for a registry whose keys change while they run. A request without any token is
	// answered 401 whatever this says.
	InvalidTokenStatus int

	// Logger gets a line for every registration and delete; nothing is logged by default.
	Logger *zap.Logger
}

func (c RegistryConfig) maxServers() int { return cmp.Or(c.MaxServers, 10_000) }
func (c RegistryConfig) badTokenStatus() int {
	return cmp.Or(c.InvalidTokenStatus, http.StatusUnauthorized)
}

func (c RegistryConfig) grace(lease time.Duration) time.Duration {
	return cmp.Or(c.Grace, lease/2)
}

// A Registry is an mIT: it serves
//
//	POST   {BasePath}/itResources
//	GET    {BasePath}/itResources/{id}
//	DELETE {BasePath}/itResources/{id}/servers/{serverId}
//	DELETE {BasePath}/itResources/{id}/servers/{serverId}@{date}
//
// to callers with a bearer token of the type they speak for, and
//
//	GET    {BasePath}/health
//
// to everybody: 200 while it can do all of that, 503 with the reason while its [Store] says that
// it cannot, for a load balancer to choose another. Its methods may be called from any goroutine.
// It starts none, and needs no closing.
type Registry struct {
	cfg   RegistryConfig
	store Store
	log   *zap.Logger
	mux   *http.ServeMux

	answers answers

	mu     sync.Mutex // guards the fields below
	lease  time.Duration
	verify func(token string) (typ string, err error)
}

// NewRegistry returns a registry over store, or one error that names all that is wrong with
// cfg.
func NewRegistry(store Store, cfg RegistryConfig) (*Registry, error) {
	var errs []error
	if store == nil {
		errs = append(errs, errors.New("missing store"))
	}
	if cfg.Verify == nil {
		errs = append(errs, missing("Issuer", cfg.Issuer), missing("Audience", cfg.Audience), checkKeys(cfg.Keys))
	}
	if cfg.Lease < 0 && cfg.Lease != NoLease || cfg.Lease > maxLease {
		errs = append(errs, fmt.Errorf("invalid Lease %v: not between 0 and %v", cfg.Lease, maxLease))
	}
	if cfg.Grace < 0 || cfg.Grace > maxLease {
		errs = append(errs, fmt.Errorf("invalid Grace %v: not between 0 and %v", cfg.Grace, maxLease))
	}
	if cfg.MaxServers < 0 {
		errs = append(errs, fmt.Errorf("invalid MaxServers %d: negative", cfg.MaxServers))
	}
	if s := cfg.badTokenStatus(); s != http.StatusUnauthorized && s != http.StatusForbidden {
		errs = append(errs, fmt.Errorf("invalid InvalidTokenStatus %d: neither 401 nor 403", s))
	}
	base := cfg.BasePath
	if base != "" && (base != path.Clean(base) || base[0] != '/' || strings.ContainsAny(base, "{} ")) {
		errs = append(errs, fmt.Errorf("invalid BasePath %q: not a clean absolute path", base))
	}
	if err := errors.Join(errs...); err != nil {
		return nil, fmt.Errorf("mit: registry: %w", err)
	}

	g := &Registry{cfg: cfg, store: store, log: orNop(cfg.Logger), mux: http.NewServeMux(), verify: cfg.Verify}
	g.SetLease(cfg.Lease)
	if g.verify == nil {
		g.SetKeys(cfg.Keys...)
	}
	base = strings.TrimSuffix(base, "/")
	g.handle(base+"/itResources", http.MethodPost, g.register)
	g.handle(base+"/itResources/{id}", http.MethodGet, g.get)
	g.handle(base+"/itResources/{id}/servers/{server}", http.MethodDelete, g.delete)
	g.mux.HandleFunc("GET "+base+"/health", func(w http.ResponseWriter, _ *http.Request) { g.health(w) })
	g.methodNotAllowed(base+"/health", http.MethodGet)
	g.mux.HandleFunc("/", func(w http.ResponseWriter, _ *http.Request) { notFound(w) })
	return g, nil
}

// SetLease changes the lease, as [RegistryConfig] has it: 0 is the default, [NoLease] names
// none, and what is too long for a node is cut. A node hears of it when it next renews, and
// keeps until then the time it was given.
func (g *Registry) SetLease(lease time.Duration) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.lease = min(lease, maxLease)
}

// SetKeys replaces the keys that tokens may be signed with, and [RegistryConfig.Verify] with
// the check by keys. After a change of keys, give the new one and the one before it.
func (g *Registry) SetKeys(keys ...string) {
	v := token.NewVerifier(g.cfg.Issuer, g.cfg.Audience, keys...)
	g.mu.Lock()
	defer g.mu.Unlock()
	g.verify = func(token string) (string, error) {
		claims, err := v.Verify(token)
		return claims.SubType, err
	}
}

// ServeHTTP implements [http.Handler].
func (g *Registry) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	r = correlate(w, r)
	// The mux would redirect what is not clean, and not in JSON.
	if p := r.URL.Path; p != path.Clean(p) || p[0] != '/' {
		notFound(w)
		return
	}
	g.mux.ServeHTTP(w, r)
}

func notFound(w http.ResponseWriter) {
	answer(w, http.StatusNotFound, envelope(http.StatusNotFound, "there is nothing at this path"))
}

// handle serves the pattern to callers with a good token, whose type it hands to the handler.
func (g *Registry) handle(pattern, method string, serve func(w http.ResponseWriter, r *http.Request, typ string) (any, error)) {
	g.mux.HandleFunc(method+" "+pattern, func(w http.ResponseWriter, r *http.Request) {
		typ, err := g.caller(r)
		var body any
		if err == nil {
			body, err = serve(w, r, typ)
		}
		if err != nil {
			g.fail(w, r, err)
			return
		}
		answer(w, http.StatusOK, body)
	})
	g.methodNotAllowed(pattern, method)
}

func (g *Registry) methodNotAllowed(pattern, method string) {
	g.mux.HandleFunc(pattern, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Allow", method)
		g.fail(w, r, refuse(http.StatusMethodNotAllowed, "only %s is served here", method))
	})
}

// health is for those who choose where to send requests. They ask often: nothing is logged.
func (g *Registry) health(w http.ResponseWriter) {
	w.Header().Set("Cache-Control", "no-store")
	if s, ok := g.store.(interface{ Stale() error }); ok {
		if err := s.Stale(); err != nil {
			answer(w, http.StatusServiceUnavailable, envelope(http.StatusServiceUnavailable, err.Error()))
			return
		}
	}
	answer(w, http.StatusOK, map[string]string{"data": "ok"})
}

func (g *Registry) fail(w http.ResponseWriter, r *http.Request, err error) {
	status, message := http.StatusServiceUnavailable, "the registry cannot reach its store"
	if no, ok := errors.AsType[*refusal](err); ok {
		status, message = no.status, no.message
		g.log.Debug("request refused", zap.String("method", r.Method), zap.Int("statusCode", status),
			zap.String("reason", message), correlation(r.Context()))
	} else {
		g.log.Error("store failed", zap.String("method", r.Method), zap.Error(err), correlation(r.Context()))
		// Where there are several registries, the next try may come to one that reaches the store.
		w.Header().Set("Connection", "close")
	}
	if status == http.StatusUnauthorized {
		w.Header().Set("WWW-Authenticate", "Bearer")
	}
	answer(w, status, envelope(status, message))
}

// caller is the type that the request's token was given to.
func (g *Registry) caller(r *http.Request) (string, error) {
	raw, err := bearer(r.Header)
	if err != nil {
		return "", err
	}
	g.mu.Lock()
	verify := g.verify
	g.mu.Unlock()
	typ, err := verify(raw)
	if err == nil && typ == "" {
		err = errors.New("it has no subType")
	}
	if err != nil {
		g.log.Warn("token refused", zap.Error(err), correlation(r.Context()))
		return "", refuse(g.cfg.badTokenStatus(), "the token is not valid here")
	}
	return typ, nil
}

func bearer(h http.Header) (string, error) {
	values := h.Values("Authorization")
	if len(values) != 1 {
		return "", refuse(http.StatusUnauthorized, "one authorization header is needed, not %d", len(values))
	}
	scheme, raw, _ := strings.Cut(values[0], " ")
	if !strings.EqualFold(scheme, "bearer") || raw == "" {
		return "", refuse(http.StatusUnauthorized, "the authorization header holds no bearer token")
	}
	return raw, nil
}

// terms is the lease as the next answer names it, nil for none, and how long an entry lives.
func (g *Registry) terms() (leaseTime *float64, life time.Duration) {
	g.mu.Lock()
	lease := g.lease
	g.mu.Unlock()
	if lease < 0 {
		return nil, defaultLease + g.cfg.grace(defaultLease)
	}
	lease = cmp.Or(lease, defaultLease)
	return new(float64(lease) / float64(time.Millisecond)), lease + g.cfg.grace(lease)
}

func (g *Registry) register(w http.ResponseWriter, r *http.Request, typ string) (any, error) {
	body, err := readBody(w, r, maxBody)
	if err != nil {
		return nil, err
	}
	reg, err := parseRegistration(body)
	if err != nil {
		return nil, err
	}
	if reg.Type != typ {
		return nil, refuse(http.StatusForbidden, "a token of type %q cannot register type %q", typ, reg.Type)
	}
	reg.Unmanaged = r.URL.Query().Get("managedCluster") == "off"

	leaseTime, life := g.terms()
	res, err := g.store.Put(r.Context(), reg, life)
	if err != nil {
		return nil, err
	}
	isNew := isNewcomer(res.Servers, reg.ServerID)
	if most := g.cfg.maxServers(); isNew && len(res.Servers) > most {
		if err := g.store.Delete(r.Context(), res.ID, reg.ServerID); err != nil {
			return nil, err
		}
		g.log.Warn("cluster full", zap.String("type", reg.Type), zap.String("serverId", reg.ServerID),
			zap.Int("maxServers", most), correlation(r.Context()))
		return nil, refuse(http.StatusConflict, "the cluster is full: it has %d servers", most)
	}

	log, message := g.log.Debug, "server renewed"
	if isNew {
		log, message = g.log.Info, "server registered"
	}
	log(message, zap.String("type", reg.Type), zap.String("serverId", reg.ServerID),
		zap.String("clusterBaseUrl", reg.ClusterBaseURL), zap.Bool("managed", !reg.Unmanaged),
		zap.Int("nbServers", len(res.Servers)), correlation(r.Context()))
	return g.answers.registered(res, leaseTime)
}

// isNewcomer says whether the server has only just come in.
func isNewcomer(servers []cluster.Server, serverID string) bool {
	i, ok := slices.BinarySearchFunc(servers, serverID, func(s cluster.Server, id string) int {
		return cmp.Compare(s.ServerID, id)
	})
	return ok && servers[i].CreatedAt.Equal(servers[i].UpdatedAt)
}

func (g *Registry) get(_ http.ResponseWriter, r *http.Request, typ string) (any, error) {
	id := r.PathValue("id")
	if err := ownResource(id, typ); err != nil {
		return nil, err
	}
	res, err := g.store.Get(r.Context(), id)
	if errors.Is(err, ErrNotFound) {
		return nil, refuse(http.StatusNotFound, "no server of type %q has registered", typ)
	}
	if err != nil {
		return nil, err
	}
	return g.answers.registered(res, nil)
}

func (g *Registry) delete(_ http.ResponseWriter, r *http.Request, typ string) (any, error) {
	id := r.PathValue("id")
	if err := ownResource(id, typ); err != nil {
		return nil, err
	}
	serverID := r.PathValue("server")
	fields := []zap.Field{zap.String("type", typ), correlation(r.Context())}
	if at := strings.LastIndexByte(serverID, '@'); at >= 0 {
		spelled := serverID[at+1:]
		serverID = serverID[:at]
		date, err := time.Parse(time.RFC3339, spelled)
		if err != nil {
			return nil, refuse(http.StatusBadRequest, "the date %q is not as RFC 3339 has it", spelled)
		}
		if serverID == "" {
			return nil, refuse(http.StatusBadRequest, "the date stands without a serverId")
		}
		newer, err := g.store.DeleteIfUnmodifiedSince(r.Context(), id, serverID, date)
		if err != nil {
			return nil, err
		}
		fields = append(fields, zap.String("serverId", serverID), zap.Time("date", date))
		if newer != nil {
			g.log.Info("server not deleted: it has renewed since", append(fields, zap.Time("updatedAt", newer.UpdatedAt))...)
			return wire.DeleteResponse{Server: (*wire.Server)(newer)}, nil
		}
	} else {
		if err := g.store.Delete(r.Context(), id, serverID); err != nil {
			return nil, err
		}
		fields = append(fields, zap.String("serverId", serverID))
	}
	g.log.Info("server deleted", fields...)
	data, err := json.Marshal(wire.ServerRef{ServerID: serverID})
	return wire.DeleteResponse{Data: data}, err
}

func ownResource(id, typ string) error {
	if id == ResourceID(typ) {
		return nil
	}
	return refuse(http.StatusForbidden, "a token of type %q is not for this itResource", typ)
}

// parseRegistration reads a registration, or names all that is wrong with it.
func parseRegistration(body []byte) (Registration, error) {
	var in wire.Registration
	if err := json.Unmarshal(body, &in); err != nil {
		return Registration{}, refuse(http.StatusBadRequest, "the body is not a registration in JSON")
	}
	if string(in.Location) == "null" {
		in.Location = nil
	}
	var wrong []string
	check := func(name, value string, most int, problem func(string) string) {
		p := ""
		switch {
		case value == "":
			p = "is missing"
		case len(value) > most:
			p = fmt.Sprintf("is longer than %d bytes", most)
		default:
			p = problem(value)
		}
		if p != "" {
			wrong = append(wrong, name+" "+p)
		}
	}
	check("type", in.Type, maxName, func(string) string { return "" })
	check("serverId", in.ServerID, maxName, serverIDProblem)
	check("clusterBaseUrl", in.ClusterBaseURL, maxURL, baseURLProblem)
	if len(in.PublicBaseURL) > maxURL {
		wrong = append(wrong, fmt.Sprintf("publicBaseUrl is longer than %d bytes", maxURL))
	}
	if len(in.Location) > maxLocation {
		wrong = append(wrong, fmt.Sprintf("location is longer than %d bytes", maxLocation))
	}
	if wrong != nil {
		return Registration{}, refuse(http.StatusBadRequest, "%s", strings.Join(wrong, "; "))
	}
	return Registration{
		Type:           in.Type,
		ServerID:       in.ServerID,
		Location:       in.Location,
		PublicBaseURL:  in.PublicBaseURL,
		ClusterBaseURL: in.ClusterBaseURL,
	}, nil
}

// serverIDProblem says why an id could not be named in the path of a delete, which the npm
// nodes write without escaping.
func serverIDProblem(id string) string {
	if id == "." || id == ".." {
		return "is a step in a path"
	}
	if i := strings.IndexFunc(id, func(r rune) bool { return r < ' ' || r == 0x7f || strings.ContainsRune(`@/?#%\`, r) }); i >= 0 {
		return fmt.Sprintf("must not contain %q", id[i:i+1])
	}
	return ""
}

// baseURLProblem says why paths cannot be put under a URL. It does not repeat the URL, which
// may hold a password.
func baseURLProblem(raw string) string {
	u, err := url.Parse(raw)
	switch {
	case err != nil, u.Scheme != "http" && u.Scheme != "https", u.Hostname() == "":
		return "is not an absolute http or https URL"
	case u.User != nil:
		return "must not contain credentials"
	case u.RawQuery != "", u.ForceQuery, u.Fragment != "":
		return "must not have a query or a fragment"
	}
	return ""
}

func missing(name, value string) error {
	if value != "" {
		return nil
	}
	return fmt.Errorf("missing %s", name)
}

func checkKeys(keys []string) error {
	if len(keys) == 0 || slices.Contains(keys, "") {
		return errors.New("missing Keys, or an empty one among them")
	}
	return nil
}

func orNop(log *zap.Logger) *zap.Logger {
	if log == nil {
		return zap.NewNop()
	}
	return log
}
