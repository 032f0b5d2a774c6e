package sumologic

import (
	"context"
	"sync"
)

const (
	maxQueuedLines = 10_000
	maxQueuedBytes = 8 << 20
	batchBytes     = 512 << 10 // a batch is closed by the line that reaches this size
)

// queue holds the lines that wait to be sent. put never blocks.
type queue struct {
	wake  chan struct{} // has a value after put made a difference to the sender
	hurry chan struct{} // has a value after a flush began

	mu       sync.Mutex    // guards the fields below
	changed  chan struct{} // closed and replaced when lines leave the queue or the batch
	normal   fifo          // lines below error
	urgent   fifo          // lines at error and above
	bytes    int           // of normal and urgent
	seq      uint64        // of the newest line; the first line has 1
	batch    []queuedLine  // being sent
	flushing int           // calls of flush
	closed   bool
	sent     uint64
	lost     uint64
	failed   uint64
}

type queuedLine struct {
	seq  uint64
	data []byte
}

func newQueue() *queue {
	return &queue{
		wake:    make(chan struct{}, 1),
		hurry:   make(chan struct{}, 1),
		changed: make(chan struct{}),
	}
}

// put adds a line. If the queue is full it drops the oldest line below error, or the oldest line
// if all others are errors.
func (q *queue) put(data []byte, urgent bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.closed {
		q.lost++
		return
	}
	q.seq++
	lines := &q.normal
	if urgent {
		lines = &q.urgent
	}
	lines.push(queuedLine{q.seq, data})
	before := q.bytes
	q.bytes += len(data)
	dropped := false
	for q.bytes > maxQueuedBytes || q.lenLocked() > maxQueuedLines {
		lines := &q.urgent
		if q.normal.len() > 0 {
			lines = &q.normal
		}
		q.bytes -= len(lines.pop().data)
		q.lost++
		dropped = true
	}
	if dropped && q.flushing > 0 {
		q.notifyLocked()
	}
	if before == 0 || before < batchBytes && q.bytes >= batchBytes {
		signal(q.wake)
	}
}

// take moves the oldest lines into the batch, and returns them.
func (q *queue) take() []queuedLine {
	q.mu.Lock()
	defer q.mu.Unlock()
	var batch []queuedLine
	for size := 0; size < batchBytes && q.lenLocked() > 0; {
		lines := &q.normal
		if q.normal.len() == 0 || q.urgent.len() > 0 && q.urgent.front().seq < q.normal.front().seq {
			lines = &q.urgent
		}
		l := lines.pop()
		size += len(l.data)
		q.bytes -= len(l.data)
		batch = append(batch, l)
	}
	q.batch = batch
	return batch
}

// finish removes the batch.
func (q *queue) finish(sent bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if sent {
		q.sent += uint64(len(q.batch))
	} else {
		q.lost += uint64(len(q.batch))
	}
	q.batch = nil
	q.notifyLocked()
}

func (q *queue) countFailure() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.failed++
}

// flush makes the sender hurry until the lines put so far have left the queue, or ctx ends. It
// returns how many lines are still pending, and how many were lost meanwhile.
func (q *queue) flush(ctx context.Context) (pending int, lost uint64) {
	q.mu.Lock()
	defer q.mu.Unlock()
	target, before := q.seq, q.lost
	q.flushing++
	signal(q.hurry)
	for q.oldestLocked() <= target && ctx.Err() == nil {
		changed := q.changed
		q.mu.Unlock()
		select {
		case <-changed:
		case <-ctx.Done():
		}
		q.mu.Lock()
	}
	q.flushing--
	if q.oldestLocked() <= target {
		pending = q.lenLocked() + len(q.batch)
	}
	return pending, q.lost - before
}

// close makes put drop lines.
func (q *queue) close() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.closed = true
	signal(q.wake)
}

// abandon counts the lines that are left as lost.
func (q *queue) abandon() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.lost += uint64(q.lenLocked() + len(q.batch)) //nolint:gosec // lengths are not negative
	q.normal, q.urgent, q.batch, q.bytes = fifo{}, fifo{}, nil, 0
	q.notifyLocked()
}

func (q *queue) stats() Stats {
	q.mu.Lock()
	defer q.mu.Unlock()
	return Stats{Queued: q.lenLocked() + len(q.batch), Sent: q.sent, Lost: q.lost, Failed: q.failed}
}

// state reports whether there are lines, and whether they are to be sent at once.
func (q *queue) state() (filled, now bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.lenLocked() > 0, q.bytes >= batchBytes || q.flushing > 0
}

func (q *queue) lenLocked() int { return q.normal.len() + q.urgent.len() }

// oldestLocked returns the number of the oldest pending line, one above the newest if there is
// none.
func (q *queue) oldestLocked() uint64 {
	oldest := q.seq + 1
	if q.normal.len() > 0 {
		oldest = min(oldest, q.normal.front().seq)
	}
	if q.urgent.len() > 0 {
		oldest = min(oldest, q.urgent.front().seq)
	}
	if len(q.batch) > 0 {
		oldest = min(oldest, q.batch[0].seq)
	}
	return oldest
}

func (q *queue) notifyLocked() {
	close(q.changed)
	q.changed = make(chan struct{})
}

func signal(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// fifo is a first-in-first-out list of lines.
type fifo struct {
	lines []queuedLine
	head  int // of the first line that has not been popped
}

func (f *fifo) len() int           { return len(f.lines) - f.head }
func (f *fifo) front() *queuedLine { return &f.lines[f.head] }
func (f *fifo) push(l queuedLine)  { f.lines = append(f.lines, l) }

func (f *fifo) pop() queuedLine {
	l := f.lines[f.head]
	f.lines[f.head] = queuedLine{} // lets the line be collected
	f.head++
	if f.head == len(f.lines) {
		f.lines, f.head = f.lines[:0], 0
	} else if f.head > len(f.lines)/2 {
		n := copy(f.lines, f.lines[f.head:])
		clear(f.lines[n:])
		f.lines, f.head = f.lines[:n], 0
	}
	return l
}
