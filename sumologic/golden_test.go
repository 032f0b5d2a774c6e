package sumologic_test

import (
	"encoding/json"
	"errors"
	"flag"
	"os"
	"reflect"
	"strings"
	"testing"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"

	"github.com/mimiktech/cluster/sumologic"
)

const (
	goldenPath = "testdata/npm-lines.jsonl"
	filterPath = "testdata/npm/filter.json"
	correlated = "11111111-2222-4333-8444-555555555555"
	dated      = "2026-11-25T20:51:08.971Z"
	special    = "\"quotes\" \\ \n\t\r\b\f\u0001 <html> & \u2028 é 日本 😀"
)

//nolint:gochecknoglobals // a flag of the test binary
var update = flag.Bool("update", false, "write "+goldenPath+" by running the npm module")

// TestLinesEqualThoseOfTheNPMModule compares every line of the golden file, which the npm module
// wrote in its Kinesis mode, with the line that the same call results in here.
func TestLinesEqualThoseOfTheNPMModule(t *testing.T) {
	golden := readGolden(t)
	compare := func(level zapcore.Level, message string, fields ...zap.Field) {
		t.Helper()
		compareLine(t, golden, "mds", "node-1", level, message, fields)
	}
	id := func(id string) zap.Field { return zap.String("correlationId", id) }

	compare(zap.DebugLevel, "debug")
	compare(zap.InfoLevel, "info")
	compare(zap.WarnLevel, "warn")
	compare(zap.ErrorLevel, "error")
	compare(zap.InfoLevel, "")

	compare(zap.InfoLevel, "metadata", zap.String("string", "x"), zap.Int("integer", 1), zap.Float64("float", 1.5),
		zap.Bool("yes", true), zap.Any("nothing", nil), zap.Any("list", []any{1, "two", map[string]int{"three": 3}}),
		zap.Dict("nested", zap.Dict("a", zap.String("b", "c"))))
	compare(zap.InfoLevel, "empty metadata")
	compare(zap.InfoLevel, "numbers", zap.Int("zero", 0), zap.Int("negative", -1), zap.Int64("large", 9007199254740991),
		zap.Float64("exponent", 1e21), zap.Float64("small", 1e-7), zap.Float64("tenth", 0.1))
	compare(zap.InfoLevel, "date", zap.Time("at", time.UnixMilli(1700000000123).In(time.FixedZone("elsewhere", 3600))))
	compare(zap.InfoLevel, special, zap.String("key \"quoted\"\n", special))
	compare(zap.InfoLevel, "object with message", zap.String("message", "inner"), zap.Int("a", 1))
	compare(zap.ErrorLevel, "object with error", zap.Error(errors.New("cause")))

	compare(zap.InfoLevel, "correlated", zap.Int("a", 1), id(correlated+"@3/"+dated))
	compare(zap.InfoLevel, "correlated without metadata", id(correlated+"@0/"+dated))
	compare(zap.ErrorLevel, "correlated error", zap.Int("statusCode", 500), id(correlated+"@1/1700000000000"))
	compare(zap.InfoLevel, "no step", id(correlated+"/"+dated))
	compare(zap.InfoLevel, "no date", id(correlated+"@2"))
	compare(zap.InfoLevel, "id alone", id(correlated))
	compare(zap.InfoLevel, "label", id("service-startup-preOps@0/"+dated))
	compare(zap.InfoLevel, "step with a tail", id(correlated+"@4x/"+dated))
	compare(zap.InfoLevel, "negative step", id(correlated+"@-1/"+dated))
	compare(zap.InfoLevel, "two dates", id(correlated+"@1/a/b"))
	compare(zap.InfoLevel, "two steps", id(correlated+"@1@2/a"))

	compare(zap.InfoLevel, "masked", zap.String("password", "p"), zap.String("other", "o"), zap.Any("inner", map[string]any{
		"password": "kept", "secret": "s", "list": []any{map[string]any{"secret": map[string]int{"a": 1}}},
	}))
	compare(zap.InfoLevel, "masked elements",
		zap.Any("users", []map[string]any{{"name": "a", "pin": 1}, {"name": "b", "pin": 2}}),
		zap.Any("cards", []map[string]any{{"kind": "visa", "number": "1"}, {"kind": "other", "number": "2"}}))
	compare(zap.InfoLevel, "masked message: password", zap.String("message", "password"), zap.String("password", "p"))

	compareLine(t, golden, "", "", zap.InfoLevel, "without server type and id", nil)

	for message := range golden {
		t.Errorf("the line %q of the golden file was not compared", message)
	}
}

