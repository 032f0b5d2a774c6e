// Package survival contains tests only: a hundred nodes keep working while registries and members
// of etcd die. Each of these is a process of its own, which the tests kill with SIGKILL.
package survival
