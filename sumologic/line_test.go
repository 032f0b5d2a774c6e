package sumologic_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"runtime/debug"
	"strings"
	"testing"
	"unicode/utf8"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"

	"github.com/mimiktech/cluster/sumologic"
)

// console returns a logger and a function that returns the line it wrote last.
func console(t *testing.T, cfg sumologic.Config) (log *zap.Logger, last func() map[string]any) {
	t.Helper()
	out := &output{}
	cfg.Console = out
	sink, err := sumologic.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return sink.Logger(), func() map[string]any {
		t.Helper()
		lines := strings.Split(strings.TrimSuffix(out.String(), "\n"), "\n")
		return decodeLine(t, lines[len(lines)-1])
	}
}

func metadataOf(t *testing.T, line map[string]any) string {
	t.Helper()
	return marshal(t, line["metadata"])
}

func TestFieldsOfWithAndNamespaces(t *testing.T) {
	log, last := console(t, sumologic.Config{})
	id := func(id string) zap.Field { return zap.String("correlationId", id) }
	for _, tc := range []struct {
		log                   *zap.Logger
		fields                []zap.Field
		message, id, metadata string
	}{
		{log.With(zap.Int("a", 1), id("i@1/d")), nil, "m", "i", `{"a":1}`},
		{log.With(id("i@1/d")).With(zap.Int("a", 1)), []zap.Field{id("j@2/d")}, "m", "j", `{"a":1}`},
		{log.Named("x").Named("y"), []zap.Field{zap.Int("a", 1)}, "m", "", `{"a":1,"logger":"x.y"}`},
		{log.With(zap.Namespace("n")), []zap.Field{id("i"), zap.String("message", "x")}, "m", "", `{"n":{"correlationId":"i","message":"x"}}`},
		{log, []zap.Field{id("i"), zap.Namespace("n"), id("j")}, "m", "i", `{"n":{"correlationId":"j"}}`},
		{log, []zap.Field{zap.Int("correlationId", 1)}, "m", "", `{"correlationId":1}`},
		{log.With(zap.String("message", "inner")), []zap.Field{zap.Int("a", 1)}, "m inner", "", `{"a":1}`},
		{log, []zap.Field{zap.Int("message", 1)}, "m", "", `{"message":1}`},
		{log, []zap.Field{zap.String("message", "")}, "m", "", `{}`},
		{log, []zap.Field{zap.Any("x", func() {})}, "m", "", `{"xError":"json: unsupported type: func()"}`},
	} {
		tc.log.Info("m", tc.fields...)
		line := last()
		if got, _ := line["correlationId"].(string); got != tc.id || line["message"] != tc.message || metadataOf(t, line) != tc.metadata {
			t.Errorf("got %v, want %s, %s, %s", line, tc.message, tc.id, tc.metadata)
		}
	}
}

type verboseError struct{}

func (verboseError) Error() string { return "short" }

func (verboseError) Format(f fmt.State, _ rune) { _, _ = fmt.Fprint(f, "short\n    at somewhere") }

type panickingError struct{}

func (panickingError) Error() string { panic("oh") }

type pointerError struct{ text string }

func (e *pointerError) Error() string { return e.text }

func TestErrors(t *testing.T) {
	log, last := console(t, sumologic.Config{})
	for _, tc := range []struct {
		err  error
		want string
	}{
		{errors.New("x"), `{"error":{"message":"x"}}`},
		{verboseError{}, `{"error":{"message":"short","stack":"short\n    at somewhere"}}`},
		{panickingError{}, `{"error":{"message":"error that panicked: oh"}}`},
		{(*pointerError)(nil), `{"error":{"message":"\u003cnil\u003e"}}`},
		{nil, `{}`},
	} {
		log.Info("m", zap.Error(tc.err))
		if got := metadataOf(t, last()); got != tc.want {
			t.Errorf("got %s, want %s", got, tc.want)
		}
	}
}

