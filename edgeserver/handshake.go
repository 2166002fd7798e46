package edgeserver

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"log/slog"
	"net"
	"os"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"time"
)

// handshaker accepts TCP connections and does their TLS handshakes. http.Server
// would do the handshakes too, but tells neither which failed nor why.
type handshaker struct {
	net.Listener
	server *Server
	ready  chan secureConn // for Accept; nil: they go to the http.Server or relay of their site

	ctx     context.Context         // of all handshakes
	cancel  context.CancelCauseFunc // with why the listener has ended
	retired atomic.Bool             // it is meant to accept no more
	wg      sync.WaitGroup          // the handshakes
}

// Accept returns the next connection whose handshake is done, a *tls.Conn or
// one of the split engine.
func (h *handshaker) Accept() (net.Conn, error) {
	select {
	case c := <-h.ready:
		return c, nil
	case <-h.ctx.Done():
		return nil, context.Cause(h.ctx)
	}
}

// Close closes the listener and the connections whose handshake is not done.
func (h *handshaker) Close() error {
	h.cancel(net.ErrClosed)
	return h.Listener.Close()
}

// retire closes the listener, but lets the handshakes go on.
func (h *handshaker) retire() {
	h.retired.Store(true)
	h.Listener.Close()
}

// run accepts connections until the listener ends, and returns when nothing of
// h is running any more. The error is nil where the end is meant.
func (h *handshaker) run() error {
	err := h.listen()
	if h.retired.Load() {
		h.server.log.Info("not listening any more", "addr", h.Addr().String())
	}
	if h.retired.Load() || h.ctx.Err() != nil {
		err = nil
	}
	if err != nil {
		h.cancel(err)
	}
	h.Listener.Close()
	h.wg.Wait()
	h.cancel(net.ErrClosed)
	return err
}

// listen accepts connections until the listener ends.
func (h *handshaker) listen() error {
	const firstPause, lastPause = 5 * time.Millisecond, time.Second
	pause := firstPause
	for {
		c, err := h.Listener.Accept()
		if err == nil {
			pause = firstPause
			if !h.server.bounds.enter(h.ctx, h.server.maxConnections) {
				c.Close()
				continue
			}
			h.wg.Go(func() { h.serve(c) })
			continue
		}
		// What is temporary, above all having no file descriptor left, goes
		// away when other connections end.
		if temporary, ok := err.(interface{ Temporary() bool }); !ok || !temporary.Temporary() || h.ctx.Err() != nil {
			return err
		}
		h.server.log.Warn("accepting a connection failed", "error", err, "pause", pause)
		select {
		case <-time.After(pause):
		case <-h.ctx.Done():
		}
		pause = min(2*pause, lastPause)
	}
}

// serve does the handshake on raw and hands the connection over.
func (h *handshaker) serve(raw net.Conn) {
	g := h.server.acquire()
	defer g.release()
	c := newConn(raw, g, h.server.bounds)
	start, counted, done := time.Now(), false, false
	count := func(outcome string, took time.Duration) {
		if !counted {
			counted = true
			h.server.metrics.shookHands(c.site, c.state, outcome, took)
		}
	}
	defer func() {
		// As with http.Server, a panic ends one connection and not the program:
		// the key server may be in the same process.
		if p := recover(); p != nil {
			count(handshakePanic, time.Since(start))
			h.server.log.Error("panic in a handshake", "site", siteLabel(c.site), "remote", c.RemoteAddr(), "panic", p, "stack", string(debug.Stack()))
		}
		if !done {
			c.Close()
		}
	}()

	defer c.begun()
	raw.SetReadDeadline(start.Add(g.cfg.Limits.HandshakeTimeout)) // until begin
	ctx, cancel := context.WithTimeout(withConn(h.ctx, c), g.timeout)
	defer cancel()
	var secure secureConn
	err := c.receiveFrom(ctx, g.sites.balancers) // c has the client's addresses from here on
	if err == nil {
		err = c.admit()
	}
	if err == nil {
		secure, err = g.engines.begin(ctx, c)
	}
	if err == nil {
		err = secure.HandshakeContext(ctx)
	}
	if err == nil {
		c.state = secure.ConnectionState()
	}
	c.begun()
	took := time.Since(start)
	outcome := h.outcome(ctx, c, err)
	count(outcome, took)
	h.report(c, outcome, took, err)
	if err != nil {
		explainHTTPS(err)
		if outcome == handshakeCertificate {
			linger(h.ctx, raw)
		}
		return
	}
	if h.ready == nil && c.site.relay != nil {
		done = h.server.relay(c, secure)
		return
	}
	if h.ready == nil {
		if c.state.NegotiatedProtocol != "h2" {
			secure = &http1Conn{secure, c, h.server}
		}
		done = c.site.web.deliver(h.ctx, secure)
		return
	}
	select {
	case h.ready <- secure:
		done = true
	case <-h.ctx.Done():
	}
}

