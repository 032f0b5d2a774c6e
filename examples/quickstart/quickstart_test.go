package main

import (
	"strings"
	"testing"
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
