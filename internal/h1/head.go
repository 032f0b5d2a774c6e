package h1

import (
	"bytes"
	"time"
)

// A head is the simple head of a response: its body has a known length and no encoding.
type head struct {
	status      int
	size        int // of the head, including the empty line
	length      int64
	idleTimeout time.Duration
}

// parseHead parses the head of a response if it is simple and complete. Otherwise ok is false, and
// the caller uses http.ReadResponse. parseHead accepts no head that http.ReadResponse rejects or
// interprets in another way.
func parseHead(data []byte) (h head, ok bool) {
	end := bytes.Index(data, []byte("\r\n\r\n"))
	const status = len("HTTP/1.1 200 ")
	if end < status || string(data[:9]) != "HTTP/1.1 " || data[12] != ' ' {
		return h, false
	}
	code, ok := parseDecimal(data[9:12])
	if !ok || code < 200 || code == 204 || code == 304 {
		return h, false
	}
	h.status, h.size, h.length = int(code), end+4, -1
	line, rest, more := bytes.Cut(data[:end], []byte("\r\n"))
	if !isFieldValue(line) {
		return h, false
	}
	for more {
		line, rest, more = bytes.Cut(rest, []byte("\r\n"))
		name, value, colon := bytes.Cut(line, []byte(":"))
		if !colon || !isToken(name) || !isFieldValue(value) || !h.field(name, bytes.Trim(value, " \t")) {
			return h, false
		}
	}
	return h, h.length >= 0
}

// field adds one header field to h. It reports whether a head with this field is simple.
func (h *head) field(name, value []byte) (ok bool) {
	switch len(name) {
	case len("Content-Length"):
		if bytes.EqualFold(name, []byte("Content-Length")) {
			if h.length >= 0 {
				return false
			}
			h.length, ok = parseDecimal(value)
			return ok
		}
	case len("Connection"): // and Keep-Alive
		if bytes.EqualFold(name, []byte("Connection")) {
			return bytes.EqualFold(value, []byte("keep-alive"))
		}
		if bytes.EqualFold(name, []byte("Keep-Alive")) && h.idleTimeout == 0 {
			h.idleTimeout = keepAlive(string(value))
		}
	case len("Content-Encoding"):
		return !bytes.EqualFold(name, []byte("Content-Encoding"))
	case len("Transfer-Encoding"):
		return !bytes.EqualFold(name, []byte("Transfer-Encoding"))
	case len("Trailer"):
		return !bytes.EqualFold(name, []byte("Trailer"))
	}
	return true
}

// parseDecimal parses a number of up to 18 digits.
func parseDecimal(digits []byte) (n int64, ok bool) {
	for _, d := range digits {
		if d < '0' || d > '9' {
			return 0, false
		}
		n = n*10 + int64(d-'0')
	}
	return n, len(digits) > 0 && len(digits) <= 18
}
