package skicoap

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"net/url"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/pion/dtls/v3"
	dtlsnet "github.com/pion/dtls/v3/pkg/net"

	"github.com/tlsski/tlsski/ski"
	"github.com/tlsski/tlsski/ski/internal/backoff"
	"github.com/tlsski/tlsski/ski/internal/source"
)

// ClientConfig says how to reach a key server. Certificate and RootCAs are
// required, or PSK in their place.
type ClientConfig struct {
	// Certificate is the edge server's identity on the channel, with its key.
	Certificate tls.Certificate
	// RootCAs are the authorities that the key server's certificate comes
	// from.
	RootCAs *x509.CertPool
	// PSK is what the edge server and the key server know each other by instead
	// of certificates. Only coaps has it.
	PSK *ski.PSK
	// ServerName is the name or address the key server's certificate must
	// have. Default: the URL's host.
	ServerName string
	// Address is the IP address at which the URL's host is asked, one of several
	// say. Default: what a look-up says whenever a session is made.
	Address netip.Addr
	// Format is the encoding of requests. Default: CBOR.
	Format ski.Format
	// MaxInFlight bounds the requests in flight; more wait. It is NSTART of
	// RFC 7252, Section 4.7. Default: 512. At most 16,384, a quarter of the
	// message IDs.
	MaxInFlight int
	// DialTimeout is how long the DTLS handshake may take. Default: 3 s.
	DialTimeout time.Duration
	// DeadAfter is how long a key server may be silent, while requests wait
	// and it is asked for a sign of life, before the session counts as lost; it
	// is longer where round trips are: four time-outs, or over TCP five of them.
	// Default: 1 s.
	DeadAfter time.Duration
	// MTU is the longest IP packet that the path to the key server carries, in
	// bytes: what is sent to it, and the answers that it is asked for, fit. It is
	// ski.MinMTU to ski.MaxMTU; more than 1280 is as good as 1280. Default: 1280,
	// and less where longer packets prove to be lost. Over TCP it means nothing.
	MTU int
	// Logger gets a line for each session that begins, ends or fails to begin.
	// Default: slog.Default().
	Logger *slog.Logger
}

const maxMaxInFlight = 1 << 14

// schemeTCP is that of CoAP over TLS (RFC 8323, Section 8.2).
const schemeTCP = "coaps+tcp"

// The pause between one failed attempt to make a session and the next. It
// doubles from the first value to the second.
const (
	firstRedial = 50 * time.Millisecond
	lastRedial  = 500 * time.Millisecond
)

// Client is a ski.Transport to one key server: one DTLS or TLS session, shared by
// all requests. It makes the session when it is needed, and again after it was
// lost. A request that finds no session fails as soon as the attempt to make
// one does, or at once while the key server refuses this edge (ski.RefusedError).
type Client struct {
	cfg      ClientConfig
	endpoint string // the URL, and the address if there is one
	tcp      bool   // the scheme is coaps+tcp
	addr     string
	path     string
	udpPath  *clientPath
	log      *slog.Logger

	slots    chan struct{} // one for each request in flight
	refusals backoff.Refusals
	absence  backoff.Absence

	ctx     context.Context // ends with Close
	cancel  context.CancelFunc
	running sync.WaitGroup

	mu      sync.Mutex
	current *held
	dialing *dialing
	pause   time.Duration // after the next failure
}

// dialing is an attempt to make a session that requests wait for.
type dialing struct {
	done    chan struct{}
	session *held
	err     error
}

// failed reports whether it has come to nothing.
func (d *dialing) failed() bool {
	select {
	case <-d.done:
		return d.err != nil
	default:
		return false
	}
}

// held is a session of a Client.
type held struct {
	clientSide
	began    time.Time
	answered atomic.Bool // it has had an answer
}

