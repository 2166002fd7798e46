package keyserver

import (
	"context"
	"crypto"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/tlsski/tlsski/ski"
)

// withPolicy makes the server have the test's policy with more sections.
func withPolicy(t testing.TB, keys KeyStore, sections string) func(*Options) {
	t.Helper()
	p, err := ParsePolicy("policy.yaml", []byte(testPolicy+sections), keys)
	require.NoError(t, err)
	if !strings.Contains(sections, "detectors:") {
		p.detectors = detectorRules{}
	}
	return func(o *Options) { o.Policy = p }
}

func TestRateOfAnEdge(t *testing.T) {
	keys := testKeys()
	s := newTestServer(t, keys, withPolicy(t, keys, `
limits:
  edge: {rate: 0.01, burst: 3}
  edges:
    legacy: {burst: 1}
`))
	for range 3 {
		resp, _ := s.ask(edgePeer, grantedRequest(keys))
		require.NoError(t, resp.Err())
	}
	resp := s.exceeds(limitEdgeRate, edgePeer, grantedRequest(keys))
	require.Greater(t, resp.RetryAfter, 90*time.Second)
	require.LessOrEqual(t, resp.RetryAfter, 100*time.Second)
	resp, _ = s.ask(edgePeer, grantedRequest(keys))
	require.LessOrEqual(t, resp.RetryAfter, 100*time.Second, "what is refused takes nothing")
	malformed := s.ServeMalformed(t.Context(), edgePeer, nil)
	require.Equal(t, ski.RequestDenied, malformed.Error, "messages that cannot be parsed count too")
	s.recordRefusals()
	require.Equal(t, map[string]uint64{limitEdgeRate: 1}, s.trail.last().Refused)

	// Another edge has its own, which says otherwise.
	resp, _ = s.ask(legacyPeer, grantedRequest(keys))
	require.NoError(t, resp.Err())
	resp, _ = s.ask(legacyPeer, grantedRequest(keys))
	require.Equal(t, ski.RequestDenied, resp.Error)
}

// Whoever is not in the policy cannot make the log grow faster by having many
// certificates.
func TestRateOfThoseThePolicyDoesNotKnow(t *testing.T) {
	keys := testKeys()
	s := newTestServer(t, keys, withPolicy(t, keys, "limits:\n  edge: {rate: 0.01}\n"))
	_, rec := s.ask(ski.Peer{SPKI: ski.KeyID{1}}, grantedRequest(keys))
	require.Equal(t, "the policy does not know the peer", rec.Reason)
	s.exceeds(limitEdgeRate, ski.Peer{SPKI: ski.KeyID{2}}, grantedRequest(keys))
}

// Only what would be done with the key counts: nobody without a right to it
// can keep others from it.
func TestRateOfAKey(t *testing.T) {
	keys := testKeys()
	s := newTestServer(t, keys, withPolicy(t, keys, `
limits:
  keys:
    test-only-ecdsa-p256: {rate: 0.01, burst: 2}
`))
	denied := grantedRequest(keys)
	denied.Hash = "" // SHA-1, which the edge may not use
	malformed := grantedRequest(keys)
	malformed.Input = []byte{0}
	for range 5 {
		resp, _ := s.ask(edgePeer, denied)
		require.Equal(t, ski.RequestDenied, resp.Error)
		resp, _ = s.ask(edgePeer, malformed)
		require.Equal(t, ski.MalformedRequest, resp.Error)
	}
	for _, peer := range []ski.Peer{edgePeer, legacyPeer} {
		resp, _ := s.ask(peer, grantedRequest(keys))
		require.NoError(t, resp.Err())
	}
	resp := s.exceeds(limitKeyRate, edgePeer, grantedRequest(keys))
	require.Positive(t, resp.RetryAfter)
	other := grantedRequest(keys)
	other.SPKI = keys.id(p384)
	resp, _ = s.ask(edgePeer, other)
	require.NoError(t, resp.Err())
}

// What another edge may have used up slows nobody down.
func TestOnlyAnEdgesOwnLimitSlowsIt(t *testing.T) {
	keys := testKeys()
	s := newTestServer(t, keys, withPolicy(t, keys, `
limits:
  edges:
    legacy: {rate: 0.01, burst: 1}
  keys:
    test-only-ecdsa-p256: {rate: 0.01, burst: 2}
`))
	for _, peer := range []ski.Peer{edgePeer, legacyPeer} {
		resp, _ := s.ask(peer, grantedRequest(keys))
		require.NoError(t, resp.Err())
		require.Zero(t, resp.Slow)
	}
	require.Zero(t, s.exceeds(limitKeyRate, edgePeer, grantedRequest(keys)).Slow)
	resp := s.exceeds(limitEdgeRate, legacyPeer, grantedRequest(keys))
	require.Equal(t, resp.RetryAfter, resp.Slow)
}

