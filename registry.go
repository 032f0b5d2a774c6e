package cluster

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"go.uber.org/zap"

	"github.com/mimiktech/cluster/internal/token"
)

// askRegistry sends one authorized request to mIT, and has the answer read; what read cannot use is
// an *InvalidResponseError. If mIT refuses the token, the request is repeated once with a new one.
func (c *Cluster) askRegistry(ctx context.Context, method, path string, body any, read func(answer []byte) error) error {
	key := token.Key{Audience: c.cfg.RegistryAudience}
	for attempt := 1; ; attempt++ {
		bearer, err := c.tokens.Token(ctx, key)
		if err != nil {
			return err
		}
		err = c.withFailover(ctx, method, path, bearer, body, read)
		if !tokenRefused(err) || attempt > 1 {
			return err
		}
		c.tokens.Drop(key, bearer)
	}
}

// tokenRefused tells whether an answer says that the token was not good enough. mimik's parties
// say it with a 403, others, and those whose key has changed, with a 401.
func tokenRefused(err error) bool {
	se, ok := errors.AsType[*StatusError](err)
	return ok && (se.Code == http.StatusForbidden || se.Code == http.StatusUnauthorized)
}

// askReplicas asks the replicas of mIT, each at most once, until one gives an answer that is of use.
// All of them together have the time that one would have.
//
// What a replica did before it failed is asked for again at the next, and that does no harm: to
// register is to renew; who is gone may be deleted again. A repeated dated delete is told that the
// server is gone, as the first would have been, or of a server that came back in between.
func (c *Cluster) withFailover(ctx context.Context, method, path, bearer string, body any, read func([]byte) error) error {
	ctx, cancel := context.WithTimeout(ctx, c.cfg.RequestTimeout)
	defer cancel()
	until, _ := ctx.Deadline()
	if wait := time.Now().Add(c.eviction.timeout()); method == http.MethodDelete && wait.Before(until) {
		until = wait // a call waits for it no longer than that
	}
	was, urls := c.registry.order(method == http.MethodPost && rand.N(failbackChance) == 0)
	var failed error
	for i, url := range urls {
		left := time.Until(until) / time.Duration(len(urls)-i)
		if i == len(urls)-1 {
			left = c.cfg.RequestTimeout // nobody waits behind it
		}
		err := c.doReplica(ctx, left, method, url+path, bearer, body, read)
		if !shouldFailOver(method, err) {
			c.switchTo(ctx, was, url, failed)
			return err
		}
		if failed != nil {
			err = fmt.Errorf("%w; %w", failed, err)
		}
		failed = err
		if ctx.Err() != nil {
			break
		}
	}
	return failed
}

func (c *Cluster) doReplica(ctx context.Context, wait time.Duration, method, address, bearer string, body any, read func([]byte) error) error {
	ctx, cancel := context.WithTimeout(ctx, wait)
	defer cancel()
	answer, err := c.sendJSON(ctx, "mIT", method, address, bearer, body)
	if err != nil {
		return err
	}
	if err := read(answer); err != nil {
		address, _, _ = strings.Cut(address, "?")
		return &InvalidResponseError{"mIT", method, address, err}
	}
	return nil
}

// replicaFailed tells whether another replica may do better. It may, unless there was an answer that
// can be used, or one that all would give, because it is about what was asked for: that it is wrong,
// may not be done, or is of a server which is gone.
func shouldFailOver(method string, err error) bool {
	if se, ok := errors.AsType[*StatusError](err); ok {
		switch se.Code {
		case http.StatusBadRequest, http.StatusUnauthorized, http.StatusForbidden, http.StatusConflict, http.StatusUnprocessableEntity:
			return false
		case http.StatusNotFound:
			return method == http.MethodPost // to register somewhere else than at a registry
		}
		return true
	}
	_, broke := errors.AsType[*InvalidResponseError](err)
	_, silent := errors.AsType[*UnreachableError](err) // TLS that does not hold is one replica's, too
	return broke && !errors.Is(err, ErrResponseTooLarge) || silent
}

// keepTo makes the replica that answered the one that is asked first, and says so if it is another.
func (c *Cluster) switchTo(ctx context.Context, was, url string, failed error) {
	if !c.registry.promote(was, url) {
		return
	}
	fields := []zap.Field{zap.String("from", was), zap.String("to", url), correlationField(ctx)}
	if failed != nil {
		c.log.Warn("on to another replica of mIT", append(fields, zap.NamedError("why", failed))...)
	} else {
		c.log.Info("back to the first choice among the replicas of mIT", fields...)
	}
}

// homing is how many renewals of a node that had to leave its first choice it takes, on average,
// until one begins there again. So a replica that is back gets its nodes back over a few leases, with
// renewals that were due anyway, and one that stays away costs few of them a second try.
const failbackChance = 4

// replicas are the base URLs of one registry, and which of them the node keeps to.
type replicas struct {
	urls []string // in this node's own order; the first is its first choice

	mu      sync.Mutex // guards the field below
	current string     // the one in use
}

// newReplicas puts the URLs of a list that has been checked into an order of this node's own: of
// many nodes each replica gets its share, and if it fails the others share what it had. It is drawn,
// not made of the server id, so that who starts again is not bound to where it failed.
func newReplicas(list string) *replicas {
	urls := strings.Split(list, ",")
	rand.Shuffle(len(urls), func(i, j int) { urls[i], urls[j] = urls[j], urls[i] })
	return &replicas{urls: urls, current: urls[0]}
}

// order is the one in use, and the order in which to ask them all: from that one on, but home
// begins with the first choice.
func (r *replicas) order(home bool) (now string, urls []string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	i := slices.Index(r.urls, r.current)
	switch {
	case i == 0:
		return r.current, r.urls
	case home:
		return r.current, slices.Concat(r.urls[:1], r.urls[i:], r.urls[1:i])
	}
	return r.current, slices.Concat(r.urls[i:], r.urls[:i])
}

// use makes url the one in use, unless another call has already gone on from the one that was.
func (r *replicas) promote(was, url string) (changed bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.current != was || url == was {
		return false
	}
	r.current = url
	return true
}
