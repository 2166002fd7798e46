package keyserver

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/tlsski/tlsski/ski"
)

// requestOfGroup asks for a signature of the test key for RSA on parameters of
// a group. The public key in them is good.
func requestOfGroup(keys testStore, method ski.Method, group string) *ski.Request {
	req := &ski.Request{Protocol: ski.TLS12, SPKI: keys.id(rsa2048), Method: method, Hash: ski.SHA256}
	switch {
	case method == ski.MethodDHE:
		req.Input = dhInput(group)
	case method == ski.MethodECDHEPMS:
		req.Input = randoms()
		for _, g := range curveGroups {
			if g.name == group {
				req.Group = g.code
			}
		}
	default:
		for _, g := range curveGroups {
			if g.name == group {
				req.Input = ecdhe(uint16(g.code), basePoint(uint16(g.code)))
			}
		}
	}
	return req
}

// The groups in which an edge chooses the most of what is signed are granted by
// name alone, for each method that has a group, and the audit log has the group
// of what was granted and of what was not.
func TestGroupsThatNoRuleNames(t *testing.T) {
	keys := testKeys()
	curves := []string{"secp256r1", "secp384r1", "secp521r1", "x25519"}
	for _, c := range []struct {
		method  ski.Method
		lines   string
		granted []string
		all     []string
	}{
		{ski.MethodECDHE, "", []string{"secp256r1", "secp384r1", "x25519"}, curves},
		{ski.MethodECDHEPMS, "", []string{"secp256r1", "secp384r1", "x25519"}, curves},
		{ski.MethodECDHE, "groups: [secp521r1, secp256r1]", []string{"secp256r1", "secp521r1"}, curves},
		{ski.MethodECDHEPMS, "groups: [secp521r1]", []string{"secp521r1"}, curves},
		{ski.MethodDHE, "groups: [ffdhe3072, modp_2048]", []string{"ffdhe3072", "modp_2048"}, slices.DeleteFunc(groupNames(), isCurveGroup)},
	} {
		s := policyServer(t, keys, oneRule(string(c.method), c.lines))
		for _, group := range c.all {
			resp, rec := s.ask(edgePeer, requestOfGroup(keys, c.method, group))
			require.Equal(t, group, rec.Group)
			if slices.Contains(c.granted, group) {
				require.NoError(t, resp.Err(), "%s %s: %s", c.method, group, rec.Reason)
				continue
			}
			require.Equal(t, ski.RequestDenied, resp.Error, "%s %s", c.method, group)
			require.Equal(t, "no rule grants the group", rec.Reason)
		}
	}
}

// The content of a CertificateVerify and an EncryptedPreMasterSecret have no
// group: a list of groups takes nothing away from them.
func TestWhatHasNoGroup(t *testing.T) {
	keys := testKeys()
	s := policyServer(t, keys, oneRule("ECDHE, RSA", "groups: [secp521r1]"))
	for _, req := range []*ski.Request{
		{Protocol: ski.TLS13, SPKI: keys.id(p256), Scheme: 0x0403, Input: certificateVerify(32)},
		{Protocol: ski.DTLS13, SPKI: keys.id(rsa2048), Scheme: 0x0804, Input: certificateVerify(48)},
		{Protocol: ski.TLS12, SPKI: keys.id(rsa2048), Method: ski.MethodRSA, Input: make([]byte, 256)},
	} {
		resp, rec := s.ask(edgePeer, req)
		require.NoError(t, resp.Err(), rec.Reason)
		require.Empty(t, rec.Group)
	}
}

