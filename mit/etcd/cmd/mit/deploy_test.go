package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"sigs.k8s.io/yaml"

	"github.com/mimiktech/cluster/mit"
	"github.com/mimiktech/cluster/mit/etcd/internal/etcdtest"
)

const deploy = "../../../../deploy/"

// takesFlags fails the test if the program rejects the flags or their values.
func takesFlags(t *testing.T, args []string) {
	t.Helper()
	if !slices.ContainsFunc(args, func(arg string) bool { return strings.HasPrefix(arg, "--etcd-endpoints=") }) {
		t.Errorf("no --etcd-endpoints among %q", args)
	}
	if out, err := program(t, append(args, "--help")...).CombinedOutput(); err != nil {
		t.Errorf("%q: %s", args, out)
	}
}

func TestSystemd(t *testing.T) {
	unit, err := os.ReadFile(deploy + "systemd/mit.service")
	if err != nil {
		t.Fatal(err)
	}
	settings := parseUnit(t, string(unit))
	for name, want := range map[string]string{
		"Service.Type":            "notify",
		"Service.EnvironmentFile": "/etc/mit/mit.env",
		"Service.DynamicUser":     "yes",
		"Service.Restart":         "always",
		"Install.WantedBy":        "multi-user.target",
	} {
		if got := settings[name]; !slices.Equal(got, []string{want}) {
			t.Errorf("%s = %q, want %q", name, got, want)
		}
	}
	start := settings["Service.ExecStart"]
	if len(start) != 1 {
		t.Fatalf("ExecStart = %q", start)
	}
	words := strings.Fields(start[0])
	if words[0] != "/usr/local/bin/mit" {
		t.Errorf("it starts %s", words[0])
	}
	takesFlags(t, words[1:])

	// Each variable in the command is set, and each variable that is set is used.
	env := environmentFile(t, deploy+"systemd/mit.env")
	for _, m := range regexp.MustCompile(`\$\{(\w+)\}`).FindAllStringSubmatch(start[0], -1) {
		if m[1] != "CREDENTIALS_DIRECTORY" && env[m[1]] == "" {
			t.Errorf("mit.env does not set %s", m[1])
		}
	}
	for name := range env {
		if name != "MIT_SIGNING_KEY" && !strings.Contains(start[0], "${"+name+"}") {
			t.Errorf("nothing uses %s of mit.env", name)
		}
	}
	var loaded []string
	for _, credential := range settings["Service.LoadCredential"] {
		name, _, _ := strings.Cut(credential, ":")
		loaded = append(loaded, name)
	}
	var used []string
	for _, m := range regexp.MustCompile(`\$\{CREDENTIALS_DIRECTORY\}/(\S+)`).FindAllStringSubmatch(start[0], -1) {
		used = append(used, m[1])
	}
	if !slices.Equal(slices.Sorted(slices.Values(loaded)), slices.Sorted(slices.Values(used))) {
		t.Errorf("credentials loaded: %q, used: %q", loaded, used)
	}

	// If systemd is installed, it verifies the unit. It requires that the program exists.
	verify, err := exec.LookPath("systemd-analyze")
	if err != nil {
		t.Logf("not verified by systemd: %v", err)
		return
	}
	file := filepath.Join(t.TempDir(), "mit.service")
	if err := os.WriteFile(file, bytes.Replace(unit, []byte("/usr/local/bin/mit"), []byte(os.Args[0]), 1), 0o600); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.CommandContext(t.Context(), verify, "verify", "--man=no", file).CombinedOutput(); err != nil || len(out) > 0 {
		t.Errorf("systemd-analyze verify: %v\n%s", err, out)
	}
}

// parseUnit returns the settings of a unit by section and key.
func parseUnit(t *testing.T, unit string) map[string][]string {
	t.Helper()
	settings := map[string][]string{}
	section := ""
	for line := range strings.Lines(strings.ReplaceAll(unit, "\\\n", " ")) {
		line = strings.TrimSpace(line)
		if line == "" || line[0] == '#' {
			continue
		}
		if name, ok := strings.CutPrefix(line, "["); ok {
			section = strings.TrimSuffix(name, "]")
			if !slices.Contains([]string{"Unit", "Service", "Install"}, section) {
				t.Errorf("section %s", line)
			}
			continue
		}
		key, value, ok := strings.Cut(line, "=")
		if !ok || section == "" || strings.TrimSpace(key) != key {
			t.Errorf("no setting: %q", line)
		}
		settings[section+"."+key] = append(settings[section+"."+key], value)
	}
	return settings
}

