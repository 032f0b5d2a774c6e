package reread

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"
)

// newValue returns a Value that joins the contents of its files, and counts how often it is made.
func newValue(paths ...string) (v *Value[string], parsed *int) {
	parsed = new(int)
	return New(func(contents [][]byte) (string, error) {
		*parsed++
		var text strings.Builder
		for _, b := range contents {
			text.WriteString(string(b))
		}
		if strings.Contains(text.String(), "bad") {
			return "", errors.New("bad content")
		}
		return text.String(), nil
	}, paths...), parsed
}

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

// age sets the modification time of a file to some time ago, so that it counts as settled.
func age(t *testing.T, path string, d time.Duration) {
	t.Helper()
	at := time.Now().Add(-d)
	if err := os.Chtimes(path, at, at); err != nil {
		t.Fatal(err)
	}
}

func want[T comparable](t *testing.T, v *Value[T], value T, errText string) {
	t.Helper()
	got, ok, err := v.Get()
	if got != value || !ok || (err == nil) != (errText == "") || err != nil && !strings.Contains(err.Error(), errText) {
		t.Errorf("got %v, %t, %v, want %v with the error %q", got, ok, err, value, errText)
	}
}

func TestUnchangedFilesAreNotRead(t *testing.T) {
	a, b := filepath.Join(t.TempDir(), "a"), filepath.Join(t.TempDir(), "b")
	write(t, a, "1")
	write(t, b, "2")
	age(t, a, time.Hour)
	age(t, b, time.Hour)
	v, parsed := newValue(a, b)
	for range 3 {
		want(t, v, "12", "")
	}
	if *parsed != 1 {
		t.Errorf("made %d times", *parsed)
	}
	write(t, b, "3")
	age(t, b, time.Minute)
	want(t, v, "13", "")
}

// A file may change twice within one tick of the clock of its file system. It then looks the same,
// and is read again after a second.
func TestRecentChangeIsNotTrusted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		path := filepath.Join(t.TempDir(), "a")
		write(t, path, "1")
		age(t, path, 0)
		at := time.Now()
		v, _ := newValue(path)
		want(t, v, "1", "")
		for _, text := range []string{"2", "3"} { // within the time in which a file is not settled
			write(t, path, text)
			if err := os.Chtimes(path, at, at); err != nil {
				t.Fatal(err)
			}
			time.Sleep(time.Second)
			want(t, v, text, "")
		}
	})
}

// Files that cannot be used, or whose times are in the future, are read once a second, however
// often the value is needed. A change that shows is noticed at once.
func TestFilesAreReadOnceASecond(t *testing.T) {
	for name, test := range map[string]struct {
		text string
		age  time.Duration
	}{
		"bad":             {"bad", time.Hour},
		"recent":          {"1", 0},
		"from the future": {"1", -time.Hour},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				a, b := filepath.Join(t.TempDir(), "a"), filepath.Join(t.TempDir(), "b")
				write(t, a, "")
				age(t, a, time.Hour)
				write(t, b, test.text)
				age(t, b, test.age)
				v, parsed := newValue(a, b)
				for second := range 2 {
					for range 100 {
						if _, _, err := v.Get(); (err != nil) != (test.text == "bad") {
							t.Fatal(err)
						}
					}
					if *parsed != second+1 {
						t.Errorf("made %d times after %d s", *parsed, second)
					}
					time.Sleep(time.Second)
				}
				write(t, b, "good")
				age(t, b, time.Minute)
				for range 100 {
					want(t, v, "good", "")
				}
				if *parsed != 3 {
					t.Errorf("made %d times after a change", *parsed)
				}
			})
		})
	}
}

// Missing files are not read, and noticed at once when they are back, even if they look the same.
func TestMissingFile(t *testing.T) {
	path, away := filepath.Join(t.TempDir(), "a"), filepath.Join(t.TempDir(), "away")
	write(t, path, "1")
	age(t, path, time.Hour)
	v, parsed := newValue(path)
	for i := range 3 {
		want(t, v, "1", "")
		if *parsed != i+1 {
			t.Errorf("made %d times after %d returns", *parsed, i)
		}
		if err := os.Rename(path, away); err != nil {
			t.Fatal(err)
		}
		want(t, v, "1", "no such file")
		if err := os.Rename(away, path); err != nil {
			t.Fatal(err)
		}
	}
}

