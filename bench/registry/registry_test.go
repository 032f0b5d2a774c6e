//go:build linux

package main

import (
	"bytes"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/mimiktech/cluster/internal/proctest"
	"github.com/mimiktech/cluster/mit/command"
)

// sound is the name of the registry without a fault.
const sound = "sound"

// TestMain makes this program a registry if its name is sound or a fault.
func TestMain(m *testing.M) {
	name := filepath.Base(os.Args[0])
	registrations, health := faults()
	switch {
	case name == sound:
		command.Main(command.Command{})
	case registrations[name] != nil, health[name] != nil:
		fmt.Fprintln(os.Stderr, serveFault(registrations[name], health[name]))
		os.Exit(1)
	case len(os.Args) > 1 && os.Args[1] == "-probe":
		main()
	default:
		flag.Parse()
		_ = flag.Set("test.parallel", "32") // the tests wait most of the time
		os.Exit(m.Run())
	}
}

// A run fails if the registry has a fault, and succeeds if it is sound.
func TestRun(t *testing.T) {
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	for scenario, wants := range map[string]map[string]string{ // by target: a part of the error
		"start": {
			sound:      "",
			"silent":   "only 0 of 30 nodes are registered",
			"fail":     "only 0 of 30 nodes are registered",
			"late":     "after its first attempt, 200ms are allowed",
			"truncate": "responses, 0 are allowed",
			"hang":     "responses, 0 are allowed",
			"no list":  "were not a list with its node",
			"large":    "MB, 64 are allowed",
			"exit":     "the registry has ended after",
		},
		"unread": {
			sound:         "",
			"silent":      "entries: 0 attempted; at least 5 must be accepted",
			"no list":     "no list; at least 1 must be begun",
			"fail":        "status 500; at least 9 must be begun or status 503",
			"unhealthy":   "failed",
			"slow health": "took more than",
		},
		"attack": {
			sound:        "",
			"fail later": "renewals failed, the first: status 500",
			"exit later": "the registry has ended after",
			"unhealthy":  "failed",
		},
		"soak": {
			sound:          "",
			"fail later":   "renewals failed, the first: status 500",
			"reject later": "renewals were rejected",
			"leak later":   "the memory ",
		},
	} {
		for target, want := range wants {
			t.Run(scenario+", "+target, func(t *testing.T) {
				t.Parallel()
				mit := filepath.Join(dir, target)
				if err := os.Symlink(self, mit); err != nil && !os.IsExist(err) {
					t.Fatal(err)
				}
				var out bytes.Buffer
				err := run(t.Context(), small(scenario, mit), &out)
				if want == "" && err != nil || want != "" && (err == nil || !strings.Contains(err.Error(), want)) {
					t.Errorf("got %v, want an error with %q; %s", err, want, &out)
				}
			})
		}
	}
}

// small returns the settings of a short run. It ends when the nodes have registered, or after one
// round of the hostile client. Its bounds of time allow for a busy machine.
func small(scenario, mit string) settings {
	s := settings{
		scenario: scenario, mit: mit, nodes: testNodes, decode: 1, lease: time.Second,
		duration: 30 * time.Second, timeout: requestTimeout, pause: 10 * time.Millisecond,
		hostile: hostileLoad{rounds: 1, entries: 5, lists: 10, idle: 20, hold: time.Second},
		bounds: bounds{
			within: 30 * time.Second,
			health: proctest.HealthBounds{Time: 5 * time.Second, SlowPercent: 1, Stall: 10 * time.Second},
		},
	}
	switch target := filepath.Base(mit); {
	case target == "silent", target == "fail" && scenario == "start":
		s.duration = time.Second // the run does not end earlier
	case scenario == "soak":
		s.duration, s.settle, s.bounds.growth = 5*time.Second, 2*time.Second, 100
	case target == "large":
		s.bounds.memory = 64
	case target == "hang":
		s.timeout = 200 * time.Millisecond
	case target == "late":
		s.bounds.within = 200 * time.Millisecond
	case target == "slow health":
		s.bounds.health.Time = 90 * time.Millisecond
	}
	return s
}

// The memory of a registry varies all the time. Only a lasting increase breaks the bound.
func TestCheckFlat(t *testing.T) {
	const settle = 5 * time.Minute
	sawtooth := func(i int) int64 { return 25 + int64(i*7%34) } // 25 to 58 MB
	for name, tc := range map[string]struct {
		rss  func(second int) int64 // MB
		want string
	}{
		"constant":            {func(int) int64 { return 40 }, ""},
		"garbage":             {sawtooth, ""},
		"settles":             {func(i int) int64 { return max(30, 200-int64(i)) }, ""},
		"peaks once":          {func(i int) int64 { return sawtooth(i) + 40*int64(i/1000%2*(1000/max(1, i))) }, "the memory peaks at"},
		"grows":               {func(i int) int64 { return 30 + int64(i/60) }, "the memory grows from"},
		"grows below a peak":  {func(i int) int64 { return max(30+int64(i/60), int64(200-i)) }, "the memory grows from"},
		"grows below garbage": {func(i int) int64 { return max(sawtooth(i), 20+int64(i/50)) }, "the memory grows from"},
		"steps up":            {func(i int) int64 { return 30 + 10*int64(i/1200) }, "the memory peaks at"},
	} {
		t.Run(name, func(t *testing.T) {
			var samples []memorySample
			for i := range 1800 {
				samples = append(samples, memorySample{time.Duration(i) * time.Second, tc.rss(i) << 20})
			}
			b := bounds{growth: 25}
			err := b.checkFlat(samples, settle)
			if tc.want == "" && err != nil || tc.want != "" && (err == nil || !strings.Contains(err.Error(), tc.want)) {
				t.Errorf("got %v, want an error with %q", err, tc.want)
			}
		})
	}
	b := bounds{growth: 25}
	if err := b.checkFlat([]memorySample{{at: time.Second, rss: 1}}, settle); err == nil {
		t.Error("a run that ends before the memory has settled succeeds")
	}
}
