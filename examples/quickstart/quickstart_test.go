package main

import (
	"strings"
	"testing"
)

// The story is told on real sockets, for it is what a newcomer runs first; so it takes the two
// seconds of real time that a lease of three needs to show what it is good for.
func TestStory(t *testing.T) {
	for _, name := range []string{
		"REGISTRATION_STATUS", "CLUSTER_STATUS_SERVERS", "CLUSTER_STATUS_UPDATED_AT", "CLUSTER_STATUS_LEASE_TIME",
	} {
		t.Setenv(name, "") // so that the test leaves them as they were
	}
	var told strings.Builder
	err := tell(t.Context(), &told)
	t.Log("\n" + told.String())
	if err != nil {
		t.Fatal(err)
	}
	rest := told.String()
	for _, fact := range []string{
		"all three know all three",
		"CLUSTER_STATUS_SERVERS=3",
		"bread (ben), cheese (cleo)",
		"cleo dies",
		"ada evicts it",
		"the registry dies",
		"ada could not reach it to renew: it is degraded",
		"ben could not reach it to renew: it is degraded",
		"registered again",
		"ben ends politely",
		"The registry lists nobody",
		"The end.",
	} {
		_, after, found := strings.Cut(rest, fact)
		if !found {
			t.Fatalf("the story does not go on with %q", fact)
		}
		rest = after
	}
}