// outcome names what has come of a handshake, of which err is the end.
func (h *handshaker) outcome(ctx context.Context, c *conn, err error) string {
	switch {
	case err == nil:
		return handshakeOK
	case h.ctx.Err() != nil:
		return handshakeStopped
	case c.asked.err != nil:
		return handshakeNoAnswer
	case c.unknown:
		return handshakeUnknown
	case c.refusesCertificate(err):
		return handshakeCertificate
	case errors.As(err, new(proxyHeaderError)):
		return handshakeProxyHeader
	case errors.Is(err, errBusy) || errors.Is(err, errCrowd):
		return handshakeLimited
	case ctx.Err() != nil || errors.Is(err, os.ErrDeadlineExceeded):
		return handshakeTimeout
	}
	return handshakeFailed
}

// report logs the outcome of a handshake: what went wrong on this side as a
// warning, clients that come and go only for debugging.
func (h *handshaker) report(c *conn, outcome string, took time.Duration, err error) {
	attrs := []slog.Attr{
		slog.Any("remote", c.RemoteAddr()), slog.String("server_name", printable(c.serverName, maxLoggedHost)), slog.String("site", siteLabel(c.site)),
	}
	if c.remote != nil {
		attrs = append(attrs, slog.Any("via", c.Conn.RemoteAddr()))
	}
	if c.engine == EngineSplit {
		attrs = append(attrs, slog.String("engine", c.engine))
	}
	attrs = append(attrs, slog.Duration("took", took))
	if c.asked.method != "" {
		attrs = append(attrs, slog.String("ski_method", string(c.asked.method)), slog.Duration("ski_took", c.asked.took))
	}
	switch outcome {
	case handshakeOK:
		attrs = append(attrs, negotiated(c.state)...)
		h.server.log.LogAttrs(h.ctx, slog.LevelDebug, "handshake", attrs...)
	case handshakeNoAnswer:
		attrs = append(attrs, slog.String("reason", reason(c.asked.err)), slog.Any("error", c.asked.err))
		h.server.log.LogAttrs(h.ctx, slog.LevelWarn, "handshake failed: no answer of the key server to go on with", attrs...)
	case handshakeUnknown:
		h.server.log.LogAttrs(h.ctx, slog.LevelDebug, "handshake refused: no site has the server name", attrs...)
	case handshakeCertificate:
		attrs = append(attrs, slog.String("reason", refusedCertificate(err)), slog.String("error", printable(err.Error(), maxLoggedError)))
		h.server.log.LogAttrs(h.ctx, slog.LevelInfo, "handshake refused: the site does not accept the client's certificate", attrs...)
	case handshakeProxyHeader:
		attrs = append(attrs, slog.Any("error", err))
		h.server.log.LogAttrs(h.ctx, slog.LevelWarn, "connection refused: it is from an address in proxy_protocol.from", attrs...)
	default:
		if hasProxyHeader(err) {
			err = errors.New("a PROXY header that proxy_protocol.from does not allow")
		}
		attrs = append(attrs, slog.String("outcome", outcome), slog.String("error", printable(err.Error(), maxLoggedError)))
		h.server.log.LogAttrs(h.ctx, slog.LevelDebug, "handshake failed", attrs...)
	}
}

// explainHTTPS answers a client that speaks HTTP without TLS in its own
// language.
func explainHTTPS(err error) {
	record := tls.RecordHeaderError{}
	if !errors.As(err, &record) || record.Conn == nil {
		return
	}
	switch string(record.RecordHeader[:]) {
	case "GET /", "HEAD ", "POST ", "PUT /", "OPTIO":
		io.WriteString(record.Conn, "HTTP/1.1 400 Bad Request\r\nContent-Type: text/plain\r\nConnection: close\r\n\r\nThis is an HTTPS server.\n")
	}
}
