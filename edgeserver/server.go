package edgeserver

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"time"

	"github.com/tlsski/tlsski/ski"
)

// The bounds on what a client can take for itself.
const (
	headerTime     = 10 * time.Second // to send a request's header
	idleTime       = 2 * time.Minute  // between two requests
	maxHeaderBytes = 64 << 10
)

// Server serves the sites of a Config. Make it with New; end it with Shutdown
// or Close. It is not used again after that.
type Server struct {
	cfg     Config
	log     *slog.Logger
	sites   *sites
	engines engines
	keys    *keyLog
	http    *http.Server
	timeout time.Duration // of a handshake

	ctx    context.Context // of everything it does
	cancel context.CancelFunc
}

// New returns the Server for cfg. The operations of the sites' private keys are
// done over t, those of all sites. It opens the files that cfg names, and neither listens nor asks
// the key server yet. A nil log means slog.Default().
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
	cfg = cfg.withDefaults()
	if err := cfg.validate(); err != nil {
		return nil, err
	}
	s := &Server{cfg: cfg, log: log}
	for i, site := range cfg.Sites {
		if transport(site.KeyServer) == nil {
			return nil, cfg.errorf(fmt.Sprintf("sites[%d].keyserver", i), "there is no Transport for it")
		}
		timeout := cfg.keyServer(site.KeyServer).Timeout
		if site.Method == string(ski.MethodECDHEPMS) { // It asks twice.
			timeout *= 2
		}
		s.timeout = max(s.timeout, timeout+clientTime)
	}
	var err error
	if s.sites, err = newSites(&cfg, transport, log); err != nil {
		return nil, err
	}
	if cfg.KeyLog != "" {
		if s.keys, err = openKeyLog(cfg.KeyLog); err != nil {
			s.sites.close()
			return nil, cfg.errorAt("key_log", err)
		}
		log.Warn("key_log writes down the secrets of every connection: who reads the file reads them all", "file", cfg.KeyLog)
	}
	s.engines = newEngines(s.sites, newTLSConfig(s.sites, s.keys))
	s.ctx, s.cancel = context.WithCancel(context.Background())
	s.http = &http.Server{
		Handler:           http.HandlerFunc(s.serveHTTP),
		ReadHeaderTimeout: headerTime,
		IdleTimeout:       idleTime,
		MaxHeaderBytes:    maxHeaderBytes,
		ErrorLog:          slog.NewLogLogger(log.Handler(), slog.LevelWarn),
		BaseContext:       func(net.Listener) context.Context { return s.ctx },
		ConnContext: func(ctx context.Context, c net.Conn) context.Context {
			return withConn(ctx, c.(interface{ NetConn() net.Conn }).NetConn().(*conn))
		},
		Protocols: new(http.Protocols),
	}
	s.http.Protocols.SetHTTP1(true)
	s.http.Protocols.SetHTTP2(true)
	s.http.Protocols.SetUnencryptedHTTP2(s.engines.anySplit) // for http2Conn, which is encrypted
	return s, nil
}

// Serve accepts TLS connections on l, which it closes, and returns nil after
// Shutdown or Close. It can be called for any number of listeners.
func (s *Server) Serve(l net.Listener) error {
	s.log.Info("listening", "addr", l.Addr().String(), "url", s.url(l.Addr()))
	h := newHandshaker(s.ctx, l, s.engines, s.timeout, s.log)
	err := s.http.Serve(httpListener{h})
	h.Close()
	h.wait()
	if errors.Is(err, http.ErrServerClosed) {
		return nil
	}
	return err
}

// Listener returns a listener whose connections have their TLS handshake behind
// them, for a program that speaks on them itself. Each is a *tls.Conn or, with
// EngineSplit, has the same methods: ConnectionState, HandshakeContext,
// CloseWrite and NetConn among them. Closing it closes l and the connections
// whose handshake is not done; so do Shutdown and Close.
func (s *Server) Listener(l net.Listener) net.Listener {
	h := newHandshaker(s.ctx, l, s.engines, s.timeout, s.log)
	context.AfterFunc(s.ctx, func() { h.Close() })
	return h
}

// url returns an address to try: that of the first site that has a whole name.
func (s *Server) url(addr net.Addr) string {
	host, port, err := net.SplitHostPort(addr.String())
	if err != nil {
		return "https://" + addr.String()
	}
	for _, site := range s.sites.all {
		for _, name := range site.Names {
			if name[0] != '*' {
				return "https://" + net.JoinHostPort(name, port)
			}
		}
	}
	return "https://" + net.JoinHostPort(host, port)
}

// ListenAndServe calls Serve for each address in Config.Listen. It returns nil
// after Shutdown or Close; if one of the addresses fails, it closes the Server.
func (s *Server) ListenAndServe() error {
	var listeners []net.Listener
	for _, addr := range s.cfg.Listen {
		l, err := net.Listen("tcp", addr)
		if err != nil {
			for _, l := range listeners {
				l.Close()
			}
			return err
		}
		listeners = append(listeners, l)
	}
	ended := make(chan error)
	for _, l := range listeners {
		go func() { ended <- s.Serve(l) }()
	}
	var first error
	for range listeners {
		if err := <-ended; err != nil && first == nil {
			first = err
			s.Close()
		}
	}
	return first
}

// Shutdown stops listening, ends the handshakes that are not done, lets
// requests finish until ctx ends, and then ends what is left, upgraded
// connections included. It returns ctx's error if that cut a request short.
func (s *Server) Shutdown(ctx context.Context) error {
	err := s.http.Shutdown(ctx)
	return errors.Join(err, s.Close())
}

// Close ends everything at once.
func (s *Server) Close() error {
	err := s.http.Close() // first: Serve has to know that this is meant
	s.cancel()
	s.sites.close()
	s.keys.Close()
	return err
}

// serveHTTP hands a request to the connection's site.
func (s *Server) serveHTTP(w http.ResponseWriter, r *http.Request) {
	c := connFrom(r.Context())
	if r.TLS == nil { // of an http2Conn
		r.TLS = &c.state
	}
	// net/http sees to it for crypto/tls, but lets HTTP/1.1 pass on an http2Conn.
	if r.ProtoMajor != 2 && c.state.NegotiatedProtocol == "h2" {
		w.Header().Set("Connection", "close")
		http.Error(w, "This connection is for HTTP/2.", http.StatusHTTPVersionNotSupported)
		return
	}
	// A request without a Host, which is one of HTTP/1.0, names no other site.
	if r.Host != "" && s.sites.findHost(r.Host) != c.site {
		// RFC 9110, Section 15.5.20: the client takes another connection, whose
		// handshake is that of the right site.
		s.log.Debug("misdirected request", "site", c.site.label, "host", r.Host, "remote", r.RemoteAddr)
		http.Error(w, "This connection is for another site.", http.StatusMisdirectedRequest)
		return
	}
	c.site.handler.ServeHTTP(w, r)
}
