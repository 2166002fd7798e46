package skicoap

import (
	"bytes"
	"context"
	"crypto"
	"encoding/binary"
	"encoding/pem"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/pion/dtls/v3"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/tlsski/tlsski/ski"
)

// helloOf is the shortest ClientHello.
func helloOf(random ...byte) []byte {
	body := append([]byte{0xfe, 0xfd}, make([]byte, 32)...)
	copy(body[2:], random)
	return helloRecord([2]byte{0xfe, 0xff}, 0, 0, append(body, 0, 0, 0, 2, 0xc0, 0x2b, 1, 0))
}

// returning is the ClientHello that returns a cookie.
func returning(t testing.TB, hello, cookie []byte, record uint64) []byte {
	t.Helper()
	p, _, ok := nextPiece(hello)
	require.True(t, ok)
	b, ok := parseBody(p.data)
	require.True(t, ok)
	return helloRecord(p.version, record, 1, slices.Concat(b.head, []byte{byte(len(cookie))}, cookie, b.tail))
}

// halfOpen counts the handshakes under way.
func (m *mux) halfOpen() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.strangers.Len() + m.familiar.Len()
}

// occupied counts the addresses that have a flow.
func (m *mux) occupied() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return max(len(m.byAddr), len(m.byCID))
}

// offline is a mux without a socket, and what it sends.
func offline() (m *mux, sent map[netip.AddrPort][][]byte) {
	sent = make(map[netip.AddrPort][][]byte)
	m = newMux(nil, nil, func(*flow) {})
	m.send = func(b []byte, to netip.AddrPort) (int, error) {
		sent[to] = append(sent[to], bytes.Clone(b))
		return len(b), nil
	}
	return m, sent
}

// cookieIn returns the cookie of a HelloVerifyRequest.
func cookieIn(t testing.TB, answer []byte) []byte {
	t.Helper()
	require.Len(t, answer, verifyRequestLen)
	return answer[verifyRequestLen-cookieLen:]
}

func address(i int) netip.AddrPort {
	return netip.AddrPortFrom(netip.AddrFrom4([4]byte{198, byte(i >> 16), byte(i >> 8), byte(i)}), 1024)
}

// Whoever sends ClientHellos in the names of others gets nothing kept, however
// often each comes.
func TestAForgedClientHelloLeavesNothing(t *testing.T) {
	for _, times := range []int{1, 2, 3} {
		t.Run(fmt.Sprint(times, " times"), func(t *testing.T) {
			m, sent := offline()
			for i := range 20_000 {
				hello := helloOf(byte(i), byte(i>>8))
				for n := range times {
					binary.BigEndian.PutUint16(hello[9:], uint16(n)) // a record of its own
					m.route(address(i), admit(bytes.Clone(hello), cidLen), time.Now())
				}
			}
			assert.Zero(t, m.occupied())
			assert.Zero(t, m.halfOpen())
			assert.Len(t, sent, 20_000)
			for _, answers := range sent {
				require.Len(t, answers, times)
			}
			assert.EqualValues(t, 20_000*times, m.asked.Load())
		})
	}
}

// RFC 6347, Section 4.2.1.
func TestTheAnswerToAClientHello(t *testing.T) {
	m, sent := offline()
	hello := helloOf(1)
	hello[10] = 7 // the record's sequence number
	m.route(address(1), hello, time.Now())
	require.Len(t, sent[address(1)], 1)
	answer := sent[address(1)][0]
	assert.LessOrEqual(t, len(answer), len(hello), "nothing is amplified")
	assert.Equal(t, []byte{22, 0xfe, 0xff, 0, 0, 0, 0, 0, 0, 0, 7, 0, 32}, answer[:13], "the record")
	assert.Equal(t, []byte{3, 0, 0, 20, 0, 0, 0, 0, 0, 0, 0, 20}, answer[13:25], "the header of the message")
	assert.Equal(t, []byte{0xfe, 0xff, cookieLen}, answer[25:28])

	m.route(address(2), hello[:verifyRequestLen-1], time.Now())
	assert.Empty(t, sent[address(2)], "not even to what is no ClientHello")
}

func TestAnsweringAClientHelloAllocatesNothing(t *testing.T) {
	m, _ := offline()
	m.send = func(b []byte, _ netip.AddrPort) (int, error) { return len(b), nil }
	hello, wrong := helloOf(1), returning(t, helloOf(1), make([]byte, cookieLen), 1)
	now := time.Now()
	assert.Zero(t, testing.AllocsPerRun(1000, func() {
		m.route(address(1), hello, now)
		m.route(address(1), wrong, now)
	}))
}

