package keyserver

import (
	"bytes"
	"context"
	"crypto/x509"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/tlsski/tlsski/ski"
)

// ticketPolicy has two sites: one that three edges share, and one of an edge
// alone.
const ticketPolicy = testPolicy + `
  - edges: [other]
    keys: ["*"]
    methods: [ECDHE]
edge_groups:
  - name: most
    edges: [edge, legacy]
tickets:
  - name: www.example.com
    edges: [most, other]
  - name: shop.example.com
    edges: [edge]
    rotate: 1h
    lifetime: 90m
`

var otherPeer = ski.Peer{DNSNames: []string{"other.example.net"}}

func ticketPolicyText() string {
	return strings.Replace(ticketPolicy, "rules:", "  - name: other\n    dns: [other.example.net]\nrules:", 1)
}

var ticketSecret = bytes.Repeat([]byte{0x31}, MinTicketSecret)

func newTicketServer(t *testing.T, change ...func(*Options)) testServer {
	return newTestServer(t, testKeys(), append([]func(*Options){func(o *Options) {
		o.Policy, o.TicketRatchet = parsePolicy(t, ticketPolicyText()), openRatchet(t, "", ticketSecret, noon)
	}}, change...)...)
}

// openRatchet is OpenTicketRatchet with what has to go well.
func openRatchet(t *testing.T, file string, secret []byte, now time.Time) *TicketRatchet {
	t.Helper()
	r, err := OpenTicketRatchet(file, secret, now)
	require.NoError(t, err)
	return r
}

// at sets the clock that the keys are made by.
func (s testServer) at(clock time.Time) testServer {
	s.tickets.now = func() time.Time { return clock }
	return s
}

var noon = time.Date(2026, 3, 4, 12, 0, 0, 0, time.UTC)

// keysFor returns a site's keys, which the peer has to get.
func (s testServer) keysFor(peer ski.Peer, site string) *ski.TicketKeys {
	s.t.Helper()
	a := s.ServeTickets(s.t.Context(), peer, site, ski.TicketTag{})
	require.Empty(s.t, a.Error)
	require.NoError(s.t, a.Keys.Validate())
	return a.Keys
}

func hours(t *ski.TicketKeys) (all [][3]float64) {
	for _, k := range t.Keys {
		all = append(all, [3]float64{k.From.Sub(noon).Hours(), k.To.Sub(noon).Hours(), k.Until.Sub(noon).Hours()})
	}
	return all
}

func TestTicketKeysAreTheFormerTheCurrentAndTheNext(t *testing.T) {
	s := newTicketServer(t).at(noon)
	a := s.ServeTickets(t.Context(), edgePeer, "www.example.com", ski.TicketTag{})
	assert.Equal(t, [][3]float64{{-28, -20, 4}, {-20, -12, 12}, {-12, -4, 20}, {-4, 4, 28}, {4, 12, 36}}, hours(a.Keys))
	assert.Equal(t, noon.Add(4*time.Hour), a.Next.UTC())
	assert.Equal(t, [][3]float64{{-1, 0, 1.5}, {0, 1, 2.5}, {1, 2, 3.5}}, hours(s.keysFor(edgePeer, "shop.example.com"))[1:])
}

func TestTicketKeysRotate(t *testing.T) {
	s := newTicketServer(t).at(noon)
	before := s.keysFor(edgePeer, "www.example.com")
	after := s.at(noon.Add(8*time.Hour)).keysFor(edgePeer, "www.example.com")
	assert.Equal(t, before.Keys[1:], after.Keys[:4])
	assert.NotContains(t, before.Keys, after.Keys[4])
	assert.NotEqual(t, before.Tag(), after.Tag())
}

func TestKeyServersWithOneSecretHaveTheSameTicketKeys(t *testing.T) {
	one := newTicketServer(t).at(noon)
	two := newTicketServer(t).at(noon)
	other := newTicketServer(t, func(o *Options) { o.TicketRatchet = openRatchet(t, "", bytes.Repeat([]byte{1}, MinTicketSecret), noon) }).at(noon)
	assert.Equal(t, one.keysFor(edgePeer, "www.example.com"), two.keysFor(otherPeer, "www.example.com"))
	assert.NotEqual(t, one.keysFor(edgePeer, "www.example.com"), other.keysFor(edgePeer, "www.example.com"))

	// A suspension that both know of leaves them alike.
	for _, s := range []testServer{one, two} {
		_, err := s.Suspend(Suspension{Edge: "legacy", By: "a test"})
		require.NoError(t, err)
	}
	assert.Equal(t, one.keysFor(edgePeer, "www.example.com"), two.keysFor(otherPeer, "www.example.com"))
}

