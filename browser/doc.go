// Package browser tests the status pages of nodes and of the registry in a real Chromium: layouts,
// actions, and what assistive technology needs. It has tests only, and is a module of its own for
// their dependencies. With `go test -artifacts -outputdir DIR` the screenshots are in DIR.
package browser
