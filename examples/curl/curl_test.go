// Package curl tests the calls in README.md.
package curl

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/mimiktech/cluster"
	"github.com/mimiktech/cluster/api"
	"github.com/mimiktech/cluster/mit/command"
)

// TestCurl runs the lines of README.md with a registry and a node. Without curl it is skipped, or
// fails if INTEROP=require.
func TestCurl(t *testing.T) {
	if _, err := exec.LookPath("curl"); err != nil && os.Getenv("INTEROP") != "require" {
		t.Skip(err)
	}
	exports := startRegistry(t)
	node := startNode(t, exports)
	blocks, operations := readBlocks(t)
	var script strings.Builder
	script.WriteString(exports + "export NODE=" + node + "\n")
	const separator = "\n-- next --\n"
	for _, block := range blocks {
		script.WriteString(block + "printf '" + strings.ReplaceAll(separator, "\n", `\n`) + "'\n")
	}
	cmd := exec.CommandContext(t.Context(), "bash", "-euo", "pipefail", "-c", script.String())
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	outputs := strings.Split(string(out), separator)
	want := map[string][]string{
		"requestToken":     {"eyJ"},
		"readKeys":         {`"statusCode":404`},
		"registerServer":   {`"leaseTime":7200000`},
		"readItResource":   {`"serverId":"curl-1"`},
		"removeServer":     {`{"server":{"serverId":"curl-1"`, `{"data":{"serverId":"curl-1"}}`},
		"readHealth":       {`{"data":"ok"}`},
		"readDocument":     {"openapi: 3.1.0"},
		"createItResource": {`{"data":null,"server":{"serverId":"node-1"}}`},
		"deleteServer":     {`{"data":"curl-1","server":{"serverId":"node-1"}}`},
	}
	for i, operation := range operations {
		if operation == "" {
			continue
		}
		if len(want[operation]) == 0 || !strings.Contains(outputs[i], want[operation][0]) {
			t.Errorf("%s: %s, want %q", operation, outputs[i], want[operation])
			continue
		}
		want[operation] = want[operation][1:]
	}

	called := slices.Compact(slices.Sorted(maps.Keys(want)))
	var documented []string
	for _, m := range regexp.MustCompile(`operationId: (\w+)`).FindAllStringSubmatch(api.Node("")+api.MIT(), -1) {
		documented = append(documented, m[1])
	}
	slices.Sort(documented)
	if diff := cmp.Diff(documented, called); diff != "" {
		t.Errorf("operations (-documents +calls):\n%s", diff)
	}
	for operation, left := range want {
		if len(left) > 0 {
			t.Errorf("README.md has no call of %s with the response %q", operation, left)
		}
	}
}

// readBlocks returns the code of README.md, and the operation that each block names first.
func readBlocks(t *testing.T) (blocks, operations []string) {
	t.Helper()
	text, err := os.ReadFile("README.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range regexp.MustCompile("(?s)\n```sh\n(?:# (\\w+)\n)?(.*?)```\n").FindAllStringSubmatch(string(text), -1) {
		operations, blocks = append(operations, m[1]), append(blocks, m[2])
	}
	return blocks, operations
}

// startRegistry runs the program mit and returns the environment of a node, as it prints it.
func startRegistry(t *testing.T) (exports string) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	r, w := io.Pipe()
	done := make(chan error, 1)
	go func() {
		done <- command.Command{}.Run(ctx, []string{"--listen", "127.0.0.1:0", "--type", "mds", "--log", "off"}, w, io.Discard)
		w.Close()
	}()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	var printed bytes.Buffer
	for b := make([]byte, 1024); !strings.Contains(printed.String(), "SERVER_PORT='8080'\n"); {
		n, err := r.Read(b)
		if err != nil {
			t.Fatalf("%v after %s", err, &printed)
		}
		printed.Write(b[:n])
	}
	go func() { _, _ = io.Copy(io.Discard, r) }()
	return printed.String()
}

// startNode starts a node with the environment that mit prints, and returns its base URL.
func startNode(t *testing.T, exports string) string {
	t.Helper()
	variables := map[string]string{"SERVER_ID": "node-1"}
	for _, m := range regexp.MustCompile(`(?m)^export (\w+)='([^']*)'$`).FindAllStringSubmatch(exports, -1) {
		variables[m[1]] = m[2]
	}
	mux := http.NewServeMux()
	srv := httptest.NewServer(mux)
	t.Cleanup(srv.Close)
	variables["SERVER_CLUSTER_BASE_URL"] = srv.URL + "/mds/v1"
	cfg, err := cluster.ConfigFrom(func(name string) (string, bool) {
		value, ok := variables[name]
		return value, ok
	})
	if err != nil {
		t.Fatal(err)
	}
	c, err := cluster.New(cfg, cluster.WithoutEnv())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	c.Mount(mux)
	if _, err := c.Register(t.Context()); err != nil {
		t.Fatal(fmt.Errorf("registering: %w", err))
	}
	return srv.URL + "/mds/v1"
}
