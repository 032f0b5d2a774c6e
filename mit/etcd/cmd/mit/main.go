// Command mit serves a registry of clusters (mIT) and its token service (mST) with the servers in
// etcd, so that several processes are replicas of one registry. mit --help lists its flags.
package main

import (
	"github.com/mimiktech/cluster/mit/command"
	"github.com/mimiktech/cluster/mit/etcd/internal/mitcmd"
)

func main() { command.Main(mitcmd.New()) }
