package keyserver

import (
	"crypto"
	"crypto/rsa"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/tlsski/tlsski/ski"
)

// Policy says which peer may use which key, and how. What no rule grants is
// denied. It is made by LoadPolicy or ParsePolicy and does not change.
//
// A peer can be several edges of the policy at once, by its fingerprint and by
// each name in its certificate. It then has the rights of all of them: a
// request is granted where one rule of one of them grants the whole of it.
type Policy struct {
	edges  []*edge
	bySPKI map[ski.KeyID][]*edge
	byDNS  map[string][]*edge // in lower case
	byURI  map[string][]*edge
	keys   map[ski.KeyID]string // the names of all keys
	limits limits
}

// edge is a peer that the policy knows, with the rules that are for it.
type edge struct {
	name  string
	rules []*rule
}

// rule grants what satisfies all its dimensions.
type rule struct {
	number      int // in the file, from 1
	keys        map[ski.KeyID]bool
	methods     map[ski.Method]bool
	protocols   map[ski.Protocol]bool
	serverNames []string // in lower case; none means any
	legacy      legacy
}

// access is what a request asks of the policy, besides who asks.
type access struct {
	key        ski.KeyID
	method     ski.Method
	protocol   ski.Protocol
	serverName string // in lower case
	legacy     legacy
}

// dimensions are what a rule can limit, in the order in which they are looked
// at: the reason of a denial is the one that the best rule stopped at.
var dimensions = []struct {
	denial string
	grants func(*rule, *access) bool
}{
	{"no rule grants the key", func(r *rule, a *access) bool { return r.keys[a.key] }},
	{"no rule grants the method", func(r *rule, a *access) bool { return r.methods[a.method] }},
	{"no rule grants the protocol", func(r *rule, a *access) bool { return r.protocols[a.protocol] }},
	{"no rule grants the server name", func(r *rule, a *access) bool { return r.grantsName(a.serverName) }},
	{"no rule grants the legacy algorithm", func(r *rule, a *access) bool { return a.legacy&^r.legacy == 0 }},
}

const denialUnknownPeer = "the policy does not know the peer"

// decide reports whether one of the edges may do a, and if none may, why.
func (p *Policy) decide(edges []*edge, a access) (denial string, ok bool) {
	if len(edges) == 0 {
		return denialUnknownPeer, false
	}
	furthest := 0
	for _, e := range edges {
		for _, r := range e.rules {
			reached := r.reaches(&a)
			if reached == len(dimensions) {
				return "", true
			}
			furthest = max(furthest, reached)
		}
	}
	return dimensions[furthest].denial, false
}

// reaches returns how many dimensions grant a before one does not.
func (r *rule) reaches(a *access) int {
	for i, d := range dimensions {
		if !d.grants(r, a) {
			return i
		}
	}
	return len(dimensions)
}

// grantsName compares as RFC 9525, Section 6.3, does: without regard to case,
// and with "*" for one whole leftmost label.
func (r *rule) grantsName(name string) bool {
	if len(r.serverNames) == 0 {
		return true
	}
	_, parent, _ := strings.Cut(name, ".")
	for _, granted := range r.serverNames {
		if suffix, wild := strings.CutPrefix(granted, "*."); wild && parent == suffix {
			return true
		}
		if name == granted && name != "" {
			return true
		}
	}
	return false
}

// match returns the edges that the peer is.
func (p *Policy) match(peer ski.Peer) []*edge {
	found := slices.Clone(p.bySPKI[peer.SPKI])
	add := func(edges []*edge) {
		for _, e := range edges {
			if !slices.Contains(found, e) {
				found = append(found, e)
			}
		}
	}
	for _, name := range peer.DNSNames {
		add(p.byDNS[strings.ToLower(name)])
	}
	for _, uri := range peer.URIs {
		add(p.byURI[uri])
	}
	return found
}

func newAccess(req *ski.Request, k key, alg algorithm) access {
	a := access{
		key:        k.id,
		method:     req.KeyExchange(),
		protocol:   req.Protocol,
		serverName: strings.ToLower(req.ServerName),
	}
	if a.method != ski.MethodRSA {
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

// legacyWords returns the words that the rule has switched on.
func (r *rule) legacyWords() []string {
	var words []string
	for _, s := range legacySwitches {
		if s.algorithm&r.legacy != 0 || r.protocols[s.protocol] {
			words = append(words, s.word)
		}
	}
	return words
}

// Right is what one rule grants one edge with one key.
type Right struct {
	Edge        string
	KeyName     string
	Key         ski.KeyID
	Methods     []ski.Method
	Protocols   []ski.Protocol
	ServerNames []string // none means any
	Legacy      []string
}

// Rights returns all that the policy grants, by edge in the file's order and
// by the key's name.
func (p *Policy) Rights() []Right {
	var rights []Right
	for _, e := range p.edges {
		for _, r := range e.rules {
			ids := slices.SortedFunc(maps.Keys(r.keys), func(a, b ski.KeyID) int {
				return strings.Compare(p.keys[a], p.keys[b])
			})
			for _, id := range ids {
				rights = append(rights, Right{
					Edge:        e.name,
					KeyName:     p.keys[id],
					Key:         id,
					Methods:     keep(ski.Methods(), r.methods),
					Protocols:   keep(ski.Protocols(), r.protocols),
					ServerNames: r.serverNames,
					Legacy:      r.legacyWords(),
				})
			}
		}
	}
	return rights
}

// keep returns those of all that are in the set, in their order.
func keep[T comparable](all []T, set map[T]bool) []T {
	return slices.DeleteFunc(all, func(v T) bool { return !set[v] })
}

// EdgeCount returns how many edges the policy knows.
func (p *Policy) EdgeCount() int { return len(p.edges) }

// Warnings returns a line for each thing that the policy allows and that is
// not safe any more.
func (p *Policy) Warnings() []string {
	var warnings []string
	seen := make(map[int]bool)
	for _, e := range p.edges {
		for _, r := range e.rules {
			if words := r.legacyWords(); len(words) > 0 && !seen[r.number] {
				seen[r.number] = true
				warnings = append(warnings, fmt.Sprintf("policy rule %d allows legacy %s", r.number, strings.Join(words, ", ")))
			}
		}
	}
	return warnings
}
