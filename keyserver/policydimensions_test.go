package keyserver

import (
	"crypto"
	"crypto/elliptic"
	"crypto/tls"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/tlsski/tlsski/ski"
)

// oneRule is a policy in which edgePeer has one rule for all keys, with more
// lines.
func oneRule(methods string, lines ...string) string {
	return "edges: [{name: edge, dns: [edge.example.net]}]\nrules:\n  - edges: [edge]\n    keys: ['*']\n    methods: [" +
		methods + "]\n    " + strings.Join(lines, "\n    ") + "\n"
}

// policyServer has a policy of its own.
func policyServer(t *testing.T, keys KeyStore, text string) testServer {
	t.Helper()
	p, err := ParsePolicy("policy.yaml", []byte(text), keys)
	require.NoError(t, err)
	return newTestServer(t, keys, func(o *Options) { o.Policy = p })
}

// The list has the names of the audit log, for requests with 'hash' and with
// 'scheme'; what is not in it is denied, also if no such scheme is served.
func TestPolicyAlgorithms(t *testing.T) {
	keys := testKeys()
	s := policyServer(t, keys, oneRule("ECDHE, RSA", "algorithms: [SHA-256, ecdsa_secp256r1_sha256]", "legacy: [sha-1]"))
	for _, c := range []struct {
		hash    ski.Hash
		scheme  tls.SignatureScheme
		granted bool
	}{
		{ski.SHA256, 0, true},
		{ski.SHA384, 0, false},
		{ski.HashDefault, 0, true}, // by the legacy switch
		{"", tls.ECDSAWithP256AndSHA256, true},
		{"", tls.ECDSAWithP384AndSHA384, false},
		{"", 0x0999, false},
	} {
		req := validRequest(keys)
		req.Hash, req.Scheme = c.hash, c.scheme
		resp, rec := s.ask(edgePeer, req)
		if c.granted {
			require.Empty(t, resp.Error, "%v: %s", c, rec.Reason)
			continue
		}
		require.Equal(t, ski.RequestDenied, resp.Error, c)
		require.Equal(t, "no rule grants the algorithm", rec.Reason)
	}
	// Nothing is signed with the RSA method.
	resp, rec := s.ask(edgePeer, &ski.Request{Protocol: ski.TLS12, SPKI: keys.id(rsa2048), Method: ski.MethodRSA, Input: make([]byte, 256)})
	require.Empty(t, resp.Error, rec.Reason)
}

func TestPolicyNetworks(t *testing.T) {
	keys := testKeys()
	s := policyServer(t, keys, oneRule("ECDHE", "networks: [192.0.2.0/24, 198.51.100.7, '2001:db8::/32', 'fe80::/10']"))
	for address, granted := range map[string]bool{
		"192.0.2.0": true, "192.0.2.255": true, "192.0.3.0": false, "192.0.1.255": false,
		"198.51.100.7": true, "198.51.100.8": false,
		"::ffff:192.0.2.7": true, "::ffff:192.0.3.7": false,
		"2001:db8::1": true, "2001:db9::1": false,
		"fe80::1%eth0": true, "fec0::1%eth0": false,
	} {
		peer := edgePeer
		peer.Addr = netip.AddrPortFrom(netip.MustParseAddr(address), 40000)
		resp, rec := s.ask(peer, validRequest(keys))
		require.Equal(t, granted, resp.Error == "", address)
		if !granted {
			require.Equal(t, "no rule grants the source network", rec.Reason)
		}
	}
	resp, _ := s.ask(ski.Peer{DNSNames: edgePeer.DNSNames}, validRequest(keys))
	require.Equal(t, ski.RequestDenied, resp.Error, "an address that is not known is in no network")
}

