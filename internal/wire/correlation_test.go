package wire_test

import (
	"regexp"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/uuid"

	"github.com/mimiktech/cluster/internal/wire"
)

// In the tables {id} stands for a new id, {now} for the time at which it was asked for.
var newID = regexp.MustCompile(`^[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}`)

// What is wanted here is what the npm module made of the same ids: nodes of both kinds take part
// in one correlation.
func TestNextCorrelationIDMatchesNPM(t *testing.T) {
	for _, tt := range []struct{ incoming, want string }{
		// Nothing, or only a name: the rest is filled in.
		{"", "{id}@0/{now}"},
		{"abc", "abc@0/{now}"},
		{"ABC@3/2020-01-02T03:04:05Z", "ABC@4/2020-01-02T03:04:05Z"},

		// The step is counted up.
		{"abc@0", "abc@1/{now}"},
		{"abc@1", "abc@2/{now}"},
		{"abc@9", "abc@10/{now}"},
		{"abc@41", "abc@42/{now}"},
		{"abc@007", "abc@8/{now}"},
		{"abc@+5", "abc@6/{now}"},
		{"abc@-0/d", "abc@1/d"},
		{"abc@-1", "abc@0/{now}"},
		{"abc@-2", "abc@-1/{now}"},
		{"abc@-9", "abc@-8/{now}"},
		{"abc@2147483646", "abc@2147483647/{now}"},
		{"abc@2147483647", "abc@2147483648/{now}"},

		// Only the number at the beginning of a step counts.
		{"abc@ 7", "abc@8/{now}"},
		{"abc@7 ", "abc@8/{now}"},
		{"abc@7x", "abc@8/{now}"},
		{"abc@1 2/d", "abc@2/d"},
		{"abc@1,5/d", "abc@2/d"},
		{"abc@1.9", "abc@2/{now}"},
		{"abc@1e3", "abc@2/{now}"},
		{"abc@0x10", "abc@1/{now}"},

		// A step without a number counts as a missing one.
		{"abc@", "abc@0/{now}"},
		{"abc@ ", "abc@0/{now}"},
		{"abc@x", "abc@0/{now}"},
		{"abc@x7", "abc@0/{now}"},
		{"abc@-", "abc@0/{now}"},
		{"abc@+", "abc@0/{now}"},
		{"abc@--3", "abc@0/{now}"},
		{"abc@+-3", "abc@0/{now}"},
		{"abc@NaN", "abc@0/{now}"},
		{"abc@Infinity", "abc@0/{now}"},

		// Of several steps the first counts.
		{"abc@1@2", "abc@2/{now}"},
		{"abc@1@2/d", "abc@2/d"},
		{"abc@@2", "abc@0/{now}"},
		{"a@b@c", "a@0/{now}"},

		// The date is carried on as it came, whatever it says.
		{"abc@1/2020-01-02T03:04:05.678Z", "abc@2/2020-01-02T03:04:05.678Z"},
		{"abc/2020-01-02T03:04:05.678Z", "abc@0/2020-01-02T03:04:05.678Z"},
		{"abc@1/yesterday", "abc@2/yesterday"},
		{"abc@1/ d", "abc@2/ d"},
		{"abc@1/d@9", "abc@2/d@9"},
		{"abc@1/", "abc@2/{now}"},
		{"abc@/", "abc@0/{now}"},
		{"abc/", "abc@0/{now}"},

		// A second slash ends it.
		{"abc@1/d/", "abc@2/d"},
		{"abc@1/d/e", "abc@2/d"},
		{"abc@1/d@9/e", "abc@2/d@9"},
		{"abc@1//d", "abc@2/{now}"},
		{"a/b@3", "a@0/b@3"},

		// Only separators.
		{"/", "{id}@0/{now}"},
		{"//", "{id}@0/{now}"},
		{"///", "{id}@0/{now}"},
		{"//d", "{id}@0/{now}"},
		{"/d", "{id}@0/d"},
		{"@", "{id}@0/{now}"},
		{"@/", "{id}@0/{now}"},
		{"@/d", "{id}@0/d"},
		{"@@@", "{id}@0/{now}"},
		{"@5", "{id}@6/{now}"},
		{"@5/d", "{id}@6/d"},

		// Blanks are part of the name.
		{" abc@3/d ", " abc@4/d "},
		{"a b c@3/d e", "a b c@4/d e"},
	} {
		t.Run(tt.incoming, func(t *testing.T) { wantNext(t, tt.incoming, tt.want) })
	}
}

