// Command mit serves a registry of clusters (mIT) and its token service (mST) from memory,
// and prints the environment that a node needs to join. mit --help lists its flags.
package main

import "github.com/mimiktech/cluster/mit/command"

func main() { command.Main(command.Command{Name: "mit"}) }
