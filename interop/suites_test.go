//go:build unix

package interop

import (
	"fmt"
	"strings"
	"testing"
)

// A suiteCase is one case of the test suites of the npm helper modules: the scenario that covers
// it, or the reason why there is none.
type suiteCase struct {
	suite, name string
	scenario    string
	reason      string
}

const (
	acceptedTokensName = "accepted and rejected tokens"
	correlationIDsName = "continuation of a correlation id"
)

func suiteCases() []suiteCase {
	const (
		oauth   = "oauth-helper"
		request = "request-helper"
		user    = "user tokens, with claims in their scopes, are not used between servers"
		admin   = "a service with admin endpoints checks the claims itself"
		config  = "New rejects such a configuration"
	)
	return []suiteCase{
		{oauth, "request without a token is rejected", acceptedTokensName, ""},
		{oauth, "request with two tokens is rejected", acceptedTokensName, ""},
		{oauth, "authorization other than a bearer token is rejected", acceptedTokensName, ""},
		{oauth, "bearer token that is not a JWT is rejected", acceptedTokensName, ""},
		{oauth, "token signed with another key is rejected", acceptedTokensName, ""},
		{oauth, "token without a scope is rejected", acceptedTokensName, ""},
		{oauth, "token without the required scope is rejected", acceptedTokensName, ""},
		{oauth, "admin token is rejected by other endpoints", acceptedTokensName, ""},
		{oauth, "client, customer and type are read from a valid token", "claims of a token", ""},
		{oauth, "call fails if the token service responds with 404", "token service fails", ""},
		{oauth, "refresh token is used, or credentials if it is rejected with 400", "refresh token", ""},
		{oauth, "valid token is not requested again", "number of token requests", ""},
		{oauth, "request rejected with 403 is repeated once with a new token", "token is rejected by a peer", ""},
		{oauth, "request with a 500 response fails", "peer responds with 500", ""},
		{oauth, "keys of API users are compared", "", "a service checks its API keys itself"},
		{oauth, "user tokens: implicit flow, on behalf of, exchanged", "", user},
		{oauth, "claims in scopes are checked against the swagger file", "", user},
		{oauth, "admin helper checks type, subject and customer", "", admin},
		{oauth, "call without a type or an audience fails", "", config},
		{oauth, "call without a valid URL fails", "", "a request has only a path, see unit tests; addresses are checked when they are learned"},
		{oauth, "profiles of the identity service", "", "this module does not use the identity service"},

		{request, "new id is a UUID with step 0 and the date", correlationIDsName, ""},
		{request, "id without a step has step 0", correlationIDsName, ""},
		{request, "step is incremented", correlationIDsName, ""},
		{request, "step that is not a number is ignored", correlationIDsName, ""},
		{request, "empty id is replaced, its step and date are kept", correlationIDsName, ""},
		{request, "empty date is replaced", correlationIDsName, ""},
		{request, "user agent contains type, version and id of the server", "user agents", ""},
		{request, "user agent of a request can be read", "user agents", ""},
		{request, "header name in lower case takes precedence", "", "header names are case-insensitive in net/http"},
		{request, "id is a string instead of a request", "", "the Go function accepts only a string"},
		{request, "user agent without type and id", "", config},
	}
}

// suitesTable returns the suite cases as a Markdown table. Each must have a scenario or a reason.
func suitesTable(t *testing.T, scenarios map[string]bool) string {
	t.Helper()
	var b strings.Builder
	b.WriteString("\n## Test suites of the npm helper modules\n\n" +
		"`@mimik/cluster` uses `@mimik/oauth-helper` and `@mimik/request-helper`, which have test suites.\n" +
		"This table lists the scenarios that cover their cases.\n\n" +
		"| suite | case | scenario |\n| --- | --- | --- |\n")
	for _, c := range suiteCases() {
		if c.scenario != "" && !scenarios[c.scenario] || (c.scenario == "") == (c.reason == "") {
			t.Errorf("%s, %s: neither a scenario nor a reason", c.suite, c.name)
		}
		if c.scenario != "" {
			fmt.Fprintf(&b, "| %s | %s | %s |\n", c.suite, c.name, c.scenario)
		} else {
			fmt.Fprintf(&b, "| %s | %s | not applicable: %s |\n", c.suite, c.name, c.reason)
		}
	}
	return b.String()
}
