package skihttp

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/netip"
	"net/url"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/tlsski/tlsski/ski"
	"github.com/tlsski/tlsski/ski/internal/backoff"
	"github.com/tlsski/tlsski/ski/internal/source"
)

// ClientConfig says how to reach a key server. Certificate and RootCAs are
// required.
type ClientConfig struct {
	// Certificate is the edge server's identity on the channel, with its key.
	Certificate tls.Certificate
	// RootCAs are the authorities that the key server's certificate comes
	// from.
	RootCAs *x509.CertPool
	// ServerName is the name or address the key server's certificate must
	// have. Default: the URL's host.
	ServerName string
	// Address is the IP address at which the URL's host is asked, one of several
	// say. Default: what a look-up says whenever a connection is made.
	Address netip.Addr
	// Format is the encoding of requests and answers. Default: CBOR.
	Format ski.Format
	// Java is set for the key server that is written in Java. Format is then
	// JSON, and the path is / unless the URL says otherwise.
	Java *JavaKeyServer
	// MaxInFlight bounds the requests in flight; more wait. Default: 512.
	MaxInFlight int
	// MaxConns bounds the connections. HTTP/2 needs one; HTTP/1.1 one for each
	// request in flight. Default: 8.
	MaxConns int
	// DialTimeout is how long a connection may take, TLS handshake included.
	// Default: 3 s.
	DialTimeout time.Duration
	// DeadAfter is how long a key server may be silent before the session counts as
	// lost. One that speaks HTTP/2 is asked for a sign of life after a third of it;
	// over HTTP/1.1, which cannot ask, it is how long what was sent may go
	// unacknowledged by its machine, on Linux. Default: 1.5 s.
	DeadAfter time.Duration
	// Logger gets a line for each session that begins, ends or fails to begin.
	// Default: slog.Default().
	Logger *slog.Logger
}

// The pause between one failed attempt to make a session and the next. It
// doubles from the first value to the second.
const (
	firstRedial = 50 * time.Millisecond
	lastRedial  = 500 * time.Millisecond
)

// maxPage is how much more is read of an answer that is too long, in bytes: an
// HTML page with what went wrong.
const maxPage = 64 << 10

// idleTimeout is how long a connection without a request is kept: less than the
// key server would.
const idleTimeout = 4 * time.Minute

// Client is a ski.Transport to one key server. Connections are made when they
// are needed and shared by all requests. A request that finds none fails as soon
// as the attempt to make one does, or at once while the key server refuses this
// edge (ski.RefusedError).
type Client struct {
	cfg       ClientConfig
	endpoint  string // the URL as given, and the address if there is one
	url       string
	log       *slog.Logger
	tls       *tls.Config
	transport *http.Transport

	slots    chan struct{} // one for each request in flight
	refusals backoff.Refusals
	absence  backoff.Absence

	ctx    context.Context // ends with Close
	cancel context.CancelFunc

	mu       sync.Mutex
	closed   bool
	running  sync.WaitGroup // requests and connections; Add only under mu and before closed
	conns    map[*clientConn]struct{}
	pause    time.Duration // after the next failure
	redialAt time.Time     // until when failed stands for another attempt
	failed   error
}

