package keyserver

import (
	"crypto/x509"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/tlsski/tlsski/ski"
)

// keySet is what a list of keys in a policy stands for, whether or not there are
// such keys: a key that comes later is in it by its name or its fingerprint.
type keySet struct {
	all   bool // "*"
	names map[string]bool
	ids   map[ski.KeyID]bool
}

func newKeySet() *keySet {
	return &keySet{names: make(map[string]bool), ids: make(map[ski.KeyID]bool)}
}

// add adds what a policy calls a key, or "*". The error is for what no key can
// be called.
func (s *keySet) add(text string) error {
	if text == "*" {
		s.all = true
		return nil
	}
	if id, err := ski.ParseKeyID(text); err == nil {
		s.ids[id] = true
		return nil
	}
	if err := checkKeyName(text); err != nil {
		return err
	}
	s.names[text] = true
	return nil
}

func (s *keySet) addAll(other *keySet) {
	s.all = s.all || other.all
	maps.Copy(s.names, other.names)
	maps.Copy(s.ids, other.ids)
}

// has reports whether a key is in the set, by its fingerprint or its name.
func (s *keySet) has(id ski.KeyID, name string) bool {
	return s.all || s.names[name] || s.ids[id]
}

// keyIndex has the keys that a key store had when it was made.
type keyIndex struct {
	byID   map[ski.KeyID]key
	byName map[string]ski.KeyID
	certs  map[ski.KeyID][]*x509.Certificate
}

// indexKeys refuses names that a policy could not tell apart. A MemoryStore has
// none.
func indexKeys(keys KeyStore) (keyIndex, error) {
	x := keyIndex{byID: make(map[ski.KeyID]key), byName: make(map[string]ski.KeyID), certs: make(map[ski.KeyID][]*x509.Certificate)}
	certified, _ := keys.(CertificateKeyStore)
	for _, id := range keys.IDs() {
		k, ok := lookup(keys, id)
		if !ok { // It has gone meanwhile.
			continue
		}
		if err := checkKeyName(k.name); err != nil {
			return x, err
		}
		if _, taken := x.byName[k.name]; taken {
			return x, fmt.Errorf("two keys are called %q", k.name)
		}
		x.byID[id], x.byName[k.name] = k, id
		if certified != nil {
			x.certs[id] = certified.Certificates(id)
		}
	}
	return x, nil
}

// in returns the keys of the set that there are, by their names.
func (s *keySet) in(x keyIndex) []key {
	var found []key
	if s.all {
		found = slices.Collect(maps.Values(x.byID))
	} else {
		for id := range s.ids {
			if k, ok := x.byID[id]; ok {
				found = append(found, k)
			}
		}
		for name := range s.names {
			if id, ok := x.byName[name]; ok && !s.ids[id] {
				found = append(found, x.byID[id])
			}
		}
	}
	slices.SortFunc(found, func(a, b key) int { return strings.Compare(a.name, b.name) })
	return found
}

// missing returns what the set names and there is no key of.
func (s *keySet) missing(x keyIndex) []string {
	var names []string
	for name := range s.names {
		if _, ok := x.byName[name]; !ok {
			names = append(names, fmt.Sprintf("%q", name))
		}
	}
	for id := range s.ids {
		if _, ok := x.byID[id]; !ok {
			names = append(names, id.String())
		}
	}
	slices.Sort(names)
	return names
}

// withKeys returns the policy for other keys.
func (p *Policy) withKeys(x keyIndex) *Policy {
	own := *p
	own.keys = x
	return &own
}

// keyWarnings returns a line for each rule and limit that is for a key that is
// not there, and for each key that has the name of a group.
func (p *Policy) keyWarnings() []string {
	var warnings []string
	for _, r := range p.rules {
		if missing := r.keys.missing(p.keys); len(missing) > 0 {
			warnings = append(warnings, fmt.Sprintf("policy rule %d names keys that are not there: %s", r.number, strings.Join(missing, ", ")))
		}
	}
	if missing := p.limits.named().missing(p.keys); len(missing) > 0 {
		warnings = append(warnings, "policy: limits.keys names keys that are not there: "+strings.Join(missing, ", "))
	}
	for _, group := range p.keyGroups {
		if _, ok := p.keys.byName[group]; ok {
			warnings = append(warnings, fmt.Sprintf("policy: %q is a group of keys, and a key has that name too: rules mean the group", group))
		}
	}
	return warnings
}
