package edgeserver

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"github.com/tlsski/tlsski/ski"
)

// Server serves the sites of a Config. Make it with New; end it with Shutdown
// or Close. It is not used again after that.
type Server struct {
	log      *slog.Logger
	clock    func() time.Time
	bounds   *bounds
	metrics  *Metrics
	logs     *logFiles // access logs
	keyLogs  *logFiles
	draining atomic.Bool
	requests *refs // those under way, on upgraded connections too
	// renewalPause is firstRenewalPause, but for tests.
	renewalPause time.Duration

	reloading sync.Mutex // there is one Reload at a time
	mu        sync.Mutex // of all below
	now       *generation
	living    map[*generation]struct{} // now, and those before it that have connections
	listeners []*listener              // of ListenAndServe; nil without
	accepting map[*handshaker]struct{}
	stopped   bool           // it accepts no more
	retiring  sync.WaitGroup // of generations
	serving   sync.WaitGroup // on listeners
	relays    sync.WaitGroup // connections of tcp sites

	stopping chan struct{} // closed once stopped
	failed   chan error    // why a listener has ended

	ctx    context.Context // of everything it does
	cancel context.CancelFunc
}

// New returns the Server for cfg. The operations of all sites' private keys are
// done over t. It opens the files that cfg names, and neither listens nor asks the
// key server yet. A nil log means slog.Default().
//
// An error is about a field of cfg; it names the field, and its position where
// cfg comes from Load.
func New(cfg Config, t ski.Transport, log *slog.Logger) (*Server, error) {
	return newServer(cfg, func(string) ski.Transport { return t }, log)
}

// NewWithKeyServers is New with a Transport for each of the key servers that
// sites name, the empty name included (Config.UsedKeyServers).
func NewWithKeyServers(cfg Config, transports map[string]ski.Transport, log *slog.Logger) (*Server, error) {
	return newServer(cfg, func(name string) ski.Transport { return transports[name] }, log)
}

func newServer(cfg Config, transport func(name string) ski.Transport, log *slog.Logger) (*Server, error) {
	if log == nil {
		log = slog.Default()
	}
	s := &Server{log: log, clock: time.Now, renewalPause: firstRenewalPause, metrics: newMetrics(), bounds: newBounds(log), requests: newRefs(), accepting: map[*handshaker]struct{}{},
		stopping: make(chan struct{}), failed: make(chan error, 1)}
	s.metrics.server = s
	s.logs = &logFiles{kind: "access log", file: openLogFile, log: log, lost: func(lines int) { s.metrics.lostLines.Add(float64(lines)) }}
	s.keyLogs = &logFiles{kind: "key log", file: openKeyLogFile, log: log, lost: func(lines int) { s.metrics.lostKeyLines.Add(float64(lines)) }}
	s.ctx, s.cancel = context.WithCancel(context.Background())
	g, err := s.newGeneration(cfg, transport, nil)
	if err != nil {
		s.cancel()
		return nil, err
	}
	s.now, s.living = g, map[*generation]struct{}{g: {}}
	s.metrics.serve(g.sites)
	return s, nil
}

// Serve accepts TLS connections on l, which it closes, and returns nil after
// Shutdown or Close. It can be called for any number of listeners.
func (s *Server) Serve(l net.Listener) error {
	return s.run(s.accept(l, nil))
}

// accept returns the handshaker for l, which runs then. After Shutdown or Close
// it is closed.
func (s *Server) accept(l net.Listener, ready chan secureConn) *handshaker {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.acceptLocked(l, ready)
}

// acceptLocked is accept with s.mu held.
func (s *Server) acceptLocked(l net.Listener, ready chan secureConn) *handshaker {
	h := &handshaker{Listener: l, server: s, ready: ready}
	h.ctx, h.cancel = context.WithCancelCause(s.ctx)
	s.accepting[h] = struct{}{}
	if s.stopped {
		h.Close()
	} else {
		s.now.feeds.start(s.ctx, s.now.sites.all, s.log)
	}
	return h
}

// run lets h run until it ends.
func (s *Server) run(h *handshaker) error {
	s.log.Info("listening", "addr", h.Addr().String(), "url", s.url(h.Addr()))
	err := h.run()
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.accepting, h)
	return err
}

// Listener returns a listener whose connections have their TLS handshake behind
// them, for a program that speaks on them itself. Each is a *tls.Conn or, with
// EngineSplit, has the same methods: ConnectionState, HandshakeContext,
// CloseWrite and NetConn among them. Closing it closes l and the connections
// whose handshake is not done; so do Shutdown and Close.
func (s *Server) Listener(l net.Listener) net.Listener {
	h := s.accept(l, make(chan secureConn))
	go func() { _ = s.run(h) }() // Accept has the error.
	return h
}

// ReopenLogs opens the files of access logs and the key log anew, since they may
// have been moved away. It does not wait for that; the log says what goes wrong.
func (s *Server) ReopenLogs() {
	s.logs.reopen()
	s.keyLogs.reopen()
}

// current returns the generation of new connections.
func (s *Server) current() *generation {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.now
}

// maxConnections is the limit of now.
func (s *Server) maxConnections() int { return s.current().cfg.Limits.Connections }

// acquire is current with the caller as a user, who releases it.
func (s *Server) acquire() *generation {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.now.acquire()
	return s.now
}

