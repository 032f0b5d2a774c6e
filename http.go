package cluster

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"

	"go.uber.org/zap"

	"github.com/mimiktech/cluster/internal/wire"
)

// An error answer is read this far: its message is for a person.
const maxErrorBody = 64 << 10

type correlationKey struct{}

// WithCorrelationID makes id the correlation id of all that is done under the context: it is
// on every request to mST, mIT and peers, and in every log line. The handlers of this package
// put the incoming one, with its step counted up, into the request's context. An id of more than
// 256 bytes, or that is not printable ASCII, fits no header and is replaced by a new one.
func WithCorrelationID(ctx context.Context, id string) context.Context {
	if !wire.ValidCorrelationID(id) {
		id = wire.NewCorrelationID()
	}
	return context.WithValue(ctx, correlationKey{}, id)
}

// CorrelationID is the correlation id of ctx, "" if it has none.
func CorrelationID(ctx context.Context) string {
	id, _ := ctx.Value(correlationKey{}).(string)
	return id
}

// correlated is ctx with a correlation id: its own, or a new one.
func ensureCorrelationID(ctx context.Context) context.Context {
	if CorrelationID(ctx) != "" {
		return ctx
	}
	return context.WithValue(ctx, correlationKey{}, wire.NewCorrelationID())
}

func correlationField(ctx context.Context) zap.Field {
	return zap.String("correlationId", CorrelationID(ctx))
}

// within is ctx, ended also when life ends, with its cause.
func mergeCancel(ctx, life context.Context) (context.Context, context.CancelFunc) {
	ctx, end := context.WithCancelCause(ctx)
	if life.Err() != nil {
		end(context.Cause(life)) // at once: AfterFunc would leave the caller a moment to go on
	}
	stop := context.AfterFunc(life, func() { end(context.Cause(life)) })
	return ctx, func() { stop(); end(nil) }
}

// A party is who a request goes to: mST, mIT, or a peer of that id.
type remote struct{ name, id string }

func (p remote) String() string {
	if p.id == "" {
		return p.name
	}
	return fmt.Sprintf("%s %q", p.name, p.id)
}

// send is the one place that speaks HTTP. It returns the body of a 2xx answer; its errors are
// *UnreachableError, *StatusError and *InvalidResponseError, and name the party.
func (c *Cluster) send(road http.RoundTripper, who remote, req *http.Request) ([]byte, error) {
	resp, err := road.RoundTrip(req)
	if err != nil {
		return nil, &UnreachableError{who.String(), req.Method, withoutQuery(req.URL), err}
	}
	defer resp.Body.Close()
	if resp.StatusCode < 200 || resp.StatusCode > 299 {
		return nil, c.statusError(who, req, resp)
	}
	unusable := func(err error) ([]byte, error) {
		return nil, &InvalidResponseError{who.String(), req.Method, withoutQuery(req.URL), err}
	}
	limit := c.cfg.MaxResponseBytes
	if resp.ContentLength > limit {
		return unusable(fmt.Errorf("%w: %d bytes, %d allowed", ErrResponseTooLarge, resp.ContentLength, limit))
	}
	body, err := readAll(resp, limit+1)
	if err != nil {
		return unusable(fmt.Errorf("it broke off: %w", err))
	}
	if int64(len(body)) > limit {
		return unusable(fmt.Errorf("%w: more than %d bytes", ErrResponseTooLarge, limit))
	}
	return body, nil
}

// Up to here a length that an answer claims is believed.
const maxPreallocated = 1 << 20

func readAll(resp *http.Response, limit int64) ([]byte, error) {
	if resp.ContentLength < 0 || resp.ContentLength > maxPreallocated {
		return io.ReadAll(io.LimitReader(resp.Body, limit))
	}
	body := make([]byte, resp.ContentLength)
	_, err := io.ReadFull(resp.Body, body)
	return body, err
}

func (c *Cluster) statusError(who remote, req *http.Request, resp *http.Response) error {
	e := &StatusError{Remote: who.String(), Method: req.Method, URL: withoutQuery(req.URL), Code: resp.StatusCode}
	body, _ := io.ReadAll(io.LimitReader(resp.Body, maxErrorBody)) // what came of it will do
	var envelope wire.Error
	if json.Unmarshal(body, &envelope) == nil {
		bearer := bearerToken(req.Header)
		e.Message = c.redact(envelope.Message, bearer)
		if !c.containsSecret(envelope.Info, bearer) {
			e.Info = envelope.Info
		}
	}
	return e
}

// scrub takes out of what another party said whatever secret of ours it repeats.
func (c *Cluster) redact(text, bearer string) string {
	for _, secret := range []string{
		bearer, string(c.cfg.ClientSecret), string(c.cfg.ClientAccessKey),
		string(c.cfg.GenericKey), string(c.cfg.GenericPreviousKey),
	} {
		if secret != "" {
			text = strings.ReplaceAll(text, secret, redacted)
		}
	}
	return text
}

// repeats tells whether there is a secret of ours anywhere in JSON, in whatever way it is escaped.
func (c *Cluster) containsSecret(raw json.RawMessage, bearer string) bool {
	in := json.NewDecoder(bytes.NewReader(raw))
	in.UseNumber()
	for {
		token, err := in.Token()
		if err != nil {
			return false // it has been read to its end
		}
		if text := fmt.Sprint(token); c.redact(text, bearer) != text {
			return true
		}
	}
}

// bearerOf is the token in a header, whatever its scheme is called.
func bearerToken(h http.Header) string {
	_, text, _ := strings.Cut(h.Get("Authorization"), " ")
	return strings.TrimSpace(text)
}

// bare is a URL without what may be private in it.
func withoutQuery(u *url.URL) string {
	return (&url.URL{Scheme: u.Scheme, Host: u.Host, Path: u.Path, RawPath: u.RawPath}).String()
}

// header is what every request carries.
func (c *Cluster) header(ctx context.Context, bearer string) http.Header {
	values := [...]string{c.userAgent, "application/json", CorrelationID(ctx), "Bearer " + bearer}
	h := http.Header{
		"User-Agent":           values[0:1:1],
		"Accept":               values[1:2:2],
		wire.CorrelationHeader: values[2:3:3],
	}
	if bearer != "" {
		h["Authorization"] = values[3:]
	}
	return h
}

// post sends body as JSON, without a token.
func (c *Cluster) post(ctx context.Context, name, address string, body any) ([]byte, error) {
	return c.sendJSON(ctx, name, http.MethodPost, address, "", body)
}

func (c *Cluster) sendJSON(ctx context.Context, name, method, address, bearer string, body any) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, c.cfg.RequestTimeout)
	defer cancel()
	var content io.Reader
	if body != nil {
		b, err := json.Marshal(body)
		if err != nil {
			return nil, fmt.Errorf("encoding the request to %s: %w", name, err)
		}
		content = bytes.NewReader(b)
	}
	req, err := http.NewRequestWithContext(ctx, method, address, content)
	if err != nil {
		return nil, fmt.Errorf("request to %s: %w", name, err)
	}
	req.Header = c.header(ctx, bearer)
	if body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	return c.send(c.transports.backend, remote{name, ""}, req)
}
