package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"net"
	"sync"
	"time"

	piondtls "github.com/pion/dtls/v3"
	"github.com/plgd-dev/go-coap/v3/dtls"
	"github.com/plgd-dev/go-coap/v3/message"
	"github.com/plgd-dev/go-coap/v3/message/codes"
	"github.com/plgd-dev/go-coap/v3/message/pool"
	coapnet "github.com/plgd-dev/go-coap/v3/net"
	"github.com/plgd-dev/go-coap/v3/net/blockwise"
	"github.com/plgd-dev/go-coap/v3/net/responsewriter"
	"github.com/plgd-dev/go-coap/v3/options"
	"github.com/plgd-dev/go-coap/v3/options/config"
	"github.com/plgd-dev/go-coap/v3/tcp"
	tcpclient "github.com/plgd-dev/go-coap/v3/tcp/client"
	udpclient "github.com/plgd-dev/go-coap/v3/udp/client"

	"github.com/tlsski/tlsski/ski/skitest"
)

// coapConn is what go-coap's connections over UDP and TCP have in common.
type coapConn interface {
	AcquireMessage(ctx context.Context) *pool.Message
	ReleaseMessage(m *pool.Message)
	Do(req *pool.Message) (*pool.Message, error)
	WriteMessage(req *pool.Message) error
	Done() <-chan struct{}
	Close() error
	RemoteAddr() net.Addr
}

// coapWire is SKI over CoAP by go-coap's own client. It connects when it is
// asked, and again after the connection is lost.
type coapWire struct {
	path    string
	connect func(ctx context.Context) (coapConn, error)

	mu   sync.Mutex
	conn coapConn
}

// maxDatagram is for messages in one piece: the largest is above
// ski.MaxMessageSize.
const maxDatagram = 16384

// quiet keeps go-coap's errors out of standard output, where they go by
// default: whoever waits for an answer gets them.
var quiet = options.WithErrors(func(error) {})

func dialCoAP(t target, id party) wire {
	return &coapWire{path: t.path, connect: func(ctx context.Context) (coapConn, error) {
		var d net.Dialer
		udp, err := d.DialContext(ctx, "udp", t.addr)
		if err != nil {
			return nil, err
		}
		conn, err := piondtls.ClientWithOptions(dgram{udp}, udp.RemoteAddr(), id.clientDTLS(t)...)
		if err == nil {
			err = conn.HandshakeContext(ctx)
		}
		if err != nil {
			_ = udp.Close()
			return nil, err
		}
		return dtls.Client(conn, quiet, options.WithCloseSocket(), options.WithMTU(maxDatagram),
			options.WithBlockwise(false, blockwise.SZX1024, time.Second),
			options.WithTransmission(1024, time.Second, 4),
			options.WithLimitClientParallelRequest(0), options.WithLimitClientEndpointParallelRequest(0)), nil
	}}
}

// clientDTLS offers, with a pre-shared key, the suites that pion has: the key
// server chooses.
func (id party) clientDTLS(t target) []piondtls.ClientOption {
	if id.psk != nil {
		return []piondtls.ClientOption{
			piondtls.WithPSK(func([]byte) ([]byte, error) { return id.psk.Key, nil }),
			piondtls.WithPSKIdentityHint([]byte(id.psk.Identity)), // which is the identity, in a client
			piondtls.WithCipherSuites(piondtls.TLS_ECDHE_PSK_WITH_CHACHA20_POLY1305_SHA256, piondtls.TLS_PSK_WITH_AES_128_GCM_SHA256,
				piondtls.TLS_PSK_WITH_AES_128_CCM, piondtls.TLS_PSK_WITH_AES_128_CCM_8),
		}
	}
	name := id.name(t)
	return []piondtls.ClientOption{
		piondtls.WithCertificates(id.certificates()...), piondtls.WithServerName(name),
		piondtls.WithInsecureSkipVerify(true), // verifyServer does it
		piondtls.WithVerifyPeerCertificate(id.verifyServer(name)),
	}
}

// dgram is a connected socket as the net.PacketConn that pion wants.
type dgram struct{ net.Conn }

func (d dgram) ReadFrom(p []byte) (int, net.Addr, error) {
	n, err := d.Read(p)
	return n, d.RemoteAddr(), err
}

func (d dgram) WriteTo(p []byte, _ net.Addr) (int, error) { return d.Write(p) }

func dialCoAPTCP(t target, id party) wire {
	return &coapWire{path: t.path, connect: func(ctx context.Context) (coapConn, error) {
		d := tls.Dialer{Config: id.clientTLS(t)}
		conn, err := d.DialContext(ctx, "tcp", t.addr)
		if err != nil {
			return nil, err
		}
		c, err := tcp.Client(conn, quiet, options.WithCloseSocket(), options.WithBlockwise(false, blockwise.SZX1024, time.Second),
			options.WithLimitClientParallelRequest(0), options.WithLimitClientEndpointParallelRequest(0))
		if err != nil {
			_ = conn.Close()
			return nil, err
		}
		return c, nil
	}}
}

