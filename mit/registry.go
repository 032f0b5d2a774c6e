// Package mit implements the services that a cluster needs besides its nodes. The registry (mIT)
// lists the servers of each cluster. The token service (mST) issues their tokens. Use them in
// tests, and in environments without mimik's back end.
//
// [Registry] and [TokenService] are of type [http.Handler]. They serve nodes of this module and npm
// nodes. A [Store] keeps the servers: [Memory] in this process, or a store that several registries
// share, such as the one in the module mit/etcd.
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
// Package command runs both as a program.
package mit

import (
	"cmp"
	"crypto"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"net/http"
	"path"
	"slices"
	"strings"
	"sync"
	"time"

	"go.uber.org/zap"

	"github.com/mimiktech/cluster"
	"github.com/mimiktech/cluster/api"
	"github.com/mimiktech/cluster/internal/httpjson"
	"github.com/mimiktech/cluster/internal/redact"
	"github.com/mimiktech/cluster/internal/token"
	"github.com/mimiktech/cluster/internal/wire"
)

// NoLease makes a registry send no lease. Nodes then assume the default, and so does the registry.
const NoLease time.Duration = -1

// RegistryConfig configures a [Registry]. Issuer, Audience and Keys are mandatory unless Verify is
// set. The zero value of any other field means its default.
type RegistryConfig struct {
	// Lease is the time within which nodes must renew; 2 hours by default, at least a second, at most
	// about 24 days. [NoLease] sends none.
	Lease time.Duration
	// Grace is the time for which an entry is kept after its lease; half the lease by default, and
	// at least 5 seconds. npm nodes need it, because their renewal interval is the whole lease.
	Grace time.Duration
	// MaxServers bounds the servers of one resource; 10,000 by default. Further servers get a 409;
	// registered servers may renew.
	MaxServers int
	// MaxListBytes bounds the JSON of one resource; 15 MiB by default, which is below the 16 MiB
	// that a node reads by default. A registration that would exceed it gets a 413, except a renewal
	// that does not make the list longer. Concurrent registrations may exceed it by a few entries.
	MaxListBytes int64
	// MaxInFlightBytes bounds the lists that are being encoded or sent; 64 MiB by default. One type
	// may use half of it. MaxInFlightBytesPerAddress bounds the lists for one IP address (for IPv6:
	// for one /64); an eighth of MaxInFlightBytes by default, no limit if negative. Use no limit
	// behind a proxy. Further requests get a 503 with a Retry-After. A registration may have been
	// stored then, right after a start or while the list grows; its repetition renews it.
	MaxInFlightBytes, MaxInFlightBytesPerAddress int64

	// BasePath is the path prefix of the endpoints, such as /mIT/v1; none by default.
	BasePath string

	// Issuer and Audience are the required iss and aud of tokens. Keys are the keys with which
	// tokens may be signed (HS256).
	Issuer, Audience string
	Keys             []string
	// PublicKeys are further keys: RSA (RS256), or ECDSA on P-256 (ES256). With them, Keys may be
	// empty.
	PublicKeys []crypto.PublicKey
	// Verify, if set, replaces the check of tokens by keys. It returns the claims of a valid token:
	// SubType, and if known Subject and ServerID. It must be safe for concurrent use. Its error is
	// logged, not sent to the caller, and must not contain the token. The caller gets a 503 if it
	// wraps [cluster.ErrVerifierUnavailable].
	//
	// With the module clusterjwks, a registry verifies the tokens of any token service that has a
	// JWKS:
	//
	//	Verify: func(token string) (cluster.Claims, error) { return verifier.Verify(ctx, token) }
	Verify func(token string) (cluster.Claims, error)
	// InvalidTokenStatus is the status for invalid or expired tokens, 401 or 403; 403 by default,
	// because npm nodes replace a token before its expiry only after a 403. A request without a
	// token always gets a 401.
	InvalidTokenStatus int

	// Logger logs every registration and delete; nil: no log.
	Logger *zap.Logger
}