func TestStackInfo(t *testing.T) {
	log, last := console(t, sumologic.Config{})
	stackOf := func(log func(string, ...zap.Field)) map[string]any {
		log("m")
		info, _ := last()["stackInfo"].(map[string]any)
		return info
	}
	if info := stackOf(log.Warn); info != nil {
		t.Errorf("warn has %v", info)
	}
	info := stackOf(log.Error)
	checkStackInfo(t, info)
	if info["file"] != "line_test.go" || !strings.HasSuffix(info["path"].(string), "/line_test.go") ||
		!strings.HasSuffix(info["method"].(string), "TestStackInfo.func1") || info["line"] == "" {
		t.Errorf("stackInfo %v", info)
	}
	var hashes []any
	for range 2 {
		hashes = append(hashes, stackOf(log.Error)["hash"])
	}
	if hashes[0] != hashes[1] || hashes[0] == info["hash"] {
		t.Errorf("hashes %v of one place, %v of another", hashes, info["hash"])
	}

	all, lastOfAll := console(t, sumologic.Config{Stacks: true})
	all.Debug("m")
	checkStackInfo(t, lastOfAll()["stackInfo"].(map[string]any))
}

// TestStacksOfEqualFaultsAreEqual takes a stack with addresses from two goroutines.
func TestStacksOfEqualFaultsAreEqual(t *testing.T) {
	log, last := console(t, sumologic.Config{})
	var stacks []string
	for range 2 {
		done := make(chan struct{})
		go func() {
			defer close(done)
			stacks = append(stacks, string(debug.Stack()))
		}()
		<-done
	}
	if stacks[0] == stacks[1] {
		t.Fatal("the stacks do not differ")
	}
	var infos []string
	for _, stack := range stacks {
		entry := zapcore.Entry{Level: zap.ErrorLevel, Stack: stack}
		log.Core().Check(entry, nil).Write()
		info := last()["stackInfo"].(map[string]any)
		checkStackInfo(t, info)
		infos = append(infos, info["stack"].(string))
	}
	if infos[0] != infos[1] || strings.Contains(infos[0], "0x") || strings.Contains(infos[0], "goroutine") {
		t.Errorf("stacks %q and %q", infos[0], infos[1])
	}
}

func TestMask(t *testing.T) {
	deep := strings.Repeat(`{"a":`, 5000) + `{"secret":"s3cr3t"}` + strings.Repeat(`}`, 5000)
	for _, tc := range []struct {
		paths  []string
		fields []zap.Field
		want   string
	}{
		{[]string{"$.a"}, []zap.Field{zap.Int("b", 1)}, `{"b":1}`},
		{[]string{"a", "b.c"}, []zap.Field{zap.Int("a", 1), zap.Any("b", map[string]int{"c": 1})}, `{"a":"-------","b":{"c":"-------"}}`},
		{[]string{"*.a"}, []zap.Field{zap.Any("b", map[string]int{"a": 1})}, `{"b":{"a":"-------"}}`},
		{[]string{"..a"}, []zap.Field{zap.Any("b", map[string]any{"a": map[string]int{"a": 1}})}, `{"b":{"a":"-------"}}`},
		{[]string{"$..a", "$.b.a.a"}, []zap.Field{zap.Any("b", map[string]any{"a": map[string]int{"a": 1}})}, `{"b":{"a":"-------"}}`},
		{[]string{"$.*"}, []zap.Field{zap.Int("a", 1), zap.Int("b", 2)}, `{"a":"-------","b":"-------"}`},
		{[]string{"$..*"}, []zap.Field{zap.Any("a", []any{1, []int{2}})}, `{"a":"-------"}`},
		{[]string{"$.a[-1]", "$.a[0:1]"}, []zap.Field{zap.Ints("a", []int{1, 2, 3})}, `{"a":["-------",2,"-------"]}`},
		{[]string{"$['a','b']"}, []zap.Field{zap.Int("a", 1), zap.Int("b", 2)}, `{"a":"-------","b":"-------"}`},
		{[]string{`$["q\"\n"]`}, []zap.Field{zap.Int("q\"\n", 1)}, `{"q\"\n":"-------"}`},
		{[]string{"$.a"}, []zap.Field{zap.Any("x", json.RawMessage(`{"\u0061":1}`))}, `{"x":{"a":1}}`},
		{[]string{"$.x.a"}, []zap.Field{zap.Any("x", json.RawMessage(`{"\u0061":1}`))}, `{"x":{"a":"-------"}}`},
		{[]string{"$.a"}, []zap.Field{zap.Int("a", 1), zap.Int("a", 2)}, `{"a":"-------"}`},
		{[]string{"$.error.message"}, []zap.Field{zap.Error(errors.New("x"))}, `{"error":{"message":"-------"}}`},
		{[]string{"$..secret"}, []zap.Field{zap.Any("x", json.RawMessage(deep))}, ""},
	} {
		log, last := console(t, sumologic.Config{Mask: tc.paths})
		log.Info("m", tc.fields...)
		log.With(tc.fields...).Info("m")
		got := metadataOf(t, last())
		if tc.want == "" {
			if n := strings.Count(got, `{"a":`); strings.Contains(got, "s3cr3t") || n > 64 || n < 60 {
				t.Errorf("%v: %d levels are left: %.500s", tc.paths, n, got)
			}
		} else if got != tc.want {
			t.Errorf("%v: got %s, want %s", tc.paths, got, tc.want)
		}
	}
}

