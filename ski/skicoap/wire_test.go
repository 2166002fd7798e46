package skicoap

import (
	"bytes"
	"context"
	"net"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/pion/dtls/v3"
	"github.com/plgd-dev/go-coap/v3/message"
	"github.com/plgd-dev/go-coap/v3/message/codes"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/tlsski/tlsski/ski"
)

// rawPeer speaks CoAP datagram by datagram, as any implementation might.
type rawPeer struct {
	t    *testing.T
	conn *dtls.Conn
}

func newRawPeer(t *testing.T, s *Server, ca *testCA) *rawPeer {
	t.Helper()
	conn, err := dtls.DialWithOptions("udp", net.UDPAddrFromAddrPort(s.Addr()),
		dtls.WithCertificates(ca.edge()), dtls.WithRootCAs(ca.pool), dtls.WithServerName("localhost"))
	require.NoError(t, err)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	require.NoError(t, conn.HandshakeContext(ctx))
	t.Cleanup(func() { _ = conn.Close() })
	return &rawPeer{t, conn}
}

func (p *rawPeer) send(m message.Message) {
	p.t.Helper()
	datagram, err := encode(m)
	require.NoError(p.t, err)
	_, err = p.conn.Write(datagram)
	require.NoError(p.t, err)
}

func (p *rawPeer) receive() message.Message {
	p.t.Helper()
	m, err := p.receiveWithin(time.Minute)
	require.NoError(p.t, err)
	return m
}

func (p *rawPeer) receiveWithin(patience time.Duration) (m message.Message, err error) {
	p.t.Helper()
	require.NoError(p.t, p.conn.SetReadDeadline(time.Now().Add(patience)))
	buf := make([]byte, maxDatagram)
	n, err := p.conn.Read(buf)
	if err != nil {
		return m, err
	}
	m.Options = make(message.Options, 0, 16)
	return m, decode(buf[:n], &m)
}

// ask sends a message, and again if nothing comes: the server may still be at
// its end of the handshake. What was sent again may be answered again, after the
// message that came next.
func (p *rawPeer) ask(m message.Message) message.Message {
	p.t.Helper()
	for again := 0; ; again++ {
		p.send(m)
		got, err := p.receiveWithin(2 * time.Second)
		for err == nil && (!bytes.Equal(got.Token, m.Token) || got.Type != message.NonConfirmable && got.MessageID != m.MessageID) {
			got, err = p.receiveWithin(2 * time.Second)
		}
		if err == nil {
			return got
		}
		require.Less(p.t, again, 30, "%v", err)
	}
}

var skiOptions = message.Options{
	{ID: message.URIPath, Value: []byte("ski")},
	{ID: message.ContentFormat, Value: []byte{60}},
}

// with returns the options of a request to /ski with others added or replaced.
func with(options ...message.Option) message.Options {
	all, _ := skiOptions.Clone()
	for _, o := range options {
		all = all.Set(o)
	}
	return all
}

