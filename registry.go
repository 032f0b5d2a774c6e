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
}

// A tokenSource is what is needed of a *token.Cache.
type tokenSource interface {
	Token(ctx context.Context, key token.Key) (string, error)
	Drop(key token.Key, accessToken string)
}

// register registers a server, or renews its lease, which is the same request. It returns the
// resource and the duration of the lease. An unmanaged node does not call its peers.
func (r *registryClient) register(ctx context.Context, self wire.Registration, managed bool) (it wire.ItResource, lease time.Duration, err error) {
	req := registryRequest{method: http.MethodPost, path: "/itResources", body: self}
	if !managed {
		req.path += "?managedCluster=off"
	}
	var response wire.Registered
	req.decode = func(body []byte) (err error) {
		response, err = decodeRegistration(body, self.ServerID)
		return err
	}
	if err := r.do(ctx, req); err != nil {
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
			newer, err = decodeDeleteResponse(body, serverID)
			return err
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
		if !tokenRejected(err) || attempt > 1 {
			return err
		}
		r.tokens.Drop(key, req.bearer)
	}
}

// withFailover tries the replicas, each at most once, until one sends a usable response. All
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
	current, urls := r.replicas.order(req.method == http.MethodPost && rand.N(failbackChance) == 0)
	var failure error
	for i, base := range urls {
		timeout := time.Until(deadline) / time.Duration(len(urls)-i)
		if i == len(urls)-1 {
			timeout = r.http.timeout // ctx bounds the last one
		}
		err := r.doReplica(ctx, base, timeout, req)
		if !shouldFailOver(req.method, err) {
			r.switchTo(ctx, current, base, failure)
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

func (r *registryClient) doReplica(ctx context.Context, base string, timeout time.Duration, req *registryRequest) error {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	req.sent++
	info := RequestInfo{Target: TargetRegistry, Attempt: req.sent}
	body, err := r.http.sendJSON(ctx, info, req.method, base+req.path, req.bearer, req.body)
	if err != nil {
		return err
	}
	if err := req.decode(body); err != nil {
		path, _, _ := strings.Cut(req.path, "?")
		return &InvalidResponseError{"mIT", req.method, base + path, err}
	}
	return nil
}

// shouldFailOver reports whether another replica may succeed where one failed with err. It may not
// if the response was usable, or if all replicas would send the same one: because the request is
// invalid or not allowed, or because the server is gone.
func shouldFailOver(method string, err error) bool {
	if se, ok := errors.AsType[*StatusError](err); ok {
		switch se.Code {
		case http.StatusBadRequest, http.StatusUnauthorized, http.StatusForbidden, http.StatusConflict, http.StatusRequestEntityTooLarge,
			http.StatusUnprocessableEntity:
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

// switchTo makes the replica that responded the current one. failure is the error of the replicas
// that were tried before it.
func (r *registryClient) switchTo(ctx context.Context, current, url string, failure error) {
	if !r.replicas.promote(current, url) {
		return
	}
	fields := []zap.Field{zap.String("from", current), zap.String("to", url), correlationField(ctx)}
	if failure != nil {
		r.log.Warn("switched registry replica", append(fields, zap.NamedError("reason", failure))...)
	} else {
		r.log.Info("failed back to preferred registry replica", fields...)
	}
	r.trace.replicaChanged(ctx, current, url, failure)
}

// replicas are the base URLs of one registry, and the one that is in use.
type replicas struct {
	urls []string // in the order of this node's preference

	mu      sync.Mutex // guards the field below
	current string
}

// newReplicas parses a valid list of URLs, and shuffles it: each replica then serves its share of
// the nodes, and if it fails the others share them. The order is random instead of derived from the
// server id, so that a node that restarts may start with another replica.
func newReplicas(list string) *replicas {
	urls := strings.Split(list, ",")
	rand.Shuffle(len(urls), func(i, j int) { urls[i], urls[j] = urls[j], urls[i] })
	return &replicas{urls: urls, current: urls[0]}
}

// order returns the current URL, and all URLs in the order in which to try them: from the current
// one on, or with failback from the preferred one on.
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
	http   *httpClient
	issuer string
	tokens func(context.Context, TokenKey) (*oauth2.Token, error)
	log    *zap.Logger
	trace  *hooks
}

// fetch returns the function to pass to token.NewCache.
func (f *tokenFetcher) fetch(clientID string, secret Secret) token.Fetch {
	client := token.Client{
		ID:     clientID,
		Secret: string(secret),
		Post: func(ctx context.Context, body any) ([]byte, error) {
			return f.http.sendJSON(ctx, RequestInfo{Target: TargetTokenService, Attempt: 1}, http.MethodPost, f.issuer, "", body)
		},
		Refused: func(err error) bool {
			se, ok := errors.AsType[*StatusError](err)
			return ok && se.Code == http.StatusBadRequest
		},
	}
	fetch := client.Fetch
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
		if end != nil {
			end(err)
		}
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

func (f *tokenFetcher) wrap(key token.Key, err error) error {
	if f.tokens == nil && !namesRemote(err) {
		err = &InvalidResponseError{"mST", http.MethodPost, f.issuer, err}
	}
	return &TokenError{Audience: key.Audience, Err: err}
}