// clientSide is the client's side of one session over DTLS or TLS.
type clientSide interface {
	// alive reports whether it is to be used for another request.
	alive() bool
	// run reads answers until the session ends, and returns the reason.
	run() error
	exchange(ctx context.Context, path string, f ski.Format, body []byte) (*answer, error)
	close(cause error)
	// local is the address that it was made from.
	local() net.Addr
	// ended is closed when there is nothing more to come. Then reason is why.
	ended() <-chan struct{}
	reason() error
	// watch begins to expect notifications, unwatch ends that, and register asks
	// for them. It returns the answer as it is now. have is the ETag of what is
	// there.
	watch(path, query string) *watch
	unwatch(w *watch, have []byte, tell bool)
	register(ctx context.Context, w *watch, have []byte) (*answer, error)
	// collectWatched returns the whole of an answer or notification of which the
	// first block is there.
	collectWatched(ctx context.Context, w *watch, first *answer) (*answer, error)
}

// NewClient returns a Client for the key server at coaps://HOST[:PORT][/PATH] or,
// where UDP does not get through, coaps+tcp://HOST[:PORT][/PATH]. The port is 5684 and the path /ski unless the URL says otherwise. Nothing is
// sent yet.
func NewClient(rawURL string, cfg ClientConfig) (*Client, error) {
	u, err := url.Parse(rawURL)
	switch {
	case err != nil:
		return nil, fmt.Errorf("skicoap: %w", err)
	case u.Scheme != "coaps" && u.Scheme != schemeTCP:
		return nil, fmt.Errorf("skicoap: %s: the scheme is coaps or %s", rawURL, schemeTCP)
	case u.Hostname() == "":
		return nil, fmt.Errorf("skicoap: %s: the host is missing", rawURL)
	case u.User != nil || u.RawQuery != "" || u.Fragment != "":
		return nil, fmt.Errorf("skicoap: %s: only host, port and path have a meaning", rawURL)
	}
	if err := cfg.checkCredentials(); err != nil {
		return nil, err
	}
	if cfg.PSK != nil && u.Scheme == schemeTCP {
		return nil, fmt.Errorf("skicoap: %s: only coaps has pre-shared keys", rawURL)
	}
	if cfg.MaxInFlight < 0 || cfg.MaxInFlight > maxMaxInFlight || min(cfg.DialTimeout, cfg.DeadAfter) < 0 {
		return nil, fmt.Errorf("skicoap: a limit is negative, or MaxInFlight above %d", maxMaxInFlight)
	}
	limit, err := configuredMTU(cfg.MTU)
	if err != nil {
		return nil, err
	}
	path, port := u.Path, u.Port()
	if path == "/" {
		path = ""
	}
	defaults(&path, "/ski")
	if err := checkPath(path); err != nil {
		return nil, err
	}
	defaults(&port, "5684")
	if _, err := strconv.ParseUint(port, 10, 16); err != nil {
		return nil, fmt.Errorf("skicoap: %s: there is no such port", rawURL)
	}
	defaults(&cfg.ServerName, u.Hostname())
	defaults(&cfg.MaxInFlight, 512)
	defaults(&cfg.DialTimeout, 3*time.Second)
	defaults(&cfg.DeadAfter, time.Second)
	defaults(&cfg.Logger, slog.Default())
	endpoint, host := rawURL, u.Hostname()
	if cfg.Address.IsValid() {
		endpoint, host = rawURL+" at "+cfg.Address.String(), cfg.Address.String()
	}
	log := cfg.Logger.With("keyserver", endpoint)
	ctx, cancel := context.WithCancel(context.Background())
	return &Client{
		cfg:      cfg,
		endpoint: endpoint,
		tcp:      u.Scheme == schemeTCP,
		addr:     net.JoinHostPort(host, port),
		path:     path,
		udpPath:  &clientPath{mtu: limit, log: log},
		log:      log,
		slots:    make(chan struct{}, cfg.MaxInFlight),
		refusals: backoff.Refusals{Log: cfg.Logger.With("keyserver", endpoint)},
		absence:  backoff.Absence{Log: cfg.Logger.With("keyserver", endpoint)},
		ctx:      ctx,
		cancel:   cancel,
		pause:    firstRedial,
	}, nil
}

