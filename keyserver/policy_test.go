package keyserver

import (
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/tlsski/tlsski/ski"
)

func parsePolicy(t *testing.T, text string) *Policy {
	t.Helper()
	p, err := ParsePolicy("policy.yaml", []byte(text), testKeys())
	require.NoError(t, err)
	return p
}

const policyText = `
edges:
  - name: one
    spki: [aa00000000000000000000000000000000000000000000000000000000000000]
  - name: two
    dns: [Edge-2.example.net, edge-2b.example.net]
    uri: ["spiffe://example.net/edge/2"]
  - name: idle
    dns: [idle.example.net]
rules:
  - edges: [one, two]
    keys: [test-only-ecdsa-p256]
    methods: [ECDHE]
  - edges: [two]
    keys: [test-only-rsa-2048]
    methods: [RSA]
    protocols: [TLS 1.2]
    server_names: [www.example.com, "*.Example.org"]
  - edges: [one]
    keys: [test-only-rsa-2048, test-only-rsa-2048]
    methods: [ECDHE]
    legacy: [sha-1, tls-1.1]
`

func TestPolicyMatch(t *testing.T) {
	p := parsePolicy(t, policyText)
	for name, c := range map[string]struct {
		peer  ski.Peer
		edges []string
	}{
		"nothing":         {ski.Peer{}, nil},
		"fingerprint":     {ski.Peer{SPKI: ski.KeyID{0xaa}}, []string{"one"}},
		"other key":       {ski.Peer{SPKI: ski.KeyID{0xab}}, nil},
		"DNS name":        {ski.Peer{DNSNames: []string{"edge-2.example.net"}}, []string{"two"}},
		"case":            {ski.Peer{DNSNames: []string{"EDGE-2.EXAMPLE.NET"}}, []string{"two"}},
		"second name":     {ski.Peer{DNSNames: []string{"x.example.net", "edge-2b.example.net"}}, []string{"two"}},
		"URI":             {ski.Peer{URIs: []string{"spiffe://example.net/edge/2"}}, []string{"two"}},
		"URI is exact":    {ski.Peer{URIs: []string{"spiffe://example.net/edge/22", "spiffe://example.net/EDGE/2"}}, nil},
		"name in URI":     {ski.Peer{URIs: []string{"edge-2.example.net"}}, nil},
		"wildcard":        {ski.Peer{DNSNames: []string{"*.example.net"}}, nil},
		"twice the same":  {ski.Peer{DNSNames: []string{"edge-2.example.net", "edge-2b.example.net"}}, []string{"two"}},
		"several, in all": {ski.Peer{SPKI: ski.KeyID{0xaa}, DNSNames: []string{"idle.example.net"}, URIs: []string{"spiffe://example.net/edge/2"}}, []string{"one", "idle", "two"}},
	} {
		t.Run(name, func(t *testing.T) {
			var names []string
			for _, e := range p.match(c.peer) {
				names = append(names, e.name)
			}
			require.Equal(t, c.edges, names)
		})
	}
}