func TestSitesShareNoTicketKey(t *testing.T) {
	s := newTicketServer(t, func(o *Options) {
		o.Policy = parsePolicy(t, strings.Replace(ticketPolicyText(), "    rotate: 1h\n    lifetime: 90m\n", "", 1))
	}).at(noon)
	a, b := s.keysFor(edgePeer, "www.example.com"), s.keysFor(edgePeer, "shop.example.com")
	for i := range a.Keys {
		assert.NotEqual(t, a.Keys[i].Secret, b.Keys[i].Secret)
		assert.NotEqual(t, a.Keys[i].ID, b.Keys[i].ID)
	}
}

func TestTicketKeysAreForThosePolicyGrantsThem(t *testing.T) {
	s := newTicketServer(t)
	for _, tt := range []struct {
		peer         ski.Peer
		site, reason string
	}{
		{otherPeer, "shop.example.com", "does not grant the ticket keys"},
		{edgePeer, "nobody.example.com", "does not grant the ticket keys"},
		{ski.Peer{DNSNames: []string{"stranger.example.net"}}, "www.example.com", denialUnknownPeer},
	} {
		a := s.ServeTickets(t.Context(), tt.peer, tt.site, ski.TicketTag{})
		assert.Equal(t, &ski.TicketAnswer{Error: ski.RequestDenied}, a)
		rec := s.trail.last()
		assert.Equal(t, EventTickets, rec.Event)
		assert.Equal(t, "request denied", rec.Outcome)
		assert.Contains(t, rec.Reason, tt.reason)
	}
}

func TestHandingOutTicketKeysIsRecorded(t *testing.T) {
	s := newTicketServer(t)
	keys := s.keysFor(edgePeer, "www.example.com")
	rec := s.trail.last()
	assert.Equal(t, "edge", rec.Edge)
	assert.Equal(t, "www.example.com", rec.TicketSite)
	assert.Equal(t, outcomeOutput, rec.Outcome)
	assert.Equal(t, edgePeer.Addr, rec.Address)
	assert.Len(t, strings.Split(rec.TicketKeys, ","), len(keys.Keys))
	assert.Contains(t, rec.TicketKeys, keys.Keys[0].ID.String())

	n := len(s.trail.records)
	a := s.ServeTickets(t.Context(), edgePeer, "www.example.com", keys.Tag())
	assert.True(t, a.Same)
	assert.Nil(t, a.Keys)
	assert.Len(t, s.trail.records, n, "nothing was handed out")
}

func TestWithoutItsRecordNoTicketKeyGoesOut(t *testing.T) {
	s := newTicketServer(t, func(o *Options) { o.AuditRequired = true })
	s.trail.err = errors.New("the disk is full")
	a := s.ServeTickets(t.Context(), edgePeer, "www.example.com", ski.TicketTag{})
	assert.Equal(t, ski.UnspecifiedError, a.Error)
	assert.Nil(t, a.Keys)
}

func TestTicketKeysCountForTheEdgesLimit(t *testing.T) {
	s := newTicketServer(t, func(o *Options) {
		o.Policy = parsePolicy(t, ticketPolicyText()+"limits:\n  edge: {rate: 0.001, burst: 1}\n")
	})
	s.keysFor(edgePeer, "www.example.com")
	a := s.ServeTickets(t.Context(), edgePeer, "www.example.com", ski.TicketTag{})
	assert.Equal(t, ski.RequestDenied, a.Error)
	assert.Positive(t, a.RetryAfter)
}

