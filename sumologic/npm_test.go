//go:build unix

package sumologic_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

const npmDir = "testdata/npm"

// TestGoldenFileIsCurrent runs the npm module in its Kinesis mode, with a server of this test in
// place of Kinesis, and compares its lines with the golden file. -update writes the file.
func TestGoldenFileIsCurrent(t *testing.T) {
	dir := install(t)
	lines := emit(t, dir, "lines", "SERVER_TYPE=mds", "SERVER_ID=node-1", "FILTER_FILE="+filepath.Join(dir, "filter.json"))
	lines = append(lines, emit(t, dir, "defaults")...)
	if *update {
		if err := os.WriteFile(goldenPath, []byte(strings.Join(lines, "")), 0o600); err != nil {
			t.Fatal(err)
		}
		return
	}
	golden := readGolden(t)
	if len(lines) != len(golden) {
		t.Errorf("the npm module wrote %d lines, the golden file has %d", len(lines), len(golden))
	}
	for _, text := range lines {
		line := decodeLine(t, text)
		want := decodeLine(t, golden[line["message"].(string)])
		normalize(t, line)
		normalize(t, want)
		if got, want := marshal(t, line), marshal(t, want); got != want {
			t.Errorf("the npm module wrote\n%s\nthe golden file has\n%s", got, want)
		}
	}
}

// emit runs emit.js and returns the lines that Kinesis received, sorted by their text.
func emit(t *testing.T, dir, set string, env ...string) []string {
	t.Helper()
	var (
		mu    sync.Mutex
		lines []string
	)
	kinesis := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var body struct{ Records []struct{ Data []byte } }
		if err := json.NewDecoder(r.Body).Decode(&body); err != nil {
			t.Error(err)
		}
		mu.Lock()
		defer mu.Unlock()
		for _, record := range body.Records {
			lines = append(lines, withoutDir(t, string(record.Data), dir)+"\n")
		}
		w.Header().Set("Content-Type", "application/x-amz-json-1.1")
		_, _ = w.Write([]byte(`{"FailedRecordCount":0,"Records":[]}`)) // the client's problem
	}))
	defer kinesis.Close()

	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	node := command(ctx, dir, "node", "emit.js", set)
	node.Env = append([]string{
		"PATH=" + os.Getenv("PATH"), "HOME=" + dir, "LOG_MODE=awsKinesis", "EXIT_DELAY=1500", "KINESIS_AWS_REGION=us-east-1",
		"KINESIS_AWS_STREAM_NAME_INFO=info", "KINESIS_AWS_STREAM_NAME_ERROR=error", "KINESIS_AWS_STREAM_NAME_OTHER=other",
		"KINESIS_AWS_ACCESS_KEY_ID=id", "KINESIS_AWS_SECRET_ACCESS_KEY=key", "AWS_ENDPOINT_URL_KINESIS=" + kinesis.URL,
	}, env...)
	if out, err := node.CombinedOutput(); err != nil {
		t.Fatalf("node emit.js: %v\n%s", err, out)
	}
	mu.Lock()
	defer mu.Unlock()
	slices.Sort(lines)
	return lines
}

// withoutDir replaces the install folder in the stacks of a line, after checking what the hash is
// of: it is the same in the result.
func withoutDir(t *testing.T, text, dir string) string {
	t.Helper()
	const inFile = "/app"
	if info, ok := decodeLine(t, text)["stackInfo"].(map[string]any); ok {
		checkStackInfo(t, info)
		hash := sha256.Sum256([]byte(strings.ReplaceAll(info["stack"].(string), dir, inFile)))
		text = strings.ReplaceAll(text, info["hash"].(string), hex.EncodeToString(hash[:]))
	}
	return strings.ReplaceAll(text, dir, inFile)
}

// install installs the npm module, once per lock file and machine, and returns its folder. Where
// that is impossible it skips the test, or fails it if INTEROP=require.
func install(t *testing.T) string {
	t.Helper()
	lacking := t.Skipf
	if os.Getenv("INTEROP") == "require" {
		lacking = t.Fatalf
	}
	for _, program := range []string{"node", "npm"} {
		if _, err := exec.LookPath(program); err != nil {
			lacking("the npm module cannot run: %v", err)
		}
	}
	cache, err := os.UserCacheDir()
	if err != nil {
		lacking("the npm module cannot run: %v", err)
	}
	files := map[string][]byte{}
	sum := sha256.New()
	for _, name := range []string{"package.json", "package-lock.json", ".npmrc", "emit.js", "filter.json"} {
		b, err := os.ReadFile(filepath.Join(npmDir, name))
		if err != nil {
			t.Fatal(err)
		}
		files[name] = b
		_, _ = sum.Write(b) // a hash does not fail
	}
	home := filepath.Join(cache, "cluster-sumologic")
	dir := filepath.Join(home, hex.EncodeToString(sum.Sum(nil)[:8]))
	if _, err := os.Stat(dir); err == nil {
		return dir
	}

	// A concurrent installation has a folder of its own. The first to be complete gets the name.
	if err := os.MkdirAll(home, 0o755); err != nil {
		t.Fatal(err)
	}
	tmp, err := os.MkdirTemp(home, "installing-")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = os.RemoveAll(tmp) }() // renamed by then, unless something failed
	for name, b := range files {
		if err := os.WriteFile(filepath.Join(tmp, name), b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	if out, err := command(ctx, tmp, "npm", "ci").CombinedOutput(); err != nil {
		lacking("the npm module cannot run: npm ci: %v\n%s", err, bytes.TrimSpace(out))
	}
	if err := os.Rename(tmp, dir); err != nil {
		if _, statErr := os.Stat(dir); statErr != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// command runs a program in a process group of its own, which ends with ctx as a whole.
func command(ctx context.Context, dir, name string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Dir = dir
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	return cmd
}