func TestPolicyDecide(t *testing.T) {
	keys := testKeys()
	p := parsePolicy(t, policyText)
	one := ski.Peer{SPKI: ski.KeyID{0xaa}}
	two := ski.Peer{DNSNames: []string{"edge-2.example.net"}}
	both := ski.Peer{SPKI: one.SPKI, DNSNames: two.DNSNames}
	idle := ski.Peer{DNSNames: []string{"idle.example.net"}}
	const rsaMethod, ecdheMethod = ski.MethodRSA, ski.MethodECDHE

	for _, c := range []struct {
		peer   ski.Peer
		access access
		denial string
	}{
		{one, access{key: keys.id(p256), method: ecdheMethod, protocol: ski.TLS12}, ""},
		{one, access{key: keys.id(p256), method: ecdheMethod, protocol: ski.DTLS13, serverName: "any.example"}, ""},
		{two, access{key: keys.id(p256), method: ecdheMethod, protocol: ski.TLS13}, ""},
		{one, access{key: keys.id(p384), method: ecdheMethod, protocol: ski.TLS12}, "no rule grants the key"},
		{idle, access{key: keys.id(p256), method: ecdheMethod, protocol: ski.TLS12}, "no rule grants the key"},
		{ski.Peer{}, access{key: keys.id(p256), method: ecdheMethod, protocol: ski.TLS12}, "the policy does not know the peer"},
		{one, access{key: keys.id(p256), method: rsaMethod, protocol: ski.TLS12}, "no rule grants the method"},
		{one, access{key: keys.id(p256), method: ecdheMethod, protocol: ski.TLS11}, "no rule grants the protocol"},
		{one, access{key: keys.id(p256), method: ecdheMethod, protocol: ski.TLS12, legacy: legacySHA1}, "no rule grants the legacy algorithm"},

		{two, access{key: keys.id(rsa2048), method: rsaMethod, protocol: ski.TLS12, serverName: "www.example.com"}, ""},
		{two, access{key: keys.id(rsa2048), method: rsaMethod, protocol: ski.DTLS12, serverName: "www.example.com"}, "no rule grants the protocol"},
		{two, access{key: keys.id(rsa2048), method: rsaMethod, protocol: ski.TLS12, serverName: "a.example.org"}, ""},
		{two, access{key: keys.id(rsa2048), method: rsaMethod, protocol: ski.TLS12}, "no rule grants the server name"},
		{two, access{key: keys.id(rsa2048), method: rsaMethod, protocol: ski.TLS12, serverName: "example.org"}, "no rule grants the server name"},
		{two, access{key: keys.id(rsa2048), method: rsaMethod, protocol: ski.TLS12, serverName: "a.b.example.org"}, "no rule grants the server name"},
		{two, access{key: keys.id(rsa2048), method: rsaMethod, protocol: ski.TLS12, serverName: "aexample.org"}, "no rule grants the server name"},
		{two, access{key: keys.id(rsa2048), method: rsaMethod, protocol: ski.TLS12, serverName: "www.example.com.evil.net"}, "no rule grants the server name"},

		{one, access{key: keys.id(rsa2048), method: ecdheMethod, protocol: ski.TLS11, legacy: legacySHA1}, ""},
		{one, access{key: keys.id(rsa2048), method: ecdheMethod, protocol: ski.TLS12}, ""},
		{one, access{key: keys.id(rsa2048), method: ecdheMethod, protocol: ski.TLS10}, "no rule grants the protocol"},
		{one, access{key: keys.id(rsa2048), method: ecdheMethod, protocol: ski.TLS11, legacy: legacyMD5SHA1}, "no rule grants the legacy algorithm"},
		{one, access{key: keys.id(rsa2048), method: ecdheMethod, protocol: ski.TLS11, legacy: legacySHA1 | legacyShortRSA}, "no rule grants the legacy algorithm"},

		// The rights of both edges, but no rule made of parts of two.
		{both, access{key: keys.id(rsa2048), method: ecdheMethod, protocol: ski.TLS12, legacy: legacySHA1}, ""},
		{both, access{key: keys.id(rsa2048), method: rsaMethod, protocol: ski.TLS12, serverName: "www.example.com"}, ""},
		{both, access{key: keys.id(rsa2048), method: rsaMethod, protocol: ski.TLS11, serverName: "www.example.com"}, "no rule grants the protocol"},
	} {
		c.access.keyName, _, _ = keys.Lookup(c.access.key)
		denial, ok := decide(p.match(c.peer), c.access)
		require.Equal(t, c.denial, denial, "%+v", c.access)
		require.Equal(t, c.denial == "", ok)
	}
}

func TestPolicyRights(t *testing.T) {
	keys := testKeys()
	p := parsePolicy(t, policyText)
	modern := []ski.Protocol{ski.TLS12, ski.TLS13, ski.DTLS12, ski.DTLS13}
	ecdheOnly := []ski.Method{ski.MethodECDHE}
	require.Equal(t, []Right{
		{Edge: "one", KeyName: p256, Key: keys.id(p256), Methods: ecdheOnly, Protocols: modern, Groups: defaultGroups},
		{Edge: "one", KeyName: rsa2048, Key: keys.id(rsa2048), Methods: ecdheOnly,
			Protocols: modern, Groups: defaultGroups, Legacy: []string{"sha-1"}}, // In TLS 1.1 an RSA key needs md5-sha-1 too.
		{Edge: "two", KeyName: p256, Key: keys.id(p256), Methods: ecdheOnly, Protocols: modern, Groups: defaultGroups},
		{Edge: "two", KeyName: rsa2048, Key: keys.id(rsa2048), Methods: []ski.Method{ski.MethodRSA},
			Protocols: []ski.Protocol{ski.TLS12}, ServerNames: []string{"www.example.com", "*.example.org"}},
	}, p.Rights())
	require.Equal(t, 3, p.EdgeCount())
	require.Equal(t, []string{
		"policy rule 2 grants RSA, which has no forward secrecy",
		"policy rule 3 allows legacy sha-1, tls-1.1",
	}, p.Warnings(time.Now()))

	require.Len(t, parsePolicy(t, testPolicy).Rights(), 15)
	require.Empty(t, parsePolicy(t, "edges: []\nrules: []\n").Rights())
}