// TestWhoIsCutOffLosesTheTicketKeys has each way of losing them: the edge gets
// none, whoever waits hears of it at once, and the others get keys of which the
// edge knows none, old or new.
// They are as much work as slow operations are, and beside these leave a processor for the
// others.
func TestTicketKeysTakeTurns(t *testing.T) {
	s := newTicketServer(t).at(noon)
	s.schedule.rsa = newTurns(1, time.Minute)
	require.NoError(t, s.schedule.rsa.begin(t.Context(), "another"))
	ctx, leave := context.WithCancel(t.Context())
	answered := make(chan *ski.TicketAnswer)
	ask := func() { answered <- s.ServeTickets(ctx, edgePeer, "www.example.com", ski.TicketTag{}) }
	go ask()
	require.Eventually(t, func() bool { return s.schedule.rsa.waits() == 1 }, time.Minute, time.Millisecond)
	leave()
	require.Equal(t, ski.UnspecifiedError, (<-answered).Error)
	require.Contains(t, s.trail.last().Reason, "the caller has gone")

	ctx = t.Context()
	s.schedule.rsa.patience = time.Millisecond
	require.Equal(t, ski.UnspecifiedError, s.ServeTickets(ctx, edgePeer, "www.example.com", ski.TicketTag{}).Error)
	require.Zero(t, s.schedule.rsa.waits(), "it waited, and not for long")

	s.schedule.rsa.patience = time.Minute
	go ask()
	require.Eventually(t, func() bool { return s.schedule.rsa.waits() == 1 }, time.Minute, time.Millisecond)
	s.schedule.rsa.end(0)
	require.Len(t, (<-answered).Keys.Keys, 5)
}

func TestWhoIsCutOffLosesTheTicketKeys(t *testing.T) {
	psk := filepath.Join(stateFolder(t), "psk")
	writePSK := func(t *testing.T, text string) {
		require.NoError(t, os.WriteFile(psk, []byte(text), 0o600))
	}
	withPSK := strings.Replace(ticketPolicyText(), "dns: [other.example.net]", "psk: [other]", 1)
	one := "other:" + strings.Repeat("31", 32) + "\n"
	crl := filepath.Join(stateFolder(t), "crl.der")
	ca := newAuthority(t, "CA")
	tests := []struct {
		name  string
		start func(t *testing.T) testServer
		cut   func(t *testing.T, s testServer)
		// rotates says whether the site of the edge alone has other keys too.
		rotates bool
	}{
		{"suspended", func(t *testing.T) testServer { return newTicketServer(t) }, func(t *testing.T, s testServer) {
			_, err := s.Suspend(Suspension{Edge: "other", By: "a test"})
			require.NoError(t, err)
		}, false},
		{"suspended by its key", func(t *testing.T) testServer { return newTicketServer(t) }, func(t *testing.T, s testServer) {
			_, err := s.Suspend(Suspension{Edge: ski.KeyID{7}.String(), By: "a test"})
			require.NoError(t, err)
		}, true},
		{"not in the policy any more", func(t *testing.T) testServer { return newTicketServer(t) }, func(t *testing.T, s testServer) {
			s.SetPolicy(parsePolicy(t, strings.Replace(ticketPolicyText(), "[most, other]", "[most]", 1)))
		}, false},
		{"another behind the edge's name", func(t *testing.T) testServer { return newTicketServer(t) }, func(t *testing.T, s testServer) {
			s.SetPolicy(parsePolicy(t, strings.Replace(ticketPolicyText(), "dns: [other.example.net]", "dns: [new.example.net]", 1)))
		}, false},
		{"one of two that an edge's name is for", func(t *testing.T) testServer {
			return newTicketServer(t, func(o *Options) {
				o.Policy = parsePolicy(t, strings.Replace(ticketPolicyText(), "dns: [other.example.net]", "dns: [other.example.net]\n    uri: [urn:x]", 1))
			})
		}, func(t *testing.T, s testServer) {
			s.SetPolicy(parsePolicy(t, ticketPolicyText()))
		}, false},
		{"by hand, with another generation", func(t *testing.T) testServer { return newTicketServer(t) }, func(t *testing.T, s testServer) {
			s.SetPolicy(parsePolicy(t, strings.Replace(ticketPolicyText(), "[most, other]", "[most, other]\n    generation: 1", 1)))
		}, false},
		{"its pre-shared key changed", func(t *testing.T) testServer {
			writePSK(t, one)
			psks, err := OpenPSKs(psk)
			require.NoError(t, err)
			return newTicketServer(t, func(o *Options) { o.PSKs, o.Policy = psks, parsePolicy(t, withPSK) })
		}, func(t *testing.T, s testServer) {
			writePSK(t, strings.Replace(one, "31", "32", 1))
			require.NoError(t, s.ReloadPSKs())
		}, false},
		{"revoked", func(t *testing.T) testServer {
			require.NoError(t, os.WriteFile(crl, ca.crl(1), 0o600))
			r, err := OpenRevocations(crl, []*x509.Certificate{ca.cert})
			require.NoError(t, err)
			return newTicketServer(t, func(o *Options) { o.Revocations = r })
		}, func(t *testing.T, s testServer) {
			require.NoError(t, os.WriteFile(crl, ca.crl(2, 99), 0o600))
			s.reloadRevocations()
		}, true},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			s := tt.start(t).at(noon)
			before := s.ServeTickets(t.Context(), edgePeer, "www.example.com", ski.TicketTag{})
			alone := s.keysFor(edgePeer, "shop.example.com")
			select {
			case <-before.Changed:
				require.Fail(t, "nothing has changed yet")
			default:
			}
			tt.cut(t, s)
			select {
			case <-before.Changed:
			default:
				require.Fail(t, "nobody is told")
			}
			after := s.keysFor(edgePeer, "www.example.com")
			for i := range after.Keys {
				assert.NotEqual(t, before.Keys.Keys[i].Secret, after.Keys[i].Secret, i)
			}
			assert.Equal(t, tt.rotates, alone.Tag() != s.keysFor(edgePeer, "shop.example.com").Tag())
		})
	}
}

