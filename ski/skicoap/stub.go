package skicoap

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"log/slog"
	"net/netip"

	"github.com/tlsski/tlsski/ski"
)

// STUB: being written; signatures are final.
type ServerConfig struct {
	Handler     ski.Handler
	Path        string           // default "/ski"
	Certificate tls.Certificate  // the key server's own
	ClientCAs   *x509.CertPool   // who signs edges' certificates
	Logger      *slog.Logger     // nil: slog.Default()
}

type Server struct{}

// Listen binds the UDP address (host:port; port 0 picks one) .
func Listen(addr string, cfg ServerConfig) (*Server, error) { panic("stub") }
func (s *Server) Addr() netip.AddrPort                      { panic("stub") }

// Serve answers until Shutdown or Close, and then returns nil.
func (s *Server) Serve() error { panic("stub") }

// Shutdown stops taking requests, answers what is in flight until ctx ends, then closes all sessions.
func (s *Server) Shutdown(ctx context.Context) error { panic("stub") }
func (s *Server) Close() error                       { panic("stub") }

type ClientConfig struct {
	Certificate tls.Certificate
	RootCAs     *x509.CertPool
	ServerName  string // default: the URL's host
	Logger      *slog.Logger
}

type Client struct{}

// NewClient returns a ski.Transport for coaps://HOST[:PORT][/PATH]. It dials when first needed. Fails fast; wrap it in ski.Client for deadline and retries.
func NewClient(url string, cfg ClientConfig) (*Client, error) { panic("stub") }
func (c *Client) RoundTrip(ctx context.Context, req *ski.Request) (*ski.Response, error) {
	panic("stub")
}
func (c *Client) Close() error { panic("stub") }
