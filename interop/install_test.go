//go:build unix

package interop

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"
)

// install installs the npm module, once per lock file and machine, and returns where its packages
// are. Where that is impossible it skips the test, or fails it if INTEROP=require.
func install(t *testing.T) string {
	t.Helper()
	lacking := t.Skipf
	if os.Getenv("INTEROP") == "require" {
		lacking = t.Fatalf
	}
	for _, program := range []string{"node", "npm"} {
		if _, err := exec.LookPath(program); err != nil {
			lacking("no npm nodes here: %v", err)
		}
	}
	cache, err := os.UserCacheDir()
	if err != nil {
		lacking("no npm nodes here: %v", err)
	}
	files := []string{"package.json", "package-lock.json", ".npmrc"}
	sum := sha256.New()
	for _, name := range files {
		sum.Write(read(t, filepath.Join("npm", name)))
	}
	home := filepath.Join(cache, "cluster-interop")
	dir := filepath.Join(home, hex.EncodeToString(sum.Sum(nil)[:8]))
	if _, err := os.Stat(dir); err == nil {
		return filepath.Join(dir, "node_modules")
	}

	// Whoever else installs at this moment does so in a folder of its own. The first to be done
	// gives it its name; what has that name is whole.
	if err := os.MkdirAll(home, 0o755); err != nil {
		t.Fatal(err)
	}
	tmp, err := os.MkdirTemp(home, "installing-")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = os.RemoveAll(tmp) }() // it has another name by then, if all goes well
	for _, name := range files {
		if err := os.WriteFile(filepath.Join(tmp, name), read(t, filepath.Join("npm", name)), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	npm := exec.CommandContext(ctx, "npm", "ci")
	npm.Dir = tmp
	npm.SysProcAttr = ownGroup()
	npm.Cancel = func() error { return syscall.Kill(-npm.Process.Pid, syscall.SIGKILL) }
	if out, err := npm.CombinedOutput(); err != nil {
		lacking("no npm nodes here: npm ci: %v\n%s", err, out)
	}
	if err := os.Rename(tmp, dir); err != nil {
		if _, statErr := os.Stat(dir); statErr != nil {
			t.Fatal(err)
		}
	}
	return filepath.Join(dir, "node_modules")
}

func read(t *testing.T, path string) []byte {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return b
}
