package cluster

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"iter"
	"net/http"
	"net/netip"
	"net/url"
	"sync"

	"go.uber.org/zap"

	"github.com/mimiktech/cluster/internal/ctxutil"
	"github.com/mimiktech/cluster/internal/membership"
	"github.com/mimiktech/cluster/internal/token"
	"github.com/mimiktech/cluster/internal/wire"
)

// A Guest reads the servers of a cluster and calls them, without being one of them. It is for tools
// and jobs. It has no lease, is not announced, evicts no server, and does not change the
// environment of the process. It sends only the requests of its methods, and requests for their
// tokens.
//
// [Guest.ReadRegistry] and [Guest.ReadServer] replace the list of servers. If one of them fails,
// the previous list stays. Nothing else changes the list. The methods are safe for concurrent use.
type Guest struct {
	cfg      Config // with its defaults
	policy   PeerPolicy
	log      *zap.Logger
	http     *httpClient
	registry *registryClient // nil without a RegistryURL
	peers    *peerClient
	cancel   context.CancelCauseFunc

	mu      sync.Mutex // guards the fields below
	view    membership.View
	skipped string // why entries of the last list were left out
}

// Observe returns a guest of the cluster of type cfg.Type. It does no I/O and starts no goroutine.
//
// A guest needs the Type, the PeerAudience, the Issuer and the credentials of a node. ReadRegistry
// also needs RegistryURL and RegistryAudience. The limits, PeerNetworks, TokenURL and Version have
// the same effect as for a node. All other fields are ignored, and so are options about leases,
// eviction and received tokens. One error names all fields that are missing or invalid, by their
// environment variables.
func Observe(cfg Config, opts ...Option) (*Guest, error) {
	o := applyOptions(opts)
	cfg.ID, cfg.Location = guestID, nil
	if err := configError(cfg.validateGuest(o)); err != nil {
		return nil, err
	}
	cfg = cfg.withDefaults(netip.Addr{})
	o.policy, _ = cfg.peerPolicy(o.policy) // it is valid
	client, err := newSender(cfg, &o)
	if err != nil {
		return nil, configError([]error{err})
	}
	ctx, cancel := context.WithCancelCause(context.Background())
	tokens := newTokens(ctx, client, cfg, o)
	g := &Guest{cfg: cfg, policy: o.policy, log: o.log, http: client, peers: newPeerClient(ctx, client, tokens, cfg, o), cancel: cancel}
	if cfg.RegistryURL != "" {
		g.registry = newRegistryClient(client, tokens, cfg, o)
	}
	return g, nil
}

// ReadRegistry reads the list of servers from the registry: that of the itResource with the id
// [Guest.ResourceID]. The registry must serve GET {RegistryURL}/itResources/{id}, as the registry
// of this module does.
func (g *Guest) ReadRegistry(ctx context.Context) error {
	if g.registry == nil {
		return configError([]error{errors.New("MIT_URL is missing")})
	}
	return g.read(ctx, "the registry", func(ctx context.Context) (wire.ItResource, error) {
		return g.registry.read(ctx, g.ResourceID())
	})
}

// ReadServer reads the list of servers from the view of the server at clusterBaseURL, which may be
// a node of the npm module. The request is an announcement without servers, which does not change
// that view.
func (g *Guest) ReadServer(ctx context.Context, clusterBaseURL string) error {
	return g.read(ctx, "the view of a server", func(ctx context.Context) (wire.ItResource, error) {
		base, err := g.policy.checkServer(wire.Server{ClusterBaseURL: clusterBaseURL})
		if err != nil {
			return wire.ItResource{}, err
		}
		return g.askServer(ctx, base)
	})
}

// ResourceID returns the id of the itResource that was last read. Before the first one is read, it
// is the id that the registry of this module assigns to the Type.
func (g *Guest) ResourceID() string {
	return cmp.Or(g.current().ID(), wire.ResourceID(g.cfg.Type))
}

// Servers returns the servers that were last read, sorted by id. It does not block. The caller owns
// the slice.
func (g *Guest) Servers() []Server { return serversOf(g.current()) }

// RPCluster sends req to every server in the list, or to those that req selects. It is like
// [Cluster.RPCluster] without eviction. If no list has been read, it returns an error.
func (g *Guest) RPCluster(ctx context.Context, req Request) (*Response, error) {
	call, view, err := g.prepare(req)
	if err != nil {
		return nil, err
	}
	return g.peers.collect(ensureCorrelationID(ctx), call, view), nil
}

// Stream is like RPCluster, but yields each outcome as it arrives, as [Cluster.Stream] does.
func (g *Guest) Stream(ctx context.Context, req Request) iter.Seq[Outcome] {
	return g.peers.stream(ctx, func() (*preparedRequest, membership.View, error) { return g.prepare(req) })
}

// Token returns a cached access token, or a new one from the token service. The token is a secret.
func (g *Guest) Token(ctx context.Context, key TokenKey) (string, error) {
	if err := context.Cause(g.peers.ctx); err != nil {
		return "", err
	}
	ctx, cancel := ctxutil.Merge(ensureCorrelationID(ctx), g.peers.ctx)
	defer cancel()
	return g.peers.tokens.Token(ctx, token.Key(key))
}

