package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/textproto"
	"os"
	"slices"
	"strings"
	"sync"
	"time"
)

const hostileAddress = "127.66.6.6"

// Outcomes of the inputs of the hostile client. Further outcomes are "status" with a code.
const (
	accepted     = "accepted"    // an entry: the response lists it
	begun        = "begun"       // a list: the first bytes have arrived
	stayedOpen   = "stayed open" // an idle connection
	closed       = "closed"      // by the registry
	notConnected = "no connection"
	noResponse   = "no response"
	noList       = "no list" // status 200 without a list
)

// A hostileLoad is what the hostile client does in each round.
type hostileLoad struct {
	rounds  int // 0: until the time is over
	entries int // long entries that it registers
	lists   int // requests for lists that it does not read
	idle    int // connections without a request
	// hold is how long lists and connections are held. By default it is below five seconds, after
	// which a registry closes a connection without a request even if it has no other limit.
	hold time.Duration
}

// A hostileClient is a client with an address and a type of its own that misbehaves.
type hostileClient struct {
	p                    *process
	load                 hostileLoad
	dialer               net.Dialer
	entries, lists, idle tally
}

func newHostileClient(p *process, load hostileLoad) *hostileClient {
	return &hostileClient{p: p, load: load, dialer: net.Dialer{
		LocalAddr: &net.TCPAddr{IP: net.ParseIP(hostileAddress)}, Timeout: 5 * time.Second,
	}}
}

// attack makes all attacks in each round, and returns after the last one or when ctx ends.
func (h *hostileClient) attack(ctx context.Context) {
	client := &http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{
		DialContext: h.dialer.DialContext, DisableKeepAlives: true, DisableCompression: true,
	}}
	for round := 0; ctx.Err() == nil && (h.load.rounds == 0 || round < h.load.rounds); round++ {
		for i := 0; i < h.load.entries && ctx.Err() == nil; i++ {
			h.entries.count(ctx, h.register(ctx, client, i))
		}
		h.holdConnections(ctx)
	}
}

// register registers a long entry, and reads the response.
func (h *hostileClient) register(ctx context.Context, client *http.Client, i int) (outcome string) {
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://"+h.p.address+resourcesPath, strings.NewReader(hostileBody(i)))
	if err != nil {
		return noResponse
	}
	r.Header.Set("Authorization", "Bearer "+h.p.tokens[typeHostile])
	res, err := client.Do(r)
	if err != nil {
		return noResponse
	}
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	switch {
	case err != nil:
		return noResponse
	case res.StatusCode != http.StatusOK:
		return fmt.Sprintf("status %d", res.StatusCode)
	case !strings.Contains(string(body), fmt.Sprintf(`"serverId":"evil-%d"`, i)):
		return noList
	}
	return accepted
}

// holdConnections requests lists that it does not read, opens idle connections, and closes all
// after some time.
func (h *hostileClient) holdConnections(ctx context.Context) {
	var lists, idle []net.Conn
	var wg sync.WaitGroup
	connect := func(t *tally) net.Conn {
		c, err := h.dialer.DialContext(ctx, "tcp", h.p.address)
		if err != nil {
			t.count(ctx, notConnected)
			return nil
		}
		return c
	}
	for i := 0; i < h.load.lists && ctx.Err() == nil; i++ {
		if c := connect(&h.lists); c != nil {
			lists = append(lists, c)
			wg.Go(func() { h.lists.count(ctx, h.requestList(c, i)) })
		}
	}
	for i := 0; i < h.load.idle && ctx.Err() == nil; i++ {
		if c := connect(&h.idle); c != nil {
			idle = append(idle, c)
		}
	}
	pause(ctx, h.load.hold)
	for _, c := range idle {
		h.idle.count(ctx, isOpen(c))
	}
	for _, c := range slices.Concat(lists, idle) {
		_ = c.Close()
	}
	wg.Wait()
}