// A key can be named by its fingerprint in either case.
func TestPolicyKeyByFingerprint(t *testing.T) {
	id := testKeys().id(p384)
	for _, text := range []string{id.String(), strings.ToUpper(id.String())} {
		p := parsePolicy(t, "edges: [{name: e, dns: [e]}]\nrules: [{edges: [e], keys: ["+text+"], methods: [ECDHE]}]\n")
		require.Equal(t, p384, p.Rights()[0].KeyName)
	}
}

func TestPolicyErrors(t *testing.T) {
	const e = "edges: [{name: e, dns: [e.example]}]\n"
	for name, c := range map[string]struct{ text, want string }{
		"unknown section":  {"rule: [1]\n", `policy.yaml:1:1: unknown field "rule"`},
		"unknown key":      {"edges:\n  - name: e\n    ip: [x]\n", `policy.yaml:3:5: unknown field "ip"`},
		"duplicate key":    {"edges: []\nedges: []\n", "policy.yaml:2:1: "},
		"not YAML":         {"edges: [\n", "policy.yaml:1:8: "},
		"not a list":       {"edges: e\n", "policy.yaml:1:8: "},
		"list in a name":   {"edges:\n  - name: [a]\n", "policy.yaml:2:11: found a list where a text belongs"},
		"empty file":       {"", "policy.yaml:1:1: the file is empty"},
		"only comments":    {"# edges:\n", "policy.yaml:1:1: the file is empty"},
		"two documents":    {"edges: []\n---\nrules: []\n", "policy.yaml:2:1: there is more than one document"},
		"empty documents":  {"---\n---\nedges: []\n", "policy.yaml:1:1: the file is empty"},
		"no section":       {"edges:\n", `policy.yaml:1:1: "edges" has no value`},
		"null entry":       {"edges: [~]\n", "policy.yaml:1:8: an entry of the list has no value"},
		"alias":            {"edges: &e\n  - {name: a, dns: [a]}\nrules: *e\n", "policy.yaml:1:8: anchors and aliases"},
		"merge key":        {"edges:\n  - <<: {name: a}\n    dns: [a]\n", "policy.yaml:2:5: anchors and aliases"},
		"no name":          {"edges:\n  - dns: [a]\n", "policy.yaml:2:5: an edge needs a 'name'"},
		"comma":            {"edges:\n  - name: a,b\n    dns: [a]\n", "policy.yaml:2:11: an edge's name cannot have a comma"},
		"same name":        {"edges:\n  - {name: a, dns: [a]}\n  - {name: a, dns: [b]}\n", `policy.yaml:3:12: there are two edges called "a"`},
		"no identity":      {"edges:\n  - name: a\n", `edge "a" needs one of`},
		"bad fingerprint":  {"edges:\n  - name: a\n    spki: [12, \n      ab]\n", "policy.yaml:3:12: an SPKI fingerprint"},
		"zero fingerprint": {"edges:\n  - name: a\n    spki: ['" + strings.Repeat("0", 64) + "']\n", "policy.yaml:3:12: an SPKI fingerprint"},
		"wildcard edge":    {"edges:\n  - name: a\n    dns: ['*.example']\n", `policy.yaml:3:11: "*.example" is not a DNS name`},
		"DNS name, space":  {"edges:\n  - name: a\n    dns: ['e.example ']\n", `policy.yaml:3:11: "e.example " is not a DNS name`},
		"DNS name, dot":    {"edges:\n  - name: a\n    dns: [e.example.]\n", `policy.yaml:3:11: "e.example." is not a DNS name`},
		"fingerprint name": {"edges:\n  - name: " + strings.Repeat("a", 64) + "\n    dns: [a]\n", "policy.yaml:2:11: an edge's name cannot look like a fingerprint"},
		"empty URI":        {"edges:\n  - name: a\n    uri: ['']\n", "policy.yaml:3:11: the URI is empty"},
		"rule without edges": {
			e + "rules:\n  - keys: ['*']\n    methods: [RSA]\n", "a rule needs 'edges'"},
		"rule without keys":    {e + "rules:\n  - edges: [e]\n    methods: [RSA]\n", "a rule needs 'keys'"},
		"rule without methods": {e + "rules:\n  - edges: [e]\n    keys: ['*']\n", "a rule needs 'methods'"},
		"unknown edge":         {e + "rules:\n  - edges: [e, f]\n    keys: ['*']\n    methods: [RSA]\n", `policy.yaml:3:16: there is no edge called "f"`},
		"unknown method":       {e + "rules:\n  - edges: [e]\n    keys: ['*']\n    methods: [ECDHE, rsa]\n", `policy.yaml:5:22: "rsa" is not a method`},
		"unknown protocol":     {e + "rules:\n  - edges: [e]\n    keys: ['*']\n    methods: [RSA]\n    protocols: [SSL 3.0]\n", `policy.yaml:6:17: "SSL 3.0" is not a protocol`},
		"legacy protocol":      {e + "rules:\n  - edges: [e]\n    keys: ['*']\n    methods: [RSA]\n    protocols: [TLS 1.0]\n", `policy.yaml:6:17: "TLS 1.0" has to be switched on by "tls-1.0" in 'legacy'`},
		"unknown switch":       {e + "rules:\n  - edges: [e]\n    keys: ['*']\n    methods: [RSA]\n    legacy: [md5]\n", `policy.yaml:6:14: "md5" is not a legacy switch`},
		"server name":          {e + "rules:\n  - edges: [e]\n    keys: ['*']\n    methods: [RSA]\n    server_names: [a.*.b]\n", `policy.yaml:6:20: "a.*.b" is neither`},
		"two dots":             {e + "rules:\n  - edges: [e]\n    keys: ['*']\n    methods: [RSA]\n    server_names: [a, '*..b']\n", `policy.yaml:6:23: "*..b" is neither`},
		"wildcard twice":       {e + "rules:\n  - edges: [e]\n    keys: ['*']\n    methods: [RSA]\n    server_names: ['*.*.b']\n", `policy.yaml:6:20: "*.*.b" is neither`},
		"unknown group":        {e + "rules:\n  - edges: [e]\n    keys: ['*']\n    methods: [ECDHE]\n    groups: [x25519, P-521]\n", `policy.yaml:6:22: "P-521" is not one of secp256r1, secp384r1, secp521r1, x25519, ffdhe2048,`},
		"DHE, no group":        {e + "rules:\n  - edges: [e]\n    keys: ['*']\n    methods: [DHE]\n", "policy.yaml:5:15: the rule grants DHE and names no group for it: write groups: [ffdhe2048]"},
		"ECDHE, DHE, no group": {e + "rules:\n  - edges: [e]\n    keys: ['*']\n    methods: [ECDHE, DHE]\n", "policy.yaml:5:22: the rule grants DHE and names no group for it: write groups: [secp256r1, secp384r1, x25519, ffdhe2048]"},
		"DHE, other group":     {e + "rules:\n  - edges: [e]\n    keys: ['*']\n    methods: [ECDHE, DHE]\n    groups: [x25519]\n", "policy.yaml:5:22: the rule grants DHE and names no group for it: write groups: [x25519, ffdhe2048]"},
		"ECDHE, other group":   {e + "rules:\n  - edges: [e]\n    keys: ['*']\n    methods: [ECDHE-PMS, DHE]\n    groups: [modp_2048]\n", "policy.yaml:5:15: the rule grants ECDHE-PMS and names no group for it: write groups: [secp256r1, secp384r1, x25519, modp_2048]"},
		"group without DHE":    {e + "rules:\n  - edges: [e]\n    keys: ['*']\n    methods: [ECDHE]\n    groups: [x25519, ffdhe2048]\n", `policy.yaml:6:22: "ffdhe2048" is for DHE, which the rule does not grant`},
		"group of RSA":         {e + "rules:\n  - edges: [e]\n    keys: ['*']\n    methods: [RSA]\n    groups: [x25519]\n", `policy.yaml:6:14: "x25519" is for ECDHE and ECDHE-PMS before TLS 1.3, which the rule does not grant`},
		"group of TLS 1.3":     {e + "rules:\n  - edges: [e]\n    keys: ['*']\n    methods: [ECDHE]\n    protocols: [TLS 1.3]\n    groups: [x25519]\n", `policy.yaml:7:14: "x25519" is for ECDHE and ECDHE-PMS before TLS 1.3, which the rule does not grant: of TLS 1.3 the key server does not see the group`},
		"unknown algorithm":    {e + "rules:\n  - edges: [e]\n    keys: ['*']\n    methods: [ECDHE]\n    algorithms: [SHA-256, sha-384]\n", `policy.yaml:6:27: "sha-384" is not one of SHA-224, SHA-256, SHA-384, SHA-512, rsa_pkcs1_sha256,`},
		"legacy algorithm":     {e + "rules:\n  - edges: [e]\n    keys: ['*']\n    methods: [ECDHE]\n    algorithms: [SHA-1]\n", `policy.yaml:6:18: "SHA-1" is not one of`},
		"no network":           {e + "rules:\n  - edges: [e]\n    keys: ['*']\n    methods: [ECDHE]\n    networks: [192.0.2.0/24, 192.0.2/24]\n", `policy.yaml:6:30: "192.0.2/24" is neither a network such as`},
		"bits beyond":          {e + "rules:\n  - edges: [e]\n    keys: ['*']\n    methods: [ECDHE]\n    networks: [192.0.2.1/24]\n", `policy.yaml:6:16: "192.0.2.1/24" has bits beyond its prefix: the network is 192.0.2.0/24`},
		"mapped network":       {e + "rules:\n  - edges: [e]\n    keys: ['*']\n    methods: [ECDHE]\n    networks: ['::ffff:192.0.2.1']\n", `policy.yaml:6:16: "::ffff:192.0.2.1" is neither`},
		"network's zone":       {e + "rules:\n  - edges: [e]\n    keys: ['*']\n    methods: [ECDHE]\n    networks: ['fe80::1%eth0']\n", `policy.yaml:6:16: `},
		"no time":              {e + "rules:\n  - edges: [e]\n    keys: ['*']\n    methods: [ECDHE]\n    not_after: 2026-12-31\n", `policy.yaml:6:16: "2026-12-31" is not a time such as`},
		"ends first":           {e + "rules:\n  - edges: [e]\n    keys: ['*']\n    methods: [ECDHE]\n    not_before: 2026-02-01T00:00:00Z\n    not_after: 2026-01-01T00:00:00Z\n", "policy.yaml:7:16: it is before 'not_before'"},
		"group without name":   {"edge_groups:\n  - edges: [a]\n", "policy.yaml:2:5: a group needs a 'name'"},
		"group of edges":       {e + "edge_groups:\n  - {name: g, edges: [e, f]}\n", `policy.yaml:3:26: there is no edge called "f"`},
		"group without edges":  {e + "edge_groups:\n  - name: g\n", "policy.yaml:3:5: a group of edges needs 'edges'"},
		"group in a group":     {e + "edge_groups:\n  - {name: g, edges: [e]}\n  - {name: h, edges: [g]}\n", `policy.yaml:4:23: there is no edge called "g"`},
		"group called an edge": {e + "edge_groups:\n  - {name: e, edges: [e]}\n", `policy.yaml:3:12: there is another edge or group of edges called "e"`},
		"two groups":           {e + "edge_groups:\n  - {name: g, edges: [e]}\n  - {name: g, edges: [e]}\n", `policy.yaml:4:12: there is another edge or group`},
		"group without keys":   {"key_groups:\n  - name: g\n", "policy.yaml:2:5: a group of keys needs 'keys'"},
		"key of no name":       {"key_groups:\n  - {name: g, keys: ['']}\n", `policy.yaml:2:22: a key cannot have the name ""`},
		"group called all":     {"key_groups:\n  - {name: '*', keys: ['*']}\n", "policy.yaml:2:12: a group of keys cannot have the name"},
		"group of keys, again": {"key_groups:\n  - {name: g, keys: ['*']}\n  - {name: g, keys: ['*']}\n", "policy.yaml:3:12: there is another group of keys"},
		"bare wildcard":        {e + "rules:\n  - edges: [e]\n    keys: ['*']\n    methods: [RSA]\n    server_names: ['*']\n", "policy.yaml:6:20: "},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := ParsePolicy("policy.yaml", []byte(c.text), testKeys())
			require.ErrorContains(t, err, c.want)
			require.NotContains(t, err.Error(), "\n")
		})
	}
	_, err := LoadPolicy("missing.yaml", testKeys())
	require.ErrorContains(t, err, "missing.yaml")
}

