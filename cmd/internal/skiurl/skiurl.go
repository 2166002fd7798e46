// Package skiurl makes the client of a key server that its URL asks for: the
// scheme says which binding it is.
package skiurl

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"log/slog"
	"net/netip"
	"net/url"

	"github.com/tlsski/tlsski/ski"
	"github.com/tlsski/tlsski/ski/skicoap"
	"github.com/tlsski/tlsski/ski/skihttp"
)

// Client is what the clients of all bindings are.
type Client interface {
	ski.Transport
	// Exchange carries an encoded request, however wrong, and returns the
	// encoded answer.
	Exchange(ctx context.Context, f ski.Format, body []byte) ([]byte, error)
	// Endpoint returns the key server's URL, with the address if one is set.
	Endpoint() string
	// Retry has a key server that refuses this edge (ski.ErrRefused) asked at once.
	Retry()
	// Close ends the sessions and everything that waits for an answer.
	Close() error
}

// Config is what the bindings' configurations have in common.
type Config struct {
	// Certificate is the edge server's identity on the channel, with its key.
	Certificate tls.Certificate
	// RootCAs are the authorities that the key server's certificate comes
	// from.
	RootCAs *x509.CertPool
	// PSK takes the place of the two where the URL is coaps://.
	PSK *ski.PSK
	// ServerName is the name or address the key server's certificate must
	// have. Default: the URL's host.
	ServerName string
	// Format is the encoding of requests and answers. Default: CBOR.
	Format ski.Format
	// MaxInFlight bounds the requests in flight. Default: the binding's.
	MaxInFlight int
	// Java says that the URL, https://, is that of the key server in Java.
	Java *skihttp.JavaKeyServer
	// Address is where the URL's host is asked. Default: what a look-up says.
	Address netip.Addr
	// MTU is the longest IP packet that the path carries where the URL is coaps://.
	// Default: it is found out.
	MTU int
	// Logger is the binding's. Default: slog.Default().
	Logger *slog.Logger
}

// NewClient returns a client of the key server at a URL. Nothing is sent yet.
func NewClient(rawURL string, cfg Config) (Client, error) {
	u, err := url.Parse(rawURL)
	if err != nil {
		return nil, err
	}
	if cfg.PSK != nil && u.Scheme != "coaps" {
		return nil, fmt.Errorf("%s: only coaps:// has pre-shared keys", rawURL)
	}
	if cfg.Java != nil && u.Scheme != "https" {
		return nil, fmt.Errorf("%s: the key server in Java is at https://", rawURL)
	}
	switch u.Scheme {
	case "coaps", "coaps+tcp":
		return skicoap.NewClient(rawURL, skicoap.ClientConfig{
			Certificate: cfg.Certificate, RootCAs: cfg.RootCAs, PSK: cfg.PSK, ServerName: cfg.ServerName,
			Address: cfg.Address, Format: cfg.Format, MaxInFlight: cfg.MaxInFlight, MTU: cfg.MTU, Logger: cfg.Logger,
		})
	case "https":
		return skihttp.NewClient(rawURL, skihttp.ClientConfig{
			Certificate: cfg.Certificate, RootCAs: cfg.RootCAs, ServerName: cfg.ServerName,
			Address: cfg.Address, Format: cfg.Format, MaxInFlight: cfg.MaxInFlight, Java: cfg.Java, Logger: cfg.Logger,
		})
	}
	return nil, fmt.Errorf("%s: the scheme is coaps, coaps+tcp or https", rawURL)
}