func TestLastGoodValueIsKept(t *testing.T) {
	path := filepath.Join(t.TempDir(), "a")
	v, _ := newValue(path)
	if _, ok, err := v.Get(); ok || !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("without a file: %t, %v", ok, err)
	}
	write(t, path, "bad")
	if _, ok, err := v.Get(); ok || err == nil {
		t.Errorf("with a bad file: %t, %v", ok, err)
	}
	write(t, path, "1")
	want(t, v, "1", "")
	for name, spoil := range map[string]func(){
		"no such file":        func() {},
		"bad content":         func() { write(t, path, "bad") },
		"not a regular file":  func() { mkdir(t, path) },
		"more than 1048576 b": func() { write(t, path, strings.Repeat("x", 1<<20+1)) },
	} {
		remove(t, path)
		spoil()
		want(t, v, "1", name)
		remove(t, path)
		write(t, path, "1")
		want(t, v, "1", "")
	}
}

// Reading a named pipe would block until another process writes to it.
func TestNamedPipeIsNotRead(t *testing.T) {
	path := filepath.Join(t.TempDir(), "pipe")
	if err := syscall.Mkfifo(path, 0o600); err != nil {
		t.Skip(err)
	}
	v, _ := newValue(path)
	if _, ok, err := v.Get(); ok || err == nil || !strings.Contains(err.Error(), "not a regular file") {
		t.Errorf("%t, %v", ok, err)
	}
}

// Kubernetes replaces the files of a secret by replacing a symbolic link to their directory. The
// files may have the same size and the same modification time.
func TestSymlinkSwap(t *testing.T) {
	dir := t.TempDir()
	link := filepath.Join(dir, "..data")
	at := time.Now().Add(-time.Hour)
	publish := func(version string) {
		target := filepath.Join(dir, version)
		mkdir(t, target)
		for _, name := range []string{"crt", "key"} {
			write(t, filepath.Join(target, name), version)
			if err := os.Chtimes(filepath.Join(target, name), at, at); err != nil {
				t.Fatal(err)
			}
		}
		next := filepath.Join(dir, "..next")
		if err := os.Symlink(version, next); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(next, link); err != nil {
			t.Fatal(err)
		}
	}
	publish("v0")
	for _, name := range []string{"crt", "key"} {
		if err := os.Symlink(filepath.Join("..data", name), filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	v, parsed := newValue(filepath.Join(dir, "crt"), filepath.Join(dir, "key"))
	for i := range 5 {
		if i > 0 {
			publish(fmt.Sprintf("v%d", i))
		}
		for range 2 {
			want(t, v, fmt.Sprintf("v%dv%d", i, i), "")
		}
	}
	if *parsed != 5 {
		t.Errorf("made %d times from 5 versions", *parsed)
	}
}

// While files are replaced, no value is made from a file of one version and one of another.
func TestNoMixOfVersions(t *testing.T) {
	dir := t.TempDir()
	link := filepath.Join(dir, "..data")
	publish := func(version string) {
		target := filepath.Join(dir, version)
		mkdir(t, target)
		write(t, filepath.Join(target, "crt"), version)
		write(t, filepath.Join(target, "key"), version)
		next := filepath.Join(dir, "..next")
		if err := errors.Join(os.Symlink(version, next), os.Rename(next, link)); err != nil {
			t.Fatal(err)
		}
	}
	publish("v1000")
	v := New(func(contents [][]byte) (string, error) {
		if string(contents[0]) != string(contents[1]) {
			t.Errorf("a mix of %s and %s", contents[0], contents[1])
		}
		return string(contents[0]), nil
	}, filepath.Join(link, "crt"), filepath.Join(link, "key"))
	done := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			select {
			case <-done:
				return
			default:
				_, _, _ = v.Get()
			}
		}
	})
	for i := range 200 {
		publish(fmt.Sprint("v", 1001+i))
	}
	close(done)
	wg.Wait()
	want(t, v, "v1200", "")
}

func mkdir(t *testing.T, path string) {
	t.Helper()
	if err := os.Mkdir(path, 0o700); err != nil {
		t.Fatal(err)
	}
}

func remove(t *testing.T, path string) {
	t.Helper()
	if err := os.RemoveAll(path); err != nil {
		t.Fatal(err)
	}
}
