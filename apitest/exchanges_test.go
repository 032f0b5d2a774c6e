package apitest

import (
	"flag"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"

	"github.com/mimiktech/cluster/api"
	"github.com/mimiktech/cluster/internal/exchanges"
)

var recorded = flag.String("exchanges", "", "`folder` with the exchanges that tests have recorded") //nolint:gochecknoglobals // a flag

// TestExchanges compares each recorded exchange with the documents. A deviation must be in the list
// of deviations. With the flag -exchanges, each of the list must occur, and so must each operation.
func TestExchanges(t *testing.T) {
	dir := *recorded
	if dir == "" {
		dir = t.TempDir()
		record(t, dir)
	}
	all, err := exchanges.Read(dir)
	if err != nil {
		t.Fatal(err)
	}
	c := comparison{node: load(t, api.Node("/")), mit: load(t, api.MIT())}
	count, answered := map[string]int{}, map[string]bool{}
	occurred := make([]bool, len(deviations()))
	unexpected := map[string][]exchanges.Exchange{}
	for _, x := range all {
		r := c.compare(exchange{x})
		count[r.operation]++
		if x.Status < 300 {
			answered[r.operation] = true
		}
		for _, p := range r.problems {
			if i := slices.IndexFunc(deviations(), func(d deviation) bool { return d.problem.MatchString(p) }); i >= 0 {
				occurred[i] = true
				continue
			}
			unexpected[p] = append(unexpected[p], x)
		}
	}
	for _, operation := range slices.Sorted(maps.Keys(count)) {
		t.Logf("%6d %s", count[operation], operation)
	}
	for _, p := range slices.Sorted(maps.Keys(unexpected)) {
		t.Errorf("%s\n%d exchanges, such as\n%s", p, len(unexpected[p]), describe(unexpected[p][0]))
	}
	if *recorded == "" {
		return
	}
	for i, d := range deviations() {
		if !occurred[i] && !d.random {
			t.Errorf("a deviation that does not occur: %s (%s)", d.problem, d.reason)
		}
	}
	for name, operation := range c.operations() {
		if !answered[name] {
			t.Errorf("no exchange with a 2xx of %s", operation)
		}
	}
}

// record records the exchanges of a part of the tests of this repository.
func record(t *testing.T, dir string) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "go", "test", "-count=1", "./clustertest", "./api")
	cmd.Dir = ".."
	cmd.Env = append(os.Environ(), exchanges.Variable+"="+dir)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
}

// describe returns an exchange as a text, without tokens.
func describe(x exchanges.Exchange) string {
	var b strings.Builder
	message := func(m exchanges.Message) {
		for _, name := range slices.Sorted(maps.Keys(m.Header)) {
			fmt.Fprintf(&b, "  %s: %.60s\n", name, strings.Join(m.Header[name], ", "))
		}
		fmt.Fprintf(&b, "  %.600s\n", m.Body)
	}
	fmt.Fprintf(&b, "%s %s of %s, handled by %s\n", x.Method, x.Target, x.Host, x.Handler)
	message(x.Request)
	fmt.Fprintln(&b, x.Status)
	message(x.Response)
	return b.String()
}
