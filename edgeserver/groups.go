package edgeserver

import (
	"crypto/tls"
	"fmt"
	"slices"
	"strings"
)

// groups are those for ephemeral keys, in the edge's order of preference, which
// is crypto/tls's, called as in a key server's policy (RFC 8422, Section 5.1.1).
// Each has its hybrid with ML-KEM in TLS 1.3, but for the last.
var groups = []struct {
	name   string
	code   tls.CurveID
	hybrid tls.CurveID
}{
	{"x25519", tls.X25519, tls.X25519MLKEM768},
	{"secp256r1", tls.CurveP256, tls.SecP256r1MLKEM768},
	{"secp384r1", tls.CurveP384, tls.SecP384r1MLKEM1024},
	{"secp521r1", tls.CurveP521, 0},
}

// defaultGroups are those that a key server's policy grants unless it says
// otherwise. One that it does not grant would let a client that offers nothing
// else cause a refusal, and a record of it, whenever it likes.
var defaultGroups = []string{"x25519", "secp256r1", "secp384r1"}

// javaGroup is the only one of the key server in Java.
const javaGroup = "secp256r1"

// groupCodes returns the groups that the site offers in TLS 1.2, in order of
// preference.
func (s *site) groupCodes() (codes []tls.CurveID) {
	names := s.Groups
	switch {
	case s.java:
		names = []string{javaGroup}
	case len(names) == 0:
		names = defaultGroups
	}
	for _, g := range groups {
		if slices.Contains(names, g.name) {
			codes = append(codes, g.code)
		}
	}
	return codes
}

// curvePreferences are the same with their hybrids, for crypto/tls. The key
// server sees the group of TLS 1.2 alone.
func (s *site) curvePreferences() []tls.CurveID {
	codes := s.groupCodes()
	if s.java {
		return codes
	}
	for _, g := range groups {
		if g.hybrid != 0 && slices.Contains(codes, g.code) {
			codes = append(codes, g.hybrid)
		}
	}
	return codes
}

func groupName(code tls.CurveID) string {
	for _, g := range groups {
		if g.code == code {
			return g.name
		}
	}
	return ""
}

func (c *Config) validateGroups(field string, s *Site) error {
	for i, name := range s.Groups {
		at := fmt.Sprintf("%s.groups[%d]", field, i)
		switch {
		case !slices.Contains(groupNames(), name):
			return c.errorf(at, "%q is not one of %s", name, strings.Join(groupNames(), ", "))
		case slices.Contains(s.Groups[:i], name):
			return c.errorf(at, "%q is there already", name)
		case c.keyServer(s.KeyServer).JavaNames != "" && name != javaGroup:
			return c.errorf(at, "the key server in Java has %s alone", javaGroup)
		}
	}
	return nil
}

func groupNames() (names []string) {
	for _, g := range groups {
		names = append(names, g.name)
	}
	return names
}
