package statuspage

// Peers returns the number of peers of which something is kept.
func (r *Recorder) Peers() int { return len(r.peers) }