func TestACookieIsGoodForItsAddressAndAMinute(t *testing.T) {
	now := time.Now()
	c := newCookies(now)
	cookie := bytes.Clone(cookieIn(t, c.verifyRequest(0, address(1), now)))
	assert.True(t, c.valid(cookie, address(1), now))
	assert.False(t, c.valid(cookie, address(2), now), "another address")
	assert.False(t, c.valid(cookie, netip.AddrPortFrom(address(1).Addr(), 1025), now), "another port")
	assert.False(t, c.valid(nil, address(1), now))
	assert.False(t, c.valid(cookie[:cookieLen-1], address(1), now), "cut short")
	for i := range cookie {
		other := bytes.Clone(cookie)
		other[i] ^= 1
		assert.False(t, c.valid(other, address(1), now), "byte %d", i)
	}
	mapped := netip.AddrPortFrom(netip.AddrFrom16(address(1).Addr().As16()), address(1).Port())
	assert.True(t, c.valid(cookie, mapped, now), "however the socket writes it")
	assert.True(t, c.valid(cookie, address(1), now.Add(cookieSecretPeriod)))
	assert.True(t, c.valid(cookie, address(1), now.Add(2*cookieSecretPeriod-1)))
	assert.False(t, c.valid(cookie, address(1), now.Add(2*cookieSecretPeriod)))
	assert.False(t, newCookies(now).valid(cookie, address(1), now), "of another process")

	later := now.Add(time.Hour)
	cookie = bytes.Clone(cookieIn(t, c.verifyRequest(0, address(1), later)))
	assert.True(t, c.valid(cookie, address(1), later))
	assert.False(t, c.valid(cookie, address(1), later.Add(2*cookieSecretPeriod)), "nobody asked for an hour")
}

// A peer that returns its cookie is let in, whatever is sent in its name
// meanwhile: the answers to that are as good to it as its own.
func TestAReturnedCookieBeginsAHandshake(t *testing.T) {
	m, sent := offline()
	m.route(address(1), helloOf(9, 9), time.Now()) // somebody else's
	cookie := cookieIn(t, sent[address(1)][0])
	again := returning(t, helloOf(1), cookie, 1)
	m.route(address(1), bytes.Clone(again), time.Now())
	assert.Equal(t, 1, m.halfOpen())
	m.route(address(1), bytes.Clone(again), time.Now())
	assert.Equal(t, 1, m.halfOpen(), "the same one")
	f := m.byAddr[address(1)].current
	assert.Equal(t, cookie, f.cookie)

	// What pion gets is the ClientHello that it would have had first, and this one.
	first, second := make([]byte, maxDatagram), make([]byte, maxDatagram)
	n, _, err := f.ReadFrom(first)
	require.NoError(t, err)
	p, _, ok := nextPiece(first[:n])
	require.True(t, ok)
	assert.Equal(t, helloOf(1)[recordHeaderLen:], first[recordHeaderLen:n])
	assert.Zero(t, p.record)
	n, _, err = f.ReadFrom(second)
	require.NoError(t, err)
	assert.Equal(t, again, second[:n])

	for name, datagram := range map[string][]byte{
		"another cookie":   returning(t, helloOf(2), bytes.Repeat([]byte{1}, cookieLen), 1),
		"no cookie":        returning(t, helloOf(3), nil, 1),
		"the first record": returning(t, helloOf(4), cookie, 0),
	} {
		m.route(address(1), datagram, time.Now())
		m.route(address(2), datagram, time.Now())
		assert.Same(t, f, m.byAddr[address(1)].current, name)
		assert.Equal(t, 1, m.occupied(), name)
	}
	assert.Empty(t, sent[address(2)])
	m.route(address(1), returning(t, helloOf(5), cookie, 9), time.Now())
	assert.Same(t, f, m.byAddr[address(1)].current, "it has its time")
	m.route(address(1), returning(t, helloOf(5), cookie, 9), time.Now().Add(handshakeGrace))
	assert.NotSame(t, f, m.byAddr[address(1)].current, "the peer has begun again")
	assert.Equal(t, 1, m.occupied())
	assert.Equal(t, 1, m.halfOpen())
}

