// Package deploy has files for deployments, and tests of them.
package deploy