// A limit without a value is not the same as no limit: every key of a rule and
// of an edge, with all its lines commented out or with an empty list.
func TestPolicyRefusesEmptyValues(t *testing.T) {
	const rule = "edges: [{name: e, dns: [e.example]}]\nrules:\n  - edges: [e]\n    keys: ['*']\n    methods: [ECDHE]\n"
	for _, key := range ruleKeys(t) {
		for _, value := range []string{"", " []", " ~", " null", " {}", " !!seq []", "\n    # - www.example.com"} {
			text := rule + "    " + key + ":" + value + "\n"
			line := 6
			for i, l := range strings.Split(rule, "\n") {
				if name := strings.TrimLeft(l, " -"); strings.HasPrefix(name, key+":") && strings.HasPrefix(l, "  ") {
					lines := strings.Split(rule, "\n")
					lines[i] = l[:strings.Index(l, ":")] + ":" + value
					text, line = strings.Join(lines, "\n"), i+1
				}
			}
			_, err := ParsePolicy("policy.yaml", []byte(text), testKeys())
			require.ErrorContains(t, err, fmt.Sprintf("policy.yaml:%d:5: %q has no value", line, key), text)
		}
	}
	for _, key := range []string{"spki", "dns", "uri"} {
		_, err := ParsePolicy("policy.yaml", []byte("edges:\n  - name: e\n    "+key+": []\n"), testKeys())
		require.ErrorContains(t, err, fmt.Sprintf("policy.yaml:3:5: %q has no value", key))
	}
}

