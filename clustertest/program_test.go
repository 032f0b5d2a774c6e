package clustertest_test

import (
	"context"
	"errors"
	"slices"
	"testing"

	"github.com/mimiktech/cluster/clustertest"
)

func TestProgram(t *testing.T) {
	cause := errors.New("the cause")
	tests := map[string]struct {
		run  func(clustertest.TB)
		want string
	}{
		"success": {run: func(clustertest.TB) {}},
		"fatal":   {run: func(t clustertest.TB) { t.Fatal("node ", 1, ": ", cause) }, want: "node 1: the cause"},
		"fatalf":  {run: func(t clustertest.TB) { t.Fatalf("node %d: %w", 1, cause) }, want: "node 1: the cause"},
		"cleanup": {run: func(t clustertest.TB) { t.Cleanup(func() { t.Fatal(cause) }) }, want: "the cause"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			var steps []string
			err := clustertest.Program(t.Context(), func(p clustertest.TB) {
				p.Cleanup(func() { steps = append(steps, "first cleanup") })
				p.Cleanup(func() {
					if p.Context().Err() == nil {
						t.Error("the context has not ended before the cleanup")
					}
					steps = append(steps, "second cleanup")
				})
				tt.run(p)
				steps = append(steps, "end")
			})
			got := ""
			if err != nil {
				got = err.Error()
			}
			if got != tt.want || name == "fatalf" && !errors.Is(err, cause) {
				t.Errorf("got error %v, want %q", err, tt.want)
			}
			want := []string{"second cleanup", "first cleanup"}
			if name == "success" || name == "cleanup" {
				want = append([]string{"end"}, want...)
			}
			if !slices.Equal(steps, want) {
				t.Errorf("got steps %q, want %q", steps, want)
			}
		})
	}
}

func TestProgramUsesTheContext(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_ = clustertest.Program(ctx, func(p clustertest.TB) {
		if p.Context().Err() == nil {
			t.Error("the context of the TB does not end with that of the caller")
		}
	})
}