func (w *coapWire) Exchange(ctx context.Context, q *skitest.Question) (*skitest.Answer, error) {
	conn, err := w.connection(ctx)
	if err != nil {
		return nil, err
	}
	req := conn.AcquireMessage(ctx)
	defer conn.ReleaseMessage(req)
	token, err := message.GetToken()
	if err != nil {
		return nil, err
	}
	req.SetToken(token)
	req.SetType(message.Confirmable)
	req.SetCode(coapMethods[q.Method])
	path := q.Path
	if path == "" {
		path = w.path
	}
	if err := req.SetPath(path); err != nil {
		return nil, err
	}
	if q.ContentType != "" {
		req.SetContentFormat(contentFormats[q.ContentType])
	}
	if q.Accept != "" {
		req.SetAccept(contentFormats[q.Accept])
	}
	if len(q.Body) > 0 {
		req.SetBody(bytes.NewReader(q.Body))
	}
	resp, err := conn.Do(req)
	if err != nil {
		return nil, err
	}
	defer conn.ReleaseMessage(resp)
	return coapAnswer(resp)
}

func coapAnswer(m *pool.Message) (*skitest.Answer, error) {
	a := &skitest.Answer{Status: int(m.Code()>>5)*100 + int(m.Code()&0x1F)}
	if f, err := m.ContentFormat(); err == nil {
		a.ContentType = f.String()
		for name, format := range contentFormats {
			if f == format {
				a.ContentType = name
			}
		}
	}
	var err error
	a.Body, err = m.ReadBody()
	return a, err
}

var coapMethods = map[string]codes.Code{
	"": codes.POST, "POST": codes.POST, "PUT": codes.PUT, "GET": codes.GET, "DELETE": codes.DELETE,
}

var contentFormats = map[string]message.MediaType{
	"text/plain": message.TextPlain, "application/json": message.AppJSON, "application/cbor": message.AppCBOR,
}

func (w *coapWire) connection(ctx context.Context) (coapConn, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.conn != nil {
		select {
		case <-w.conn.Done():
		default:
			return w.conn, nil
		}
	}
	conn, err := w.connect(ctx)
	if err == nil {
		w.conn = conn
	}
	return conn, err
}

func (w *coapWire) Close() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.conn == nil {
		return nil
	}
	return w.conn.Close()
}

func listenCoAP(t target, id party, serve serveFunc) (net.Addr, func() error, error) {
	l, err := coapnet.NewDTLSListener("udp", t.addr, coapnet.NewDTLSServerOptions(
		piondtls.WithCertificates(id.certificates()...), piondtls.WithClientCAs(id.authorities),
		piondtls.WithClientAuth(piondtls.RequireAndVerifyClientCert)))
	if err != nil {
		return nil, nil, err
	}
	s := dtls.NewServer(options.WithMTU(maxDatagram), options.WithBlockwise(false, blockwise.SZX1024, time.Second),
		quiet,
		options.WithHandlerFunc(func(w *responsewriter.ResponseWriter[*udpclient.Conn], r *pool.Message) {
			answerCoAP(w.Conn(), w.Message(), r, serve)
		}),
		// A goroutine for each request: a slow answer is slow for its request
		// alone.
		options.WithProcessReceivedMessageFunc(func(r *pool.Message, c *udpclient.Conn, h config.HandlerFunc[*udpclient.Conn]) {
			go c.ProcessReceivedMessageWithHandler(r, h)
		}))
	go func() { _ = s.Serve(l) }() // ends with the listener
	return l.Addr(), func() error { s.Stop(); return l.Close() }, nil
}

func listenCoAPTCP(t target, id party, serve serveFunc) (net.Addr, func() error, error) {
	l, err := coapnet.NewTLSListener("tcp", t.addr, id.serverTLS())
	if err != nil {
		return nil, nil, err
	}
	s := tcp.NewServer(options.WithBlockwise(false, blockwise.SZX1024, time.Second), quiet,
		options.WithHandlerFunc(func(w *responsewriter.ResponseWriter[*tcpclient.Conn], r *pool.Message) {
			answerCoAP(w.Conn(), w.Message(), r, serve)
		}),
		options.WithProcessReceivedMessageFunc(func(r *pool.Message, c *tcpclient.Conn, h config.HandlerFunc[*tcpclient.Conn]) {
			go c.ProcessReceivedMessageWithHandler(r, h)
		}))
	go func() { _ = s.Serve(l) }() // ends with the listener
	return l.Addr(), func() error { s.Stop(); return l.Close() }, nil
}

// answerCoAP answers one request. w is the answer to be, whose token is the
// request's.
func answerCoAP(conn coapConn, w, r *pool.Message, serve serveFunc) {
	q := &skitest.Question{Method: r.Code().String()}
	q.Path, _ = r.Path()
	if f, err := r.ContentFormat(); err == nil {
		q.ContentType = mediaTypeOf(f)
	} else if r.Code() == codes.POST || r.Code() == codes.PUT {
		q.ContentType = "application/cbor" // what no option means
	}
	if f, err := r.Accept(); err == nil {
		q.Accept = mediaTypeOf(f)
	}
	q.Body, _ = r.ReadBody()
	a := serve(r.Context(), conn.RemoteAddr().String(), q)
	if a == nil {
		<-r.Context().Done() // nothing must be sent, an empty acknowledgement included
		return
	}
	if a.OtherToken {
		token, err := message.GetToken()
		if err != nil {
			return
		}
		w.SetToken(token)
	}
	w.SetCode(codes.Code(a.Status/100<<5 | a.Status%100))
	if f, ok := contentFormats[a.ContentType]; ok {
		w.SetContentFormat(f)
	}
	if a.RetryAfter > 0 {
		w.SetOptionUint32(message.MaxAge, uint32(a.RetryAfter/time.Second))
	}
	if len(a.Body) > 0 {
		w.SetBody(bytes.NewReader(a.Body))
	}
}

func mediaTypeOf(f message.MediaType) string {
	for name, format := range contentFormats {
		if f == format {
			return name
		}
	}
	return f.String()
}
