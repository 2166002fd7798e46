package edgeserver

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"log/slog"
	"net"
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
	ready  chan secureConn // for Accept; nil: they go to the http.Server of their generation

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
	done := false
	defer func() {
		// As with http.Server, a panic ends one connection and not the program:
		// the key server may be in the same process.
		if p := recover(); p != nil {
			h.server.log.Error("panic in a handshake", "remote", raw.RemoteAddr(), "panic", p, "stack", string(debug.Stack()))
		}
		if !done {
			c.Close()
		}
	}()

	defer c.begun()
	start := time.Now()
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
	h.report(c, time.Since(start), err)
	if err != nil {
		explainHTTPS(err)
		if c.refusesCertificate(err) {
			linger(h.ctx, raw)
		}
		return
	}
	if h.ready == nil && c.site.relay != nil {
		done = h.server.relay(c.site.relay, secure)
		return
	}
	if h.ready == nil {
		done = g.deliver(h.ctx, secure)
		return
	}
	select {
	case h.ready <- secure:
		done = true
	case <-h.ctx.Done():
	}
}

// report logs the outcome of a handshake: what went wrong on this side as a
// warning, clients that come and go only for debugging.
func (h *handshaker) report(c *conn, took time.Duration, err error) {
	attrs := []slog.Attr{slog.Any("remote", c.RemoteAddr()), slog.String("server_name", c.serverName)}
	if c.site != nil {
		attrs = append(attrs, slog.String("site", c.site.label))
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
	switch {
	case err == nil:
		attrs = append(attrs, negotiated(c.state)...)
		h.server.log.LogAttrs(h.ctx, slog.LevelDebug, "handshake", attrs...)
	case c.asked.err != nil && h.ctx.Err() == nil: // not because the server stops
		attrs = append(attrs, slog.String("reason", reason(c.asked.err)), slog.Any("error", c.asked.err))
		h.server.log.LogAttrs(h.ctx, slog.LevelWarn, "handshake failed: no answer of the key server to go on with", attrs...)
	case c.unknown:
		h.server.log.LogAttrs(h.ctx, slog.LevelDebug, "handshake refused: no site has the server name", attrs...)
	case c.refusesCertificate(err):
		attrs = append(attrs, slog.String("reason", refusedCertificate(err)), slog.Any("error", err))
		h.server.log.LogAttrs(h.ctx, slog.LevelInfo, "handshake refused: the site does not accept the client's certificate", attrs...)
	case errors.As(err, new(proxyHeaderError)) && h.ctx.Err() == nil:
		attrs = append(attrs, slog.Any("error", err))
		h.server.log.LogAttrs(h.ctx, slog.LevelWarn, "connection refused: it is from an address in proxy_protocol.from", attrs...)
	default:
		if hasProxyHeader(err) {
			err = errors.New("a PROXY header that proxy_protocol.from does not allow")
		}
		attrs = append(attrs, slog.Any("error", err))
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
