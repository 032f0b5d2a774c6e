//go:build linux

package main

import (
	"context"
	_ "embed"
)

const npmName = "npm module"

//go:embed npm/fanout.js
var npmScript string

// startNPM starts the npm module as a contestant, with its logs off as in a service.
func startNPM(ctx context.Context, modules string) (*process, error) {
	return start(ctx, npmName, []string{
		"NODE_PATH=" + modules, "LOG_MODE=none", "LOG_LEVEL=error", "CONSOLE_LEVEL=error", "NO_STACK=yes",
	}, "node", "-e", npmScript)
}
