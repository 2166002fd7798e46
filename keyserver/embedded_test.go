package keyserver

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/tlsski/tlsski/ski"
)

const leastEmbeddedConfig = "keys: keys\npolicy: policy.yaml\n"

func loadEmbeddedConfig(t *testing.T, text string) (*Config, string, error) {
	dir := folder(t, nil)
	file := filepath.Join(dir, "ks.yaml")
	require.NoError(t, os.WriteFile(file, []byte(text), 0o600))
	c, err := LoadEmbeddedConfig(file)
	return c, dir, err
}

func TestEmbeddedConfig(t *testing.T) {
	c, dir, err := loadEmbeddedConfig(t, `
keys: keys
hsm: {keys: [{uri: "pkcs11:token=t"}], max_sessions: 3}
policy: policy.yaml
state: state.json
audit: {file: audit.log, required: true}
rsa_failure: random
rsa_failure_secret_file: secret
state_key_file: state.key
rsa_workers: 2
max_in_flight: 100
`)
	require.NoError(t, err)
	require.Equal(t, dir+"/keys", c.Keys)
	require.Equal(t, []HSMKey{{URI: "pkcs11:token=t"}}, c.HSM.Keys)
	require.Equal(t, dir+"/audit.log", c.Audit.File)
	require.Equal(t, dir+"/state.json", c.State)
	require.Equal(t, dir+"/state.key", c.StateKeyFile)
	require.EqualValues(t, 100, c.MaxInFlight)
	require.Empty(t, c.Warnings())
}

func TestEmbeddedConfigErrors(t *testing.T) {
	for name, tc := range map[string]struct{ text, want string }{
		"network":    {leastEmbeddedConfig + "listen: \":5684\"\n", `ks.yaml:3:9: an embedded key server has no "listen": nobody reaches it over a network`},
		"channel":    {"certificate: c.pem\n" + leastEmbeddedConfig, `ks.yaml:1:14: an embedded key server has no "certificate"`},
		"admin":      {leastEmbeddedConfig + "admin: sock\n", `ks.yaml:3:8: an embedded key server has no "admin": it is cut off by stopping the edge server`},
		"log":        {leastEmbeddedConfig + "log: {level: debug}\n", `ks.yaml:3:6: an embedded key server has no "log": it stands in the edge server's configuration`},
		"sandbox":    {leastEmbeddedConfig + "sandbox: auto\n", `ks.yaml:3:10: an embedded key server has no "sandbox"`},
		"in the hsm": {"hsm:\n  keys: [{uri: \"pkcs11:\"}]\n  network: true\npolicy: p\n", `ks.yaml:3:12: an embedded key server has no "hsm.network"`},
		"no keys":    {"policy: policy.yaml\n", `ks.yaml:1:1: both "keys" and "hsm" are missing`},
		"no policy":  {"keys: keys\n", `ks.yaml:1:1: "policy" is missing`},
		"unknown":    {leastEmbeddedConfig + "audits: x\n", `ks.yaml:3:1: unknown field "audits"`},
		"as before":  {leastEmbeddedConfig + "max_in_flight: 0\n", `ks.yaml:3:16: with 0, no request is ever answered`},
	} {
		t.Run(name, func(t *testing.T) {
			_, dir, err := loadEmbeddedConfig(t, tc.text)
			require.ErrorContains(t, err, filepath.Join(dir, tc.want))
		})
	}
}

// The peer of the same process is told apart by its URI alone, and it can be
// limited, recorded and suspended like any other.
func TestEmbeddedPeer(t *testing.T) {
	keys := testKeys()
	policy := func(rules string) *Policy {
		p, err := ParsePolicy("policy", []byte("edges: [{name: here, uri: [\""+EmbeddedURI+"\"]}, {name: other, psk: [other]}]\nrules:\n"+rules), keys)
		require.NoError(t, err)
		return p
	}
	peer := EmbeddedPeer()
	s := newTestServer(t, keys, func(o *Options) {
		o.Policy = policy("  - {edges: [here], keys: [\"*\"], methods: [ECDHE, ECDHE-PMS]}\n")
	})
	require.NoError(t, s.Admit(peer))
	require.NoError(t, s.ServeSKI(t.Context(), peer, freshRequest(keys)).Err())
	last := s.trail.last()
	require.Equal(t, "here", last.Edge)
	line := last.line()
	require.Empty(t, line.Peer)
	require.Empty(t, line.Address)
	require.Equal(t, []string{"here"}, edgesOf(s.policy.Load().RightsOf(peer)))

	// The state of ECDHE-PMS is bound to it by its name in the policy, and to no
	// peer of a channel that has the same.
	first := firstRequest(keys, secp256r1)
	resp := s.ServeSKI(t.Context(), peer, first)
	require.NoError(t, resp.Err())
	point, secret := client(t, resp.Params)
	second := secondRequest(first, resp.State, point)
	other := peer
	other.SPKI[0] = 1
	require.Equal(t, ski.MalformedRequest, s.ServeSKI(t.Context(), other, second).Error)
	require.Equal(t, secret, s.ServeSKI(t.Context(), peer, second).Output)

	// A network is one that nothing comes from.
	s.SetPolicy(policy("  - {edges: [here], keys: [\"*\"], methods: [ECDHE], networks: [\"0.0.0.0/0\", \"::/0\"]}\n"))
	require.Equal(t, ski.RequestDenied, s.ServeSKI(t.Context(), peer, freshRequest(keys)).Error)
	require.Equal(t, "no rule grants the source network", s.trail.last().Reason)

	// Nor is it anybody whom the policy knows by something else.
	s.SetPolicy(policy("  - {edges: [other], keys: [\"*\"], methods: [ECDHE]}\n"))
	require.Equal(t, ski.RequestDenied, s.ServeSKI(t.Context(), peer, freshRequest(keys)).Error)
	require.Empty(t, s.policy.Load().RightsOf(peer))

	_, err := s.Suspend(Suspension{Edge: "here", By: "detector repeat"})
	require.NoError(t, err)
	require.ErrorContains(t, s.Admit(peer), "suspended")
}

func edgesOf(rights []Right) []string {
	var names []string
	for _, r := range rights {
		if len(names) == 0 || names[len(names)-1] != r.Edge {
			names = append(names, r.Edge)
		}
	}
	return names
}
