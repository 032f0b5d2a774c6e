package wire_test

import (
	"strings"
	"testing"

	"github.com/mimiktech/cluster/internal/wire"
)

func TestEntryRules(t *testing.T) {
	long := strings.Repeat("a", wire.MaxNameBytes+1)
	for name, test := range map[string]struct {
		check func(string) error
		value string
		want  string // in the error; "" for none
	}{
		"id":                  {wire.CheckServerID, "5f9c6f9e-1c1b-4b7e-9f0e-1234567890ab", ""},
		"id of a name":        {wire.CheckServerID, "Näme 1~.", ""},
		"id missing":          {wire.CheckServerID, "", "is missing"},
		"id long":             {wire.CheckServerID, long, "256"},
		"id of a path":        {wire.CheckServerID, "a/b", `'/'`},
		"id with date":        {wire.CheckServerID, "a@b", `'@'`},
		"id escaped":          {wire.CheckServerID, "a%2Fb", `'%'`},
		"id dots":             {wire.CheckServerID, "..", "dot segment"},
		"id line break":       {wire.CheckServerID, "a\nb", `'\n'`},
		"id C1":               {wire.CheckServerID, "a\u0085", `'\u0085'`},
		"id line separator":   {wire.CheckServerID, "a\u2028", `'\u2028'`},
		"id right to left":    {wire.CheckServerID, "a\u202e", `'\u202e'`},
		"id not UTF-8":        {wire.CheckServerID, "a\xff", "UTF-8"},
		"type":                {wire.CheckType, "a/b@c", ""},
		"type missing":        {wire.CheckType, "", "is missing"},
		"type escape":         {wire.CheckType, "\x1b[31m", `'\x1b'`},
		"URL":                 {wire.CheckBaseURL, "http://[2001:db8::1]:8080/mds/v1", ""},
		"URL dots in a name":  {wire.CheckBaseURL, "http://a/..b/c..", ""},
		"URL missing":         {wire.CheckBaseURL, "", "is missing"},
		"URL long":            {wire.CheckBaseURL, "http://a/" + strings.Repeat("a", wire.MaxURLBytes), "2048"},
		"URL dot segment":     {wire.CheckBaseURL, "http://a/v1/../admin", "dot segment"},
		"URL escaped segment": {wire.CheckBaseURL, "http://a/v1/%2e%2E/admin", "dot segment"},
		"URL fragment":        {wire.CheckBaseURL, "http://a/#b", "more than a path"},
		"URL empty fragment":  {wire.CheckBaseURL, "http://a/#", "more than a path"},
		"URL query":           {wire.CheckBaseURL, "http://a/?b", "more than a path"},
		"URL control":         {wire.CheckBaseURL, "http://a/\u0085", "control"},
		"URL credentials":     {wire.CheckBaseURL, "http://u:hunter2@a/", "credentials"},
		"public":              {wire.CheckPublicURL, "https://example.com/mds/v1", ""},
		"public empty":        {wire.CheckPublicURL, "", ""},
		"public script":       {wire.CheckPublicURL, "javascript:alert(1)", "http or https"},
		"public data":         {wire.CheckPublicURL, "data:text/html,x", "http or https"},
		"location":            {func(s string) error { return wire.CheckLocation([]byte(s)) }, strings.Repeat("a", wire.MaxLocationBytes), ""},
		"location long":       {func(s string) error { return wire.CheckLocation([]byte(s)) }, strings.Repeat("a", wire.MaxLocationBytes+1), "4096"},
	} {
		t.Run(name, func(t *testing.T) {
			err := test.check(test.value)
			if (err == nil) != (test.want == "") || err != nil && (!strings.Contains(err.Error(), test.want) || strings.Contains(err.Error(), "hunter2")) {
				t.Errorf("%q: %v, want %q", test.value, err, test.want)
			}
		})
	}
}