// A Registry is a registry of servers (mIT). It serves
//
//	POST   {BasePath}/itResources
//	GET    {BasePath}/itResources/{id}
//	DELETE {BasePath}/itResources/{id}/servers/{serverId}
//	DELETE {BasePath}/itResources/{id}/servers/{serverId}@{date}
//
// to callers with a bearer token of the resource's type. A token with the claim serverId (see
// [Client].ServerIDs) registers and deletes no other server. A conditional delete is allowed to all
// nodes of the type: they evict peers with it. Further endpoints are
//
//	GET    {BasePath}/health
//	GET    {BasePath}/openapi.yaml
//
// without a token. The health endpoint responds with 200, or with 503 and the reason while the
// [Store] reports that reads may be stale or that writes fail. A load balancer can then choose
// another registry. The OpenAPI document describes the paths of the program mit; see package api.
//
// Its methods are safe for concurrent use. It starts no goroutine and needs no Close.
type Registry struct {
	cfg       RegistryConfig
	store     measuredStore
	metrics   *registryMetrics
	log       *zap.Logger
	mux       *http.ServeMux
	admission *admission
	encodings encodings
	moves     moves
	history   history // of the status page

	mu         sync.Mutex // guards the fields below
	lease      time.Duration
	keys       []string
	publicKeys []crypto.PublicKey
	verify     func(token string) (cluster.Claims, error)
}

// NewRegistry returns a registry over store, or one error that names every problem of cfg.
func NewRegistry(store Store, cfg RegistryConfig) (*Registry, error) {
	err := cfg.validate()
	if store == nil {
		err = errors.Join(errors.New("missing store"), err)
	}
	if err != nil {
		return nil, fmt.Errorf("mit: registry: %w", err)
	}
	metrics := newRegistryMetrics()
	g := &Registry{
		cfg: cfg, store: measuredStore{store, metrics.store}, metrics: metrics, log: orNop(cfg.Logger), mux: http.NewServeMux(),
		admission: newAdmission(cfg.maxInFlightBytes(), cfg.maxInFlightBytesPerAddress()),
		encodings: encodings{types: map[string]*typeEncodings{}},
		keys:      cfg.Keys, publicKeys: cfg.PublicKeys,
	}
	g.SetLease(cfg.Lease)
	g.verify = g.verifierLocked()
	if cfg.Verify != nil {
		g.verify = cfg.Verify
	}
	base := strings.TrimSuffix(cfg.BasePath, "/")
	g.handle(base+"/itResources", http.MethodPost, g.register)
	g.handle(base+"/itResources/{id}", http.MethodGet, g.get)
	g.handle(base+"/itResources/{id}/servers/{server}", http.MethodDelete, g.delete)
	g.mux.HandleFunc("GET "+base+"/health", func(w http.ResponseWriter, _ *http.Request) { g.health(w) })
	g.methodNotAllowed(base+"/health", http.MethodGet)
	g.mux.HandleFunc(base+"/openapi.yaml", func(w http.ResponseWriter, r *http.Request) {
		httpjson.WriteYAML(w, r, api.MIT())
	})
	g.mux.HandleFunc("/", func(w http.ResponseWriter, _ *http.Request) { notFound(w) })
	return g, nil
}

// SetLease changes the lease. As in [RegistryConfig], 0 is the default and [NoLease] sends none. A
// lease that is too short or too long is changed to the minimum or the maximum. Each node receives
// the new lease with its next renewal and keeps the old one until then.
func (g *Registry) SetLease(lease time.Duration) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.lease = min(lease, maxLease); lease > 0 {
		g.lease = max(g.lease, minLease)
	}
}

// SetKeys replaces the secret keys with which tokens may be signed. It also replaces
// [RegistryConfig.Verify]: tokens are then checked with keys. To rotate keys, pass the new key and
// the previous one.
func (g *Registry) SetKeys(keys ...string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.keys = slices.Clone(keys)
	g.verify = g.verifierLocked()
}

