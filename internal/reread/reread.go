// Package reread provides values made from files. A value is made again when one of its files has
// changed, and kept while the files cannot be used.
package reread

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"slices"
	"sync"
	"time"
)

const (
	maxSize = 1 << 20 // of a file, in bytes
	// A file that was modified within this time before it was read may change again without another
	// modification time or size, because the clock of a file system may be coarse.
	settleTime = 2 * time.Second
	maxTries   = 3 // of reading a set of files while it changes
)

// A Value is made from the contents of one or several files. It is safe for concurrent use.
type Value[T any] struct {
	paths []string
	parse func(contents [][]byte) (T, error)

	mu     sync.Mutex // guards the fields below; held while the files are read
	stamps []stamp    // of the files that value was made from
	value  T
	ok     bool  // value has been set
	err    error // why the current files cannot be used; nil if value is made from them
}

// New returns a Value that is made by parse from the contents of paths. It does not read them.
func New[T any](parse func(contents [][]byte) (T, error), paths ...string) *Value[T] {
	return &Value[T]{paths: paths, parse: parse}
}

// Get returns the value made from the current files. It looks at the files each time, and reads
// them only if they have changed. If they cannot be read or used, it returns the last good value
// and the reason; ok is false if there is no such value.
//
// Get follows symbolic links. It notices when a link, or a directory on the way, is replaced.
func (v *Value[T]) Get() (value T, ok bool, err error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if current, err := statAll(v.paths); err != nil || v.err != nil || !v.unchangedLocked(current) {
		v.readLocked()
	}
	return v.value, v.ok, v.err
}

func (v *Value[T]) readLocked() {
	stamps, contents, err := readAll(v.paths)
	if err == nil {
		var value T
		if value, err = v.parse(contents); err == nil {
			v.value, v.ok, v.stamps = value, true, stamps
		}
	}
	v.err = err
}

func (v *Value[T]) unchangedLocked(current []stamp) bool {
	return v.ok && slices.EqualFunc(v.stamps, current, func(a, b stamp) bool { return a.settled && a.equal(b) })
}

// A stamp identifies the contents of a file without reading them.
type stamp struct {
	info    fs.FileInfo
	settled bool // a later change changes the stamp
}

func (s stamp) equal(o stamp) bool {
	return os.SameFile(s.info, o.info) && s.info.ModTime().Equal(o.info.ModTime()) && s.info.Size() == o.info.Size()
}

func statAll(paths []string) ([]stamp, error) {
	stamps := make([]stamp, len(paths))
	for i, path := range paths {
		info, err := os.Stat(path)
		if err != nil {
			return nil, err
		}
		if !info.Mode().IsRegular() {
			return nil, fmt.Errorf("%s is not a regular file", path)
		}
		stamps[i] = stamp{info, time.Since(info.ModTime()) > settleTime}
	}
	return stamps, nil
}

// readAll reads files that belong together. It begins again if one of them is replaced meanwhile.
func readAll(paths []string) (stamps []stamp, contents [][]byte, err error) {
	for range maxTries {
		if stamps, err = statAll(paths); err != nil {
			return nil, nil, err
		}
		contents = contents[:0]
		for _, path := range paths {
			b, err := readFile(path)
			if err != nil {
				return nil, nil, err
			}
			contents = append(contents, b)
		}
		after, err := statAll(paths)
		if err != nil {
			return nil, nil, err
		}
		if slices.EqualFunc(stamps, after, stamp.equal) {
			return stamps, contents, nil
		}
	}
	return nil, nil, errors.New("the files change while they are read")
}

func readFile(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxSize+1))
	if err != nil {
		return nil, err
	}
	if len(b) > maxSize {
		return nil, fmt.Errorf("%s has more than %d bytes", path, maxSize)
	}
	return b, nil
}
