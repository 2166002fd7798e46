package keyserver

import (
	"fmt"
	"slices"
	"strings"

	"github.com/tlsski/tlsski/internal/certuse"
)

// certificateWarnings returns a line for each key whose certificate lets its
// signatures be taken for something else than a handshake's. Up to TLS 1.2 an
// edge chooses most of what is signed, so that the way out besides another
// certificate is TLS 1.3, where it chooses a hash.
func (p *Policy) certificateWarnings() []string {
	var warnings []string
	for id, certs := range p.keys.certs {
		for _, cert := range certs {
			more := certuse.Beyond(cert)
			if more == "" {
				continue
			}
			warning := fmt.Sprintf("key %s: its certificate %s: what is signed with it could be taken for something else than a TLS handshake. "+
				"Give the site a key whose only certificates are for serverAuth", p.keys.byID[id].name, more)
			if slices.ContainsFunc(p.rules, func(r *rule) bool { return r.signsBeforeTLS13(p.keys.byID[id]) }) {
				warning += "; where its clients can do with TLS 1.3, grant it for that alone (protocols: [TLS 1.3])"
			}
			warnings = append(warnings, warning)
		}
	}
	slices.SortFunc(warnings, strings.Compare)
	return slices.Compact(warnings)
}

// signsBeforeTLS13 reports whether the rule grants a signature on parameters
// that an edge chooses: those have a group.
func (r *rule) signsBeforeTLS13(k key) bool {
	if !r.keys.has(k.id, k.name) {
		return false
	}
	right, _ := r.right(k)
	return len(right.Groups) > 0
}
