package keyserver

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/tlsski/tlsski/ski"
)

// linesOf returns the lines of a log about an edge, without those of the log
// itself, and how many requests they account for.
func linesOf(t *testing.T, log, edge string) (lines, requests int) {
	t.Helper()
	for line := range strings.Lines(log) {
		var l auditLine
		require.NoError(t, json.Unmarshal([]byte(line), &l))
		switch {
		case l.Edge != edge, l.Event == eventOpen, l.Event == eventCheckpoint:
			continue
		case l.Event == EventRefusals:
			sum := uint64(0)
			for _, n := range l.Refused {
				sum += n
			}
			require.Equal(t, l.Count, sum)
			requests += int(l.Count)
		default:
			requests++
		}
		lines++
	}
	return lines, requests
}

// An edge asks 7,000 times a second, of which 10 are answered.
func TestAnEdgeOverItsLimitWritesALineASecond(t *testing.T) {
	keys := testKeys()
	synctest.Test(t, func(t *testing.T) {
		var log bytes.Buffer
		s := newTestServer(t, keys, withPolicy(t, keys, "limits:\n  edge: {rate: 10}\n"), func(o *Options) { o.Audit = NewAuditLog(&log) })
		const seconds, rate = 5, 7000
		asked, answered := 0, 0
		for range seconds * rate {
			if s.ServeSKI(t.Context(), edgePeer, grantedRequest(keys)).Error == "" {
				answered++
			}
			asked++
			time.Sleep(time.Second / rate)
		}
		time.Sleep(refusalPeriod) // The edge has fallen silent.
		synctest.Wait()
		lines, requests := linesOf(t, log.String(), "edge")
		require.Equal(t, asked, requests, "the count is right to the request")
		require.InDelta(t, 10+seconds*10, answered, 2)
		require.LessOrEqual(t, lines, answered+seconds+1)
		_, unknown := linesOf(t, log.String(), unknownEdge)
		require.Zero(t, unknown)
	})
}

// Whatever an edge is refused for, it writes its budget and a line a second.
func TestAnEdgeCannotWriteMoreThanItsBudget(t *testing.T) {
	keys := testKeys()
	notFound := grantedRequest(keys)
	notFound.SPKI = ski.KeyID{1}
	denied := grantedRequest(keys)
	denied.Hash = "" // SHA-1
	malformed := grantedRequest(keys)
	malformed.Input = malformed.Input[:70]
	ask := func(req *ski.Request) func(context.Context, testServer, ski.Peer) {
		return func(ctx context.Context, s testServer, peer ski.Peer) { s.ServeSKI(ctx, peer, req) }
	}
	edge, stranger := edgePeer, ski.Peer{SPKI: ski.KeyID{9}}
	for name, attack := range map[string]struct {
		peer ski.Peer
		ask  func(context.Context, testServer, ski.Peer)
	}{
		"no such key":        {edge, ask(notFound)},
		"denied":             {edge, ask(denied)},
		"malformed input":    {edge, ask(malformed)},
		"malformed messages": {edge, func(ctx context.Context, s testServer, p ski.Peer) { s.ServeMalformed(ctx, p, nil) }},
		"ticket keys": {edge, func(ctx context.Context, s testServer, p ski.Peer) {
			s.ServeTickets(ctx, p, "www.example.com", ski.TicketTag{})
		}},
		"strangers": {stranger, ask(notFound)},
		"cut off":   {legacyPeer, ask(grantedRequest(keys))},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var log bytes.Buffer
				s := newTestServer(t, keys, withPolicy(t, keys, "limits:\n  edge: {audit: 2}\n"), func(o *Options) { o.Audit = NewAuditLog(&log) })
				_, err := s.Suspend(Suspension{Edge: "legacy", By: "test"})
				require.NoError(t, err)
				before := strings.Count(log.String(), "\n")
				const seconds, rate = 5, 1000
				for i := range seconds * rate {
					peer := attack.peer
					if name == "strangers" { // Each has a certificate of its own.
						peer.SPKI[0], peer.SPKI[1] = byte(i), byte(i>>8)
					}
					attack.ask(t.Context(), s, peer)
					time.Sleep(time.Second / rate)
				}
				s.Close()
				lines := 0
				requests := 0
				for _, edge := range []string{"edge", "legacy", unknownEdge} {
					l, r := linesOf(t, log.String(), edge)
					lines, requests = lines+l, requests+r
				}
				suspensions := 0
				if before > 1 {
					suspensions = before - 1 // 'open' is not counted
				}
				require.Equal(t, seconds*rate, requests-suspensions)
				require.LessOrEqual(t, lines-suspensions, auditBurst+2*seconds+seconds+2)
				require.Greater(t, lines-suspensions, auditBurst, "some have a line each")
			})
		})
	}
}

