package keyserver

import (
	"fmt"
	"slices"
	"strings"

	"github.com/tlsski/tlsski/internal/certuse"
	"github.com/tlsski/tlsski/ski"
)

// certificateWarnings returns a line for each key whose certificate lets its
// signatures be taken for something else than a handshake's. Up to TLS 1.2 an
// edge chooses most of what is signed, so that the way out besides another
// certificate is TLS 1.3, where it chooses a hash.
func (p *Policy) certificateWarnings() []string {
	early := make(map[ski.KeyID]bool) // signs before TLS 1.3
	for _, r := range p.Rights() {
		early[r.Key] = early[r.Key] || len(r.Groups) > 0
	}
	var warnings []string
	for id, certs := range p.certs {
		for _, cert := range certs {
			more := certuse.Beyond(cert)
			if more == "" {
				continue
			}
			warning := fmt.Sprintf("key %s: its certificate %s: what is signed with it could be taken for something else than a TLS handshake. "+
				"Give the site a key whose only certificates are for serverAuth", p.keys[id].name, more)
			if early[id] {
				warning += "; where its clients can do with TLS 1.3, grant it for that alone (protocols: [TLS 1.3])"
			}
			warnings = append(warnings, warning)
		}
	}
	slices.SortFunc(warnings, strings.Compare)
	return slices.Compact(warnings)
}