func TestEachCoAPRequestGetsTheCodeThatFits(t *testing.T) {
	ca := newTestCA(t)
	s := serve(t, "127.0.0.1:0", ServerConfig{Certificate: ca.keyServer(), ClientCAs: ca.pool, Handler: ski.HandlerFunc(echo)})
	cborBody, err := ski.EncodeRequest(ski.CBOR, request(1))
	require.NoError(t, err)
	jsonBody, err := ski.EncodeRequest(ski.JSON, request(1))
	require.NoError(t, err)
	ok := echo(t.Context(), ski.Peer{}, request(1))
	cborOK, _ := ski.EncodeResponse(ski.CBOR, ok)
	jsonOK, _ := ski.EncodeResponse(ski.JSON, ok)
	cborMalformed, _ := ski.EncodeResponse(ski.CBOR, ski.Failed(ski.MalformedRequest))
	tooLong := bytes.Repeat([]byte{0}, ski.MaxMessageSize+1)

	for _, tc := range []struct {
		name    string
		code    codes.Code
		options message.Options
		payload []byte
		want    codes.Code
		answer  []byte // nil: not an SKI message
	}{
		{"POST", codes.POST, with(), cborBody, codes.Changed, cborOK},
		{"PUT", codes.PUT, with(), cborBody, codes.Changed, cborOK},
		{"JSON", codes.POST, with(message.Option{ID: message.ContentFormat, Value: []byte{50}}), jsonBody, codes.Changed, jsonOK},
		{"no Content-Format", codes.POST, with()[:1], cborBody, codes.Changed, cborOK},
		{"CBOR, answer as JSON", codes.POST, with(message.Option{ID: message.Accept, Value: []byte{50}}), cborBody, codes.Changed, jsonOK},
		{"one block that is all", codes.POST, with(message.Option{ID: message.Block1, Value: []byte{6}}), cborBody, codes.Changed, cborOK},
		{"not CBOR", codes.POST, with(), []byte("?"), codes.BadRequest, cborMalformed},
		{"empty", codes.POST, with(), nil, codes.BadRequest, cborMalformed},
		{"4097 bytes", codes.POST, with(), tooLong, codes.RequestEntityTooLarge, cborMalformed},
		{"4096 bytes", codes.POST, with(), tooLong[1:], codes.BadRequest, cborMalformed},
		{"first block of several", codes.POST, with(message.Option{ID: message.Block1, Value: []byte{8}}), cborBody[:16], codes.Continue, nil},
		{"first block, not full", codes.POST, with(message.Option{ID: message.Block1, Value: []byte{8 | 6}}), cborBody, codes.BadRequest, nil},
		{"one block that is longer than it says", codes.POST, with(message.Option{ID: message.Block1, Value: []byte{0}}), cborBody, codes.BadRequest, nil},
		{"first block of too much", codes.POST, with(message.Option{ID: message.Block1, Value: []byte{8}}, message.Option{ID: message.Size1, Value: []byte{0x10, 1}}), cborBody[:16], codes.RequestEntityTooLarge, cborMalformed},
		{"later block", codes.POST, with(message.Option{ID: message.Block1, Value: []byte{16 | 6}}), cborBody, codes.RequestEntityIncomplete, nil},
		{"later block of the answer", codes.POST, with(message.Option{ID: message.Block2, Value: []byte{16 | 6}}), cborBody, codes.RequestEntityIncomplete, nil},
		{"reserved block size", codes.POST, with(message.Option{ID: message.Block1, Value: []byte{7}}), cborBody, codes.BadRequest, nil},
		{"block option that is too long", codes.POST, with(message.Option{ID: message.Block1, Value: []byte{1, 0, 0, 6}}), cborBody, codes.BadOption, nil},
		{"block option twice", codes.POST, append(with(message.Option{ID: message.Block1, Value: []byte{6}}), message.Option{ID: message.Block1, Value: []byte{6}}), cborBody, codes.BadOption, nil},
		{"text", codes.POST, with(message.Option{ID: message.ContentFormat, Value: nil}), cborBody, codes.UnsupportedMediaType, nil},
		{"Accept text", codes.POST, with(message.Option{ID: message.Accept, Value: nil}), cborBody, codes.NotAcceptable, nil},
		{"GET", codes.GET, with(), nil, codes.MethodNotAllowed, nil},
		{"DELETE", codes.DELETE, with(), nil, codes.MethodNotAllowed, nil},
		{"unknown method", codes.Code(7), with(), nil, codes.MethodNotAllowed, nil},
		{"other path", codes.POST, message.Options{{ID: message.URIPath, Value: []byte("other")}}, cborBody, codes.NotFound, nil},
		{"no path", codes.POST, nil, cborBody, codes.NotFound, nil},
		{"If-Match", codes.POST, with(message.Option{ID: message.IfMatch, Value: []byte{1}}), cborBody, codes.BadOption, nil},
		{"Proxy-Uri", codes.POST, with(message.Option{ID: message.ProxyURI, Value: []byte("coap://x")}), cborBody, codes.BadOption, nil},
		{"unknown critical option", codes.POST, with(message.Option{ID: 2049, Value: []byte{1}}), cborBody, codes.BadOption, nil},
		{"unknown elective option", codes.POST, with(message.Option{ID: 2048, Value: []byte{1}}), cborBody, codes.Changed, cborOK},
	} {
		t.Run(tc.name, func(t *testing.T) {
			p := newRawPeer(t, s, ca)
			got := p.ask(message.Message{
				Type: message.Confirmable, MessageID: 7, Token: []byte("tk"),
				Code: tc.code, Options: tc.options, Payload: tc.payload,
			})
			assert.Equal(t, tc.want.String(), got.Code.String())
			assert.Equal(t, message.Acknowledgement, got.Type)
			assert.EqualValues(t, 7, got.MessageID)
			assert.Equal(t, message.Token("tk"), got.Token)
			if tc.answer != nil {
				assert.Equal(t, tc.answer, got.Payload)
			} else {
				mediaType, err := got.Options.ContentFormat()
				assert.True(t, err != nil || mediaType == message.TextPlain, "no SKI message")
			}
		})
	}
}

