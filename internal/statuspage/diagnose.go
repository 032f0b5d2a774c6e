package statuspage

import (
	"cmp"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"
)

// A Finding is a problem with its likely cause, in plain words.
type Finding struct {
	Severity Severity `json:"severity"`
	Title    string   `json:"title"`
	Cause    string   `json:"cause"`
	Remedy   string   `json:"remedy,omitempty"`
	Evidence string   `json:"evidence,omitempty"` // the error, as it was received
	Servers  []string `json:"servers,omitempty"`
}

// A Severity is the urgency of a finding.
type Severity string

// The severities.
const (
	Error   Severity = "error"
	Warning Severity = "warning"
)

const (
	// Rejected callers and removals of this node are reported for this long.
	recent = 15 * time.Minute
	// Clocks that differ by less are not reported.
	maxClockSkew = 30 * time.Second
)

// Diagnose sets the findings of a page, and the problem of each peer.
func (p *Page) Diagnose() {
	p.Findings = slices.Concat(p.ownProblem(), p.clock(), p.callers(), p.removed(), p.conflicts(), p.peerProblems(), p.evicted(), p.checkProblems(), p.alone())
	slices.SortStableFunc(p.Findings, func(a, b Finding) int { return cmp.Compare(a.Severity, b.Severity) })
}

func (p *Page) ownProblem() []Finding {
	if p.State == "registered" || p.State == "left" || p.Problem == nil {
		return nil
	}
	f := Finding{Severity: Error, Evidence: p.Problem.Text, Servers: []string{p.ServerID}}
	what := p.registryProblem(*p.Problem, cmp.Or(p.Problem.Remote, "registry"), &f)
	f.Title = "This node is not registered: " + what
	if p.State == "degraded" {
		f.Severity = Warning
		f.Title = fmt.Sprintf("This node could not renew its lease, which expires in %s: %s", p.Remaining, what)
	}
	return []Finding{f}
}

// registryProblem returns a short description of why a request to the registry or to the token
// service failed. It sets the cause and the remedy.
func (p *Page) registryProblem(r Result, remote string, f *Finding) string {
	switch text := strings.ToLower(r.Text); {
	case r.StatusCode == http.StatusConflict && strings.Contains(text, "full"):
		f.Cause = "The registry has reached the number of servers that it allows for one cluster. It accepts renewals, but no further server."
		f.Remedy = "Remove servers that no longer run, wait until their leases expire, or raise the limit of the registry."
		return "the registry is full"
	case r.StatusCode == http.StatusUnauthorized, r.StatusCode == http.StatusForbidden, r.StatusCode == http.StatusBadRequest && remote == "token service":
		if remote == "token service" {
			f.Cause = "The token service does not accept the client of this node, or does not allow the audience that it requests."
			f.Remedy = "Check OAUTH_CLIENT_ID, OAUTH_CLIENT_SECRET and the audiences that the token service allows for this client."
			return "the token service gives it no token"
		}
		what := tokenProblem(r.Text)
		if what.name == unknownReason {
			others := "the issuer or the key differs."
			if !p.clockAgrees() {
				others = "the issuer, the key or the clock differs."
			}
			what = tokenReason{
				"most likely a wrong audience", "The registry does not say why. Most likely this node requests tokens for another audience than that of the registry. " +
					"Otherwise " + others, "Compare {audience}, and OAUTH_ISSUER with its issuer. The log and the status page of the registry have the reason.",
			}
		}
		f.Cause = "The registry rejects the token of this node. " + what.cause
		f.Remedy = strings.ReplaceAll(what.remedy, "{audience}", "MIT_AUDIENCE of this node with the audience of the registry")
		return "the registry rejects its token (" + what.name + ")"
	case r.StatusCode == http.StatusTooManyRequests, r.StatusCode == http.StatusServiceUnavailable:
		f.Cause = "The " + remote + " is overloaded or starting. The node keeps trying."
		return "the " + remote + " is not available"
	case r.StatusCode != 0:
		f.Cause = fmt.Sprintf("The %s answered with the status %d.", remote, r.StatusCode)
		f.Remedy = "Check the URL of the " + remote + " and its log."
		return "the " + remote + " answers with an error"
	case r.Kind == "tls":
		f.Cause = "No TLS connection to the " + remote + " is possible: its certificate is not trusted, has expired, or is for another name."
		return "the certificate of the " + remote + " is not accepted"
	case r.Kind == "refused", r.Kind == "connection_lost", r.Kind == "timeout":
		f.Cause = "The " + remote + " is down, its URL is wrong, or the network between it and this node is interrupted."
		f.Remedy = "The node keeps trying, and recovers without a restart."
		return "the " + remote + " cannot be reached"
	}
	f.Cause = r.Text
	f.Evidence = ""
	return "it has not registered yet"
}