// begins has address i begin a handshake and go no further.
func begins(t *testing.T, m *mux, addr netip.AddrPort, now time.Time) bool {
	t.Helper()
	cookie := cookieIn(t, m.cookies.verifyRequest(0, addr, now))
	m.route(addr, returning(t, helloOf(1), cookie, 1), now)
	return m.byAddr[addr] != nil
}

// Whoever receives at one address, and begins as many handshakes as it can,
// drives out its own.
func TestHandshakesOfOneAddressGiveWayToThoseOfOthers(t *testing.T) {
	m, _ := offline()
	now := time.Now()
	slow := netip.MustParseAddrPort("192.0.2.7:1")
	require.True(t, begins(t, m, slow, now))
	for i := range 10 * maxHandshakes {
		begins(t, m, netip.AddrPortFrom(address(0).Addr(), uint16(i+1)), now.Add(time.Duration(i)*time.Millisecond))
		require.LessOrEqual(t, m.halfOpen(), maxHandshakes)
	}
	assert.NotNil(t, m.byAddr[slow])
	for i := range maxHandshakes / 2 {
		require.True(t, begins(t, m, address(i+1), now), "others get in")
	}
	assert.Equal(t, maxHandshakes, m.halfOpen())
	assert.NotZero(t, m.givenUp.Load())
}

// Of many that do not go on, each has its time, and then gives way.
func TestHandshakesOfManyAddressesGiveWayInTime(t *testing.T) {
	m, _ := offline()
	now := time.Now()
	for i := range 10_000 {
		begins(t, m, address(i), now)
	}
	assert.Equal(t, maxHandshakes, m.occupied())
	assert.NotNil(t, m.byAddr[address(0)], "who is there has its time")
	edge := netip.MustParseAddrPort("192.0.2.7:1")
	assert.False(t, begins(t, m, edge, now))
	assert.True(t, begins(t, m, edge, time.Now().Add(handshakeGrace)), "when it comes again")
	assert.Nil(t, m.byAddr[address(0)])
	assert.Equal(t, maxHandshakes, m.occupied())
}

// A slow machine does not give up what it works on.
func TestAHandshakeHasItsTimeFromThePeersTurn(t *testing.T) {
	m, _ := offline()
	now := time.Now()
	m.took = time.Hour
	for i := range maxHandshakes {
		require.True(t, begins(t, m, address(i), now))
	}
	edge := netip.MustParseAddrPort("192.0.2.7:1")
	assert.False(t, begins(t, m, edge, now.Add(handshakeGrace)), "all wait for this machine")
	second := m.byAddr[address(1)].current
	_, err := second.WriteTo(record(recordHandshake, 0, 1, handshakeServerHello, 0, 0), net.UDPAddrFromAddrPort(address(1)))
	require.NoError(t, err)
	m.took = time.Hour
	assert.True(t, begins(t, m, edge, time.Now().Add(handshakeGrace)), "one is the peer's turn")
	assert.Equal(t, ended, second.state)
	assert.True(t, begins(t, m, netip.MustParseAddrPort("192.0.2.8:1"), time.Now().Add(2*m.took+handshakeGrace)), "pion does not answer every ClientHello")
}

// slowSigner is a key of a machine that takes its time, one signature after the other.
type slowSigner struct {
	crypto.Signer
	mu    *sync.Mutex
	count *atomic.Int64
}

func (s slowSigner) Sign(random io.Reader, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	time.Sleep(10 * time.Millisecond)
	s.count.Add(1)
	return s.Signer.Sign(random, digest, opts)
}

