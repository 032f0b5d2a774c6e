// Package intlist provides a command-line flag for a list of numbers.
package intlist

import (
	"fmt"
	"strconv"
	"strings"
)

// A List is a [flag.Value]: numbers separated by commas, each at least Min.
type List struct {
	Min    int
	Values []int
}

// String returns the numbers as Set accepts them.
func (l *List) String() string {
	words := make([]string, len(l.Values))
	for i, n := range l.Values {
		words[i] = strconv.Itoa(n)
	}
	return strings.Join(words, ",")
}

// Set replaces the numbers.
func (l *List) Set(text string) error {
	var values []int
	for word := range strings.SplitSeq(text, ",") {
		n, err := strconv.Atoi(strings.TrimSpace(word))
		if err != nil || n < l.Min {
			return fmt.Errorf("%q is not a number of at least %d", word, l.Min)
		}
		values = append(values, n)
	}
	l.Values = values
	return nil
}
