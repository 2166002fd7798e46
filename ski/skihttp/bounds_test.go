package skihttp

import (
	"bufio"
	"bytes"
	"context"
	"crypto"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"github.com/tlsski/tlsski/ski"
	"github.com/tlsski/tlsski/ski/internal/turn"
)

// connect makes a TLS connection that a test speaks on by itself.
func connect(t *testing.T, s *Server, ca *testCA, protocol string) *tls.Conn {
	t.Helper()
	c, err := tls.Dial("tcp", s.Addr().String(), &tls.Config{
		Certificates: []tls.Certificate{ca.edge()}, RootCAs: ca.pool, NextProtos: []string{protocol},
	})
	require.NoError(t, err)
	t.Cleanup(func() { c.Close() })
	require.NoError(t, c.SetDeadline(time.Now().Add(time.Minute)))
	return c
}

func TestRequestsThatAreNoneAreRefused(t *testing.T) {
	ca := newTestCA(t)
	var log logBuffer
	var asked atomic.Int64
	s := serve(t, ca, ServerConfig{
		Logger: log.logger(),
		Handler: ski.HandlerFunc(func(ctx context.Context, p ski.Peer, req *ski.Request) *ski.Response {
			asked.Add(1)
			return echo(ctx, p, req)
		}),
	})
	good, err := ski.EncodeRequest(ski.JSON, request(1))
	require.NoError(t, err)
	large := append(bytes.Repeat([]byte(" "), ski.MaxMessageSize), good...)
	for _, tc := range []struct {
		name, method, path string
		header             map[string]string
		body               io.Reader
		status             int
		answer             map[string]string
	}{
		{"other path", "POST", "/", nil, bytes.NewReader(good), 404, nil},
		{"longer path", "POST", "/ski/x", nil, bytes.NewReader(good), 404, nil},
		{"GET", "GET", "/ski", nil, nil, 405, map[string]string{"Allow": "POST, PUT"}},
		{"DELETE", "DELETE", "/ski", nil, nil, 405, map[string]string{"Allow": "POST, PUT"}},
		{"OPTIONS", "OPTIONS", "/ski", nil, nil, 405, nil},
		{"no content type", "POST", "/ski", map[string]string{"Content-Type": ""}, bytes.NewReader(good), 415, nil},
		{"form", "POST", "/ski", map[string]string{"Content-Type": "application/x-www-form-urlencoded"}, bytes.NewReader(good), 415,
			map[string]string{"Accept": "application/cbor, application/json"}},
		{"compressed", "POST", "/ski", map[string]string{"Content-Encoding": "gzip"}, bytes.NewReader(good), 415, nil},
		{"other accept", "POST", "/ski", map[string]string{"Accept": "text/html"}, bytes.NewReader(good), 406, nil},
		{"too large", "POST", "/ski", nil, bytes.NewReader(large), 413, map[string]string{"Content-Type": "application/json"}},
		{"too large, length not said", "POST", "/ski", nil, io.MultiReader(bytes.NewReader(large)), 413, nil},
		{"not SKI", "POST", "/ski", nil, strings.NewReader("[]"), 400, map[string]string{"Content-Type": "application/json"}},
		{"empty", "POST", "/ski", nil, strings.NewReader(""), 400, map[string]string{"Content-Type": "application/json"}},
	} {
		var content []byte
		if tc.body != nil {
			content, err = io.ReadAll(tc.body)
			require.NoError(t, err)
		}
		for _, version := range []int{1, 2} {
			t.Run(fmt.Sprintf("%s HTTP/%d", tc.name, version), func(t *testing.T) {
				// A new one: a client may go on reading the former's after its answer.
				body := tc.body
				if _, lengthIsKnown := body.(io.Seeker); lengthIsKnown {
					body = bytes.NewReader(content)
				} else if body != nil {
					body = io.MultiReader(bytes.NewReader(content))
				}
				before := strings.Count(log.String(), "request refused")
				req, err := http.NewRequestWithContext(t.Context(), tc.method, fmt.Sprintf("https://%s%s", s.Addr(), tc.path), body)
				require.NoError(t, err)
				req.Header.Set("Content-Type", "application/json")
				for k, v := range tc.header {
					req.Header.Set(k, v)
				}
				resp, err := httpClient(t, ca, version).Do(req)
				require.NoError(t, err)
				defer resp.Body.Close()
				data, err := io.ReadAll(resp.Body)
				require.NoError(t, err)
				assert.Equal(t, tc.status, resp.StatusCode)
				for k, v := range tc.answer {
					assert.Equal(t, v, resp.Header.Get(k))
				}
				if tc.status == 400 || tc.status == 413 { // is the key server's to audit
					assert.JSONEq(t, `{"error":"malformed request"}`, string(data))
					return
				}
				assert.NotContains(t, resp.Header.Get("Content-Type"), "application/")
				require.Eventually(t, func() bool {
					return strings.Count(log.String(), "request refused") > before || s.unlogged.Load() > 0
				}, time.Minute, time.Millisecond)
			})
		}
	}
	assert.Zero(t, asked.Load())
	assert.Contains(t, log.String(), "status=405")
	assert.Contains(t, log.String(), "method=DELETE path=/ski")
}

