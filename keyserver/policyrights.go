package keyserver

import (
	"crypto/rsa"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/tlsski/tlsski/ski"
)

// Right is what one rule grants one edge with one key, without what the key
// cannot do.
type Right struct {
	Edge        string
	KeyName     string
	Key         ski.KeyID
	Methods     []ski.Method
	Protocols   []ski.Protocol
	Algorithms  []string // none means all that the key can do
	Groups      []string // none means that nothing granted has one
	ServerNames []string // none means any
	Networks    []netip.Prefix
	NotBefore   time.Time // zero means always
	NotAfter    time.Time // zero means for ever
	Legacy      []string
}

// Rights returns all that the policy grants, by edge in the file's order and
// by the key's name.
func (p *Policy) Rights() []Right { return p.rightsOf(p.edges) }

// RightsOf returns what the policy grants a peer, in the same order.
func (p *Policy) RightsOf(peer ski.Peer) []Right { return p.rightsOf(p.match(peer)) }

func (p *Policy) rightsOf(edges []*edge) []Right {
	var rights []Right
	for _, e := range edges {
		for _, r := range e.rules {
			for _, k := range r.keys.in(p.keys) {
				if right, ok := r.right(k); ok {
					right.Edge = e.name
					rights = append(rights, right)
				}
			}
		}
	}
	return rights
}

// right returns what the rule grants with a key. It tries out every operation,
// since what one part of a rule grants another can take away: MD5 and SHA-1 for
// TLS 1.0, say, without which an RSA key cannot sign there.
func (r *rule) right(k key) (right Right, ok bool) {
	methods, protocols, algorithms := make(map[ski.Method]bool), make(map[ski.Protocol]bool), make(map[string]bool)
	var used legacy
	var curves, finiteFields bool
	for _, a := range operationsOf(k) {
		if r.reachesOf(operationDimensions, &a) < len(operationDimensions) {
			continue
		}
		methods[a.method], protocols[a.protocol], algorithms[a.algorithm] = true, true, true
		used |= a.legacy
		if hasGroup(a.method, a.protocol) {
			curves = curves || a.method != ski.MethodDHE
			finiteFields = finiteFields || a.method == ski.MethodDHE
		}
	}
	var groups []string
	for _, name := range keep(groupNames(), r.groups) {
		if curves && isCurveGroup(name) || finiteFields && isDHGroup(name) {
			groups = append(groups, name)
		}
	}
	return Right{
		KeyName:     k.name,
		Key:         k.id,
		Methods:     keep(ski.Methods(), methods),
		Protocols:   keep(ski.Protocols(), protocols),
		Algorithms:  keep(slices.Clone(r.algorithms), algorithms),
		Groups:      groups,
		ServerNames: r.serverNames,
		Networks:    r.networks,
		NotBefore:   r.notBefore,
		NotAfter:    r.notAfter,
		Legacy:      legacyWords(used, protocols),
	}, len(methods) > 0
}

// operationsOf returns every operation that there is for a key, without the
// groups: a rule has some for each of its methods.
func operationsOf(k key) []access {
	var all []access
	add := func(req ski.Request) {
		if alg, err := k.algorithm(&req); err == nil {
			all = append(all, operationAccess(&req, k, alg))
		}
	}
	_, isRSA := k.public.(*rsa.PublicKey)
	for _, p := range ski.Protocols() {
		signing := []ski.Method{ski.MethodECDHE}
		if !p.Is13() {
			signing = append(signing, ski.MethodECDHEPMS)
		}
		if isRSA && !p.Is13() {
			signing = append(signing, ski.MethodDHE)
		}
		if k.decrypts() && !p.Is13() {
			req := ski.Request{Protocol: p, Method: ski.MethodRSA}
			all = append(all, operationAccess(&req, k, algorithm{}))
		}
		for _, m := range signing {
			for _, h := range draftHashes {
				add(ski.Request{Protocol: p, Method: m, Hash: h})
			}
			for s := range schemes {
				add(ski.Request{Protocol: p, Method: m, Scheme: s})
			}
		}
	}
	return all
}

// grants reports whether a rule names the method.
func (p *Policy) grants(m ski.Method) bool {
	return slices.ContainsFunc(p.rules, func(r *rule) bool { return r.methods[m] })
}

// keep returns those of all that are in the set, in their order.
func keep[T comparable](all []T, set map[T]bool) []T {
	return slices.DeleteFunc(all, func(v T) bool { return !set[v] })
}

// Warnings returns a line for each thing that the policy allows and that is
// not safe any more, for each key whose certificate is not for TLS alone, for
// each rule that grants nothing any more at the time now, and for keys that it
// names and that are not there.
func (p *Policy) Warnings(now time.Time) []string {
	var warnings []string
	for _, r := range p.rules {
		if words := legacyWords(r.legacy, r.protocols); len(words) > 0 {
			warnings = append(warnings, fmt.Sprintf("policy rule %d allows legacy %s", r.number, strings.Join(words, ", ")))
		}
		if r.methods[ski.MethodRSA] {
			warnings = append(warnings, fmt.Sprintf("policy rule %d grants RSA, which has no forward secrecy", r.number))
		}
		if r.methods[ski.MethodDHE] {
			warnings = append(warnings, fmt.Sprintf("policy rule %d grants DHE, with which an edge chooses %d bytes of what is signed", r.number, r.longestDHKey()))
		}
		if !r.notAfter.IsZero() && now.After(r.notAfter) {
			warnings = append(warnings, fmt.Sprintf("policy rule %d has not been valid since %s", r.number, r.notAfter.Format(time.RFC3339)))
		}
	}
	for _, d := range causedByClients {
		if p.detectors[d].action == actionSuspend {
			warnings = append(warnings, fmt.Sprintf("detector %s suspends an edge for what its clients send: anybody can cut it off", d))
		}
	}
	warnings = append(warnings, p.keyWarnings()...)
	return append(warnings, p.certificateWarnings()...)
}

// longestDHKey returns the length in bytes of the longest dh_Ys that the rule
// grants.
func (r *rule) longestDHKey() (longest int) {
	for _, g := range dhGroups() {
		if r.groups[g.name] {
			longest = max(longest, g.p.BitLen()/8)
		}
	}
	return longest
}

// NextExpiry returns when the next of the rules that are valid at the time now,
// or will be, ends. It is zero if none does.
func (p *Policy) NextExpiry(now time.Time) time.Time {
	var next time.Time
	for _, r := range p.rules {
		if !r.notAfter.IsZero() && !now.After(r.notAfter) && (next.IsZero() || r.notAfter.Before(next)) {
			next = r.notAfter
		}
	}
	return next
}