func environmentFile(t *testing.T, file string) map[string]string {
	t.Helper()
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	env := map[string]string{}
	for lines := bufio.NewScanner(bytes.NewReader(b)); lines.Scan(); {
		line := lines.Text()
		if line == "" || line[0] == '#' {
			continue
		}
		name, value, ok := strings.Cut(line, "=")
		if !ok || !regexp.MustCompile(`^[A-Z_]+$`).MatchString(name) || strings.ContainsAny(value, " '\"") {
			t.Errorf("%s: %q", file, line)
		}
		env[name] = value
	}
	return env
}

// manifest has the fields of Kubernetes objects that the test checks.
type manifest struct {
	APIVersion string
	Kind       string
	Metadata   struct{ Name, Namespace string }
	StringData map[string]string
	Spec       struct {
		Replicas       int
		Selector       map[string]any
		MaxUnavailable int
		Ports          []struct {
			Port       int
			TargetPort string
		}
		Template struct {
			Metadata struct{ Labels map[string]string }
			Spec     struct {
				Containers []struct {
					Args []string
					Env  []struct {
						Name      string
						ValueFrom struct{ SecretKeyRef struct{ Name, Key string } }
					}
					Ports []struct {
						Name          string
						ContainerPort int
					}
					ReadinessProbe struct {
						HTTPGet struct{ Path, Port, Scheme string }
					}
					LivenessProbe struct{ TCPSocket struct{ Port string } }
					VolumeMounts  []struct{ Name, MountPath string }
				}
				Volumes []struct {
					Name   string
					Secret struct{ SecretName string }
				}
			}
		}
	}
}

func manifests(t *testing.T, file string) map[string]manifest {
	t.Helper()
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	objects := map[string]manifest{}
	for i, document := range strings.Split(string(b), "\n---\n") {
		var m manifest
		if _, err := yaml.YAMLToJSONStrict([]byte(document)); err != nil { // no key twice
			t.Fatalf("%s, %d: %v", file, i, err)
		}
		if err := yaml.Unmarshal([]byte(document), &m); err != nil {
			t.Fatalf("%s, %d: %v", file, i, err)
		}
		if m.APIVersion == "" || m.Kind == "" || m.Metadata.Name == "" || (m.Kind != "Namespace") != (m.Metadata.Namespace == "mit") {
			t.Errorf("%s, %d: %s %s %+v", file, i, m.APIVersion, m.Kind, m.Metadata)
		}
		objects[m.Kind+" "+m.Metadata.Name] = m
	}
	return objects
}

func TestKubernetes(t *testing.T) {
	objects := manifests(t, deploy+"kubernetes/mit.yaml")
	secrets := manifests(t, deploy+"kubernetes/secrets.yaml")

	deployment := objects["Deployment mit"].Spec
	if deployment.Replicas != 3 || len(deployment.Template.Spec.Containers) != 1 {
		t.Fatalf("%d replicas of %d containers", deployment.Replicas, len(deployment.Template.Spec.Containers))
	}
	container := deployment.Template.Spec.Containers[0]
	takesFlags(t, container.Args)
	arg := func(name string) string {
		for _, arg := range container.Args {
			if value, ok := strings.CutPrefix(arg, "--"+name+"="); ok {
				return value
			}
		}
		t.Errorf("no --%s", name)
		return ""
	}

	// All selectors match the labels of the pods.
	labels := fmt.Sprint(deployment.Template.Metadata.Labels)
	for _, name := range []string{"Deployment mit", "PodDisruptionBudget mit"} {
		if got := fmt.Sprint(objects[name].Spec.Selector["matchLabels"]); got != labels {
			t.Errorf("%s selects %s, the pods have %s", name, got, labels)
		}
	}
	if got := fmt.Sprint(objects["Service mit"].Spec.Selector); got != labels {
		t.Errorf("the service selects %s, the pods have %s", got, labels)
	}
	if got := objects["PodDisruptionBudget mit"].Spec.MaxUnavailable; got != 1 {
		t.Errorf("%d may be unavailable", got)
	}

	// All ports match that of the container.
	if len(container.Ports) != 1 || !strings.HasSuffix(arg("listen"), fmt.Sprintf(":%d", container.Ports[0].ContainerPort)) {
		t.Errorf("it listens on %s, the container has %+v", arg("listen"), container.Ports)
	}
	service := objects["Service mit"].Spec.Ports
	if len(service) != 1 || arg("url") != fmt.Sprintf("https://mit.mit.svc:%d", service[0].Port) {
		t.Errorf("nodes are told %s, the service has %+v", arg("url"), service)
	}
	for _, port := range []string{service[0].TargetPort, container.ReadinessProbe.HTTPGet.Port, container.LivenessProbe.TCPSocket.Port} {
		if port != container.Ports[0].Name {
			t.Errorf("port %q, the container has %+v", port, container.Ports)
		}
	}

	if scheme := container.ReadinessProbe.HTTPGet.Scheme; scheme != "HTTPS" {
		t.Errorf("the health is checked with %s, the container has TLS", scheme)
	}

	// The health endpoint exists.
	c := etcdtest.Run(t, 1)
	r := startReplica(t, "--etcd-endpoints", c.Endpoints[0])
	resp, err := http.Get(r.base + container.ReadinessProbe.HTTPGet.Path) //nolint:noctx // the replica ends with the test
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		t.Errorf("%s answers %s", container.ReadinessProbe.HTTPGet.Path, resp.Status)
	}

	// Every secret and every file exists.
	for _, env := range container.Env {
		ref := env.ValueFrom.SecretKeyRef
		if env.Name != "MIT_SIGNING_KEY" || secrets["Secret "+ref.Name].StringData[ref.Key] == "" {
			t.Errorf("variable %s comes from %+v", env.Name, ref)
		}
	}
	for _, flag := range []string{"clients", "tls-cert", "tls-key", "etcd-cacert", "etcd-cert", "etcd-key"} {
		dir, file := filepath.Split(arg(flag))
		found := false
		for _, mount := range container.VolumeMounts {
			for _, volume := range deployment.Template.Spec.Volumes {
				if mount.MountPath == filepath.Clean(dir) && mount.Name == volume.Name {
					found = secrets["Secret "+volume.Secret.SecretName].StringData[file] != ""
				}
			}
		}
		if !found {
			t.Errorf("--%s=%s is no file of a secret", flag, arg(flag))
		}
	}
	var clients []mit.Client
	if err := json.Unmarshal([]byte(secrets["Secret mit"].StringData["clients.json"]), &clients); err != nil {
		t.Error(err)
	}
	if _, err := mit.NewTokenService(mit.TokenConfig{Issuer: arg("url"), Key: "k", Clients: clients}); err != nil {
		t.Errorf("the clients: %v", err)
	}
}

