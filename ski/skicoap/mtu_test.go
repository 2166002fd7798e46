package skicoap

import (
	"context"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/plgd-dev/go-coap/v3/message"
	"github.com/plgd-dev/go-coap/v3/message/codes"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/tlsski/tlsski/ski"
)

// smallUDP is the payload of a datagram with IPv4 and UDP headers on a path with
// an MTU of 576 bytes.
const smallUDP = 576 - 20 - 8

// large makes a certificate as long as a chain with RSA keys.
func large(c *x509.Certificate) {
	c.ExtraExtensions = append(c.ExtraExtensions, pkix.Extension{Id: asn1.ObjectIdentifier{1, 2, 3, 4}, Value: make([]byte, 3000)})
}

func (r *relay) limit(up, down int) {
	r.upLimit.Store(int64(up))
	r.downLimit.Store(int64(down))
}

// longExchanges are the lengths of inputs and outputs: signatures of RSA-2048,
// RSA-3072 and RSA-4096, decryption with RSA-4096, and both longer.
var longExchanges = [][2]int{{136, 72}, {136, 256}, {136, 384}, {136, 512}, {512, 48}, {1000, 1000}, {3000, 3000}}

func TestAPathThatLosesLongDatagramsIsServed(t *testing.T) {
	t.Parallel()
	ca := newTestCA(t)
	for _, tc := range []struct {
		name     string
		up, down int
	}{{"both ways", smallUDP, smallUDP}, {"to the key server", smallUDP, 0}, {"to the edge", 0, smallUDP}} {
		for auth, psk := range map[string]bool{"certificates": false, "pre-shared key": true} {
			t.Run(tc.name+", "+auth, func(t *testing.T) {
				t.Parallel()
				var handler longEcho
				s := serve(t, "127.0.0.1:0", ServerConfig{
					Certificate: ca.issue(x509.ExtKeyUsageServerAuth, large), ClientCAs: ca.pool, Handler: &handler, PSK: newKeyring("edge").find,
				})
				r := newRelay(t, s.Addr().String())
				r.limit(tc.up, tc.down)
				cfg := ca.client()
				cfg.Certificate = ca.issue(x509.ExtKeyUsageClientAuth, large)
				if psk {
					usePSK("edge", pskKey)(&cfg)
				}
				c, err := NewClient("coaps://"+r.addr(), cfg)
				require.NoError(t, err)
				t.Cleanup(func() { assert.NoError(t, c.Close()) })
				for n := range 3 {
					for i, e := range longExchanges {
						ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
						require.NoError(t, askLong(ctx, c, longRequest(n*10+i, e[0], e[1])), "%d: %d bytes, %d back", n, e[0], e[1])
						cancel()
					}
				}
				handler.assertOnce(t, 3*len(longExchanges))
				assert.EqualValues(t, 1, r.hellos.Load(), "handshakes")
			})
		}
	}
}

func TestAPathThatBecomesSmallIsServed(t *testing.T) {
	t.Parallel()
	ca := newTestCA(t)
	var handler longEcho
	var log logBuffer
	s := serve(t, "127.0.0.1:0", ServerConfig{Certificate: ca.keyServer(), ClientCAs: ca.pool, Handler: &handler, Logger: slog.New(slog.NewTextHandler(&log, nil))})
	c, r := through(t, s, ca, func(cfg *ClientConfig) {
		cfg.Logger, cfg.DeadAfter = slog.New(slog.NewTextHandler(&log, nil)), time.Minute
	})
	n := 0
	askAll := func() {
		t.Helper()
		var asking sync.WaitGroup
		for range 5 {
			for _, e := range longExchanges {
				n++
				req := longRequest(n, e[0], e[1])
				asking.Go(func() { assert.NoError(t, askLong(t.Context(), c, req)) })
			}
			asking.Wait()
		}
	}
	askAll()
	assert.Greater(t, r.longest.Load(), int64(1000), "whole, as long as that works")
	assert.NotContains(t, log.String(), "loses long datagrams")
	first := c.current
	r.limit(smallUDP, smallUDP)
	askAll()
	askAll()
	lost := r.over.Load()
	assert.NotZero(t, lost)
	askAll()
	assert.Equal(t, lost, r.over.Load(), "what is known is not tried again")
	handler.assertOnce(t, n)
	assert.Contains(t, log.String(), `msg="the path loses long datagrams`)
	assert.Contains(t, log.String(), `msg="the path to a peer loses long datagrams`)

	// It is tried again later whether the path is what it was.
	r.limit(0, 0)
	r.longest.Store(0)
	c.udpPath.mu.Lock()
	c.udpPath.until = time.Now()
	c.udpPath.mu.Unlock()
	require.NoError(t, askLong(t.Context(), c, longRequest(n+1, 16, 48)), "which is too short for a probe")
	require.NoError(t, askLong(t.Context(), c, longRequest(n+2, 512, 48)))
	require.Eventually(t, func() bool { return strings.Contains(log.String(), "carries long datagrams again") }, time.Minute, time.Millisecond)
	require.NoError(t, askLong(t.Context(), c, longRequest(n+3, 1000, 48)))
	handler.assertOnce(t, n+3)
	assert.Same(t, first, c.current)
}

