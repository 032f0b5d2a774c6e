//go:build unix

package interop

import (
	"bufio"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/signal"
	"strconv"
	"sync"
	"syscall"
	"time"

	"go.uber.org/zap"

	"github.com/mimiktech/cluster"
	"github.com/mimiktech/cluster/internal/wire"
)

const (
	roleVariable   = "INTEROP_ROLE"
	roleNode       = "node"
	policyVariable = "INTEROP_POLICY" // "reference" retries and evicts as the npm module does

	answersFD  = 3
	listenerFD = 4
)

// An order is what a test tells a node to do, and what came of it: a line of JSON each. What a
// node says unasked has the id 0.
type order struct {
	ID     int             `json:"id"`
	Order  string          `json:"order,omitempty"`
	Args   json.RawMessage `json:"args,omitempty"`
	Answer json.RawMessage `json:"answer,omitempty"`
	Error  string          `json:"error,omitempty"`
}

// fanoutArgs is what a node is told to ask all its peers.
type fanoutArgs struct {
	Method        string            `json:"method,omitempty"`
	Path          string            `json:"path"`
	Query         map[string]string `json:"query,omitempty"`
	Body          any               `json:"body,omitempty"`
	CorrelationID string            `json:"correlationId,omitempty"`
	Customer      string            `json:"customer,omitempty"`
	Retries       int               `json:"retries,omitempty"` // of npm nodes, 20 ms apart
}

// runNode is one Go node, as a service has it; see npm/node.js for its counterpart.
func runNode() error {
	cfg, err := cluster.ConfigFromEnv()
	if err != nil {
		return err
	}
	log, err := zap.NewDevelopment()
	if err != nil {
		return err
	}
	opts := []cluster.Option{cluster.WithLogger(log)}
	if os.Getenv(policyVariable) == "reference" {
		opts = append(opts, cluster.WithRetry(cluster.RetryNPM()), cluster.WithEviction(cluster.Eviction{ServerErrors: true}))
	}
	c, err := cluster.New(cfg, opts...)
	if err != nil {
		return err
	}
	ln, err := net.FileListener(os.NewFile(listenerFD, "listener"))
	if err != nil {
		return err
	}
	n := &goNode{Cluster: c, cfg: cfg, answers: os.NewFile(answersFD, "answers")}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	go n.obey(ctx)
	n.tell(order{Answer: json.RawMessage(`"ready"`)})
	return c.Serve(ctx, ln, &http.Server{Handler: n.handler(), ReadHeaderTimeout: 5 * time.Second})
}

type goNode struct {
	*cluster.Cluster
	cfg cluster.Config

	mu      sync.Mutex // guards the field below
	answers *os.File
}