// A budget that is used up keeps no record from who gets something.
func TestEachUseOfAKeyHasItsRecord(t *testing.T) {
	keys := testKeys()
	wrong := &ski.Request{Protocol: ski.TLS12, SPKI: keys.id(rsa2048), Method: ski.MethodRSA,
		Input: rawEncrypt(rsaPublic(keys), encodedMessage(rsaPublic(keys), []byte("not a PreMasterSecret")))}
	for _, failure := range []RSAFailure{RSAFailureRandom, RSAFailureError} {
		s := newTestServer(t, keys, withPolicy(t, keys, "limits:\n  edge: {audit: 0.001}\n"), func(o *Options) { o.RSAFailure = failure })
		for range auditBurst + 10 {
			s.ServeMalformed(t.Context(), edgePeer, nil)
		}
		require.Len(t, s.trail.all(), auditBurst)
		s.recordRefusals()
		require.Equal(t, map[string]uint64{string(ski.MalformedRequest): 10}, s.trail.last().Refused)
		for range 2 * auditBurst {
			resp, rec := s.ask(edgePeer, grantedRequest(keys))
			require.Empty(t, resp.Error)
			require.Equal(t, outcomeOutput, rec.Outcome)
		}
		// With RSAFailureError, too, a use of the key that told the edge something.
		resp, rec := s.ask(edgePeer, wrong)
		require.Equal(t, failure == RSAFailureError, resp.Error != "")
		require.Equal(t, "padding", rec.PreMasterSecret)
	}
}

// Counts go to whom they are of, and the budget of one is not that of another.
func TestRefusalsAreCountedByEdge(t *testing.T) {
	keys := testKeys()
	s := newTestServer(t, keys, withPolicy(t, keys, "limits:\n  edge: {rate: 0.001, burst: 1}\n"))
	for i, peer := range []ski.Peer{edgePeer, legacyPeer, {SPKI: ski.KeyID{1}}, {SPKI: ski.KeyID{2}}} {
		for range 2 + i {
			s.ServeSKI(t.Context(), peer, grantedRequest(keys))
		}
	}
	before := len(s.trail.all())
	s.recordRefusals()
	got := make(map[string]uint64)
	for _, r := range s.trail.all()[before:] {
		require.Equal(t, EventRefusals, r.Event)
		require.False(t, r.Last.Before(r.First))
		got[r.Edge] += r.Refused[limitEdgeRate]
	}
	require.Equal(t, map[string]uint64{"edge": 1, "legacy": 2, unknownEdge: 3 + 5}, got)
	s.recordRefusals()
	require.Len(t, s.trail.all(), before+3, "nothing is recorded twice")
}

// What cannot be recorded is not lost while the process runs, and not one line
// a request is tried meanwhile.
func TestRefusalsAreRecordedWhenTheLogWorksAgain(t *testing.T) {
	keys := testKeys()
	synctest.Test(t, func(t *testing.T) {
		s := newTestServer(t, keys, withPolicy(t, keys, "limits:\n  edge: {rate: 0.001, burst: 1}\n"), func(o *Options) { o.AuditRequired = true })
		s.ServeSKI(t.Context(), edgePeer, grantedRequest(keys))
		s.trail.fail(errors.New("the disk is full"))
		for range 100 {
			resp := s.ServeSKI(t.Context(), edgePeer, grantedRequest(keys))
			require.Equal(t, ski.RequestDenied, resp.Error, "a refusal needs no record of its own")
			time.Sleep(time.Second / 10)
		}
		require.Error(t, s.Health())
		require.LessOrEqual(t, len(s.trail.all()), 12)
		s.trail.fail(nil)
		time.Sleep(2 * refusalPeriod)
		synctest.Wait()
		require.NoError(t, s.Health(), "nobody has to ask for that")
		require.Equal(t, map[string]uint64{limitEdgeRate: 100}, s.trail.last().Refused)
	})
}

// reserveTrail is an auditTrail with a disk.
type reserveTrail struct {
	auditTrail
	in atomic.Bool
}

func (r *reserveTrail) InReserve() bool { return r.in.Load() }

