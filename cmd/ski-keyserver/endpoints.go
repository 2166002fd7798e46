package main

import (
	"context"
	"crypto/x509"
	"errors"
	"log/slog"
	"net/netip"
	"sync"

	"github.com/tlsski/tlsski/keyserver"
	"github.com/tlsski/tlsski/ski/skicoap"
	"github.com/tlsski/tlsski/ski/skihttp"
)

// endpoint is the key server over one binding.
type endpoint interface {
	keyserver.Sessions
	Addr() netip.AddrPort
	Serve() error
	Shutdown(ctx context.Context) error
	Close() error
}

// endpoints are all that a key server has: that over DTLS first, that over HTTPS,
// and last that of CoAP over TLS.
type endpoints []endpoint

// listen binds the key server to an address of each binding. An empty one
// leaves the binding out. Peers have been authenticated from known addresses.
func (p *parts) listen(coap, coapTCP, https string, known []netip.Addr, server *keyserver.Server, log *slog.Logger) (all endpoints, err error) {
	clientCAs := x509.NewCertPool()
	for _, ca := range p.clientCAs {
		clientCAs.AddCert(ca)
	}
	// Beyond its own limit the key server answers, and audits, that it is
	// overloaded; the bindings only refuse what is far beyond.
	inFlight := 2 * int(p.cfg.MaxInFlight)
	add := func(e endpoint, failed error) {
		if failed == nil {
			all = append(all, e)
		}
		err = errors.Join(err, failed)
	}
	cfg := skicoap.ServerConfig{
		Handler: server, Admit: server.Admit, Path: p.cfg.Path, Certificate: p.certificate, GetCertificate: p.channel.certificate, ClientCAs: clientCAs,
		MaxInFlight: inFlight, MTU: p.cfg.MTU, Logger: log, KnownAddresses: known,
	}
	if p.psks != nil {
		cfg.PSK, cfg.PSKWithoutForwardSecrecy = p.psks.Key, p.cfg.PSKWithoutForwardSecrecy
	}
	add(skicoap.Listen(coap, cfg))
	if https != "" {
		add(skihttp.Listen(https, skihttp.ServerConfig{
			Handler: server, Admit: server.Admit, Path: p.cfg.Path, Certificate: p.certificate, GetCertificate: p.channel.certificate, ClientCAs: clientCAs,
			MaxInFlight: inFlight, Logger: log.With("binding", "https"),
		}))
	}
	if coapTCP != "" {
		cfg.Logger = log.With("binding", "coaps+tcp")
		add(skicoap.ListenTCP(coapTCP, cfg))
	}
	if err != nil {
		return nil, errors.Join(err, all.Close())
	}
	var sessions []keyserver.Sessions
	for _, e := range all {
		sessions = append(sessions, e)
	}
	server.SetSessions(sessions...)
	return all, nil
}

// knownAddresses returns from where peers have been authenticated.
func (all endpoints) knownAddresses() []netip.Addr { return all[0].(*skicoap.Server).KnownAddresses() }

// Serve answers over all bindings. It returns when one of them has ended.
func (all endpoints) Serve() error {
	ended := make(chan error, len(all))
	for _, e := range all {
		go func() { ended <- e.Serve() }()
	}
	return <-ended
}

// each does the same with all at once.
func (all endpoints) each(f func(endpoint) error) error {
	errs := make([]error, len(all))
	var wg sync.WaitGroup
	for i, e := range all {
		wg.Go(func() { errs[i] = f(e) })
	}
	wg.Wait()
	return errors.Join(errs...)
}

// Shutdown stops all, with the requests in flight answered until ctx ends.
func (all endpoints) Shutdown(ctx context.Context) error {
	return all.each(func(e endpoint) error { return e.Shutdown(ctx) })
}

// Close stops all at once.
func (all endpoints) Close() error { return all.each(endpoint.Close) }
