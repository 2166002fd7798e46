package keyserver

import (
	"context"
	"crypto/x509"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/tlsski/tlsski/ski"
)

// liveSessions is a binding that has nothing but sessions.
type liveSessions struct {
	mu    sync.Mutex
	peers []ski.Peer
}

func (l *liveSessions) Peers() []ski.Peer {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Clone(l.peers)
}

func (l *liveSessions) CloseSessions(_ error, match func(ski.Peer) bool) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	before := len(l.peers)
	l.peers = slices.DeleteFunc(l.peers, match)
	return before - len(l.peers)
}

// stuckAuditor takes a record only when it is let, and says what it has been given.
type stuckAuditor struct{ given, let chan Event }

func (a *stuckAuditor) Audit(_ context.Context, r *Record) error {
	a.given <- r.Event
	a.let <- r.Event
	return nil
}

// A suspension is in force whatever waits for the audit log, and what ends another does
// not end it.
func TestASuspensionWaitsForNoAuditLog(t *testing.T) {
	audit := &stuckAuditor{make(chan Event, 9), make(chan Event)}
	s := newTestServer(t, testKeys(), func(o *Options) { o.Audit = audit })
	var done sync.WaitGroup
	suspend := func(name string) {
		done.Go(func() { _, _ = s.Suspend(Suspension{Edge: name, By: "a test"}) })
		require.Eventually(t, func() bool { return s.suspensions.named(name) }, time.Minute, time.Millisecond)
	}
	suspend("edge")
	require.Equal(t, EventSuspend, <-audit.given)
	suspend("legacy")
	require.Equal(t, EventSuspend, <-audit.let)
	require.Equal(t, EventSuspend, <-audit.given)
	require.Equal(t, EventSuspend, <-audit.let)
	done.Wait()

	done.Go(func() { _ = s.Resume("edge", "a test") })
	require.Equal(t, EventResume, <-audit.given)
	done.Go(func() { _, _ = s.Suspend(Suspension{Edge: "edge", By: "another test"}) })
	require.Eventually(t, func() bool { return s.suspensions.All()[0].By == "another test" }, time.Minute, time.Millisecond)
	require.Equal(t, EventResume, <-audit.let)
	require.Equal(t, EventSuspend, <-audit.given)
	require.True(t, s.suspensions.named("edge"))
	require.Equal(t, EventSuspend, <-audit.let)
	done.Wait()
}

// grantedRequest is one that edgePeer gets an answer to.
func grantedRequest(keys testStore) *ski.Request {
	return &ski.Request{Protocol: ski.TLS12, SPKI: keys.id(p256), Hash: ski.SHA256, Input: ecdhe(x25519, basePoint(x25519))}
}

func TestSuspendedEdge(t *testing.T) {
	keys := testKeys()
	s := newTestServer(t, keys)
	live := &liveSessions{peers: []ski.Peer{edgePeer, legacyPeer, edgePeer}}
	s.SetSessions(live)
	_, err := s.Suspend(Suspension{Edge: "no such edge", By: "a test"})
	require.ErrorIs(t, err, ErrUnknownEdge)
	require.NoError(t, s.Admit(edgePeer))
	resp, _ := s.ask(edgePeer, grantedRequest(keys))
	require.NoError(t, resp.Err())

	closed, err := s.Suspend(Suspension{Edge: "edge", By: "a test", Reason: "for a reason"})
	require.NoError(t, err)
	require.Equal(t, 2, closed)
	require.Equal(t, []ski.Peer{legacyPeer}, live.Peers())
	require.Equal(t, EventSuspend, s.trail.last().Event)
	require.Equal(t, "edge", s.trail.last().Edge)
	require.Contains(t, s.trail.last().Reason, "by a test: for a reason")
	require.ErrorContains(t, s.Admit(edgePeer), "by a test: for a reason")
	require.NoError(t, s.Admit(legacyPeer))
	s.refuses(grantedRequest(keys), ski.RequestDenied, "by a test: for a reason")
	unknownKey := grantedRequest(keys)
	unknownKey.SPKI = ski.KeyID{1}
	s.refuses(unknownKey, ski.RequestDenied, "by a test") // whichever keys there are
	require.Equal(t, ski.RequestDenied, s.ServeMalformed(t.Context(), edgePeer, nil).Error)
	resp, _ = s.ask(legacyPeer, grantedRequest(keys))
	require.NoError(t, resp.Err())

	require.NoError(t, s.Resume("edge", "a test"))
	require.Equal(t, EventResume, s.trail.last().Event)
	require.ErrorIs(t, s.Resume("edge", "a test"), ErrNotSuspended)
	resp, _ = s.ask(edgePeer, grantedRequest(keys))
	require.NoError(t, resp.Err())
	require.NoError(t, s.Admit(edgePeer))
}

