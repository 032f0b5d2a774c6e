package mit

import (
	"cmp"
	"crypto"
	"crypto/hmac"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"mime"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/golang-jwt/jwt/v5"
	"github.com/google/uuid"
	"go.uber.org/zap"

	"github.com/mimiktech/cluster/internal/httpjson"
	"github.com/mimiktech/cluster/internal/wire"
)

// DefaultScope is the scope of the tokens of a [Client] without one. It allows a node to announce
// servers and to report departures to its peers. npm nodes reject tokens without a scope.
const DefaultScope = "create:itResource delete:server"

// A Client may request tokens from a [TokenService].
type Client struct {
	ID     string `json:"id"`
	Secret string `json:"secret"`
	// Type is the client's type of service, the subType of its tokens.
	Type string `json:"type"`
	// Scope is the scope of its tokens, words separated by spaces; [DefaultScope] by default.
	Scope string `json:"scope,omitempty"`
	// Audiences and Customers are the audiences and customer names that the client may request;
	// empty: any.
	Audiences []string `json:"audiences,omitempty"`
	Customers []string `json:"customers,omitempty"`
	// ServerIDs, if set, binds each token to the server for which it is requested. These are the ids
	// that the client may request, "*" for any. The request must have the id in the header
	// X-Server-Id, which nodes of this module send, and the token has it in the claim serverId. A
	// [Registry] lets its holder register and delete no other server, and peers accept its
	// announcements of that server only. npm nodes need a client without ServerIDs.
	ServerIDs []string `json:"serverIds,omitempty"`
}

// TokenConfig configures a [TokenService]. Issuer and Key are mandatory. The zero value of any
// other field means its default.
type TokenConfig struct {
	// Issuer is the iss of every token. By mimik's convention it is the URL of the service.
	Issuer string
	// Key signs the tokens (HS256). Every node and registry that verifies tokens needs it.
	Key string
	// SigningKey, if set, signs access tokens instead of Key: an RSA key with RS256, an ECDSA key
	// on P-256 with ES256. [TokenService.ServeJWKS] publishes its public key. Key then signs only
	// refresh tokens, and no node needs it. npm nodes verify HS256 only.
	SigningKey crypto.Signer
	// Clients may request tokens. [TokenService.SetClient] adds further ones.
	Clients []Client

	// AccessTokenTTL and RefreshTokenTTL are the lifetimes of tokens, in whole seconds; a day and
	// 30 days by default. A refresh does not extend the RefreshTokenTTL: when it is over, a client
	// must send its secret again.
	AccessTokenTTL, RefreshTokenTTL time.Duration

	// NoGuessDelay lets clients send wrong secrets without a delay. By default, more than five
	// wrong secrets of a client at one address, or more than a hundred from the address, cause
	// a delay, in which requests get a 429. The delay is a second, and doubles with each wrong
	// secret, up to a minute. Each minute, one wrong secret fewer counts. Set NoGuessDelay
	// behind a proxy, which hides the addresses.
	NoGuessDelay bool

	// Logger logs every token request; nil: no log.
	Logger *zap.Logger
}

// A TokenService issues tokens (mST). It is an [http.Handler] that responds to a POST, at any path,
// with an access token and a refresh token.
//
// A request in JSON gets mimik's response, with the tokens in data. A request with a form gets the
// response of an OAuth2 token endpoint (RFC 6749). It may have the client's credentials in the form
// or in Basic authorization. A standard OAuth2 client works if it sends the audience as an
// additional parameter.
//
// Its methods are safe for concurrent use. It keeps no record of access tokens: they are valid
// until they expire or the keys change. Refresh tokens also become invalid when the secret of their
// client changes, or when one of them is used twice. Wrong secrets delay later requests of the same
// client and address.
type TokenService struct {
	cfg TokenConfig // read-only, without Key and Clients
	log *zap.Logger

	guesses  guesses
	families families
	metrics  tokenMetrics

	mu      sync.Mutex    // guards the fields below
	signer  signer        // of access tokens, if SigningKey is set
	keys    []signingKeys // current, previous
	clients map[string]knownClient
}

