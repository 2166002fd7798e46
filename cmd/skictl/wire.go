package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/url"

	"github.com/tlsski/tlsski/ski"
	"github.com/tlsski/tlsski/ski/skitest"
)

// A wire carries encoded messages over one binding, by another implementation
// than the one that ski/skicoap and ski/skihttp are: what tests a peer shares
// nothing with the peer under test.
type wire interface {
	skitest.Exchanger
	Close() error
}

// A binding is how SKI is carried, named by the scheme of a URL.
type binding struct {
	family string // of skitest.Config.Binding
	port   string // where the URL names none
	dial   func(target target, id party) wire
	listen func(target target, id party, serve serveFunc) (net.Addr, func() error, error)
}

var bindings = map[string]binding{
	"coaps":     {"coap", "5684", dialCoAP, listenCoAP},
	"coaps+tcp": {"coap", "5684", dialCoAPTCP, listenCoAPTCP},
	"https":     {"http", "443", dialHTTPS, listenHTTPS},
}

// target is where a URL points to.
type target struct {
	binding
	url    string
	scheme string
	host   string
	addr   string // HOST:PORT
	path   string
}

func parseTarget(raw string) (target, error) {
	u, err := url.Parse(raw)
	if err != nil {
		return target{}, err
	}
	b, ok := bindings[u.Scheme]
	switch {
	case !ok:
		return target{}, fmt.Errorf("%s: the scheme is coaps, coaps+tcp or https", raw)
	case u.Host == "":
		return target{}, fmt.Errorf("%s: the host is missing", raw)
	case u.User != nil || u.RawQuery != "" || u.Fragment != "":
		return target{}, fmt.Errorf("%s: only host, port and path have a meaning", raw)
	}
	t := target{binding: b, url: raw, scheme: u.Scheme, host: u.Hostname(), path: u.Path}
	if t.path == "" {
		t.path = "/ski"
	}
	port := u.Port()
	if port == "" {
		port = b.port
	}
	t.addr = net.JoinHostPort(t.host, port)
	return t, nil
}

// party is who one is on the channel, and whom one trusts.
type party struct {
	certificate *tls.Certificate // nil for none
	authorities *x509.CertPool
	psk         *ski.PSK // in place of both, with coaps
	serverName  string   // of the key server; "" is the URL's host
}

func (id party) name(t target) string {
	if id.serverName != "" {
		return id.serverName
	}
	return t.host
}

func (id party) certificates() []tls.Certificate {
	if id.certificate == nil {
		return nil
	}
	return []tls.Certificate{*id.certificate}
}

// clientTLS is for the bindings on TCP.
func (id party) clientTLS(t target) *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS12, Certificates: id.certificates(), RootCAs: id.authorities, ServerName: id.name(t),
	}
}

func (id party) serverTLS() *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS12, Certificates: id.certificates(), ClientCAs: id.authorities,
		ClientAuth: tls.RequireAndVerifyClientCert,
	}
}

// verifyServer verifies a key server's certificate chain. pion's own verdict
// would come back as an alert that says less.
func (id party) verifyServer(name string) func(raw [][]byte, _ [][]*x509.Certificate) error {
	return func(raw [][]byte, _ [][]*x509.Certificate) error {
		opts := x509.VerifyOptions{
			Roots: id.authorities, Intermediates: x509.NewCertPool(), DNSName: name,
			KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
		}
		var leaf *x509.Certificate
		for _, der := range raw {
			cert, err := x509.ParseCertificate(der)
			if err != nil {
				return err
			}
			if leaf == nil {
				leaf = cert
			} else {
				opts.Intermediates.AddCert(cert)
			}
		}
		if leaf == nil {
			return errors.New("the key server has no certificate")
		}
		_, err := leaf.Verify(opts)
		return err
	}
}

// serveFunc answers a question that came to a listener. A nil answer is none at
// all.
type serveFunc func(ctx context.Context, peer string, q *skitest.Question) *skitest.EdgeAnswer
