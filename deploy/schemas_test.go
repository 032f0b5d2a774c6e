package deploy

import (
	"bytes"
	"flag"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/santhosh-tekuri/jsonschema/v6"
)

const schemasFile = "testdata/schemas.json"

//nolint:gochecknoglobals // a flag of the tests
var update = flag.Bool("update", false, "write "+schemasFile)

// newSchemas returns the compiler of the schemas of the Kubernetes API.
func newSchemas(t *testing.T) *jsonschema.Compiler {
	t.Helper()
	document, err := jsonschema.UnmarshalJSON(bytes.NewReader([]byte(readFile(t, schemasFile))))
	if err != nil {
		t.Fatal(err)
	}
	c := jsonschema.NewCompiler()
	if err := c.AddResource(schemasFile, document); err != nil {
		t.Fatal(err)
	}
	return c
}

// TestSchemas checks that the schemas are those of the module k8s.io/api. They are generated from
// its Go types, as the schemas that an API server publishes. The documents in the repository of
// Kubernetes, of which client-go embeds some, have no enums.
func TestSchemas(t *testing.T) {
	if !*update && os.Getenv("INTEROP") != "require" {
		t.Skip("generates and compiles code for ten seconds: set INTEROP=require, or -update to write " + schemasFile)
	}
	_ = readFile(t, "go.mod") // its versions count: a cached result depends on it
	dir := t.TempDir()
	run(t, "go", "tool", "openapi-gen", "--output-dir", dir, "--output-pkg", "main", "--output-file", "openapi.go",
		"--go-header-file", os.DevNull, "--report-filename", filepath.Join(dir, "violations"),
		"k8s.io/api/apps/v1", "k8s.io/api/core/v1", "k8s.io/api/networking/v1", "k8s.io/api/policy/v1",
		"k8s.io/apimachinery/pkg/api/resource", "k8s.io/apimachinery/pkg/apis/meta/v1",
		"k8s.io/apimachinery/pkg/runtime", "k8s.io/apimachinery/pkg/util/intstr")
	program := filepath.Join(dir, "print.go")
	if err := os.WriteFile(program, []byte(readFile(t, "testdata/schemas/print.go")), 0o600); err != nil {
		t.Fatal(err)
	}
	args := []string{"go", "run", filepath.Join(dir, "openapi.go"), program}
	for _, newObject := range kinds() {
		args = append(args, newObject().OpenAPIModelName())
	}
	slices.Sort(args[4:])
	generated := run(t, args...)
	if *update {
		if err := os.WriteFile(schemasFile, generated, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if diff := cmp.Diff(readFile(t, schemasFile), string(generated)); diff != "" {
		t.Errorf("%s (-committed +generated, go test -run TestSchemas -update writes it):\n%s", schemasFile, diff)
	}
}

// run returns the standard output of a command.
func run(t *testing.T, command ...string) []byte {
	t.Helper()
	var stderr bytes.Buffer
	cmd := exec.CommandContext(t.Context(), command[0], command[1:]...)
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%v: %v\n%s", command, err, &stderr)
	}
	return out
}
