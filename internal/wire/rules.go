package wire

import (
	"errors"
	"fmt"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/mimiktech/cluster/internal/peeraddr"
)

// Limits of an entry, in bytes. The registry and the nodes apply the same ones.
const (
	MaxNameBytes     = 256 // of a type or server id
	MaxURLBytes      = 2048
	MaxLocationBytes = 4096
	// Of an entry or the unknown fields of a resource, in JSON. What the registry stores of a
	// registration is shorter.
	MaxEntryBytes = 16 << 10
)

// CheckType returns an error if a type of service cannot be registered. The errors of the checks
// follow the name of the value in a sentence, and do not quote the value.
func CheckType(typ string) error { return checkName(typ) }

// CheckServerID returns an error if an id cannot be part of a path: npm nodes do not escape it
// there.
func CheckServerID(id string) error {
	if err := checkName(id); err != nil {
		return err
	}
	if id == "." || id == ".." {
		return errors.New("is a dot segment of a path")
	}
	if i := strings.IndexAny(id, `@/?#%\`); i >= 0 {
		return fmt.Errorf("must not contain %q", id[i])
	}
	return nil
}

// CheckResourceID returns an error if an id of a resource cannot be part of a path.
func CheckResourceID(id string) error { return CheckServerID(id) }

// CheckBaseURL returns an error if a node must not be called at a clusterBaseUrl: it is an http or
// https URL with a host and at most a path, without dot segments.
func CheckBaseURL(text string) error {
	switch {
	case text == "":
		return errors.New("is missing")
	case len(text) > MaxURLBytes:
		return tooLong(MaxURLBytes)
	case strings.ContainsFunc(text, isControl):
		return errors.New("contains a control character")
	}
	u, err := peeraddr.Parse(text)
	if err != nil {
		return fmt.Errorf("is %w", err)
	}
	for segment := range strings.SplitSeq(u.Path, "/") {
		if segment == "." || segment == ".." {
			return errors.New("has a dot segment in its path")
		}
	}
	return nil
}

// CheckPublicURL is CheckBaseURL for a publicBaseUrl, which may be empty. Clients follow it, so it
// must not be a javascript: URL.
func CheckPublicURL(text string) error {
	if text == "" {
		return nil
	}
	return CheckBaseURL(text)
}

// CheckLocation returns an error if a location, in JSON, is too long.
func CheckLocation(location []byte) error {
	if len(location) > MaxLocationBytes {
		return tooLong(MaxLocationBytes)
	}
	return nil
}

func checkName(name string) error {
	switch {
	case name == "":
		return errors.New("is missing")
	case len(name) > MaxNameBytes:
		return tooLong(MaxNameBytes)
	case !utf8.ValidString(name):
		return errors.New("is not UTF-8")
	}
	if i := strings.IndexFunc(name, isControl); i >= 0 {
		r, _ := utf8.DecodeRuneInString(name[i:])
		return fmt.Errorf("must not contain %q", r)
	}
	return nil
}

// isControl reports whether a rune could break a line of a log or hide a part of it.
func isControl(r rune) bool {
	return unicode.IsControl(r) || unicode.Is(unicode.Bidi_Control, r) || r == '\u2028' || r == '\u2029'
}

func tooLong(limit int) error { return fmt.Errorf("is longer than %d bytes", limit) }