// All edges of a site come back at once, to a key server that makes fewer
// handshakes in a second than there would be places for. Its work is not wasted.
func TestManyEdgesGetInWhereSigningIsSlow(t *testing.T) {
	ca := newTestCA(t)
	var signatures atomic.Int64
	slow := ca.keyServer()
	slow.PrivateKey = slowSigner{slow.PrivateKey.(crypto.Signer), new(sync.Mutex), &signatures}
	s := serve(t, "127.0.0.1:0", ServerConfig{Certificate: slow, ClientCAs: ca.pool, Handler: ski.HandlerFunc(echo), MaxPeerSessions: 1000})
	edge := ca.edge()
	// Again where something else has taken the processors: a handshake whose peer is
	// slow gives way to others, and is begun anew.
	for begin := time.Now(); ; {
		const edges = 300
		signatures.Store(0)
		var all sync.WaitGroup
		var failed atomic.Int64
		clients := make([]*Client, edges)
		for i := range clients {
			clients[i] = dialTo(t, s, ca, func(c *ClientConfig) { c.Certificate, c.DialTimeout = edge, 10*time.Second })
			client := &ski.Client{Transports: []ski.Transport{clients[i]}, Timeout: time.Minute}
			all.Go(func() {
				if ask(t.Context(), client, i) != nil {
					failed.Add(1)
				}
			})
		}
		all.Wait()
		for _, c := range clients {
			require.NoError(t, c.Close())
		}
		t.Logf("%d signatures, %d edges did not get in", signatures.Load(), failed.Load())
		if failed.Load() == 0 && signatures.Load() < 2*edges {
			break
		}
		require.Less(t, time.Since(begin), 4*time.Minute)
	}
}

// Those who do not know where the edges are cannot take the places of those that
// have been there before.
func TestKnownAddressesHavePlacesOfTheirOwn(t *testing.T) {
	m, _ := offline()
	now := time.Now()
	edge := netip.MustParseAddrPort("192.0.2.7:1")
	m.known.add(edge.Addr())
	for i := range 2 * maxHandshakes {
		begins(t, m, address(i), now)
	}
	assert.True(t, begins(t, m, edge, now))
	for i := range 10 * maxHandshakes {
		begins(t, m, netip.AddrPortFrom(edge.Addr(), uint16(i+2)), now)
	}
	assert.Equal(t, 2*maxHandshakes, m.halfOpen())

	for i := range 2 * maxKnown {
		m.known.add(address(i).Addr())
	}
	assert.Len(t, m.known.byAddr, maxKnown)
	assert.Len(t, m.known.all(), maxKnown)
	assert.False(t, m.known.has(edge.Addr()), "the one seen longest ago is forgotten")
	assert.True(t, m.known.has(address(2*maxKnown-1).Addr()))
}

// What pion keeps elsewhere in another version is not written to: the wrong place
// would be somebody else's memory.
func TestWherePionKeepsItsCookie(t *testing.T) {
	type state struct {
		_      [32]byte
		cookie []byte //lint:ignore U1000 found by its name
	}
	type embedded struct {
		state //lint:ignore U1000 likewise
	}
	type outer struct {
		state state //lint:ignore U1000 likewise
	}
	type conn struct {
		_     int
		state state //lint:ignore U1000 likewise
	}
	at, ok := cookieField(reflect.TypeFor[conn]())
	assert.True(t, ok)
	assert.EqualValues(t, 8+32, at)
	for _, other := range []reflect.Type{
		reflect.TypeFor[struct{}](),
		reflect.TypeFor[struct{ state *state }](),
		reflect.TypeFor[struct{ state embedded }](),
		reflect.TypeFor[struct{ state struct{ cookie string } }](),
		reflect.TypeFor[struct{ outer }](),
	} {
		_, ok := cookieField(other)
		assert.False(t, ok, "%v", other)
	}
}

// pion's own check of the cookie stays: where it has not been given ours, there
// is no handshake.
func TestPionComparesTheCookie(t *testing.T) {
	ca := newTestCA(t)
	s := serve(t, "127.0.0.1:0", ServerConfig{Certificate: ca.keyServer(), ClientCAs: ca.pool, Handler: ski.HandlerFunc(echo)})
	var begun atomic.Int64
	s.mux.mu.Lock()
	s.mux.begin = func(f *flow) {
		f.cookie = bytes.Repeat([]byte{1}, cookieLen)
		begun.Add(1)
		s.begin(f)
	}
	s.mux.mu.Unlock()
	c := dialTo(t, s, ca, func(c *ClientConfig) { c.DialTimeout = time.Second })
	require.Eventually(t, func() bool {
		return assert.Error(t, ask(t.Context(), c, 1)) && begun.Load() > 0
	}, time.Minute, time.Millisecond)
	assert.Empty(t, s.all())
}

