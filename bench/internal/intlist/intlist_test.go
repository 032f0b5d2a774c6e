package intlist_test

import (
	"flag"
	"io"
	"slices"
	"strings"
	"testing"

	"github.com/mimiktech/cluster/bench/internal/intlist"
)

func TestList(t *testing.T) {
	for _, tt := range []struct {
		args []string
		want []int
		err  string
	}{
		{args: nil, want: []int{10, 100}},
		{args: []string{"-n", "2"}, want: []int{2}},
		{args: []string{"-n", "30, 4"}, want: []int{30, 4}},
		{args: []string{"-n", "3,1"}, want: []int{10, 100}, err: `"1" is not a number of at least 2`},
		{args: []string{"-n", "3,x"}, want: []int{10, 100}, err: `"x" is not`},
		{args: []string{"-n", ""}, want: []int{10, 100}, err: `"" is not`},
	} {
		flags := flag.NewFlagSet("test", flag.ContinueOnError)
		var usage strings.Builder
		flags.SetOutput(io.Discard)
		list := intlist.List{Min: 2, Values: []int{10, 100}}
		flags.Var(&list, "n", "`numbers`")
		switch err := flags.Parse(tt.args); {
		case tt.err == "" && err != nil, tt.err != "" && (err == nil || !strings.Contains(err.Error(), tt.err)):
			t.Errorf("%q: error %v, want %q", tt.args, err, tt.err)
		case !slices.Equal(list.Values, tt.want):
			t.Errorf("%q: %v, want %v", tt.args, list.Values, tt.want)
		}
		flags.SetOutput(&usage)
		if flags.PrintDefaults(); !strings.Contains(usage.String(), "(default 10,100)") {
			t.Errorf("the help text lacks the default:\n%s", usage.String())
		}
	}
}