func TestTheResourceIsListed(t *testing.T) {
	ca := newTestCA(t)
	s := serve(t, "127.0.0.1:0", ServerConfig{Certificate: ca.keyServer(), ClientCAs: ca.pool, Handler: ski.HandlerFunc(echo), Path: "/a/ski"})
	got := newRawPeer(t, s, ca).ask(message.Message{
		Type: message.Confirmable, MessageID: 1, Token: []byte{1}, Code: codes.GET,
		Options: message.Options{{ID: message.URIPath, Value: []byte(".well-known")}, {ID: message.URIPath, Value: []byte("core")}},
	})
	assert.Equal(t, codes.Content, got.Code)
	assert.Equal(t, `</a/ski>;rt="tls-ski";ct="60 50"`, string(got.Payload))
}

func TestARetransmissionGetsTheSameAnswer(t *testing.T) {
	ca := newTestCA(t)
	s := serve(t, "127.0.0.1:0", ServerConfig{
		Certificate: ca.keyServer(), ClientCAs: ca.pool,
		Handler: ski.HandlerFunc(func(context.Context, ski.Peer, *ski.Request) *ski.Response {
			return &ski.Response{Output: []byte(time.Now().String())} // never twice the same
		}),
	})
	body, err := ski.EncodeRequest(ski.CBOR, request(1))
	require.NoError(t, err)
	p := newRawPeer(t, s, ca)
	m := message.Message{Type: message.Confirmable, MessageID: 1, Token: []byte{1}, Code: codes.POST, Options: with(), Payload: body}
	first := p.ask(m)
	assert.Equal(t, first.Payload, p.ask(m).Payload, "message ID and token the same")
	m.Token = []byte{2}
	assert.NotEqual(t, first.Payload, p.ask(m).Payload, "another token: another request")
	m.Token, m.MessageID = []byte{1}, 2
	assert.NotEqual(t, first.Payload, p.ask(m).Payload, "another message ID: another request")
}

func TestANonConfirmableRequestIsAnsweredInKind(t *testing.T) {
	ca := newTestCA(t)
	s := serve(t, "127.0.0.1:0", ServerConfig{Certificate: ca.keyServer(), ClientCAs: ca.pool, Handler: ski.HandlerFunc(echo)})
	body, err := ski.EncodeRequest(ski.CBOR, request(1))
	require.NoError(t, err)
	got := newRawPeer(t, s, ca).ask(message.Message{
		Type: message.NonConfirmable, MessageID: 1, Token: []byte{1}, Code: codes.POST, Options: with(), Payload: body,
	})
	assert.Equal(t, message.NonConfirmable, got.Type)
	assert.Equal(t, codes.Changed, got.Code)
}

func TestAPingIsReset(t *testing.T) {
	ca := newTestCA(t)
	s := serve(t, "127.0.0.1:0", ServerConfig{Certificate: ca.keyServer(), ClientCAs: ca.pool, Handler: ski.HandlerFunc(echo)})
	got := newRawPeer(t, s, ca).ask(message.Message{Type: message.Confirmable, MessageID: 99, Code: codes.Empty})
	assert.Equal(t, message.Reset, got.Type)
	assert.EqualValues(t, 99, got.MessageID)
}

// Message IDs come round after 65,536 requests, or earlier (comeRoundAfter) while
// the server still remembers their answers; the answers must not.
func TestManyRequestsOnOneSessionEachGetTheirOwnAnswer(t *testing.T) {
	ca := newTestCA(t)
	var sessions sync.Map
	s := serve(t, "127.0.0.1:0", ServerConfig{
		Certificate: ca.keyServer(), ClientCAs: ca.pool,
		Handler: ski.HandlerFunc(func(ctx context.Context, p ski.Peer, req *ski.Request) *ski.Response {
			sessions.Store(p.Addr, true)
			return echo(ctx, p, req)
		}),
	})
	// A machine that is busy with other tests is no dead key server.
	c := dialTo(t, s, ca, func(cfg *ClientConfig) { cfg.DeadAfter = 30 * time.Second })
	const total, workers = manyRequests, 64
	require.NoError(t, ask(t.Context(), c, 0))
	run := func(from, to int) {
		errs := make(chan error, workers)
		for w := range workers {
			go func() {
				for i := from + w; i < to; i += workers {
					if i > 0 && i%comeRoundAfter == 0 {
						c.comeRound()
					}
					if err := ask(t.Context(), c, i); err != nil {
						errs <- err
						return
					}
				}
				errs <- nil
			}()
		}
		for range workers {
			require.NoError(t, <-errs)
		}
	}
	run(0, total/4)
	early := heap()
	run(total/4, total)
	late := heap()
	assert.Less(t, late, early+4<<20, "the memory stays flat: %d KiB after %d requests, %d KiB after %d", early>>10, total/4, late>>10, total)
	n := 0
	sessions.Range(func(any, any) bool { n++; return true })
	assert.Equal(t, 1, n, "sessions")
}