// A key server that is started again has another secret. Whoever returns the
// cookie of the one before begins anew.
func TestACookieOfTheServerBefore(t *testing.T) {
	ca := newTestCA(t)
	before := newCookies(time.Now()) // used by the goroutine that reads
	var first atomic.Bool
	cfg := ServerConfig{Certificate: ca.keyServer(), ClientCAs: ca.pool, Handler: ski.HandlerFunc(echo)}
	s := serve(t, "127.0.0.1:0", cfg, func(s *Server) {
		s.mux.send = func(b []byte, to netip.AddrPort) (int, error) {
			if isFirst(b, handshakeHelloVerifyRequest) && !first.Swap(true) {
				b = before.verifyRequest(uint48(b[5:]), to, time.Now())
			}
			return s.mux.conn.WriteToUDPAddrPort(b, to)
		}
	})
	c := dialTo(t, s, ca, func(c *ClientConfig) { c.DialTimeout = time.Second })
	client := &ski.Client{Transports: []ski.Transport{c}, Timeout: time.Minute}
	require.NoError(t, ask(t.Context(), client, 1))
	assert.True(t, first.Load())
}

// The certificate is sent to a peer that does not go on a few times, however
// often that asks.
func TestAHalfOpenHandshakeIsNotSentMuch(t *testing.T) {
	m, sent := offline()
	require.True(t, begins(t, m, address(1), time.Now()))
	f := m.byAddr[address(1)].current
	for range 100 {
		for _, message := range []byte{handshakeServerHello, 11, 12, 14} {
			n, err := f.WriteTo(record(recordHandshake, 0, 1, message, 0, 0), net.UDPAddrFromAddrPort(address(1)))
			require.NoError(t, err)
			require.Equal(t, 16, n)
		}
	}
	assert.Len(t, sent[address(1)], 4*maxFlights)
}

func TestAFloodIsLoggedOnceAndItsEnd(t *testing.T) {
	var text bytes.Buffer
	log := slog.New(slog.NewTextHandler(&text, nil))
	var f flood
	f.look(floodHellos, floodHellos, log) // all edges of a site come back at once
	assert.Empty(t, text.String())
	for i := range uint64(10) {
		f.look((2+i)*floodHellos, floodHellos, log)
	}
	assert.Equal(t, 1, strings.Count(text.String(), "\n"), text.String())
	assert.Contains(t, text.String(), "flood of ClientHellos")
	f.look(11*floodHellos+1, floodHellos, log)
	f.look(11*floodHellos+2, floodHellos, log)
	assert.Equal(t, 2, strings.Count(text.String(), "\n"), text.String())
	assert.Contains(t, text.String(), "is over")
}

// keepForging sends ClientHellos from many ports of this machine, each three
// times, until the test ends. Nobody reads the answers.
func keepForging(t *testing.T, s *Server) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	var forging sync.WaitGroup
	t.Cleanup(func() { cancel(); forging.Wait() })
	before := s.mux.asked.Load()
	for i := range 4 {
		forger, err := net.Dial("udp", s.Addr().String())
		require.NoError(t, err)
		forging.Go(func() {
			defer forger.Close()
			for n := 0; ctx.Err() == nil; n++ {
				hello := helloOf(byte(i), byte(n), byte(n>>8))
				for range 3 {
					_, _ = forger.Write(hello)
				}
				time.Sleep(time.Millisecond) // leaves the processors to others
			}
		})
	}
	require.Eventually(t, func() bool { return s.mux.asked.Load() > before }, time.Minute, time.Millisecond)
}

func TestAnEdgeGetsInBesideAFlood(t *testing.T) {
	ca := newTestCA(t)
	var log logBuffer
	s := serve(t, "127.0.0.1:0", ServerConfig{
		Certificate: ca.keyServer(), ClientCAs: ca.pool, Handler: ski.HandlerFunc(echo),
		Logger: slog.New(slog.NewTextHandler(&log, nil)),
	})
	keepForging(t, s)
	for i := range 5 {
		require.NoError(t, ask(t.Context(), dialTo(t, s, ca), i))
	}
	assert.LessOrEqual(t, s.mux.occupied(), 5, "the forgers have nothing")
	assert.LessOrEqual(t, strings.Count(log.String(), "\n"), 10, "the log is not flooded either: %s", log.String())
	cookies, _ := s.Handshakes()
	assert.NotZero(t, cookies)
	assert.Equal(t, []netip.Addr{netip.MustParseAddr("127.0.0.1")}, s.KnownAddresses())
}

