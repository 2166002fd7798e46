package keyserver

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/tlsski/tlsski/ski"
)

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
		methods:   make(map[ski.Method]bool),
		protocols: make(map[ski.Protocol]bool),
		groups:    make(map[string]bool),
	}
	var err error
	if r.keys, err = b.keysNamed(path+".keys", entry.Keys, b.keyGroups); err != nil {
		return err
	}
	for _, step := range []func(string, ruleEntry, *rule) error{
		b.ruleMethods, b.ruleProtocols, b.ruleAlgorithms, b.ruleServerNames, b.ruleNetworks, b.ruleTimes, b.ruleLegacy,
		b.ruleGroups, // which depends on the methods and protocols
	} {
		if err := step(path, entry, r); err != nil {
			return err
		}
	}
	edges, err := b.edgesNamed(path+".edges", entry.Edges, b.edgeGroups)
	if err != nil {
		return err
	}
	for _, e := range edges {
		if !slices.Contains(e.rules, r) { // It can be named twice, or be in two groups.
			e.rules = append(e.rules, r)
		}
	}
	b.policy.rules = append(b.policy.rules, r)
	return nil
}

func (b *policyBuilder) ruleMethods(path string, entry ruleEntry, r *rule) error {
	for i, m := range entry.Methods {
		if !m.Valid() {
			return b.errorAt(fmt.Sprintf("%s.methods[%d]", path, i), "%q is not a method: use ECDHE, DHE, ECDHE-PMS or RSA", m)
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

func (b *policyBuilder) ruleAlgorithms(path string, entry ruleEntry, r *rule) error {
	for i, name := range entry.Algorithms {
		if !slices.Contains(algorithmNames(), name) {
			return b.errorAt(fmt.Sprintf("%s.algorithms[%d]", path, i), "%q is not one of %s",
				name, strings.Join(algorithmNames(), ", "))
		}
	}
	r.algorithms = entry.Algorithms
	return nil
}

// ruleGroups refuses a rule with a method that has no group, and with a group
// that no method has: each is a mistake, of which nothing else would tell.
func (b *policyBuilder) ruleGroups(path string, entry ruleEntry, r *rule) error {
	for i, name := range entry.Groups {
		at := fmt.Sprintf("%s.groups[%d]", path, i)
		switch {
		case !slices.Contains(groupNames(), name):
			return b.errorAt(at, "%q is not one of %s", name, strings.Join(groupNames(), ", "))
		case isCurveGroup(name) && !r.agreesOnCurves():
			return b.errorAt(at, "%q is for ECDHE and ECDHE-PMS before TLS 1.3, which the rule does not grant: "+
				"of TLS 1.3 the key server does not see the group", name)
		case isDHGroup(name) && !r.methods[ski.MethodDHE]:
			return b.errorAt(at, "%q is for DHE, which the rule does not grant", name)
		}
		r.groups[name] = true
	}
	if len(entry.Groups) == 0 && r.agreesOnCurves() {
		for _, name := range defaultGroups {
			r.groups[name] = true
		}
	}
	missing := func(method ski.Method, groups []string) error {
		at := fmt.Sprintf("%s.methods[%d]", path, slices.Index(entry.Methods, method))
		return b.errorAt(at, "the rule grants %s and names no group for it: write groups: [%s]", method, strings.Join(groups, ", "))
	}
	named := keep(groupNames(), r.groups)
	if r.methods[ski.MethodDHE] && !slices.ContainsFunc(named, isDHGroup) {
		return missing(ski.MethodDHE, append(named, "ffdhe2048"))
	}
	if r.agreesOnCurves() && !slices.ContainsFunc(named, isCurveGroup) {
		method := ski.MethodECDHE
		if !r.methods[method] {
			method = ski.MethodECDHEPMS
		}
		return missing(method, slices.Concat(defaultGroups, named))
	}
	return nil
}

// agreesOnCurves reports whether the rule grants a method whose group is one of
// curveGroups in a protocol in which the key server sees it.
func (r *rule) agreesOnCurves() bool {
	for p := range r.protocols {
		if !p.Is13() && (r.methods[ski.MethodECDHE] || r.methods[ski.MethodECDHEPMS]) {
			return true
		}
	}
	return false
}

func (b *policyBuilder) ruleServerNames(path string, entry ruleEntry, r *rule) error {
	for i, name := range entry.ServerNames {
		if !isDNSName(strings.TrimPrefix(name, "*.")) {
			return b.errorAt(fmt.Sprintf("%s.server_names[%d]", path, i), `%q is neither a name nor "*." and a name`, name)
		}
		r.serverNames = append(r.serverNames, strings.ToLower(name))
	}
	return nil
}

func (b *policyBuilder) ruleNetworks(path string, entry ruleEntry, r *rule) error {
	for i, text := range entry.Networks {
		network, err := parseNetwork(text)
		if err != nil {
			return b.errorAt(fmt.Sprintf("%s.networks[%d]", path, i), "%s", err)
		}
		r.networks = append(r.networks, network)
	}
	return nil
}

// parseNetwork reads a network in CIDR notation (RFC 4632, Section 3.1; RFC
// 4291, Section 2.3), or one address. An address with bits beyond the prefix is
// a mistake in one of the two.
func parseNetwork(text string) (netip.Prefix, error) {
	if address, err := netip.ParseAddr(text); err == nil && address.Zone() == "" && !address.Is4In6() {
		return netip.PrefixFrom(address, address.BitLen()), nil
	}
	network, err := netip.ParsePrefix(text)
	switch {
	case err != nil || network.Addr().Is4In6():
		return netip.Prefix{}, fmt.Errorf("%q is neither a network such as 192.0.2.0/24 or 2001:db8::/32 nor an address", text)
	case network != network.Masked():
		return netip.Prefix{}, fmt.Errorf("%q has bits beyond its prefix: the network is %s", text, network.Masked())
	}
	return network, nil
}

func (b *policyBuilder) ruleTimes(path string, entry ruleEntry, r *rule) (err error) {
	for _, t := range []struct {
		key, text string
		to        *time.Time
	}{
		{"not_before", entry.NotBefore, &r.notBefore},
		{"not_after", entry.NotAfter, &r.notAfter},
	} {
		if t.text == "" {
			continue
		}
		if *t.to, err = time.Parse(time.RFC3339, t.text); err != nil {
			return b.errorAt(path+"."+t.key, "%q is not a time such as 2026-12-31T23:59:59Z", t.text)
		}
	}
	if !r.notAfter.IsZero() && r.notAfter.Before(r.notBefore) {
		return b.errorAt(path+".not_after", "it is before 'not_before'")
	}
	return nil
}