func (n *goNode) tell(o order) {
	line, err := json.Marshal(o)
	if err != nil {
		line, _ = json.Marshal(order{ID: o.ID, Error: err.Error()})
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	_, _ = n.answers.Write(append(line, '\n')) // a test that went away ends us by itself
}

// obey carries out orders until there are no more to come, and then ends the process.
func (n *goNode) obey(ctx context.Context) {
	lines := bufio.NewScanner(os.Stdin)
	for lines.Scan() {
		var o order
		if err := json.Unmarshal(lines.Bytes(), &o); err != nil {
			n.tell(order{Error: err.Error()})
			continue
		}
		go func() {
			answer, err := n.do(ctx, o)
			reply := order{ID: o.ID}
			if err == nil {
				reply.Answer, err = json.Marshal(answer)
			}
			if err != nil {
				reply.Error = err.Error()
			}
			n.tell(reply)
		}()
	}
	os.Exit(0)
}

func (n *goNode) do(ctx context.Context, o order) (any, error) {
	correlated := func() context.Context {
		var id string
		if json.Unmarshal(o.Args, &id) != nil || id == "" {
			return ctx
		}
		return cluster.WithCorrelationID(ctx, id)
	}
	switch o.Order {
	case "register": // as the reference, it tells nobody when it is done
		go func() { _, _ = n.Register(correlated()) }()
		return struct{}{}, nil
	case "unregister":
		return n.UnRegister(correlated()), nil
	case "view":
		return n.Servers(), nil
	case "status":
		return map[string]string{
			"registration": os.Getenv("REGISTRATION_STATUS"),
			"servers":      os.Getenv("CLUSTER_STATUS_SERVERS"),
			"updatedAt":    os.Getenv("CLUSTER_STATUS_UPDATED_AT"),
			"leaseTime":    os.Getenv("CLUSTER_STATUS_LEASE_TIME"),
		}, nil
	case "fanout":
		var args fanoutArgs
		if err := json.Unmarshal(o.Args, &args); err != nil {
			return nil, err
		}
		return n.fanout(ctx, args)
	default:
		return nil, fmt.Errorf("no order %q", o.Order)
	}
}

func (n *goNode) fanout(ctx context.Context, args fanoutArgs) (any, error) {
	if args.CorrelationID != "" {
		ctx = cluster.WithCorrelationID(ctx, args.CorrelationID)
	}
	query := url.Values{}
	for name, value := range args.Query {
		query.Set(name, value)
	}
	before, start := serverIDs(n.Servers()), time.Now()
	res, err := n.RPCluster(ctx, cluster.Request{Method: args.Method, Path: args.Path, Query: query, Body: args.Body, Customer: args.Customer})
	if err != nil {
		return nil, err
	}
	return map[string]any{
		"response": res, "milliseconds": time.Since(start).Milliseconds(),
		"before": before, "after": serverIDs(n.Servers()),
	}, nil
}

// handler serves the peer endpoints, and those of the service itself.
func (n *goNode) handler() http.Handler {
	mux := http.NewServeMux()
	n.Mount(mux)
	base := cmp.Or(n.cfg.BasePath, "/"+n.cfg.Type+"/v1")
	handle := func(method, path string, serve http.HandlerFunc) {
		mux.Handle(method+" "+base+path, n.Authenticate(serve))
	}
	answer := func(data func(r *http.Request) any) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) { n.Reply(w, r, data(r)) }
	}
	text := func(body string) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "application/json")
			_, _ = w.Write([]byte(body)) // whoever asked sees that it broke off
		}
	}
	handle("GET", "/things", answer(func(*http.Request) any { return []string{n.cfg.ID, n.cfg.ID + "-second"} }))
	handle("GET", "/one", answer(func(*http.Request) any { return map[string]string{"one": n.cfg.ID} }))
	handle("GET", "/none", text(`{"server":{"serverId":"`+n.cfg.ID+`"}}`))
	handle("GET", "/bare", text(`{"data":["nobody"]}`))
	handle("GET", "/mirror", answer(n.mirror))
	handle("POST", "/mirror", answer(n.mirror))
	handle("GET", "/hang", func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() })
	handle("GET", "/fail/{status}", func(w http.ResponseWriter, r *http.Request) {
		status, err := strconv.Atoi(r.PathValue("status"))
		n.ReplyError(w, r, cmp.Or[error](err, &cluster.StatusError{Code: status, Message: "failing as told", Info: json.RawMessage(`{"why":"told"}`)}))
	})
	handle("POST", "/relay", func(w http.ResponseWriter, r *http.Request) {
		res, err := n.RPCluster(r.Context(), cluster.Request{Method: "POST", Path: "/mirror", Body: map[string]bool{"relayed": true}})
		if err != nil {
			n.ReplyError(w, r, err)
			return
		}
		data := n.mirror(r).(map[string]any)
		data["peers"] = res.Data
		n.Reply(w, r, data)
	})
	return mux
}

// mirror is what a node saw of a request.
func (n *goNode) mirror(r *http.Request) any {
	query := map[string]string{}
	for name, values := range r.URL.Query() {
		query[name] = values[0]
	}
	claims, _ := cluster.ClaimsFrom(r.Context()) // nobody comes here without
	seen := map[string]any{
		"caller": map[string]any{
			"clientId": claims.Subject, "tokenType": claims.SubType, "customer": claims.Customer, "cluster": claims.Type == "cluster",
		},
		"serverId":      n.cfg.ID,
		"query":         query,
		"correlationId": cluster.CorrelationID(r.Context()),
		"userAgent":     r.UserAgent(),
	}
	var body any
	if err := json.NewDecoder(r.Body).Decode(&body); err == nil {
		seen["body"] = body
	}
	return seen
}

func serverIDs[S cluster.Server | wire.Server](servers []S) []string {
	ids := make([]string, len(servers))
	for i, s := range servers {
		ids[i] = wire.Server(s).ServerID
	}
	return ids
}

var errEnded = errors.New("the node has ended")