func TestTheReserveIsForRequestsThatAreAnswered(t *testing.T) {
	keys := testKeys()
	notFound := grantedRequest(keys)
	notFound.SPKI = ski.KeyID{1}
	synctest.Test(t, func(t *testing.T) {
		var log bytes.Buffer
		trail := new(reserveTrail)
		metrics := NewMetrics("test")
		s := newTestServer(t, keys, func(o *Options) {
			o.Audit, o.AuditRequired, o.Metrics = trail, true, metrics
			o.Logger = slog.New(slog.NewTextHandler(&log, nil))
		})
		trail.in.Store(true)
		for range 50 {
			require.Equal(t, ski.SPKINotFound, s.ServeSKI(t.Context(), edgePeer, notFound).Error)
			require.Empty(t, s.ServeSKI(t.Context(), edgePeer, grantedRequest(keys)).Error)
			time.Sleep(time.Second)
		}
		synctest.Wait()
		require.Len(t, trail.all(), 50)
		for _, r := range trail.all() {
			require.Equal(t, outcomeOutput, r.Outcome)
		}
		require.NoError(t, s.Health())
		expect := func(inUse int) string {
			return fmt.Sprintf(`
# HELP ski_keyserver_audit_counted_total Refused requests that the audit log has a count of rather than a record each.
# TYPE ski_keyserver_audit_counted_total counter
ski_keyserver_audit_counted_total{reason="budget"} 0
ski_keyserver_audit_counted_total{reason="limit"} 0
ski_keyserver_audit_counted_total{reason="reserve"} 50
# HELP ski_keyserver_audit_reserve_in_use 1 while the audit log's disk has no more than the log's reserve.
# TYPE ski_keyserver_audit_reserve_in_use gauge
ski_keyserver_audit_reserve_in_use %d
`, inUse)
		}
		names := []string{"ski_keyserver_audit_counted_total", "ski_keyserver_audit_reserve_in_use"}
		requireMetrics(t, metrics, expect(1), names...)

		trail.in.Store(false)
		time.Sleep(refusalPeriod)
		synctest.Wait()
		require.Len(t, trail.all(), 51)
		require.Equal(t, map[string]uint64{string(ski.SPKINotFound): 50}, trail.last().Refused)
		requireMetrics(t, metrics, expect(0), names...)
		require.Equal(t, 1, strings.Count(log.String(), "has no more than its reserve"), "the log says it once")
		require.Equal(t, 1, strings.Count(log.String(), "has more than its reserve again"))

		// The end is recorded in the reserve.
		trail.in.Store(true)
		s.ServeSKI(t.Context(), edgePeer, notFound)
		s.Close()
		require.Equal(t, map[string]uint64{string(ski.SPKINotFound): 1}, trail.last().Refused)
	})
}

func TestTheReserveIsThatOfTheLogsDisk(t *testing.T) {
	file := filepath.Join(t.TempDir(), "audit.log")
	for _, tt := range []struct {
		file    string
		reserve int64
		want    bool
	}{
		{file, 0, false},
		{file, 1, false},
		{file, math.MaxInt64 - 1, true},
		{"/dev/null", math.MaxInt64 - 1, false},
		{"-", math.MaxInt64 - 1, false},
	} {
		log := openAudit(t, AuditOptions{File: tt.file, Reserve: tt.reserve})
		require.Equal(t, tt.want, log.InReserve(), "%s, %d", tt.file, tt.reserve)
		require.NoError(t, log.Close())
	}
	c := Config{Audit: AuditConfig{File: file, ReserveMiB: 1}}
	require.Empty(t, c.Warnings())
	for _, file := range []string{file, filepath.Join(t.TempDir(), "not-there-yet.log")} {
		c.Audit.File, c.Audit.ReserveMiB = file, math.MaxUint32
		require.Len(t, c.Warnings(), 1)
		require.Contains(t, c.Warnings()[0], "less than audit.reserve_mib, 4294967295")
	}
}

// What an edge chooses makes no line longer than this, at a server name of
// characters that JSON escapes.
func TestAnAuditLineIsBounded(t *testing.T) {
	keys := testKeys()
	var log bytes.Buffer
	audit := NewAuditLog(&log)
	s := newTestServer(t, keys, func(o *Options) { o.Audit = audit })
	peer := ski.Peer{PSK: strings.Repeat("<", 128), Addr: edgePeer.Addr}
	req := grantedRequest(keys)
	req.SPKI[0] ^= 1
	for _, length := range []int{ski.MaxServerNameLen, ski.MaxServerNameLen + 1, 4096} {
		req.ServerName = strings.Repeat("<", length)
		s.ServeSKI(t.Context(), peer, req)
		s.ServeTickets(t.Context(), peer, req.ServerName, ski.TicketTag{})
	}
	for line := range strings.Lines(log.String()) {
		require.Less(t, len(line), 3000, line)
	}
}
