package sumologic_test

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.uber.org/zap"

	"github.com/mimiktech/cluster/sumologic"
)

func TestConfigFromEnv(t *testing.T) {
	cfg, err := sumologic.ConfigFromEnv(lookup(map[string]string{
		"LOG_MODE": " sumologic ", "LOG_LEVEL": "info", "CONSOLE_LEVEL": "silly", "SUMO_LOGIC_ENDPOINT": endpoint,
		"SUMO_LOGIC_COLLECTOR_CODE": code, "NO_STACK": "no", "NODE_ENV": "Development", "FILTER_FILE": filterPath,
		"EXIT_DELAY": "500", "SERVER_TYPE": "mds", "SERVER_ID": "node-1", "SUMO_LOGIC_SOURCE_CATEGORY": "mimik/mds",
	}))
	if err != nil {
		t.Fatal(err)
	}
	if cfg.Endpoint != endpoint || string(cfg.Code) != code || cfg.Level != zap.InfoLevel || cfg.ConsoleLevel != zap.DebugLevel ||
		!cfg.Stacks || len(cfg.Mask) != 5 || cfg.ExitDelay != 500*time.Millisecond || cfg.ServerType != "mds" ||
		cfg.ServerID != "node-1" || cfg.SourceCategory != "mimik/mds" {
		t.Errorf("%+v", cfg)
	}
	if _, err := sumologic.New(cfg); err != nil {
		t.Error(err)
	}
}

func TestDefaultsAreThoseOfTheCode(t *testing.T) {
	for _, mode := range []string{"", "none", " none "} {
		cfg, err := sumologic.ConfigFromEnv(lookup(map[string]string{
			"LOG_MODE": mode, "EXIT_DELAY": "0", "SUMO_LOGIC_ENDPOINT": endpoint, "SUMO_LOGIC_COLLECTOR_CODE": code,
		}))
		if err != nil {
			t.Fatal(err)
		}
		if cfg.Endpoint != "" || cfg.Level != zap.DebugLevel || cfg.ConsoleLevel != zap.DebugLevel || cfg.Stacks || cfg.ExitDelay != 0 {
			t.Errorf("LOG_MODE %q: %+v", mode, cfg)
		}
	}
}

func TestStacks(t *testing.T) {
	for _, tc := range []struct {
		noStack, nodeEnv string
		want             bool
	}{
		{"", "", false},
		{"yes", "local", false},
		{"no", "", true},
		{"no", "local", true},
		{"no", "DEV", true},
		{"YES", "dev", true},
		{"no", "production", false},
	} {
		cfg, err := sumologic.ConfigFromEnv(lookup(map[string]string{"NO_STACK": tc.noStack, "NODE_ENV": tc.nodeEnv}))
		if err != nil || cfg.Stacks != tc.want {
			t.Errorf("NO_STACK %q, NODE_ENV %q: %t, %v", tc.noStack, tc.nodeEnv, cfg.Stacks, err)
		}
	}
}

