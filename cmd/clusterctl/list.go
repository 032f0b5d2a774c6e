package main

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/spf13/cobra"

	"github.com/mimiktech/cluster"
)

func (a *app) listCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "list",
		Short: "List the servers of the cluster",
		Long: `list shows the servers in the list of the registry. With --server it shows the view of that server.
The two may differ for as long as a lease lasts; "check" compares them.

RENEWED is the time since the last renewal of the lease, by the date that the registry has set.
REGISTERED is the time since the entry was created. If a server was removed and has registered
again, it has a new entry.`,
		Example: `  clusterctl list
  clusterctl list --server http://10.0.0.7:8080/mds/v1
  clusterctl list -o json | jq -r '.servers[].clusterBaseUrl'`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return a.list(cmd.Context()) },
	}
}

func (a *app) list(ctx context.Context) error {
	s, err := a.open()
	if err != nil {
		return err
	}
	defer s.Close()
	if err := s.read(ctx); err != nil {
		return err
	}
	if a.settings.output == outputJSON {
		return a.json(struct {
			Type       string           `json:"type"`
			ResourceID string           `json:"resourceId"`
			Source     string           `json:"source"`
			Servers    []cluster.Server `json:"servers"`
		}{s.cfg.Type, s.ResourceID(), s.source(), s.Servers()})
	}
	rows := [][]string{{"SERVER", "ADDRESS", "RENEWED", "REGISTERED"}}
	for _, server := range s.Servers() {
		rows = append(rows, []string{server.ServerID, server.ClusterBaseURL, ago(server.UpdatedAt), ago(server.CreatedAt)})
	}
	a.table(rows)
	return nil
}

func (a *app) watchCommand() *cobra.Command {
	var interval, duration time.Duration
	cmd := &cobra.Command{
		Use:   "watch",
		Short: "Show the changes of the cluster",
		Long: `watch reads the list of servers at an interval, until it is interrupted. It first shows each server
as joined. Then it shows each server that joins, leaves or moves to another address. A server that
leaves and returns between two reads is not shown.

If a read fails, watch shows its error and keeps the previous list. With -o json, each change is one
line. The exit code is 1 if the last read has failed.`,
		Example: `  clusterctl watch
  clusterctl watch --interval 1s --for 10m -o json`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			switch {
			case interval <= 0:
				return &usageError{fmt.Errorf("--interval %v is not positive", interval)}
			case duration < 0:
				return &usageError{fmt.Errorf("--for %v is negative", duration)}
			}
			ctx, cancel := cmd.Context(), context.CancelFunc(func() {})
			if duration > 0 {
				ctx, cancel = context.WithTimeout(ctx, duration)
			}
			defer cancel()
			return a.watch(ctx, interval)
		},
	}
	cmd.Flags().DurationVar(&interval, "interval", 5*time.Second, "time between two reads")
	cmd.Flags().DurationVar(&duration, "for", 0, "how long to watch (default: until interrupted)")
	return cmd
}

func (a *app) watch(ctx context.Context, interval time.Duration) error {
	s, err := a.open()
	if err != nil {
		return err
	}
	defer s.Close()
	known, ticker := map[string]string{}, time.NewTicker(interval)
	defer ticker.Stop()
	var failure error
	for {
		err := s.read(ctx)
		switch {
		case ctx.Err() != nil && err != nil: // it has been interrupted
			return failed(failure)
		case err != nil:
			fmt.Fprintf(a.errOut, "%s  %s\n", time.Now().Format(time.TimeOnly), a.clean(err.Error()))
		default:
			current := addresses(s.Servers())
			a.printChanges(known, current)
			known = current
		}
		failure = err
		select {
		case <-ctx.Done():
			return failed(failure)
		case <-ticker.C:
		}
	}
}

// failed returns errProblem for an error that has been shown.
func failed(err error) error {
	if err == nil {
		return nil
	}
	return errProblem
}

// addresses returns the addresses of servers by their ids.
func addresses(servers []cluster.Server) map[string]string {
	m := make(map[string]string, len(servers))
	for _, s := range servers {
		m[s.ServerID] = s.ClusterBaseURL
	}
	return m
}

// A change is a difference between two lists.
type change struct {
	Time    time.Time `json:"time"`
	Change  string    `json:"change"` // joined, left or moved
	Server  string    `json:"serverId"`
	Address string    `json:"clusterBaseUrl"` // after the change; the last one of a server that left
}

// printChanges prints what has changed between two lists, in the order of the ids.
func (a *app) printChanges(before, after map[string]string) {
	all := maps.Clone(before)
	maps.Copy(all, after)
	for _, id := range slices.Sorted(maps.Keys(all)) {
		c := change{Time: time.Now().UTC(), Server: id, Address: all[id]}
		previous, known := before[id]
		current, listed := after[id]
		switch {
		case !known:
			c.Change = "joined"
		case !listed:
			c.Change = "left"
		case previous != current:
			c.Change = "moved"
		default:
			continue
		}
		if a.settings.output == outputJSON {
			c.Server, c.Address = a.clean(c.Server), a.clean(c.Address)
			line, _ := json.Marshal(c) // times and texts
			fmt.Fprintln(a.out, escape(string(line)))
			continue
		}
		a.printf("%s  %-6s  %s  %s", c.Time.Local().Format(time.TimeOnly), c.Change, c.Server, c.Address)
	}
}