// NewClient returns a Client for the key server at https://HOST[:PORT][/PATH].
// The path is /ski unless the URL says otherwise. Nothing is sent yet.
func NewClient(rawURL string, cfg ClientConfig) (*Client, error) {
	u, err := url.Parse(rawURL)
	switch {
	case err != nil:
		return nil, fmt.Errorf("skihttp: %w", err)
	case u.Scheme != "https":
		return nil, fmt.Errorf("skihttp: %s: the scheme is https", rawURL)
	case u.Hostname() == "":
		return nil, fmt.Errorf("skihttp: %s: the host is missing", rawURL)
	case u.User != nil || u.RawQuery != "" || u.Fragment != "":
		return nil, fmt.Errorf("skihttp: %s: only host, port and path have a meaning", rawURL)
	}
	if cfg.RootCAs == nil {
		return nil, errors.New("skihttp: a client needs RootCAs")
	}
	if err := checkIdentity(cfg.Certificate); err != nil {
		return nil, err
	}
	if min(cfg.MaxInFlight, cfg.MaxConns) < 0 || min(cfg.DialTimeout, cfg.DeadAfter) < 0 {
		return nil, errors.New("skihttp: a limit is negative")
	}
	if u.Path == "" || u.Path == "/" {
		u.Path = "/ski"
		if cfg.Java != nil {
			u.Path = "/"
		}
	}
	if cfg.Java != nil {
		cfg.Format = ski.JSON
	}
	defaults(&cfg.ServerName, u.Hostname())
	defaults(&cfg.MaxInFlight, 512)
	defaults(&cfg.MaxConns, 8)
	defaults(&cfg.DialTimeout, 3*time.Second)
	defaults(&cfg.DeadAfter, 1500*time.Millisecond)
	defaults(&cfg.Logger, slog.Default())
	endpoint := rawURL
	if cfg.Address.IsValid() {
		endpoint += " at " + cfg.Address.String()
	}
	c := &Client{
		cfg:      cfg,
		endpoint: endpoint,
		url:      u.String(),
		log:      cfg.Logger.With("keyserver", endpoint),
		slots:    make(chan struct{}, cfg.MaxInFlight),
		refusals: backoff.Refusals{Log: cfg.Logger.With("keyserver", endpoint)},
		absence:  backoff.Absence{Log: cfg.Logger.With("keyserver", endpoint)},
		conns:    make(map[*clientConn]struct{}),
		pause:    firstRedial,
	}
	c.tls = clientTLS(&c.cfg)
	c.ctx, c.cancel = context.WithCancel(context.Background())
	c.transport = &http.Transport{
		Proxy:                  nil, // and none from the environment
		DialTLSContext:         c.dial,
		ForceAttemptHTTP2:      true,
		DisableCompression:     true,
		MaxConnsPerHost:        cfg.MaxConns,
		MaxIdleConnsPerHost:    cfg.MaxConns,
		IdleConnTimeout:        idleTimeout,
		MaxResponseHeaderBytes: maxHeader,
		HTTP2: &http.HTTP2Config{
			SendPingTimeout:  cfg.DeadAfter / 3,
			PingTimeout:      cfg.DeadAfter - cfg.DeadAfter/3,
			WriteByteTimeout: cfg.DeadAfter,
		},
	}
	return c, nil
}

// Endpoint returns the key server's URL, with the Address if one is set.
func (c *Client) Endpoint() string { return c.endpoint }

// RoundTrip asks the key server. See ski.Transport for the errors.
func (c *Client) RoundTrip(ctx context.Context, req *ski.Request) (*ski.Response, error) {
	encode := ski.EncodeRequest
	if c.cfg.Java != nil {
		encode = func(_ ski.Format, req *ski.Request) ([]byte, error) { return c.cfg.Java.EncodeRequest(req) }
	}
	body, err := encode(c.cfg.Format, req)
	if err != nil {
		return nil, err
	}
	if len(req.State) > 0 {
		c.leaveGone()
	}
	a, err := c.exchange(ctx, c.cfg.Format, body)
	if err != nil {
		return nil, err
	}
	resp, err := a.response()
	if err != nil {
		return nil, c.unusable(a, err)
	}
	return resp, nil
}

// leaveGone ends the sessions whose address is gone now, and not when that is next
// looked at. What they carry may get to the key server all the same, whose answer
// is lost; and a state opens once (docs/protocol.md, Section 5).
func (c *Client) leaveGone() {
	c.mu.Lock()
	conns := slices.Collect(maps.Keys(c.conns))
	c.mu.Unlock()
	for _, conn := range conns {
		if source.Gone(conn.LocalAddr()) {
			_ = conn.end(source.ErrGone)
		}
	}
}

// Exchange posts body as it is and returns the answer's body. It is for those
// who test key servers; RoundTrip is for everyone else.
func (c *Client) Exchange(ctx context.Context, f ski.Format, body []byte) ([]byte, error) {
	a, err := c.exchange(ctx, f, body)
	if err != nil {
		return nil, err
	}
	if !a.isSKI() {
		return nil, c.unusable(a, a.unexpected())
	}
	return a.body, nil
}

func (c *Client) unusable(a *answered, err error) error {
	// A server that is overloaded or broken may be better the next time; one
	// that does not have the path, or knows other media types, will not.
	permanent := a.status < 500 && a.status != http.StatusRequestTimeout && a.status != http.StatusTooManyRequests
	return &ski.TransportError{Endpoint: c.endpoint, Op: "answer", Err: err, Permanent: permanent}
}