// auditing is a Handler that counts what it is told of.
type auditing struct {
	ski.HandlerFunc
	malformed atomic.Int64
}

func (a *auditing) ServeMalformed(context.Context, ski.Peer, error) *ski.Response {
	a.malformed.Add(1)
	return ski.Failed(ski.MalformedRequest)
}

// The key server has to know of it, or somebody could try things that nobody
// finds in the audit log.
func TestABodyThatIsTooLargeIsAudited(t *testing.T) {
	ca := newTestCA(t)
	h := &auditing{HandlerFunc: echo}
	s := serve(t, ca, ServerConfig{Handler: h})
	for _, version := range []int{1, 2} {
		for i, size := range []int{ski.MaxMessageSize + 1, 1 << 20} {
			for said, body := range map[bool]io.Reader{
				true:  bytes.NewReader(make([]byte, size)),
				false: io.MultiReader(bytes.NewReader(make([]byte, size))),
			} {
				h.malformed.Store(0)
				resp, err := httpClient(t, ca, version).Post(fmt.Sprintf("https://%s/ski", s.Addr()), "application/cbor", body)
				require.NoError(t, err, "%d %d %v", version, i, said)
				resp.Body.Close()
				assert.Equal(t, http.StatusRequestEntityTooLarge, resp.StatusCode)
				assert.EqualValues(t, 1, h.malformed.Load())
			}
		}
	}
}

func TestAHeaderThatIsTooLargeIsRefused(t *testing.T) {
	ca := newTestCA(t)
	var log logBuffer
	s := serve(t, ca, ServerConfig{Logger: log.logger(), Handler: ski.HandlerFunc(func(context.Context, ski.Peer, *ski.Request) *ski.Response {
		t.Error("it has come through")
		return ski.Failed(ski.UnspecifiedError)
	})})
	body, err := ski.EncodeRequest(ski.JSON, request(1))
	require.NoError(t, err)
	for _, version := range []int{1, 2} {
		req, err := http.NewRequestWithContext(t.Context(), "POST", fmt.Sprintf("https://%s/ski", s.Addr()), bytes.NewReader(body))
		require.NoError(t, err)
		req.Header.Set("Content-Type", "application/json")
		req.Header.Set("X-Large", strings.Repeat("x", 4*maxHeader))
		resp, err := httpClient(t, ca, version).Do(req)
		if version == 2 { // the session is ended, or our side has heard of the limit already
			require.Error(t, err)
			continue
		}
		require.NoError(t, err)
		resp.Body.Close()
		assert.Equal(t, http.StatusRequestHeaderFieldsTooLarge, resp.StatusCode)
		log.eventually(t, "the peer has sent what is no request")
	}
}