func TestSuspendedKeyOfAnEdge(t *testing.T) {
	keys := testKeys()
	s := newTestServer(t, keys)
	stolen := edgePeer
	stolen.SPKI = ski.KeyID{0xaa}
	live := &liveSessions{peers: []ski.Peer{edgePeer, stolen}}
	s.SetSessions(live)
	closed, err := s.Suspend(Suspension{Edge: stolen.SPKI.String(), By: "a test"})
	require.NoError(t, err)
	require.Equal(t, 1, closed)
	require.Equal(t, stolen.ID(), s.trail.last().Peer)
	resp, _ := s.ask(stolen, grantedRequest(keys))
	require.Equal(t, ski.RequestDenied, resp.Error)
	resp, _ = s.ask(edgePeer, grantedRequest(keys))
	require.NoError(t, resp.Err())
}

func TestPeerThatThePolicyDoesNotKnowGetsNoSession(t *testing.T) {
	s := newTestServer(t, testKeys())
	require.ErrorContains(t, s.Admit(ski.Peer{DNSNames: []string{"other.example.net"}}), "the policy does not know the peer")
}

// A new CRL is in effect within a second: for requests, new sessions and those
// there are.
func TestRevokedCertificate(t *testing.T) {
	ca := newAuthority(t, "authority")
	file := filepath.Join(t.TempDir(), "crl.der")
	require.NoError(t, os.WriteFile(file, ca.crl(1), 0o600))
	revocations, err := OpenRevocations(file, []*x509.Certificate{ca.cert})
	require.NoError(t, err)
	keys := testKeys()
	s := newTestServer(t, keys, func(o *Options) { o.Revocations = revocations })
	revoked, other := edgePeer, edgePeer
	revoked.Certificate, other.Certificate = ca.issued(42), ca.issued(43)
	live := &liveSessions{peers: []ski.Peer{revoked, other}}
	s.SetSessions(live)
	ctx, cancel := context.WithCancel(t.Context())
	watching := make(chan struct{})
	go func() { s.Watch(ctx); close(watching) }()
	defer func() { cancel(); <-watching }()

	resp, _ := s.ask(revoked, grantedRequest(keys))
	require.NoError(t, resp.Err())
	require.NoError(t, os.WriteFile(file, ca.crl(2, 42), 0o600))
	require.Eventually(t, func() bool { return len(live.Peers()) == 1 }, time.Minute, time.Millisecond)
	require.Equal(t, []ski.Peer{other}, live.Peers())
	require.ErrorContains(t, s.Admit(revoked), "the certificate was revoked at 2026-02-03T04:05:06Z")
	resp, rec := s.ask(revoked, grantedRequest(keys))
	require.Equal(t, ski.RequestDenied, resp.Error)
	require.Equal(t, "the certificate was revoked at 2026-02-03T04:05:06Z", rec.Reason)
	resp, _ = s.ask(other, grantedRequest(keys))
	require.NoError(t, resp.Err())
}