// comeRound has the client use the message IDs again that it used before, those
// around the end of the numbers among them.
func (c *Client) comeRound() {
	s := c.current.clientSide.(*clientSession)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.nextMID = 65_000
}

func heap() uint64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}

func TestWhatIsRememberedIsBounded(t *testing.T) {
	var x exchanges
	start := time.Now()
	for i := range 3 * rememberMost {
		e, _ := x.begin(newExchangeID(int32(uint16(i)), []byte{byte(i >> 16)}), start)
		require.NotNil(t, e)
		x.finish(e, []byte("answer"))
	}
	assert.LessOrEqual(t, len(x.known), rememberMost)
	assert.LessOrEqual(t, len(x.queue), rememberMost)

	last := newExchangeID(int32(3*rememberMost-1), []byte{0})
	e, answer := x.begin(last, start.Add(rememberFor))
	assert.Nil(t, e)
	assert.Equal(t, "answer", string(answer))
	kept := x.known[last].answer
	x.expire(start.Add(rememberFor + time.Second))
	assert.Empty(t, x.known)
	assert.Empty(t, x.queue)
	assert.Equal(t, make([]byte, len("answer")), kept, "an answer may hold a secret: it is cleared")
}

func TestTheTimeoutFollowsTheRoundTrips(t *testing.T) {
	var r roundTrips
	assert.Equal(t, firstRTO, r.timeout())
	for range 50 {
		r.measured(time.Millisecond)
	}
	assert.Equal(t, minRTO, r.timeout(), "a fast network")
	for range 50 {
		r.measured(400 * time.Millisecond)
	}
	assert.InDelta(t, 400, r.timeout().Milliseconds(), 40, "a slow one")
	for range 50 {
		r.measured(time.Minute)
	}
	assert.Equal(t, maxRTO, r.timeout())
}

func TestAnAnswerThatIsNotSKIIsNamed(t *testing.T) {
	for _, tc := range []struct {
		a    answer
		want string
	}{
		{answer{code: codes.NotFound, formErr: message.ErrOptionNotFound}, "4.04 NotFound without an SKI message: is the path right?"},
		{answer{code: codes.Changed, format: message.TextPlain, payload: []byte("hello")}, "2.04 Changed without an SKI message"},
		{answer{code: codes.Changed, format: message.AppCBOR, payload: []byte("?")}, "malformed"},
		{answer{code: codes.BadRequest, format: message.AppCBOR, payload: []byte("\xa1\x66output\x41\x01")}, "4.00 BadRequest with an output"},
	} {
		_, err := tc.a.response()
		require.Error(t, err)
		assert.True(t, strings.Contains(err.Error(), tc.want), err)
	}
	// The payload is read first: errors sent with 2.04 are understood.
	a := answer{code: codes.Changed, format: message.AppCBOR, payload: []byte("\xa1\x65error\x6erequest denied")}
	resp, err := a.response()
	require.NoError(t, err)
	assert.Equal(t, ski.RequestDenied, resp.Error)
}

// badRequests are refused before SKI sees them.
func badRequests() []message.Message {
	return []message.Message{
		{Code: codes.POST, Options: with(message.Option{ID: message.ContentFormat}), Payload: []byte("x")},
		{Code: codes.DELETE, Options: with()},
		{Code: codes.POST, Options: message.Options{{ID: message.URIPath, Value: []byte("other")}}},
		{Code: codes.POST, Options: with(message.Option{ID: message.IfMatch, Value: []byte{1}})},
		{Code: codes.POST, Options: with(block{num: 3, szx: 6}.option(message.Block1)), Payload: []byte("x")},
	}
}
