//go:build unix

package npmtest_test

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"testing"

	"github.com/mimiktech/cluster/internal/npmtest"
)

// fakeNPM puts programs called node and npm on an otherwise empty PATH and returns a folder to
// install from. The npm program records its runs in the file runs of that folder.
func fakeNPM(t *testing.T, script string) (dir string) {
	t.Helper()
	dir = t.TempDir()
	t.Setenv("PATH", filepath.Join(dir, "bin"))
	t.Setenv("XDG_CACHE_HOME", filepath.Join(dir, "cache"))
	t.Setenv("HOME", dir)
	write(t, filepath.Join(dir, "bin", "node"), "#!/bin/sh\n")
	write(t, filepath.Join(dir, "bin", "npm"), "#!/bin/sh\necho $* >>'"+dir+"/runs'\n"+script)
	for _, name := range []string{"package.json", "package-lock.json", ".npmrc"} {
		write(t, filepath.Join(dir, name), name)
	}
	return dir
}

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o755); err != nil {
		t.Fatal(err)
	}
}

func TestInstallRunsOncePerLockFile(t *testing.T) {
	dir := fakeNPM(t, "/bin/mkdir node_modules\n")
	var installed []string
	for _, lock := range []string{"one", "one", "two"} {
		write(t, filepath.Join(dir, "package-lock.json"), lock)
		modules, err := npmtest.Install(t.Context(), dir)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := os.Stat(modules); err != nil {
			t.Error(err)
		}
		installed = append(installed, modules)
	}
	if installed[0] != installed[1] || installed[1] == installed[2] {
		t.Errorf("two lock files, the first one twice, were installed in %q", installed)
	}
	runs, err := os.ReadFile(filepath.Join(dir, "runs"))
	if err != nil {
		t.Fatal(err)
	}
	if string(runs) != "ci\nci\n" {
		t.Errorf("npm was run with %q, want ci twice", runs)
	}
}

func TestInstallErrors(t *testing.T) {
	t.Run("npm fails", func(t *testing.T) {
		dir := fakeNPM(t, "exit 1\n")
		if _, err := npmtest.Install(t.Context(), dir); !errors.Is(err, npmtest.ErrUnavailable) {
			t.Errorf("got %v, want ErrUnavailable", err)
		}
		cache, err := os.UserCacheDir()
		if err != nil {
			t.Fatal(err)
		}
		left, err := filepath.Glob(filepath.Join(cache, "cluster-interop", "*"))
		if err != nil || len(left) != 0 {
			t.Errorf("the failed installation left %q, %v", left, err)
		}
	})
	t.Run("no npm", func(t *testing.T) {
		dir := fakeNPM(t, "")
		if err := os.Remove(filepath.Join(dir, "bin", "npm")); err != nil {
			t.Fatal(err)
		}
		if _, err := npmtest.Install(t.Context(), dir); !errors.Is(err, npmtest.ErrUnavailable) {
			t.Errorf("got %v, want ErrUnavailable", err)
		}
	})
	t.Run("no lock file", func(t *testing.T) {
		dir := fakeNPM(t, "")
		if err := os.Remove(filepath.Join(dir, "package-lock.json")); err != nil {
			t.Fatal(err)
		}
		_, err := npmtest.Install(t.Context(), dir)
		if errors.Is(err, npmtest.ErrUnavailable) || !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("got %v, want fs.ErrNotExist only: the repository lacks the file, not the machine", err)
		}
	})
}