// SetPublicKeys is like [Registry.SetKeys] for [RegistryConfig].PublicKeys. A key that is neither
// RSA nor ECDSA on P-256 is an error, and changes nothing.
func (g *Registry) SetPublicKeys(keys ...crypto.PublicKey) error {
	if err := checkPublicKeys(keys); err != nil {
		return fmt.Errorf("mit: %w", err)
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	g.publicKeys = slices.Clone(keys)
	g.verify = g.verifierLocked()
	return nil
}

// AddressConflicts counts how often the address of a server has changed back to an earlier one.
// This shows that several processes renew with the same server id. It needs a [Store] that sets
// [Resource].Replaced. Each server is logged once a minute at most.
func (g *Registry) AddressConflicts() uint64 { return g.moves.count() }

// ServeHTTP implements [http.Handler].
func (g *Registry) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	measure(g.metrics.requests, w, func(w http.ResponseWriter) string {
		r := httpjson.Correlate(w, r)
		// The mux would redirect a path that is not clean, with an HTML body.
		if p := r.URL.Path; p != path.Clean(p) || p[0] != '/' {
			notFound(w)
			return route("")
		}
		g.mux.ServeHTTP(w, r)
		return route(r.Pattern)
	})
}

// verifierLocked returns the check of tokens by keys.
func (g *Registry) verifierLocked() func(token string) (cluster.Claims, error) {
	v := token.NewVerifier(g.cfg.Issuer, g.cfg.Audience, g.keys...)
	public := newPublicVerifier(g.cfg.Issuer, g.cfg.Audience, g.publicKeys)
	useSecret := len(g.keys) > 0 || len(g.publicKeys) == 0
	return func(token string) (cluster.Claims, error) {
		claims, err := public(token)
		if err != nil && useSecret {
			claims, err = v.Verify(token)
		}
		return cluster.Claims(claims), err
	}
}

const (
	defaultLease = 2 * time.Hour

	minLease = time.Second     // bounds how often nodes renew
	minGrace = 5 * time.Second // lets a short lease survive one slow renewal

	// maxLease is the longest delay of a JavaScript timer. A longer one fires at once, and an npm
	// node would renew continuously.
	maxLease = math.MaxInt32 * time.Millisecond
)

func (c RegistryConfig) maxServers() int { return cmp.Or(c.MaxServers, 10_000) }

func (c RegistryConfig) invalidTokenStatus() int {
	return cmp.Or(c.InvalidTokenStatus, http.StatusForbidden)
}

func (c RegistryConfig) maxListBytes() int64 { return cmp.Or(c.MaxListBytes, 15<<20) }

func (c RegistryConfig) maxInFlightBytes() int64 { return cmp.Or(c.MaxInFlightBytes, 64<<20) }

func (c RegistryConfig) maxInFlightBytesPerAddress() int64 {
	return cmp.Or(c.MaxInFlightBytesPerAddress, c.maxInFlightBytes()/8)
}

func (c RegistryConfig) grace(lease time.Duration) time.Duration {
	return cmp.Or(c.Grace, max(lease/2, minGrace))
}

func (c RegistryConfig) validate() error {
	var errs []error
	if c.Verify == nil {
		errs = append(errs, require("Issuer", c.Issuer), require("Audience", c.Audience), c.checkKeys())
	}
	if c.Lease != 0 && c.Lease != NoLease && (c.Lease < minLease || c.Lease > maxLease) {
		errs = append(errs, fmt.Errorf("invalid Lease %v: not between %v and %v", c.Lease, minLease, maxLease))
	}
	if c.Grace < 0 || c.Grace > maxLease {
		errs = append(errs, fmt.Errorf("invalid Grace %v: not between 0 and %v", c.Grace, maxLease))
	}
	for name, n := range map[string]int64{
		"MaxServers": int64(c.MaxServers), "MaxListBytes": c.MaxListBytes, "MaxInFlightBytes": c.MaxInFlightBytes,
	} {
		if n < 0 {
			errs = append(errs, fmt.Errorf("invalid %s %d: negative", name, n))
		}
	}
	if s := c.invalidTokenStatus(); s != http.StatusUnauthorized && s != http.StatusForbidden {
		errs = append(errs, fmt.Errorf("invalid InvalidTokenStatus %d: neither 401 nor 403", s))
	}
	if p := c.BasePath; p != "" && (p != path.Clean(p) || p[0] != '/' || strings.ContainsAny(p, "{} ")) {
		errs = append(errs, fmt.Errorf("invalid BasePath %q: not a clean absolute path", p))
	}
	return errors.Join(errs...)
}

