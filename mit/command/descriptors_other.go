//go:build !unix

package command

// descriptorLimit returns the number of files that the process may open; 0 if unknown.
func descriptorLimit() int { return 0 }