// slow are peers that begin something and do not go on with it.
func TestSlowPeersAreCut(t *testing.T) {
	ca := newTestCA(t)
	var log logBuffer
	s := serve(t, ca, ServerConfig{Logger: log.logger(), RequestTimeout: time.Second, IdleTimeout: time.Hour})
	before := runtime.NumGoroutine()

	t.Run("handshake", func(t *testing.T) {
		s := serve(t, ca, ServerConfig{Logger: log.logger(), HandshakeTimeout: time.Second})
		c, err := net.Dial("tcp", s.Addr().String())
		require.NoError(t, err)
		defer c.Close()
		_, err = c.Write([]byte{22, 3, 1, 2, 0}) // the header of a record
		require.NoError(t, err)
		_, err = io.ReadAll(c)
		_ = err // whichever way it is closed
		log.eventually(t, "handshake failed")
		assert.Contains(t, log.String(), c.LocalAddr().String())
	})
	t.Run("header", func(t *testing.T) {
		c := connect(t, s, ca, "http/1.1")
		_, err := io.WriteString(c, "POST /ski HTTP/1.1\r\nHost: key.server\r\nContent-Type: application/json\r\nX-Slow: ")
		require.NoError(t, err)
		_, _ = io.ReadAll(c)
		log.eventually(t, "has not sent a whole request in time")
	})
	t.Run("body", func(t *testing.T) {
		c := connect(t, s, ca, "http/1.1")
		_, err := io.WriteString(c, "POST /ski HTTP/1.1\r\nHost: key.server\r\nContent-Type: application/json\r\nContent-Length: 100\r\n\r\n{")
		require.NoError(t, err)
		resp, err := http.ReadResponse(bufio.NewReader(c), nil)
		require.NoError(t, err)
		assert.Equal(t, http.StatusRequestTimeout, resp.StatusCode)
		assert.True(t, resp.Close)
		log.eventually(t, "status=408")
	})
	t.Run("body over HTTP/2", func(t *testing.T) {
		read, write := io.Pipe()
		defer write.Close()
		req, err := http.NewRequestWithContext(t.Context(), "POST", fmt.Sprintf("https://%s/ski", s.Addr()), read)
		require.NoError(t, err)
		req.Header.Set("Content-Type", "application/json")
		resp, err := httpClient(t, ca, 2).Do(req)
		require.NoError(t, err)
		resp.Body.Close()
		assert.Equal(t, http.StatusRequestTimeout, resp.StatusCode)
	})
	t.Run("idle", func(t *testing.T) {
		s := serve(t, ca, ServerConfig{Logger: log.logger(), IdleTimeout: 300 * time.Millisecond})
		for _, version := range []int{1, 2} {
			client := httpClient(t, ca, version)
			resp, err := client.Post(fmt.Sprintf("https://%s/ski", s.Addr()), "application/json", strings.NewReader("{}"))
			require.NoError(t, err)
			_, _ = io.Copy(io.Discard, resp.Body)
			resp.Body.Close()
			require.Eventually(t, func() bool { return len(s.Peers()) == 0 }, time.Minute, 5*time.Millisecond)
		}
		log.eventually(t, "reason=idle")
	})
	quietens(t, s, before)
}

func TestHalfOpenConnectionsAreBounded(t *testing.T) {
	ca := newTestCA(t)
	var log logBuffer
	s := serve(t, ca, ServerConfig{Logger: log.logger(), MaxHandshakes: 8, HandshakeTimeout: time.Hour})
	before := runtime.NumGoroutine()
	var all []net.Conn
	for range 100 {
		c, err := net.Dial("tcp", s.Addr().String())
		require.NoError(t, err)
		all = append(all, c)
		defer c.Close()
	}
	log.eventually(t, "too many handshakes at once")
	require.Eventually(t, func() bool { return runtime.NumGoroutine() <= before+few+8 }, time.Minute, time.Millisecond)
	// Each has its time, and then an edge comes in, which asks until it does.
	client := &ski.Client{Transports: []ski.Transport{dialTo(t, s, ca)}, Timeout: time.Minute}
	require.NoError(t, ask(t.Context(), client, 1))
	_ = all[0].SetReadDeadline(time.Now().Add(time.Minute))
	_, err := all[0].Read(make([]byte, 1))
	require.Error(t, err)
	assert.NotErrorIs(t, err, context.DeadlineExceeded)
}

