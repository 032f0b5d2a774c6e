package cluster

import (
	"bytes"
	"encoding/json"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// Cutting an array at its commas gives what decoding it would.
func FuzzAppendData(f *testing.F) {
	for _, seed := range []string{
		``, `null`, `1.50`, `"a,[]"`, `{"a":[1,2]}`, `[]`, `[ ]`, `[1]`, `[ 1 , 2 ]`, `[[1,2],{"a":[3,"]"]},"\"],[\\",null]`, `["\\"]`, `["é,\u002c"]`, `[{},[],[[]]]`,
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		data = bytes.TrimSpace(data)
		if len(data) > 0 && !json.Valid(data) {
			return // an answer that is no JSON comes to nobody
		}
		var want []json.RawMessage
		switch {
		case len(data) == 0:
		case data[0] != '[':
			want = []json.RawMessage{data}
		default:
			if err := json.Unmarshal(data, &want); err != nil {
				t.Fatal(err)
			}
		}
		before := json.RawMessage(`"before"`)
		got := appendData([]json.RawMessage{before}, data)
		if diff := cmp.Diff(append([]json.RawMessage{before}, want...), got); diff != "" {
			t.Errorf("%s (-want +got):\n%s", data, diff)
		}
	})
}