// The policy comes before the structure of the input, of which a peer that may
// not use the key is told nothing: a group that is not granted is denied
// whatever follows it, and an input whose group cannot be read is malformed only
// where all else is granted.
func TestTheGroupIsJudgedBeforeTheRestOfTheInput(t *testing.T) {
	keys := testKeys()
	unreadable := map[ski.Method][][]byte{
		ski.MethodECDHE: {
			{1}, randoms(), append(randoms(), 3, 0),
			append(randoms(), 1, 0, secp521r1), // explicit_prime
			append(randoms(), 3, 0, 22),        // secp256k1, which is not served
			dhInput("ffdhe2048"), certificateVerify(32),
		},
		ski.MethodDHE: {
			{1}, randoms(), append(randoms(), 1, 0), append(randoms(), 0, 2, 1), append(randoms(), 0, 1, 23),
			ecdhe(x25519, basePoint(x25519)),
		},
	}
	denied := map[ski.Method][][]byte{
		ski.MethodECDHE: {
			append(randoms(), 3, 0, secp521r1), ecdhe(secp521r1, nil), ecdhe(secp521r1, make([]byte, 133)),
			append(ecdhe(secp521r1, basePoint(secp521r1)), 0),
		},
		ski.MethodDHE: {
			dhInput("ffdhe4096")[:64+2+512], append(dhInput("ffdhe4096"), 0),
		},
	}
	for method, group := range map[ski.Method]string{ski.MethodECDHE: "x25519", ski.MethodDHE: "ffdhe2048"} {
		granted := policyServer(t, keys, oneRule(string(method), "groups: ["+group+"]"))
		other := policyServer(t, keys, oneRule(string(method), "groups: ["+group+"]", "server_names: [www.example.com]"))
		request := func(input []byte) *ski.Request {
			return &ski.Request{Protocol: ski.TLS12, SPKI: keys.id(rsa2048), Method: method, Hash: ski.SHA256, Input: input}
		}
		for _, input := range unreadable[method] {
			granted.refuses(request(input), ski.MalformedRequest, "")
			require.Empty(t, granted.trail.last().Group)
			other.refuses(request(input), ski.RequestDenied, "no rule grants the server name")
		}
		for _, input := range denied[method] {
			granted.refuses(request(input), ski.RequestDenied, "no rule grants the group")
			other.refuses(request(input), ski.RequestDenied, "no rule grants the group")
		}
	}
}

// A rule that grants DHE is warned of, and grants what it names.
func TestDHEIsWarnedOf(t *testing.T) {
	p := parsePolicy(t, oneRule("ECDHE, DHE", "groups: [x25519, ffdhe8192, ffdhe2048]"))
	require.Equal(t, []string{"policy rule 1 grants DHE, with which an edge chooses 1024 bytes of what is signed"}, p.Warnings(time.Unix(0, 0)))
	require.Empty(t, parsePolicy(t, oneRule("ECDHE")).Warnings(time.Unix(0, 0)))
}

// FuzzParsePolicy holds that a policy grants nothing by accident: no peer that
// it does not name, and no group that it does not name but for the defaults.
func FuzzParsePolicy(f *testing.F) {
	for _, text := range []string{
		policyText, testPolicy, ticketPolicyText(),
		oneRule("ECDHE, DHE", "groups: [x25519, ffdhe2048]", "networks: [192.0.2.0/24]", "not_after: 2027-01-01T00:00:00Z"),
		oneRule("ECDHE-PMS", "groups: [secp521r1]", "server_names: ['*.example.com']", "legacy: [sha-1, tls-1.0]"),
		oneRule("ECDHE", "protocols: [TLS 1.3]", "algorithms: [ecdsa_secp256r1_sha256]"),
	} {
		f.Add(text)
	}
	keys := testKeys()
	f.Fuzz(func(t *testing.T, text string) {
		p, err := ParsePolicy("policy.yaml", []byte(text), keys)
		if err != nil {
			require.True(t, strings.HasPrefix(err.Error(), "policy.yaml:"), err)
			return
		}
		require.Empty(t, p.RightsOf(ski.Peer{SPKI: ski.KeyID{0xfe}}))
		for _, r := range p.rules {
			for m := range r.methods {
				of := isCurveGroup
				if m == ski.MethodDHE {
					of = isDHGroup
				}
				for protocol := range r.protocols {
					require.True(t, !hasGroup(m, protocol) || slices.ContainsFunc(keep(groupNames(), r.groups), of), "%s without a group", m)
				}
			}
		}
		for _, r := range p.Rights() {
			for _, group := range r.Groups {
				require.True(t, slices.Contains(defaultGroups, group) || strings.Contains(text, group), group)
			}
		}
		_ = p.Warnings(time.Unix(0, 0))
	})
}
