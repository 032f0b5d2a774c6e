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
	// readInterval is the time after which files that look the same are read again, if they cannot be
	// used or may have changed.
	readInterval = time.Second
	maxTries     = 3 // of reading a set of files while it changes
)

// A Value is made from the contents of one or several files. It is safe for concurrent use.
type Value[T any] struct {
	paths []string
	parse func(contents [][]byte) (T, error)

	mu     sync.Mutex // guards the fields below; held while the files are read
	stamps []stamp    // of the files that were read last; nil if one is missing
	readAt time.Time
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
// Files that cannot be used, and files that were modified within the last two seconds or in the
// future, are also read once a second. So a second change of a file within one tick of the clock of
// its file system is noticed up to a second late.
//
// Get follows symbolic links. It notices when a link, or a directory on the way, is replaced.
func (v *Value[T]) Get() (value T, ok bool, err error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	current, err := statAll(v.paths)
	switch {
	case err != nil:
		v.stamps, v.err = nil, err
	case v.dueLocked(current):
		v.readLocked(current)
	}
	return v.value, v.ok, v.err
}

// dueLocked reports whether to read the files.
func (v *Value[T]) dueLocked(current []stamp) bool {
	if !slices.EqualFunc(v.stamps, current, stamp.equal) {
		return true
	}
	settled := !slices.ContainsFunc(v.stamps, func(s stamp) bool { return !s.settled })
	return (v.err != nil || !settled) && time.Since(v.readAt) >= readInterval
}

func (v *Value[T]) readLocked(current []stamp) {
	v.stamps, v.readAt = current, time.Now()
	stamps, contents, err := readAll(v.paths)
	if err == nil {
		var value T
		v.stamps = stamps
		if value, err = v.parse(contents); err == nil {
			v.value, v.ok = value, true
		}
	}
	v.err = err
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
