package keyserver

import (
	"context"
	"crypto/tls"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/tlsski/tlsski/ski"
)

// queue has operations of edges ask for their turn one after the other, while
// another is at work, and returns what became of them, in order: the edge's
// name for a turn, "!" and the name for a refusal.
func queue(t *testing.T, tu *turns, edges string) string {
	t.Helper()
	var came []string
	synctest.Test(t, func(t *testing.T) {
		require.NoError(t, tu.begin(t.Context(), "first"))
		events := make(chan string, len(edges))
		for _, edge := range strings.Split(edges, "") {
			go func() {
				if err := tu.begin(t.Context(), edge); err != nil {
					edge = "!" + edge
				}
				events <- edge
			}()
			synctest.Wait()
		}
		drain := func() {
			synctest.Wait()
			for len(events) > 0 {
				came = append(came, <-events)
			}
		}
		drain()
		for tu.waits() > 0 {
			tu.end()
			drain()
		}
		tu.end()
		require.Equal(t, 1, tu.free, "as at the start")
		require.Empty(t, tu.queues)
	})
	return strings.Join(came, " ")
}

func TestTurnsGoRoundTheEdges(t *testing.T) {
	for edges, want := range map[string]string{
		"aaa":     "a a a",
		"aaaab":   "a b a a a",
		"aaabbc":  "a b c a b a",
		"aaaabcb": "a b c a b a a",
	} {
		require.Equal(t, want, queue(t, &turns{free: 1, maxWait: 10, patience: time.Hour}, edges), edges)
	}
}

// Who has the most waiting gives way.
func TestAFullQueueHasRoomForAnotherEdge(t *testing.T) {
	for edges, want := range map[string]string{
		"aaaaa":     "!a a a a a",
		"aaaab":     "!a a b a a",
		"aaaabbb":   "!a !a !b a b a b",
		"aaabcd":    "!a !a a b c d",
		"abcde":     "!e a b c d",
		"aaaabaaaa": "!a !a !a !a !a a b a a",
	} {
		require.Equal(t, want, queue(t, &turns{free: 1, maxWait: 4, patience: time.Hour}, edges), edges)
	}
}

// Who waits no longer leaves nothing behind, be it that the turn comes at that
// moment.
func TestTurnsOfThoseWhoHaveGone(t *testing.T) {
	tu := &turns{free: 1, maxWait: 100, patience: time.Hour}
	require.NoError(t, tu.begin(t.Context(), "a"))
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error)
	for _, edge := range strings.Split("aabbccddee", "") {
		go func() {
			err := tu.begin(ctx, edge)
			if err == nil {
				tu.end()
			}
			ended <- err
		}()
	}
	require.Eventually(t, func() bool { return tu.waits() == 10 }, time.Minute, time.Millisecond)
	go cancel()
	tu.end()
	for range 10 {
		if err := <-ended; err != nil {
			require.ErrorIs(t, err, context.Canceled)
		}
	}
	require.Equal(t, 1, tu.free)
	require.Zero(t, tu.waits())
	require.Empty(t, tu.queues)
}

// What an edge asks of P-384 and P-521 takes as long as RSA, and has its turns
// with it: it cannot take the processors from the others.
func TestSlowCurvesHaveTheirTurns(t *testing.T) {
	keys := testKeys()
	slow := func(name string) *ski.Request {
		r := grantedRequest(keys)
		r.SPKI = keys.id(name)
		return r
	}
	pms := func(group tls.CurveID) *ski.Request {
		return &ski.Request{Protocol: ski.TLS12, SPKI: keys.id(p256), Hash: ski.SHA256, Method: ski.MethodECDHEPMS, Group: group, Input: randoms()}
	}
	granted := func(o *Options) {
		p, err := ParsePolicy("policy.yaml", []byte(strings.ReplaceAll(testPolicy, "[ECDHE, RSA]", "[ECDHE, RSA, ECDHE-PMS]")), keys)
		require.NoError(t, err)
		p.detectors = detectorRules{}
		o.Policy = p
	}
	s := newTestServer(t, keys, granted, func(o *Options) { o.RSAWorkers = 1 })
	s.schedule.rsa.patience = time.Millisecond
	require.NoError(t, s.schedule.rsa.begin(t.Context(), "another")) // the only worker is busy
	for name, req := range map[string]*ski.Request{
		"P-384 key": slow(p384), "P-521 key": slow(p521),
		"P-384 group": pms(tls.CurveP384), "P-521 group": pms(tls.CurveP521),
	} {
		resp, rec := s.ask(edgePeer, req)
		assert.Equal(t, ski.UnspecifiedError, resp.Error, name)
		assert.Equal(t, map[string]uint64{limitServer: 1}, rec.Refused, name)
	}
	for name, req := range map[string]*ski.Request{
		"P-256 key": slow(p256), "P-256 group": pms(tls.CurveP256), "X25519 group": pms(tls.X25519),
	} {
		resp, _ := s.ask(edgePeer, req)
		assert.Empty(t, resp.Error, name)
	}
}

// A state is not used up by an exchange that does not get its turn.
func TestAStateOutlastsAnExchangeWithoutATurn(t *testing.T) {
	keys := testKeys()
	p, err := ParsePolicy("policy.yaml", []byte(strings.ReplaceAll(testPolicy, "[ECDHE, RSA]", "[ECDHE, RSA, ECDHE-PMS]")), keys)
	require.NoError(t, err)
	p.detectors = detectorRules{}
	s := newTestServer(t, keys, func(o *Options) { o.Policy, o.RSAWorkers = p, 1 })
	s.schedule.rsa.patience = time.Millisecond
	first, _ := s.ask(edgePeer, &ski.Request{
		Protocol: ski.TLS12, SPKI: keys.id(p256), Hash: ski.SHA256, Method: ski.MethodECDHEPMS, Group: tls.CurveP384, Input: randoms(),
	})
	require.Empty(t, first.Error)
	second := &ski.Request{
		Protocol: ski.TLS12, SPKI: keys.id(p256), Method: ski.MethodECDHEPMS, State: first.State, Input: basePoint(secp384r1),
	}
	require.NoError(t, s.schedule.rsa.begin(t.Context(), "another"))
	s.exceeds(limitServer, edgePeer, second)
	s.schedule.rsa.end()
	resp, _ := s.ask(edgePeer, second)
	require.Empty(t, resp.Error)
	require.Len(t, resp.Output, 48)
}