const (
	unknownReason = "token rejected"
	wrongClock    = "wrong clock"
)

// A tokenReason is why a token was rejected.
type tokenReason struct{ name, cause, remedy string }

// tokenProblem finds the reason in the text of a response. The texts are those of this library and
// of the npm module.
func tokenProblem(text string) tokenReason {
	has := func(words ...string) bool {
		return slices.ContainsFunc(words, func(w string) bool { return strings.Contains(strings.ToLower(text), w) })
	}
	switch {
	case has("audience"):
		return tokenReason{"wrong audience", "The token was issued for another audience than the receiver expects.", "Compare {audience}."}
	case has("expired", "not valid yet", "not active", "before issued"):
		return tokenReason{
			wrongClock, "The token is not valid at this time: the clock of the sender, of the receiver or of the token service is wrong.",
			"Synchronize the clocks, for example by NTP.",
		}
	case has("issuer"):
		return tokenReason{"wrong issuer", "The receiver expects tokens of another token service.", "Compare OAUTH_ISSUER of both sides."}
	case has("signature", "unverifiable", "kid"):
		return tokenReason{
			"wrong key", "The receiver verifies tokens with another key than the token service signs with.",
			"Compare OAUTH_GENERIC_KEY or OAUTH_CLIENT_ACCESS_KEY of the receiver with the key of the token service.",
		}
	case has("its type", "cluster token"):
		return tokenReason{"wrong type", "The token belongs to another type of service.", "Compare SERVER_TYPE and the type of the client at the token service."}
	}
	return tokenReason{unknownReason, "The reason is in the response.", "See the log of the receiver."}
}

// clockAgrees reports whether the clock of this node is that of the registry.
func (p *Page) clockAgrees() bool { return time.Duration(p.ClockAhead).Abs() <= maxClockSkew }

func (p *Page) clock() []Finding {
	if p.clockAgrees() {
		return nil
	}
	direction := "ahead of"
	if p.ClockAhead < 0 {
		direction = "behind"
	}
	return []Finding{{
		Severity: Error,
		Title:    fmt.Sprintf("Wrong clock: this node is %s %s the registry", Duration(time.Duration(p.ClockAhead).Abs()), direction),
		Cause:    "A token is valid for a time only. With a wrong clock, this node rejects valid tokens of peers, or peers reject its tokens.",
		Remedy:   "Synchronize the clocks of this node and of the registry, for example by NTP.",
		Servers:  []string{p.ServerID},
	}}
}

func (p *Page) callers() []Finding {
	c := p.Callers
	if c.RejectedInARow == 0 || p.Now.Sub(c.LastRejected) > recent {
		return nil
	}
	what := tokenProblem(c.RejectionReason)
	f := Finding{
		Severity: Warning,
		Title:    fmt.Sprintf("This node rejects the token of a caller (%s)", what.name),
		Cause:    what.cause,
		Remedy:   strings.ReplaceAll(what.remedy, "{audience}", p.Settings.receivedAudience("this node")+" with the audience of the callers' tokens"),
		Evidence: fmt.Sprintf("%s, from %s", c.RejectionReason, c.RejectionAddress),
		Servers:  []string{p.ServerID},
	}
	if c.RejectedInARow >= 2 && c.LastAccepted.IsZero() || c.RejectedInARow >= 5 {
		f.Severity = Error
		f.Title = fmt.Sprintf("This node rejects the tokens of all its callers (%s)", what.name)
		f.Cause += " So peers cannot call this node. The fault is likely on this node."
	}
	return []Finding{f}
}

