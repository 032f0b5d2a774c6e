package wire_test

import (
	"bytes"
	"encoding/json"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/mimiktech/cluster/internal/wire"
)

// Cutting an object into its members gives what decoding it would.
func FuzzMembers(f *testing.F) {
	for _, seed := range []string{
		`null`, `1`, `"a"`, `[{"a":1}]`, `{}`, ` { } `, `{"a":1}`, ` { "a" : { "b" : [ 1 , "}" ] } , "" : "," } `,
		`{"a":1,"a":[]}`, `{"\u0061":"\"","\\":{"c":":"}}`, `{"é":"\ud800"}`, "{\"\xff\":1}",
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		if !json.Valid(data) {
			return
		}
		got := map[string]json.RawMessage{}
		if trimmed := bytes.TrimSpace(data); trimmed[0] == '{' {
			for name, value := range wire.Members(trimmed) {
				text, ok := wire.Text(name, "")
				if !ok {
					t.Fatalf("%s has a name %s", data, name)
				}
				got[text] = value
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
