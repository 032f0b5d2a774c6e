// Package readme tests the first program of README.md.
package readme

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/mimiktech/cluster"
	"github.com/mimiktech/cluster/clustertest"
	"github.com/mimiktech/cluster/internal/freeport"
)

// TestFirstProgram builds the program as a user does, and runs it as a process, so it takes real
// time. A node that cannot register logs the cause again and again, with the remote, and SIGTERM
// ends it.
func TestFirstProgram(t *testing.T) {
	program := build(t)
	for name, c := range map[string]struct {
		change func(*testing.T, *clustertest.Backend)
		want   []string // in each line, with the address of the backend
	}{
		"no registry": {func(t *testing.T, b *clustertest.Backend) {
			t.Helper()
			port, err := freeport.Next(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			base := fmt.Sprintf("http://127.0.0.1:%d", port)
			b.Config.RegistryURL, b.Config.Issuer = base+"/mIT/v1", base+"/mST/v1/oauth/token"
		}, []string{"connection refused"}},
		"no client": {func(_ *testing.T, b *clustertest.Backend) { b.Config.ClientSecret = "another" }, []string{"mST answered 401"}},
		"refused token": {func(_ *testing.T, b *clustertest.Backend) {
			b.Registry.SetKeys("another key, of thirty-two bytes or more")
		}, []string{"mIT answered 403", "the token is not valid here"}},
	} {
		t.Run(name, func(t *testing.T) {
			b := clustertest.NewBackend(t)
			c.change(t, b)
			registry, err := url.Parse(b.Config.RegistryURL)
			if err != nil {
				t.Fatal(err)
			}
			lines, end := start(t, program, b.Config)
			for range 3 {
				line := nextFailure(t, lines)
				for _, part := range append([]string{registry.Host}, c.want...) {
					if !strings.Contains(line, part) {
						t.Errorf("%q is missing in %s", part, line)
					}
				}
			}
			end()
		})
	}
}

// build compiles the first Go program of README.md in a module of its own. It uses the library of
// this folder, and otherwise only modules that the library needs.
func build(t *testing.T) (program string) {
	t.Helper()
	root, err := filepath.Abs("../..")
	if err != nil {
		t.Fatal(err)
	}
	read := func(name string) []byte {
		text, err := os.ReadFile(filepath.Join(root, name))
		if err != nil {
			t.Fatal(err)
		}
		return text
	}
	block := regexp.MustCompile("(?s)\n```go\n(package main\n.*?)```\n").FindSubmatch(read("README.md"))
	if block == nil {
		t.Fatal("README.md has no program")
	}
	mod := bytes.Replace(read("go.mod"), []byte("module github.com/mimiktech/cluster\n"), []byte("module first\n"), 1)
	mod = fmt.Appendf(mod, "\nrequire github.com/mimiktech/cluster v0.0.0\n\nreplace github.com/mimiktech/cluster => %s\n", strconv.Quote(root))
	dir := t.TempDir()
	for name, text := range map[string][]byte{"main.go": block[1], "go.mod": mod, "go.sum": read("go.sum")} {
		if err := os.WriteFile(filepath.Join(dir, name), text, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	cmd := exec.CommandContext(t.Context(), "go", "build", "-mod=mod", "-o", "first", ".")
	cmd.Dir = dir
	cmd.Env = append(cmd.Environ(), "GOWORK=off", "GOPROXY=off")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	return filepath.Join(dir, "first")
}

// start runs the program with a configuration. The returned function ends it with SIGTERM.
func start(t *testing.T, program string, cfg cluster.Config) (stderr *bufio.Scanner, end func()) {
	t.Helper()
	port, err := freeport.Next(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), program)
	cmd.Env = []string{
		"SERVER_TYPE=" + cfg.Type, "SERVER_PORT=" + strconv.Itoa(port), "SERVER_LOCAL_IPV4=127.0.0.1",
		"MIT_URL=" + cfg.RegistryURL, "MIT_AUDIENCE=" + cfg.RegistryAudience,
		"OAUTH_ISSUER=" + cfg.Issuer, "OAUTH_CLIENT_ID=" + cfg.ClientID, "OAUTH_CLIENT_SECRET=" + string(cfg.ClientSecret),
		"OAUTH_CLIENT_ACCESS_KEY=" + string(cfg.ClientAccessKey), "OAUTH_CLIENT_AUDIENCE=" + cfg.ClientAudience,
		"REGISTRATION_RETRY=100", // ms; 3 s by default
	}
	r, w := io.Pipe()
	cmd.Stderr = w
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Close() }) // then Wait does not wait for a reader

	timeout := time.AfterFunc(30*time.Second, func() { _ = cmd.Process.Kill() }) // ends the lines
	ended := make(chan error, 1)
	go func() {
		ended <- cmd.Wait()
		w.Close()
	}()
	return bufio.NewScanner(r), func() {
		defer timeout.Stop()
		if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
			t.Fatal(err)
		}
		_, _ = io.Copy(io.Discard, r) // until the end
		if err := <-ended; err != nil {
			t.Errorf("after SIGTERM: %v", err)
		}
	}
}

// nextFailure returns the next line about a failed registration.
func nextFailure(t *testing.T, lines *bufio.Scanner) string {
	t.Helper()
	last := ""
	for lines.Scan() {
		last = lines.Text()
		if strings.Contains(last, `"msg":"registration failed"`) {
			return last
		}
	}
	t.Fatalf("the program ended, last with %q: %v", last, lines.Err())
	return ""
}
