package main

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/tlsski/tlsski/ski"
	"github.com/tlsski/tlsski/ski/skitest"
)

type openTransport struct{ ski.Transport }

func (openTransport) Close() error { return nil }

func benchedKey(t *testing.T) (*workload, *skitest.KeyServer) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	id, err := ski.PublicKeyID(key.Public())
	require.NoError(t, err)
	return &workload{
		public: key.Public(), key: id, protocol: ski.TLS12, method: ski.MethodECDHE, hash: ski.SHA256,
		params: skitest.ECDHEInput(tls.X25519)[2*ski.RandomLen:],
	}, skitest.NewKeyServer(key)
}

// A key server that stands still for a while has been slow for every request
// that was due meanwhile, not only for the one that was on its way.
func TestAPacedLoadHasNoCoordinatedOmission(t *testing.T) {
	work, keys := benchedKey(t)
	var asked atomic.Int64
	stalling := ski.TransportFunc(func(ctx context.Context, req *ski.Request) (*ski.Response, error) {
		if asked.Add(1) == 50 {
			time.Sleep(400 * time.Millisecond)
		}
		return ski.Direct(keys, ski.Peer{}).RoundTrip(ctx, req)
	})
	l := &load{work: work, connections: []closingTransport{openTransport{stalling}}, inFlight: 1, rate: 500, timeout: time.Minute}
	require.NoError(t, l.measure(t.Context(), 0, time.Second, 0, nil))
	r := &benchReport{}
	l.report(r)
	slow := int64(0)
	for _, b := range r.Histogram {
		if b.To > 100_000 {
			slow += b.Count
		}
	}
	assert.Greater(t, slow, int64(50), "of about 150 requests that were due in the first 300 ms of the pause")
	assert.Empty(t, r.Errors)
}

// What goes wrong is counted by its kind, and not as an operation.
func TestErrorsOfALoadAreCountedByKind(t *testing.T) {
	for kind, fault := range map[string]skitest.Fault{
		"request denied": skitest.Refused(ski.RequestDenied),
		"timeout":        skitest.Silent(),
		"dial failed":    skitest.Failed("dial"),
		"wrong output":   skitest.AnsweringAnother(),
	} {
		t.Run(kind, func(t *testing.T) {
			work, keys := benchedKey(t)
			faulty := skitest.Always(ski.Direct(keys, ski.Peer{}), fault)
			timeout := time.Minute // A busy machine takes longer than one would think.
			if kind == "timeout" {
				timeout = 5 * time.Millisecond
			}
			l := &load{work: work, connections: []closingTransport{openTransport{faulty}}, inFlight: 1, rate: 200, timeout: timeout}
			require.NoError(t, l.measure(t.Context(), 0, 500*time.Millisecond, 0, nil))
			r := &benchReport{}
			l.report(r)
			assert.Positive(t, r.Errors[kind], r.Errors)
			assert.Len(t, r.Errors, 1)
		})
	}
}

// Detectors in key servers find questions that come twice.
func TestALoadNeverAsksTheSameTwice(t *testing.T) {
	work, keys := benchedKey(t)
	l := &load{work: work, connections: []closingTransport{openTransport{ski.Direct(keys, ski.Peer{})}}, inFlight: 4, timeout: time.Second}
	require.NoError(t, l.measure(t.Context(), 0, 100*time.Millisecond, 0, nil))
	seen := map[string]bool{}
	for _, r := range keys.Requests() {
		random := string(r.Input[ski.RandomLen : 2*ski.RandomLen])
		assert.False(t, seen[random])
		seen[random] = true
	}
	assert.NotEmpty(t, seen)
}