// Close ends calls in progress with [ErrClosed] and closes all connections. It returns nil, and may
// be called again.
func (g *Guest) Close() error {
	g.cancel(ErrClosed)
	g.peers.close()
	g.http.transports.close()
	return nil
}

// Format implements fmt.Formatter; see [Cluster.Format].
func (g *Guest) Format(f fmt.State, _ rune) { _, _ = fmt.Fprintf(f, "%s/%s", g.cfg.Type, g.cfg.ID) }

// guestID takes the place of the server id in the user agent and in log lines.
const guestID = "guest"

var errNoList = errors.New("cluster: the guest has not read a list of servers")

// read fetches a resource and makes it the view. what describes its source in errors.
func (g *Guest) read(ctx context.Context, what string, fetch func(context.Context) (wire.ItResource, error)) error {
	ctx, cancel := ctxutil.Merge(ensureCorrelationID(ctx), g.peers.ctx)
	defer cancel()
	err := context.Cause(g.peers.ctx)
	var it wire.ItResource
	if err == nil {
		it, err = fetch(ctx)
	}
	if err == nil {
		err = g.setView(ctx, it)
	}
	if err == nil {
		return nil
	}
	if cause := context.Cause(ctx); cause != nil && !errors.Is(err, cause) {
		err = fmt.Errorf("%w, after: %w", cause, err)
	}
	return fmt.Errorf("cluster: reading %s: %w", what, err)
}

func (g *Guest) current() membership.View {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.view
}

// setView makes a resource the view, unless it has another type.
func (g *Guest) setView(ctx context.Context, it wire.ItResource) error {
	if it.Type != "" && it.Type != g.cfg.Type {
		return fmt.Errorf("the itResource is not of type %q", g.cfg.Type) // its type could echo a secret
	}
	skipped := ""
	if it.Skipped != nil {
		skipped = it.Skipped.Error()
	}
	view := membership.New(it, g.policy.checkServer, membership.View{})
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.view = view; skipped != "" && skipped != g.skipped {
		g.log.Warn("the list of servers contains invalid entries", zap.Error(it.Skipped), correlationField(ctx))
	}
	g.skipped = skipped
	return nil
}

func (g *Guest) prepare(req Request) (*preparedRequest, membership.View, error) {
	if err := context.Cause(g.peers.ctx); err != nil {
		return nil, membership.View{}, err
	}
	call, err := req.prepare(g.cfg.MaxRequestBytes)
	if err != nil {
		return nil, membership.View{}, err
	}
	view := g.current()
	if view.ID() == "" {
		return nil, membership.View{}, errNoList
	}
	call.noEviction = true
	return call, view, nil
}

// askServer announces an itResource without servers to the server at base, which responds with its
// view. It repeats the request once with a new token if the server rejects the token.
func (g *Guest) askServer(ctx context.Context, base *url.URL) (wire.ItResource, error) {
	ctx, cancel := context.WithTimeout(ctx, g.cfg.RequestTimeout)
	defer cancel()
	body, _ := wire.ItResource{ID: g.ResourceID(), Type: g.cfg.Type}.MarshalJSON() // valid strings
	key := token.Key{Audience: g.cfg.PeerAudience, Cluster: true}
	for attempt := 1; ; attempt++ {
		bearer, err := g.peers.tokens.Token(ctx, key)
		if err != nil {
			return wire.ItResource{}, err
		}
		it, err := g.sendAnnouncement(ctx, base, body, bearer, attempt)
		if !tokenRejected(err) || attempt > 1 {
			return it, err
		}
		g.peers.tokens.Drop(key, bearer)
	}
}

func (g *Guest) sendAnnouncement(ctx context.Context, base *url.URL, body []byte, bearer string, attempt int) (wire.ItResource, error) {
	req := &http.Request{
		Method: http.MethodPost, URL: appendRef(base, &url.URL{Path: "/itResources"}), Header: g.http.header(ctx, bearer),
		ContentLength: int64(len(body)), GetBody: func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(body)), nil },
	}
	req.Header["Content-Type"] = []string{"application/json"}
	info := RequestInfo{Target: TargetPeer, Server: Server{ClusterBaseURL: base.String()}, Attempt: attempt}
	resp, err := g.http.do(ctx, g.http.transports.newConn, info, req, requestForm{})
	if err != nil {
		return wire.ItResource{}, err
	}
	it, err := g.decodeView(resp.body)
	if err != nil {
		err = g.http.invalidResponse(info.remote(), req, err)
	}
	return it, err
}

// decodeView returns the view in the response of a server. It must list a server: only a server
// that has not registered has an empty view.
func (g *Guest) decodeView(body []byte) (wire.ItResource, error) {
	var envelope struct {
		Data *wire.ItResource `json:"data"`
	}
	if err := json.Unmarshal(body, &envelope); err != nil {
		return wire.ItResource{}, err
	}
	it := envelope.Data
	switch {
	case it == nil:
		return wire.ItResource{}, errors.New("it has no itResource")
	case len(it.Servers) == 0:
		return wire.ItResource{}, errors.Join(errors.New("it lists no server"), it.Skipped)
	}
	err := g.http.dropSecrets(it, "")
	return *it, err
}
