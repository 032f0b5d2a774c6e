package wire_test

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/mimiktech/cluster/internal/wire"
)

func TestClockAhead(t *testing.T) {
	sent := time.Unix(1000, 500e6)
	received := sent.Add(200 * time.Millisecond)
	for date, want := range map[int64]time.Duration{
		1000: 0, 999: 500 * time.Millisecond, 990: 9500 * time.Millisecond, 1001: -300 * time.Millisecond, 1010: -9300 * time.Millisecond,
	} {
		if got := wire.ClockAhead(time.Unix(date, 0), sent, received); got != want {
			t.Errorf("date %d: got %v, want %v", date, got, want)
		}
	}
}

func TestServerRoundTrip(t *testing.T) {
	for name, entry := range map[string]string{
		"all fields": `{"serverId":"a","clusterBaseUrl":"http://a:1/mds/v1","location":{"type":"Point","coordinates":[1.50,2e1]},` +
			`"createdAt":"2020-01-02T03:04:05.678Z","updatedAt":"2021-01-02T03:04:05.678Z"}`,
		"order and fields of others": `{"zone":"z","updatedAt":"2021-01-02T03:04:05.678Z","serverId":"a","nested":{"b":[1,{"c":null}],"a":0},"clusterBaseUrl":"http://a"}`,
		"spellings of numbers":       `{"serverId":"a","clusterBaseUrl":"http://a","weight":1.0,"big":12345678901234567890,"small":-0.0,"power":1E+2}`,
		"spellings of dates":         `{"serverId":"a","clusterBaseUrl":"http://a","createdAt":"2020-01-02","updatedAt":"2020-01-02T03:04:05+00:00"}`,
		"spellings of text":          `{"serverId":"\u0061","clusterBaseUrl":"http:\/\/a","note":"\ud83d\ude00 é \u00e9"}`,
		"nulls":                      `{"serverId":"a","clusterBaseUrl":"http://a","location":null,"createdAt":null,"updatedAt":null}`,
		"no address":                 `{"serverId":"a"}`,
		"given twice":                `{"serverId":"b","serverId":"a","clusterBaseUrl":"http://a"}`,
	} {
		t.Run(name, func(t *testing.T) {
			var s wire.Server
			if err := json.Unmarshal([]byte(entry), &s); err != nil {
				t.Fatal(err)
			}
			if s.ServerID != "a" {
				t.Errorf("ServerID = %q, want %q", s.ServerID, "a")
			}
			if diff := cmp.Diff(entry, marshal(t, s)); diff != "" {
				t.Errorf("sent on as received (-want +got):\n%s", diff)
			}
		})
	}
}

// What a server was read from may be a buffer that is used again.
func TestServerKeepsItsOwnCopy(t *testing.T) {
	entry := `{"serverId":"a","clusterBaseUrl":"http://a","note":"mine"}`
	buffer := []byte(entry)
	var s wire.Server
	if err := s.UnmarshalJSON(buffer); err != nil {
		t.Fatal(err)
	}
	for i := range buffer {
		buffer[i] = 'x'
	}
	if got := marshal(t, s); got != entry {
		t.Errorf("after the buffer was used again: %s", got)
	}
}