// A caller describes the sender of a request, as given by its verified token, and the target.
type caller struct {
	typ    string
	client string // id of the client that the token was issued to; "" if unknown
	server string // the only server that the token is for; "" for any of the type
	target string // id of the server that the request registers or deletes; "" if unknown
}

// checkServer rejects a token that is for another server than the target.
func (c *caller) checkServer() error {
	if c.server == "" || c.server == c.target {
		return nil
	}
	return newAPIError(http.StatusForbidden, "a token of server %q is not for server %q", c.server, c.target)
}

func notFound(w http.ResponseWriter) {
	httpjson.WriteError(w, http.StatusNotFound, "there is nothing at this path")
}

// handle serves a pattern to callers with a valid token. A result of serve that is not a
// listResponse is encoded as JSON.
func (g *Registry) handle(pattern, method string, serve func(http.ResponseWriter, *http.Request, *caller) (any, error)) {
	g.mux.HandleFunc(method+" "+pattern, func(w http.ResponseWriter, r *http.Request) {
		var from caller
		from.target, _, _ = parseServerRef(r.PathValue("server"))
		err := g.authenticate(r, &from)
		var body any
		if err == nil {
			body, err = serve(w, r, &from)
		}
		if err != nil {
			g.writeError(w, r, from, err)
			return
		}
		if l, ok := body.(listResponse); ok {
			l.send(w, r)
			return
		}
		writeJSON(w, http.StatusOK, body)
	})
	g.methodNotAllowed(pattern, method)
}

func (g *Registry) methodNotAllowed(pattern, method string) {
	g.mux.HandleFunc(pattern, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Allow", method)
		g.writeError(w, r, caller{}, newAPIError(http.StatusMethodNotAllowed, "only %s is served here", method))
	})
}

// health logs nothing: load balancers call it every few seconds.
func (g *Registry) health(w http.ResponseWriter) {
	w.Header().Set("Cache-Control", "no-store")
	if err := g.store.Ready(); err != nil {
		httpjson.WriteError(w, http.StatusServiceUnavailable, err.Error())
		return
	}
	writeJSON(w, http.StatusOK, map[string]string{"data": "ok"})
}

func (g *Registry) writeError(w http.ResponseWriter, r *http.Request, from caller, err error) {
	status, message := http.StatusServiceUnavailable, "the registry cannot reach its store"
	if apiErr, ok := errors.AsType[*apiError](err); ok {
		status, message = apiErr.status, apiErr.message
		setRetryAfter(w.Header(), apiErr.retryAfter)
		log := g.log.Info
		if status == http.StatusMethodNotAllowed || status == http.StatusServiceUnavailable {
			log = g.log.Debug // not about permissions, and possibly frequent
		}
		log("request rejected", append(auditFields(r, from), zap.Int("statusCode", status), zap.String("reason", message))...)
	} else {
		g.log.Error("store failed", append(auditFields(r, from), zap.Error(err))...)
		// The next request may reach another registry of a load balancer, over a new connection.
		w.Header().Set("Connection", "close")
	}
	if status == http.StatusUnauthorized {
		w.Header().Set("WWW-Authenticate", "Bearer")
	}
	httpjson.WriteError(w, status, message)
}

// auditFields returns the fields that name the sender and the target of a request in a log line.
func auditFields(r *http.Request, from caller) []zap.Field {
	fields := []zap.Field{
		zap.String("method", r.Method), zap.String("type", from.typ), zap.String("clientId", from.client),
		zap.String("remoteAddress", r.RemoteAddr), httpjson.CorrelationField(r.Context()),
	}
	if from.server != "" {
		fields = append(fields, zap.String("callerServerId", from.server))
	}
	if from.target != "" {
		fields = append(fields, zap.String("serverId", redact.Text(from.target)))
	}
	return fields
}

