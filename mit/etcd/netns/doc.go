// Package netns tests nodes, registries and etcd as processes on hosts of their own: network
// namespaces that the tests create, with a router between them that loses packets.
//
// The tests need Linux, root, and the programs ip and nft. Without them they are skipped, or fail
// if INTEROP=require.
package netns