// Somebody who opens connections as fast as he can drives out his own.
func TestAFloodFromOneAddressDoesNotEndHandshakesOfOthers(t *testing.T) {
	ca := newTestCA(t)
	s := serve(t, ca, ServerConfig{MaxHandshakes: 8})
	handshakes := func() int {
		s.mu.Lock()
		defer s.mu.Unlock()
		return len(s.handshakes)
	}
	slow, err := net.Dial("tcp", s.Addr().String())
	require.NoError(t, err)
	defer slow.Close()
	require.Eventually(t, func() bool { return handshakes() == 1 }, time.Minute, time.Millisecond)
	from := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 0, 0, 2)}}
	for range 50 {
		c, err := from.Dial("tcp", s.Addr().String())
		require.NoError(t, err)
		defer c.Close()
	}
	require.Eventually(t, func() bool { return handshakes() == 8 }, time.Minute, time.Millisecond)
	secure := tls.Client(slow, &tls.Config{Certificates: []tls.Certificate{ca.edge()}, RootCAs: ca.pool, ServerName: "localhost", MaxVersion: tls.VersionTLS12})
	require.NoError(t, secure.HandshakeContext(t.Context()), "in TLS 1.2 the server is done too")
}

// Of many connections that do not go on, each from another address, each has its
// time.
func TestHalfOpenConnectionsOfManyAddressesHaveTheirTime(t *testing.T) {
	ca := newTestCA(t)
	s := serve(t, ca, ServerConfig{MaxHandshakes: 8})
	at := func(i int, began time.Time) *conn {
		return &conn{turn: turn.New(nil, began), addr: netip.AddrPortFrom(netip.AddrFrom4([4]byte{192, 0, 2, byte(i)}), 1)}
	}
	now := time.Now()
	s.mu.Lock()
	defer s.mu.Unlock()
	defer clear(s.handshakes)
	first := at(0, now)
	s.handshakes[first] = struct{}{}
	for i := range 7 {
		s.handshakes[at(i+1, now.Add(time.Millisecond))] = struct{}{}
	}
	assert.Nil(t, s.yielding(at(9, now), now.Add(handshakeGrace-1)))
	assert.Same(t, first, s.yielding(at(9, now), now.Add(handshakeGrace)))
	again := at(0, now)
	s.handshakes[again] = struct{}{}
	assert.Contains(t, []*conn{first, again}, s.yielding(at(9, now), now.Add(1)), "who has more gives way at once")
}

// waitingSigner is a key of a machine that is slow.
type waitingSigner struct {
	crypto.Signer
	asked, sign chan struct{}
}

func (s waitingSigner) Sign(random io.Reader, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	close(s.asked)
	<-s.sign
	return s.Signer.Sign(random, digest, opts)
}

// A key server that has much to do does not take the time from those that wait for
// it: their handshakes would begin anew, and it would have more to do.
func TestAConnectionThatWaitsForItsServerKeepsItsPlace(t *testing.T) {
	ca := newTestCA(t)
	slow, asked, sign := ca.keyServer(), make(chan struct{}), make(chan struct{})
	slow.PrivateKey = waitingSigner{slow.PrivateKey.(crypto.Signer), asked, sign}
	s := serve(t, ca, ServerConfig{Certificate: slow})
	got := make(chan error, 1)
	go func() {
		c, err := tls.Dial("tcp", s.Addr().String(), &tls.Config{Certificates: []tls.Certificate{ca.edge()}, RootCAs: ca.pool, ServerName: "localhost"})
		if err == nil {
			err = c.Close()
		}
		got <- err
	}()
	<-asked
	s.mu.Lock()
	require.Len(t, s.handshakes, 1)
	var waits *conn
	for waits = range s.handshakes {
	}
	s.mu.Unlock()
	before := time.Now()
	assert.False(t, waits.turn.Since().Before(before))
	close(sign)
	require.NoError(t, <-got)
	assert.True(t, waits.turn.Since().Before(time.Now()))
}

