package apitest

import (
	"context"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/pb33f/libopenapi"
	validator "github.com/pb33f/libopenapi-validator"
	"github.com/pb33f/libopenapi-validator/config"
	"github.com/pb33f/libopenapi-validator/schema_validation"
	v3 "github.com/pb33f/libopenapi/datamodel/high/v3"

	"github.com/mimiktech/cluster"
	"github.com/mimiktech/cluster/api"
	"github.com/mimiktech/cluster/mit"
)

// A document is an OpenAPI document with its validator.
type document struct {
	validator.Validator
	model *v3.Document
}

// load returns the validator of a document. Properties and headers that the document does not
// declare are errors, too.
func load(t *testing.T, text string) document {
	t.Helper()
	doc, err := libopenapi.NewDocument([]byte(text))
	if err != nil {
		t.Fatal(err)
	}
	model, err := doc.BuildV3Model()
	if err != nil {
		t.Fatal(err)
	}
	anyType := config.WithStrictIgnorePaths("$.body.**.location.**", "$.body.location.**", "$.body.info.**")
	v, errs := validator.NewValidator(doc, config.WithFormatAssertions(), config.WithStrictMode(), anyType,
		config.WithURLEncodedBodyValidation(), config.WithRejectUndeclaredRequestBody())
	if errs != nil {
		t.Fatal(errs)
	}
	return document{v, &model.Model}
}

func documents() map[string]string {
	return map[string]string{"node.yaml": api.Node("/"), "mit.yaml": api.MIT()}
}

func TestDocumentsAreValid(t *testing.T) {
	for name, text := range documents() {
		if ok, errs := load(t, text).ValidateDocument(); !ok {
			t.Errorf("%s: %v", name, errs)
		}
	}
}

// TestExamplesMatchTheirSchemas checks the examples in the documents, and that each one is used.
func TestExamplesMatchTheirSchemas(t *testing.T) {
	for name, text := range documents() {
		d := load(t, text)
		schemas := schema_validation.NewSchemaValidator(config.WithFormatAssertions())
		used := 0
		check := func(where string, content *v3.MediaType) {
			for pair := content.Examples.First(); pair != nil; pair = pair.Next() {
				used++
				var value any
				if err := pair.Value().Value.Decode(&value); err != nil {
					t.Errorf("%s: %s, %s: %v", name, where, pair.Key(), err)
					continue
				}
				if ok, errs := schemas.ValidateSchemaObject(content.Schema.Schema(), value); !ok {
					t.Errorf("%s: %s, %s: %v", name, where, pair.Key(), errs)
				}
			}
		}
		for path, operations := range d.operations() {
			for method, op := range operations {
				where := method + " " + path
				if op.RequestBody != nil {
					for media := op.RequestBody.Content.First(); media != nil; media = media.Next() {
						check(where, media.Value())
					}
				}
				for response := op.Responses.Codes.First(); response != nil; response = response.Next() {
					if response.Value().Content == nil {
						continue
					}
					for media := response.Value().Content.First(); media != nil; media = media.Next() {
						check(where+" "+response.Key(), media.Value())
					}
				}
			}
		}
		if all := d.model.Components.Examples.Len(); used < all {
			t.Errorf("%s has %d examples, %d are used", name, all, used)
		}
	}
}

// operations returns the operations of each path, by method.
func (d document) operations() map[string]map[string]*v3.Operation {
	all := map[string]map[string]*v3.Operation{}
	for path := d.model.Paths.PathItems.First(); path != nil; path = path.Next() {
		all[path.Key()] = map[string]*v3.Operation{}
		for op := path.Value().GetOperations().First(); op != nil; op = op.Next() {
			all[path.Key()][strings.ToUpper(op.Key())] = op.Value()
		}
	}
	return all
}

// routes returns the operations as method, path and operation id.
func (d document) routes() []string {
	var all []string
	for path, operations := range d.operations() {
		for method, op := range operations {
			all = append(all, method+" "+path+" "+op.OperationId)
		}
	}
	slices.Sort(all)
	return all
}