// TestBadConfiguration has one error for each configuration, which names the variable.
func TestBadConfiguration(t *testing.T) {
	file := func(content string) string {
		path := filepath.Join(t.TempDir(), "filter.json")
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	const mode = "LOG_MODE"
	for _, tc := range []struct {
		name, value, want string // of the variable that is set, and a part of the error
	}{
		{mode, "sumologik", `LOG_MODE contains the unknown word "sumologik"`},
		{mode, "Sumologic", `LOG_MODE contains the unknown word "Sumologic"`},
		{mode, "sumologic,", `LOG_MODE contains the unknown word ""`},
		{mode, "awsS3", "LOG_MODE awsS3 is not supported"},
		{mode, "sumologic , awsKinesis", "LOG_MODE awsKinesis is not supported"},
		{mode, "all", "awsS3 is not supported"},
		{mode, "none,sumologic", "LOG_MODE none cannot be combined"},
		{"SUMO_LOGIC_ENDPOINT", "", "SUMO_LOGIC_ENDPOINT is missing"},
		{"SUMO_LOGIC_ENDPOINT", strings.TrimSuffix(endpoint, "/"), "SUMO_LOGIC_ENDPOINT is not"},
		{"SUMO_LOGIC_ENDPOINT", endpoint + code, "SUMO_LOGIC_ENDPOINT is not"},
		{"SUMO_LOGIC_ENDPOINT", endpoint + code + "%zz/", "SUMO_LOGIC_ENDPOINT is not"},
		{"SUMO_LOGIC_ENDPOINT", "https://collectors.test", "SUMO_LOGIC_ENDPOINT is not"},
		{"SUMO_LOGIC_ENDPOINT", "collectors.test/", "SUMO_LOGIC_ENDPOINT is not"},
		{"SUMO_LOGIC_ENDPOINT", "ftp://collectors.test/", "SUMO_LOGIC_ENDPOINT is not"},
		{"SUMO_LOGIC_ENDPOINT", "https:///", "SUMO_LOGIC_ENDPOINT is not"},
		{"SUMO_LOGIC_ENDPOINT", "https://u:p@collectors.test/", "SUMO_LOGIC_ENDPOINT is not"},
		{"SUMO_LOGIC_ENDPOINT", endpoint + "?", "SUMO_LOGIC_ENDPOINT is not"},
		{"SUMO_LOGIC_ENDPOINT", endpoint + "#", "SUMO_LOGIC_ENDPOINT is not"},
		{"SUMO_LOGIC_ENDPOINT", endpoint + "\n", "SUMO_LOGIC_ENDPOINT is not"},
		{"SUMO_LOGIC_COLLECTOR_CODE", "", "SUMO_LOGIC_COLLECTOR_CODE is missing"},
		{"SUMO_LOGIC_COLLECTOR_CODE", code + "\n", "SUMO_LOGIC_COLLECTOR_CODE is not"},
		{"SUMO_LOGIC_COLLECTOR_CODE", code + "?x", "SUMO_LOGIC_COLLECTOR_CODE is not"},
		{"SUMO_LOGIC_COLLECTOR_CODE", code + "é", "SUMO_LOGIC_COLLECTOR_CODE is not"},
		{"FILTER_FILE", filepath.Join(t.TempDir(), "missing.json"), "FILTER_FILE: open"},
		{"FILTER_FILE", file("password"), "is not a JSON array of JSONPath strings"},
		{"FILTER_FILE", file(`{"a":1}`), "is not a JSON array of JSONPath strings"},
		{"FILTER_FILE", file(`["$.a", 1]`), "is not a JSON array of JSONPath strings"},
		{"FILTER_FILE", file(`["$.a", "$.b["]`), `FILTER_FILE entry 2, "$.b[", is not a JSONPath`},
		{"FILTER_FILE", file(`["$.a-b"]`), "FILTER_FILE entry 1"},
		{"FILTER_FILE", file(`[""]`), "FILTER_FILE entry 1"},
		{"FILTER_FILE", file(`["$"]`), `FILTER_FILE entry 1, "$", selects no member`},
		{"FILTER_FILE", file(`["` + strings.Repeat("x", 2<<20) + `"]`), "FILTER_FILE"},
		{"LOG_LEVEL", "trace", `LOG_LEVEL "trace" is not one of`},
		{"CONSOLE_LEVEL", "INFO", `CONSOLE_LEVEL "INFO" is not one of`},
		{"EXIT_DELAY", "2s", `EXIT_DELAY "2s" is not a number of milliseconds`},
		{"EXIT_DELAY", "-1", `EXIT_DELAY "-1" is not`},
		{"EXIT_DELAY", "99999999999", "EXIT_DELAY"},
		{"SERVER_TYPE", strings.Repeat("x", 257), "SERVER_TYPE has more than"},
		{"SERVER_ID", strings.Repeat("x", 257), "SERVER_ID has more than"},
		{"SUMO_LOGIC_SOURCE_FIELDS", "a=1\nX-Other: 1", "SUMO_LOGIC_SOURCE_FIELDS does not fit into a header"},
	} {
		t.Run(fmt.Sprintf("%s=%.20q", tc.name, tc.value), func(t *testing.T) {
			vars := map[string]string{
				mode: "sumologic", "SUMO_LOGIC_ENDPOINT": endpoint, "SUMO_LOGIC_COLLECTOR_CODE": code,
				tc.name: tc.value,
			}
			cfg, err := sumologic.ConfigFromEnv(lookup(vars))
			if err == nil {
				t.Fatalf("no error: %+v", cfg)
			}
			text := err.Error()
			if !strings.HasPrefix(text, "sumologic: configuration: ") || !strings.Contains(text, tc.want) || strings.Contains(text, "\n") {
				t.Errorf("error %q, want %q", text, tc.want)
			}
			if strings.Contains(text, code) {
				t.Errorf("the error shows the code: %q", text)
			}
		})
	}
}

func TestEveryProblemIsReported(t *testing.T) {
	_, err := sumologic.ConfigFromEnv(lookup(map[string]string{"LOG_MODE": "sumologic,x", "LOG_LEVEL": "y", "EXIT_DELAY": "z"}))
	for _, name := range []string{"LOG_MODE", "LOG_LEVEL", "EXIT_DELAY", "SUMO_LOGIC_ENDPOINT", "SUMO_LOGIC_COLLECTOR_CODE"} {
		if err == nil || strings.Count(err.Error(), name) != 1 {
			t.Errorf("%s is not named once: %v", name, err)
		}
	}
}

func TestNewChecksTheConfiguration(t *testing.T) {
	for want, cfg := range map[string]sumologic.Config{
		"SUMO_LOGIC_ENDPOINT is missing":       {Code: code},
		"SUMO_LOGIC_COLLECTOR_CODE is missing": {Endpoint: endpoint},
		"EXIT_DELAY":                           {ExitDelay: -1},
		"FILTER_FILE entry 1":                  {Mask: []string{"$["}},
	} {
		if _, err := sumologic.New(cfg); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("error %v, want %q", err, want)
		}
	}
}

func TestConfigHidesTheCode(t *testing.T) {
	cfg := sumologic.Config{Endpoint: endpoint, Code: code}
	b, err := json.Marshal(map[string]any{"code": cfg.Code})
	if err != nil {
		t.Fatal(err)
	}
	out := fmt.Sprintf("%v %+v %#v %s %q %x %d %s %q", cfg, cfg, cfg, cfg.Code, cfg.Code, cfg.Code, cfg.Code, b, sumologic.Secret(""))
	if strings.Contains(out, code) || strings.Contains(out, fmt.Sprintf("%x", code)) || strings.Count(out, "[redacted]") != 8 {
		t.Errorf("got %s", out)
	}
}