// The flood comes in the name of the edge, with its port too. Its session goes
// on, and it makes a new one.
func TestAFloodInTheNameOfAnEdgeHarmsItNot(t *testing.T) {
	ca := newTestCA(t)
	s := serve(t, "127.0.0.1:0", ServerConfig{
		Certificate: ca.keyServer(), ClientCAs: ca.pool, Handler: ski.HandlerFunc(echo),
		KnownAddresses: []netip.Addr{netip.MustParseAddr("127.0.0.1")},
	})
	keepForging(t, s)
	r := newRelay(t, s.Addr().String())
	dial := func() *Client {
		c, err := NewClient("coaps://"+r.addr(), ca.client())
		require.NoError(t, err)
		t.Cleanup(func() { _ = c.Close() })
		return c
	}
	c := dial()
	require.NoError(t, ask(t.Context(), c, 0))
	first := c.current
	hello := captureClientHello(t, ca)
	for i := range 200 {
		r.forge(helloOf(byte(i)))
		r.forge(hello)
		if i%20 == 0 {
			require.NoError(t, ask(t.Context(), c, i))
		}
	}
	require.NoError(t, ask(t.Context(), c, 0))
	assert.Same(t, first, c.current)
	assert.True(t, first.alive())

	handshakes := make(chan error, 10) // while its port is used too
	for i := range cap(handshakes) {
		go func() { handshakes <- ask(t.Context(), dial(), i) }()
	}
	for range cap(handshakes) {
		r.forge(helloOf(7))
		require.NoError(t, <-handshakes)
	}
	assert.True(t, first.alive())
}

// forge sends a datagram to the server in the name of each client.
func (r *relay) forge(datagram []byte) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, b := range r.backs {
		_, _ = b.conn.Write(datagram)
	}
}

// Forgers that do return cookies are many at most, and an edge gets in all the
// same.
func TestAnEdgeGetsInBesideHalfOpenHandshakes(t *testing.T) {
	ca := newTestCA(t)
	s := serve(t, "127.0.0.1:0", ServerConfig{Certificate: ca.keyServer(), ClientCAs: ca.pool, Handler: ski.HandlerFunc(echo)})
	hello := captureClientHello(t, ca)
	for i := range 4 * maxHandshakes {
		local := &net.UDPAddr{IP: net.IPv4(127, 9, byte(i>>8), byte(i))}
		stop, err := net.DialUDP("udp", local, net.UDPAddrFromAddrPort(s.Addr()))
		require.NoError(t, err)
		defer stop.Close()
		require.NoError(t, stop.SetDeadline(time.Now().Add(time.Minute)))
		_, err = stop.Write(hello)
		require.NoError(t, err)
		buf := make([]byte, maxDatagram)
		n, err := stop.Read(buf)
		require.NoError(t, err)
		_, err = stop.Write(returning(t, hello, cookieIn(t, buf[:n]), 1))
		require.NoError(t, err)
	}
	c := dialTo(t, s, ca, func(c *ClientConfig) { c.DialTimeout = 20 * time.Second })
	client := &ski.Client{Transports: []ski.Transport{c}, Timeout: time.Minute}
	require.NoError(t, ask(t.Context(), client, 1))
	assert.LessOrEqual(t, s.mux.halfOpen(), maxHandshakes)
	_, givenUp := s.Handshakes()
	assert.NotZero(t, givenUp)
}

// A server whose answers are slow has sent more than one cookie, and its
// ServerHello must not have the number of any of them (RFC 6347, Section 4.2.1).
func TestTheServerHelloHasTheNumberOfTheClientHello(t *testing.T) {
	ca := newTestCA(t)
	s := serve(t, "127.0.0.1:0", ServerConfig{Certificate: ca.keyServer(), ClientCAs: ca.pool, Handler: ski.HandlerFunc(echo)})
	peer, err := net.Dial("udp", s.Addr().String())
	require.NoError(t, err)
	defer peer.Close()
	require.NoError(t, peer.SetDeadline(time.Now().Add(time.Minute)))
	hello, buf := captureClientHello(t, ca), make([]byte, maxDatagram)
	_, err = peer.Write(hello)
	require.NoError(t, err)
	n, err := peer.Read(buf)
	require.NoError(t, err)
	_, err = peer.Write(returning(t, hello, cookieIn(t, buf[:n]), 40))
	require.NoError(t, err)
	n, err = peer.Read(buf)
	require.NoError(t, err)
	require.True(t, isFirst(buf[:n], handshakeServerHello))
	for next, rest := uint64(40), buf[:n]; len(rest) > 0; next++ {
		assert.Equal(t, next, uint48(rest[5:]))
		rest = rest[recordHeaderLen+int(binary.BigEndian.Uint16(rest[11:])):]
	}
}

