package main

import (
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"text/tabwriter"
	"time"
	"unicode"

	"github.com/mimiktech/cluster/internal/redact"
)

// secrets are what a remote may repeat, and what must not be shown: the client secret, and the
// tokens that requests carry.
type secrets struct {
	mu  sync.Mutex // guards the field below
	all []string
}

func (s *secrets) add(secret string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !slices.Contains(s.all, secret) {
		s.all = append(s.all, secret)
	}
}

func (s *secrets) redactor() redact.Secrets {
	s.mu.Lock()
	defer s.mu.Unlock()
	return redact.NewSecrets(s.all...)
}

// An output keeps the first error of writing to it.
type output struct {
	io.Writer
	err error
}

// Write implements io.Writer.
func (o *output) Write(b []byte) (int, error) {
	n, err := o.Writer.Write(b)
	if o.err == nil {
		o.err = err
	}
	return n, err
}

// clean removes secrets and control characters from text, so that a terminal can show it.
func (a *app) clean(text string) string { return a.secrets.redactor().Text(text) }

// cleanLines is clean for each line.
func (a *app) cleanLines(text string) string {
	lines := strings.Split(text, "\n")
	for i := range lines {
		lines[i] = a.clean(lines[i])
	}
	return strings.Join(lines, "\n")
}

// printf prints a line whose arguments may be from outside.
func (a *app) printf(format string, args ...any) {
	fmt.Fprintln(a.out, a.clean(fmt.Sprintf(format, args...)))
}

// table prints rows in columns. The first one is the header.
func (a *app) table(rows [][]string) {
	w := tabwriter.NewWriter(a.out, 0, 0, 2, ' ', 0)
	for _, row := range rows {
		for i, cell := range row {
			row[i] = a.clean(cell)
		}
		fmt.Fprintln(w, strings.TrimRight(strings.Join(row, "\t"), "\t"))
	}
	_ = w.Flush() // a.out keeps the error
}

// json prints a value. A string that contains a secret is replaced as a whole.
func (a *app) json(v any) error {
	encoded, err := json.Marshal(v)
	if err != nil {
		return err
	}
	var document any
	decoder := json.NewDecoder(strings.NewReader(string(encoded)))
	decoder.UseNumber()
	if err := decoder.Decode(&document); err != nil {
		return err
	}
	return a.encode(a.withoutSecrets(document))
}

// encode prints a value that contains no secrets.
func (a *app) encode(v any) error {
	encoded, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return err
	}
	fmt.Fprintln(a.out, escape(string(encoded)))
	return nil
}

func (a *app) withoutSecrets(v any) any {
	switch v := v.(type) {
	case string:
		if a.secrets.redactor().In(v) {
			return redact.Mark
		}
	case []any:
		for i := range v {
			v[i] = a.withoutSecrets(v[i])
		}
	case map[string]any:
		for name, value := range v {
			if a.secrets.redactor().In(name) {
				delete(v, name)
				name = redact.Mark
			}
			v[name] = a.withoutSecrets(value)
		}
	}
	return v
}

// escape escapes the characters of a JSON document that a terminal would act on. JSON itself allows
// no control characters below U+0020 in texts.
func escape(document string) string {
	var b strings.Builder
	for _, r := range document {
		if r == '\n' || r < unicode.MaxASCII || unicode.IsPrint(r) {
			b.WriteRune(r)
		} else if r > 0xffff {
			b.WriteRune(unicode.ReplacementChar)
		} else {
			fmt.Fprintf(&b, `\u%04x`, r)
		}
	}
	return b.String()
}

// progress shows that a slow operation is in progress, if the standard error is a terminal. done
// removes the line.
func (a *app) progress(format string, args ...any) (done func()) {
	if !a.showProgress {
		return func() {}
	}
	fmt.Fprintf(a.errOut, "\r\x1b[K%s …", fmt.Sprintf(format, args...))
	return func() { fmt.Fprint(a.errOut, "\r\x1b[K") }
}

// ago returns how long ago t was; "unknown" for the zero time.
func ago(t time.Time) string {
	if t.IsZero() {
		return "unknown"
	}
	return short(max(0, time.Since(t))) + " ago"
}

// short formats a duration in one unit.
func short(d time.Duration) string {
	switch {
	case d < time.Second:
		return fmt.Sprintf("%d ms", d.Milliseconds())
	case d < 2*time.Minute:
		return fmt.Sprintf("%d s", int(d.Seconds()))
	case d < 2*time.Hour:
		return fmt.Sprintf("%d min", int(d.Minutes()))
	case d < 48*time.Hour:
		return fmt.Sprintf("%d h", int(d.Hours()))
	}
	return fmt.Sprintf("%d days", int(d.Hours()/24))
}
