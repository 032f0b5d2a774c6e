// Package apitest compares the OpenAPI documents of package api with what nodes, registries and
// token services really exchange. It has tests only, and is a module of its own because of the
// validator.
//
// By default, the tests of the exchanges record those of a part of the tests of this repository.
// With the flag -exchanges, they read what other tests have recorded:
//
//	CLUSTER_EXCHANGES="$dir" go test ./...
//	go test -C apitest -exchanges "$dir"
package apitest