// authenticate verifies the request's token and sets its sender.
func (g *Registry) authenticate(r *http.Request, from *caller) error {
	raw, err := httpjson.BearerToken(r.Header)
	if err != nil {
		return newAPIError(http.StatusUnauthorized, "%s", err)
	}
	g.mu.Lock()
	verify := g.verify
	g.mu.Unlock()
	claims, err := verify(raw)
	if err == nil && claims.SubType == "" {
		err = errors.New("the token has no subType")
	}
	if errors.Is(err, cluster.ErrVerifierUnavailable) {
		g.log.Error("token verification unavailable", append(auditFields(r, *from), zap.Error(err))...)
		return newAPIError(http.StatusServiceUnavailable, "tokens cannot be verified at the moment")
	}
	if err != nil {
		g.log.Warn("token rejected", append(auditFields(r, *from), zap.Error(err))...)
		g.history.reject("", "", remoteAddress(r), "its token was rejected: "+err.Error())
		return newAPIError(g.cfg.invalidTokenStatus(), "the token is not valid here")
	}
	from.typ, from.client, from.server = claims.SubType, strings.TrimSuffix(claims.Subject, subClients), claims.ServerID
	return nil
}

// leaseTerms returns the TTL of an entry, and the lease to send in milliseconds; nil sends none.
func (g *Registry) leaseTerms() (leaseTime *float64, ttl time.Duration) {
	g.mu.Lock()
	lease := g.lease
	g.mu.Unlock()
	if lease < 0 {
		return nil, defaultLease + g.cfg.grace(defaultLease)
	}
	lease = cmp.Or(lease, defaultLease)
	return new(float64(lease) / float64(time.Millisecond)), lease + g.cfg.grace(lease)
}

func (g *Registry) register(w http.ResponseWriter, r *http.Request, from *caller) (any, error) {
	body, err := readBody(w, r, maxRegistrationBytes)
	if err != nil {
		return nil, err
	}
	reg, err := parseRegistration(body)
	from.target = reg.ServerID
	if err != nil {
		return nil, err
	}
	if reg.Type != from.typ {
		g.history.reject(reg.Type, reg.ServerID, remoteAddress(r), fmt.Sprintf("its token is of type %.40q", from.typ))
		return nil, newAPIError(http.StatusForbidden, "a token of type %q cannot register type %q", from.typ, reg.Type)
	}
	if err := from.checkServer(); err != nil {
		g.history.reject(reg.Type, reg.ServerID, remoteAddress(r), fmt.Sprintf("its token is of server %.40q", from.server))
		return nil, err
	}
	if text := r.Header.Get(wire.RenewalOfHeader); text != "" {
		if reg.RenewalOf, err = time.Parse(time.RFC3339, text); err != nil {
			return nil, newAPIError(http.StatusBadRequest, "the header "+wire.RenewalOfHeader+" is not a date")
		}
	}
	reg.Unmanaged = r.URL.Query().Get("managedCluster") == "off"
	response, err := g.respondWithList(r, reg.Type, func() (Resource, *float64, error) {
		leaseTime, ttl := g.leaseTerms()
		res, err := g.put(r, *from, reg, ttl)
		if err == nil && g.history.renewed(reg.Type, reg.ServerID, reg.ClusterBaseURL, ttl) {
			g.compareHistory(r.Context(), ttl)
		}
		return res, leaseTime, err
	})
	if apiErr, ok := errors.AsType[*apiError](err); ok {
		g.history.reject(reg.Type, reg.ServerID, remoteAddress(r), apiErr.message)
	}
	return response, err
}

// respondWithList responds with the list that load returns, if there is room for it.
func (g *Registry) respondWithList(r *http.Request, typ string, load func() (Resource, *float64, error)) (any, error) {
	in, retryAfter := g.admission.acquire(typ, remoteAddress(r), time.Now())
	if in == nil {
		return nil, errTooManyLists(retryAfter)
	}
	var l *list
	res, leaseTime, err := load()
	if err == nil {
		if ok, retryAfter := in.loaded(res, time.Now()); !ok {
			err = errTooManyLists(retryAfter)
		}
	}
	if err == nil {
		l, err = g.encodings.encode(res, leaseTime, r.Header)
	}
	if err != nil {
		in.release(0, time.Now())
		return nil, err
	}
	body, _ := l.form(r.Header)
	in.encoded(l, len(body))
	return listResponse{l, in}, nil
}

