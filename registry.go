package cluster

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"go.uber.org/zap"
	"golang.org/x/oauth2"

	"github.com/mimiktech/cluster/internal/token"
	"github.com/mimiktech/cluster/internal/wire"
)

// One renewal in failbackChance, on average, tries the preferred replica first after a failover. So
// nodes return to a replica that has recovered over a few leases, with renewals that are due
// anyway. While it is down, few renewals need a second request.
const failbackChance = 4

// A registryClient makes the requests to the registry.
type registryClient struct {
	http          *httpClient
	tokens        tokenSource
	replicas      *replicas
	audience      string
	deleteTimeout time.Duration // of a delete, for all replicas together
	log           *zap.Logger
	trace         *hooks

	unusualLease sync.Once // the warning
	clockWarning minuteLimit
	clockAhead   atomic.Int64 // of this node, as a time.Duration, at the last response with a date
}

func newRegistryClient(client *httpClient, tokens tokenSource, cfg Config, o options) *registryClient {
	return &registryClient{
		http:          client,
		tokens:        tokens,
		replicas:      newReplicas(cfg.RegistryURL),
		audience:      cfg.RegistryAudience,
		deleteTimeout: o.eviction.timeout(),
		log:           o.log,
		trace:         client.trace,
	}
}

// A tokenSource is the part of a *token.Cache that a client uses.
type tokenSource interface {
	Token(ctx context.Context, key token.Key) (string, error)
	Drop(key token.Key, accessToken string)
	Replace(key token.Key, accessToken string)
}

// register registers a server, or renews its lease, which is the same request. It returns the
// resource and the duration of the lease. An unmanaged node does not call its peers.
//
// renewalOf is the createdAt of the entry to renew; empty if none is known. If that entry is gone,
// register creates another one. A renewal that reaches the registry only after the delete of its
// entry thus does not restore the entry, unless the registry does not know the condition.
func (r *registryClient) register(ctx context.Context, self wire.Registration, managed bool, renewalOf string) (it wire.ItResource, lease time.Duration, err error) {
	req := registryRequest{method: http.MethodPost, path: "/itResources", body: self, renewalOf: renewalOf}
	if !managed {
		req.path += "?managedCluster=off"
	}
	var response wire.Registered
	req.decode = func(body []byte) (err error) {
		if response, err = decodeRegistration(body, self.ServerID); err != nil {
			return err
		}
		return r.http.dropSecrets(response.ItResource, self.ServerID)
	}
	err = r.do(ctx, req)
	if se, ok := errors.AsType[*StatusError](err); ok && se.Code == http.StatusPreconditionFailed && renewalOf != "" {
		req.renewalOf = ""
		err = r.do(ctx, req)
	}
	if err != nil {
		return wire.ItResource{}, 0, err
	}
	lease, problem := leaseOf(response)
	if problem != nil {
		r.unusualLease.Do(func() {
			r.log.Warn("unusual lease time of the registry", zap.NamedError("reason", problem), zap.Duration("lease", lease), correlationField(ctx))
		})
	}
	return *response.ItResource, lease, nil
}

// read returns a resource. It registers nothing.
func (r *registryClient) read(ctx context.Context, resourceID string) (it wire.ItResource, err error) {
	err = r.do(ctx, registryRequest{
		method: http.MethodGet,
		path:   "/itResources/" + url.PathEscape(resourceID),
		decode: func(body []byte) error {
			var response wire.Registered
			if err := json.Unmarshal(body, &response); err != nil {
				return err
			}
			if response.ItResource == nil {
				return errors.New("it has no itResource")
			}
			it = *response.ItResource
			return r.http.dropSecrets(&it, "")
		},
	})
	return it, err
}

// deregister deletes a server.
func (r *registryClient) deregister(ctx context.Context, resourceID, serverID string) error {
	return r.do(ctx, registryRequest{method: http.MethodDelete, path: serverPath(resourceID, serverID), decode: ignoreBody})
}

// deleteIf deletes a server unless it has been updated since the given time, which is the text of
// an entry's updatedAt. It returns the newer entry, or nil if the server is gone.
func (r *registryClient) deleteIf(ctx context.Context, resourceID, serverID, unmodifiedSince string) (newer *wire.Server, err error) {
	err = r.do(ctx, registryRequest{
		method: http.MethodDelete,
		path:   serverPath(resourceID, serverID) + "@" + url.PathEscape(unmodifiedSince),
		decode: func(body []byte) (err error) {
			if newer, err = decodeDeleteResponse(body, serverID); err != nil || newer == nil {
				return err
			}
			return r.http.dropSecrets(&wire.ItResource{Servers: []wire.Server{*newer}}, serverID)
		},
	})
	return newer, err
}

