package keyserver

import (
	"crypto/tls"
	"encoding/binary"

	"github.com/tlsski/tlsski/ski"
)

// The groups of ephemeral keys are a dimension of policy, since the edge
// chooses the public key that is signed: what it can put there is as long as
// the group's public keys are.

// curveGroups are the groups of ECDHE and ECDHE-PMS, called as in the TLS
// Supported Groups registry (RFC 8422, Section 5.1.1). Those of DHE are
// dhGroups.
var curveGroups = []struct {
	code tls.CurveID
	name string
}{
	{tls.CurveP256, "secp256r1"},
	{tls.CurveP384, "secp384r1"},
	{tls.CurveP521, "secp521r1"},
	{tls.X25519, "x25519"},
}

// defaultGroups are what a rule without 'groups' grants: those with the
// shortest public keys that clients use.
var defaultGroups = []string{"secp256r1", "secp384r1", "x25519"}

// groupNames returns the names of all groups, those of ECDHE first.
func groupNames() []string {
	var names []string
	for _, g := range curveGroups {
		names = append(names, g.name)
	}
	for _, g := range dhGroups() {
		names = append(names, g.name)
	}
	return names
}

// isCurveGroup reports whether a group is one of ECDHE and ECDHE-PMS.
func isCurveGroup(name string) bool {
	for _, g := range curveGroups {
		if g.name == name {
			return true
		}
	}
	return false
}

func isDHGroup(name string) bool { return !isCurveGroup(name) }

// hasGroup reports whether what is signed with the method and protocol has a
// group. The content of a CertificateVerify has none, whatever the key exchange
// of TLS 1.3 is, and neither has static RSA.
func hasGroup(m ski.Method, p ski.Protocol) bool { return m != ski.MethodRSA && !p.Is13() }

// groupAsked returns the name of the group that a request asks for. It is ""
// where there is none, where the input is too short or not of the form to tell,
// and where the group is not one of those served. In the second exchange of
// ECDHE-PMS it is known once the state is open, see Server.resume.
func groupAsked(req *ski.Request) string {
	method := req.KeyExchange()
	switch {
	case !hasGroup(method, req.Protocol):
		return ""
	case method == ski.MethodECDHEPMS:
		return curveGroupName(req.Group)
	case method == ski.MethodDHE:
		return dhGroupAsked(req.Input)
	case len(req.Input) < pointLengthOffset || req.Input[curveTypeOffset] != curveTypeNamedCurve:
		return ""
	}
	return curveGroupName(tls.CurveID(binary.BigEndian.Uint16(req.Input[namedCurveOffset:])))
}

func curveGroupName(code tls.CurveID) string {
	for _, g := range curveGroups {
		if g.code == code {
			return g.name
		}
	}
	return ""
}

// dhGroupAsked finds the group by dh_p, the first vector behind the randoms.
func dhGroupAsked(input []byte) string {
	if len(input) < 2*ski.RandomLen {
		return ""
	}
	p, _, ok := cutVector16(input[2*ski.RandomLen:])
	if !ok {
		return ""
	}
	group, _ := findDHGroup(p)
	return group.name
}