func TestInFlightOfAnEdge(t *testing.T) {
	keys := testKeys()
	store := &slowStore{testStore: keys, begun: make(chan struct{}), release: make(chan struct{})}
	s := newTestServer(t, store, withPolicy(t, keys, "limits:\n  edge: {in_flight: 2}\n"))
	var asking sync.WaitGroup
	for range 2 {
		asking.Go(func() { s.ServeSKI(t.Context(), edgePeer, grantedRequest(keys)) })
		<-store.begun
	}
	resp := s.exceeds(limitEdgeInFlight, edgePeer, grantedRequest(keys))
	require.Equal(t, time.Second, resp.RetryAfter)
	require.Equal(t, slowInFlight, resp.Slow)
	asking.Go(func() { s.ServeSKI(t.Context(), legacyPeer, grantedRequest(keys)) })
	<-store.begun // of the other edge
	close(store.release)
	asking.Wait()
	go func() { <-store.begun }()
	resp, _ = s.ask(edgePeer, grantedRequest(keys))
	require.NoError(t, resp.Err())
}

// slowStore signs when it is released.
type slowStore struct {
	testStore
	begun, release chan struct{}
}

func (s *slowStore) Sign(ctx context.Context, id ski.KeyID, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	s.begun <- struct{}{}
	<-s.release
	return s.testStore.Sign(ctx, id, digest, opts)
}

func TestNoRSAOperationWaitsForLong(t *testing.T) {
	s := newScheduler(0, 1, 0)
	s.rsa.patience = time.Millisecond
	working, done := make(chan struct{}), make(chan struct{})
	go s.private(t.Context(), key{public: rsaPublic(testKeys())}, func(context.Context) error { close(working); <-done; return nil })
	<-working
	err := s.private(t.Context(), key{public: rsaPublic(testKeys())}, func(context.Context) error { panic("done") })
	require.ErrorIs(t, err, errOverloaded)
	close(done)
}

// One edge asks for far more RSA operations than the machine can do: up to its
// rate, or, as by default, up to its requests in flight. The other's median
// latency is that without it and of an operation or two more, but for noise; in
// one queue for all it would be that of the queue, a hundred operations.
func TestOneEdgeAtItsLimitDoesNotSlowAnother(t *testing.T) {
	keys := testKeys()
	req := grantedRequest(keys)
	req.SPKI = keys.id(rsa2048)
	for name, limits := range map[string]string{
		"rate":      "limits:\n  edges:\n    legacy: {rate: 5, burst: 1}\n",
		"in flight": "# limits: as they are by default\n",
	} {
		t.Run(name, func(t *testing.T) {
			s := newTestServer(t, keys, withPolicy(t, keys, limits))
			median := func() time.Duration {
				var took []time.Duration
				for end := time.Now().Add(time.Second / 2); time.Now().Before(end); {
					begin := time.Now()
					resp := s.ServeSKI(t.Context(), edgePeer, req)
					took = append(took, time.Since(begin))
					require.NoError(t, resp.Err())
				}
				slices.Sort(took)
				return took[len(took)/2]
			}
			flooded := func() time.Duration {
				ctx, stop := context.WithCancel(t.Context())
				var flood sync.WaitGroup
				defer flood.Wait()
				defer stop()
				for range 400 {
					flood.Go(func() {
						pace := time.NewTicker(10 * time.Millisecond)
						defer pace.Stop()
						for ctx.Err() == nil {
							s.ServeSKI(ctx, legacyPeer, req)
							<-pace.C
						}
					})
				}
				return median()
			}
			// Again where something else has taken the processors in one half.
			for begin := time.Now(); ; {
				calm, flooded := median(), flooded()
				t.Logf("median without the flood %v, with it %v", calm, flooded)
				if flooded < 16*calm {
					break
				}
				require.Less(t, time.Since(begin), time.Minute)
			}
		})
	}
}

func TestLimitsThatAreRefused(t *testing.T) {
	for sections, want := range map[string]string{
		"limits:\n  edge: {rate: 0}\n":                             "policy.yaml:16:16: a rate is a number of requests a second, above 0",
		"limits:\n  edge: {rate: -1}\n":                            "above 0",
		"limits:\n  edge: {rate: .nan}\n":                          "above 0",
		"limits:\n  edge: {rate: .inf}\n":                          "above 0",
		"limits:\n  edge: {rate: 5, burst: 0}\n":                   "no request is ever answered",
		"limits:\n  edge: {burst: 5}\n":                            "a burst needs a rate",
		"limits:\n  edge: {in_flight: 0}\n":                        "no request is ever answered",
		"limits:\n  key: {rate: 5, in_flight: 1}\n":                "'in_flight' is for edges",
		"limits:\n  edge: {audit: 0}\n":                            "policy.yaml:16:17: 'audit' is a number of lines a second, above 0",
		"limits:\n  edge: {audit: .inf}\n":                         "above 0",
		"limits:\n  keys:\n    test-only-ecdsa-p256: {audit: 5}\n": "'audit' is for edges",
		"limits:\n  edges:\n    nobody: {rate: 5}\n":               `policy.yaml:17:13: there is no edge called "nobody"`,
		"limits:\n  keys:\n    '*': {rate: 5}\n":                   `a key cannot have the name "*"`,
		"limits:\n  keys:\n    test-only-ecdsa-p256: {rate: 0}\n":  "above 0",
		"limits:\n  edges:\n    edge: {rates: 5}\n":                `unknown field "rates"`,
	} {
		_, err := ParsePolicy("policy.yaml", []byte(testPolicy+sections), testKeys())
		require.ErrorContains(t, err, want, sections)
	}
}
