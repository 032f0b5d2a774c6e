package command

import (
	"bytes"
	"crypto"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	"github.com/mimiktech/cluster/mit"
)

// secrets are what the program reads again on SIGHUP.
type secrets struct {
	keys    []string        // tokens are signed with the first one, unless there is one in signing
	signing []crypto.Signer // access tokens are signed with the first one
	clients []mit.Client
}

// readSecrets reads the files with secrets. Its error names every problem, and quotes no secret.
func (s *settings) readSecrets() (secrets, error) {
	read := secrets{keys: []string{s.key}}
	var errs []error
	var err error
	if s.keyFile != "" {
		read.keys, err = readKeys(s.keyFile)
		errs = append(errs, err)
	}
	if s.signingFile != "" {
		read.signing, err = readSigningKeys(s.signingFile)
		errs = append(errs, err)
	}
	if s.clientsFile != "" {
		b, err := os.ReadFile(s.clientsFile)
		if err == nil && json.Unmarshal(b, &read.clients) != nil { // the error could quote a secret
			err = fmt.Errorf("%s is not a JSON array of clients", s.clientsFile)
		}
		errs = append(errs, err)
	}
	if s.development != nil {
		read.clients = append(read.clients, *s.development)
	}
	if !s.insecureDev {
		errs = append(errs, read.check())
	}
	return read, errors.Join(errs...)
}

// readKeys reads a file with one key in each line.
func readKeys(name string) (keys []string, err error) {
	text, err := os.ReadFile(name)
	if err != nil {
		return nil, fmt.Errorf("--key-file: %w", err)
	}
	for line := range bytes.Lines(text) {
		if key := strings.TrimSpace(string(line)); key != "" {
			keys = append(keys, key)
		}
	}
	if len(keys) == 0 {
		return nil, fmt.Errorf("--key-file: %s has no key", name)
	}
	return keys, nil
}

const minKeyBytes = 32 // as long as the hash of HS256

// check rejects keys that can be guessed. Its error does not quote them.
func (s secrets) check() error {
	var errs []error
	for _, key := range s.keys {
		switch {
		case isPlaceholder(key):
			errs = append(errs, errors.New("the key to sign tokens with is a placeholder: use random bytes, or --insecure-dev for a test"))
		case len(key) < minKeyBytes:
			errs = append(errs, fmt.Errorf("the key to sign tokens with has less than %d bytes: use a longer one, or --insecure-dev for a test", minKeyBytes))
		}
	}
	for _, c := range s.clients {
		if isPlaceholder(c.Secret) {
			errs = append(errs, fmt.Errorf("the secret of client %q is a placeholder: use random bytes, or --insecure-dev for a test", c.ID))
		}
	}
	return errors.Join(errs...)
}

// isPlaceholder reports whether text is one of the values that configuration templates contain.
func isPlaceholder(text string) bool {
	letters := strings.Map(func(r rune) rune {
		if r >= 'a' && r <= 'z' {
			return r
		}
		return -1
	}, strings.ToLower(text))
	return slices.Contains([]string{"replaceme", "changeme", "changeit", "secret", "password", "todo", "xxx", "example"}, letters)
}