func TestPolicyTimes(t *testing.T) {
	keys := testKeys()
	p := parsePolicy(t, oneRule("ECDHE", "not_before: 2026-03-01T00:00:00+01:00", "not_after: 2026-03-31T12:00:00Z"))
	from, until := time.Date(2026, 2, 28, 23, 0, 0, 0, time.UTC), time.Date(2026, 3, 31, 12, 0, 0, 0, time.UTC)
	for at, granted := range map[time.Time]bool{
		from.Add(-time.Nanosecond): false, from: true, until: true, until.Add(time.Nanosecond): false,
	} {
		denial, ok := decide(p.match(edgePeer), access{key: keys.id(p256), keyName: p256, method: ski.MethodECDHE, protocol: ski.TLS12, time: at})
		require.Equal(t, granted, ok, at)
		if !granted {
			require.Equal(t, "no rule grants the time", denial)
		}
	}
	require.Empty(t, p.Warnings(until))
	require.Equal(t, []string{"policy rule 1 has not been valid since 2026-03-31T12:00:00Z"}, p.Warnings(until.Add(time.Second)))
	require.Equal(t, until, p.NextExpiry(from).UTC())
	require.Zero(t, p.NextExpiry(until.Add(time.Second)))
	require.Zero(t, parsePolicy(t, testPolicy).NextExpiry(from))

	// A Server asks with the time of the request.
	for lines, wire := range map[string]ski.Error{
		"not_after: 2020-01-01T00:00:00Z":  ski.RequestDenied,
		"not_before: 2999-01-01T00:00:00Z": ski.RequestDenied,
		"not_before: 2020-01-01T00:00:00Z": "",
		"not_after: 2999-01-01T00:00:00Z":  "",
	} {
		s := policyServer(t, keys, oneRule("ECDHE", lines))
		resp, _ := s.ask(edgePeer, validRequest(keys))
		require.Equal(t, wire, resp.Error, lines)
	}
}

// Each algorithm that is off by default needs its own switch, and the protocol
// that brings it along does not switch it on.
func TestPolicyLegacyAlgorithms(t *testing.T) {
	keys := testKeys()
	for _, c := range []struct {
		key, switches string
		granted       bool
	}{
		{p256, "tls-1.0", false},
		{p256, "tls-1.0, md5-sha-1", false},
		{p256, "tls-1.0, sha-1", true},
		{rsa2048, "tls-1.0", false},
		{rsa2048, "tls-1.0, sha-1", false},
		{rsa2048, "tls-1.0, md5-sha-1", true},
	} {
		s := policyServer(t, keys, oneRule("ECDHE", "legacy: ["+c.switches+"]"))
		resp, rec := s.ask(edgePeer, &ski.Request{Protocol: ski.TLS10, SPKI: keys.id(c.key), Input: ecdhe(x25519, basePoint(x25519))})
		require.Equal(t, c.granted, resp.Error == "", "%+v", c)
		if !c.granted {
			require.Equal(t, "no rule grants the legacy algorithm", rec.Reason)
		}
	}
}

// A wildcard stands for one label, and for one that can be in a host name.
func TestPolicyWildcard(t *testing.T) {
	p := parsePolicy(t, oneRule("ECDHE", "server_names: ['*.example.com', Example.ORG]"))
	for name, granted := range map[string]bool{
		"www.example.com": true, "WWW.Example.COM": true, "xn--bcher-kva.example.com": true, "example.org": true,
		"": false, "example.com": false, ".example.com": false, "*.example.com": false, "a.b.example.com": false,
		"-.example.com": false, "a_b-.example.com": false, "www.example.org": false, "example.org.": false,
		strings.Repeat("a", 63) + ".example.com": true, strings.Repeat("a", 64) + ".example.com": false,
	} {
		a := newAccess(&Record{}, &ski.Request{Protocol: ski.TLS12, ServerName: name}, key{id: testKeys().id(p256)}, algorithm{})
		_, ok := decide(p.match(edgePeer), a)
		require.Equal(t, granted, ok, name)
	}
}

func TestPolicyGroups(t *testing.T) {
	p := parsePolicy(t, `
edges:
  - {name: a, dns: [a.example.net]}
  - {name: b, dns: [b.example.net]}
  - {name: c, dns: [c.example.net]}
edge_groups:
  - {name: europe, edges: [a, b]}
  - {name: all, edges: [a, b, c]}
key_groups:
  - {name: shop, keys: [test-only-ecdsa-p256, test-only-ecdsa-p384]}
rules:
  - edges: [europe]
    keys: [shop, test-only-ed25519]
    methods: [ECDHE]
  - edges: [all, c, europe]
    keys: [test-only-ecdsa-p521, shop]
    methods: [ECDHE]
    protocols: [TLS 1.3]
`)
	var got []string
	for _, r := range p.Rights() {
		got = append(got, fmt.Sprint(r.Edge, " ", strings.TrimPrefix(r.KeyName, "test-only-"), " ", len(r.Protocols)))
	}
	require.Equal(t, []string{
		"a ecdsa-p256 4", "a ecdsa-p384 4", "a ed25519 4", "a ecdsa-p256 1", "a ecdsa-p384 1", "a ecdsa-p521 1",
		"b ecdsa-p256 4", "b ecdsa-p384 4", "b ed25519 4", "b ecdsa-p256 1", "b ecdsa-p384 1", "b ecdsa-p521 1",
		"c ecdsa-p256 1", "c ecdsa-p384 1", "c ecdsa-p521 1",
	}, got, "a rule that names an edge twice is there once")
}

