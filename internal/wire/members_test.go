package wire_test

import (
	"bytes"
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/mimiktech/cluster/internal/wire"
)

// Cutting an object into its members gives what decoding it would.
func FuzzEach(f *testing.F) {
	for _, seed := range []string{
		`null`, `1`, `"a"`, `[{"a":1}]`, `{}`, ` { } `, `{"a":1}`, ` { "a" : { "b" : [ 1 , "}" ] } , "" : "," } `,
		`{"a":"\\","b":"\\\"","c":"\\\\","d":"\"\\"}`, `{"a":1,"a":[]}`, `{"\u0061":"\"","\\":{"c":":"}}`, `{"é":"\ud800"}`, "{\"\xff\":1}",
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		if !json.Valid(data) {
			return
		}
		got := map[string]json.RawMessage{}
		if trimmed := bytes.TrimSpace(data); trimmed[0] == '{' {
			for name, value := range wire.Each(trimmed) {
				text, ok := wire.DecodeString(name, "")
				if !ok {
					t.Fatalf("%s has a name %s", data, name)
				}
				got[text] = value
				var is *string
				if json.Unmarshal(value, &is) != nil || is == nil {
					if wire.EqualString(value, "") {
						t.Errorf("%s is taken for a text", value)
					}
				} else if !wire.EqualString(value, *is) || wire.EqualString(value, *is+"x") {
					t.Errorf("%s is not taken for %q", value, *is)
				}
			}
		}
		want := map[string]json.RawMessage{}
		if json.Unmarshal(data, &want) != nil || want == nil {
			want = map[string]json.RawMessage{}
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%s (-want +got):\n%s", data, diff)
		}
	})
}

// A long text full of escapes, such as one with many lines in it, takes no longer than to look at
// each byte a few times. The bound is generous: searching for the end again after each escape took
// minutes.
func TestEachIsLinear(t *testing.T) {
	const lines = 4 << 20
	text := []byte(`{"data":"` + strings.Repeat(`\n`, lines) + `","server":{"serverId":"a"}}`)
	began, members := time.Now(), 0
	for range wire.Each(text) {
		members++
	}
	if took := time.Since(began); members != 2 || took > 10*time.Second {
		t.Errorf("%d members after %v", members, took)
	}
}