func (p *Page) removed() []Finding {
	for _, e := range p.Events {
		if e.Kind == Removed && p.Now.Sub(e.At) <= recent {
			return []Finding{{
				Severity: Error,
				Title:    "Another server had this node removed, because it could not reach it",
				Cause: fmt.Sprintf("This node reaches the registry, but at least one peer gets no response from %s. "+
					"A firewall may block this direction, or the address is wrong.", p.Address),
				Remedy:  "Run the two-way check to see which peers lack this node. Allow connections from all peers to this address and port.",
				Servers: []string{p.ServerID},
			}}
		}
	}
	return nil
}

func (p *Page) conflicts() (findings []Finding) {
	for _, text := range p.Conflicts {
		findings = append(findings, Finding{
			Severity: Error, Title: "Two running processes use the same server id", Evidence: text,
			Cause:  "Peers call only one of the two at a time.",
			Remedy: "Give each process its own SERVER_ID.",
		})
	}
	return findings
}

func (p *Page) alone() []Finding {
	if p.State != "registered" || len(p.Peers) > 1 {
		return nil
	}
	return []Finding{{
		Severity: Warning,
		Title:    "This node knows no other server",
		Cause:    fmt.Sprintf("The registry lists no other server of the type %q. The others are not registered, or use another registry or another type.", p.Service),
		Remedy:   "Compare MIT_URL and SERVER_TYPE of the nodes, and look at the status page of the missing one.",
	}}
}

// peerProblems sets the problem of each peer, and returns one finding for each kind of problem.
func (p *Page) peerProblems() (findings []Finding) {
	index := make(map[string]int)
	for i := range p.Peers {
		peer := &p.Peers[i]
		d, ok := p.diagnosePeer(peer)
		if !ok {
			continue
		}
		peer.Problem = d.problem
		at, known := index[d.problem]
		if !known {
			at, index[d.problem] = len(findings), len(findings)
			findings = append(findings, Finding{Severity: Error, Title: d.problem, Cause: d.cause, Remedy: d.remedy, Evidence: d.evidence})
		}
		findings[at].Servers = append(findings[at].Servers, peer.ID)
	}
	for i := range findings {
		p.name(&findings[i])
	}
	return findings
}

// evicted returns a finding for each server that this node has evicted a short time ago, and that
// has not returned.
func (p *Page) evicted() (findings []Finding) {
	for _, g := range p.Gone {
		if !g.Evicted || p.Now.Sub(g.At) > recent {
			continue
		}
		f := Finding{
			Severity: Warning, Title: g.ID + " is missing: this node evicted it, because it could not be reached", Servers: []string{g.ID}, Evidence: g.Reason,
			Cause: "Its process has stopped, or the network between this node and it is interrupted. If it is running, it returns with its next renewal.",
		}
		if !g.CalledUs.IsZero() && p.Now.Sub(g.CalledUs) <= recent {
			f.Severity = Error
			f.Title = g.ID + " is missing: this node evicted it, but it was running"
			f.Cause = fmt.Sprintf("%s But requests from this node to %s get no response. If it has not stopped since, a firewall blocks this direction.",
				requestsArrive(p.Now.Sub(g.CalledUs)), g.Address)
			f.Remedy = "Check that the process runs. If it does, allow connections from this node to that address and port."
		}
		findings = append(findings, f)
	}
	return findings
}

func requestsArrive(ago time.Duration) string {
	return fmt.Sprintf("Requests from its host arrive here, the last one %s ago.", Duration(ago))
}

// name adds the servers to the title. If all peers have the same problem, this node is its likely
// cause.
func (p *Page) name(f *Finding) {
	others := 0
	for _, peer := range p.Peers {
		if !peer.Self {
			others++
		}
	}
	if n := len(f.Servers); n == others && n > 1 {
		f.Cause += " All peers show this problem, so the fault is likely on this node."
	}
	f.Title = fmt.Sprintf("%s: %s", list(f.Servers, 3), f.Title)
}

