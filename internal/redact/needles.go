package redact

import (
	"encoding/base64"
	"encoding/binary"
	"slices"
	"strings"
)

// needlesOf returns the texts to look for. The base64 text of a secret depends on the number of
// bytes before it, modulo three. Its first and last characters also depend on the bytes around it,
// so they are left out.
func needlesOf(secrets []string) (needles []string) {
	for _, secret := range secrets {
		if secret == "" {
			continue
		}
		needles = append(needles, secret)
		for before, affected := range [...]int{0, 2, 3} {
			plain := append(make([]byte, before), secret...)
			for _, encoding := range [...]*base64.Encoding{base64.RawStdEncoding, base64.RawURLEncoding} {
				encoded := encoding.EncodeToString(plain)
				if len(plain)%3 != 0 {
					encoded = encoded[:len(encoded)-1]
				}
				if len(encoded) >= affected+minBase64 && !slices.Contains(needles, encoded[affected:]) {
					needles = append(needles, encoded[affected:])
				}
				if !strings.ContainsAny(encoded, "+/") {
					break // the other alphabet differs in these characters only
				}
			}
		}
	}
	return needles
}

// A needleIndex finds out in one pass over a text whether it has one of many needles. A node has
// some hundred: its tokens and secrets in all forms.
type needleIndex struct {
	starts map[uint64][]string         // needles by their first bytes
	hashes [1 << (hashBits - 6)]uint64 // a set of the hashes of the keys of starts
	short  []string                    // needles of fewer than startBytes bytes
}

const (
	startBytes = 8
	hashBits   = 14
)

func newNeedleIndex(needles []string) *needleIndex {
	x := &needleIndex{starts: make(map[uint64][]string)}
	for _, needle := range needles {
		if len(needle) < startBytes {
			x.short = append(x.short, needle)
			continue
		}
		start := binary.LittleEndian.Uint64([]byte(needle[:startBytes]))
		x.starts[start] = append(x.starts[start], needle)
		h := hash(start)
		x.hashes[h>>6] |= 1 << (h & 63)
	}
	return x
}

// hash multiplies by 2^64 divided by the golden ratio, which spreads similar values.
func hash(start uint64) uint64 { return start * 0x9e3779b97f4a7c15 >> (64 - hashBits) }

// in reports whether text has one of the needles.
func (x *needleIndex) in(text string) bool {
	if slices.ContainsFunc(x.short, func(needle string) bool { return strings.Contains(text, needle) }) {
		return true
	}
	if len(text) < startBytes {
		return false
	}
	start := binary.LittleEndian.Uint64([]byte(text[:startBytes]))
	for i := startBytes; ; i++ {
		if h := hash(start); x.hashes[h>>6]&(1<<(h&63)) != 0 && x.startsWith(text[i-startBytes:], start) {
			return true
		}
		if i == len(text) {
			return false
		}
		start = start>>8 | uint64(text[i])<<56
	}
}

func (x *needleIndex) startsWith(text string, start uint64) bool {
	return slices.ContainsFunc(x.starts[start], func(needle string) bool { return strings.HasPrefix(text, needle) })
}
