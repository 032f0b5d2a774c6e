//go:build !linux

package proctest

import "errors"

// GiveWay fails: it needs Linux.
func GiveWay() error { return errors.ErrUnsupported }