// An MTU that is configured, on either side or both, is kept to from the first
// datagram on.
func TestAConfiguredMTUIsKeptTo(t *testing.T) {
	t.Parallel()
	ca := newTestCA(t)
	for _, mtu := range []int{400, 576, 800} {
		for _, tc := range []struct {
			name           string
			server, client bool
		}{{"both", true, true}, {"the edge", false, true}, {"the key server", true, false}} {
			t.Run(fmt.Sprintf("%s %d", tc.name, mtu), func(t *testing.T) {
				t.Parallel()
				var handler longEcho
				cfg := ServerConfig{Certificate: ca.issue(x509.ExtKeyUsageServerAuth, large), ClientCAs: ca.pool, Handler: &handler}
				if tc.server {
					cfg.MTU = mtu
				}
				s := serve(t, "127.0.0.1:0", cfg)
				c, r := through(t, s, ca, func(cfg *ClientConfig) {
					if tc.client {
						cfg.MTU = mtu
					}
				})
				var mu sync.Mutex
				up, down := 0, 0
				note := func(longest *int) *func(int) {
					return new(func(n int) {
						mu.Lock()
						defer mu.Unlock()
						*longest = max(*longest, n)
					})
				}
				r.down.Store(note(&down))
				r.upward.Store(note(&up))
				for i, e := range longExchanges {
					require.NoError(t, askLong(t.Context(), c, longRequest(i, e[0], e[1])))
				}
				handler.assertOnce(t, len(longExchanges))
				mu.Lock()
				defer mu.Unlock()
				const headers = 40 + 8 // of IPv6 and UDP
				if tc.client {
					assert.LessOrEqual(t, up+headers, mtu, "to the key server")
					if mtu >= 576 { // its handshake knows nothing of the edge's MTU
						assert.LessOrEqual(t, down+headers, mtu, "answers that it asked for")
					}
				}
				if tc.server {
					assert.LessOrEqual(t, down+headers, mtu, "to the edge")
				}
			})
		}
	}
}

// All the first requests of a session are long, or their answers are.
func TestABurstOnAPathThatLosesLongDatagrams(t *testing.T) {
	t.Parallel()
	ca := newTestCA(t)
	for name, e := range map[string][2]int{"requests": {512, 48}, "answers": {136, 512}} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var handler longEcho
			s := serve(t, "127.0.0.1:0", ServerConfig{Certificate: ca.keyServer(), ClientCAs: ca.pool, Handler: &handler})
			c, r := through(t, s, ca)
			r.limit(smallUDP, smallUDP)
			r.faults.Store(&faults{delay: 20 * time.Millisecond})
			const n = 300
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			errs := make(chan error, n)
			began := time.Now()
			for i := range n {
				go func() { errs <- askLong(ctx, c, longRequest(i, e[0], e[1])) }()
			}
			for range n {
				require.NoError(t, <-errs)
			}
			handler.assertOnce(t, n)
			t.Logf("all answered after %v", time.Since(began))
		})
	}
}

func TestAnMTUThatCannotBeIsRefused(t *testing.T) {
	ca := newTestCA(t)
	for _, mtu := range []int{-1, 1, 399, 65536} {
		_, err := NewClient("coaps://localhost", ClientConfig{Certificate: ca.edge(), RootCAs: ca.pool, MTU: mtu})
		assert.ErrorContains(t, err, "the MTU")
		_, err = Listen("127.0.0.1:0", ServerConfig{Certificate: ca.keyServer(), ClientCAs: ca.pool, Handler: ski.HandlerFunc(echo), MTU: mtu})
		assert.ErrorContains(t, err, "the MTU")
	}
	for _, mtu := range []int{0, 400, 1280, 9000, 65535} {
		c, err := NewClient("coaps://localhost", ClientConfig{Certificate: ca.edge(), RootCAs: ca.pool, MTU: mtu})
		require.NoError(t, err)
		require.NoError(t, c.Close())
	}
}