// TestRoutesOfANode compares node.yaml with the routes of a node.
func TestRoutesOfANode(t *testing.T) {
	const base = "/a/base"
	c, err := cluster.New(cluster.Config{
		Type: "mds", ID: "node-1", Port: 8080, LocalIPv4: "127.0.0.1", BasePath: base,
		RegistryURL: "http://mit.test", RegistryAudience: "mit", Issuer: "http://mst.test",
		ClientID: "id", ClientSecret: "secret", ClientAccessKey: "key", ClientAudience: "mds",
	}, cluster.WithoutEnv())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	ids := map[string]string{"POST": "createItResource", "DELETE": "deleteServer"}
	var routes []string
	for _, r := range c.Routes() {
		routes = append(routes, r.Method+" "+strings.TrimPrefix(r.Pattern, base)+" "+ids[r.Method])
	}
	slices.Sort(routes)

	served := get(t, c.OpenAPIHandler(), "/openapi.yaml")
	d := load(t, served)
	if diff := cmp.Diff(d.routes(), routes); diff != "" {
		t.Errorf("-document +routes:\n%s", diff)
	}
	if url := d.model.Servers[0].URL; url != base {
		t.Errorf("the document is for %q, the node serves %q", url, base)
	}
}

// TestRoutesOfMIT sends requests with each method to each path of mit.yaml. A path that is in no
// document would be found by TestExchanges: each path is in a test.
func TestRoutesOfMIT(t *testing.T) {
	handler := newMIT(t)
	served := get(t, handler, "/mIT/v1/openapi.yaml")
	if served != api.MIT() {
		t.Error("the registry serves another document")
	}
	methods := []string{"GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE"}
	for path, operations := range load(t, served).operations() {
		if len(operations) == 0 {
			t.Errorf("%s has no operation", path)
		}
		target := strings.NewReplacer("{id}", "an-id", "{server}", "a").Replace(path)
		for _, method := range methods {
			w := httptest.NewRecorder()
			handler.ServeHTTP(w, httptest.NewRequestWithContext(context.Background(), method, target, nil))
			exists := w.Code != http.StatusMethodNotAllowed && w.Code != http.StatusNotFound
			if path == "/mST/v1/jwks.json" && method == "GET" {
				exists = w.Code == http.StatusNotFound // without a key
			}
			if _, documented := operations[method]; documented != exists {
				t.Errorf("%s %s: %d, documented: %t", method, path, w.Code, documented)
			}
			if allowed := w.Header().Get("Allow"); w.Code == http.StatusMethodNotAllowed && !slices.Contains(slices.Collect(maps.Keys(operations)), strings.TrimSuffix(allowed, ", HEAD")) {
				t.Errorf("%s %s allows %q", method, path, allowed)
			}
		}
	}
}

// newMIT returns a registry and a token service at the paths of the program mit.
func newMIT(t *testing.T) http.Handler {
	t.Helper()
	const issuer = "http://127.0.0.1:4000/mST/v1/oauth/token"
	tokens, err := mit.NewTokenService(mit.TokenConfig{Issuer: issuer, Key: "key"})
	if err != nil {
		t.Fatal(err)
	}
	registry, err := mit.NewRegistry(mit.NewMemory(), mit.RegistryConfig{
		Issuer: issuer, Audience: "mIT", Keys: []string{"key"}, BasePath: "/mIT/v1",
	})
	if err != nil {
		t.Fatal(err)
	}
	mux := http.NewServeMux()
	mux.Handle("/mST/v1/oauth/token", tokens)
	mux.HandleFunc("/mST/v1/jwks.json", tokens.ServeJWKS)
	mux.Handle("/", registry)
	return mux
}

func get(t *testing.T, h http.Handler, target string) string {
	t.Helper()
	w := httptest.NewRecorder()
	h.ServeHTTP(w, httptest.NewRequestWithContext(context.Background(), http.MethodGet, target, nil))
	body, err := io.ReadAll(w.Result().Body)
	if err != nil || w.Code != http.StatusOK || w.Header().Get("Content-Type") != "application/yaml" {
		t.Fatalf("GET %s: %d %v %v", target, w.Code, w.Header(), err)
	}
	return string(body)
}