func (cfg *ClientConfig) checkCredentials() error {
	switch {
	case cfg.PSK == nil && cfg.RootCAs == nil:
		return errors.New("skicoap: a client needs RootCAs")
	case cfg.PSK == nil:
		return checkIdentity(cfg.Certificate)
	case cfg.RootCAs != nil || len(cfg.Certificate.Certificate) > 0:
		return errors.New("skicoap: a client has either certificates or a pre-shared key")
	case len(cfg.PSK.Key) < ski.MinPSKLen || len(cfg.PSK.Key) > ski.MaxPSKLen:
		return fmt.Errorf("skicoap: a pre-shared key has %d to %d bytes", ski.MinPSKLen, ski.MaxPSKLen)
	}
	if err := ski.CheckPSKIdentity(cfg.PSK.Identity); err != nil {
		return fmt.Errorf("skicoap: %w", err)
	}
	return nil
}

// Endpoint returns the key server's URL, with the Address if one is set.
func (c *Client) Endpoint() string { return c.endpoint }

// RoundTrip asks the key server. See ski.Transport for the errors.
func (c *Client) RoundTrip(ctx context.Context, req *ski.Request) (*ski.Response, error) {
	body, err := ski.EncodeRequest(c.cfg.Format, req)
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
		return nil, &ski.TransportError{Endpoint: c.endpoint, Op: "answer", Err: err, Permanent: !a.passing()}
	}
	return resp, nil
}

// leaveGone ends a session whose address is gone now, and not when that is next
// looked at. What it carries may get to the key server all the same, whose answer
// is lost; and a state opens once (docs/protocol.md, Section 5).
func (c *Client) leaveGone() {
	c.mu.Lock()
	s := c.current
	c.mu.Unlock()
	if s != nil && s.alive() && source.Gone(s.local()) {
		s.close(source.ErrGone)
	}
}

// Exchange posts body as it is and returns the answer's payload. It is for
// those who test key servers; RoundTrip is for everyone else.
func (c *Client) Exchange(ctx context.Context, f ski.Format, body []byte) ([]byte, error) {
	a, err := c.exchange(ctx, f, body)
	if err != nil {
		return nil, err
	}
	if len(a.payload) == 0 || !a.isSKI() {
		return nil, &ski.TransportError{Endpoint: c.endpoint, Op: "answer", Err: a.unexpected(), Permanent: true}
	}
	return a.payload, nil
}

func (c *Client) exchange(ctx context.Context, f ski.Format, body []byte) (*answer, error) {
	select {
	case c.slots <- struct{}{}:
		defer func() { <-c.slots }()
	case <-ctx.Done():
		return nil, c.failed(ctx, "wait", ctx.Err())
	case <-c.ctx.Done():
		return nil, c.failed(ctx, "request", net.ErrClosed)
	}
	s, err := c.session(ctx)
	if err != nil {
		return nil, c.failed(ctx, "dial", err)
	}
	a, err := s.exchange(ctx, c.path, f, body)
	if err == nil || errors.Is(err, errUnusable) {
		c.answered(s)
	}
	switch {
	case errors.Is(err, errUnusable), errors.Is(err, errReset):
		return nil, c.failed(ctx, "answer", err)
	case err != nil:
		return nil, c.failed(ctx, "request", err)
	}
	return a, nil
}

func (c *Client) failed(ctx context.Context, op string, err error) error {
	if cause := ctx.Err(); cause != nil {
		err = cause
	}
	untrusted := (*untrustedError)(nil)
	return &ski.TransportError{Endpoint: c.endpoint, Op: op, Err: err, Permanent: errors.As(err, &untrusted)}
}

