package mit

import (
	"cmp"
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
	"strings"
	"sync"
	"time"

	"github.com/golang-jwt/jwt/v5"
	"github.com/google/uuid"
	"go.uber.org/zap"

	"github.com/mimiktech/cluster/internal/wire"
)

const (
	grantClient  = "client_credentials"
	grantRefresh = "refresh_token"

	typeCluster = "cluster"
	subClients  = "@clients" // what follows the client id in sub

	maxTokenBody = 64 << 10
)

// DefaultScope is the scope of the tokens of a [Client] that names none: what a node needs to
// tell its peers who is in the cluster and who has left. npm nodes refuse tokens without any.
const DefaultScope = "create:itResource delete:server"

// A Client is somebody the token service knows.
type Client struct {
	ID     string `json:"id"`
	Secret string `json:"secret"`
	// Type is the type of service that the client is; it becomes subType in its tokens.
	Type string `json:"type"`
	// Scope is that of its tokens, words separated by blanks; [DefaultScope] by default.
	Scope string `json:"scope,omitempty"`
}

func (c Client) check() error {
	return errors.Join(missing("client ID", c.ID), missing("client Secret", c.Secret), missing("client Type", c.Type))
}

// TokenConfig says how a [TokenService] behaves. Issuer and Key are mandatory; the zero value
// of any other field is its default.
type TokenConfig struct {
	// Issuer is the iss of every token, and by mimik's convention the URL at which the
	// service answers.
	Issuer string
	// Key signs the tokens (HS256); whoever checks them has it too.
	Key string
	// Clients are those who may ask. More can come later, see [TokenService.SetClient].
	Clients []Client

	// AccessTokenTTL and RefreshTokenTTL are how long tokens are good for: by default a day, and a
	// month of 30. They count in whole seconds.
	AccessTokenTTL, RefreshTokenTTL time.Duration

	// Logger gets a line for every token given or refused; nothing is logged by default.
	Logger *zap.Logger
}

func (c TokenConfig) accessLife() time.Duration  { return cmp.Or(c.AccessTokenTTL, 24*time.Hour) }
func (c TokenConfig) refreshLife() time.Duration { return cmp.Or(c.RefreshTokenTTL, 30*24*time.Hour) }

// A TokenService is an mST: an [http.Handler] that answers a POST, at whatever path it is
// mounted, with an access token and a refresh token.
//
// Asked in JSON it answers as mimik's does, with the tokens inside data. Asked with a form,
// it is a plain OAuth2 token endpoint (RFC 6749, with the client's name and secret in the
// form or in Basic authorization), so that a standard client, given the audience as an
// additional parameter, can be used.
//
// Its methods may be called from any goroutine. It keeps no record of the tokens it gave:
// they are good until they expire or the keys change.
type TokenService struct {
	cfg TokenConfig // read-only, and without its secrets
	log *zap.Logger

	mu      sync.Mutex // guards the fields below
	keys    []signer   // the present one, then the one before
	clients map[string]knownClient
}

type knownClient struct {
	Client          // without its secret
	secret [32]byte // the hash of it
}

func known(c Client) knownClient {
	k := knownClient{Client: c, secret: sha256.Sum256([]byte(c.Secret))}
	k.Secret = ""
	k.Scope = cmp.Or(c.Scope, DefaultScope)
	return k
}

// A signer has a key for each kind of token. Whoever checks access tokens knows their key but
// not what kinds there are, so a refresh token is signed with another: it cannot be taken for
// an access token anywhere, whatever audiences a deployment gives its parties.
type signer struct{ access, refresh []byte }

func newSigner(key string) signer {
	mac := hmac.New(sha256.New, []byte(key))
	mac.Write([]byte("mST refresh token"))
	return signer{access: []byte(key), refresh: mac.Sum(nil)}
}

// NewTokenService returns a token service, or one error that names all that is wrong with
// cfg.
func NewTokenService(cfg TokenConfig) (*TokenService, error) {
	errs := []error{
		missing("Issuer", cfg.Issuer),
		missing("Key", cfg.Key),
		checkLife("AccessTokenTTL", cfg.accessLife()),
		checkLife("RefreshTokenTTL", cfg.refreshLife()),
	}
	s := &TokenService{
		log:     orNop(cfg.Logger),
		keys:    []signer{newSigner(cfg.Key)},
		clients: make(map[string]knownClient, len(cfg.Clients)),
	}
	for _, c := range cfg.Clients {
		if _, twice := s.clients[c.ID]; twice {
			errs = append(errs, fmt.Errorf("client ID %q is there twice", c.ID))
		}
		errs = append(errs, c.check())
		s.clients[c.ID] = known(c)
	}
	if err := errors.Join(errs...); err != nil {
		return nil, fmt.Errorf("mit: token service: %w", err)
	}
	cfg.Key, cfg.Clients = "", nil
	s.cfg = cfg
	return s, nil
}

