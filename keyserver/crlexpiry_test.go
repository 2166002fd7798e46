package keyserver

import (
	"bytes"
	"context"
	"crypto/x509"
	"log/slog"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/tlsski/tlsski/ski"
)

// crlUntil returns a CRL in DER that is to be replaced by then; by no time for
// the zero time.
func (a *authority) crlUntil(number int64, nextUpdate time.Time, serials ...int64) []byte {
	return a.signCRL(&x509.RevocationList{Number: big.NewInt(number), NextUpdate: nextUpdate}, serials...)
}

// refusing opens a CRL file of authorities, with crl_expired: refuse.
func refusing(t *testing.T, crls []byte, authorities ...*authority) (r *Revocations, file string) {
	t.Helper()
	file = filepath.Join(stateFolder(t), "crl")
	require.NoError(t, os.WriteFile(file, crls, 0o600))
	var certs []*x509.Certificate
	for _, a := range authorities {
		certs = append(certs, a.cert)
	}
	r, err := OpenRevocations(file, certs)
	require.NoError(t, err)
	r.RefuseExpired()
	return r, file
}

func TestEdgesAreRefusedWhenTheirCRLExpires(t *testing.T) {
	ca, keys := newAuthority(t, "CA"), testKeys()
	r, file := refusing(t, ca.crl(1), ca)
	start := time.Now()
	var ahead atomic.Int64 // of the clock
	r.clock = func() time.Time { return start.Add(time.Duration(ahead.Load())) }
	var log bytes.Buffer
	psk := filepath.Join(stateFolder(t), "psk")
	require.NoError(t, os.WriteFile(psk, []byte("other:"+strings.Repeat("31", 32)+"\n"), 0o600))
	psks, err := OpenPSKs(psk)
	require.NoError(t, err)
	s := newTestServer(t, keys, func(o *Options) {
		o.Policy = parsePolicy(t, strings.Replace(testPolicy, "rules:", "  - name: other\n    psk: [other]\nrules:\n  - {edges: [other], keys: [\"*\"], methods: [ECDHE]}", 1))
		o.Revocations, o.PSKs = r, psks
		o.Logger = slog.New(slog.NewTextHandler(&log, nil))
	})
	certified := edgePeer
	certified.Certificate = ca.issued(1)
	live := &liveSessions{peers: []ski.Peer{certified, {PSK: "other"}}}
	s.SetSessions(live)
	ctx, cancel := context.WithCancel(t.Context())
	watching := make(chan struct{})
	go func() { s.Watch(ctx); close(watching) }()
	resp, _ := s.ask(certified, grantedRequest(keys))
	require.NoError(t, resp.Err())
	require.Len(t, live.Peers(), 2)

	ahead.Store(int64(2 * time.Hour))
	resp, rec := s.ask(certified, grantedRequest(keys))
	require.Equal(t, ski.RequestDenied, resp.Error)
	require.Contains(t, rec.Reason, `the CRL of "CN=CA" should have been replaced by `)
	require.ErrorContains(t, s.Admit(certified), "and crl_expired is refuse")
	require.Eventually(t, func() bool { return len(live.Peers()) == 1 }, time.Minute, time.Millisecond, "its session ends")
	require.Equal(t, "other", live.Peers()[0].PSK, "nothing is revoked of pre-shared keys")
	require.NoError(t, s.Admit(ski.Peer{PSK: "other"}))
	require.NoError(t, s.Health(), "they are answered")
	alone := newTestServer(t, keys, func(o *Options) { o.Revocations = r })
	require.ErrorContains(t, alone.Health(), "no edge is let in")

	replace(t, file, ca.crlUntil(2, start.Add(9*time.Hour))) // so that it is never seen half written
	require.Eventually(t, func() bool { return s.Admit(certified) == nil }, time.Minute, time.Millisecond, "a new CRL mends it")
	require.NoError(t, alone.Health())
	cancel()
	<-watching
	assert.Equal(t, 1, strings.Count(log.String(), "level=ERROR msg=CRL"), log.String())
}

// Without being told to refuse, it goes on with a warning, as it did when there
// was no choice.
func TestAnExpiredCRLIsWarnedOf(t *testing.T) {
	ca := newAuthority(t, "CA")
	r, _ := refusing(t, ca.crl(1, 42), ca)
	r.refuse = false
	require.Empty(t, r.news(true))
	r.clock = func() time.Time { return time.Now().Add(2 * time.Hour) }
	require.Empty(t, r.revoked(ca.issued(1)))
	require.NotEmpty(t, r.revoked(ca.issued(42)), "what it revokes stays revoked")
	require.NoError(t, r.Health())
	require.Len(t, r.news(false), 1)
	require.Empty(t, r.news(false), "once")
}

