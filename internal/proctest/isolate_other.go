//go:build !unix

package proctest

import "os/exec"

// Isolate does nothing on this system: the process must end when its standard input does.
func Isolate(*exec.Cmd) {}
