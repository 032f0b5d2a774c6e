//go:build !linux

package proctest

import "errors"

// GiveWay fails: it needs Linux.
func GiveWay(...int) error { return errors.ErrUnsupported }

// RunIdle fails: it needs Linux.
func RunIdle(...int) error { return errors.ErrUnsupported }