// A key server that takes its time is not a path that loses something: nothing is
// executed twice.
func TestASlowKeyServerIsNoSmallPath(t *testing.T) {
	t.Parallel()
	ca := newTestCA(t)
	var handler longEcho
	var log logBuffer
	answers := make(chan struct{})
	s := serve(t, "127.0.0.1:0", ServerConfig{Certificate: ca.keyServer(), ClientCAs: ca.pool, Handler: ski.HandlerFunc(
		func(ctx context.Context, p ski.Peer, req *ski.Request) *ski.Response {
			resp := handler.ServeSKI(ctx, p, req)
			<-answers
			return resp
		})})
	c, r := through(t, s, ca, func(cfg *ClientConfig) { cfg.Logger = slog.New(slog.NewTextHandler(&log, nil)) })
	errs := make(chan error, len(longExchanges))
	for i, e := range longExchanges {
		go func() { errs <- askLong(t.Context(), c, longRequest(i, e[0], e[1])) }()
	}
	// The requests have been sent often enough for a probe, and its answer has come.
	eventually(t, c, func(s *clientSession) bool { return !s.lastProbe.IsZero() })
	close(answers)
	for range longExchanges {
		require.NoError(t, <-errs)
	}
	handler.assertOnce(t, len(longExchanges))
	assert.NotContains(t, log.String(), "loses long datagrams")
	assert.Greater(t, r.longest.Load(), int64(1000))
}

// eventually waits for a state of the client's session.
func eventually(t *testing.T, c *Client, is func(s *clientSession) bool) {
	t.Helper()
	require.Eventually(t, func() bool {
		c.mu.Lock()
		current := c.current
		c.mu.Unlock()
		if current == nil {
			return false
		}
		s := current.clientSide.(*clientSession)
		s.mu.Lock()
		defer s.mu.Unlock()
		return is(s)
	}, time.Minute, time.Millisecond)
}

// A path on which nothing at all arrives for a while does not lose the long
// datagrams: requests that the key server works on are not sent anew in blocks.
func TestAnInterruptionIsNoSmallPath(t *testing.T) {
	t.Parallel()
	ca := newTestCA(t)
	var handler longEcho
	var log logBuffer
	answers := make(chan struct{})
	s := serve(t, "127.0.0.1:0", ServerConfig{Certificate: ca.keyServer(), ClientCAs: ca.pool, Handler: ski.HandlerFunc(
		func(ctx context.Context, p ski.Peer, req *ski.Request) *ski.Response {
			resp := handler.ServeSKI(ctx, p, req)
			<-answers
			return resp
		})})
	c, r := through(t, s, ca, func(cfg *ClientConfig) {
		cfg.Logger, cfg.DeadAfter = slog.New(slog.NewTextHandler(&log, nil)), time.Minute
	})
	const n = 10
	errs := make(chan error, n)
	for i := range n {
		go func() { errs <- askLong(t.Context(), c, longRequest(i, 512, 48)) }()
	}
	require.Eventually(t, func() bool {
		handler.mu.Lock()
		defer handler.mu.Unlock()
		return len(handler.executed) == n
	}, time.Minute, time.Millisecond)
	r.drop.Store(true)
	eventually(t, c, func(s *clientSession) bool { return s.probing != nil && s.probing.sent > 2*maxProbes })
	eventually(t, c, func(s *clientSession) bool {
		s.heard = time.Now() // What comes first after an interruption may be anything.
		return true
	})
	r.drop.Store(false)
	eventually(t, c, func(s *clientSession) bool { return s.probing == nil })
	close(answers)
	for range n {
		require.NoError(t, <-errs)
	}
	handler.assertOnce(t, n)
	assert.NotContains(t, log.String(), "loses long datagrams")
}

// A probe is lost when it was sent often enough, and a shorter message answered each
// time.
func TestAProbeCountsAsLostOnlyBesideShorterMessages(t *testing.T) {
	now := time.Unix(1e9, 0)
	s := sessionWith(t, 1, now)
	s.probing, s.probeSent = s.calls[0], now
	again := func(heard bool) bool {
		if heard {
			s.heard = now.Add(time.Millisecond)
		}
		now = now.Add(probeInterval)
		return s.probeOverdue(now)
	}
	for range 100 {
		require.False(t, again(false))
	}
	for range maxProbes - 1 {
		require.False(t, again(true))
		require.False(t, again(false))
	}
	assert.True(t, again(true))
}