// TestMaskingKeepsNumbers has a number that a float64 cannot hold.
func TestMaskingKeepsNumbers(t *testing.T) {
	out := &output{}
	sink, err := sumologic.New(sumologic.Config{Mask: []string{"$.a"}, Console: out})
	if err != nil {
		t.Fatal(err)
	}
	sink.Logger().Info("m", zap.Int("a", 1), zap.Uint64("b", 1<<63+1))
	if !strings.Contains(out.String(), `"b":9223372036854775809`) {
		t.Error(out)
	}
}

// TestMaskedMessage moves a field named message only after masking it.
func TestMaskedMessage(t *testing.T) {
	log, last := console(t, sumologic.Config{Mask: []string{"$.message"}})
	log.Info("m", zap.String("message", "secret"))
	if line := last(); line["message"] != "m -------" {
		t.Errorf("got %v", line)
	}
}

func TestLinesOver64KB(t *testing.T) {
	long := strings.Repeat("é\n\x00x", 200<<10)
	many := map[string]string{}
	for i := range 20_000 {
		many[fmt.Sprint("key", i)] = "value"
	}
	list := make([]string, 30_000)
	for name, fields := range map[string][]zap.Field{
		"a long string":     {zap.Int("a", 1), zap.String("long", long), zap.String("z", "z")},
		"two":               {zap.Int("a", 1), zap.String("long", long), zap.Any("also", []string{long})},
		"a list":            {zap.Int("a", 1), zap.Strings("list", list)},
		"many members":      {zap.Int("a", 1), zap.Any("many", many)},
		"many fields":       fieldsOf(many),
		"a long name":       {zap.Int("a", 1), zap.String(long, "x")},
		"a long id":         {zap.Int("a", 1), zap.String("correlationId", long+"@1/"+long)},
		"a mask":            {zap.Int("a", 1), zap.String("long", long), zap.String("password", "s3cr3t")},
		"a stack":           {zap.Int("a", 1), zap.String("long", long)},
		"a long message":    {zap.Int("a", 1)},
		"all of them":       {zap.Int("a", 1), zap.String("long", long), zap.String("correlationId", long)},
		"invalid UTF-8":     {zap.Int("a", 1), zap.String("long", strings.Repeat("\xff", 100<<10))},
		"just one too many": {zap.Int("a", 1), zap.String("long", strings.Repeat("x", 64<<10))},
	} {
		t.Run(name, func(t *testing.T) {
			f := newFakeSumo(t, nil)
			sink, log, _ := start(t, f, func(c *sumologic.Config) {
				c.Mask, c.ConsoleLevel = []string{"$..password"}, zapcore.InvalidLevel
			})
			entry := zapcore.Entry{Level: zap.InfoLevel, Message: "message"}
			if name == "a stack" || name == "all of them" {
				entry.Stack, entry.Level = strings.Repeat("main.f()\n\t/f.go:12\n", 50_000), zap.ErrorLevel
			}
			if name == "a long message" || name == "all of them" {
				entry.Message += long
			}
			log.Core().Check(entry, nil).Write(fields...)
			if err := sink.Sync(); err != nil {
				t.Fatal(err)
			}
			lines := f.lines()
			if len(lines) != 1 {
				t.Fatalf("%d lines, want 1", len(lines))
			}
			if n := len(lines[0]); n > 64<<10 {
				t.Errorf("the line has %d bytes", n)
			}
			if !utf8.ValidString(lines[0]) || strings.Contains(lines[0], "s3cr3t") {
				t.Error("the line is not valid, or not masked")
			}
			line := decodeLine(t, lines[0])
			metadata := line["metadata"].(map[string]any)
			if size, _ := line["truncated"].(float64); size <= 64<<10 {
				t.Errorf("truncated is %v", line["truncated"])
			}
			if name != "many fields" && metadata["a"] != 1.0 {
				t.Errorf("a short member was lost: %v", metadata["a"])
			}
			if long, ok := metadata["long"].(string); ok && len(long) < 1<<10 {
				t.Errorf("only %d bytes are left", len(long))
			}
			if !strings.HasPrefix(line["message"].(string), "message") || line["serverId"] != "node-1@clients" {
				t.Errorf("line %.500s", lines[0])
			}
		})
	}
}

