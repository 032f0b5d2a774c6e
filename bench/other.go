//go:build !linux

package main

import "os"

func main() {
	_, _ = os.Stderr.WriteString("bench: needs Linux: each peer has a loopback address of its own, and memory is read in /proc\n")
	os.Exit(1)
}