func TestWhichCRLSpeaksForAnEdge(t *testing.T) {
	past, future := time.Now().Add(-time.Hour), time.Now().Add(time.Hour)
	t.Run("a missing CRL is none", func(t *testing.T) {
		one, two := newAuthority(t, "one"), newAuthority(t, "two")
		r, _ := refusing(t, one.crl(1), one, two)
		assert.Empty(t, r.revoked(one.issued(1)))
		assert.Contains(t, r.revoked(two.issued(1)), `there is no CRL of "CN=two"`)
		assert.NoError(t, r.Health())
		require.Len(t, r.Warnings(time.Now()), 1)
		assert.Contains(t, r.Warnings(time.Now())[0], `it has no CRL of "CN=two": its edges are refused`)
	})
	t.Run("the newest of several counts", func(t *testing.T) {
		ca := newAuthority(t, "CA")
		r, _ := refusing(t, inPEM(ca.crlUntil(1, future), ca.crlUntil(2, past)), ca)
		assert.Contains(t, r.revoked(ca.issued(1)), "should have been replaced")
		assert.Error(t, r.Health())
		r, _ = refusing(t, inPEM(ca.crlUntil(1, past), ca.crlUntil(2, future)), ca)
		assert.Empty(t, r.revoked(ca.issued(1)))
		assert.Empty(t, r.Warnings(time.Now()))
	})
	t.Run("of the authority that has issued the certificate", func(t *testing.T) {
		old, successor := newAuthority(t, "edges"), newAuthority(t, "edges")
		r, _ := refusing(t, inPEM(old.crlUntil(1, past), successor.crlUntil(1, future)), old, successor)
		assert.Contains(t, r.revoked(old.edge(1)), "should have been replaced")
		assert.Empty(t, r.revoked(successor.edge(1)))
		assert.NoError(t, r.Health())
	})
	t.Run("of the authorities above too", func(t *testing.T) {
		root := newAuthority(t, "root")
		below := authorityUnder(t, root, "edges", 2)
		r, _ := refusing(t, inPEM(root.crlUntil(1, past), below.crlUntil(1, future)), root, below)
		assert.Contains(t, r.revoked(below.edge(1)), `the CRL of "CN=root" should have been replaced`)
		r, _ = refusing(t, inPEM(root.crlUntil(1, future), below.crlUntil(1, future)), root, below)
		assert.Empty(t, r.revoked(below.edge(1)))
		r, _ = refusing(t, below.crlUntil(1, future), below)
		assert.Empty(t, r.revoked(below.edge(1)), "a root that client_ca does not have needs none")
	})
	t.Run("of one of two authorities that vouch for it", func(t *testing.T) {
		old, root := newAuthority(t, "old"), newAuthority(t, "root")
		one := authorityUnder(t, old, "edges", 2)
		two := authorityWith(t, one.key, root, "edges", 2)
		below := authorityUnder(t, one, "below", 3) // and so of two as well
		crls := inPEM(old.crlUntil(1, past), root.crlUntil(1, future), one.crlUntil(1, future), below.crlUntil(1, future))
		for _, order := range [][]*authority{{old, root, one, two, below}, {below, two, one, root, old}} {
			r, _ := refusing(t, crls, order...)
			assert.Empty(t, r.revoked(two.edge(1)), "the other authority is no longer asked")
			assert.Empty(t, r.revoked(below.edge(1)))
			assert.NoError(t, r.Health())
		}
		r, _ := refusing(t, inPEM(old.crlUntil(1, past), one.crlUntil(1, future), below.crlUntil(1, future)), old, one, below)
		assert.Contains(t, r.revoked(two.edge(1)), `the CRL of "CN=old" should have been replaced`)
		assert.Contains(t, r.revoked(below.edge(1)), `the CRL of "CN=old" should have been replaced`)
	})
	t.Run("of one of two certificates of a root", func(t *testing.T) {
		root := newAuthority(t, "root")
		renewed := authorityWith(t, root.key, nil, "root", 2)
		r, _ := refusing(t, root.crlUntil(1, future), root, renewed)
		assert.Empty(t, r.revoked(root.edge(1)))
		r, _ = refusing(t, root.crlUntil(1, past), root, renewed)
		assert.NotEmpty(t, r.revoked(root.edge(1)))
	})
	t.Run("one that does not say when it is out of date", func(t *testing.T) {
		ca := newAuthority(t, "CA")
		r, _ := refusing(t, ca.crl(1), ca)
		(*r.now.Load())[0].nextUpdate = time.Time{} // crypto/x509 makes none.
		assert.Empty(t, r.revoked(ca.issued(1)))
		assert.Empty(t, r.NextUpdates())
		assert.Contains(t, r.Warnings(time.Now())[0], "has no nextUpdate")
	})
}