func TestASuspendedEdgeGetsNoTicketKeys(t *testing.T) {
	s := newTicketServer(t)
	_, err := s.Suspend(Suspension{Edge: "other", By: "a test"})
	require.NoError(t, err)
	a := s.ServeTickets(t.Context(), otherPeer, "www.example.com", ski.TicketTag{})
	assert.Equal(t, ski.RequestDenied, a.Error)
	assert.Zero(t, a.RetryAfter)
	require.NoError(t, s.Resume("other", "a test"))
	s.keysFor(otherPeer, "www.example.com")
}

func TestTicketSecret(t *testing.T) {
	_, err := OpenTicketRatchet("", make([]byte, MinTicketSecret-1), noon)
	require.ErrorContains(t, err, "the ticket secret has less than 32 bytes")

	var log bytes.Buffer
	logged := func(o *Options) { o.Logger = slog.New(slog.NewTextHandler(&log, nil)) }
	newTicketServer(t, logged)
	assert.NotContains(t, log.String(), "no ticket secret")
	random := newTicketServer(t, logged, func(o *Options) { o.TicketRatchet = nil })
	random.SetPolicy(random.policy.Load())
	assert.Equal(t, 1, strings.Count(log.String(), "no ticket secret"), log.String())
	other := newTicketServer(t, func(o *Options) { o.TicketRatchet = nil })
	assert.NotEqual(t, random.keysFor(edgePeer, "www.example.com"), other.keysFor(edgePeer, "www.example.com"))
}

func TestTicketsInAPolicyAreChecked(t *testing.T) {
	const entry = "  - name: www.example.com\n    edges: [edge]\n"
	tests := []struct{ tickets, want string }{
		{"  - edges: [edge]\n", "needs a 'name'"},
		{"  - name: a b\n    edges: [edge]\n", "needs a 'name'"},
		{"  - name: a\n", "needs 'edges'"},
		{"  - name: a\n    edges: [nobody]\n", `there is no edge called "nobody"`},
		{entry + entry, "two ticket sites"},
		{entry + "    rotate: 30s\n", "less than 1m"},
		{entry + "    rotate: 90500ms\n", "whole seconds"},
		{entry + "    rotate: 169h\n", "more than 168h"},
		{entry + "    lifetime: 169h\n", "more than 168h"},
		{entry + "    rotate: 1h\n    lifetime: 7h\n", "more than 6 times 'rotate'"},
		{entry + "    rotate: soon\n", "not a duration"},
		{entry + "    secret: x\n", "unknown field"},
	}
	for _, tt := range tests {
		_, err := ParsePolicy("policy.yaml", []byte(testPolicy+"tickets:\n"+tt.tickets), testKeys())
		require.ErrorContains(t, err, tt.want)
		require.Regexp(t, `^policy\.yaml:\d+:\d+: `, err)
	}
	p, err := ParsePolicy("policy.yaml", []byte(ticketPolicyText()), testKeys())
	require.NoError(t, err)
	assert.Equal(t, []TicketRight{
		{"edge", "shop.example.com", time.Hour, 90 * time.Minute}, {"edge", "www.example.com", 8 * time.Hour, 24 * time.Hour},
	}, p.TicketRightsOf(edgePeer))
	assert.Len(t, p.TicketRights(), 4)
}

