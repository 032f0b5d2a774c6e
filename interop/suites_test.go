//go:build unix

package interop

import (
	"fmt"
	"strings"
	"testing"
)

// A judgement is what one case of the npm helpers' own test suites comes to here: the scenario
// that has its facts, or why it has none.
type judgement struct {
	suite, fact string
	scenario    string
	why         string // there is none
}

const (
	goodTokensName     = "which tokens are good"
	correlationIDsName = "how an incoming correlation id goes on"
)

func judgements() []judgement {
	const (
		oauth   = "oauth-helper"
		request = "request-helper"
		user    = "tokens of users, with claims in their scopes, are for services that face them"
		admin   = "endpoints for admins are a service's own: it has the claims"
		config  = "New refuses a configuration that would lead to it"
	)
	return []judgement{
		{oauth, "a request without a token is refused", goodTokensName, ""},
		{oauth, "a request with two tokens is refused", goodTokensName, ""},
		{oauth, "an authorization other than a bearer token is refused", goodTokensName, ""},
		{oauth, "a bearer token that is no JWT is refused", goodTokensName, ""},
		{oauth, "a token that another key has signed is refused", goodTokensName, ""},
		{oauth, "a token without a scope is refused", goodTokensName, ""},
		{oauth, "a token with a scope other than those asked for is refused", goodTokensName, ""},
		{oauth, "an admin's token is refused where none is asked for", goodTokensName, ""},
		{oauth, "client, customer and type of the caller are read in a good token", "what a token says", ""},
		{oauth, "the token service answers 404: the call fails", "a token service that fails", ""},
		{oauth, "a refresh token is used, and credentials where it is refused with 400", "a refresh token", ""},
		{oauth, "a token that is still good is not fetched again", "how many tokens are fetched", ""},
		{oauth, "a request refused with 403 is made once more with a new token", "a refused token", ""},
		{oauth, "a request answered 500 fails", "a peer that answers 500", ""},
		{oauth, "keys for API users are compared", "", "API keys are a service's own"},
		{oauth, "tokens of users: implicit flow, on behalf, exchanged", "", user},
		{oauth, "claims in scopes are checked against the swagger file", "", user},
		{oauth, "the helper for admins: type, subject, customer", "", admin},
		{oauth, "a call to no type, or to one without an audience, is an error", "", config},
		{oauth, "a call without a URL, or with one that is none, is an error", "", "a request has a path only, and unit tests say which; addresses are checked when they are learned"},
		{oauth, "profiles at the identity service", "", "this module does not speak to it"},

		{request, "no id: a new UUID, at step 0, with the date", correlationIDsName, ""},
		{request, "an id without a step is at step 0", correlationIDsName, ""},
		{request, "a step is counted up", correlationIDsName, ""},
		{request, "a step that is no number counts as none", correlationIDsName, ""},
		{request, "an empty id is made up, its step and date are kept", correlationIDsName, ""},
		{request, "an empty date is made up", correlationIDsName, ""},
		{request, "the user agent names type, version and id of the server", "user agents", ""},
		{request, "the user agent of a request can be read", "user agents", ""},
		{request, "the header's name in small letters goes before that in capitals", "", "to net/http they are one header"},
		{request, "an id as a text instead of a request", "", "our function takes the text alone"},
		{request, "a user agent without type and id", "", config},
	}
}

// suitesTable is the judgements as the reader is shown them.
func suitesTable(t *testing.T, scenarios map[string]bool) string {
	t.Helper()
	var b strings.Builder
	b.WriteString("\n## What the npm helpers' own suites ask for\n\n| suite | fact | here |\n| --- | --- | --- |\n")
	for _, j := range judgements() {
		if j.scenario != "" && !scenarios[j.scenario] || (j.scenario == "") == (j.why == "") {
			t.Errorf("%s, %s: neither a scenario nor a reason", j.suite, j.fact)
		}
		if j.scenario != "" {
			fmt.Fprintf(&b, "| %s | %s | %s |\n", j.suite, j.fact, j.scenario)
		} else {
			fmt.Fprintf(&b, "| %s | %s | not applicable: %s |\n", j.suite, j.fact, j.why)
		}
	}
	return b.String()
}
