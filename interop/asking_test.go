//go:build unix

package interop

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	"github.com/google/go-cmp/cmp"
)

func asking() []scenario {
	return []scenario{
		{
			name:   "data of all peers is joined",
			says:   "Asked by a node of either kind, peers of both answer; the elements of their arrays and their single values make up the joint data.",
			within: jointData,
		},
		{
			name:   "a query and a body arrive",
			says:   "Query, method and JSON body of a request reach peers of both kinds as they were given, from either kind.",
			within: queryAndBody,
		},
		{
			name:   "an answer without data",
			says:   "A result whose answer has no `data` adds nothing to the joint data in Go; the npm module adds an empty value for it.",
			within: withoutData,
		},
		{
			name:   "an answer below 500",
			says:   "A 4xx of a peer of either kind is a failure with its status and message to either kind, and nobody is evicted for it.",
			within: below500,
		},
	}
}

func jointData(m *mixed) {
	for _, n := range m.nodes {
		var arrays, values []string
		for _, id := range m.but(n) {
			arrays = append(arrays, fmt.Sprintf("%q", id), fmt.Sprintf("%q", id+"-second"))
			values = append(values, fmt.Sprintf(`{"one":%q}`, id))
		}
		for path, want := range map[string][]string{"/things": arrays, "/one": values} {
			f := n.ask(fanoutArgs{Path: path})
			if diff := cmp.Diff(want, f.data()); diff != "" {
				m.Errorf("%s asks for %s (-want +got):\n%s", n.id, path, diff)
			}
			if err := same(f.answered(), m.but(n)); err != nil || f.failed() != nil {
				m.Errorf("%s asks for %s: answered: %v; failed: %v", n.id, path, err, f.failed())
			}
			for _, r := range f.Response.Results {
				var envelope struct{ Server struct{ ServerID string } }
				if err := json.Unmarshal(r.Result, &envelope); err != nil || envelope.Server.ServerID != r.Server.ServerID {
					m.Errorf("%s has %s as the result of %s", n.id, r.Result, r.Server.ServerID)
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
			f := n.ask(args)
			if err := same(f.answered(), m.but(n)); err != nil {
				m.Errorf("%s: answered: %v; failed: %v", n.id, err, f.failed())
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
					m.Errorf("what %s sends is not what %s sees (-sent +seen):\n%s", n.id, seen.ServerID, diff)
				}
			}
		}
	}
}

func withoutData(m *mixed) {
	for _, n := range m.nodes {
		f := n.ask(fanoutArgs{Path: "/none"})
		if err := same(f.answered(), m.but(n)); err != nil {
			m.Errorf("%s: answered: %v; failed: %v", n.id, err, f.failed())
		}
		var want []string
		if n.kind == npmKind {
			want = slices.Repeat([]string{"null"}, 3)
		}
		if diff := cmp.Diff(want, f.data()); diff != "" {
			m.Errorf("%s joins (-want +got):\n%s", n.id, diff)
		}
	}
}

func below500(m *mixed) {
	for _, n := range m.nodes {
		for _, status := range []int{400, 404, 409, 422} {
			f := n.ask(fanoutArgs{Path: fmt.Sprintf("/fail/%d", status)})
			if err := same(f.failed(), m.but(n)); err != nil || f.answered() != nil {
				m.Errorf("%s: failed: %v; answered: %v", n.id, err, f.answered())
			}
			for _, failure := range f.Response.Failures {
				if e := failure.Error; e.StatusCode != status || !strings.Contains(e.Message, "failing as told") {
					m.Errorf("%s has %+v for a %d of %s", n.id, e, status, failure.Server.ServerID)
				}
			}
		}
	}
	m.settle(m.nodes...)
}
