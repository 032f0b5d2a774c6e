package redact

import (
	"encoding/base64"
	"encoding/json"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"testing"
	"unicode"
)

const secret = `top <secret> & "key" + 100 %`

// forms returns the forms in which programs repeat a text.
func forms(text string) map[string]string {
	marshal := func(s string) string {
		b, _ := json.Marshal(s)
		return string(b[1 : len(b)-1])
	}
	var escaped, hex strings.Builder
	for _, b := range []byte(text) {
		escaped.WriteString(`\u00` + strconv.FormatInt(int64(b), 16))
		hex.WriteString(`%` + strconv.FormatInt(int64(b), 16))
	}
	return map[string]string{
		"raw":              text,
		"JSON":             marshal(text),
		"JSON twice":       marshal(marshal(text)),
		"JSON, all":        escaped.String(),
		"query":            url.QueryEscape(text),
		"path":             url.PathEscape(text),
		"URL, all":         hex.String(),
		"URL in JSON":      marshal(url.PathEscape(text)),
		"Go":               strconv.Quote(text),
		"base64":           base64.StdEncoding.EncodeToString([]byte(text)),
		"base64 for URLs":  base64.RawURLEncoding.EncodeToString([]byte(text)),
		"basic":            base64.StdEncoding.EncodeToString([]byte("me:" + text)),
		"in base64":        base64.StdEncoding.EncodeToString([]byte(`{"x":"` + text + `"}`)),
		"in longer base64": base64.URLEncoding.EncodeToString([]byte(`{"xx":"` + text + `"}`)),
	}
}

func TestForms(t *testing.T) {
	for name, form := range forms(secret) {
		got := Text("before "+form+" after", secret)
		if !strings.Contains(got, Mark) || !strings.HasPrefix(got, "before ") || !strings.HasSuffix(got, " after") {
			t.Errorf("%s: %s", name, got)
		}
		for _, part := range []string{"secret", "key", "c2VjcmV0", "NlY3JldD", "zZWNyZX"} {
			if strings.Contains(got, part) {
				t.Errorf("%s: %q contains %q", name, got, part)
			}
		}
	}
}

func TestTokens(t *testing.T) {
	const token = "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiJhIn0.c2lnbmF0dXJl"
	for _, text := range []string{token, "Bearer " + token, strings.ReplaceAll(token, ".", "%2e"), strings.ReplaceAll(token, "e", `\u0065`)} {
		if got := Text("x " + text); strings.Contains(got, "c2ln") || !strings.Contains(got, Mark) {
			t.Errorf("%s: %s", text, got)
		}
	}
	for _, text := range []string{"eye.contact.lost", "v1.2.3", "mds-1.example.com"} {
		if got := Text(text); got != text {
			t.Errorf("%s: %s", text, got)
		}
	}
}

func TestText(t *testing.T) {
	long := strings.Repeat("ä", MaxText)
	for _, tc := range []struct{ text, want string }{
		{"", ""},
		{"plain text, 100 %", "plain text, 100 %"},
		{"a\x00b\nc\x7fd\u009be\u202ef\u2066g", "a b c d e f g"},
		{"zürich 東京 🙂", "zürich 東京 🙂"},
		{"\xff\xfe", "\ufffd"},
		{"pass\x00word", "[redacted]"},    // a space completes it
		{"pa\u200bss word", "pa ss word"}, // and never joins
		{long, long[:MaxText-4] + "…"},
	} {
		if got := Text(tc.text, "pass word"); got != tc.want {
			t.Errorf("%.40q: %.40q (%d bytes), want %.40q (%d bytes)", tc.text, got, len(got), tc.want, len(tc.want))
		}
	}
	if got := Quote(long); len(got) > MaxQuote || !strings.HasSuffix(got, "…") {
		t.Errorf("a quote of %d bytes", len(got))
	}
	// A secret at the cut must not leave its beginning.
	if got := Quote(strings.Repeat("x", MaxQuote-8)+"pass word", "pass word"); strings.Contains(got, "pass") {
		t.Errorf("a part of a secret in %q", got)
	}
}

// Has finds the same in one pass as a search for each form of the secret.
func FuzzHas(f *testing.F) {
	for _, form := range forms(secret) {
		f.Add(form, secret, form[1:])
	}
	f.Add("+%2b%252b%zz%7", "aaaaaaaa", "bb")
	f.Fuzz(func(t *testing.T, text, secret, other string) {
		secrets := NewSecrets(secret, other)
		for _, input := range []string{text, text + secret, secret[:len(secret)/2] + text} {
			want := slices.ContainsFunc(decodings(input, true), func(d decoding) bool {
				return slices.ContainsFunc(secrets.needles, func(needle string) bool { return strings.Contains(d.text, needle) })
			})
			if got := secrets.Has(input); got != want {
				t.Fatalf("%v for %q, want %v", got, input, want)
			}
		}
	})
}

// Whatever the text, the result is short, printable, and has no form of the secret.
func FuzzText(f *testing.F) {
	for _, form := range forms(secret) {
		f.Add(form, secret)
	}
	f.Add("a\x00b c", "a b c d e f")
	f.Add("top+%3Csecret%3E+%26+%22key%22+%2B+100+%2", `top <secret> & "key" + 100 %`)
	f.Add(`\\\u005cu0061`, "aaaaaaaa")
	f.Fuzz(func(t *testing.T, text, secret string) {
		if len(secret) < minBase64 || strings.Contains(Mark+ellipsis, secret) {
			t.Skip()
		}
		for _, form := range forms(secret) {
			if strings.Contains(form, Mark) || strings.Contains(Mark, form) {
				continue
			}
			for _, input := range []string{text, text + form + text} {
				got := Text(input, secret)
				if len(got) > MaxText {
					t.Fatalf("%d bytes", len(got))
				}
				if strings.ContainsFunc(got, func(r rune) bool { return !unicode.IsPrint(r) }) {
					t.Fatalf("not printable: %q", got)
				}
				if strings.Contains(got, secret) || NewSecrets(secret).In(strings.TrimSuffix(got, ellipsis)) && !strings.Contains(secret, Mark[:1]) {
					t.Fatalf("%q has the secret %q", got, secret)
				}
			}
		}
	})
}
