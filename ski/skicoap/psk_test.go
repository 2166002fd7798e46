package skicoap

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/pion/dtls/v3"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/tlsski/tlsski/ski"
)

// keyring is a set of pre-shared keys that can change.
type keyring struct {
	mu   sync.Mutex
	keys map[string][]byte
}

func (k *keyring) find(identity string) []byte {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.keys[identity]
}

func (k *keyring) set(keys map[string][]byte) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.keys = maps.Clone(keys)
}

var pskKey = bytes.Repeat([]byte{7}, 32)

func newKeyring(identities ...string) *keyring {
	k := &keyring{keys: make(map[string][]byte)}
	for _, identity := range identities {
		k.keys[identity] = pskKey
	}
	return k
}

func usePSK(identity string, key []byte) func(*ClientConfig) {
	return func(cfg *ClientConfig) {
		*cfg = ClientConfig{PSK: &ski.PSK{Identity: identity, Key: key}, Logger: quiet, DialTimeout: time.Minute, DeadAfter: time.Minute}
	}
}

func TestAPeerWithAPreSharedKeyIsServed(t *testing.T) {
	ca := newTestCA(t)
	peers := make(chan ski.Peer, 2)
	s := serve(t, "127.0.0.1:0", ServerConfig{
		Certificate: ca.keyServer(), ClientCAs: ca.pool, PSK: newKeyring("edge-1").find,
		Handler: ski.HandlerFunc(func(ctx context.Context, p ski.Peer, req *ski.Request) *ski.Response {
			peers <- p
			return echo(ctx, p, req)
		}),
	})
	require.NoError(t, ask(t.Context(), dialTo(t, s, ca, usePSK("edge-1", pskKey)), 1))
	p := <-peers
	assert.Equal(t, "edge-1", p.PSK)
	assert.True(t, p.SPKI.IsZero())
	assert.Nil(t, p.Certificate)

	require.NoError(t, ask(t.Context(), dialTo(t, s, ca), 1), "one with a certificate is served beside it")
	p = <-peers
	assert.Empty(t, p.PSK)
	assert.False(t, p.SPKI.IsZero())
}

// handshakeTranscript makes a handshake with a pre-shared key and returns what
// the peer can see of its end: the error, and the lengths of the datagrams
// but for repetitions, of which there are as many as the machine has time for.
func handshakeTranscript(t *testing.T, s *Server, identity string, key []byte) (string, []int) {
	t.Helper()
	r := newRelay(t, s.Addr().String())
	var mu sync.Mutex
	var lengths []int
	r.down.Store(new(func(n int) {
		mu.Lock()
		defer mu.Unlock()
		lengths = append(lengths, n)
	}))
	udp, err := net.ResolveUDPAddr("udp", r.addr())
	require.NoError(t, err)
	conn, err := dtls.DialWithOptions("udp", udp,
		dtls.WithPSK(func([]byte) ([]byte, error) { return key, nil }), dtls.WithPSKIdentityHint([]byte(identity)),
		dtls.WithCipherSuites(pskSuites...), dtls.WithFlightInterval(time.Minute))
	require.NoError(t, err)
	defer conn.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
	defer cancel()
	err = conn.HandshakeContext(ctx)
	require.Error(t, err)
	mu.Lock()
	defer mu.Unlock()
	return err.Error(), slices.Compact(lengths)
}

func TestUnknownIdentitiesAndWrongKeysLookAlike(t *testing.T) {
	t.Parallel()
	ca := newTestCA(t)
	var log logBuffer
	s := serve(t, "127.0.0.1:0", ServerConfig{
		Certificate: ca.keyServer(), ClientCAs: ca.pool, PSK: newKeyring("edge-1").find, HandshakeTimeout: 2 * time.Second,
		Handler: ski.HandlerFunc(echo), Logger: slog.New(slog.NewTextHandler(&log, nil)),
	})
	wrong := bytes.Repeat([]byte{8}, 32)
	wantErr, wantLengths := handshakeTranscript(t, s, "edge-1", wrong)
	for _, identity := range []string{"edge-2", "with a space", strings.Repeat("x", ski.MaxPSKIdentityLen+1)} {
		gotErr, gotLengths := handshakeTranscript(t, s, identity, wrong)
		assert.Equal(t, wantErr, gotErr, identity)
		assert.Equal(t, wantLengths, gotLengths, identity)
	}
	require.Eventually(t, func() bool {
		return strings.Contains(log.String(), `no pre-shared key \"edge-2\"`) && strings.Contains(log.String(), `pre-shared key \"edge-1\", perhaps another at the peer`)
	}, time.Minute, 10*time.Millisecond, "the operator is told the difference")
	assert.NotContains(t, log.String(), "with a space")
}

