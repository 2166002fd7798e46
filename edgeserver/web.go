package edgeserver

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"sync"

	"github.com/tlsski/tlsski/edgeserver/internal/split"
)

// web is the http.Server of one site. It has one of its own so that what net/http
// logs of a connection says of which site it is.
type web struct {
	*http.Server
	ready    *httpListener
	starting sync.Once
}

// newHTTP returns the http.Server for a site of g.
func (s *Server) newHTTP(g *generation, site *site) *http.Server {
	h := &http.Server{
		Handler:           http.HandlerFunc(s.serveHTTP),
		ReadHeaderTimeout: g.cfg.Limits.HeaderTimeout,
		ReadTimeout:       g.cfg.Limits.RequestTimeout,
		IdleTimeout:       g.cfg.Limits.IdleTimeout,
		MaxHeaderBytes:    g.cfg.Limits.HeaderBytes,
		ErrorLog:          slog.NewLogLogger(s.log.With("site", site.label).Handler(), slog.LevelWarn),
		BaseContext:       func(net.Listener) context.Context { return s.ctx },
		ConnContext: func(ctx context.Context, c net.Conn) context.Context {
			return withConn(ctx, c.(interface{ NetConn() net.Conn }).NetConn().(*conn))
		},
		ConnState: follow,
		HTTP2:     &http.HTTP2Config{CountError: s.refusedHTTP2(site)},
		// route answers OPTIONS * for it to be written down as all else is.
		DisableGeneralOptionsHandler: true,
		Protocols:                    new(http.Protocols),
	}
	h.Protocols.SetHTTP1(true)
	h.Protocols.SetHTTP2(true)
	h.Protocols.SetUnencryptedHTTP2(g.engines.anySplit) // for http2Conn, which is encrypted
	return h
}

// leaves reports whether clients are to make their next request on another
// connection.
func (g *generation) leaves() bool { return g.old.Load() || g.draining.Load() }

// deliver hands a connection, whose handshake is done, to the http.Server. It
// returns false where that has been closed, or ctx ends.
func (w *web) deliver(ctx context.Context, c secureConn) bool {
	w.starting.Do(func() {
		go w.Serve(w.ready) // until close; there is no other error
	})
	return w.ready.deliver(ctx, c)
}

// Close ends the connections at once.
func (w *web) Close() error {
	err := w.Server.Close()
	w.ready.Close() // also where nothing was served
	return err
}

// shutdown ends the connections of all sites once they have no requests, until
// ctx ends.
func (t *sites) shutdown(ctx context.Context) error {
	errs := make(chan error, len(t.all))
	for _, s := range t.all {
		go func() { errs <- s.web.Shutdown(ctx) }()
	}
	var err error
	for range t.all {
		if one := <-errs; err == nil {
			err = one // most often that of ctx, as all the others
		}
	}
	return err
}

// disconnect ends the connections of all sites at once.
func (t *sites) disconnect() error {
	var err error
	for _, s := range t.all {
		err = errors.Join(err, s.web.Close())
	}
	return err
}

// httpListener is the net.Listener of an http.Server whose connections have their
// TLS handshake behind them and are handed to it.
type httpListener struct {
	conns chan net.Conn
	done  chan struct{}
	once  sync.Once
}

func newHTTPListener() *httpListener {
	return &httpListener{conns: make(chan net.Conn), done: make(chan struct{})}
}

// deliver hands a connection to Accept, in the form in which http.Server speaks
// the protocol that was negotiated. It returns false where it cannot until ctx
// ends.
func (l *httpListener) deliver(ctx context.Context, secure secureConn) bool {
	c := net.Conn(secure)
	if s, ok := secure.(*split.Conn); ok && s.ConnectionState().NegotiatedProtocol == "h2" {
		c = http2Conn{s}
	}
	select {
	case l.conns <- c:
		return true
	case <-l.done:
	case <-ctx.Done():
	}
	return false
}

// Accept returns the next connection.
func (l *httpListener) Accept() (net.Conn, error) {
	select {
	case c := <-l.conns:
		return c, nil
	case <-l.done:
		return nil, net.ErrClosed
	}
}

// Close ends Accept.
func (l *httpListener) Close() error {
	l.once.Do(func() { close(l.done) })
	return nil
}

// Addr returns an empty address: there are any number of sockets.
func (l *httpListener) Addr() net.Addr { return new(net.TCPAddr) }

// http2Conn is a connection of the split engine that has negotiated HTTP/2.
// http.Server takes HTTP/2 only from a *tls.Conn or from what it believes to be
// a connection without TLS; so this one does not show that it is one.
type http2Conn struct{ net.Conn }

// NetConn is that of the TLS connection.
func (c http2Conn) NetConn() net.Conn { return c.Conn.(*split.Conn).NetConn() }
