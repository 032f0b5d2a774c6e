//go:build !linux

package proctest

func goCommandParent(int) int { return 0 }
