package keyserver

import (
	"crypto/sha256"
	"fmt"
	"slices"
	"strings"

	"github.com/tlsski/tlsski/ski"
)

// policyFile is the policy as it stands in YAML:
//
//	edges:
//	  - name: edge-1
//	    spki: [<64 hexadecimal digits>]   # any of these makes a peer edge-1
//	    dns: [edge-1.example.net]
//	    uri: [spiffe://example.net/edge/1]
//	    psk: [edge-1]                     # identities of pre-shared keys
//	rules:
//	  - edges: [edge-1]
//	    keys: [www.example.com]           # names, fingerprints, or "*" for all
//	    methods: [ECDHE, RSA]
//	    protocols: [TLS 1.2, TLS 1.3]     # default: TLS 1.2, TLS 1.3, DTLS 1.2, DTLS 1.3
//	    algorithms: [ecdsa_secp256r1_sha256, SHA-256]  # default: all that are not legacy
//	    groups: [secp256r1, ffdhe2048]    # default: secp256r1, secp384r1, x25519
//	    server_names: [www.example.com, "*.example.com"]  # default: any, or none sent; the edge's word
//	    networks: [192.0.2.0/24]          # where the edge asks from; default: anywhere
//	    not_before: 2026-01-01T00:00:00Z  # RFC 3339; default: always
//	    not_after: 2026-12-31T23:59:59Z   # default: for ever
//	    legacy: [sha-1]                   # default: none
//	edge_groups:                          # their names stand in 'edges' of a rule
//	  - name: europe
//	    edges: [edge-1]
//	key_groups:                           # their names stand in 'keys' of a rule
//	  - name: shop
//	    keys: [www.example.com]
//
// and the sections of ticketsEntry, limitsEntry and detectorsEntry.
type policyFile struct {
	Edges      []edgeEntry      `yaml:"edges"`
	EdgeGroups []edgeGroupEntry `yaml:"edge_groups"`
	KeyGroups  []keyGroupEntry  `yaml:"key_groups"`
	Rules      []ruleEntry      `yaml:"rules"`
	Tickets    []ticketsEntry   `yaml:"tickets"`
	Limits     limitsEntry      `yaml:"limits"`
	Detectors  detectorsEntry   `yaml:"detectors"`
}

type edgeEntry struct {
	Name string   `yaml:"name"`
	SPKI []string `yaml:"spki"`
	DNS  []string `yaml:"dns"`
	URI  []string `yaml:"uri"`
	PSK  []string `yaml:"psk"`
}

type edgeGroupEntry struct {
	Name  string   `yaml:"name"`
	Edges []string `yaml:"edges"`
}

type keyGroupEntry struct {
	Name string   `yaml:"name"`
	Keys []string `yaml:"keys"`
}

type ruleEntry struct {
	Edges       []string       `yaml:"edges"`
	Keys        []string       `yaml:"keys"`
	Methods     []ski.Method   `yaml:"methods"`
	Protocols   []ski.Protocol `yaml:"protocols"`
	Algorithms  []string       `yaml:"algorithms"`
	Groups      []string       `yaml:"groups"`
	ServerNames []string       `yaml:"server_names"`
	Networks    []string       `yaml:"networks"`
	NotBefore   string         `yaml:"not_before"`
	NotAfter    string         `yaml:"not_after"`
	Legacy      []string       `yaml:"legacy"`
}

// modernProtocols are what a rule without 'protocols' grants.
var modernProtocols = []ski.Protocol{ski.TLS12, ski.TLS13, ski.DTLS12, ski.DTLS13}

// LoadPolicy reads a policy file. Its rules speak of the keys of the store, and
// may name keys that the store does not have, yet or any more: see
// Policy.Warnings. The error names file, line and column.
func LoadPolicy(file string, keys KeyStore) (*Policy, error) {
	data, err := readTrustedFile(file)
	if err != nil {
		return nil, err
	}
	return ParsePolicy(file, data, keys)
}

// ParsePolicy is LoadPolicy for the content of a file. The name is for errors.
func ParsePolicy(name string, data []byte, keys KeyStore) (*Policy, error) {
	var f policyFile
	doc, err := decodeYAML(name, data, &f)
	if err != nil {
		return nil, err
	}
	index, err := indexKeys(keys)
	if err != nil {
		return nil, fmt.Errorf("%s: the key store: %w", name, err)
	}
	b := policyBuilder{
		document:   doc,
		edges:      make(map[string]*edge),
		edgeGroups: make(map[string][]*edge),
		keyGroups:  make(map[string]*keySet),
		policy: &Policy{
			bySPKI:  make(map[ski.KeyID][]*edge),
			byDNS:   make(map[string][]*edge),
			byURI:   make(map[string][]*edge),
			byPSK:   make(map[string][]*edge),
			keys:    index,
			tickets: make(map[string]*ticketSite),
			digest:  sha256.Sum256(data),
		},
	}
	for i, e := range f.Edges {
		if err := b.addEdge(fmt.Sprintf("$.edges[%d]", i), e); err != nil {
			return nil, err
		}
	}
	for i, g := range f.EdgeGroups {
		if err := b.addEdgeGroup(fmt.Sprintf("$.edge_groups[%d]", i), g); err != nil {
			return nil, err
		}
	}
	for i, g := range f.KeyGroups {
		if err := b.addKeyGroup(fmt.Sprintf("$.key_groups[%d]", i), g); err != nil {
			return nil, err
		}
	}
	for i, r := range f.Rules {
		if err := b.addRule(fmt.Sprintf("$.rules[%d]", i), i+1, r); err != nil {
			return nil, err
		}
	}
	for i, t := range f.Tickets {
		if err := b.addTickets(fmt.Sprintf("$.tickets[%d]", i), t); err != nil {
			return nil, err
		}
	}
	if err := b.addLimits(f.Limits); err != nil {
		return nil, err
	}
	if err := b.addDetectors(f.Detectors); err != nil {
		return nil, err
	}
	return b.policy, nil
}