// list joins at most n names.
func list(names []string, n int) string {
	if len(names) > n+1 {
		return fmt.Sprintf("%s and %d more", strings.Join(names[:n], ", "), len(names)-n)
	}
	return strings.Join(names, ", ")
}

// A peerDiagnosis is the problem of a peer.
type peerDiagnosis struct{ problem, cause, remedy, evidence string }

func (p *Page) diagnosePeer(peer *Peer) (d peerDiagnosis, found bool) {
	r := peer.Last
	if m := peer.Membership; m.failed() && (m.StatusCode != 0 || m.Kind == "malformed") {
		r = m // calls may succeed nevertheless
	}
	if peer.Self || !r.failed() {
		return d, false
	}
	d.evidence = r.Text
	switch {
	case r == peer.Membership && notMounted(*r):
		d.problem = "its peer endpoints are not mounted"
		d.cause = "The process responds, but not at the path where peers announce themselves. So it never learns of new nodes, except from the registry."
		d.remedy = "Call Mount (or register Routes) in the service, under the same SERVER_BASE_PATH or SERVER_CLUSTER_BASE_URL that it registers."
	case rejectsToken(*r):
		what := tokenProblem(r.Text)
		d.problem = "rejects the token of this node (" + what.name + ")"
		d.cause = what.cause
		if what.name == wrongClock && p.clockAgrees() {
			d.cause += " The clock of this node agrees with that of the registry: check that of the peer first."
		}
		d.remedy = strings.ReplaceAll(what.remedy, "{audience}", p.Settings.PeerAudience+" of this node with "+p.Settings.receivedAudience("that node"))
	case r.StatusCode == http.StatusNotFound:
		d.problem = "does not know the path of the last request"
		d.cause = "The node responds, but its service has no such endpoint. Its version may be older."
	case r.StatusCode != 0 && r.Kind == "status":
		d.problem = fmt.Sprintf("answers with the status %d", r.StatusCode)
		d.cause = "The node can be reached. The error comes from its service."
		d.remedy = "See the log of that node."
	default:
		d = p.diagnoseSilence(peer, *r)
	}
	return d, true
}

// notMounted reports whether the response to an announcement shows that there is no such endpoint.
func notMounted(r Result) bool {
	return r.StatusCode == http.StatusNotFound || r.StatusCode == http.StatusMethodNotAllowed || r.Kind == "malformed"
}

func rejectsToken(r Result) bool {
	switch r.StatusCode {
	case http.StatusUnauthorized, http.StatusForbidden:
		return true
	case http.StatusBadRequest:
		return strings.Contains(r.Text, "invalid token")
	}
	return false
}