func serverPath(resourceID, serverID string) string {
	return "/itResources/" + url.PathEscape(resourceID) + "/servers/" + url.PathEscape(serverID)
}

func ignoreBody([]byte) error { return nil }

// decodeRegistration rejects a response that does not list this node. Such a list is not usable as
// a view: it would make the node drop its peers because of a fault of the registry.
func decodeRegistration(body []byte, serverID string) (wire.Registered, error) {
	var response wire.Registered
	if err := json.Unmarshal(body, &response); err != nil {
		return wire.Registered{}, err
	}
	if response.ItResource == nil {
		return wire.Registered{}, errors.New("it has no itResource")
	}
	for _, s := range response.ItResource.Servers {
		if s.ServerID == serverID {
			return response, nil
		}
	}
	err := fmt.Errorf("this node is not among its %d servers", len(response.ItResource.Servers))
	if skipped := response.ItResource.Skipped; skipped != nil {
		err = fmt.Errorf("%w; %w", err, skipped)
	}
	return wire.Registered{}, err
}

func decodeDeleteResponse(body []byte, serverID string) (newer *wire.Server, err error) {
	var response wire.DeleteResponse
	if err := json.Unmarshal(body, &response); err != nil {
		return nil, err
	}
	switch {
	case response.Server != nil && response.Server.ServerID != serverID:
		return nil, errors.New("it is about another server") // its id could echo a secret
	case response.Server == nil && (response.Data == nil || string(response.Data) == "null"):
		return nil, errors.New("it has neither data nor a server")
	}
	return response.Server, nil
}

type registryRequest struct {
	method string
	path   string // under the base URL of a replica
	body   any
	bearer string
	sent   int // the number of requests sent
	// renewalOf is the createdAt of the entry that a renewal is for; empty if there is no condition.
	renewalOf string
	// decode reads the response. An error makes it an *InvalidResponseError.
	decode func(body []byte) error
}

// do sends an authorized request. If the registry rejects the token, do repeats the request once
// with a new one.
func (r *registryClient) do(ctx context.Context, req registryRequest) error {
	key := token.Key{Audience: r.audience}
	for attempt := 1; ; attempt++ {
		var err error
		if req.bearer, err = r.tokens.Token(ctx, key); err != nil {
			return err
		}
		err = r.withFailover(ctx, &req)
		if tokenDoubtful(err) {
			r.tokens.Replace(key, req.bearer)
		}
		if !tokenRejected(err) || attempt > 1 {
			return err
		}
		r.tokens.Drop(key, req.bearer)
	}
}

// withFailover sends a request to the replicas until one of them sends a usable response. All
// replicas share one request timeout.
//
// A replica may have executed the request before it failed. It is safe to repeat: registering twice
// is renewing, and a server may be deleted twice.
func (r *registryClient) withFailover(ctx context.Context, req *registryRequest) error {
	ctx, cancel := context.WithTimeout(ctx, r.http.timeout)
	defer cancel()
	deadline, _ := ctx.Deadline()
	if end := time.Now().Add(r.deleteTimeout); req.method == http.MethodDelete && end.Before(deadline) {
		deadline = end
	}
	send := func(ctx context.Context, base string) error { return r.doReplica(ctx, base, req) }
	return r.replicas.failover(ctx, deadline, req.method, send, r.switched)
}

func (r *registryClient) doReplica(ctx context.Context, base string, req *registryRequest) error {
	req.sent++
	info := RequestInfo{Target: TargetRegistry, Attempt: req.sent}
	sent := time.Now()
	resp, err := r.http.sendJSON(ctx, info, jsonRequest{
		method: req.method, address: base + req.path, bearer: req.bearer, renewalOf: req.renewalOf, body: req.body,
	})
	r.checkClock(ctx, base, resp, sent)
	if err != nil {
		return err
	}
	if err := req.decode(resp.body); err != nil {
		path, _, _ := strings.Cut(req.path, "?")
		return &InvalidResponseError{"mIT", req.method, base + path, err}
	}
	return nil
}

// maxClockSkew is the difference between the clocks of the registry and of this node up to which no
// warning is logged.
const maxClockSkew = 30 * time.Second