// An answer to a long request says what the answer to a probe does.
func TestALongRequestThatIsAnsweredIsAProbe(t *testing.T) {
	now := time.Unix(1e9, 0)
	s := sessionWith(t, 3, now)
	s.path = &clientPath{mtu: maxMTU, log: quiet}
	s.probing = s.calls[0]
	s.calls[1].datagram = make([]byte, 600)
	s.calls[2].datagram, s.calls[2].began = make([]byte, 600), now.Add(time.Second)
	answered := func(token uint32) bool {
		return s.receiveAnswer(&message.Message{Type: message.NonConfirmable, Code: codes.Changed, Token: tokenBytes(token)}, now.Add(2*time.Second))
	}
	require.True(t, answered(1))
	assert.NotNil(t, s.probing, "it may have been sent when the path was another")
	require.True(t, answered(2))
	assert.Nil(t, s.probing)
	assert.Equal(t, maxMTU, s.path.limit())
}

// A path that loses every other long notification carries them.
func TestNotificationsThatAreLostAreNoSmallPath(t *testing.T) {
	t.Parallel()
	ca := newTestCA(t)
	office := newTicketOffice()
	office.number = ski.MaxTicketKeys
	var log logBuffer
	s := serve(t, "127.0.0.1:0", ServerConfig{Handler: office, Certificate: ca.keyServer(), ClientCAs: ca.pool, Logger: slog.New(slog.NewTextHandler(&log, nil))},
		func(s *Server) { s.ackTimeout = 20 * time.Millisecond })
	c, r := through(t, s, ca)
	long := 0
	r.down.Store(new(func(n int) {
		if n > smallUDP {
			long++
			r.downLimit.Store([]int64{smallUDP, 0}[long%2])
		}
	}))
	w := watchSite(t, c, "a.test")
	for n := byte(1); n < 40; n++ {
		assert.Equal(t, n, w.next(t))
		office.change("a.test", n+1)
	}
	assert.NotZero(t, r.over.Load())
	assert.NotContains(t, log.String(), "loses long datagrams")
}

// A path that loses one datagram in five, whatever its length, is not taken for
// one that loses the long ones.
func TestLossIsNoSmallPath(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	mistaken := 0
	const runs = 200
	for range runs {
		var l lossy
		for range 1000 {
			l.sent()
			if random.Float64() < 0.2 && l.arrived(time.Now()) {
				mistaken++
				break
			}
		}
	}
	assert.LessOrEqual(t, mistaken, runs/100)

	var l lossy // one that loses all long ones
	for range 1000 {
		l.sent()
	}
	n := 0
	for l.sent(); !l.arrived(time.Now()); l.sent() {
		n++
	}
	assert.Less(t, n, 30)
	assert.Equal(t, safeMTU, l.limit(maxMTU, time.Now()))
	assert.Equal(t, maxMTU, l.limit(maxMTU, time.Now().Add(narrowFor+time.Second)))
}

// The longest ticket keys there can be come in blocks, at first and when they
// change.
func TestTicketKeysOnAPathThatLosesLongDatagrams(t *testing.T) {
	t.Parallel()
	ca := newTestCA(t)
	for name, tc := range map[string]struct{ server, client int }{"nothing configured": {}, "the edge's": {0, 576}, "the key server's": {576, 0}} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			office := newTicketOffice()
			office.number = ski.MaxTicketKeys
			s := serve(t, "127.0.0.1:0", ServerConfig{Handler: office, Certificate: ca.keyServer(), ClientCAs: ca.pool, MTU: tc.server},
				func(s *Server) { s.ackTimeout = 20 * time.Millisecond })
			c, r := through(t, s, ca, func(cfg *ClientConfig) { cfg.MTU = tc.client })
			r.limit(smallUDP, smallUDP)
			w := watchSite(t, c, "a.test")
			for n := byte(1); n < 10; n++ {
				assert.Equal(t, n, w.next(t))
				office.change("a.test", n+1)
			}
			assert.EqualValues(t, 1, r.hellos.Load(), "handshakes")
		})
	}
}