// diagnoseSilence describes a peer from which no usable response came.
func (p *Page) diagnoseSilence(peer *Peer, r Result) peerDiagnosis {
	d := peerDiagnosis{evidence: r.Text}
	alive := p.signsOfLife(peer)
	switch r.Kind {
	case "timeout", "circuit_open", "connection_lost":
		if alive == "" {
			d.problem = "does not respond"
			d.cause = "The machine is down, the network is interrupted, or the process hangs."
			d.remedy = "Check that the process runs. If it does, check the network from this node to its address."
			return d
		}
		d.problem = "is running, but this node gets no response from it: a firewall blocks this direction, or it hangs"
		d.cause = fmt.Sprintf("%s Requests from this node to %s get no response. Either a firewall blocks this direction, "+
			"or the process accepts connections, but hangs.", alive, peer.Address)
		if r.NotConnected {
			d.problem = "is running, but this node cannot connect to it: a firewall blocks this direction"
			d.cause = fmt.Sprintf("%s But no connection from this node to %s can be established. A firewall drops them, or the network has no route.", alive, peer.Address)
		}
		d.remedy = "Allow connections from this node to that address and port. If they are allowed, look for a deadlock or overload of that process."
	case "refused":
		d.problem = "refuses connections"
		d.cause = "Nothing listens at its address: the process has stopped."
		if alive != "" {
			d.cause = alive + " But nothing listens at its address, as seen from this node: the address or the port that it registers is wrong, or a firewall rejects connections."
			d.remedy = "Check SERVER_CLUSTER_BASE_URL, and firewalls from this node to that address and port."
		}
	case "wrong_server":
		d.problem = "another server answers at its address"
		d.cause = "The process has stopped, and its address now belongs to another server. Its entry disappears when its lease expires."
	case "not_allowed":
		d.problem = "this node may not call its address"
		d.cause = "The address is not allowed by the policy of this node (CLUSTER_PEER_NETWORKS, or WithPeerPolicy)."
	case "tls":
		d.problem = "no TLS connection to it is possible"
		d.cause = "A certificate is not trusted, has expired, or is for another name."
	case "no_token":
		d.problem = "was not called, because this node has no token"
		d.cause = "The token service gives this node no token. See the events and the token service."
	case "not_confirmed":
		d.problem = "was not called, because the registry has not confirmed it"
		d.cause = "The node is known from an announcement only, and has never responded. Such nodes share a part of the slots, and none was free in time."
	case "local_fault":
		d.problem = "was not called, because of a fault of this machine"
		d.cause = "This machine cannot send requests. It has no file descriptors, ports or memory left, a local firewall blocks them, or no resolver responds."
	default:
		d.problem = "does not give a usable response"
		d.cause = "The response is too large, or is not one of a node of this cluster."
	}
	return d
}

// signsOfLife returns what shows that a peer is running; empty if there is nothing.
func (p *Page) signsOfLife(peer *Peer) string {
	if !peer.CalledUs.IsZero() && p.Now.Sub(peer.CalledUs) <= recent {
		return requestsArrive(p.Now.Sub(peer.CalledUs))
	}
	if peer.Evictions > 0 {
		return "It was evicted, and has registered again."
	}
	for _, e := range p.Events {
		if e.ServerID == peer.ID && e.Kind == Kept && e.Cause == "alive" {
			return "It has renewed its lease at the registry since."
		}
	}
	return ""
}

func (p *Page) checkProblems() []Finding {
	if p.Check == nil || p.Check.Err != "" {
		return nil
	}
	var missing []string
	var self []string
	for _, row := range p.Check.Servers {
		switch {
		case len(row.MissingIn) == 0:
		case row.Self:
			self = row.MissingIn
		default:
			missing = append(missing, row.ID)
		}
	}
	var findings []Finding
	ago := fmt.Sprintf("The two-way check %s ago has found this.", p.Check.Ago)
	if len(self) > 0 {
		findings = append(findings, Finding{
			Severity: Error, Title: "This node is missing in the views of " + list(self, 3), Servers: []string{p.ServerID},
			Cause:    "These peers do not call this node. They removed it because they got no response, or did not receive its announcement.",
			Remedy:   "Look at the status pages of these peers. Views also differ for a moment after a change: repeat the check.",
			Evidence: ago,
		})
	}
	if len(missing) > 0 {
		findings = append(findings, Finding{
			Severity: Warning, Title: "Some views lack " + list(missing, 3), Servers: missing, Evidence: ago,
			Cause:  "Not all nodes have these servers in their views. The table of the two-way check shows which.",
			Remedy: "Look at the status pages of the nodes that lack them. Views also differ for a moment after a change: repeat the check.",
		})
	}
	return findings
}

// departureReason describes why a server has left the view.
func departureReason(e Event) string {
	switch {
	case e.Kind == Evicted:
		text := "evicted by this node, because it could not be reached"
		if e.Text != "" {
			text += ": " + e.Text
		}
		return text
	case e.Cause == "departure":
		return "a peer reported that it has left: it shut down, or that peer could not reach it and evicted it"
	case e.Cause == "registry":
		return "the registry no longer lists it: its lease has expired because it stopped or lost the registry, or it has left"
	}
	return "it has left"
}

// Settings are the names of the settings that findings refer to.
type Settings struct{ PeerAudience, ReceivedAudience string }

func (s Settings) receivedAudience(of string) string { return s.ReceivedAudience + " of " + of }
