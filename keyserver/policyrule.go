package keyserver

import (
	"crypto"
	"crypto/rsa"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/tlsski/tlsski/ski"
)

// rule grants what satisfies all its dimensions.
type rule struct {
	number      int // in the file, from 1
	keys        *keySet
	methods     map[ski.Method]bool
	protocols   map[ski.Protocol]bool
	algorithms  []string // as the audit log names them; none means any that is not legacy
	legacy      legacy
	groups      map[string]bool
	serverNames []string       // in lower case; none means any
	networks    []netip.Prefix // none means any
	notBefore   time.Time      // zero means always
	notAfter    time.Time      // zero means for ever
}

// access is what a request asks of the policy, besides who asks.
type access struct {
	key        ski.KeyID
	keyName    string
	method     ski.Method
	protocol   ski.Protocol
	algorithm  string // of a signature, as the audit log names it
	legacy     legacy
	group      string // "" where there is none to judge, see groupAsked
	serverName string // in lower case
	address    netip.Addr
	time       time.Time
}

// newAccess returns what a request asks for whose record has been begun.
func newAccess(rec *Record, req *ski.Request, k key, alg algorithm) access {
	a := operationAccess(req, k, alg)
	a.group = rec.Group
	a.serverName = strings.ToLower(req.ServerName)
	// An address comes with the interface it was seen at, and an IPv4 one in
	// the form for a socket of IPv6, where a binding does not take that off.
	a.address = rec.Address.Addr().Unmap().WithZone("")
	a.time = rec.Time
	return a
}

// operationAccess returns what is asked for without the circumstances.
func operationAccess(req *ski.Request, k key, alg algorithm) access {
	a := access{key: k.id, keyName: k.name, method: req.KeyExchange(), protocol: req.Protocol}
	if a.method != ski.MethodRSA {
		a.algorithm = algorithmName(req, alg)
		switch alg.hash {
		case crypto.SHA1:
			a.legacy |= legacySHA1
		case crypto.MD5SHA1:
			a.legacy |= legacyMD5SHA1
		}
	}
	if pub, ok := k.public.(*rsa.PublicKey); ok && pub.N.BitLen() < modernRSABits {
		a.legacy |= legacyShortRSA
	}
	return a
}

// dimension is something that a rule can limit.
type dimension struct {
	denial string
	grants func(*rule, *access) bool
}

// operationDimensions are those of what is to be done, circumstances those of
// when, from where and for which name.
var (
	operationDimensions = []dimension{
		{"no rule grants the key", func(r *rule, a *access) bool { return r.keys.has(a.key, a.keyName) }},
		{"no rule grants the method", func(r *rule, a *access) bool { return r.methods[a.method] }},
		{"no rule grants the protocol", func(r *rule, a *access) bool { return r.protocols[a.protocol] }},
		{"no rule grants the algorithm", (*rule).grantsAlgorithm},
		{"no rule grants the legacy algorithm", func(r *rule, a *access) bool { return a.legacy&^r.legacy == 0 }},
		{"no rule grants the group", (*rule).grantsGroup},
	}
	circumstances = []dimension{
		{"no rule grants the server name", (*rule).grantsName},
		{"no rule grants the source network", (*rule).grantsAddress},
		{"no rule grants the time", (*rule).grantsTime},
	}
	// dimensions are all, in the order in which they are looked at: the reason
	// of a denial is the one that the best rule stopped at.
	dimensions = slices.Concat(operationDimensions, circumstances)
)

// reaches returns how many of the dimensions grant a before one does not.
func (r *rule) reaches(a *access) int { return r.reachesOf(dimensions, a) }

func (r *rule) reachesOf(all []dimension, a *access) int {
	for i, d := range all {
		if !d.grants(r, a) {
			return i
		}
	}
	return len(all)
}

// grantsAlgorithm leaves legacy algorithms, which have no place in the list, to
// their switches. Nothing is signed with MethodRSA.
func (r *rule) grantsAlgorithm(a *access) bool {
	return len(r.algorithms) == 0 || a.method == ski.MethodRSA ||
		a.legacy&(legacySHA1|legacyMD5SHA1) != 0 || slices.Contains(r.algorithms, a.algorithm)
}

// grantsGroup leaves an input whose group cannot be read to the check of its
// structure, which comes when everything else is granted: a peer that may not
// use the key is not told what is wrong with the input.
func (r *rule) grantsGroup(a *access) bool { return a.group == "" || r.groups[a.group] }

// grantsName judges the name that the edge claims the client has asked for. It
// compares as RFC 9525, Section 6.3, does: without regard to case, and with "*" for
// one whole leftmost label.
func (r *rule) grantsName(a *access) bool {
	if len(r.serverNames) == 0 {
		return true
	}
	label, parent, _ := strings.Cut(a.serverName, ".")
	for _, granted := range r.serverNames {
		if suffix, wild := strings.CutPrefix(granted, "*."); wild && parent == suffix && isDNSLabel(label) {
			return true
		}
		if a.serverName == granted && !strings.HasPrefix(granted, "*.") {
			return true
		}
	}
	return false
}

func (r *rule) grantsAddress(a *access) bool {
	return len(r.networks) == 0 || slices.ContainsFunc(r.networks, func(n netip.Prefix) bool { return n.Contains(a.address) })
}

// grantsTime takes both ends as granted, like the validity of a certificate
// (RFC 5280, Section 4.1.2.5).
func (r *rule) grantsTime(a *access) bool {
	return !a.time.Before(r.notBefore) && (r.notAfter.IsZero() || !a.time.After(r.notAfter))
}

// legacy is a set of what is off unless a rule switches it on.
type legacy uint8

const (
	legacySHA1 legacy = 1 << iota
	legacyMD5SHA1
	legacyShortRSA
)

// legacySwitches are the words of a rule's 'legacy' list.
var legacySwitches = []struct {
	word string
	// algorithm or protocol is what the word switches on.
	algorithm legacy
	protocol  ski.Protocol
}{
	{word: "sha-1", algorithm: legacySHA1},
	{word: "md5-sha-1", algorithm: legacyMD5SHA1},
	{word: "rsa-below-2048", algorithm: legacyShortRSA},
	{word: "tls-1.0", protocol: ski.TLS10},
	{word: "tls-1.1", protocol: ski.TLS11},
	{word: "dtls-1.0", protocol: ski.DTLS10},
}

// legacyWords returns the words for what is switched on.
func legacyWords(algorithms legacy, protocols map[ski.Protocol]bool) []string {
	var words []string
	for _, s := range legacySwitches {
		if s.algorithm&algorithms != 0 || protocols[s.protocol] {
			words = append(words, s.word)
		}
	}
	return words
}