// session returns the current session, or the one that is made now.
func (c *Client) session(ctx context.Context) (*held, error) {
	c.mu.Lock()
	if s := c.current; s != nil {
		if s.alive() {
			c.mu.Unlock()
			return s, nil
		}
		c.current = nil
		c.judge(s)
	}
	if c.ctx.Err() != nil {
		c.mu.Unlock()
		return nil, net.ErrClosed
	}
	d := c.dialing
	if d == nil || !d.failed() {
		if err := c.refusals.Enter(); err != nil {
			c.mu.Unlock()
			return nil, err
		}
	}
	if d == nil {
		d = &dialing{done: make(chan struct{})}
		c.dialing = d
		c.running.Go(func() { c.dial(d) })
	}
	c.mu.Unlock()
	select {
	case <-d.done:
		return d.session, d.err
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// dial makes a session for all requests that wait for d. After a failure it
// stays the current attempt for the pause: whoever asks meanwhile gets the
// same answer without another datagram.
func (c *Client) dial(d *dialing) {
	began := time.Now()
	d.session, d.err = c.connect()
	if refused := (*refusedError)(nil); errors.As(d.err, &refused) {
		if err := c.refusals.Refused(began, refused); err != nil {
			d.err = err
		}
	} else if d.err != nil {
		c.refusals.Retry() // It has not been asked.
	}
	c.mu.Lock()
	pause := c.pause
	if d.err == nil {
		c.current, c.dialing, c.pause = d.session, nil, firstRedial
	} else if c.pause = min(2*c.pause, lastRedial); errors.Is(d.err, ski.ErrRefused) {
		c.dialing = nil // c.refusals has a pause of its own.
	}
	done := c.dialing == nil
	c.mu.Unlock()
	close(d.done)
	if done {
		return
	}
	if c.ctx.Err() == nil {
		c.absence.Failed(c.refusals.Level(slog.LevelWarn), d.err, pause)
	}
	select {
	case <-time.After(pause):
	case <-c.ctx.Done():
	}
	c.mu.Lock()
	c.dialing = nil
	c.mu.Unlock()
}

func (c *Client) connect() (*held, error) {
	began := time.Now()
	ctx, cancel := context.WithTimeout(c.ctx, c.cfg.DialTimeout)
	defer cancel()
	connect := c.connectUDP
	if c.tcp {
		connect = c.connectTCP
	}
	s, err := connect(ctx)
	if err != nil {
		return nil, err
	}
	c.absence.Over()
	level := c.refusals.Level(slog.LevelInfo)
	c.log.Log(c.ctx, level, "session begins")
	stop := context.AfterFunc(c.ctx, func() { s.close(net.ErrClosed) })
	c.running.Go(func() {
		err := s.run()
		stop()
		if c.ctx.Err() == nil {
			c.log.Log(c.ctx, level, "session ends", "reason", err)
		}
	})
	return &held{clientSide: s, began: began}, nil
}

func (c *Client) connectUDP(ctx context.Context) (clientSide, error) {
	var d net.Dialer
	// The socket is connected, so that the kernel tells us when nobody listens
	// at the other end.
	udp, err := d.DialContext(ctx, "udp", c.addr)
	if err != nil {
		return nil, err
	}
	v := newVerifier(&c.cfg)
	socket := admitting{dtlsnet.PacketConnFromConn(udp)}
	conn, err := dtls.ClientWithOptions(socket, udp.RemoteAddr(), clientOptions(&c.cfg, v, c.udpPath.mtu)...)
	if err != nil {
		_ = udp.Close()
		return nil, err
	}
	ctx, cancel := source.Context(ctx, udp.LocalAddr())
	defer cancel()
	began := time.Now()
	err = conn.HandshakeContext(ctx)
	took := time.Since(began)
	if c.cfg.PSK == nil && v.err != nil && (err == nil || v.err != errNotVerified) {
		err = &untrustedError{v.err}
	}
	if err != nil {
		_ = conn.Close()
		if c.cfg.PSK == nil && v.err == nil && endedByPeer(err) {
			err = &refusedError{err}
		}
		return nil, source.Cause(ctx, err)
	}
	s := newClientSession(conn, c.cfg.DeadAfter, c.udpPath)
	s.rtt.measured(took / 3) // a cookie and two flights each way
	return s, nil
}

// untrustedError is the verdict on the key server's certificate, which asking
// again does not change.
type untrustedError struct{ error }

func (e *untrustedError) Unwrap() error { return e.error }

// Close ends the session and everything that waits for an answer.
func (c *Client) Close() error {
	c.mu.Lock() // so that session starts nothing after Wait
	c.cancel()
	c.mu.Unlock()
	c.running.Wait()
	return nil
}
