// Package survival has no code but tests: a hundred nodes live through the deaths of registries and of
// members of etcd. These are processes of their own, which are killed with SIGKILL.
package survival
