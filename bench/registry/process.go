package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/mimiktech/cluster/internal/proctest"
)

const (
	signingKey    = "a key of the load generator, which only it knows"
	clientSecret  = "a secret of the load generator"
	typeGood      = "mds"
	typeHostile   = "evil"
	registryPath  = "/mIT/v1"
	resourcesPath = registryPath + "/itResources"
	healthPath    = registryPath + "/health"
	issuerPath    = "/mST/v1/oauth/token"

	stopTimeout = 15 * time.Second // that of mit is shorter
)

// A process is a running registry.
type process struct {
	cmd     *exec.Cmd
	dir     string
	address string
	tokens  map[string]string // by type
	watched chan usageLog     // receives the usage when watch ends
}

func startProcess(ctx context.Context, s settings) (*process, error) {
	dir, err := os.MkdirTemp("", "registry")
	if err != nil {
		return nil, err
	}
	p := &process{dir: dir, tokens: map[string]string{}}
	var clients []map[string]string
	for _, typ := range []string{typeGood, typeHostile} {
		clients = append(clients, map[string]string{"id": typ, "secret": clientSecret, "type": typ})
	}
	b, err := json.Marshal(clients)
	if err != nil {
		return nil, err
	}
	file := filepath.Join(dir, "clients.json")
	if err := os.WriteFile(file, b, 0o600); err != nil {
		return nil, err
	}
	args := []string{"--listen", "127.0.0.1:0", "--log", "error", "--clients", file, "--audience", "mIT", "--lease", s.lease.String()}
	p.cmd = exec.CommandContext(ctx, s.mit, args...)
	if s.cgroup != "" {
		enter := `echo $$ > "$0"/cgroup.procs && exec "$@"`
		p.cmd = exec.CommandContext(ctx, "sh", append([]string{"-c", enter, s.cgroup, s.mit}, args...)...)
	}
	proctest.Isolate(p.cmd)
	p.cmd.Env = append(os.Environ(), "MIT_SIGNING_KEY="+signingKey)
	p.cmd.Stderr = os.Stderr
	out, err := p.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := p.cmd.Start(); err != nil {
		return nil, err
	}
	line, err := bufio.NewReader(out).ReadString('\n')
	_, base, ok := strings.Cut(strings.TrimSpace(line), "http://")
	if err != nil || !ok {
		p.stop()
		return nil, fmt.Errorf("the registry printed %q: %w", line, err)
	}
	p.address = base
	for _, typ := range []string{typeGood, typeHostile} {
		if p.tokens[typ], err = p.fetchToken(ctx, typ); err != nil {
			p.stop()
			return nil, err
		}
	}
	return p, nil
}

func (p *process) fetchToken(ctx context.Context, client string) (string, error) {
	b, err := json.Marshal(map[string]string{
		"grant_type": "client_credentials", "client_id": client, "client_secret": clientSecret, "audience": "mIT",
	})
	if err != nil {
		return "", err
	}
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://"+p.address+issuerPath, bytes.NewReader(b))
	if err != nil {
		return "", err
	}
	res, err := http.DefaultClient.Do(r)
	if err != nil {
		return "", err
	}
	defer res.Body.Close()
	var body struct {
		Data struct {
			AccessToken string `json:"access_token"`
		} `json:"data"`
	}
	if err := json.NewDecoder(res.Body).Decode(&body); err != nil || body.Data.AccessToken == "" {
		return "", errors.Join(fmt.Errorf("no token: status %d", res.StatusCode), err)
	}
	return body.Data.AccessToken, nil
}

// stop ends the process. A second call does nothing.
func (p *process) stop() {
	if p.cmd.ProcessState != nil {
		return
	}
	_ = p.cmd.Process.Signal(syscall.SIGTERM)
	kill := time.AfterFunc(stopTimeout, func() { _ = p.cmd.Cancel() })
	defer kill.Stop()
	_ = p.cmd.Wait() // a failure is of no interest after the measurement
	_ = os.RemoveAll(p.dir)
}