// A ClientHello in pieces is one, also when they are lost, come twice or
// overtake each other.
func TestAClientHelloInPieces(t *testing.T) {
	ca := newTestCA(t)
	s := serve(t, "127.0.0.1:0", ServerConfig{Certificate: ca.keyServer(), ClientCAs: ca.pool, Handler: ski.HandlerFunc(echo)})
	for _, f := range []faults{{}, {lost: 0.05, doubled: 0.3, held: 0.2, delay: 5 * time.Millisecond}} {
		r := newRelay(t, s.Addr().String())
		r.faults.Store(&f)
		conn, err := dtls.DialWithOptions("udp", r.front.LocalAddr().(*net.UDPAddr), dtls.WithMTU(80), dtls.WithFlightInterval(50*time.Millisecond),
			dtls.WithCertificates(ca.edge()), dtls.WithRootCAs(ca.pool), dtls.WithServerName("localhost"))
		require.NoError(t, err)
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		require.NoError(t, conn.HandshakeContext(ctx))
		cancel()
		require.NoError(t, conn.Close())
	}
}

// The programs of others get in on their first attempt: there is one
// HelloVerifyRequest, as with any server.
func TestOtherProgramsGetInBesideAFlood(t *testing.T) {
	ca := newTestCA(t)
	s := serve(t, "127.0.0.1:0", ServerConfig{Certificate: ca.keyServer(), ClientCAs: ca.pool, Handler: ski.HandlerFunc(echo)})
	keepForging(t, s)
	edge, root := pemFile(t, ca.edge()), filepath.Join(t.TempDir(), "ca.pem")
	require.NoError(t, os.WriteFile(root, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: ca.cert.Raw}), 0o600))
	host, port, err := net.SplitHostPort(s.Addr().String())
	require.NoError(t, err)
	for _, program := range []struct {
		command, want string
	}{
		{"openssl s_client -dtls1_2 -brief -connect " + host + ":" + port + " -cert " + edge, "Ciphersuite"},
		{"openssl s_client -dtls1_2 -brief -mtu 256 -connect " + host + ":" + port + " -cert " + edge, "Ciphersuite"},
		{"gnutls-cli --udp --no-ca-verification --x509certfile " + edge + " --x509keyfile " + edge + " -p " + port + " " + host, "Handshake was completed"},
		{"coap-client-openssl -m get -B 50 -c " + edge + " -C " + root + " coaps://" + host + ":" + port + "/.well-known/core", "tls-ski"},
		{"coap-client-gnutls -m get -B 50 -c " + edge + " -C " + root + " coaps://" + host + ":" + port + "/.well-known/core", "tls-ski"},
	} {
		words := strings.Fields(program.command)
		t.Run(words[0], func(t *testing.T) {
			for range 3 {
				ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
				cmd := exec.CommandContext(ctx, words[0], words[1:]...)
				out, err := cmd.CombinedOutput()
				cancel()
				require.Contains(t, string(out), program.want, "%v", err)
			}
		})
	}
}

// A ClientHello that somebody sends from a peer's address does not keep the
// peer out while it waits for its cookie.
func TestAHalfOpenHandshakeGivesWayToAnother(t *testing.T) {
	ca := newTestCA(t)
	s := serve(t, "127.0.0.1:0", ServerConfig{Certificate: ca.keyServer(), ClientCAs: ca.pool, Handler: ski.HandlerFunc(echo), HandshakeTimeout: time.Minute})
	from := &net.UDPAddr{IP: net.IPv4(127, 0, 0, 2)} // whose ports nobody else takes meanwhile
	udp, err := net.DialUDP("udp", from, net.UDPAddrFromAddrPort(s.Addr()))
	require.NoError(t, err)
	_, err = udp.Write(helloOf(1, 2, 3))
	require.NoError(t, err)
	// The cookie for it must not be taken for the next one's.
	require.NoError(t, udp.SetReadDeadline(time.Now().Add(time.Minute)))
	_, err = udp.Read(make([]byte, 1024))
	require.NoError(t, err)
	local := udp.LocalAddr().(*net.UDPAddr)
	_ = udp.Close()
	socket, err := net.ListenUDP("udp", local)
	require.NoError(t, err)
	conn, err := dtls.ClientWithOptions(socket, net.UDPAddrFromAddrPort(s.Addr()),
		dtls.WithCertificates(ca.edge()), dtls.WithRootCAs(ca.pool), dtls.WithServerName("localhost"))
	require.NoError(t, err)
	t.Cleanup(func() { _ = conn.Close() })
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute) // half of HandshakeTimeout
	defer cancel()
	require.NoError(t, conn.HandshakeContext(ctx))
}