func checkLife(name string, life time.Duration) error {
	if life < time.Second {
		return fmt.Errorf("invalid %s %v: below one second", name, life)
	}
	return nil
}

// SetClient adds a client, or replaces the one that has its ID.
func (s *TokenService) SetClient(c Client) error {
	if err := c.check(); err != nil {
		return fmt.Errorf("mit: %w", err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.clients[c.ID] = known(c)
	return nil
}

// RemoveClient makes a client a stranger. The access tokens it has stay good until they
// expire.
func (s *TokenService) RemoveClient(id string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.clients, id)
}

// SetKey changes the key that tokens are signed with. Refresh tokens signed with the one
// before are still taken, those of earlier ones are not. It is an error if key is empty.
func (s *TokenService) SetKey(key string) error {
	if err := missing("key", key); err != nil {
		return fmt.Errorf("mit: %w", err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.keys = []signer{newSigner(key), s.keys[0]}
	return nil
}

// A tokenRequest is what the body asks for, in JSON or as a form.
type tokenRequest struct {
	GrantType    string `json:"grant_type"`
	ClientID     string `json:"client_id"`
	ClientSecret string `json:"client_secret"`
	Audience     string `json:"audience"`
	Type         string `json:"type"`
	Customer     string `json:"customer_name"`
	RefreshToken string `json:"refresh_token"`
}

// A grant is what a pair of tokens is good for. The refresh token carries it.
type grant struct {
	Audience string `json:"audience"`
	Type     string `json:"type,omitempty"`
	Customer string `json:"customer,omitempty"`
}

type tokenAnswer struct {
	AccessToken  string `json:"access_token"`
	RefreshToken string `json:"refresh_token"`
	TokenType    string `json:"token_type"`
	ExpiresIn    int64  `json:"expires_in"`
}

// ServeHTTP implements [http.Handler].
func (s *TokenService) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	r = correlate(w, r)
	w.Header().Set("Cache-Control", "no-store")
	plain := isForm(r)
	tokens, err := s.serve(w, r, plain)
	switch {
	case err != nil:
		s.fail(w, r, err, plain)
	case plain:
		answer(w, http.StatusOK, tokens)
	default:
		answer(w, http.StatusOK, struct {
			Data tokenAnswer `json:"data"`
		}{tokens})
	}
}

func isForm(r *http.Request) bool {
	kind, _, err := mime.ParseMediaType(r.Header.Get("Content-Type"))
	return err == nil && kind == "application/x-www-form-urlencoded"
}

func (s *TokenService) fail(w http.ResponseWriter, r *http.Request, err error, plain bool) {
	no, ok := errors.AsType[*refusal](err)
	if !ok { // signing failed: nothing that a caller could have caused
		s.log.Error("token not signed", zap.Error(err), correlation(r.Context()))
		no = &refusal{status: http.StatusInternalServerError, message: "the token could not be signed"}
	}
	s.log.Warn("token refused", zap.Int("statusCode", no.status), zap.String("reason", no.message), correlation(r.Context()))
	if !plain {
		answer(w, no.status, envelope(no.status, no.message))
		return
	}
	if no.status == http.StatusUnauthorized {
		w.Header().Set("WWW-Authenticate", `Basic realm="mST"`)
	}
	answer(w, no.status, struct {
		wire.Error
		OAuth string `json:"error"`
	}{envelope(no.status, no.message), cmp.Or(no.oauth, "invalid_request")})
}

func (s *TokenService) serve(w http.ResponseWriter, r *http.Request, plain bool) (tokenAnswer, error) {
	if r.Method != http.MethodPost {
		w.Header().Set("Allow", http.MethodPost)
		return tokenAnswer{}, refuse(http.StatusMethodNotAllowed, "only POST is served here")
	}
	body, err := readBody(w, r, maxTokenBody)
	if err != nil {
		return tokenAnswer{}, err
	}
	read := fromJSON
	if plain {
		read = fromForm(r)
	}
	req, err := read(body)
	if err != nil {
		return tokenAnswer{}, err
	}
	client, grant, err := s.judge(req)
	if err != nil {
		return tokenAnswer{}, err
	}
	tokens, err := s.issue(client, grant)
	if err != nil {
		return tokenAnswer{}, err
	}
	s.log.Info("token given", zap.String("clientId", client.ID), zap.String("type", client.Type),
		zap.String("audience", grant.Audience), zap.Bool("cluster", grant.Type == typeCluster),
		zap.String("grant", req.GrantType), correlation(r.Context()))
	return tokens, nil
}

func fromJSON(body []byte) (req tokenRequest, err error) {
	if json.Unmarshal(body, &req) != nil { // its error could quote a secret
		return req, refuse(http.StatusBadRequest, "the body is not a token request in JSON")
	}
	return req, nil
}

func fromForm(r *http.Request) func(body []byte) (tokenRequest, error) {
	return func(body []byte) (tokenRequest, error) {
		form, err := url.ParseQuery(string(body))
		if err != nil {
			return tokenRequest{}, refuse(http.StatusBadRequest, "the body is not a form")
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
		if id, secret, ok := r.BasicAuth(); ok { // form-encoded before they were joined
			id, errID := url.QueryUnescape(id)
			secret, errSecret := url.QueryUnescape(secret)
			if errID != nil || errSecret != nil {
				return tokenRequest{}, errClient
			}
			req.ClientID, req.ClientSecret = id, secret
		}
		return req, nil
	}
}

var (
	errClient  = &refusal{http.StatusUnauthorized, "the client is unknown, or its secret is another", "invalid_client"}
	errRefresh = &refusal{http.StatusBadRequest, "the refresh token is not valid", "invalid_grant"}
	errGrant   = &refusal{http.StatusBadRequest, "grant_type is neither client_credentials nor refresh_token", "unsupported_grant_type"}
	errType    = &refusal{http.StatusBadRequest, "type is not cluster", "invalid_request"}
)

// judge decides who gets what.
func (s *TokenService) judge(req tokenRequest) (knownClient, grant, error) {
	switch req.GrantType {
	case grantClient:
		client, err := s.authenticate(req.ClientID, req.ClientSecret)
		switch {
		case err != nil:
			return knownClient{}, grant{}, err
		case req.Audience == "":
			return knownClient{}, grant{}, refuse(http.StatusBadRequest, "audience is missing")
		case req.Type != "" && req.Type != typeCluster:
			return knownClient{}, grant{}, errType
		}
		return client, grant{req.Audience, req.Type, req.Customer}, nil
	case grantRefresh:
		return s.refresh(req.RefreshToken)
	default:
		return knownClient{}, grant{}, errGrant
	}
}

// authenticate takes as long for a stranger as for a client with a wrong secret.
func (s *TokenService) authenticate(id, secret string) (knownClient, error) {
	s.mu.Lock()
	client, ok := s.clients[id]
	s.mu.Unlock()
	hash := sha256.Sum256([]byte(secret))
	if subtle.ConstantTimeCompare(hash[:], client.secret[:]) != 1 || !ok {
		return knownClient{}, errClient
	}
	return client, nil
}

type refreshClaims struct {
	jwt.RegisteredClaims
	Grant grant `json:"grant"`
}

func (s *TokenService) refresh(raw string) (knownClient, grant, error) {
	s.mu.Lock()
	var keys jwt.VerificationKeySet
	for _, k := range s.keys {
		keys.Keys = append(keys.Keys, k.refresh)
	}
	s.mu.Unlock()
	var claims refreshClaims
	_, err := jwt.ParseWithClaims(raw, &claims, func(*jwt.Token) (any, error) { return keys, nil },
		jwt.WithValidMethods([]string{jwt.SigningMethodHS256.Alg()}),
		jwt.WithExpirationRequired(),
		jwt.WithIssuer(s.cfg.Issuer),
		jwt.WithAudience(s.cfg.Issuer))
	if err != nil {
		return knownClient{}, grant{}, errRefresh
	}
	id, _ := strings.CutSuffix(claims.Subject, subClients)
	s.mu.Lock()
	client, ok := s.clients[id]
	s.mu.Unlock()
	if !ok {
		return knownClient{}, grant{}, errRefresh
	}
	return client, claims.Grant, nil
}

func (s *TokenService) issue(client knownClient, g grant) (tokenAnswer, error) {
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
	refresh := maps.Clone(common)
	refresh["aud"] = s.cfg.Issuer
	refresh["grant"] = g

	a, err := sign(access, now.Add(s.cfg.accessLife()), key.access)
	if err != nil {
		return tokenAnswer{}, err
	}
	r, err := sign(refresh, now.Add(s.cfg.refreshLife()), key.refresh)
	if err != nil {
		return tokenAnswer{}, err
	}
	return tokenAnswer{
		AccessToken:  a,
		RefreshToken: r,
		TokenType:    "Bearer",
		ExpiresIn:    int64(s.cfg.accessLife() / time.Second),
	}, nil
}

func sign(claims jwt.MapClaims, expires time.Time, key []byte) (string, error) {
	claims["exp"] = expires.Unix()
	claims["jti"] = uuid.NewString()
	return jwt.NewWithClaims(jwt.SigningMethodHS256, claims).SignedString(key)
}