func (c *Client) exchange(ctx context.Context, f ski.Format, body []byte) (*answered, error) {
	if !c.enter() {
		return nil, c.failure(ctx, "request", net.ErrClosed)
	}
	defer c.running.Done()
	select {
	case c.slots <- struct{}{}:
		defer func() { <-c.slots }()
	case <-ctx.Done():
		return nil, c.failure(ctx, "wait", ctx.Err())
	case <-c.ctx.Done():
		return nil, c.failure(ctx, "request", net.ErrClosed)
	}
	op := "dial" // what fails next
	pings := false
	var conn net.Conn
	asking, cancel := context.WithCancel(httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{
		GotConn: func(got httptrace.GotConnInfo) {
			op, conn, pings = "request", got.Conn, speaksHTTP2(got.Conn)
		},
	}))
	defer cancel()
	defer context.AfterFunc(c.ctx, cancel)()
	resp, err := c.post(asking, f, body)
	if err == nil || isReset(err) {
		op = "answer"
		c.answered(linkOf(conn))
	} else {
		c.judge(asking, conn, err)
	}
	if err == nil {
		var a *answered
		if a, err = read(resp); err == nil {
			return a, nil
		}
	}
	if c.ctx.Err() != nil {
		op, err = "request", net.ErrClosed
	}
	if op == "request" && !pings && !errors.Is(ctx.Err(), context.Canceled) {
		// The other connections lie idle since before the silence. Each could cost
		// a request its time.
		c.transport.CloseIdleConnections()
	}
	return nil, c.failure(ctx, op, err)
}

func speaksHTTP2(conn net.Conn) bool {
	secure, ok := conn.(*tls.Conn)
	return ok && secure.ConnectionState().NegotiatedProtocol == "h2"
}

// streamError is what errors.As reads net/http's own error of a stream as. It has
// the fields of golang.org/x/net/http2.StreamError.
type streamError struct {
	StreamID uint32
	Code     uint32
	Cause    error
}

func (e streamError) Error() string { return fmt.Sprintf("stream error %d", e.Code) }

// isReset reports whether the key server has ended the stream in place of an
// answer, as with an exception in its handler, and not because it has not looked at
// the request (REFUSED_STREAM: RFC 9113, Section 8.7).
func isReset(err error) bool {
	const refusedStream = 7
	e := streamError{}
	return errors.As(err, &e) && e.Code != refusedStream
}

// post sends a request and returns the answer, whose body is to be read.
func (c *Client) post(ctx context.Context, f ski.Format, body []byte) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, c.url, bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	req.Header.Set("Content-Type", f.MediaType())
	req.Header.Set("Accept", f.MediaType())
	req.Header.Set("User-Agent", "") // not sent
	// An operation can be done twice without harm, so that net/http may ask again
	// over another connection if the one it took has just been closed. Without
	// a value it is not sent.
	req.Header["Idempotency-Key"] = nil
	return c.transport.RoundTrip(req) // which follows no redirect and keeps no cookie
}

// read reads the body of an answer, to its end.
func read(resp *http.Response) (*answered, error) {
	defer resp.Body.Close()
	data, err := io.ReadAll(io.LimitReader(resp.Body, ski.MaxMessageSize+1))
	if err != nil {
		return nil, err
	}
	if len(data) > ski.MaxMessageSize {
		clear(data)
		// In HTTP/1.1 a connection whose answer is not read to its end is lost: the
		// next request would take longer, which a TLS client could measure.
		_, _ = io.CopyN(io.Discard, resp.Body, maxPage)
		return nil, fmt.Errorf("the answer has more than %d bytes", ski.MaxMessageSize)
	}
	return &answered{status: resp.StatusCode, header: resp.Header, body: data}, nil
}

// enter reports whether a request or a connection may begin. If so,
// running.Done must be called at its end.
func (c *Client) enter() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.closed {
		c.running.Add(1)
	}
	return !c.closed
}

func (c *Client) failure(ctx context.Context, op string, err error) error {
	if cause := ctx.Err(); cause != nil {
		err = cause
	}
	untrusted := (*untrustedError)(nil)
	return &ski.TransportError{Endpoint: c.endpoint, Op: op, Err: err, Permanent: errors.As(err, &untrusted)}
}

