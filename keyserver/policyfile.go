package keyserver

import (
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
//	rules:
//	  - edges: [edge-1]
//	    keys: [www.example.com]           # names, fingerprints, or "*" for all
//	    methods: [ECDHE, RSA]
//	    protocols: [TLS 1.2, TLS 1.3]     # default: TLS 1.2, TLS 1.3, DTLS 1.2, DTLS 1.3
//	    server_names: [www.example.com, "*.example.com"]  # default: any, or none sent
//	    legacy: [sha-1]                   # default: none
//
// and the sections of limitsEntry.
type policyFile struct {
	Edges  []edgeEntry `yaml:"edges"`
	Rules  []ruleEntry `yaml:"rules"`
	Limits limitsEntry `yaml:"limits"`
}

type edgeEntry struct {
	Name string   `yaml:"name"`
	SPKI []string `yaml:"spki"`
	DNS  []string `yaml:"dns"`
	URI  []string `yaml:"uri"`
}

type ruleEntry struct {
	Edges       []string       `yaml:"edges"`
	Keys        []string       `yaml:"keys"`
	Methods     []ski.Method   `yaml:"methods"`
	Protocols   []ski.Protocol `yaml:"protocols"`
	ServerNames []string       `yaml:"server_names"`
	Legacy      []string       `yaml:"legacy"`
}

// modernProtocols are what a rule without 'protocols' grants.
var modernProtocols = []ski.Protocol{ski.TLS12, ski.TLS13, ski.DTLS12, ski.DTLS13}

// LoadPolicy reads a policy file. Its rules speak of the keys of the store. The
// error names file, line and column.
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
	b := policyBuilder{
		document: doc,
		keys:     make(map[string]ski.KeyID),
		edges:    make(map[string]*edge),
		policy: &Policy{
			bySPKI: make(map[ski.KeyID][]*edge),
			byDNS:  make(map[string][]*edge),
			byURI:  make(map[string][]*edge),
			keys:   make(map[ski.KeyID]string),
		},
	}
	for _, id := range keys.IDs() {
		k, _ := lookup(keys, id)
		b.keys[k.name] = id
		b.policy.keys[id] = k.name
	}
	for i, e := range f.Edges {
		if err := b.addEdge(fmt.Sprintf("$.edges[%d]", i), e); err != nil {
			return nil, err
		}
	}
	for i, r := range f.Rules {
		if err := b.addRule(fmt.Sprintf("$.rules[%d]", i), i+1, r); err != nil {
			return nil, err
		}
	}
	if err := b.addLimits(f.Limits); err != nil {
		return nil, err
	}
	return b.policy, nil
}

// policyBuilder turns the entries of the file into a Policy. The path that its
// methods get is the entry's in the document.
type policyBuilder struct {
	*document
	keys   map[string]ski.KeyID // by name
	edges  map[string]*edge     // by name
	policy *Policy
}

