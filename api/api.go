// Package api contains the OpenAPI documents of what nodes, the registry (mIT) and the token
// service (mST) serve. Both are OpenAPI 3.1, in YAML, and refer to no other file.
package api

import (
	"cmp"
	_ "embed"
	"encoding/json"
	"strings"
)

//go:embed node.yaml
var node string

//go:embed mit.yaml
var mit string

// basePath is the base path in node.yaml.
const basePath = "/mds/v1"

// Node returns the document of the two endpoints that peers call, createItResource and
// deleteServer, for a node with the given base path, such as /mds/v1.
func Node(base string) string {
	quoted, _ := json.Marshal(cmp.Or(base, "/")) // a string
	return strings.Replace(node, `url: "`+basePath+`"`, "url: "+string(quoted), 1)
}

// MIT returns the document of the registry and the token service, at the paths at which the program
// mit serves them.
func MIT() string { return mit }
