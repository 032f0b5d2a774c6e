package apitest

import (
	"regexp"
	"sync"
)

// A deviation is a difference between exchanges and the documents that is intended.
type deviation struct {
	problem *regexp.Regexp
	reason  string
	random  bool // depends on chance, so it need not occur
}

// deviations is the list of all of them.
var deviations = sync.OnceValue(func() (all []deviation) { //nolint:gochecknoglobals // the regular expressions are compiled once
	add := func(problem, reason string) { all = append(all, deviation{regexp.MustCompile(problem), reason, false}) }

	// What nodes and registries do on purpose.
	add(`request of a Go node: HEAD has no operation`, "a probe of a peer whose connection was lost: any response will do, see node.yaml")
	add(`request of a Go node, createItResource: .*(Authorization header was not found|content type)`, "a node checks its own address, without a token and a body: see the status 204")
	add(`accepted request of a test, (createItResource|registerServer|requestToken): POST operation request content type`, "the type of a body is not checked")
	add(`createItResource.*property '(big|n|x|region)' at`, "unknown fields of an itResource and its entries are passed on unchanged")
	add(`response of a Go node, createItResource 200: .*(updatedAt: got number, want string|location: got string, want object)`, "malformed values of an announced entry are passed on unchanged")

	// What npm nodes do otherwise: see docs/protocol.md.
	add(`response of a npm node, \w+ \d+: response header 'X-Powered-By'`, "express names itself")

	// What tests add to nodes and registries.
	add(`request of a Go node, requestToken: request header 'X-Signature'`, "a header of a RoundTripper of the program")
	add(`response of a Go node: (200|401) to HEAD without an operation`, "a handler of the service for all paths, in tests of the probe")
	add(`response of a Go node, createItResource 404`, "a node without the endpoints, which the status page names")
	add(`response of a registry, registerServer 200: .*'createdAt', 'updatedAt'`, "a store of a test whose entries have no dates")

	// Handlers of tests that stand for a registry, a token service or a peer.
	for test, reason := range map[string]string{
		"TestConflictInTheResponse":                 "a shortened response",
		"TestConflictsAreBounded":                   "a response without a content type",
		"TestDepartureIsRepeatedDespiteTheRegistry": "a response without an error",
		"TestDepartureKeepsTheSuccessor":            "a shortened response",
		"TestDepartureWithoutDates":                 "a registry whose entries have no dates",
		"TestDoubtfulTokenIsReplacedOnce":           "the statuses for a token that is too long or malformed",
		"TestEchoedSecretsAreRedacted":              "responses that repeat the secrets of the request",
		"TestEntryWithoutTimestampIsNotEvicted":     "a registry whose entries have no dates",
		"TestEnvironmentWithControlCharacters":      "an error with control characters",
		"TestErrorsQuoteLittle":                     "responses that are long or malformed",
		"TestEvictionFailsOver":                     "a response without data and server",
		"TestEvictionNeedsConfirmation":             "all responses that do not confirm an eviction",
		"TestFailedRenewalIsRetriedWithinTheLease":  "all responses after which a renewal is retried",
		"TestFailoverAndFailback":                   "all responses after which another replica is tried",
		"TestForeignRegistryResource":               "an itResource with an invalid type or public address",
		"TestGuestRejectsInvalidLists":              "all responses that are not a view",
		"TestInvalidEntriesAreSkipped":              "invalid entries",
		"TestInvalidResponseNamesItsReplica":        "a list without the node",
		"TestLeaseTimeValues":                       "lease times of all types",
		"TestMissedAnnouncementIsRepeated":          "all responses after which an announcement is repeated",
		"TestNewerEntriesAreBounded":                "a response without a content type",
		"TestNewerEntryIsChecked":                   "a newer entry with an address that is not allowed",
		"TestNoFailoverOnClientErrors":              "all statuses that are final",
		"TestNoToken":                               "a response that is not JSON",
		"TestPageShowsNoSecret":                     "a response with markup and secrets",
		"TestPartialListKeepsView":                  "all responses that do not become the view",
		"TestRegisterEndsWithItsContext":            "a response that is not JSON",
		"TestRejectedAnnouncement":                  "all statuses of a rejected announcement",
		"TestRenewalsAreJittered":                   "a response without a content type",
		"TestReportedAsDepartedRepeatedly":          "a status that refuses an announcement",
		"TestRetryAfter":                            "a response without a content type",
		"TestTokenErrorNamesTheRequestOnce":         "a response without a token",
		"TestTokenServiceAsksForPause":              "a response without a content type",
		"fakePeer":                                  "a peer that answers every request with a list, as an endpoint of a service",
		"fixedworld.Start":                          "a peer that answers every request with a list, as an endpoint of a service",
		"hideOtherServers":                          "a response without a content type",
		"serve":                                     "faults of the token service",
		"redirectHandler":                           "a redirect, which nodes do not follow",
	} {
		add(`^response of a test \S*\b`+regexp.QuoteMeta(test)+`\b`, reason)
	}
	all = append(all, deviation{
		regexp.MustCompile(`^response of a test \S*\b(TestOneOutcomePerPeer|TestOneOutcomePerSelectedPeer|FailureModes|simulation)\b`),
		"random faults", true,
	})
	all = append(all, deviation{
		regexp.MustCompile(`^response of a Go node, (removeServer 200|registerServer 200: .*missing property 'itResource')`),
		"a node at the address of the registry, which another node asks in some runs", true,
	})
	return all
})
