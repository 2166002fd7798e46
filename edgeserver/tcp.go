package edgeserver

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"runtime/debug"
	"slices"
	"strings"
	"sync/atomic"
	"time"
)

// defaultTCPIdle is the default of Site.IdleTimeout. It is longer than the
// keep-alive intervals that MQTT clients and the like have.
const defaultTCPIdle = 10 * time.Minute

// The sizes of a buffer for what goes one way. It begins small, since most of many
// connections are silent, and grows where there is more to copy.
const (
	firstBuffer = 2 << 10
	lastBuffer  = 32 << 10
)

// validateTCP checks what is for tcp sites alone.
func (c *Config) validateTCP(field string, s *Site) error {
	if s.TCP == "" {
		switch {
		case len(s.ALPN) > 0:
			return c.errorf(field+".alpn", "is for sites with tcp")
		case s.ProxyProtocol:
			return c.errorf(field+".proxy_protocol", "is for sites with tcp")
		case s.IdleTimeout != 0:
			return c.errorf(field+".idle_timeout", "is for sites with tcp")
		}
		return nil
	}
	host, port, err := net.SplitHostPort(s.TCP)
	if err == nil {
		_, err = net.LookupPort("tcp", port)
	}
	if err != nil || host == "" || port == "0" {
		return c.errorf(field+".tcp", "'%s' is not an address such as 127.0.0.1:1883", s.TCP)
	}
	for i, protocol := range s.ALPN {
		at := fmt.Sprintf("%s.alpn[%d]", field, i)
		if len(protocol) == 0 || len(protocol) > 255 { // RFC 7301, Section 3.1
			return c.errorf(at, "a protocol's name has 1 to 255 bytes")
		}
		if slices.Contains(s.ALPN[:i], protocol) {
			return c.errorf(at, "'%s' is there already", protocol)
		}
	}
	if s.IdleTimeout < 0 {
		return c.errorf(field+".idle_timeout", "is negative")
	}
	return nil
}

// nextProtos returns the protocols that clients of the site can have, for ALPN.
func (s *Site) nextProtos() []string {
	if s.TCP != "" {
		return s.ALPN
	}
	return []string{"h2", "http/1.1"}
}

// notHTTP is for ALPN with clients of HTTP alone, at a site of another protocol: it
// is none of theirs.
var notHTTP = []string{"not HTTP"}

// refusesHTTP reports whether a client that offers protocols is at the wrong site. That a
// browser is led to a tcp site, whose certificate can be good for the name that it
// asks for, is how servers of other protocols are had to answer as if they were that
// web site (ALPACA, USENIX Security 2021).
func (s *Site) refusesHTTP(protocols []string) bool {
	return s.TCP != "" && len(s.ALPN) == 0 && len(protocols) > 0 && !slices.ContainsFunc(protocols, func(p string) bool {
		return p != "h2" && !strings.HasPrefix(p, "http/")
	})
}

// relay carries what is within the TLS connections of a tcp site to its origin
// and back.
type relay struct {
	origin      string
	sendsHeader bool // of the PROXY protocol
	idle        time.Duration
	log         *slog.Logger
}

// newRelay returns the relay of a site.
func newRelay(s *Site, log *slog.Logger) *relay {
	r := &relay{origin: s.TCP, sendsHeader: s.ProxyProtocol, idle: s.IdleTimeout, log: log}
	if r.idle == 0 {
		r.idle = defaultTCPIdle
	}
	return r
}

// Close does nothing: a relay has nothing open but connections.
func (r *relay) Close() error { return nil }

// stream is a connection either half of which can be closed.
type stream interface {
	net.Conn
	CloseWrite() error
}

// errIdle ends a connection on which nothing has been sent for a while.
var errIdle = errors.New("idle for too long")

// errPanic ends a connection on which there was one, which has been logged.
var errPanic = errors.New("panic")

// serve carries the connection of a client until it ends, or ctx does, and closes
// it.
func (r *relay) serve(ctx context.Context, client secureConn) (done relayed) {
	begin := time.Now()
	log := r.log.With("remote", client.RemoteAddr().String())
	origin, err := r.dial(ctx, client)
	if err != nil {
		abort(client.NetConn())
		if ctx.Err() == nil {
			done.origin = originReason(err)
			log.Warn("the origin failed", "reason", done.origin, "error", err)
		}
		done.cutShort = true
		return done
	}
	t := &tunnel{client: client, origin: origin, idle: r.idle, log: log}
	err = t.run(ctx)
	log.Debug("a tcp connection has ended", "server_name", client.ConnectionState().ServerName,
		"received", t.up.Load(), "sent", t.down.Load(), "took", time.Since(begin), "error", err)
	return relayed{received: t.up.Load(), sent: t.down.Load(), cutShort: err != nil}
}

