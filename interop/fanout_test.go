//go:build unix

package interop

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	"github.com/google/go-cmp/cmp"
)

func fanOutScenarios() []scenario {
	return []scenario{
		{
			name:     "data of all peers is joined",
			shows:    "A node of either kind gets results from peers of both kinds. Its joint data consists of the elements of their arrays and of their single values.",
			runMixed: jointData,
		},
		{
			name:     "query and body arrive unchanged",
			shows:    "Peers of both kinds receive the query, the method and the JSON body of a call as they were given.",
			runMixed: queryAndBody,
		},
		{
			name:     "response without data",
			shows:    "A response without `data` adds nothing to the joint data of a Go node, and an empty value to that of an npm node.",
			runMixed: withoutData,
		},
		{
			name:     "response with a 4xx status",
			shows:    "A 4xx response of either kind is a failure with its status and message for a node of either kind. The peer is not evicted.",
			runMixed: below500,
		},
	}
}

func jointData(m *mixed) {
	for _, n := range m.nodes {
		var arrays, values []string
		for _, id := range m.otherIDs(n) {
			arrays = append(arrays, fmt.Sprintf("%q", id), fmt.Sprintf("%q", id+"-second"))
			values = append(values, fmt.Sprintf(`{"one":%q}`, id))
		}
		for path, want := range map[string][]string{"/things": arrays, "/one": values} {
			f := n.fanOut(fanoutArgs{Path: path})
			if diff := cmp.Diff(want, f.data()); diff != "" {
				m.Errorf("%s: data of %s (-want +got):\n%s", n.id, path, diff)
			}
			if err := checkEqual(f.resultIDs(), m.otherIDs(n)); err != nil || f.failureIDs() != nil {
				m.Errorf("%s: %s: results: %v; failures: %v", n.id, path, err, f.failureIDs())
			}
			for _, r := range f.Response.Results {
				var envelope struct{ Server struct{ ServerID string } }
				if err := json.Unmarshal(r.Result, &envelope); err != nil || envelope.Server.ServerID != r.Server.ServerID {
					m.Errorf("%s: result of %s: %s", n.id, r.Server.ServerID, r.Result)
				}
			}
		}
	}
}

func queryAndBody(m *mixed) {
	for _, n := range m.nodes {
		for _, args := range []fanoutArgs{
			{Method: "GET", Path: "/mirror", Query: map[string]string{"a": "1 2", "b": "é&=+"}},
			{Method: "POST", Path: "/mirror", Query: map[string]string{"a": "1"}, Body: map[string]any{"nested": []any{"é €", 1.5, nil, true}}},
		} {
			f := n.fanOut(args)
			if err := checkEqual(f.resultIDs(), m.otherIDs(n)); err != nil {
				m.Errorf("%s: results: %v; failures: %v", n.id, err, f.failureIDs())
			}
			for _, d := range f.Response.Data {
				var seen struct {
					ServerID string
					Query    map[string]string
					Body     any
				}
				if err := json.Unmarshal(d, &seen); err != nil {
					m.Fatal(err)
				}
				if diff := cmp.Diff(args.Query, seen.Query) + cmp.Diff(args.Body, seen.Body); diff != "" {
					m.Errorf("request from %s to %s (-sent +received):\n%s", n.id, seen.ServerID, diff)
				}
			}
		}
	}
}

func withoutData(m *mixed) {
	for _, n := range m.nodes {
		f := n.fanOut(fanoutArgs{Path: "/none"})
		if err := checkEqual(f.resultIDs(), m.otherIDs(n)); err != nil {
			m.Errorf("%s: results: %v; failures: %v", n.id, err, f.failureIDs())
		}
		var want []string
		if n.kind == npmKind {
			want = slices.Repeat([]string{"null"}, 3)
		}
		if diff := cmp.Diff(want, f.data()); diff != "" {
			m.Errorf("%s: joint data (-want +got):\n%s", n.id, diff)
		}
	}
}

func below500(m *mixed) {
	for _, n := range m.nodes {
		for _, status := range []int{400, 404, 409, 422} {
			f := n.fanOut(fanoutArgs{Path: fmt.Sprintf("/fail/%d", status)})
			if err := checkEqual(f.failureIDs(), m.otherIDs(n)); err != nil || f.resultIDs() != nil {
				m.Errorf("%s: failures: %v; results: %v", n.id, err, f.resultIDs())
			}
			for _, failure := range f.Response.Failures {
				if e := failure.Error; e.StatusCode != status || !strings.Contains(e.Message, "requested failure") {
					m.Errorf("%s: failure of %s for a %d: %+v", n.id, failure.Server.ServerID, status, e)
				}
			}
		}
	}
	m.waitForMembers(m.nodes...)
}