func TestWithoutKeysNoPreSharedKeyIsNegotiated(t *testing.T) {
	t.Parallel()
	ca := newTestCA(t)
	s := serve(t, "127.0.0.1:0", ServerConfig{Certificate: ca.keyServer(), ClientCAs: ca.pool, Handler: ski.HandlerFunc(echo)})
	_, err := dialTo(t, s, ca, usePSK("edge-1", pskKey), func(cfg *ClientConfig) { cfg.DialTimeout = time.Second }).RoundTrip(t.Context(), request(1))
	require.Error(t, err)
}

func TestPreSharedKeysAreForwardSecretUnlessToldOtherwise(t *testing.T) {
	ca := newTestCA(t)
	for _, allowed := range []bool{false, true} {
		s := serve(t, "127.0.0.1:0", ServerConfig{
			Certificate: ca.keyServer(), ClientCAs: ca.pool, Handler: ski.HandlerFunc(echo),
			PSK: newKeyring("edge-1").find, PSKWithoutForwardSecrecy: allowed,
		})
		for _, suite := range pskSuitesWithoutForwardSecrecy {
			conn, err := dtls.DialWithOptions("udp", net.UDPAddrFromAddrPort(s.Addr()),
				dtls.WithPSK(func([]byte) ([]byte, error) { return pskKey, nil }), dtls.WithPSKIdentityHint([]byte("edge-1")),
				dtls.WithCipherSuites(suite, pskSuites[0]))
			require.NoError(t, err)
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			err = conn.HandshakeContext(ctx)
			cancel()
			require.NoError(t, err)
			state, _ := conn.ConnectionState()
			want := pskSuites[0]
			if allowed {
				want = suite // the client's first choice
			}
			assert.Equal(t, want, state.CipherSuiteID)
			_ = conn.Close()
		}
	}
}

func TestAPeerThatLosesItsKeyDuringTheHandshakeGetsNoSession(t *testing.T) {
	ca := newTestCA(t)
	ring := newKeyring("edge-1")
	var log logBuffer
	s := serve(t, "127.0.0.1:0", ServerConfig{
		Certificate: ca.keyServer(), ClientCAs: ca.pool, Handler: ski.HandlerFunc(echo), PSK: ring.find,
		Logger: slog.New(slog.NewTextHandler(&log, nil)),
		Admit: func(ski.Peer) error { // which is asked when the handshake is done
			ring.set(map[string][]byte{"edge-1": bytes.Repeat([]byte{9}, 32)})
			return nil
		},
	})
	_, err := dialTo(t, s, ca, usePSK("edge-1", pskKey)).RoundTrip(t.Context(), request(1))
	require.Error(t, err)
	require.Eventually(t, func() bool { return strings.Contains(log.String(), errOtherKey.Error()) }, time.Minute, 10*time.Millisecond)
	assert.Empty(t, s.Peers())
}

// Two identities are two peers, although neither has a certificate.
func TestPreSharedKeysAreToldApart(t *testing.T) {
	ca := newTestCA(t)
	identities := []string{"edge-1", "edge-2", "edge-3"}
	s := serve(t, "127.0.0.1:0", ServerConfig{
		Certificate: ca.keyServer(), ClientCAs: ca.pool, Handler: ski.HandlerFunc(echo), PSK: newKeyring(identities...).find,
		MaxPeerSessions: 1,
	})
	clients := make(map[string]*Client)
	for _, identity := range identities {
		clients[identity] = dialTo(t, s, ca, usePSK(identity, pskKey))
		require.NoError(t, ask(t.Context(), clients[identity], 1))
	}
	assert.Len(t, s.Peers(), len(identities), "one session each is not one session for all")
	assert.Equal(t, 1, s.CloseSessions(errors.New("cut off"), func(p ski.Peer) bool { return p.PSK == "edge-2" }))
	for identity := range clients {
		if identity != "edge-2" {
			require.NoError(t, ask(t.Context(), clients[identity], 2))
		}
	}
}

func TestAClientHasCertificatesOrAPreSharedKey(t *testing.T) {
	ca := newTestCA(t)
	for want, cfg := range map[string]ClientConfig{
		"either":      {PSK: &ski.PSK{Identity: "a", Key: pskKey}, RootCAs: ca.pool},
		"16 to 64":    {PSK: &ski.PSK{Identity: "a", Key: pskKey[:15]}},
		"characters":  {PSK: &ski.PSK{Key: pskKey}},
		"no spaces":   {PSK: &ski.PSK{Identity: "a b", Key: pskKey}},
		"needs RootC": {},
	} {
		_, err := NewClient("coaps://localhost", cfg)
		require.ErrorContains(t, err, want, fmt.Sprint(want))
	}
}