// checkClock logs a warning if the Date of a response is far from this node's clock. sent is when
// the request was sent.
func (r *registryClient) checkClock(ctx context.Context, base string, resp response, sent time.Time) {
	date, err := http.ParseTime(resp.header.Fields().Get("Date"))
	if err != nil { // no response, or one without a date
		return
	}
	now := time.Now()
	ahead := wire.ClockAhead(date, sent, now)
	r.clockAhead.Store(int64(ahead))
	if ahead.Abs() <= maxClockSkew || !r.clockWarning.due(now) {
		return
	}
	r.log.Warn("clock differs from that of the registry", zap.Duration("ahead", ahead), zap.String("registry", base),
		zap.String("hint", "synchronize both clocks, for example by NTP: nodes compare the times in tokens with their own clock"), correlationField(ctx))
}

// shouldFailOver reports whether another replica may succeed where one failed with err. It may not
// if the response was usable, or if all replicas would send the same response. That is the case if
// the request is invalid or not allowed, or if the server is gone.
func shouldFailOver(method string, err error) bool {
	if se, ok := errors.AsType[*StatusError](err); ok {
		switch se.Code {
		case http.StatusBadRequest, http.StatusUnauthorized, http.StatusForbidden, http.StatusConflict, http.StatusPreconditionFailed,
			http.StatusRequestEntityTooLarge, http.StatusUnprocessableEntity:
			return false
		case http.StatusNotFound:
			return method == http.MethodPost // this replica has no such endpoint
		}
		return true
	}
	_, invalid := errors.AsType[*InvalidResponseError](err)
	_, noResponse := errors.AsType[*UnreachableError](err)
	return invalid && !errors.Is(err, ErrResponseTooLarge) || noResponse
}

// switched reports that another replica is in use. failure is the error of those tried before it.
func (r *registryClient) switched(ctx context.Context, from, to string, failure error) {
	logSwitch(ctx, r.log, "registry", from, to, failure)
	r.trace.replicaChanged(ctx, from, to, failure)
}

func logSwitch(ctx context.Context, log *zap.Logger, service, from, to string, failure error) {
	fields := []zap.Field{zap.String("from", from), zap.String("to", to), correlationField(ctx)}
	if failure != nil {
		log.Warn("switched "+service+" replica", append(fields, zap.NamedError("reason", failure))...)
	} else {
		log.Info("failed back to preferred "+service+" replica", fields...)
	}
}

// replicas are the URLs of one service, and the one that is in use.
type replicas struct {
	urls []string // in the order of this node's preference

	mu      sync.Mutex // guards the field below
	current string
}

// newReplicas parses a valid list of URLs, and shuffles it. Each replica then serves its share of
// the nodes. If it fails, the other replicas share these nodes. The order is random instead of
// derived from the server id, so that a node that restarts may start with another replica.
func newReplicas(list string) *replicas {
	urls := strings.Split(list, ",")
	rand.Shuffle(len(urls), func(i, j int) { urls[i], urls[j] = urls[j], urls[i] })
	return &replicas{urls: urls, current: urls[0]}
}

// order returns the current URL, and all URLs in the order in which to try them. The first one is
// the current URL, or with failback the preferred one.
func (r *replicas) order(failback bool) (current string, urls []string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	i := slices.Index(r.urls, r.current)
	switch {
	case i == 0:
		return r.current, r.urls
	case failback:
		return r.current, slices.Concat(r.urls[:1], r.urls[i:], r.urls[1:i])
	}
	return r.current, slices.Concat(r.urls[i:], r.urls[:i])
}

// baseOf returns the replica to which a request was sent, or the URL itself if it is of none.
func (r *replicas) baseOf(requestURL string) string {
	for _, base := range r.urls {
		if strings.HasPrefix(requestURL, base+"/") {
			return base
		}
	}
	return requestURL
}

// failover sends a request of a method to the replicas, each at most once, until one sends a usable
// response. That one is then the current one, and switched is called if it was not before. All
// share the time until deadline, except for the last one, which is bounded by ctx only.
func (r *replicas) failover(
	ctx context.Context, deadline time.Time, method string,
	send func(ctx context.Context, url string) error, switched func(ctx context.Context, from, to string, failure error),
) error {
	current, urls := r.order(method == http.MethodPost && rand.N(failbackChance) == 0)
	var failure error
	for i, url := range urls {
		sendCtx, cancel := ctx, context.CancelFunc(func() {})
		if rest := len(urls) - i; rest > 1 {
			sendCtx, cancel = context.WithTimeout(ctx, time.Until(deadline)/time.Duration(rest))
		}
		err := send(sendCtx, url)
		cancel()
		if !shouldFailOver(method, err) {
			if r.promote(current, url) {
				switched(ctx, current, url, failure)
			}
			return err
		}
		if failure != nil {
			err = fmt.Errorf("%w; %w", failure, err)
		}
		failure = err
		if ctx.Err() != nil {
			break
		}
	}
	return failure
}