// ruleKeys returns the YAML keys of a rule.
func ruleKeys(t *testing.T) []string {
	var keys []string
	for _, f := range reflect.VisibleFields(reflect.TypeFor[ruleEntry]()) {
		keys = append(keys, f.Tag.Get("yaml"))
	}
	require.Contains(t, keys, "server_names")
	return keys
}

func TestPolicyByteOrderMark(t *testing.T) {
	require.Equal(t, 3, parsePolicy(t, "\ufeff"+strings.TrimSpace(policyText)).EdgeCount())
}

// A policy, a configuration and certificates decide over keys: nobody else may
// write them.
func TestTrustedFiles(t *testing.T) {
	dir := folder(t, map[string][]byte{"policy.yaml": []byte(policyText)})
	file := filepath.Join(dir, "policy.yaml")
	for _, mode := range []os.FileMode{0o644, 0o640, 0o600, 0o444} {
		require.NoError(t, os.Chmod(file, mode))
		_, err := LoadPolicy(file, testKeys())
		require.NoError(t, err)
	}
	for _, mode := range []os.FileMode{0o664, 0o646, 0o620, 0o602} {
		require.NoError(t, os.Chmod(file, mode))
		_, err := LoadPolicy(file, testKeys())
		require.ErrorContains(t, err, "policy.yaml: group or others can write it")
		_, err = LoadConfig(file)
		require.ErrorContains(t, err, "policy.yaml: group or others can write it")
		_, err = loadAuthorities(file, time.Now())
		require.ErrorContains(t, err, "policy.yaml: group or others can write it")
		_, _, err = (&Config{Certificate: file}).Identity(time.Now())
		require.ErrorContains(t, err, "policy.yaml: group or others can write it")
		_, err = OpenRevocations(file, nil)
		require.ErrorContains(t, err, "policy.yaml: group or others can write it")
	}
}
