//go:build !linux

package main

import "os"

func main() {
	_, _ = os.Stderr.WriteString("bench: needs Linux, where each peer has its own loopback address and /proc shows memory use\n")
	os.Exit(1)
}
