package token

import (
	"fmt"
	"slices"
	"strings"
	"sync"

	"github.com/mimiktech/cluster/internal/reread"
)

// A Secret is a value that may come from a file, which is read again when it changes. It is safe
// for concurrent use.
type Secret struct {
	name   string
	report func(error)

	mu       sync.Mutex            // guards the fields below
	file     *reread.Value[string] // nil: the value does not come from a file
	value    string
	former   []string // the newest last
	reported string   // the last error passed to report
}

// NewSecret returns a Secret with the given value, which may be empty. If path is not "", the value
// comes from that file, which is read whenever the Secret is used; the given value is used until
// the file can be. name is that of the setting with the path. report is called with the reason why
// the file cannot be used, once for each different one.
func NewSecret(value, name, path string, report func(error)) *Secret {
	s := &Secret{value: value, name: name, report: report}
	if path != "" {
		s.file = newSecretFile(path)
	}
	return s
}

// ReadSecret reads a secret from a file, without white space at its ends. It must not be empty.
func ReadSecret(path string) (string, error) {
	value, _, err := newSecretFile(path).Get()
	return value, err
}

// Get returns the current value. If its file cannot be used, it returns the last good one. An error
// means that there is none.
func (s *Secret) Get() (string, error) {
	value, problem, changed := s.read()
	if changed && problem != nil {
		s.report(problem) // without the lock: a report may ask for the values to redact
	}
	if value == "" {
		return "", problem
	}
	return value, nil
}

// Set replaces the value. A file is not read any more.
func (s *Secret) Set(value string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.file = nil
	s.setLocked(value)
}

// Values returns what must not be revealed: the current value and former ones.
func (s *Secret) Values() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.value == "" {
		return slices.Clone(s.former)
	}
	return append(slices.Clone(s.former), s.value)
}

// maxFormer is the number of former values that a Secret remembers, to be redacted.
const maxFormer = 4

func newSecretFile(path string) *reread.Value[string] {
	return reread.New(func(contents [][]byte) (string, error) {
		value := strings.TrimSpace(string(contents[0]))
		if value == "" {
			return "", fmt.Errorf("%s is empty", path)
		}
		return value, nil
	}, path)
}

// read returns the value, why its file cannot be used, and whether that is for another reason than
// the last time.
func (s *Secret) read() (value string, problem error, changed bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.file == nil {
		return s.value, nil, false
	}
	value, ok, err := s.file.Get()
	if ok {
		s.setLocked(value)
	}
	text := ""
	if err != nil {
		problem = fmt.Errorf("%s cannot be used: %w", s.name, err)
		text = problem.Error()
	}
	changed = text != s.reported
	s.reported = text
	return s.value, problem, changed
}

func (s *Secret) setLocked(value string) {
	if s.value == value {
		return
	}
	if s.value != "" {
		s.former = append(s.former, s.value)
		s.former = s.former[max(0, len(s.former)-maxFormer):]
	}
	s.value = value
}