func errTooManyLists(retryAfter time.Duration) error {
	return errBusy(http.StatusServiceUnavailable, retryAfter, "too many responses are being sent")
}

// put stores a registration within the limits of its resource.
func (g *Registry) put(r *http.Request, from caller, reg Registration, ttl time.Duration) (Resource, error) {
	if err := g.checkLimits(r, from, reg); err != nil {
		return Resource{}, err
	}
	res, err := g.store.Put(r.Context(), reg, ttl)
	if errors.Is(err, ErrNotFound) {
		return Resource{}, newAPIError(http.StatusPreconditionFailed, "the entry to renew is gone")
	}
	if err != nil {
		return Resource{}, err
	}
	added := isNew(res.Servers, reg.ServerID)
	if limit := g.cfg.maxServers(); added && len(res.Servers) > limit {
		if err := g.store.Delete(r.Context(), res.ID, reg.ServerID); err != nil {
			return Resource{}, err
		}
		return Resource{}, g.refuseServer(r, from)
	}

	if before := res.Replaced; before != nil &&
		g.moves.renewed(serverKey{reg.Type, reg.ServerID}, before.ClusterBaseURL, reg.ClusterBaseURL, time.Now()) {
		g.log.Warn("two processes have the same server id", append(auditFields(r, from),
			zap.String("clusterBaseUrl", reg.ClusterBaseURL), zap.String("otherClusterBaseUrl", before.ClusterBaseURL))...)
	}
	g.metrics.registered(reg.Type, added)
	log, message := g.log.Debug, "server renewed"
	if added {
		log, message = g.log.Info, "server registered"
	}
	log(message, append(auditFields(r, from),
		zap.String("clusterBaseUrl", reg.ClusterBaseURL), zap.Bool("managed", !reg.Unmanaged),
		zap.Int("nbServers", len(res.Servers)))...)
	return res, nil
}

// refuseServer returns the error for one server too many.
func (g *Registry) refuseServer(r *http.Request, from caller) error {
	limit := g.cfg.maxServers()
	g.log.Warn("cluster full", append(auditFields(r, from), zap.Int("maxServers", limit))...)
	return newAPIError(http.StatusConflict, "the cluster is full: it has %d servers", limit)
}