func fieldsOf(members map[string]string) (fields []zap.Field) {
	for name, value := range members {
		fields = append(fields, zap.String(name, value))
	}
	return fields
}

func TestLineOf64KBIsWhole(t *testing.T) {
	f := newFakeSumo(t, nil)
	sink, log, _ := start(t, f, nil)
	log.Info(strings.Repeat("x", 65_000))
	if err := sink.Sync(); err != nil {
		t.Fatal(err)
	}
	if line := decodeLine(t, f.lines()[0]); len(line["message"].(string)) != 65_000 || line["truncated"] != nil {
		t.Error("the line was truncated")
	}
}

// FuzzLine logs any text in any place: the line is JSON, and has the texts as encoding/json decodes
// them.
func FuzzLine(f *testing.F) {
	f.Add("message", "key", "value", "id@1/date", "main.f(0x1)\n\t/f.go:12 +0x1")
	f.Add(special, special, special, special, special)
	f.Add("\xff\u2028", "\xc3", "\xe2\x80", "@/", "\t")
	f.Add("", "correlationId", "a@b@c/d/e", "@-9223372036854775809/", "created by x in goroutine 1")
	f.Fuzz(func(t *testing.T, message, key, value, id, stack string) {
		log, last := console(t, sumologic.Config{Mask: []string{"$..secret"}})
		entry := zapcore.Entry{Level: zap.ErrorLevel, Message: message, Stack: stack}
		log.Core().Check(entry, nil).Write(zap.Any("m", map[string]string{key: value}), zap.String("correlationId", id))
		line := last()
		if got, want := line["message"], strings.ToValidUTF8(message, "\ufffd"); got != want && utf8.ValidString(message) {
			t.Errorf("message %q, want %q", got, want)
		}
		members := line["metadata"].(map[string]any)["m"].(map[string]any)
		if utf8.ValidString(key) && utf8.ValidString(value) && key != "secret" && members[key] != value {
			t.Errorf("metadata %q, want %q: %q", members, key, value)
		}
		if key == "secret" && members[key] != "-------" {
			t.Errorf("not masked: %q", members)
		}
		if stack != "" {
			checkKeys(t, line["stackInfo"].(map[string]any))
		}
	})
}

func checkKeys(t *testing.T, info map[string]any) {
	t.Helper()
	if len(info) != 7 {
		t.Errorf("stackInfo %v", info)
	}
}