func TestASpoofedClientHelloDoesNotEndTheSessionOfItsAddress(t *testing.T) {
	ca := newTestCA(t)
	s := serve(t, "127.0.0.1:0", ServerConfig{
		Certificate: ca.keyServer(), ClientCAs: ca.pool, Handler: ski.HandlerFunc(echo),
	})
	r := newRelay(t, s.Addr().String())
	c, err := NewClient("coaps://"+r.addr(), ca.client())
	require.NoError(t, err)
	t.Cleanup(func() { _ = c.Close() })
	require.NoError(t, ask(t.Context(), c, 0))
	first := c.current

	// A ClientHello that is complete: the server answers it with a cookie, and
	// the client does not know what to do with that.
	hello := captureClientHello(t, ca)
	for i := range 20 {
		r.inject(hello)
		require.NoError(t, ask(t.Context(), c, i))
	}
	assert.Zero(t, s.mux.halfOpen())
	require.NoError(t, ask(t.Context(), c, 0))
	assert.True(t, first.alive())
	assert.Len(t, s.all(), 1)
}

func captureClientHello(t *testing.T, ca *testCA) []byte {
	t.Helper()
	sink, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	require.NoError(t, err)
	defer sink.Close()
	conn, err := dtls.DialWithOptions("udp", sink.LocalAddr().(*net.UDPAddr), dtls.WithCertificates(ca.edge()), dtls.WithRootCAs(ca.pool), dtls.WithServerName("localhost"))
	require.NoError(t, err)
	ctx, cancel := context.WithCancel(t.Context())
	failed := make(chan error, 1)
	go func() { failed <- conn.HandshakeContext(ctx) }()
	buf := make([]byte, 2048)
	n, err := sink.Read(buf)
	require.NoError(t, err)
	cancel()
	require.Error(t, <-failed)
	_ = conn.Close()
	return buf[:n]
}

func FuzzClientHello(f *testing.F) {
	hello := helloOf(1, 2, 3)
	f.Add(hello)
	f.Add(returning(f, hello, bytes.Repeat([]byte{7}, cookieLen), 1))
	f.Add(returning(f, hello, bytes.Repeat([]byte{7}, 255), 1<<48-1))
	f.Add(append(bytes.Clone(hello), hello...))
	for _, forged := range forgeries {
		f.Add(forged)
	}
	f.Fuzz(func(t *testing.T, datagram []byte) {
		m, sent := offline()
		now := time.Now()
		admitted := admit(bytes.Clone(datagram), cidLen)
		if len(admitted) == 0 {
			return
		}
		m.route(address(1), admitted, now)
		assert.Zero(t, m.occupied(), "nobody has returned a cookie")
		for _, answer := range sent[address(1)] {
			assert.LessOrEqual(t, len(answer), len(datagram))
		}
		// The same with a cookie that is good.
		p, _, ok := nextPiece(admitted)
		if !ok {
			return
		}
		b, ok := parseBody(p.data)
		if !ok || p.offset > 0 || len(p.data) != p.length {
			return
		}
		assert.Equal(t, p.data, slices.Concat(b.head, []byte{byte(len(b.cookie))}, b.cookie, b.tail))
		cookie := bytes.Clone(cookieIn(t, m.cookies.verifyRequest(0, address(1), now)))
		body := slices.Concat(b.head, []byte{cookieLen}, cookie, b.tail)
		if len(body) > maxHello {
			return
		}
		m.route(address(1), helloRecord(p.version, 1, 1, body), now)
		require.Equal(t, 1, m.occupied())
		buf := make([]byte, maxDatagram)
		n, _, err := m.byAddr[address(1)].current.ReadFrom(buf)
		require.NoError(t, err)
		first, _, ok := nextPiece(buf[:n])
		require.True(t, ok)
		again, ok := parseBody(first.data)
		require.True(t, ok)
		assert.Empty(t, again.cookie)
		assert.Equal(t, b.head, again.head)
		assert.Equal(t, b.tail, again.tail)
	})
}