// checkLimits rejects a registration that would exceed the limits of its resource, before anything
// is written. It reads the list only if the last one was almost too long, or is unknown. A list
// that may be stale decides nothing: it may lack the server itself.
func (g *Registry) checkLimits(r *http.Request, from caller, reg Registration) error {
	maxBytes := g.cfg.maxListBytes()
	servers, size := g.admission.lastList(reg.Type)
	if servers != unknownServers && servers < g.cfg.maxServers() && size < maxBytes-maxBytes/8 || g.store.Ready() != nil {
		return nil
	}
	res, err := g.store.Get(r.Context(), ResourceID(reg.Type))
	if errors.Is(err, ErrNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	_, known := findServer(res.Servers, reg.ServerID)
	if !known && len(res.Servers) >= g.cfg.maxServers() {
		return g.refuseServer(r, from)
	}
	return checkListSize(res, reg, maxBytes)
}

// checkListSize rejects a registration that would make a list longer than limit.
func checkListSize(res Resource, reg Registration, limit int64) error {
	entry, err := reg.Entry(nil, time.Now())
	if err != nil {
		return newAPIError(http.StatusBadRequest, "the location is not JSON")
	}
	var before int64
	if i, known := findServer(res.Servers, reg.ServerID); known {
		before = encodedSize(res.Servers[i : i+1])
	}
	total := encodedSize(res.Servers)
	after := int64(len(entry.Raw)) + 1
	if after > before && total-before+after > limit {
		return newAPIError(http.StatusRequestEntityTooLarge, "the list of servers has %d bytes; with this entry it would exceed %d", total, limit)
	}
	return nil
}

// encodedSize returns the length of the JSON of servers.
func encodedSize(servers []cluster.Server) (size int64) {
	for i := range servers {
		raw := servers[i].Raw
		if raw == nil { // the store does not keep it
			raw, _ = servers[i].MarshalJSON()
		}
		size += int64(len(raw)) + 1
	}
	return size
}

// isNew reports whether the last Put created the entry of the server.
func isNew(servers []cluster.Server, serverID string) bool {
	i, ok := findServer(servers, serverID)
	return ok && servers[i].CreatedAt.Equal(servers[i].UpdatedAt)
}

func findServer(servers []cluster.Server, id string) (int, bool) {
	return slices.BinarySearchFunc(servers, id, func(s cluster.Server, id string) int {
		return cmp.Compare(s.ServerID, id)
	})
}

func (g *Registry) get(_ http.ResponseWriter, r *http.Request, from *caller) (any, error) {
	id := r.PathValue("id")
	if err := checkOwner(id, from.typ); err != nil {
		return nil, err
	}
	return g.respondWithList(r, from.typ, func() (Resource, *float64, error) {
		res, err := g.store.Get(r.Context(), id)
		if errors.Is(err, ErrNotFound) {
			err = newAPIError(http.StatusNotFound, "no server of type %q has registered", from.typ)
		}
		res.Version = 0 // the response has no lease, unlike those to registrations
		return res, nil, err
	})
}

func (g *Registry) delete(_ http.ResponseWriter, r *http.Request, from *caller) (any, error) {
	id := r.PathValue("id")
	if err := checkOwner(id, from.typ); err != nil {
		return nil, err
	}
	serverID, unmodifiedSince, err := parseServerRef(r.PathValue("server"))
	if err != nil {
		return nil, err
	}
	fields := auditFields(r, *from)
	cause := "client"
	if unmodifiedSince == nil {
		if err = from.checkServer(); err == nil {
			err = g.store.Delete(r.Context(), id, serverID)
		}
	} else {
		cause = "conditional"
		var newer *cluster.Server
		newer, err = g.store.DeleteIfUnmodifiedSince(r.Context(), id, serverID, *unmodifiedSince)
		fields = append(fields, zap.Time("date", *unmodifiedSince))
		if err == nil && newer != nil {
			log := g.log.Info
			if !unmodifiedSince.After(time.Unix(0, 0)) {
				log = g.log.Debug // 1970: the node only reads the entry
			}
			log("server not deleted: it has renewed since", append(fields, zap.Time("updatedAt", newer.UpdatedAt))...)
			return wire.DeleteResponse{Server: (*wire.Server)(newer)}, nil
		}
	}
	if err != nil {
		return nil, err
	}
	g.log.Info("server deleted", fields...)
	g.metrics.deleted(from.typ, cause)
	g.moves.left(serverKey{from.typ, serverID})
	g.history.left(from.typ, serverID, remoteAddress(r))
	data, err := json.Marshal(wire.ServerRef{ServerID: serverID})
	return wire.DeleteResponse{Data: data}, err
}

// checkOwner rejects a token for the resource of another type.
func checkOwner(id, typ string) error {
	if id == ResourceID(typ) {
		return nil
	}
	return newAPIError(http.StatusForbidden, "a token of type %q is not for this itResource", typ)
}

func require(name, value string) error {
	if value != "" {
		return nil
	}
	return fmt.Errorf("missing %s", name)
}

func (c RegistryConfig) checkKeys() error {
	if len(c.Keys)+len(c.PublicKeys) == 0 || slices.Contains(c.Keys, "") {
		return errors.New("missing Keys, or an empty one among them")
	}
	return checkPublicKeys(c.PublicKeys)
}

func checkPublicKeys(keys []crypto.PublicKey) error {
	for _, key := range keys {
		if _, err := signingMethod(key); err != nil {
			return fmt.Errorf("invalid PublicKeys: %w", err)
		}
	}
	return nil
}

func orNop(log *zap.Logger) *zap.Logger {
	if log == nil {
		return zap.NewNop()
	}
	return log
}