// An expired CRL is an outage of whatever fetches it. Ticket keys are taken from
// edges that have lost their right to them, and the others then get new ones;
// here all have lost no more than their sessions.
func TestAnExpiredCRLTakesNoTicketKeysBack(t *testing.T) {
	ca := newAuthority(t, "CA")
	r, file := refusing(t, ca.crl(1), ca)
	s := newTicketServer(t, func(o *Options) { o.Revocations = r }).at(noon)
	certified, suspended, revoked := edgePeer, otherPeer, edgePeer
	certified.Certificate, suspended.Certificate, revoked.Certificate = ca.issued(1), ca.issued(2), ca.issued(3)
	sessions := &closedSessions{peers: []ski.Peer{certified, suspended, revoked}}
	ask := func(peer ski.Peer) ski.Error {
		return s.ServeTickets(t.Context(), peer, "www.example.com", ski.TicketTag{}).Error
	}
	_, err := s.Suspend(Suspension{Edge: "other", By: "a test"})
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(file, ca.crlUntil(2, time.Now().Add(time.Hour), 3), 0o600))
	s.reloadRevocations()
	before := s.keysFor(certified, "www.example.com")

	r.clock = func() time.Time { return time.Now().Add(2 * time.Hour) }
	assert.Equal(t, ski.UnspecifiedError, ask(certified))
	assert.Contains(t, s.trail.last().Reason, "should have been replaced")
	assert.Equal(t, ski.RequestDenied, ask(suspended))
	assert.Equal(t, ski.RequestDenied, ask(revoked))
	s.SetSessions(sessions)
	require.Equal(t, 3, s.Enforce())
	require.Len(t, sessions.reasons, 3)
	assert.ErrorIs(t, sessions.reasons[certified.Certificate], net.ErrClosed)
	assert.NotErrorIs(t, sessions.reasons[suspended.Certificate], net.ErrClosed)
	assert.NotErrorIs(t, sessions.reasons[revoked.Certificate], net.ErrClosed)

	require.NoError(t, os.WriteFile(file, ca.crlUntil(4, time.Now().Add(9*time.Hour), 3), 0o600))
	s.reloadRevocations()
	assert.Equal(t, before.Tag(), s.keysFor(certified, "www.example.com").Tag())
}

// closedSessions keeps why sessions were closed.
type closedSessions struct {
	peers   []ski.Peer
	reasons map[*x509.Certificate]error
}

func (c *closedSessions) Peers() []ski.Peer { return c.peers }

func (c *closedSessions) CloseSessions(reason error, match func(ski.Peer) bool) (n int) {
	if c.reasons == nil {
		c.reasons = make(map[*x509.Certificate]error)
	}
	for _, p := range c.peers {
		if _, closed := c.reasons[p.Certificate]; !closed && match(p) {
			c.reasons[p.Certificate] = reason
			n++
		}
	}
	return n
}

func TestConfigOfExpiredCRLs(t *testing.T) {
	c, _, err := loadConfig(t, leastConfig+"crl: crl.pem\n")
	require.NoError(t, err)
	require.Equal(t, CRLExpiredWarn, c.CRLExpired)
	require.Len(t, c.Warnings(), 1)
	require.Contains(t, c.Warnings()[0], "crl_expired: warn lets an edge in")
	c, _, err = loadConfig(t, leastConfig+"crl: crl.pem\ncrl_expired: refuse\n")
	require.NoError(t, err)
	require.Empty(t, c.Warnings())
	for text, want := range map[string]string{
		"crl_expired: refuse\n":               `there is no "crl"`,
		"crl: crl.pem\ncrl_expired: ignore\n": `"ignore" is neither warn nor refuse`,
	} {
		_, _, err = loadConfig(t, leastConfig+text)
		require.ErrorContains(t, err, want)
	}
}
