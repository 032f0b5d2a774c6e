package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"

	"github.com/spf13/cobra"

	"github.com/mimiktech/cluster"
)

// A question holds the arguments of ask.
type question struct {
	method  string
	data    string
	headers []string
	only    []string
}

func (a *app) askCommand() *cobra.Command {
	var q question
	cmd := &cobra.Command{
		Use:   "ask PATH",
		Short: "Send a request to all servers",
		Long: `ask sends a request to every server in the list, and shows each result. PATH is relative to the
base URL of a server, and may have a query. The request has a cluster token, like the request of a
peer. A server that fails is not evicted.

With -o json the output is a response of RPCluster in JSON: the data of all servers, the results and
the failures. The exit code is 1 if a server has failed.`,
		Example: `  clusterctl ask /things
  clusterctl ask '/things?limit=1' --only node-1 --only node-2
  clusterctl ask /things --method POST --data '{"name":"a thing"}'
  clusterctl ask /things -o json | jq .data`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error { return a.ask(cmd.Context(), args[0], q) },
	}
	cmd.Flags().StringVarP(&q.method, "method", "X", http.MethodGet, "method of the request")
	cmd.Flags().StringVarP(&q.data, "data", "d", "", "body in `JSON`; @file reads a file, and @- the standard input")
	cmd.Flags().StringArrayVarP(&q.headers, "header", "H", nil, "header `field`, such as 'X-Name: value'; may be repeated")
	cmd.Flags().StringArrayVar(&q.only, "only", nil, "`id` of a server to call; may be repeated (default: all)")
	_ = cmd.RegisterFlagCompletionFunc("only", a.completeIDs)
	return cmd
}

func (a *app) ask(ctx context.Context, path string, q question) error {
	req, err := a.request(path, q)
	if err != nil {
		return &usageError{err}
	}
	var finished atomic.Int64
	var total int64
	s, err := a.open(cluster.WithTrace(&cluster.Trace{
		Call: func(ctx context.Context, info cluster.CallInfo) (context.Context, func(cluster.CallResult)) {
			total = int64(info.Peers)
			return ctx, nil
		},
		PeerDone: func(context.Context, cluster.Outcome) {
			a.progress("%d of %d servers have responded", finished.Add(1), total)
		},
	}))
	if err != nil {
		return err
	}
	defer s.Close()
	// Without a list nothing is sent, but the request is validated.
	if _, err := s.RPCluster(ctx, req); errors.Is(err, cluster.ErrInvalidRequest) {
		return &usageError{err}
	}
	if err := s.read(ctx); err != nil {
		return err
	}
	for _, id := range q.only {
		if !slices.ContainsFunc(s.Servers(), func(s cluster.Server) bool { return s.ServerID == id }) {
			return fmt.Errorf("no server has the id %q", id)
		}
	}
	done := a.progress("calling %d servers", len(s.Servers()))
	res, err := s.RPCluster(ctx, req)
	done()
	if err != nil {
		return err
	}
	if err := a.printResponse(res); err != nil {
		return err
	}
	if len(res.Failures) > 0 {
		return errProblem
	}
	return nil
}

func (a *app) request(path string, q question) (cluster.Request, error) {
	req := cluster.Request{Name: "ask", Method: q.method, Path: path}
	if len(q.only) > 0 {
		req.Filter = func(s cluster.Server) bool { return slices.Contains(q.only, s.ServerID) }
	}
	for _, field := range q.headers {
		name, value, ok := strings.Cut(field, ":")
		if !ok {
			return req, fmt.Errorf("the header %q is not of the form 'Name: value'", field)
		}
		if req.Header == nil {
			req.Header = http.Header{}
		}
		req.Header.Add(strings.TrimSpace(name), strings.TrimSpace(value))
	}
	body, err := a.body(q.data)
	if err != nil {
		return req, err
	}
	if body != nil {
		if !json.Valid(body) {
			return req, errors.New("the data is not JSON")
		}
		req.Body = json.RawMessage(body)
	}
	return req, nil
}

func (a *app) body(data string) ([]byte, error) {
	switch {
	case data == "":
		return nil, nil
	case data == "@-":
		return io.ReadAll(a.in)
	case data[0] == '@':
		return os.ReadFile(data[1:])
	}
	return []byte(data), nil
}

func (a *app) printResponse(res *cluster.Response) error {
	if a.settings.output == outputJSON {
		return a.json(res)
	}
	outcomes := slices.Concat(res.Results, res.Failures)
	slices.SortFunc(outcomes, func(x, y cluster.Outcome) int { return strings.Compare(x.Server.ServerID, y.Server.ServerID) })
	rows := [][]string{{"SERVER", "RESULT", "STATUS", "TIME", "DATA OR REASON"}}
	for _, o := range outcomes {
		status := "-"
		if o.StatusCode > 0 {
			status = strconv.Itoa(o.StatusCode)
		}
		text := string(o.Data)
		if o.Err != nil {
			text = o.Err.Error()
		}
		rows = append(rows, []string{o.Server.ServerID, string(o.Kind), status, short(o.Duration), text})
	}
	a.table(rows)
	return nil
}

// completeIDs completes the ids of servers. It lists none if the list cannot be read.
func (a *app) completeIDs(cmd *cobra.Command, _ []string, _ string) ([]string, cobra.ShellCompDirective) {
	a.showProgress = false // it would be a part of the command line
	s, err := a.open()
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	defer s.Close()
	ctx, cancel := context.WithTimeout(cmd.Context(), completionTimeout)
	defer cancel()
	if err := s.read(ctx); err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	var ids []string
	for _, server := range s.Servers() {
		ids = append(ids, a.clean(server.ServerID))
	}
	return ids, cobra.ShellCompDirectiveNoFileComp
}