// requestList requests a list, and reads no more of the response than what shows that it is one.
func (h *hostileClient) requestList(c net.Conn, i int) (outcome string) {
	body := hostileBody(i % max(1, h.load.entries))
	_ = c.SetWriteDeadline(time.Now().Add(time.Second))
	_, err := fmt.Fprintf(c, "POST %s HTTP/1.1\r\nHost: mit\r\nAuthorization: Bearer %s\r\nContent-Length: %d\r\n\r\n%s",
		resourcesPath, h.p.tokens[typeHostile], len(body), body)
	if err != nil {
		return closed
	}
	r := textproto.NewReader(bufio.NewReaderSize(c, 1<<10))
	line, err := r.ReadLine()
	if err != nil {
		return unanswered(err)
	}
	if _, status, _ := strings.Cut(line, " "); !strings.HasPrefix(status, "200 ") {
		return "status " + strings.TrimSpace(status[:min(3, len(status))])
	}
	for line != "" && err == nil { // the header
		line, err = r.ReadLine()
	}
	first, _ := r.R.ReadString('{') // after the size of a chunk, if any
	if next, _ := r.R.Peek(12); !strings.HasSuffix(first, "{") || string(next) != `"itResource"` {
		return noList
	}
	return begun
}

// isOpen returns whether a connection has stayed open, as an outcome.
func isOpen(c net.Conn) (outcome string) {
	_ = c.SetReadDeadline(time.Now().Add(time.Millisecond))
	_, err := c.Read(make([]byte, 1))
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return stayedOpen
	}
	return closed
}

// unanswered returns the outcome of a request whose response cannot be read. net.ErrClosed means
// that this program closed the connection, at the end of the round.
func unanswered(err error) (outcome string) {
	if errors.Is(err, net.ErrClosed) {
		return noResponse
	}
	return closed
}

// hostileBody has a location of almost the maximum length. A registry that escapes each "<" as six
// bytes writes an entry with 6.7 kB.
func hostileBody(i int) string {
	location := []byte(strings.Repeat("<xxxxxxx", 500))
	return fmt.Sprintf(`{"type":%q,"serverId":"evil-%d","clusterBaseUrl":"http://10.9.9.9","location":{"name":"%s"}}`, typeHostile, i, location)
}

// check returns an error unless nine tenths of the inputs of one round have arrived: the entries
// are in the lists, the registry has responded to the requests for lists or closed their
// connections, and it has accepted the idle connections or closed them. At least one list must have
// begun.
func (h *hostileClient) check() error {
	arrived := func(name string, t *tally, inputs int, outcomes ...string) error {
		least := (inputs*9 + 9) / 10 // rounded up
		if n := t.sum(outcomes); n < least {
			return fmt.Errorf("the attack did not arrive: %s: %v; at least %d must be %s", name, t, least, strings.Join(outcomes, " or "))
		}
		return nil
	}
	return errors.Join(
		arrived("entries", &h.entries, h.load.entries, accepted),
		arrived("unread lists", &h.lists, min(1, h.load.lists), begun),
		arrived("unread lists", &h.lists, h.load.lists, begun, "status 503", "status 413", closed),
		arrived("idle connections", &h.idle, h.load.idle, stayedOpen, closed),
	)
}

func (h *hostileClient) String() string {
	return fmt.Sprintf("entries: %v\nunread lists: %v\nidle connections: %v", &h.entries, &h.lists, &h.idle)
}

// A tally counts the outcomes of the inputs of one kind.
type tally struct {
	mu       sync.Mutex // guards the field below
	outcomes map[string]int
}

// count adds an outcome, unless ctx has ended, which may be its cause.
func (t *tally) count(ctx context.Context, outcome string) {
	if ctx.Err() != nil {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.outcomes == nil {
		t.outcomes = map[string]int{}
	}
	t.outcomes[outcome]++
}

func (t *tally) sum(outcomes []string) (n int) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, o := range outcomes {
		n += t.outcomes[o]
	}
	return n
}

func (t *tally) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	text, all := "", 0
	for _, o := range slices.Sorted(maps.Keys(t.outcomes)) {
		text += fmt.Sprintf(", %d %s", t.outcomes[o], o)
		all += t.outcomes[o]
	}
	return fmt.Sprintf("%d attempted%s", all, text)
}