// TestAnEmbeddedEdgeFollowsItsTicketKeys has no wire between.
func TestAnEmbeddedEdgeFollowsItsTicketKeys(t *testing.T) {
	policy := strings.Replace(ticketPolicyText(), "dns: [edge.example.net]", `uri: ["tlsski:embedded"]`, 1)
	s := newTicketServer(t, func(o *Options) { o.Policy = parsePolicy(t, policy) })
	source := ski.Direct(s.Server, EmbeddedPeer()).(ski.TicketSource)
	seen, ended := make(chan string, 9), make(chan error)
	go func() {
		ended <- source.WatchTickets(t.Context(), "www.example.com", func(k *ski.TicketKeys) { seen <- ticketIDs(k) })
	}()
	first := <-seen
	s.SetPolicy(parsePolicy(t, strings.Replace(policy, "[most, other]", "[most, other]\n    generation: 1", 1)))
	assert.NotEqual(t, first, <-seen)
	s.SetPolicy(parsePolicy(t, strings.Replace(policy, "[most, other]", "[other]", 1)))
	assert.ErrorIs(t, <-ended, ski.RequestDenied)
	require.ErrorIs(t, source.WatchTickets(t.Context(), "nobody.example.com", nil), ski.RequestDenied)
}

// TestWhoIsCutOffMeanwhileGetsNoTicketKeys cuts the edge off while its request is
// answered: the keys that the others have because of that are not for it.
func TestWhoIsCutOffMeanwhileGetsNoTicketKeys(t *testing.T) {
	s := newTicketServer(t)
	s.tickets.now = func() time.Time {
		s.tickets.now = func() time.Time { return noon }
		_, err := s.Suspend(Suspension{Edge: "other", By: "a test"})
		require.NoError(t, err)
		return noon
	}
	a := s.ServeTickets(t.Context(), otherPeer, "www.example.com", ski.TicketTag{})
	assert.Equal(t, ski.RequestDenied, a.Error)
	assert.Nil(t, a.Keys)
	assert.Contains(t, s.trail.last().Reason, "suspended")
}

// sessionsOf are a binding's, which are told to close.
type sessionsOf func(reason error, match func(ski.Peer) bool)

func (f sessionsOf) Peers() []ski.Peer { return nil }

func (f sessionsOf) CloseSessions(reason error, match func(ski.Peer) bool) int {
	f(reason, match)
	return 0
}

// TestASessionOfAFormerPreSharedKeyGetsNoTicketKeys asks until the session is
// closed, as whoever observes the keys does when they change.
func TestASessionOfAFormerPreSharedKeyGetsNoTicketKeys(t *testing.T) {
	file := filepath.Join(stateFolder(t), "psk")
	require.NoError(t, os.WriteFile(file, []byte("other:"+strings.Repeat("31", 32)+"\n"), 0o600))
	psks, err := OpenPSKs(file)
	require.NoError(t, err)
	s := newTicketServer(t, func(o *Options) {
		o.PSKs = psks
		o.Policy = parsePolicy(t, strings.Replace(ticketPolicyText(), "dns: [other.example.net]", "psk: [other]", 1))
	}).at(noon)
	peer := ski.Peer{PSK: "other"}
	before := s.keysFor(peer, "www.example.com")
	closed := false
	s.SetSessions(sessionsOf(func(_ error, match func(ski.Peer) bool) {
		a := s.ServeTickets(t.Context(), peer, "www.example.com", ski.TicketTag{})
		assert.Equal(t, ski.RequestDenied, a.Error)
		assert.Nil(t, a.Keys)
		assert.Error(t, s.Admit(peer), "nor is it let in")
		closed = match(peer)
	}))
	require.NoError(t, os.WriteFile(file, []byte("other:"+strings.Repeat("32", 32)+"\n"), 0o600))
	require.NoError(t, s.ReloadPSKs())
	assert.True(t, closed)
	after := s.keysFor(peer, "www.example.com") // of a session with the new key
	assert.NotEqual(t, before.Tag(), after.Tag())
}