// Without Docker, the test runs the build command of the image and checks that copied files exist.
func TestDockerfile(t *testing.T) {
	text, err := os.ReadFile(deploy + "Dockerfile")
	if err != nil {
		t.Fatal(err)
	}
	var stages, copied, entry []string
	var build string
	for line := range strings.Lines(strings.ReplaceAll(string(text), "\\\n", " ")) {
		line = strings.TrimSpace(line)
		if line == "" || line[0] == '#' {
			continue
		}
		instruction, rest, _ := strings.Cut(line, " ")
		words := strings.Fields(rest)
		switch instruction {
		case "FROM":
			stages = append(stages, rest)
		case "WORKDIR", "USER":
			if len(words) != 1 {
				t.Errorf("%q", line)
			}
		case "RUN":
			build = rest
		case "COPY":
			if len(words) == 3 {
				copied = append(copied, words[1]) // from the first stage
			} else if rest != ". ." {
				t.Errorf("%q", line)
			}
		case "ENTRYPOINT":
			if err := json.Unmarshal([]byte(rest), &entry); err != nil {
				t.Errorf("%q: %v", line, err)
			}
		default:
			t.Errorf("instruction %q", line)
		}
	}
	version, err := exec.CommandContext(t.Context(), "go", "mod", "edit", "-json", "../../go.mod").Output()
	if err != nil {
		t.Fatal(err)
	}
	var mod struct{ Go string }
	if err := json.Unmarshal(version, &mod); err != nil {
		t.Fatal(err)
	}
	if len(stages) != 2 || !strings.HasPrefix(mod.Go, strings.TrimSuffix(strings.TrimPrefix(stages[0], "golang:"), " AS build")) || stages[1] != "scratch" {
		t.Errorf("stages %q, the module is for Go %s", stages, mod.Go)
	}

	// The command, with another output, in the root of the repository.
	binary := filepath.Join(t.TempDir(), "mit")
	args := strings.Fields(build)
	var env []string
	for len(args) > 0 && strings.Contains(args[0], "=") {
		env, args = append(env, args[0]), args[1:]
	}
	i := slices.Index(args, "-o")
	if i < 0 || args[0] != "go" {
		t.Fatalf("it builds with %q", build)
	}
	built := args[i+1]
	args[i+1] = binary
	cmd := exec.CommandContext(t.Context(), args[0], args[1:]...)
	cmd.Dir, cmd.Env = filepath.Dir(filepath.Clean(deploy)), append(os.Environ(), env...)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%q: %v\n%s", build, err, out)
	}
	if !slices.Contains(copied, built) || !slices.Equal(entry, []string{built}) {
		t.Errorf("it builds %q, copies %q and starts %q", built, copied, entry)
	}
	help, err := exec.CommandContext(t.Context(), binary, "--help").Output()
	if err != nil || !strings.Contains(string(help), "-etcd-endpoints") {
		t.Errorf("what it builds: %v\n%s", err, help)
	}
}