// Rights lists what can be done, not what the words of a rule would allow.
func TestRightsAreEffective(t *testing.T) {
	store := new(MemoryStore)
	for name, k := range map[string]crypto.Signer{
		"short": newRSA(t, 1024), "rsa": newRSA(t, 2048), "ec": newECDSA(t, elliptic.P256()),
	} {
		require.NoError(t, store.Add(name, k))
	}
	rights := func(text string) map[string]Right {
		p, err := ParsePolicy("policy.yaml", []byte(text), store)
		require.NoError(t, err)
		byKey := make(map[string]Right)
		for _, r := range p.Rights() {
			byKey[r.KeyName] = r
		}
		return byKey
	}
	got := rights(oneRule("ECDHE, RSA"))
	require.Len(t, got, 2, "the short key needs its switch")
	require.Equal(t, []ski.Method{ski.MethodECDHE}, got["ec"].Methods)
	require.Equal(t, []ski.Method{ski.MethodECDHE, ski.MethodRSA}, got["rsa"].Methods)

	require.Equal(t, []string{"secp256r1", "secp384r1", "x25519"}, got["rsa"].Groups)

	got = rights(oneRule("DHE, ECDHE-PMS", "groups: [modp_2048, secp521r1]"))
	require.Equal(t, []ski.Method{ski.MethodECDHEPMS}, got["ec"].Methods)
	require.Equal(t, []string{"secp521r1"}, got["ec"].Groups, "only an RSA key does DHE")
	require.Equal(t, []string{"secp521r1", "modp_2048"}, got["rsa"].Groups)
	require.Equal(t, []ski.Method{ski.MethodDHE, ski.MethodECDHEPMS}, got["rsa"].Methods)
	require.Equal(t, []ski.Protocol{ski.TLS12, ski.DTLS12}, got["rsa"].Protocols)

	got = rights(oneRule("ECDHE, RSA", "legacy: [rsa-below-2048]"))
	require.Len(t, got, 3)
	require.Equal(t, []string{"rsa-below-2048"}, got["short"].Legacy)
	require.Empty(t, got["rsa"].Legacy)

	got = rights(oneRule("RSA"))
	require.Len(t, got, 1)
	require.Equal(t, []ski.Protocol{ski.TLS12, ski.DTLS12}, got["rsa"].Protocols, "TLS 1.3 has no RSA key exchange")
	require.Empty(t, got["rsa"].Groups)

	got = rights(oneRule("ECDHE", "protocols: [TLS 1.3]"))
	require.Empty(t, got["ec"].Groups, "the key server does not see that of TLS 1.3")

	got = rights(oneRule("ECDHE", "algorithms: [rsa_pss_rsae_sha256, SHA-384]", "networks: [192.0.2.0/24]"))
	require.Equal(t, []string{"SHA-384"}, got["ec"].Algorithms)
	require.Equal(t, []ski.Protocol{ski.TLS12, ski.DTLS12}, got["ec"].Protocols, "TLS 1.3 needs a scheme")
	require.Equal(t, []string{"rsa_pss_rsae_sha256", "SHA-384"}, got["rsa"].Algorithms)
	require.Equal(t, []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24")}, got["rsa"].Networks)
}

// renamed is a KeyStore of another program, with any names.
type renamed struct {
	KeyStore
	name string
}

func (r renamed) Lookup(id ski.KeyID) (string, crypto.PublicKey, bool) {
	_, pub, ok := r.KeyStore.Lookup(id)
	return r.name, pub, ok
}

func TestPolicyRefusesAmbiguousKeyNames(t *testing.T) {
	for name, want := range map[string]string{
		"same": `two keys are called "same"`, "*": "cannot have the name", "": "cannot have the name",
		strings.Repeat("a", 64): "looks like a fingerprint",
	} {
		_, err := ParsePolicy("policy.yaml", []byte(testPolicy), renamed{testKeys(), name})
		require.ErrorContains(t, err, want)
		require.ErrorContains(t, err, "policy.yaml: the key store")
	}
}