// relayed is what has come of a connection.
type relayed struct {
	received, sent int64  // bytes, of the client and to it
	cutShort       bool   // it has not ended as both sides wanted
	origin         string // why the origin has not done its part, or empty
}

// relay has the site of c serve the connection of a client, until that or the
// Server ends. It returns false where the Server has been stopped.
func (s *Server) relay(c *conn, client secureConn) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.stopped || !s.requests.acquire() {
		return false
	}
	c.gen.acquire() // The caller is one of its users. It has the access log, which outlives c.
	s.relays.Go(func() {
		defer s.requests.release()
		defer c.gen.release()
		begin := time.Now()
		done := c.site.relay.serve(s.ctx, client)
		if done.origin != "" {
			s.metrics.originFailed(c.site, done.origin)
		}
		c.site.access.connection(c, begin, done)
	})
	return true
}

// dial connects to the origin.
func (r *relay) dial(ctx context.Context, client net.Conn) (stream, error) {
	const timeout = 5 * time.Second
	c, err := (&net.Dialer{Timeout: timeout}).DialContext(ctx, "tcp", r.origin)
	if err != nil {
		return nil, err
	}
	if r.sendsHeader {
		c.SetWriteDeadline(time.Now().Add(timeout))
		if err := sendProxyHeader(c, client.RemoteAddr(), client.LocalAddr()); err != nil {
			c.Close()
			return nil, err
		}
		c.SetWriteDeadline(time.Time{})
	}
	return c.(*net.TCPConn), nil
}

// tunnel is one client's connection with that to the origin.
type tunnel struct {
	client   secureConn
	origin   stream
	idle     time.Duration
	log      *slog.Logger
	timer    *time.Timer
	up, down atomic.Int64 // bytes
}

// run carries bytes both ways until both sides have sent all, and closes both
// connections. Where one breaks, so does the other: its end must not look like
// one that was meant.
func (t *tunnel) run(ctx context.Context) error {
	// Buffered, since after the first error nobody waits for the other.
	ended := make(chan error, 2)
	stopped := make(chan error, 1)
	end := func(why error) {
		select {
		case stopped <- why:
		default: // It ends for another reason.
		}
	}
	t.timer = time.AfterFunc(t.idle, func() { end(errIdle) })
	defer t.timer.Stop()
	stop := context.AfterFunc(ctx, func() { end(context.Cause(ctx)) })
	defer stop()
	go func() { ended <- t.carry(t.origin, t.client, &t.up) }()
	go func() { ended <- t.carry(t.client, t.origin, &t.down) }()

	var err error
	left := 2
	for left > 0 && err == nil {
		select {
		case err = <-ended:
			left--
			if err != nil {
				abort(t.client.NetConn())
				abort(t.origin)
			}
		case err = <-stopped:
		}
	}
	t.client.Close()
	t.origin.Close()
	for range left {
		<-ended
	}
	return err
}

// carry copies one way until the end, which it passes on.
//
// As in a handshake and in a request, a panic ends one connection and not the
// program, which has others.
func (t *tunnel) carry(to, from stream, count *atomic.Int64) (err error) {
	defer func() {
		if p := recover(); p != nil {
			t.log.Error("panic in a tcp connection", "panic", p, "stack", string(debug.Stack()))
			err = errPanic
		}
	}()
	buf := make([]byte, firstBuffer)
	for {
		n, err := from.Read(buf)
		if n > 0 {
			t.timer.Reset(t.idle)
			if _, err := to.Write(buf[:n]); err != nil {
				return err
			}
			count.Add(int64(n))
			t.timer.Reset(t.idle)
		}
		switch {
		case err == io.EOF:
			return to.CloseWrite()
		case err != nil:
			return err
		case n == len(buf) && n < lastBuffer:
			buf = make([]byte, 2*n)
		}
	}
}

// abort closes a TCP connection in a way that the peer cannot take for the end
// of what it is being sent.
func abort(c net.Conn) {
	raw := c
	if wrapped, ok := c.(*conn); ok {
		raw = wrapped.Conn
	}
	if tcp, ok := raw.(interface{ SetLinger(int) error }); ok {
		tcp.SetLinger(0)
	}
	c.Close()
}
