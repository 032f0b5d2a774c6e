// Program print prints the definitions of the Kubernetes API that the arguments name, and all that
// they refer to, as JSON schemas. It is compiled with the output of openapi-gen.
package main

import (
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"

	"k8s.io/kube-openapi/pkg/schemamutation"
	"k8s.io/kube-openapi/pkg/validation/spec"
)

func main() {
	all := GetOpenAPIDefinitions(func(name string) spec.Ref { return spec.MustCreateRef("#/definitions/" + name) })
	found := map[string]*spec.Schema{}
	// What does not validate is left out.
	walker := schemamutation.Walker{RefCallback: schemamutation.RefCallbackNoop, SchemaCallback: func(s *spec.Schema) *spec.Schema {
		plain := *s
		plain.Description, plain.Default, plain.Extensions = "", nil, nil
		return &plain
	}}
	for names := os.Args[1:]; len(names) > 0; names = names[1:] {
		definition, ok := all[names[0]]
		if !ok {
			panic("no definition of " + names[0])
		}
		if found[names[0]] == nil {
			found[names[0]] = walker.WalkSchema(&definition.Schema)
			names = append(names, definition.Dependencies...)
		}
	}
	var lines []string
	for _, name := range slices.Sorted(maps.Keys(found)) {
		schema, err := json.Marshal(found[name])
		if err != nil {
			panic(err)
		}
		lines = append(lines, fmt.Sprintf("%q: %s", name, schema))
	}
	fmt.Printf("{\"definitions\": {\n%s\n}}\n", strings.Join(lines, ",\n"))
}