func (b *policyBuilder) addEdge(path string, entry edgeEntry) error {
	switch {
	case entry.Name == "":
		return b.errorAt(path, "an edge needs a 'name'")
	case strings.Contains(entry.Name, ","):
		return b.errorAt(path+".name", "an edge's name cannot have a comma")
	case b.edges[entry.Name] != nil:
		return b.errorAt(path+".name", "there are two edges called %q", entry.Name)
	case len(entry.SPKI)+len(entry.DNS)+len(entry.URI) == 0:
		return b.errorAt(path, "edge %q needs one of 'spki', 'dns' and 'uri' to be known by", entry.Name)
	}
	e := &edge{name: entry.Name}
	for i, text := range entry.SPKI {
		id, err := ski.ParseKeyID(text)
		if err != nil || id.IsZero() {
			return b.errorAt(fmt.Sprintf("%s.spki[%d]", path, i), "an SPKI fingerprint has 64 hexadecimal digits")
		}
		addTo(b.policy.bySPKI, id, e)
	}
	for i, name := range entry.DNS {
		if name == "" || strings.Contains(name, "*") {
			return b.errorAt(fmt.Sprintf("%s.dns[%d]", path, i), "a DNS name here is a whole name, without wildcard")
		}
		addTo(b.policy.byDNS, strings.ToLower(name), e)
	}
	for i, uri := range entry.URI {
		if uri == "" {
			return b.errorAt(fmt.Sprintf("%s.uri[%d]", path, i), "the URI is empty")
		}
		addTo(b.policy.byURI, uri, e)
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

func (b *policyBuilder) addRule(path string, number int, entry ruleEntry) error {
	switch {
	case len(entry.Edges) == 0:
		return b.errorAt(path, "a rule needs 'edges'")
	case len(entry.Keys) == 0:
		return b.errorAt(path, "a rule needs 'keys'")
	case len(entry.Methods) == 0:
		return b.errorAt(path, "a rule needs 'methods'")
	}
	r := &rule{
		number:    number,
		keys:      make(map[ski.KeyID]bool),
		methods:   make(map[ski.Method]bool),
		protocols: make(map[ski.Protocol]bool),
	}
	for _, step := range []func(string, ruleEntry, *rule) error{
		b.ruleKeys, b.ruleMethods, b.ruleProtocols, b.ruleLegacy, b.ruleServerNames,
	} {
		if err := step(path, entry, r); err != nil {
			return err
		}
	}
	for i, name := range entry.Edges {
		e := b.edges[name]
		if e == nil {
			return b.errorAt(fmt.Sprintf("%s.edges[%d]", path, i), "there is no edge called %q", name)
		}
		if !slices.Contains(e.rules, r) {
			e.rules = append(e.rules, r)
		}
	}
	return nil
}

func (b *policyBuilder) ruleKeys(path string, entry ruleEntry, r *rule) error {
	for i, text := range entry.Keys {
		if text == "*" {
			for id := range b.policy.keys {
				r.keys[id] = true
			}
			continue
		}
		id, ok := b.keyNamed(text)
		if !ok {
			return b.errorAt(fmt.Sprintf("%s.keys[%d]", path, i), "there is no key %q", text)
		}
		r.keys[id] = true
	}
	return nil
}

// keyNamed finds a key by its name or its fingerprint.
func (b *policyBuilder) keyNamed(text string) (id ski.KeyID, ok bool) {
	if id, ok = b.keys[text]; !ok {
		id, _ = ski.ParseKeyID(text)
		_, ok = b.policy.keys[id]
	}
	return id, ok
}

func (b *policyBuilder) ruleMethods(path string, entry ruleEntry, r *rule) error {
	for i, m := range entry.Methods {
		if !slices.Contains(servedMethods, m) {
			return b.errorAt(fmt.Sprintf("%s.methods[%d]", path, i), "%q is not a method that is served: use ECDHE or RSA", m)
		}
		r.methods[m] = true
	}
	return nil
}

func (b *policyBuilder) ruleProtocols(path string, entry ruleEntry, r *rule) error {
	if len(entry.Protocols) == 0 {
		entry.Protocols = modernProtocols
	}
	for i, p := range entry.Protocols {
		at := fmt.Sprintf("%s.protocols[%d]", path, i)
		switch {
		case !p.Valid():
			return b.errorAt(at, "%q is not a protocol", p)
		case !slices.Contains(modernProtocols, p):
			word := strings.ToLower(strings.ReplaceAll(string(p), " ", "-"))
			return b.errorAt(at, "%q has to be switched on by %q in 'legacy'", p, word)
		}
		r.protocols[p] = true
	}
	return nil
}

func (b *policyBuilder) ruleLegacy(path string, entry ruleEntry, r *rule) error {
words:
	for i, word := range entry.Legacy {
		for _, s := range legacySwitches {
			if s.word != word {
				continue
			}
			r.legacy |= s.algorithm
			if s.protocol != "" {
				r.protocols[s.protocol] = true
			}
			continue words
		}
		return b.errorAt(fmt.Sprintf("%s.legacy[%d]", path, i), "%q is not a legacy switch", word)
	}
	return nil
}

func (b *policyBuilder) ruleServerNames(path string, entry ruleEntry, r *rule) error {
	for i, name := range entry.ServerNames {
		rest := strings.TrimPrefix(name, "*.")
		if rest == "" || strings.Contains(rest, "*") {
			return b.errorAt(fmt.Sprintf("%s.server_names[%d]", path, i), `%q is neither a name nor "*." and a name`, name)
		}
		r.serverNames = append(r.serverNames, strings.ToLower(name))
	}
	return nil
}