// Where nodes of the two kinds differ: an id goes into headers and log lines, so what could
// break those, or swamp them, is not carried on.
func TestNextCorrelationIDIsBounded(t *testing.T) {
	long := strings.Repeat("x", 250) // the longest name with a step and a date of one letter
	for name, tt := range map[string]struct{ incoming, want string }{
		"longest":            {long + "@10/d", long + "@11/d"},
		"too long":           {long + "x@100/d", "{id}@0/{now}"},
		"far too long":       {strings.Repeat("x", 1<<20), "{id}@0/{now}"},
		"line break":         {"abc@1/d\nlevel=error", "{id}@0/{now}"},
		"carriage return":    {"abc@1/d\r\nSet-Cookie: a=b", "{id}@0/{now}"},
		"tab":                {"abc@\t7", "{id}@0/{now}"},
		"NUL":                {"abc\x00@1/d", "{id}@0/{now}"},
		"escape":             {"abc@1/\x1b[31m", "{id}@0/{now}"},
		"delete":             {"abc\x7f@1/d", "{id}@0/{now}"},
		"beyond ASCII":       {"äbc@1/d", "{id}@0/{now}"},
		"broken UTF-8":       {"abc\xff@1/d", "{id}@0/{now}"},
		"step beyond 32 bit": {"abc@4294967296/d", "abc@0/d"},
		"step beyond all":    {"abc@99999999999999999999999/d", "abc@0/d"},
	} {
		t.Run(name, func(t *testing.T) { wantNext(t, tt.incoming, tt.want) })
	}
}

func wantNext(t *testing.T, incoming, want string) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		got := strings.ReplaceAll(wire.NextCorrelationID(incoming), wire.FormatTime(time.Now()), "{now}")
		if strings.HasPrefix(want, "{id}") {
			got = newID.ReplaceAllString(got, "{id}")
		}
		if got != want {
			t.Errorf("NextCorrelationID(%.60q) = %q, want %q", incoming, got, want)
		}
	})
}

func TestNewCorrelationID(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := wire.NewCorrelationID(), wire.NewCorrelationID()
		for _, id := range []string{a, b} {
			name, rest, _ := strings.Cut(id, "@")
			if u, err := uuid.Parse(name); err != nil || u.Version() != 4 {
				t.Errorf("%q does not begin with a random UUID", id)
			}
			if want := "0/2000-01-01T00:00:00.000Z"; rest != want {
				t.Errorf("%q goes on with %q, want %q", id, rest, want)
			}
		}
		if a == b {
			t.Errorf("two new ids are both %q", a)
		}
	})
}

func TestUserAgent(t *testing.T) {
	got := wire.UserAgent("mds", "2.1", "node-1")
	want := "mimik-mds/2.1/node-1 (" + runtime.GOOS + "; " + runtime.GOARCH + "; go " + strings.TrimPrefix(runtime.Version(), "go") + ")"
	if got != want {
		t.Errorf("UserAgent = %q, want %q", got, want)
	}
}

// Whatever comes in, what goes on is a whole id that fits a header, and the next node counts on
// from it.
func FuzzCorrelationID(f *testing.F) {
	for _, seed := range []string{
		"", "abc", "abc@1/2020-01-02T03:04:05.678Z", "abc@-9/d", "@/", "a/b@3", "abc@1/d\r\nX: y", "abc@2147483647/d",
		"äbc@1/d", "abc\xff@1/d", "abc@99999999999999999999999/d", strings.Repeat("x", 255) + "@", " abc@3/d ", "abc@-1/d/e@7",
	} {
		f.Add(seed)
	}
	// The name has no '/' and no '@', the date has no '/'.
	whole := regexp.MustCompile(`^([ -.0-?A-~]+)@(-?[0-9]+)/([ -.0-~]+)$`)
	f.Fuzz(func(t *testing.T, incoming string) {
		next := wire.NextCorrelationID(incoming)
		parts := whole.FindStringSubmatch(next)
		if parts == nil {
			t.Fatalf("NextCorrelationID(%q) = %q, which is not id@step/date", incoming, next)
		}
		if len(next) > 512 {
			t.Errorf("NextCorrelationID(%q) has %d bytes", incoming, len(next))
		}
		if again := wire.NextCorrelationID(next); len(next) <= 256 {
			step, err := strconv.ParseInt(parts[2], 10, 32)
			if want := parts[1] + "@" + strconv.FormatInt(step+1, 10) + "/" + parts[3]; err == nil && again != want {
				t.Errorf("after %q comes %q, want %q", next, again, want)
			}
		}
	})
}