func TestSessionsAreBounded(t *testing.T) {
	ca := newTestCA(t)
	var log logBuffer
	s := serve(t, ca, ServerConfig{Logger: log.logger(), MaxSessions: 3, MaxPeerSessions: 2})
	one := ca.edge()
	as := func(cert tls.Certificate) *Client {
		c := dialTo(t, s, ca, func(cfg *ClientConfig) { cfg.Certificate, cfg.MaxConns = cert, 1 })
		require.NoError(t, ask(t.Context(), c, 1))
		return c
	}
	as(one)
	as(one)
	as(one) // takes the place of the first
	log.eventually(t, "the peer has made too many other sessions")
	require.Eventually(t, func() bool { return len(s.Peers()) == 2 }, time.Minute, time.Millisecond)
	as(ca.edge())
	c := dialTo(t, s, ca)
	_, err := c.RoundTrip(t.Context(), request(1))
	require.Error(t, err)
	log.eventually(t, "too many sessions")
	assert.Len(t, s.Peers(), 3)
}

// Whoever waits for a place of this client's own has not been failed by the key
// server.
func TestARequestThatFindsNoPlaceInTheClientSaysSo(t *testing.T) {
	ca := newTestCA(t)
	proceed, asked := make(chan struct{}), make(chan struct{}, 1)
	s := serve(t, ca, ServerConfig{Handler: ski.HandlerFunc(func(ctx context.Context, p ski.Peer, req *ski.Request) *ski.Response {
		asked <- struct{}{}
		<-proceed
		return echo(ctx, p, req)
	})})
	c := dialTo(t, s, ca, func(cfg *ClientConfig) { cfg.MaxInFlight = 1 })
	answered := make(chan error, 1)
	go func() { answered <- ask(t.Context(), c, 1) }()
	<-asked
	ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
	defer cancel()
	_, err := c.RoundTrip(ctx, request(2))
	te := (*ski.TransportError)(nil)
	require.ErrorAs(t, err, &te)
	assert.Equal(t, "wait", te.Op)
	close(proceed)
	require.NoError(t, <-answered)
}

func TestRequestsInFlightAreBounded(t *testing.T) {
	ca := newTestCA(t)
	var log logBuffer
	proceed := make(chan struct{})
	s := serve(t, ca, ServerConfig{
		Logger: log.logger(), MaxInFlight: 16, // two of one session
		Handler: ski.HandlerFunc(func(ctx context.Context, p ski.Peer, req *ski.Request) *ski.Response {
			<-proceed
			return echo(ctx, p, req)
		}),
	})
	c := dialTo(t, s, ca, func(cfg *ClientConfig) { cfg.MaxConns = 1 })
	answered := make(chan error, 2)
	for n := range 2 {
		go func() { answered <- ask(t.Context(), c, n) }()
	}
	require.Eventually(t, func() bool { return s.InFlight() == 2 }, time.Minute, time.Millisecond)
	resp, err := c.RoundTrip(t.Context(), request(3))
	require.NoError(t, err)
	assert.Equal(t, ski.Busy(time.Second), resp)
	log.eventually(t, "too many requests in flight")
	close(proceed)
	for range 2 {
		assert.NoError(t, <-answered)
	}
}

