package statuspage

import (
	"bytes"
	"cmp"
	"crypto/sha256"
	"embed"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"html/template"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/mimiktech/cluster/internal/httpjson"
)

// The names of the templates.
const (
	NodePage     = "node.html"
	RegistryPage = "registry.html"
)

// RefreshInterval is the interval at which a browser loads the page again.
const RefreshInterval = 10 * time.Second

// maxRows bounds the rows of an HTML table. JSON has all rows.
const maxRows = 500

// Write answers a GET or HEAD with a page, as HTML or as JSON.
func Write(w http.ResponseWriter, r *http.Request, name string, page any) {
	h := w.Header()
	h.Set("Cache-Control", "no-store")
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("Vary", "Accept")
	var body bytes.Buffer
	var err error
	if wantsJSON(r) {
		h.Set("Content-Type", "application/json")
		err = json.NewEncoder(&body).Encode(page)
	} else {
		h.Set("Content-Type", "text/html; charset=utf-8")
		h.Set("Content-Security-Policy", policy)
		h.Set("Referrer-Policy", "same-origin")
		err = templates.ExecuteTemplate(&body, name, page)
	}
	if err != nil {
		h.Del("Content-Security-Policy")
		httpjson.WriteError(w, http.StatusInternalServerError, "the status page could not be rendered")
		return
	}
	_, _ = w.Write(body.Bytes()) // fails if the client has disconnected
}

// Refresh returns the interval at which a browser loads the page of a request again; 0 if the query
// switches that off.
func Refresh(r *http.Request) Duration {
	if r.URL.Query().Get("refresh") == "off" {
		return 0
	}
	return Duration(RefreshInterval)
}

// wantsJSON reports whether a request asks for JSON, by its query or by its Accept header. HTML is
// the default.
func wantsJSON(r *http.Request) bool {
	switch r.URL.Query().Get("format") {
	case "json":
		return true
	case "html":
		return false
	}
	return quality(r, "application/json") > quality(r, "text/html")
}

// quality returns the weight that the Accept header gives to a media type by its full name.
func quality(r *http.Request, mediaType string) float64 {
	for part := range strings.SplitSeq(strings.Join(r.Header.Values("Accept"), ","), ",") {
		name, parameters, _ := strings.Cut(part, ";")
		if !strings.EqualFold(strings.TrimSpace(name), mediaType) {
			continue
		}
		for parameter := range strings.SplitSeq(parameters, ";") {
			if value, ok := strings.CutPrefix(strings.TrimSpace(parameter), "q="); ok {
				q, err := strconv.ParseFloat(value, 64)
				if err != nil {
					return 0
				}
				return q
			}
		}
		return 1
	}
	return 0
}

//go:embed assets
var assets embed.FS

//nolint:gochecknoglobals // parsed once; both depend on files in the binary
var (
	style, _  = assets.ReadFile("assets/style.css")
	templates = template.Must(template.New("").Funcs(template.FuncMap{
		"style":   func() template.CSS { return template.CSS(style) }, //nolint:gosec // a file of this package
		"time":    formatTime,
		"seconds": func(d Duration) int { return int(time.Duration(d) / time.Second) },
		"since":   func(now, t time.Time) Duration { return Duration(now.Sub(t)) },
		"list":    func(names []string) string { return list(names, 20) },
		"peers":   problemsFirst,
		"fails":   limit[CheckFail],
		"rows":    limit[CheckRow],
		"servers": limit[RegistryServer],
	}).ParseFS(assets, "assets/*.html"))
	policy = contentPolicy()
)

// contentPolicy allows the style of the page and its form, and nothing else.
func contentPolicy() string {
	sum := sha256.Sum256(style)
	return "default-src 'none'; style-src 'sha256-" + base64.StdEncoding.EncodeToString(sum[:]) +
		"'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
}

// problemsFirst limits the peers. If there are too many, those without a problem are left out.
func problemsFirst(peers []Peer) []Peer {
	if len(peers) > maxRows {
		peers = slices.Clone(peers)
		slices.SortStableFunc(peers, func(a, b Peer) int {
			return cmp.Compare(strconv.FormatBool(b.Self || b.Problem != ""), strconv.FormatBool(a.Self || a.Problem != ""))
		})
	}
	return limit(peers)
}

func limit[T any](rows []T) []T { return rows[:min(len(rows), maxRows)] }

func formatTime(t time.Time) string {
	if t.IsZero() {
		return "never"
	}
	return t.UTC().Format("2006-01-02 15:04:05 UTC")
}

// String returns the duration with one or two units, such as "1 h 5 min".
func (d Duration) String() string {
	switch v := time.Duration(d); {
	case v < 0:
		return "-" + (-d).String()
	case v < time.Millisecond:
		return fmt.Sprintf("%d µs", v.Microseconds())
	case v < time.Second:
		return fmt.Sprintf("%d ms", v.Milliseconds())
	case v < time.Minute:
		return fmt.Sprintf("%d s", int(v.Seconds()))
	case v < time.Hour:
		return units(int(v.Seconds()), 60, "min", "s")
	case v < 24*time.Hour:
		return units(int(v.Minutes()), 60, "h", "min")
	default:
		return units(int(v.Hours()), 24, "d", "h")
	}
}

// units splits a number of small units into large and small ones.
func units(n, size int, large, small string) string {
	if n%size == 0 {
		return fmt.Sprintf("%d %s", n/size, large)
	}
	return fmt.Sprintf("%d %s %d %s", n/size, large, n%size, small)
}

func appendSeconds(d Duration) []byte {
	return strconv.AppendFloat(nil, time.Duration(d).Seconds(), 'f', -1, 64)
}