// NewTokenService returns a token service, or one error that names every problem of cfg.
func NewTokenService(cfg TokenConfig) (*TokenService, error) {
	errs := []error{
		require("Issuer", cfg.Issuer),
		require("Key", cfg.Key),
		checkTTL("AccessTokenTTL", cfg.accessTokenTTL()),
		checkTTL("RefreshTokenTTL", cfg.refreshTokenTTL()),
	}
	s := &TokenService{
		guesses: guesses{off: cfg.NoGuessDelay},
		metrics: newTokenMetrics(),
		log:     orNop(cfg.Logger),
		keys:    []signingKeys{newSigningKeys(cfg.Key)},
	}
	if cfg.SigningKey != nil {
		var err error
		if s.signer, err = newSigner(cfg.SigningKey); err != nil {
			errs = append(errs, fmt.Errorf("invalid SigningKey: %w", err))
		}
	}
	var err error
	s.clients, err = newKnownClients(cfg.Clients)
	if err := errors.Join(append(errs, err)...); err != nil {
		return nil, fmt.Errorf("mit: token service: %w", err)
	}
	cfg.Key, cfg.SigningKey, cfg.Clients = "", nil, nil
	s.cfg = cfg
	return s, nil
}

// SetClient adds a client or replaces the one with the same ID.
func (s *TokenService) SetClient(c Client) error {
	if err := c.validate(); err != nil {
		return fmt.Errorf("mit: %w", err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.clients[c.ID] = newKnownClient(c)
	return nil
}

// SetClients replaces all clients. An invalid client is an error, and changes nothing. Clients that
// are not among the given ones are removed, as by [TokenService.RemoveClient].
func (s *TokenService) SetClients(clients []Client) error {
	known, err := newKnownClients(clients)
	if err != nil {
		return fmt.Errorf("mit: %w", err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.clients = known
	return nil
}

// RemoveClient removes a client. Its access tokens stay valid until they expire. Its refresh tokens
// become invalid.
func (s *TokenService) RemoveClient(id string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.clients, id)
}

// SetKey changes the signing key. Refresh tokens signed with the previous key are still accepted.
// Those signed with earlier keys are not. An empty key is an error.
func (s *TokenService) SetKey(key string) error {
	if err := require("key", key); err != nil {
		return fmt.Errorf("mit: %w", err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.keys = []signingKeys{newSigningKeys(key), s.keys[0]}
	return nil
}

// ServeHTTP implements [http.Handler].
func (s *TokenService) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	measure(s.metrics.requests, w, func(w http.ResponseWriter) string {
		s.respond(w, r)
		return "token"
	})
}

func (s *TokenService) respond(w http.ResponseWriter, r *http.Request) {
	r = httpjson.Correlate(w, r)
	w.Header().Set("Cache-Control", "no-store")
	if isForm(r) {
		tokens, err := s.serve(w, r, formParser(r))
		if err != nil {
			s.writeFormError(w, r, err)
			return
		}
		writeJSON(w, http.StatusOK, tokens)
		return
	}
	tokens, err := s.serve(w, r, parseJSON)
	if err != nil {
		apiErr := s.rejected(w, r, err)
		httpjson.WriteError(w, apiErr.status, apiErr.message)
		return
	}
	writeJSON(w, http.StatusOK, struct {
		Data tokenResponse `json:"data"`
	}{tokens})
}

// newKnownClients returns clients by their ids, and one error that names every problem.
func newKnownClients(clients []Client) (map[string]knownClient, error) {
	known := make(map[string]knownClient, len(clients))
	var errs []error
	for _, c := range clients {
		if _, duplicate := known[c.ID]; duplicate {
			errs = append(errs, fmt.Errorf("duplicate client ID %q", c.ID))
		}
		errs = append(errs, c.validate())
		known[c.ID] = newKnownClient(c)
	}
	return known, errors.Join(errs...)
}

const (
	grantClient  = "client_credentials"
	grantRefresh = "refresh_token"

	typeCluster = "cluster"
	subClients  = "@clients" // suffix of the client id in sub

	maxTokenRequestBytes = 64 << 10
)

// anyServerID in the ServerIDs of a client allows any id.
const anyServerID = "*"

func (c Client) validate() error {
	errs := []error{require("client ID", c.ID), require("client Secret", c.Secret), require("client Type", c.Type)}
	for _, id := range c.ServerIDs {
		if err := wire.CheckServerID(id); err != nil {
			errs = append(errs, fmt.Errorf("invalid ServerIDs of client %q: an id %w", c.ID, err))
		}
	}
	return errors.Join(errs...)
}

func (c TokenConfig) accessTokenTTL() time.Duration { return cmp.Or(c.AccessTokenTTL, 24*time.Hour) }

func (c TokenConfig) refreshTokenTTL() time.Duration {
	return cmp.Or(c.RefreshTokenTTL, 30*24*time.Hour)
}

type knownClient struct {
	Client              // without Secret
	secretHash [32]byte // SHA-256
}

func newKnownClient(c Client) knownClient {
	k := knownClient{Client: c, secretHash: sha256.Sum256([]byte(c.Secret))}
	k.Secret = ""
	k.Scope = cmp.Or(c.Scope, DefaultScope)
	return k
}

// signingKeys has one key for each kind of token. A verifier of access tokens checks only the
// signature, not the kind. So a refresh token with a key of its own is never valid as an access
// token.
type signingKeys struct{ access, refresh []byte }

func newSigningKeys(key string) signingKeys {
	mac := hmac.New(sha256.New, []byte(key))
	mac.Write([]byte("mST refresh token"))
	return signingKeys{access: []byte(key), refresh: mac.Sum(nil)}
}

func checkTTL(name string, ttl time.Duration) error {
	if ttl < time.Second {
		return fmt.Errorf("invalid %s %v: below one second", name, ttl)
	}
	return nil
}

// A tokenRequest is the body of a request, in JSON or as a form.
type tokenRequest struct {
	GrantType    string `json:"grant_type"`
	ClientID     string `json:"client_id"`
	ClientSecret string `json:"client_secret"`
	Audience     string `json:"audience"`
	Type         string `json:"type"`
	Customer     string `json:"customer_name"`
	RefreshToken string `json:"refresh_token"`
}

// A grant has the parameters of a pair of tokens. The refresh token contains it.
type grant struct {
	Audience string `json:"audience"`
	Type     string `json:"type,omitempty"`
	Customer string `json:"customer,omitempty"`
	ServerID string `json:"serverId,omitempty"`

	// Family and Generation identify the refresh token among the descendants of one request.
	Family     string `json:"family,omitempty"`
	Generation int    `json:"generation,omitempty"`

	expires time.Time // of the refresh token
}

type tokenResponse struct {
	AccessToken  string `json:"access_token"`
	RefreshToken string `json:"refresh_token"`
	TokenType    string `json:"token_type"`
	ExpiresIn    int64  `json:"expires_in"`
}

func isForm(r *http.Request) bool {
	mediaType, _, err := mime.ParseMediaType(r.Header.Get("Content-Type"))
	return err == nil && mediaType == "application/x-www-form-urlencoded"
}

// A clientError is an error of a request that names a known client.
type clientError struct {
	id string
	error
}

func (e *clientError) Unwrap() error { return e.error }

// rejected logs the error of a request and returns the one to respond with. The id of an unknown
// client is not logged, because it may be a misplaced secret.
func (s *TokenService) rejected(w http.ResponseWriter, r *http.Request, err error) *apiError {
	apiErr, ok := errors.AsType[*apiError](err)
	if !ok { // not caused by the caller
		s.log.Error("signing failed", zap.Error(err), httpjson.CorrelationField(r.Context()))
		apiErr = &apiError{status: http.StatusInternalServerError, message: "the token could not be signed"}
	}
	var client string
	if named, ok := errors.AsType[*clientError](err); ok {
		client = named.id
	}
	s.metrics.tokens.Add(1, tokenOutcome(apiErr))
	setRetryAfter(w.Header(), apiErr.retryAfter)
	s.log.Warn("token request rejected", zap.Int("statusCode", apiErr.status),
		zap.String("reason", apiErr.message), zap.String("clientId", client),
		zap.String("remoteAddress", r.RemoteAddr), httpjson.CorrelationField(r.Context()))
	return apiErr
}

// writeFormError adds the error code of RFC 6749 to the envelope.
func (s *TokenService) writeFormError(w http.ResponseWriter, r *http.Request, err error) {
	apiErr := s.rejected(w, r, err)
	if apiErr.status == http.StatusUnauthorized {
		w.Header().Set("WWW-Authenticate", `Basic realm="mST"`)
	}
	writeJSON(w, apiErr.status, struct {
		wire.Error
		OAuthCode string `json:"error"`
	}{httpjson.NewError(apiErr.status, apiErr.message), cmp.Or(apiErr.oauthCode, "invalid_request")})
}

type parseFunc func(body []byte) (tokenRequest, error)

func (s *TokenService) serve(w http.ResponseWriter, r *http.Request, parse parseFunc) (tokenResponse, error) {
	if r.Method != http.MethodPost {
		w.Header().Set("Allow", http.MethodPost)
		return tokenResponse{}, newAPIError(http.StatusMethodNotAllowed, "only POST is served here")
	}
	body, err := readBody(w, r, maxTokenRequestBytes)
	if err != nil {
		return tokenResponse{}, err
	}
	req, err := parse(body)
	if err != nil {
		return tokenResponse{}, err
	}
	client, grant, err := s.authorizeGrant(r, req)
	if err != nil {
		return tokenResponse{}, err
	}
	tokens, err := s.issue(client, grant)
	if err != nil {
		return tokenResponse{}, err
	}
	s.metrics.tokens.Add(1, tokenIssued)
	s.log.Info("token issued", zap.String("clientId", client.ID), zap.String("type", client.Type),
		zap.String("audience", grant.Audience), zap.Bool("cluster", grant.Type == typeCluster),
		zap.String("grant", req.GrantType), zap.String("serverId", grant.ServerID), zap.String("remoteAddress", r.RemoteAddr), httpjson.CorrelationField(r.Context()))
	return tokens, nil
}

func parseJSON(body []byte) (req tokenRequest, err error) {
	if json.Unmarshal(body, &req) != nil { // the error could quote a secret
		return req, newAPIError(http.StatusBadRequest, "the body is not a token request in JSON")
	}
	return req, nil
}

func formParser(r *http.Request) parseFunc {
	return func(body []byte) (tokenRequest, error) {
		form, err := url.ParseQuery(string(body))
		if err != nil {
			return tokenRequest{}, newAPIError(http.StatusBadRequest, "the body is not a form")
		}
		req := tokenRequest{
			GrantType:    form.Get("grant_type"),
			ClientID:     form.Get("client_id"),
			ClientSecret: form.Get("client_secret"),
			Audience:     form.Get("audience"),
			Type:         form.Get("type"),
			Customer:     form.Get("customer_name"),
			RefreshToken: form.Get("refresh_token"),
		}
		if id, secret, ok := r.BasicAuth(); ok { // both form-encoded, RFC 6749 section 2.3.1
			id, errID := url.QueryUnescape(id)
			secret, errSecret := url.QueryUnescape(secret)
			if errID != nil || errSecret != nil {
				return tokenRequest{}, errInvalidClient
			}
			req.ClientID, req.ClientSecret = id, secret
		}
		return req, nil
	}
}

var (
	errInvalidClient       = &apiError{status: http.StatusUnauthorized, message: "unknown client or wrong secret", oauthCode: "invalid_client"}
	errInvalidRefreshToken = &apiError{status: http.StatusBadRequest, message: "the refresh token is not valid", oauthCode: "invalid_grant"}
	errRefreshTokenReused  = &apiError{status: http.StatusBadRequest, message: "the refresh token was used before", oauthCode: "invalid_grant"}
	errUnsupportedGrant    = &apiError{status: http.StatusBadRequest, message: "grant_type is neither client_credentials nor refresh_token", oauthCode: "unsupported_grant_type"}
	errInvalidType         = &apiError{status: http.StatusBadRequest, message: "type is not cluster", oauthCode: "invalid_request"}
)

// authorizeGrant authenticates the client of a request, and returns it with the grant of its
// tokens.
func (s *TokenService) authorizeGrant(r *http.Request, req tokenRequest) (knownClient, grant, error) {
	var client knownClient
	var g grant
	var err error
	switch req.GrantType {
	case grantClient:
		client, err = s.authenticate(remoteAddress(r), req.ClientID, req.ClientSecret)
		if err == nil {
			g, err = s.newGrant(req)
		}
		if len(client.ServerIDs) > 0 {
			g.ServerID = r.Header.Get(wire.ServerIDHeader)
		}
	case grantRefresh:
		client, g, err = s.refresh(req.RefreshToken)
	default:
		err = errUnsupportedGrant
	}
	if err == nil {
		err = client.checkGrant(g)
	}
	if err != nil && client.ID != "" {
		err = &clientError{client.ID, err}
	}
	return client, g, err
}

func (s *TokenService) newGrant(req tokenRequest) (grant, error) {
	switch {
	case req.Audience == "":
		return grant{}, newAPIError(http.StatusBadRequest, "audience is missing")
	case req.Type != "" && req.Type != typeCluster:
		return grant{}, errInvalidType
	}
	return grant{
		Audience: req.Audience, Type: req.Type, Customer: req.Customer,
		Family: uuid.NewString(), expires: time.Now().Add(s.cfg.refreshTokenTTL()),
	}, nil
}

// checkGrant returns an error for an audience, customer or server that the client may not request.
// It also applies to a refresh of a token that was issued earlier.
func (c knownClient) checkGrant(g grant) error {
	if len(c.Audiences) > 0 && !slices.Contains(c.Audiences, g.Audience) {
		return &apiError{status: http.StatusBadRequest, message: "the client may not request this audience", oauthCode: "invalid_target"}
	}
	if g.Customer != "" && len(c.Customers) > 0 && !slices.Contains(c.Customers, g.Customer) {
		return &apiError{status: http.StatusBadRequest, message: "the client may not request this customer_name", oauthCode: "invalid_request"}
	}
	return c.checkServerID(g.ServerID)
}

// checkServerID returns an error if a client with ServerIDs may not request a token for a server.
func (c knownClient) checkServerID(id string) error {
	if len(c.ServerIDs) == 0 {
		return nil
	}
	if err := wire.CheckServerID(id); err != nil {
		return newAPIError(http.StatusBadRequest, "the tokens of the client are bound to a server, and the header %s %v", wire.ServerIDHeader, err)
	}
	if !slices.Contains(c.ServerIDs, id) && !slices.Contains(c.ServerIDs, anyServerID) {
		return newAPIError(http.StatusBadRequest, "the client may not request a token for this server")
	}
	return nil
}

// authenticate checks the secret of a client. It takes as long for an unknown client as for a wrong
// secret. With an error, it returns the client that the request names, or an empty one.
func (s *TokenService) authenticate(address, id, secret string) (knownClient, error) {
	now := time.Now()
	client, ok := s.client(id)
	key := newGuesserKey(address, id)
	if wait := s.guesses.wait(now, key); wait > 0 {
		return client, errBusy(http.StatusTooManyRequests, wait, "too many wrong secrets: try again later")
	}
	hash := sha256.Sum256([]byte(secret))
	if subtle.ConstantTimeCompare(hash[:], client.secretHash[:]) != 1 || !ok {
		s.guesses.wrong(now, key)
		return client, errInvalidClient
	}
	s.guesses.right(key)
	return client, nil
}

func (s *TokenService) client(id string) (client knownClient, ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	client, ok = s.clients[id]
	return client, ok
}

type refreshClaims struct {
	jwt.RegisteredClaims
	Grant grant `json:"grant"`
}

func (s *TokenService) refresh(raw string) (knownClient, grant, error) {
	var client knownClient
	var claims refreshClaims
	_, err := jwt.ParseWithClaims(raw, &claims, func(*jwt.Token) (any, error) {
		var ok bool
		if client, ok = s.client(strings.TrimSuffix(claims.Subject, subClients)); !ok {
			return nil, errInvalidRefreshToken
		}
		s.mu.Lock()
		defer s.mu.Unlock()
		var keys jwt.VerificationKeySet
		for _, k := range s.keys {
			keys.Keys = append(keys.Keys, client.refreshKey(k))
		}
		return keys, nil
	},
		jwt.WithValidMethods([]string{jwt.SigningMethodHS256.Alg()}),
		jwt.WithExpirationRequired(),
		jwt.WithIssuer(s.cfg.Issuer),
		jwt.WithAudience(s.cfg.Issuer))
	g := claims.Grant
	if err != nil {
		return knownClient{}, grant{}, errInvalidRefreshToken // the client is not authenticated
	}
	g.expires = claims.ExpiresAt.Time
	if !s.families.use(g.Family, g.Generation, g.expires, time.Now()) {
		return client, grant{}, errRefreshTokenReused
	}
	g.Generation++
	return client, g, nil
}

// refreshKey returns the key of the client's refresh tokens. It changes with the client's secret.
func (c knownClient) refreshKey(k signingKeys) []byte {
	mac := hmac.New(sha256.New, k.refresh)
	mac.Write(c.secretHash[:])
	return mac.Sum(nil)
}

func (s *TokenService) issue(client knownClient, g grant) (tokenResponse, error) {
	s.mu.Lock()
	key := s.keys[0]
	s.mu.Unlock()
	now := time.Now()
	common := jwt.MapClaims{
		"iss": s.cfg.Issuer,
		"sub": client.ID + subClients,
		"iat": now.Unix(),
	}
	access := maps.Clone(common)
	access["aud"] = g.Audience
	access["subType"] = client.Type
	access["scope"] = client.Scope
	if g.Type != "" {
		access["type"] = g.Type
	}
	if g.Customer != "" {
		access["cust"] = g.Customer
	}
	if len(client.ServerIDs) > 0 {
		access["serverId"] = g.ServerID
	}
	refresh := maps.Clone(common)
	refresh["aud"] = s.cfg.Issuer
	refresh["grant"] = g

	accessToken, err := s.signAccess(access, now.Add(s.cfg.accessTokenTTL()), key.access)
	if err != nil {
		return tokenResponse{}, err
	}
	refreshToken, err := sign(refresh, g.expires, client.refreshKey(key))
	if err != nil {
		return tokenResponse{}, err
	}
	return tokenResponse{
		AccessToken:  accessToken,
		RefreshToken: refreshToken,
		TokenType:    "Bearer",
		ExpiresIn:    int64(s.cfg.accessTokenTTL() / time.Second),
	}, nil
}

// signAccess signs with the SigningKey, or with key if there is none.
func (s *TokenService) signAccess(claims jwt.MapClaims, expires time.Time, key []byte) (string, error) {
	by := s.currentSigner()
	if by.key == nil {
		return sign(claims, expires, key)
	}
	addExpiry(claims, expires)
	t := jwt.NewWithClaims(by.method, claims)
	t.Header["kid"] = by.id
	return t.SignedString(by.key)
}

func sign(claims jwt.MapClaims, expires time.Time, key []byte) (string, error) {
	addExpiry(claims, expires)
	return jwt.NewWithClaims(jwt.SigningMethodHS256, claims).SignedString(key)
}

func addExpiry(claims jwt.MapClaims, expires time.Time) {
	claims["exp"] = expires.Unix()
	claims["jti"] = uuid.NewString()
}
