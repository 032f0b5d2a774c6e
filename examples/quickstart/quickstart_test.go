package main

import (
	"bufio"
	"context"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"
)

// The demo uses real sockets, so it takes two seconds of real time: a node renews its lease of
// three seconds after half of it.
func TestRun(t *testing.T) {
	for _, name := range []string{
		"REGISTRATION_STATUS", "CLUSTER_STATUS_SERVERS", "CLUSTER_STATUS_UPDATED_AT", "CLUSTER_STATUS_LEASE_TIME",
	} {
		t.Setenv(name, "") // restores the variable after the test
	}
	var out strings.Builder
	err := run(t.Context(), &out)
	t.Log("\n" + out.String())
	if err != nil {
		t.Fatal(err)
	}
	rest := out.String()
	for _, part := range []string{
		"All three nodes know all three",
		"CLUSTER_STATUS_SERVERS=3",
		"bread (ben), cheese (cleo)",
		"cleo crashes",
		"ada evicts cleo",
		"The registry stops",
		"ada could not renew its lease: it is degraded",
		"ben could not renew its lease: it is degraded",
		"registered again",
		"ben shuts down",
		"The registry lists no servers",
		"Done.",
	} {
		_, after, found := strings.Cut(rest, part)
		if !found {
			t.Fatalf("%q is missing in the rest of the output", part)
		}
		rest = after
	}
}

// While the demo serves, the page shows what happens.
func TestRunServing(t *testing.T) {
	for _, name := range []string{
		"REGISTRATION_STATUS", "CLUSTER_STATUS_SERVERS", "CLUSTER_STATUS_UPDATED_AT", "CLUSTER_STATUS_LEASE_TIME",
	} {
		t.Setenv(name, "") // restores the variable after the test
	}
	ctx, interrupt := context.WithCancel(t.Context())
	defer interrupt()
	out, lines := io.Pipe()
	done := make(chan error, 1)
	go func() {
		done <- runServing(ctx, lines, 20*time.Millisecond)
		lines.Close()
	}()
	url := ""
	for scanner := bufio.NewScanner(out); scanner.Scan(); {
		line := scanner.Text()
		t.Log(line)
		if _, after, found := strings.Cut(line, "The status page of ada: "); found {
			url = after
		}
		if strings.Contains(line, "Interrupt the program") {
			page := get(t, url)
			for _, text := range []string{"shop · ada", "cleo is missing: this node evicted it", "registration failed"} {
				if !strings.Contains(page, text) {
					t.Errorf("the page does not show %q: %s", text, page)
				}
			}
			interrupt()
		}
	}
	if err := <-done; err != nil {
		t.Error(err)
	}
	if url == "" {
		t.Error("no URL was printed")
	}
}

func get(t *testing.T, url string) string {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return string(body)
}