// compareLine logs a line, compares it with the golden line of the same message, and removes that.
func compareLine(t *testing.T, golden map[string]string, serverType, serverID string, level zapcore.Level, message string, fields []zap.Field) {
	t.Helper()
	vars := map[string]string{"FILTER_FILE": filterPath, "SERVER_TYPE": serverType, "SERVER_ID": serverID}
	cfg, err := sumologic.ConfigFromEnv(lookup(vars))
	if err != nil {
		t.Fatal(err)
	}
	var console output
	cfg.Console = &console
	sink, err := sumologic.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = sink.Close() }() // there is nothing to send
	log := sink.Logger(zap.WithClock(fixedClock{}))
	log.Log(level, message, fields...)

	got := decodeLine(t, console.String())
	key := got["message"].(string)
	text, ok := golden[key]
	if !ok {
		t.Fatalf("no golden line has the message %q", key)
	}
	delete(golden, key)
	want := decodeLine(t, text)
	if order := memberNames(t, console.String()); !reflect.DeepEqual(order, memberNames(t, text)) {
		t.Errorf("%q: members %v, want %v", key, order, memberNames(t, text))
	}
	normalize(t, got)
	normalize(t, want)
	if !reflect.DeepEqual(got, want) {
		t.Errorf("%q:\n got %v\nwant %v", key, got, want)
	}
}

// normalize checks the form of what differs between two runs, or two languages, and replaces it.
func normalize(t *testing.T, line map[string]any) {
	t.Helper()
	if _, err := time.Parse("2006-01-02T15:04:05.000Z", line["timestamp"].(string)); err != nil {
		t.Error(err)
	}
	line["timestamp"] = "checked"
	if info, ok := line["stackInfo"].(map[string]any); ok {
		checkStackInfo(t, info)
		for name := range info {
			info[name] = "checked"
		}
	}
	if cause, ok := line["metadata"].(map[string]any)["error"].(map[string]any); ok {
		delete(cause, "stack") // a Go error has none
	}
}

// fixedClock gives all lines one time.
type fixedClock struct{}

func (fixedClock) Now() time.Time {
	return time.Date(2026, 11, 25, 19, 51, 8, 990_999_999, time.FixedZone("elsewhere", -3600))
}
func (fixedClock) NewTicker(time.Duration) *time.Ticker { return nil }

func readGolden(t *testing.T) map[string]string {
	t.Helper()
	b, err := os.ReadFile(goldenPath)
	if err != nil {
		t.Fatal(err)
	}
	golden := map[string]string{}
	for text := range strings.Lines(string(b)) {
		golden[decodeLine(t, text)["message"].(string)] = text
	}
	return golden
}

func decodeLine(t *testing.T, text string) (line map[string]any) {
	t.Helper()
	if err := json.Unmarshal([]byte(text), &line); err != nil {
		t.Fatalf("%v: %s", err, text)
	}
	return line
}

// memberNames returns the names of an object's members in their order.
func memberNames(t *testing.T, text string) (names []string) {
	t.Helper()
	d := json.NewDecoder(strings.NewReader(text))
	if _, err := d.Token(); err != nil {
		t.Fatal(err)
	}
	for d.More() {
		name, err := d.Token()
		if err != nil {
			t.Fatal(err)
		}
		names = append(names, name.(string))
		var value json.RawMessage
		if err := d.Decode(&value); err != nil {
			t.Fatal(err)
		}
	}
	return names
}
