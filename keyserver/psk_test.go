package keyserver

import (
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/tlsski/tlsski/ski"
)

const pskPolicy = `
edges:
  - name: one
    psk: [edge-1]
  - name: two
    psk: [edge-2]
rules:
  - {edges: [one, two], keys: ["*"], methods: [ECDHE]}
`

var (
	pskOne = ski.Peer{Addr: netip.MustParseAddrPort("192.0.2.7:40000"), PSK: "edge-1"}
	pskTwo = ski.Peer{Addr: netip.MustParseAddrPort("192.0.2.8:40000"), PSK: "edge-2"}
)

// hexKey is a key as it stands in a file.
func hexKey(b string) string { return strings.Repeat(b, 16) }

// writePSKs puts another file in the place of the one before.
func writePSKs(t *testing.T, file string, lines ...string) {
	t.Helper()
	next := file + ".next"
	require.NoError(t, os.WriteFile(next, []byte(strings.Join(lines, "\n")), 0o600))
	require.NoError(t, os.Rename(next, file))
}

func newPSKServer(t *testing.T) (s testServer, keys testStore, file string) {
	t.Helper()
	keys = testKeys()
	dir := t.TempDir()
	require.NoError(t, os.Chmod(dir, 0o700))
	file = filepath.Join(dir, "edges.psk")
	writePSKs(t, file, "edge-1:"+hexKey("01"), "edge-2:"+hexKey("02"))
	psks, err := OpenPSKs(file)
	require.NoError(t, err)
	s = newTestServer(t, keys, func(o *Options) {
		policy, err := ParsePolicy("policy.yaml", []byte(pskPolicy), keys)
		require.NoError(t, err)
		o.Policy, o.PSKs = policy, psks
	})
	return s, keys, file
}

func TestAPolicyKnowsEdgesByTheirPreSharedKeys(t *testing.T) {
	s, keys, _ := newPSKServer(t)
	_, rec := s.ask(pskOne, grantedRequest(keys))
	assert.Equal(t, "one", rec.Edge)
	assert.Equal(t, outcomeOutput, rec.Outcome)
	assert.Equal(t, "psk:edge-1", rec.line().Peer)

	stranger := pskOne
	stranger.PSK = "edge-3"
	require.Error(t, s.Admit(stranger))
	require.Error(t, s.Admit(ski.Peer{}), "a peer with neither key nor certificate is nobody")
}

// Neither has a certificate: what is known by that must not be the same for
// both.
func TestEdgesWithPreSharedKeysAreToldApart(t *testing.T) {
	s, keys, _ := newPSKServer(t)
	live := &liveSessions{peers: []ski.Peer{pskOne, pskTwo}}
	s.SetSessions(live)

	closed, err := s.Suspend(Suspension{Edge: "psk:edge-1", By: "a test"})
	require.NoError(t, err)
	assert.Equal(t, 1, closed)
	require.Error(t, s.Admit(pskOne))
	require.NoError(t, s.Admit(pskTwo))
	assert.Equal(t, ski.PeerID{PSK: "edge-1"}, s.trail.last().Peer)

	edges := s.Edges()
	require.Len(t, edges, 3)
	assert.Equal(t, []string{"edge-2"}, edges[1].PSK)
	assert.Empty(t, edges[1].SPKI)
	assert.Equal(t, "psk:edge-1", edges[2].Name)

	_, err = s.Suspend(Suspension{Edge: ski.KeyID{}.String(), By: "a test"})
	require.ErrorIs(t, err, ErrUnknownEdge, "the fingerprint of no certificate would be that of all of them")
	_, rec := s.ask(pskTwo, grantedRequest(keys))
	assert.Equal(t, outcomeOutput, rec.Outcome)

	// Neither opens the other's state of ECDHE-PMS, even where both are one edge.
	both := s.policy.Load().match(pskOne)
	assert.NotEqual(t, stateOwner(pskOne, both, grantedRequest(keys)), stateOwner(pskTwo, both, grantedRequest(keys)))

	// The detector of one identity at two addresses.
	now := time.Now()
	for i := range 4 {
		assert.False(t, s.memory.isElsewhere(pskOne, now.Add(time.Duration(2*i)*time.Second)))
		assert.False(t, s.memory.isElsewhere(pskTwo, now.Add(time.Duration(2*i+1)*time.Second)))
	}
	moved := pskOne
	moved.Addr = pskTwo.Addr
	assert.False(t, s.memory.isElsewhere(moved, now))
	assert.True(t, s.memory.isElsewhere(pskOne, now))
}