// One edge alone does not keep the others out, however many sessions it has: it
// could also simply not take its answers.
func TestOnePeerDoesNotTakeAllPlaces(t *testing.T) {
	ca := newTestCA(t)
	proceed := make(chan struct{})
	s := serve(t, ca, ServerConfig{
		MaxInFlight: 16,
		Handler: ski.HandlerFunc(func(ctx context.Context, p ski.Peer, req *ski.Request) *ski.Response {
			if string(req.Input) == "request 0" {
				<-proceed
			}
			return echo(ctx, p, req)
		}),
	})
	edge := ca.edge()
	var answered sync.WaitGroup
	var refusals atomic.Int64
	const sessions, each = 8, 2
	for range sessions {
		c := dialTo(t, s, ca, func(cfg *ClientConfig) { cfg.Certificate, cfg.MaxConns = edge, 1 })
		for range each {
			answered.Go(func() {
				if ask(t.Context(), c, 0) != nil {
					refusals.Add(1)
				}
			})
		}
	}
	require.Eventually(t, func() bool { return int(refusals.Load())+s.InFlight() == sessions*each }, time.Minute, time.Millisecond)
	assert.NoError(t, ask(t.Context(), dialTo(t, s, ca), 1))
	require.Eventually(t, func() bool { return s.InFlight() == 4 }, time.Minute, time.Millisecond)
	close(proceed)
	answered.Wait()
	assert.EqualValues(t, sessions*each-4, refusals.Load())
}

// CVE-2023-44487: a peer resets its requests as fast as it makes them, so that
// none of them counts against the number of streams.
func TestRapidResetsEndTheSession(t *testing.T) {
	ca := newTestCA(t)
	var log logBuffer
	var working, most atomic.Int64
	proceed := make(chan struct{})
	s := serve(t, ca, ServerConfig{
		Logger: log.logger(),
		Handler: ski.HandlerFunc(func(ctx context.Context, _ ski.Peer, _ *ski.Request) *ski.Response {
			n := working.Add(1)
			defer working.Add(-1)
			for m := most.Load(); n > m && !most.CompareAndSwap(m, n); m = most.Load() {
			}
			<-proceed // an operation that cannot be stopped
			return ski.Failed(ski.UnspecifiedError)
		}),
	})
	before := runtime.NumGoroutine()
	c := connect(t, s, ca, "h2")
	_, err := io.WriteString(c, http2.ClientPreface)
	require.NoError(t, err)
	w := bufio.NewWriterSize(c, 1<<16)
	framer := http2.NewFramer(w, c)
	require.NoError(t, framer.WriteSettings())
	body, err := ski.EncodeRequest(ski.JSON, request(1))
	require.NoError(t, err)
	var block bytes.Buffer
	encoder := hpack.NewEncoder(&block)
	encoder.SetMaxDynamicTableSize(0)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_, _ = io.Copy(io.Discard, c)
	}()
	header := func() []byte {
		block.Reset()
		for _, f := range [][2]string{
			{":method", "POST"}, {":scheme", "https"}, {":authority", "ks"}, {":path", "/ski"}, {"content-type", "application/json"},
		} {
			_ = encoder.WriteField(hpack.HeaderField{Name: f[0], Value: f[1]})
		}
		return block.Bytes()
	}
	// A hundred at a time, so that the bodies are read before the resets come.
	id := uint32(1)
	for range 1000 {
		first := id
		for ; id < first+200 && err == nil; id += 2 {
			err = framer.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: header(), EndHeaders: true})
			if err == nil {
				err = framer.WriteData(id, true, body)
			}
		}
		if err == nil {
			err = w.Flush()
		}
		for reset := first; reset < id && err == nil; reset += 2 {
			err = framer.WriteRSTStream(reset, http2.ErrCodeCancel)
		}
		if err != nil {
			break
		}
	}
	<-ended
	log.eventually(t, "too_many_early_resets")
	assert.LessOrEqual(t, most.Load(), int64(maxStreams))
	close(proceed)
	quietens(t, s, before)
	require.NoError(t, err2(dialTo(t, s, ca).RoundTrip(t.Context(), request(1))))
}

func err2(_ *ski.Response, err error) error { return err }