// url returns an address to try: that of the first site there that has a whole
// name.
func (s *Server) url(addr net.Addr) string {
	host, port, err := net.SplitHostPort(addr.String())
	if err != nil {
		return "https://" + addr.String()
	}
	place := addrPort(addr)
	for _, site := range s.current().sites.all {
		for _, name := range site.Names {
			if name[0] != '*' && (place.Addr().IsUnspecified() || site.isAt(place)) {
				scheme := "https://"
				if site.TCP != "" {
					scheme = "tls://"
				}
				return scheme + net.JoinHostPort(name, port)
			}
		}
	}
	return "https://" + net.JoinHostPort(host, port)
}

// Drain is for some time before Shutdown: the Server goes on, but says that it is
// Draining, to clients too.
func (s *Server) Drain() { s.draining.Store(true) }

// Draining reports whether the Server is about to end, after Drain, Shutdown or
// Close: whoever shares new connections out is to look elsewhere.
func (s *Server) Draining() bool { return s.draining.Load() }

// Shutdown stops listening, ends the handshakes that are not done, lets requests
// finish and upgraded connections and those of tcp sites end until ctx ends, and
// then ends what is left. It returns ctx's error if that cut a request short, which an
// upgraded connection is not.
//
// A client is told: with "Connection: close" in HTTP/1.1, GOAWAY in HTTP/2.
func (s *Server) Shutdown(ctx context.Context) error {
	living := s.stop()
	errs := make(chan error)
	for _, g := range living {
		go func() { errs <- g.sites.shutdown(ctx) }()
	}
	var err error
	for range living {
		err = errors.Join(err, <-errs)
	}
	s.requests.release()
	select {
	case <-s.requests.free:
	case <-ctx.Done():
	}
	return errors.Join(err, s.Close())
}

// stop ends accepting, once, and returns the generations that there are.
func (s *Server) stop() (living []*generation) {
	s.Drain()
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.stopped {
		s.stopped = true
		close(s.stopping)
	}
	for h := range s.accepting {
		h.Close()
	}
	for g := range s.living {
		living = append(living, g)
	}
	return living
}

// Close ends everything at once.
func (s *Server) Close() error {
	living := s.stop()
	var err error
	for _, g := range living {
		err = errors.Join(err, g.sites.disconnect())
	}
	s.cancel()
	s.relays.Wait()
	s.retiring.Wait()
	now := s.current()
	now.close()
	now.sites.forgetTickets(new(sites))
	return err
}

// serveHTTP answers a request.
func (s *Server) serveHTTP(w http.ResponseWriter, r *http.Request) {
	c := connFrom(r.Context())
	c.answering.Store(true)
	// Without an answer, which would be an empty one, where the connection has
	// ended meanwhile, or the Server has.
	if !c.gen.acquire() {
		panic(http.ErrAbortHandler)
	}
	defer c.gen.release()
	if !s.requests.acquire() {
		panic(http.ErrAbortHandler)
	}
	defer s.requests.release()
	if r.ProtoMajor == 2 {
		stall := newStallWriter(w, c.gen.cfg.Limits.WriteTimeout)
		defer stall.bound()
		w = stall
	}
	s.answer(w, r, c)
}

// route hands a request to the connection's site.
func (s *Server) route(w http.ResponseWriter, r *http.Request, c *conn) {
	if r.TLS == nil { // of an http2Conn
		r.TLS = &c.state
	}
	// net/http sees to it for crypto/tls, but lets HTTP/1.1 pass on an http2Conn.
	// It also lets the preface of HTTP/2 pass as a request of HTTP/1.1.
	if http2 := c.state.NegotiatedProtocol == "h2"; http2 != (r.ProtoMajor == 2) {
		text := "This connection is for HTTP/1.1."
		if http2 {
			text = "This connection is for HTTP/2."
		}
		w.Header().Set("Connection", "close")
		refuse(w, r, http.StatusHTTPVersionNotSupported, text)
		return
	}
	if r.Method == http.MethodConnect {
		refuse(w, r, http.StatusNotImplemented, "There are no tunnels here.")
		return
	}
	if c.gen.leaves() && (c.site.Proxy == "" || r.Header.Get("Upgrade") == "") {
		// The client's next connection is of the new configuration, or at another
		// edge server. For HTTP/2 net/http makes a GOAWAY of it. Where there is an
		// origin, whether it upgrades the connection is seen by its answer.
		w.Header().Set("Connection", "close")
	}
	if r.Host == "" {
		// A request of HTTP/1.0, or one that leaves it to the origin whose it is:
		// it is this site's.
		r.Host = c.serverName
	}
	if what := malformed(r); what != "" {
		s.log.Debug("malformed request", append(about(c, r), slog.String("field", what))...)
		refuse(w, r, http.StatusBadRequest, "The request's "+what+" is malformed.")
		return
	}
	if name, _ := hostName(r.Host); c.gen.sites.at(c.LocalAddr()).find(name) != c.site {
		// RFC 9110, Section 15.5.20: the client takes another connection, whose
		// handshake is that of the right site.
		s.log.Debug("misdirected request", append(about(c, r), slog.String("host", printable(r.Host, maxLoggedHost)))...)
		refuse(w, r, http.StatusMisdirectedRequest, "This connection is for another site.")
		return
	}
	// It is about the server (RFC 9110, Section 9.3.7) and names nothing at an
	// origin.
	if isAsterisk(r) {
		w.WriteHeader(http.StatusNoContent)
		return
	}
	c.site.handler.ServeHTTP(w, r)
}
