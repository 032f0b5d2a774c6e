// Command mit is the module's cmd/mit with its servers in etcd, so that several of it are one registry.
// mit --help lists its flags.
package main

import (
	"github.com/mimiktech/cluster/mit/command"
	"github.com/mimiktech/cluster/mit/etcd/internal/app"
)

func main() { command.Main(app.New()) }
