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
	"github.com/mimiktech/cluster/internal/exchanges"
	"github.com/mimiktech/cluster/internal/wire"
)

const (
	roleVariable   = "INTEROP_ROLE"
	roleNode       = "node"
	policyVariable = "INTEROP_POLICY" // "npm": retry and evict like the npm module

	resultsFD  = 3
	listenerFD = 4
)

// A message is a command of a test or its result, which has the same id. Each is a line of JSON.
// The first message of a node has the id 0 and says that it serves requests.
type message struct {
	ID      int             `json:"id"`
	Command string          `json:"command,omitempty"`
	Args    json.RawMessage `json:"args,omitempty"`
	Result  json.RawMessage `json:"result,omitempty"`
	Error   string          `json:"error,omitempty"`
}

// fanoutArgs are the arguments of the command fanout, a call to all peers.
type fanoutArgs struct {
	Method        string            `json:"method,omitempty"`
	Path          string            `json:"path"`
	Query         map[string]string `json:"query,omitempty"`
	Body          any               `json:"body,omitempty"`
	CorrelationID string            `json:"correlationId,omitempty"`
	Customer      string            `json:"customer,omitempty"`
	Retries       int               `json:"retries,omitempty"` // npm nodes only
}

// runNode runs a Go node in this process. npm/node.js is its counterpart.
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
	if os.Getenv(policyVariable) == "npm" {
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
	n := &goNode{Cluster: c, cfg: cfg, results: os.NewFile(resultsFD, "results")}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	go n.serveCommands(ctx)
	n.write(message{Result: json.RawMessage(`"ready"`)})
	return c.Serve(ctx, ln, &http.Server{Handler: exchanges.Record(n.handler()), ReadHeaderTimeout: 5 * time.Second})
}

// statusPath is where a Go node has its status page.
const statusPath = "/status"

type goNode struct {
	*cluster.Cluster
	cfg cluster.Config

	mu      sync.Mutex // guards the field below
	results *os.File
}

func (n *goNode) write(m message) {
	line, err := json.Marshal(m)
	if err != nil {
		line, _ = json.Marshal(message{ID: m.ID, Error: err.Error()})
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	_, _ = n.results.Write(append(line, '\n')) // fails only if the test has ended
}

// serveCommands runs commands until standard input is closed, and then ends the process.
func (n *goNode) serveCommands(ctx context.Context) {
	lines := bufio.NewScanner(os.Stdin)
	for lines.Scan() {
		var m message
		if err := json.Unmarshal(lines.Bytes(), &m); err != nil {
			n.write(message{Error: err.Error()})
			continue
		}
		go func() {
			result, err := n.run(ctx, m)
			reply := message{ID: m.ID}
			if err == nil {
				reply.Result, err = json.Marshal(result)
			}
			if err != nil {
				reply.Error = err.Error()
			}
			n.write(reply)
		}()
	}
	os.Exit(0)
}

// run runs a command and returns its result.
func (n *goNode) run(ctx context.Context, m message) (any, error) {
	correlated := func() context.Context {
		var id string
		if json.Unmarshal(m.Args, &id) != nil || id == "" {
			return ctx
		}
		return cluster.WithCorrelationID(ctx, id)
	}
	switch m.Command {
	case "register": // not waited for, because the npm module does not report its end
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
		if err := json.Unmarshal(m.Args, &args); err != nil {
			return nil, err
		}
		return n.fanout(ctx, args)
	default:
		return nil, fmt.Errorf("unknown command %q", m.Command)
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

// handler serves the peer endpoints and those of the service.
func (n *goNode) handler() http.Handler {
	mux := http.NewServeMux()
	n.Mount(mux)
	noAuth := func(h http.Handler) http.Handler { return h }
	mux.Handle(statusPath, n.StatusHandler(cluster.StatusOptions{Actions: true, Auth: noAuth}))
	base := cmp.Or(n.cfg.BasePath, "/"+n.cfg.Type+"/v1")
	handle := func(method, path string, serve http.HandlerFunc) {
		mux.Handle(method+" "+base+path, n.Authenticate(serve))
	}
	respond := func(data func(r *http.Request) any) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) { n.Reply(w, r, data(r)) }
	}
	text := func(body string) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "application/json")
			_, _ = w.Write([]byte(body)) // the client notices an error itself
		}
	}
	handle("GET", "/things", respond(func(*http.Request) any { return []string{n.cfg.ID, n.cfg.ID + "-second"} }))
	handle("GET", "/one", respond(func(*http.Request) any { return map[string]string{"one": n.cfg.ID} }))
	handle("GET", "/none", text(`{"server":{"serverId":"`+n.cfg.ID+`"}}`))
	handle("GET", "/bare", text(`{"data":["unsigned"]}`))
	handle("GET", "/mirror", respond(n.mirror))
	handle("POST", "/mirror", respond(n.mirror))
	handle("GET", "/hang", func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() })
	handle("GET", "/fail/{status}", func(w http.ResponseWriter, r *http.Request) {
		status, err := strconv.Atoi(r.PathValue("status"))
		n.ReplyError(w, r, cmp.Or[error](err, &cluster.StatusError{Code: status, Message: "requested failure", Info: json.RawMessage(`{"why":"requested"}`)}))
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

// mirror returns the parts of a request that tests check.
func (n *goNode) mirror(r *http.Request) any {
	query := map[string]string{}
	for name, values := range r.URL.Query() {
		query[name] = values[0]
	}
	claims, _ := cluster.ClaimsFrom(r.Context()) // set by Authenticate
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