// promote makes url the current one, unless a concurrent call has switched already.
func (r *replicas) promote(current, url string) (changed bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.current != current || url == current {
		return false
	}
	r.current = url
	return true
}

// A tokenFetcher fetches tokens, for a token.Cache: with the function of WithTokens if it is set,
// or from the token service.
type tokenFetcher struct {
	serverID string
	http     *httpClient
	replicas *replicas // the URLs of the token service
	tokens   func(context.Context, TokenKey) (*oauth2.Token, error)
	log      *zap.Logger
	trace    *hooks
}

// newTokens returns the tokens of a node or a guest. Their fetches end with ctx.
func newTokens(ctx context.Context, client *httpClient, cfg Config, o options) *token.Cache {
	fetcher := &tokenFetcher{serverID: cfg.ID, http: client, replicas: newReplicas(cfg.TokenURL), tokens: o.tokens, log: o.log, trace: client.trace}
	tokens := token.NewCache(ctx, fetcher.fetch(cfg.ClientID, client.secrets.clientSecret))
	tokens.RetryAfter = tokenPause
	client.issued = tokens.Values
	return tokens
}

// fetch returns the function to pass to token.NewCache.
func (f *tokenFetcher) fetch(clientID string, secret *token.Secret) token.Fetch {
	client := token.Client{
		ID:   clientID,
		Post: f.post,
		Refused: func(err error) bool {
			se, ok := errors.AsType[*StatusError](err)
			return ok && se.Code == http.StatusBadRequest
		},
	}
	fetch := func(ctx context.Context, key token.Key, refresh string) (*oauth2.Token, error) {
		current := client
		var err error
		if current.Secret, err = secret.Get(); err != nil {
			return nil, &TokenError{Audience: key.Audience, Err: err}
		}
		return current.Fetch(ctx, key, refresh)
	}
	if f.tokens != nil {
		fetch = f.fetchGiven
	}
	return func(ctx context.Context, key token.Key, refresh string) (*oauth2.Token, error) {
		ctx, end := f.trace.tokenFetch(ensureCorrelationID(ctx), TokenKey(key))
		t, err := fetch(ctx, key, refresh)
		if err != nil {
			err = f.wrap(key, err)
			f.log.Warn("token request failed", zap.Error(err), correlationField(ctx))
		}
		end.call(err)
		return t, err
	}
}

// fetchGiven calls the function of WithTokens.
func (f *tokenFetcher) fetchGiven(ctx context.Context, key token.Key, _ string) (t *oauth2.Token, err error) {
	defer catchPanic("the function of WithTokens", &err)
	if t, err = f.tokens(ctx, TokenKey(key)); err == nil {
		err = token.Check(t, time.Now())
	}
	return t, err
}

// post sends a request to the replicas of the token service.
func (f *tokenFetcher) post(ctx context.Context, body any) (response []byte, err error) {
	ctx, cancel := context.WithTimeout(ctx, f.http.timeout)
	defer cancel()
	deadline, _ := ctx.Deadline()
	attempt := 0
	err = f.replicas.failover(ctx, deadline, http.MethodPost, func(ctx context.Context, url string) error {
		attempt++
		request := jsonRequest{method: http.MethodPost, address: url, serverID: f.serverID, body: body}
		resp, err := f.http.sendJSON(ctx, RequestInfo{Target: TargetTokenService, Attempt: attempt}, request)
		response = resp.body
		if err == nil && !json.Valid(response) {
			err = &InvalidResponseError{"mST", http.MethodPost, url, errors.New("the response is not JSON")}
		}
		return err
	}, func(ctx context.Context, from, to string, failure error) {
		logSwitch(ctx, f.log, "token service", from, to, failure)
	})
	return response, err
}

// wrap makes err a *TokenError that names the token service.
func (f *tokenFetcher) wrap(key token.Key, err error) error {
	if _, ok := errors.AsType[*TokenError](err); ok {
		return err
	}
	if f.tokens == nil && !namesRemote(err) {
		current, _ := f.replicas.order(false)
		err = &InvalidResponseError{"mST", http.MethodPost, current, err}
	}
	return &TokenError{Audience: key.Audience, Err: err}
}
