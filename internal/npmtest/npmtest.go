// Package npmtest installs the npm module that this repository is compared with, for tests and
// benchmarks that run it.
package npmtest

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"github.com/mimiktech/cluster/internal/proctest"
)

// ErrUnavailable is the error of an installation that this machine does not allow: node or npm is
// missing, or npm failed.
var ErrUnavailable = errors.New("npm module not available")

const installTimeout = 5 * time.Minute

// Install runs npm ci for the package.json and the lock file in dir and returns the resulting
// folder node_modules. It installs once per lock file into the user's cache, and later calls return
// that folder. It is safe for concurrent use, also by several processes.
func Install(ctx context.Context, dir string) (string, error) {
	for _, program := range []string{"node", "npm"} {
		if _, err := exec.LookPath(program); err != nil {
			return "", fmt.Errorf("%w: %w", ErrUnavailable, err)
		}
	}
	files, sum, err := readPackage(dir)
	if err != nil {
		return "", err
	}
	cache, err := os.UserCacheDir()
	if err != nil {
		return "", fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
	home := filepath.Join(cache, "cluster-interop")
	installed := filepath.Join(home, sum)
	if _, err := os.Stat(installed); err != nil {
		if err := install(ctx, home, installed, files); err != nil {
			return "", err
		}
	}
	return filepath.Join(installed, "node_modules"), nil
}

// readPackage returns the files that determine an installation, by name, and their hash.
func readPackage(dir string) (files map[string][]byte, sum string, err error) {
	files = make(map[string][]byte)
	hash := sha256.New()
	for _, name := range []string{"package.json", "package-lock.json", ".npmrc"} {
		content, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			return nil, "", err
		}
		files[name] = content
		hash.Write(content)
	}
	return files, hex.EncodeToString(hash.Sum(nil)[:8]), nil
}

// install installs into a temporary folder of home and renames it to target. If several processes
// install at the same time, the first to finish wins.
func install(ctx context.Context, home, target string, files map[string][]byte) error {
	if err := os.MkdirAll(home, 0o750); err != nil {
		return err
	}
	tmp, err := os.MkdirTemp(home, "installing-")
	if err != nil {
		return err
	}
	defer func() { _ = os.RemoveAll(tmp) }() // absent after the rename
	for name, content := range files {
		if err := os.WriteFile(filepath.Join(tmp, name), content, 0o600); err != nil {
			return err
		}
	}
	ctx, cancel := context.WithTimeout(ctx, installTimeout)
	defer cancel()
	npm := exec.CommandContext(ctx, "npm", "ci")
	npm.Dir = tmp
	proctest.Isolate(npm)
	if out, err := npm.CombinedOutput(); err != nil {
		return fmt.Errorf("%w: npm ci: %w\n%s", ErrUnavailable, err, out)
	}
	if err := os.Rename(tmp, target); err != nil {
		if _, statErr := os.Stat(target); statErr != nil {
			return err
		}
	}
	return nil
}
