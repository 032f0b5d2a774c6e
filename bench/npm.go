//go:build linux

package main

import (
	"context"
	"crypto/sha256"
	_ "embed"
	"encoding/hex"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"
)

//go:embed npm/fanout.js
var npmScript string

// modules is where the packages of the npm module are. They are installed once per lock file and
// machine, in the user's cache, as for the tests among real npm nodes, whose lock file is used.
func modules(ctx context.Context, from string) (string, error) {
	for _, program := range []string{"node", "npm"} {
		if _, err := exec.LookPath(program); err != nil {
			return "", err
		}
	}
	files := make(map[string][]byte)
	sum := sha256.New()
	for _, name := range []string{"package.json", "package-lock.json", ".npmrc"} {
		content, err := os.ReadFile(filepath.Join(from, name))
		if err != nil {
			return "", err
		}
		files[name] = content
		sum.Write(content)
	}
	cache, err := os.UserCacheDir()
	if err != nil {
		return "", err
	}
	home := filepath.Join(cache, "cluster-interop")
	dir := filepath.Join(home, hex.EncodeToString(sum.Sum(nil)[:8]))
	if _, err := os.Stat(dir); err == nil {
		return filepath.Join(dir, "node_modules"), nil
	}

	// Whoever else installs at this moment does so in a folder of its own; the first to be done
	// gives it its name.
	if err := os.MkdirAll(home, 0o750); err != nil {
		return "", err
	}
	tmp, err := os.MkdirTemp(home, "installing-")
	if err != nil {
		return "", err
	}
	defer os.RemoveAll(tmp) //nolint:errcheck // what stays is in nobody's way
	for name, content := range files {
		if err := os.WriteFile(filepath.Join(tmp, name), content, 0o600); err != nil {
			return "", err
		}
	}
	ctx, cancel := context.WithTimeout(ctx, 5*time.Minute)
	defer cancel()
	npm := exec.CommandContext(ctx, "npm", "ci")
	npm.Dir = tmp
	npm.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	npm.Cancel = func() error { return syscall.Kill(-npm.Process.Pid, syscall.SIGKILL) }
	if out, err := npm.CombinedOutput(); err != nil {
		return "", fmt.Errorf("npm ci: %w\n%s", err, out)
	}
	if err := os.Rename(tmp, dir); err != nil {
		if _, statErr := os.Stat(dir); statErr != nil {
			return "", err
		}
	}
	return filepath.Join(dir, "node_modules"), nil
}

// startNPM starts the npm module as a contestant, quiet as it is told to be in a service.
func startNPM(ctx context.Context, modules string) (*process, error) {
	return start(ctx, npmName, []string{
		"NODE_PATH=" + modules, "LOG_MODE=none", "LOG_LEVEL=error", "CONSOLE_LEVEL=error", "NO_STACK=yes",
	}, "node", "-e", npmScript)
}
