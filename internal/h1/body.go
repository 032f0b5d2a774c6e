package h1

import (
	"fmt"
	"io"
	"runtime"
	"sync"
)

// A BodyReader reads bodies of unknown length. A body takes memory of its length, and twice that
// while it is being read. The zero value is ready to use, and safe for concurrent use.
type BodyReader struct {
	chunks sync.Pool // *chunk
}

// Read reads src to its end. It returns what it has read, also if there is an error, but at most
// limit bytes. If there are more, the error wraps ErrBodyTooLarge.
func (r *BodyReader) Read(src io.Reader, limit int64) ([]byte, error) {
	var full []*chunk
	last, used := r.chunk(), 0
	defer func() {
		for _, c := range append(full, last)[:min(len(full)+1, maxKept)] {
			r.chunks.Put(c)
		}
	}()
	for {
		n, err := src.Read(last[used:])
		used += n
		switch total := int64(len(full))*chunkSize + int64(used); {
		case total > limit:
			return joinChunks(full, last[:used])[:limit], fmt.Errorf("%w: more than %d bytes", ErrBodyTooLarge, limit)
		case err == io.EOF:
			return joinChunks(full, last[:used]), nil
		case err != nil:
			return joinChunks(full, last[:used]), err
		}
		if used == chunkSize {
			full, last, used = append(full, last), r.chunk(), 0
			// Decompression may take long without blocking. Other goroutines get their turn here.
			runtime.Gosched()
		}
	}
}

const (
	chunkSize = 32 << 10
	maxKept   = 8 // chunks of a body that are reused; a long body is rare, and does not fill the pool
)

type chunk [chunkSize]byte

func (r *BodyReader) chunk() *chunk {
	if c, _ := r.chunks.Get().(*chunk); c != nil {
		return c
	}
	return new(chunk)
}

func joinChunks(full []*chunk, rest []byte) []byte {
	all := make([]byte, 0, len(full)*chunkSize+len(rest))
	for _, c := range full {
		all = append(all, c[:]...)
		runtime.Gosched() // many bodies may end at the same moment
	}
	return append(all, rest...)
}