func TestServerWithoutRaw(t *testing.T) {
	at := time.Date(2020, 1, 2, 4, 4, 5, 678_900_000, time.FixedZone("", 3600))
	for _, tt := range []struct {
		name string
		s    wire.Server
		want string
	}{
		{"only what it has", wire.Server{ServerID: "a"}, `{"serverId":"a","clusterBaseUrl":""}`},
		{
			"dates in UTC with milliseconds",
			wire.Server{ServerID: "a", ClusterBaseURL: "http://a", Location: json.RawMessage(`[1]`), CreatedAt: at, UpdatedAt: at},
			`{"serverId":"a","clusterBaseUrl":"http://a","location":[1],"createdAt":"2020-01-02T03:04:05.678Z","updatedAt":"2020-01-02T03:04:05.678Z"}`,
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if diff := cmp.Diff(tt.want, marshal(t, tt.s)); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

func TestServerTimes(t *testing.T) {
	var (
		created = time.Date(2020, 1, 2, 3, 4, 5, 0, time.UTC)
		updated = time.Date(2021, 1, 2, 3, 4, 5, 678_000_000, time.UTC)
	)
	for _, tt := range []struct {
		name, fields string
		seen         time.Time
		date         string
	}{
		{"none", ``, time.Time{}, ""},
		{"null", `,"createdAt":null,"updatedAt":null`, time.Time{}, ""},
		{"empty", `,"createdAt":"","updatedAt":""`, time.Time{}, ""},
		{"only created", `,"createdAt":"2020-01-02T03:04:05Z"`, created, "2020-01-02T03:04:05Z"},
		{"only updated", `,"updatedAt":"2021-01-02T03:04:05.678Z"`, updated, "2021-01-02T03:04:05.678Z"},
		{"updated counts", `,"createdAt":"2020-01-02T03:04:05Z","updatedAt":"2021-01-02T03:04:05.678Z"`, updated, "2021-01-02T03:04:05.678Z"},
		{"another zone", `,"updatedAt":"2021-01-02T05:04:05.678+02:00"`, updated, "2021-01-02T05:04:05.678+02:00"},
		{"more digits", `,"updatedAt":"2021-01-02T03:04:05.678000000Z"`, updated, "2021-01-02T03:04:05.678000000Z"},
		{"no date at all", `,"updatedAt":"yesterday"`, time.Time{}, "yesterday"},
		{"only the day", `,"updatedAt":"2021-01-02"`, time.Time{}, "2021-01-02"},
		{"no zone", `,"updatedAt":"2021-01-02T03:04:05"`, time.Time{}, "2021-01-02T03:04:05"},
		{"no such day", `,"updatedAt":"2021-02-30T03:04:05Z"`, time.Time{}, "2021-02-30T03:04:05Z"},
		{"a path", `,"updatedAt":"/../x?y#z"`, time.Time{}, "/../x?y#z"},
		{"unreadable update", `,"createdAt":"2020-01-02T03:04:05Z","updatedAt":"yesterday"`, created, "yesterday"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var s wire.Server
			if err := json.Unmarshal([]byte(`{"serverId":"a"`+tt.fields+`}`), &s); err != nil {
				t.Fatal(err)
			}
			if got := s.LastUpdate(); !got.Equal(tt.seen) {
				t.Errorf("Seen = %v, want %v", got, tt.seen)
			}
			if got := s.UpdatedAtText(); got != tt.date {
				t.Errorf("UpdatedAtText = %q, want the spelling of the entry, %q", got, tt.date)
			}
		})
	}

	t.Run("made here", func(t *testing.T) {
		s := wire.Server{ServerID: "a", CreatedAt: created}
		if got, want := s.UpdatedAtText(), "2020-01-02T03:04:05.000Z"; got != want {
			t.Errorf("Date = %q, want %q", got, want)
		}
		s.UpdatedAt = updated
		if got, want := s.UpdatedAtText(), "2021-01-02T03:04:05.678Z"; got != want {
			t.Errorf("Date = %q, want %q", got, want)
		}
	})
}

// Invalid fields other than the id are treated as missing.
func TestServerInvalidFields(t *testing.T) {
	at := time.Date(2020, 1, 2, 3, 4, 5, 0, time.UTC)
	for name, tt := range map[string]struct {
		entry string
		want  wire.Server
		date  string
	}{
		"number for url":  {`{"serverId":"a","clusterBaseUrl":1}`, wire.Server{ServerID: "a"}, ""},
		"object for url":  {`{"clusterBaseUrl":{"clusterBaseUrl":"http://b"},"serverId":"a"}`, wire.Server{ServerID: "a"}, ""},
		"number as date":  {`{"serverId":"a","updatedAt":1577934245678}`, wire.Server{ServerID: "a"}, ""},
		"one date of two": {`{"serverId":"a","createdAt":"2020-01-02T03:04:05Z","updatedAt":[]}`, wire.Server{ServerID: "a", CreatedAt: at}, "2020-01-02T03:04:05Z"},
	} {
		t.Run(name, func(t *testing.T) {
			var s wire.Server
			if err := json.Unmarshal([]byte(tt.entry), &s); err != nil {
				t.Fatal(err)
			}
			if got := s.UpdatedAtText(); got != tt.date {
				t.Errorf("Date = %q, want %q", got, tt.date)
			}
			tt.want.Raw = json.RawMessage(tt.entry)
			if diff := cmp.Diff(tt.want, s); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

func TestServerRejected(t *testing.T) {
	for name, entry := range map[string]string{
		"null":          `null`,
		"empty":         `{}`,
		"no id":         `{"clusterBaseUrl":"http://a"}`,
		"empty id":      `{"serverId":""}`,
		"null id":       `{"serverId":null}`,
		"number for id": `{"serverId":1}`,
		"object for id": `{"serverId":{"a":1}}`,
		"array":         `["a"]`,
		"text":          `"a"`,
		"number":        `1`,
		"twice an id":   `{"serverId":1,"serverId":"a"}`,
		"cut off":       `{"serverId":"a"`,
		"too deep":      `{"serverId":"a","x":` + strings.Repeat("[", 20_000) + strings.Repeat("]", 20_000) + `}`,
	} {
		t.Run(name, func(t *testing.T) {
			s := wire.Server{ServerID: "before"}
			if err := json.Unmarshal([]byte(entry), &s); err == nil {
				t.Errorf("accepted as %+v", s)
			}
			if s.ServerID != "before" {
				t.Errorf("refused, but it became %+v", s)
			}
		})
	}
}

func TestItResourceRoundTrip(t *testing.T) {
	// The known fields come first, then those of others by name. Servers stay as they were.
	in := `{"owner":{"b":1.0,"a":[]},"servers":[{"x":1,"serverId":"b"},{"serverId":"a","updatedAt":"yesterday"}],` +
		`"publicBaseUrl":"http://p/mds/v1","id":"it","alias":"é\u00e9","type":"mds"}`
	want := `{"id":"it","type":"mds","publicBaseUrl":"http://p/mds/v1","servers":[{"x":1,"serverId":"b"},{"serverId":"a","updatedAt":"yesterday"}],` +
		`"alias":"é\u00e9","owner":{"b":1.0,"a":[]}}`
	var it wire.ItResource
	if err := json.Unmarshal([]byte(in), &it); err != nil {
		t.Fatal(err)
	}
	got := marshal(t, it)
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	var again wire.ItResource
	if err := json.Unmarshal([]byte(got), &again); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(it, again); diff != "" {
		t.Errorf("after a second journey (-first +second):\n%s", diff)
	}
}

// npm nodes iterate the servers without looking.
func TestItResourceServersAreNeverNull(t *testing.T) {
	for name, in := range map[string]string{
		"missing": `{"id":"it","publicBaseUrl":"http://p"}`,
		"null":    `{"id":"it","publicBaseUrl":"http://p","servers":null}`,
		"none":    `{"id":"it","publicBaseUrl":"http://p","servers":[]}`,
	} {
		t.Run(name, func(t *testing.T) {
			var it wire.ItResource
			if err := json.Unmarshal([]byte(in), &it); err != nil {
				t.Fatal(err)
			}
			if got, want := marshal(t, it), `{"id":"it","publicBaseUrl":"http://p","servers":[]}`; got != want {
				t.Errorf("got %s, want %s", got, want)
			}
		})
	}
	if got, want := marshal(t, wire.ItResource{}), `{"id":"","publicBaseUrl":"","servers":[]}`; got != want {
		t.Errorf("the zero value is %s, want %s", got, want)
	}
}

func TestItResourceRejected(t *testing.T) {
	for name, in := range map[string]string{
		"null":                `null`,
		"empty":               `{}`,
		"no id":               `{"servers":[]}`,
		"null id":             `{"id":null,"servers":[]}`,
		"number for id":       `{"id":1}`,
		"array":               `[]`,
		"text":                `"it"`,
		"object for servers":  `{"id":"it","servers":{}}`,
		"text for servers":    `{"id":"it","servers":"a"}`,
		"null for servers":    `{"id":null,"servers":null}`,
		"number for a type":   `{"id":"it","type":1}`,
		"something after it":  `{"id":"it"} {}`,
		"a number beyond all": `{"id":"it","publicBaseUrl":1e999}`,
		"too deep":            `{"id":"it","x":` + strings.Repeat(`{"a":`, 20_000) + `1` + strings.Repeat("}", 20_000) + `}`,
	} {
		t.Run(name, func(t *testing.T) {
			var it wire.ItResource
			if err := json.Unmarshal([]byte(in), &it); err == nil {
				t.Errorf("accepted as %+v", it)
			}
		})
	}
}

// Servers without an id are skipped, the others are kept.
func TestItResourceSkipsInvalidServers(t *testing.T) {
	const in = `{"id":"it","servers":[null,{"serverId":"a"},"b",{"clusterBaseUrl":"http://c"},{"serverId":"d","x":[{}]},{"serverId":5},[{"serverId":"e"}]]}`
	var it wire.ItResource
	if err := json.Unmarshal([]byte(in), &it); err != nil {
		t.Fatal(err)
	}
	if got, want := marshal(t, it), `{"id":"it","publicBaseUrl":"","servers":[{"serverId":"a"},{"serverId":"d","x":[{}]}]}`; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
	if got, want := fmt.Sprint(it.Skipped), "5 of 7 entries left out: server without serverId"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

// The limits of a registration apply to each entry that is decoded.
func TestEntryLimits(t *testing.T) {
	location := func(size int) string {
		return `{"serverId":"a","location":"` + strings.Repeat("x", size-len(`""`)) + `"}`
	}
	unknown := func(size int) string {
		return `{"serverId":"a","x":"` + strings.Repeat("x", size-len(`{"serverId":"a","x":""}`)) + `"}`
	}
	for name, tt := range map[string]struct {
		entry string
		err   string // "" for none
	}{
		"location":       {location(wire.MaxLocationBytes), ""},
		"location long":  {location(wire.MaxLocationBytes + 1), "location is longer than 4096 bytes"},
		"location twice": {`{"serverId":"a","location":1,"LOCATION"` + strings.TrimPrefix(location(5000), `{"serverId":"a","location"`), "location is longer"},
		"entry":          {unknown(wire.MaxEntryBytes), ""},
		"entry long":     {unknown(wire.MaxEntryBytes + 1), "entry is longer than 16384 bytes"},
	} {
		t.Run(name, func(t *testing.T) {
			var it wire.ItResource
			if err := json.Unmarshal([]byte(`{"id":"it","servers":[{"serverId":"b"},`+tt.entry+`]}`), &it); err != nil {
				t.Fatal(err)
			}
			want := 2
			if tt.err != "" {
				want = 1
			}
			if text := fmt.Sprint(it.Skipped); len(it.Servers) != want || (it.Skipped == nil) != (tt.err == "") || !strings.Contains(text, tt.err) && tt.err != "" {
				t.Errorf("%d servers, left out: %s, want %q", len(it.Servers), text, tt.err)
			}
			var response wire.DeleteResponse
			err := json.Unmarshal([]byte(`{"server":`+tt.entry+`}`), &response)
			if (err == nil) != (tt.err == "") || err != nil && !strings.Contains(err.Error(), tt.err) {
				t.Errorf("in the response to a delete: %v, want %q", err, tt.err)
			}
		})
	}
}

// A node applies the rules for registrations to the resource of a registry, too. A public address
// that breaks them is left out, because nodes do not use it. A type that breaks them is an error.
func TestItResourceRules(t *testing.T) {
	longURL := "https://p/" + strings.Repeat("a", wire.MaxURLBytes)
	for name, tt := range map[string]struct {
		field, value string
		skipped, err string // in the error; "" for none
	}{
		"URL":             {"publicBaseUrl", "https://p:8443/mds/v1/", "", ""},
		"URL empty":       {"publicBaseUrl", "", "", ""},
		"URL script":      {"publicBaseUrl", "javascript:alert(1)", "http or https", ""},
		"URL fragment":    {"publicBaseUrl", "https://p/#b", "more than a path", ""},
		"URL query":       {"publicBaseUrl", "https://p/?b", "more than a path", ""},
		"URL dot segment": {"publicBaseUrl", "https://p/v1/%2e%2e/admin", "dot segment", ""},
		"URL control":     {"publicBaseUrl", "https://p/\u202e", "control character", ""},
		"URL credentials": {"publicBaseUrl", "https://u:hunter2@p/", "credentials", ""},
		"URL long":        {"publicBaseUrl", longURL, "longer than 2048", ""},
		"type":            {"type", "a/b@c", "", ""},
		"type empty":      {"type", "", "", ""},
		"type escape":     {"type", "\x1b[31mmds", "", "its type must not contain"},
		"type bidi":       {"type", "mds\u202e", "", "its type must not contain"},
		"type long":       {"type", strings.Repeat("a", wire.MaxNameBytes+1), "", "its type is longer"},
	} {
		t.Run(name, func(t *testing.T) {
			value, err := json.Marshal(tt.value)
			if err != nil {
				t.Fatal(err)
			}
			// The field comes first, and the list last: it resets what was left out before.
			in := `{"id":"it","` + tt.field + `":` + string(value) + `,"servers":[{"serverId":"a"}]}`
			var it wire.ItResource
			err = json.Unmarshal([]byte(in), &it)
			if tt.err != "" {
				if err == nil || !strings.Contains(err.Error(), tt.err) {
					t.Errorf("%v, want %q", err, tt.err)
				}
				return
			}
			if err != nil || len(it.Servers) != 1 {
				t.Fatalf("%d servers, %v", len(it.Servers), err)
			}
			if text := fmt.Sprint(it.Skipped); (it.Skipped == nil) != (tt.skipped == "") || !strings.Contains(text, tt.skipped) && tt.skipped != "" || strings.Contains(text, "hunter2") {
				t.Errorf("left out: %s, want %q", text, tt.skipped)
			}
			want := tt.value
			if tt.skipped != "" {
				want = ""
			}
			if got := map[string]string{"publicBaseUrl": it.PublicBaseURL, "type": it.Type}[tt.field]; got != want {
				t.Errorf("%s %q, want %q", tt.field, got, want)
			}
		})
	}
	var it wire.ItResource
	err := json.Unmarshal([]byte(`{"id":"it","publicBaseUrl":"data:x","servers":[{"serverId":"a/b"},{"serverId":"a"}]}`), &it)
	if text := fmt.Sprint(it.Skipped); err != nil || !strings.Contains(text, "1 of 2 entries") || !strings.Contains(text, "publicBaseUrl left out") {
		t.Errorf("%s, %v", text, err)
	}
}

func TestRegistered(t *testing.T) {
	for name, tt := range map[string]struct {
		in        string
		id        string
		leaseTime float64 // -1 for none, -2 for one that cannot be read
		refused   bool
	}{
		"both":                    {`{"itResource":{"id":"it"},"leaseTime":36e5}`, "it", 36e5, false},
		"spelled otherwise":       {`{"ITRESOURCE":{"id":"it"},"lease\u0054ime":1}`, "it", 1, false},
		"given twice":             {`{"itResource":{"id":"a"},"leaseTime":1,"leaseTime":2,"itResource":{"id":"it"}}`, "it", 2, false},
		"nested":                  {`{"a":{"itResource":{"id":"a"},"leaseTime":1},"itResource":{"id":"it","leaseTime":2}}`, "it", -1, false},
		"nulls":                   {`{"itResource":null,"leaseTime":null}`, "", -1, false},
		"null":                    {`null`, "", -1, false},
		"a text with a number":    {`{"leaseTime":"7200000"}`, "", 7.2e6, false},
		"a text with none":        {`{"leaseTime":"2h"}`, "", -2, false},
		"an empty text":           {`{"leaseTime":""}`, "", -2, false},
		"beyond all":              {`{"leaseTime":1e999}`, "", -2, false},
		"a list":                  {`{"leaseTime":[1]}`, "", -2, false},
		"true":                    {`{"leaseTime":true}`, "", -2, false},
		"a resource that is none": {`{"itResource":[]}`, "", 0, true},
	} {
		t.Run(name, func(t *testing.T) {
			var r wire.Registered
			err := json.Unmarshal([]byte(tt.in), &r)
			if (err != nil) != tt.refused {
				t.Fatalf("%+v, %v", r, err)
			}
			if err != nil {
				return
			}
			id, leaseTime := "", -1.0
			if r.ItResource != nil {
				id = r.ItResource.ID
			}
			if r.LeaseTime != nil {
				leaseTime = *r.LeaseTime
			} else if r.LeaseTimeErr != nil {
				leaseTime = -2
			}
			if id != tt.id || leaseTime != tt.leaseTime {
				t.Errorf("id %q and lease time %v, want %q and %v", id, leaseTime, tt.id, tt.leaseTime)
			}
		})
	}
}

// A server that was read is sent on as it was, whatever it was read from.
func FuzzServer(f *testing.F) {
	for _, seed := range []string{
		`{"serverId":"a","clusterBaseUrl":"http://a:1/mds/v1","updatedAt":"2021-01-02T03:04:05.678Z","zone":{"b":[1.0,null]}}`,
		`{"serverId":"a","location":null,"createdAt":"yesterday"}`, `{"SERVERID":"a","serverId":"b"}`, `{"serverId":"\ud800"}`,
		`{"serverId":"a","x":"<&>\u2028"}`, `{"serverId":"a","x":1e999}`, ` { "serverId" : "a" } `, `null`, `[]`, `{"serverId":"a","serverId":null}`,
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, entry []byte) {
		var s wire.Server
		if json.Unmarshal(entry, &s) != nil {
			return
		}
		if s.ServerID == "" {
			t.Fatalf("%q was accepted without an id", entry)
		}
		out, err := json.Marshal(s)
		if err != nil {
			t.Fatalf("%q was accepted, but cannot be sent on: %v", entry, err)
		}
		// What encoding/json does to all text: blanks go, and what HTML could trip over is escaped.
		if want, err := json.Marshal(json.RawMessage(entry)); err != nil || string(out) != string(want) {
			t.Errorf("%q was sent on as %q, want %q", entry, out, want)
		}
		var again wire.Server
		if err := json.Unmarshal(out, &again); err != nil {
			t.Fatalf("%q was sent on as %q, which is refused: %v", entry, out, err)
		}
		s.Raw, again.Raw = nil, nil
		s.Location, again.Location = nil, nil // may have blanks
		if diff := cmp.Diff(s, again); diff != "" {
			t.Errorf("%q reads differently when sent on (-want +got):\n%s", entry, diff)
		}
	})
}

// Valid JSON is decoded as encoding/json would decode it. Decoding of any other input terminates.
func FuzzItResource(f *testing.F) {
	for _, seed := range []string{
		`{"id":"it","type":"mds","publicBaseUrl":"http://p","servers":[{"serverId":"a","x":{"serverId":"b"}},{"serverId":"\u0062"}],"extra":{"id":[1,"]"]}}`,
		` { "ID" : "a" , "i\u0064" : "it" , "\u017fervers" : [ { "serverId" : "a" } , null , [ ] , 1.5e3 , "x" , true ] } `,
		`{"id":"it","id":null,"servers":[{"serverId":"a"}],"servers":null,"SERVERS":[{"SERVERID":"é\"\\"}]}`, `{"id":"it","servers":{}}`,
		`{"id":"it","":"","\ud800":"\ud800","x":"\\\"","y":"\\"}`, "{\"id\":\"\xff\",\"\xff\":1}", `[{"id":"it"}]`, `"id"`, `null`, ``, `{"id":"it"`, `{"id"`, `{"`, `{"\`, `{:}`, `[[`,
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		_ = new(wire.ItResource).UnmarshalJSON(body) // must terminate
		_ = new(wire.Registered).UnmarshalJSON(body)

		var want struct {
			ID            string            `json:"id"`
			Type          string            `json:"type"`
			PublicBaseURL string            `json:"publicBaseUrl"`
			Servers       []json.RawMessage `json:"servers"`
		}
		wanted := json.Unmarshal(body, &want) == nil && want.ID != ""
		wanted = wanted && wire.CheckResourceID(want.ID) == nil && (want.Type == "" || wire.CheckType(want.Type) == nil) && len(body) <= wire.MaxEntryBytes
		publicErr := wire.CheckPublicURL(want.PublicBaseURL)
		if publicErr != nil {
			want.PublicBaseURL = ""
		}
		var it wire.ItResource
		if err := json.Unmarshal(body, &it); (err == nil) != wanted {
			t.Fatalf("%q: %v, want it read: %v", body, err, wanted)
		} else if err != nil {
			return
		}
		if it.ID != want.ID || it.Type != want.Type || it.PublicBaseURL != want.PublicBaseURL {
			t.Errorf("%q: %q %q %q, want %q %q %q", body, it.ID, it.Type, it.PublicBaseURL, want.ID, want.Type, want.PublicBaseURL)
		}
		var extra map[string]json.RawMessage
		if err := json.Unmarshal(body, &extra); err != nil {
			t.Fatal(err)
		}
		for _, known := range []string{"id", "type", "publicBaseUrl", "servers"} {
			delete(extra, known)
		}
		if diff := cmp.Diff(extra, it.Extra); diff != "" {
			t.Errorf("%q (-want +got):\n%s", body, diff)
		}
		var named []string
		for _, raw := range want.Servers {
			var s struct {
				ServerID string          `json:"serverId"`
				Location json.RawMessage `json:"location"`
			}
			if json.Unmarshal(raw, &s) == nil && wire.CheckServerID(s.ServerID) == nil && len(raw) <= wire.MaxEntryBytes && wire.CheckLocation(s.Location) == nil {
				named = append(named, s.ServerID+" "+string(raw))
			}
		}
		var got []string
		for _, s := range it.Servers {
			got = append(got, s.ServerID+" "+string(s.Raw))
		}
		if diff := cmp.Diff(named, got); diff != "" || (it.Skipped != nil) != (len(got) < len(want.Servers) || publicErr != nil) {
			t.Errorf("%q, left out %v (-want +got):\n%s", body, it.Skipped, diff)
		}
		if _, err := json.Marshal(it); err != nil {
			t.Errorf("%q cannot be sent on: %v", body, err)
		}
	})
}

func marshal(t *testing.T, v any) string {
	t.Helper()
	b, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}
