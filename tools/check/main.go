// Check reports where the files of this repository break a rule that no other linter knows: the
// words and the width of comments and documents, the files of the root folder, functions with two
// boolean parameters, and documents that name a test which does not exist.
//
// It takes the root of the repository as its only argument, prints one line for each problem, and
// exits with 1 if there is one.
package main

import (
	"fmt"
	"os"
	"strings"
)

func main() {
	root := "."
	if len(os.Args) > 1 {
		root = os.Args[1]
	}
	problems, err := check(os.DirFS(root))
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(2)
	}
	if len(problems) > 0 {
		fmt.Println(strings.Join(problems, "\n"))
		os.Exit(1)
	}
}