// What the key server sends gets to other programs too: libcoap's client gets an
// answer that it has not asked to be in blocks, after a handshake with a long chain,
// and so does OpenSSL, with short packets of its own.
func TestOtherProgramsOnAPathThatLosesLongDatagrams(t *testing.T) {
	t.Parallel()
	ca := newTestCA(t)
	var handler longEcho
	s := serve(t, "127.0.0.1:0", ServerConfig{Certificate: ca.issue(x509.ExtKeyUsageServerAuth, large), ClientCAs: ca.pool, Handler: &handler})
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()

	r := newRelay(t, s.Addr().String())
	r.limit(smallUDP, smallUDP)
	edge := pemFile(t, ca.issue(x509.ExtKeyUsageClientAuth, large))
	out, err := exec.CommandContext(ctx, "openssl", "s_client", "-dtls1_2", "-mtu", "500", "-connect", r.addr(), "-brief", "-cert", edge).CombinedOutput()
	require.NoError(t, err, string(out))
	assert.Contains(t, string(out), "CONNECTION ESTABLISHED")

	r = newRelay(t, s.Addr().String())
	r.limit(0, smallUDP)
	edge = pemFile(t, ca.edge())
	dir := t.TempDir()
	body, err := ski.EncodeRequest(ski.CBOR, longRequest(1, 136, 512))
	require.NoError(t, err)
	request, answer := filepath.Join(dir, "request"), filepath.Join(dir, "answer")
	require.NoError(t, os.WriteFile(request, body, 0o600))
	out, err = exec.CommandContext(ctx, "coap-client-openssl", "-m", "post", "-t", "60", "-f", request, "-o", answer, "-B", "50",
		"-c", edge, "-j", edge, "-n", "coaps://"+r.addr()+"/ski").CombinedOutput()
	require.NoError(t, err, string(out))
	data, err := os.ReadFile(answer)
	require.NoError(t, err, string(out))
	resp, err := ski.DecodeResponse(ski.CBOR, data)
	require.NoError(t, err, "%s: %x", out, data)
	assert.Len(t, resp.Output, 512)
	handler.assertOnce(t, 1)
}

// An answer that says what is wrong with a request comes in blocks like others: the
// requests for these are not refused, and neither logged so nor held up.
func TestAnErrorThatComesInBlocksIsNoRefusal(t *testing.T) {
	t.Parallel()
	ca := newTestCA(t)
	var log logBuffer
	s := serve(t, "127.0.0.1:0", ServerConfig{Certificate: ca.keyServer(), ClientCAs: ca.pool, MTU: 576, Logger: slog.New(slog.NewTextHandler(&log, nil)), Handler: ski.HandlerFunc(
		func(context.Context, ski.Peer, *ski.Request) *ski.Response {
			return &ski.Response{Error: ski.MalformedRequest, OutputLen: 512}
		})})
	c, r := through(t, s, ca)
	for i := range 5 {
		resp, err := c.RoundTrip(t.Context(), request(i))
		require.NoError(t, err)
		assert.Equal(t, ski.MalformedRequest, resp.Error)
	}
	assert.Less(t, r.longest.Load(), int64(576), "in blocks")
	assert.NotContains(t, log.String(), "request refused")
}

// An answer that is padded, so that its length tells nothing, has one length in
// blocks too.
func TestTheLengthOfAnAnswerThatWasLostTellsNothing(t *testing.T) {
	t.Parallel()
	ca := newTestCA(t)
	const most = 520
	s := serve(t, "127.0.0.1:0", ServerConfig{Certificate: ca.keyServer(), ClientCAs: ca.pool, Handler: ski.HandlerFunc(
		func(_ context.Context, _ ski.Peer, req *ski.Request) *ski.Response {
			n := int(req.ClientVersion)
			if n == 0 {
				return &ski.Response{Error: ski.MalformedRequest, OutputLen: most}
			}
			return &ski.Response{Output: make([]byte, n), OutputLen: most}
		})})
	for _, f := range []ski.Format{ski.CBOR, ski.JSON} {
		var want []int
		for _, n := range []int{0, 1, 200, 510, most - 1, most} {
			c, r := through(t, s, ca, func(cfg *ClientConfig) { cfg.Format = f })
			_, err := c.RoundTrip(t.Context(), request(0)) // the handshake
			require.NoError(t, err)
			r.limit(0, smallUDP)
			var mu sync.Mutex
			var lengths []int
			r.down.Store(new(func(n int) {
				mu.Lock()
				defer mu.Unlock()
				lengths = append(lengths, n)
			}))
			req := request(1)
			req.ClientVersion = uint16(n)
			resp, err := c.RoundTrip(t.Context(), req)
			require.NoError(t, err)
			assert.Len(t, resp.Output, n)
			mu.Lock()
			lengths = slices.DeleteFunc(lengths, func(n int) bool { return n < 100 }) // answers to pings
			slices.Sort(lengths)
			lengths = slices.Compact(lengths)
			mu.Unlock()
			require.Greater(t, len(lengths), 1)
			if want == nil {
				want = lengths
			}
			assert.Equal(t, want, lengths, "%s, %d bytes", f, n)
		}
	}
}