// policyBuilder turns the entries of the file into a Policy. The path that its
// methods get is the entry's in the document.
type policyBuilder struct {
	*document
	edges      map[string]*edge   // by name
	edgeGroups map[string][]*edge // by name
	keyGroups  map[string]*keySet // by name
	policy     *Policy
}

func (b *policyBuilder) addEdge(path string, entry edgeEntry) error {
	switch {
	case entry.Name == "":
		return b.errorAt(path, "an edge needs a 'name'")
	case strings.Contains(entry.Name, ","):
		return b.errorAt(path+".name", "an edge's name cannot have a comma")
	case isPeerID(entry.Name):
		return b.errorAt(path+".name", "an edge's name cannot look like a fingerprint or begin with psk:")
	case b.edges[entry.Name] != nil:
		return b.errorAt(path+".name", "there are two edges called %q", entry.Name)
	case len(entry.SPKI)+len(entry.DNS)+len(entry.URI)+len(entry.PSK) == 0:
		return b.errorAt(path, "edge %q needs one of 'spki', 'dns', 'uri' and 'psk' to be known by", entry.Name)
	}
	e := &edge{name: entry.Name, psks: entry.PSK}
	for i, text := range entry.SPKI {
		id, err := ski.ParseKeyID(text)
		if err != nil || id.IsZero() {
			return b.errorAt(fmt.Sprintf("%s.spki[%d]", path, i), "an SPKI fingerprint has 64 hexadecimal digits")
		}
		addTo(b.policy.bySPKI, id, e)
		e.known = append(e.known, "spki "+id.String())
	}
	for i, name := range entry.DNS {
		if !isDNSName(name) {
			return b.errorAt(fmt.Sprintf("%s.dns[%d]", path, i), "%q is not a DNS name: a whole one, without wildcard", name)
		}
		addTo(b.policy.byDNS, strings.ToLower(name), e)
		e.known = append(e.known, "dns "+strings.ToLower(name))
	}
	for i, uri := range entry.URI {
		if uri == "" {
			return b.errorAt(fmt.Sprintf("%s.uri[%d]", path, i), "the URI is empty")
		}
		addTo(b.policy.byURI, uri, e)
		e.known = append(e.known, "uri "+uri)
	}
	for i, identity := range entry.PSK {
		if err := ski.CheckPSKIdentity(identity); err != nil {
			return b.errorAt(fmt.Sprintf("%s.psk[%d]", path, i), "%v", err)
		}
		addTo(b.policy.byPSK, identity, e)
	}
	b.edges[e.name] = e
	b.policy.edges = append(b.policy.edges, e)
	return nil
}

func addTo[K comparable](index map[K][]*edge, k K, e *edge) {
	if !slices.Contains(index[k], e) {
		index[k] = append(index[k], e)
	}
}

func isPeerID(text string) bool {
	_, err := ski.ParsePeerID(text)
	return err == nil
}

func (b *policyBuilder) addEdgeGroup(path string, entry edgeGroupEntry) error {
	switch {
	case entry.Name == "":
		return b.errorAt(path, "a group needs a 'name'")
	case b.edges[entry.Name] != nil || b.edgeGroups[entry.Name] != nil:
		return b.errorAt(path+".name", "there is another edge or group of edges called %q", entry.Name)
	case len(entry.Edges) == 0:
		return b.errorAt(path, "a group of edges needs 'edges'")
	}
	members, err := b.edgesNamed(path+".edges", entry.Edges, nil)
	b.edgeGroups[entry.Name] = members
	return err
}

func (b *policyBuilder) addKeyGroup(path string, entry keyGroupEntry) error {
	switch {
	case entry.Name == "":
		return b.errorAt(path, "a group needs a 'name'")
	case checkKeyName(entry.Name) != nil:
		return b.errorAt(path+".name", "a group of keys cannot have the name %q", entry.Name)
	case b.keyGroups[entry.Name] != nil:
		return b.errorAt(path+".name", "there is another group of keys called %q", entry.Name)
	case len(entry.Keys) == 0:
		return b.errorAt(path, "a group of keys needs 'keys'")
	}
	members, err := b.keysNamed(path+".keys", entry.Keys, nil)
	b.keyGroups[entry.Name] = members
	b.policy.keyGroups = append(b.policy.keyGroups, entry.Name)
	return err
}

// edgesNamed returns the edges of a list, each of which can be one of the
// groups.
func (b *policyBuilder) edgesNamed(path string, names []string, groups map[string][]*edge) ([]*edge, error) {
	var found []*edge
	for i, name := range names {
		members, ok := groups[name]
		if e := b.edges[name]; e != nil {
			members, ok = []*edge{e}, true
		}
		if !ok {
			return nil, b.errorAt(fmt.Sprintf("%s[%d]", path, i), "there is no edge called %q", name)
		}
		found = append(found, members...)
	}
	return found, nil
}

// keysNamed returns what a list names, each of which can be "*", for all, or one
// of the groups. There need not be a key of a name.
func (b *policyBuilder) keysNamed(path string, names []string, groups map[string]*keySet) (*keySet, error) {
	found := newKeySet()
	for i, name := range names {
		if members, ok := groups[name]; ok {
			found.addAll(members)
		} else if err := found.add(name); err != nil {
			return nil, b.errorAt(fmt.Sprintf("%s[%d]", path, i), "%v", err)
		}
	}
	return found, nil
}
