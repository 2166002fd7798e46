package keyserver

import (
	"crypto/sha256"
	"slices"
	"strings"

	"github.com/tlsski/tlsski/ski"
)

// Policy says which peer may use which key, and how. What no rule grants is
// denied. It is made by LoadPolicy or ParsePolicy and does not change: see
// Server.SetPolicy and PolicyReloader. What it says of keys holds for those that
// come later, too: see Server.SetKeys.
//
// A peer can be several edges of the policy at once, by its fingerprint, by
// each name in its certificate, or by the identity of its pre-shared key. It then has the rights of all of them: a
// request is granted where one rule of one of them grants the whole of it.
type Policy struct {
	edges     []*edge
	rules     []*rule
	bySPKI    map[ski.KeyID][]*edge
	byDNS     map[string][]*edge // in lower case
	byURI     map[string][]*edge
	byPSK     map[string][]*edge // by identity
	keys      keyIndex           // of the key store
	limits    limits
	tickets   map[string]*ticketSite // by name
	keyGroups []string
	digest    [sha256.Size]byte // of the file

	detectors detectorRules
}

// edge is a peer that the policy knows, with the rules that are for it.
type edge struct {
	name  string
	rules []*rule
	known []string // what it is known by: a word that says of what kind, and what it is
	psks  []string // identities that it is known by
}

const denialUnknownPeer = "the policy does not know the peer"

// decide reports whether one of the edges may do a, and if none may, why: what
// it was that the rule which came furthest does not grant.
func decide(edges []*edge, a access) (denial string, ok bool) {
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

// match returns the edges that the peer is.
func (p *Policy) match(peer ski.Peer) []*edge {
	found := slices.Clone(p.bySPKI[peer.SPKI])
	if peer.PSK != "" {
		found = slices.Clone(p.byPSK[peer.PSK])
	}
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

// Knows reports whether the peer is one of the policy's edges.
func (p *Policy) Knows(peer ski.Peer) bool { return len(p.match(peer)) > 0 }

// EdgeCount returns how many edges the policy knows.
func (p *Policy) EdgeCount() int { return len(p.edges) }