func TestASessionEndsWhenItsPreSharedKeyChanges(t *testing.T) {
	s, _, file := newPSKServer(t)
	live := &liveSessions{peers: []ski.Peer{pskOne, pskTwo}}
	s.SetSessions(live)
	writePSKs(t, file, "edge-1:"+hexKey("ff"), "edge-2:"+hexKey("02"))
	require.NoError(t, s.ReloadPSKs())
	assert.Equal(t, []ski.Peer{pskTwo}, live.Peers())
	require.NoError(t, s.Admit(pskOne), "with the new key it may come back")

	writePSKs(t, file, "edge-1:"+hexKey("ff"))
	require.NoError(t, s.ReloadPSKs())
	assert.Empty(t, live.Peers())
	require.Error(t, s.Admit(pskTwo))

	writePSKs(t, file, "edge-1:00")
	require.ErrorContains(t, s.ReloadPSKs(), file+":1:")
	require.NoError(t, s.Admit(pskOne), "a file with a fault in it changes nothing")
	require.NoError(t, os.Remove(file))
	require.Error(t, s.ReloadPSKs())
	require.NoError(t, s.Admit(pskOne))
}

func TestAFileOfPreSharedKeysIsReadAgainWhenItChanges(t *testing.T) {
	s, _, file := newPSKServer(t)
	go s.Watch(t.Context())
	writePSKs(t, file, "edge-1:"+hexKey("01"))
	require.Eventually(t, func() bool { return s.Admit(pskTwo) != nil }, time.Minute, 10*time.Millisecond)
}

func TestAFileOfPreSharedKeysIsItsOwnersAlone(t *testing.T) {
	_, _, file := newPSKServer(t)
	require.NoError(t, os.Chmod(file, 0o640))
	_, err := OpenPSKs(file)
	require.ErrorContains(t, err, "chmod 600")
}

// An edge whose key has been taken out must not keep it because of a mode that
// was put right later, without a change of the file.
func TestAFileOfPreSharedKeysIsReadWhenItsModeIsPutRight(t *testing.T) {
	s, _, file := newPSKServer(t)
	require.NoError(t, os.WriteFile(file, []byte("edge-1:"+hexKey("01")), 0o600))
	require.NoError(t, os.Chmod(file, 0o640))
	require.Eventually(t, func() bool { return s.reloadPSKs(false) != nil }, time.Minute, 10*time.Millisecond)
	require.NoError(t, s.reloadPSKs(false), "told once")
	require.NoError(t, s.Admit(pskTwo))
	require.NoError(t, os.Chmod(file, 0o600))
	require.NoError(t, s.reloadPSKs(false))
	require.Error(t, s.Admit(pskTwo))
}

func TestIdentitiesInAPolicyAreChecked(t *testing.T) {
	keys := testKeys()
	for policy, want := range map[string]string{
		"edges: [{name: a, psk: [\"a b\"]}]\nrules: []":                          "policy.yaml:1:",
		"edges: [{name: \"psk:a\", dns: [a.example]}]\nrules: []":                "cannot look like a fingerprint",
		"edges: [{name: a, psk: []}]\nrules: []":                                 "has no value",
		"edges: [{name: a}]\nrules: []":                                          "'psk' to be known by",
		"edges: [{name: a, psk: [" + strings.Repeat("a", 129) + "]}]\nrules: []": "1 to 128",
	} {
		_, err := ParsePolicy("policy.yaml", []byte(policy), keys)
		require.ErrorContains(t, err, want, policy)
	}
	p, err := ParsePolicy("policy.yaml", []byte(pskPolicy), keys)
	require.NoError(t, err)
	require.Len(t, p.MissingPSKs(nil), 2)
}
