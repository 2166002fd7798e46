package keyserver

import (
	"crypto"
	"testing"
	"testing/synctest"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/tlsski/tlsski/ski"
	"github.com/tlsski/tlsski/ski/skitest"
)

// The conformance suite without a network. cmd runs it over each binding.
func TestTheKeyServerConforms(t *testing.T) {
	keys := testKeys()
	for _, tc := range []struct {
		failure RSAFailure
		peer    ski.Peer
	}{{RSAFailureRandom, edgePeer}, {RSAFailureError, edgePeer}, {RSAFailureRandom, legacyPeer}} {
		failure := tc.failure
		t.Run(string(failure)+" "+tc.peer.DNSNames[0], func(t *testing.T) {
			s := newTestServer(t, keys, func(o *Options) { o.RSAFailure = failure })
			cfg := skitest.Config{Exchanger: skitest.InMemory(s, tc.peer), RSAFailureError: failure == RSAFailureError}
			for _, name := range []string{p256, rsa2048, ed} {
				cfg.Keys = append(cfg.Keys, keys.public(name))
			}
			passed := 0
			require.NoError(t, skitest.Run(t.Context(), cfg, func(r skitest.Result) {
				if r.Outcome == skitest.Pass {
					passed++
				}
				assert.NotEqual(t, skitest.Fail, r.Outcome, "%s (%s): %s: %s", r.Name(), r.Case.Section, r.Case.Rule, r.Reason)
			}))
			assert.Greater(t, passed, 200)
		})
	}
}

// The case that waits, in a time that does not.
func TestAnExpiredStateConforms(t *testing.T) {
	keys := testKeys()
	synctest.Test(t, func(t *testing.T) {
		s := newTestServer(t, keys)
		cfg := skitest.Config{
			Exchanger: skitest.InMemory(s, edgePeer), Keys: []crypto.PublicKey{keys.public(p256)}, Patience: true,
			Skip: []string{"encoding", "attributes", "order", "ecdhe", "dhe", "rsa", "tls13", "binding", "channel"},
		}
		ran := map[string]skitest.Outcome{}
		require.NoError(t, skitest.Run(t.Context(), cfg, func(r skitest.Result) {
			ran[r.Name()] = r.Outcome
			assert.NotEqual(t, skitest.Fail, r.Outcome, "%s: %s", r.Name(), r.Reason)
		}))
		assert.Equal(t, skitest.Pass, ran["cbor/ecdhe-pms/state-expired"])
	})
}