// dial makes a session for net/http. After a failure, whoever asks during the
// pause gets the same answer without another packet.
func (c *Client) dial(_ context.Context, network, addr string) (net.Conn, error) {
	c.mu.Lock()
	if time.Now().Before(c.redialAt) {
		defer c.mu.Unlock()
		return nil, c.failed
	}
	c.mu.Unlock()
	if err := c.refusals.Enter(); err != nil {
		return nil, err
	}
	if !c.enter() {
		return nil, net.ErrClosed
	}
	defer c.running.Done()
	began := time.Now()
	conn, err := c.connect(network, addr)
	if refused := (*refusedError)(nil); errors.As(err, &refused) {
		if refusal := c.refusals.Refused(began, refused); refusal != nil {
			return nil, refusal
		}
	} else if err != nil {
		c.refusals.Retry() // It has not been asked.
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if err == nil {
		c.absence.Over()
		c.pause = firstRedial
		return conn, nil
	}
	if now := time.Now(); now.After(c.redialAt) && c.ctx.Err() == nil { // the first of those that dialled at once
		c.absence.Failed(c.refusals.Level(slog.LevelWarn), err, c.pause)
		c.redialAt, c.failed = now.Add(c.pause), err
		c.pause = min(2*c.pause, lastRedial)
	}
	return nil, err
}

// connect does not end with the request that wanted it: others want it, too.
func (c *Client) connect(network, addr string) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(c.ctx, c.cfg.DialTimeout)
	defer cancel()
	if c.cfg.Address.IsValid() {
		_, port, _ := net.SplitHostPort(addr)
		addr = net.JoinHostPort(c.cfg.Address.String(), port)
	}
	var d net.Dialer
	raw, err := d.DialContext(ctx, network, addr)
	if err != nil {
		return nil, err
	}
	acknowledgedWithin(raw, c.cfg.DeadAfter)
	ctx, cancel = source.Context(ctx, raw.LocalAddr())
	defer cancel()
	link := &clientConn{Conn: raw, client: c, done: make(chan struct{}), began: time.Now(), level: c.refusals.Level(slog.LevelInfo)}
	conn := tls.Client(link, c.tls)
	if err := conn.HandshakeContext(ctx); err != nil {
		_ = raw.Close()
		if verdict := (*tls.CertificateVerificationError)(nil); errors.As(err, &verdict) {
			return nil, &untrustedError{verdict.Err}
		}
		if len(conn.ConnectionState().VerifiedChains) > 0 && isAlert(err) {
			err = &refusedError{err}
		}
		return nil, source.Cause(ctx, err)
	}
	if !c.enter() {
		_ = raw.Close()
		return nil, net.ErrClosed
	}
	link.established = true
	c.mu.Lock()
	c.conns[link] = struct{}{}
	c.mu.Unlock()
	go source.Watch(raw.LocalAddr(), link.done, func() { _ = link.end(source.ErrGone) })
	c.log.Log(c.ctx, link.level, "session begins", "local", raw.LocalAddr(), "protocol", conn.ConnectionState().NegotiatedProtocol)
	return conn, nil
}

// clientConn is the TCP connection beneath TLS.
type clientConn struct {
	net.Conn
	client      *Client
	began       time.Time
	level       slog.Level // of lines about it
	answered    atomic.Bool
	established bool
	once        sync.Once
	done        chan struct{} // closed when it is
}

// Read notices that the key server's machine no longer acknowledges anything:
// net/http would ask over the next idle connection, which is no better.
func (l *clientConn) Read(b []byte) (int, error) {
	n, err := l.Conn.Read(b)
	if errors.Is(err, syscall.ETIMEDOUT) {
		l.client.transport.CloseIdleConnections()
	}
	return n, err
}

// Close is how net/http, too, ends a session.
func (l *clientConn) Close() error { return l.end(nil) }

func (l *clientConn) end(reason error) error {
	err := l.Conn.Close()
	if l.established {
		l.once.Do(func() {
			close(l.done)
			c := l.client
			c.mu.Lock()
			delete(c.conns, l)
			closed := c.closed
			c.mu.Unlock()
			if !closed && reason != nil {
				c.log.Log(c.ctx, l.level, "session ends", "local", l.LocalAddr(), "reason", reason)
			} else if !closed {
				c.log.Log(c.ctx, l.level, "session ends", "local", l.LocalAddr())
			}
			c.running.Done()
		})
	}
	return err
}

// untrustedError is the verdict on the key server's certificate, which asking
// again does not change.
type untrustedError struct{ error }

func (e *untrustedError) Unwrap() error { return e.error }

// Close ends the sessions and everything that waits for an answer.
func (c *Client) Close() error {
	c.mu.Lock()
	c.closed = true
	var conns []*clientConn
	for conn := range c.conns {
		conns = append(conns, conn)
	}
	c.mu.Unlock()
	c.cancel()
	for _, conn := range conns {
		_ = conn.Close()
	}
	c.running.Wait()
	c.transport.CloseIdleConnections()
	return nil
}
