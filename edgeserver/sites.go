package edgeserver

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/tlsski/tlsski/edgeserver/internal/split"
	"github.com/tlsski/tlsski/ski"
)

// site is a Site that is ready to serve.
type site struct {
	Site
	label   string       // in the log
	asking  asking       // for what needs its private keys
	draft   bool         // the key server knows no extensions of the draft
	java    bool         // it is the one in Java
	handler http.Handler // nil for a tcp site
	relay   *relay       // of a tcp site
	content io.Closer    // what one of them has open
	tickets *tickets
	access  *accessLog
	web     *web

	clientCAs *x509.CertPool // of ClientCertificates
	forward   *forwarding

	config    *tls.Config   // for its connections
	staticRSA *tls.Config   // for those of clients without forward secrecy; nil where not offered
	split     *split.Config // nil without that engine; but for the Chains

	keyServer KeyServer
	slots     []*certSlot
	renewing  sync.Mutex // of changes of slots, which the holder of Server.reloading makes
	served    atomic.Pointer[served]
}

// sites is the table of all sites. It is not changed once made, but for what is
// served of the sites' slots.
type sites struct {
	all       []*site
	byAddress map[netip.AddrPort]*names
	balancers networks // whose word on clients' addresses is taken
}

// newSites opens everything that the sites of cfg consist of. transport returns
// what the keys at a key server are asked over. What there was before may be nil.
func newSites(cfg *Config, transport func(name string) ski.Transport, before *sites, now time.Time, log *slog.Logger) (*sites, error) {
	table := new(sites)
	trusted, err := cfg.trustedProxies()
	if err != nil {
		return nil, err
	}
	if trusted.hasEveryone() {
		log.Warn("trusted_proxies has everyone in it: any client can say to the origin who it is")
	}
	if table.balancers, err = cfg.balancers(); err != nil {
		return nil, err
	}
	if table.balancers.hasEveryone() {
		log.Warn("proxy_protocol.from has everyone in it: any client can say who it is")
	}
	known := map[string]*answering{}
	for i := range cfg.Sites {
		name := cfg.Sites[i].KeyServer
		if known[name] == nil {
			known[name] = new(answering)
		}
		s, err := newSite(cfg, i, asking{transport: transport(name), timeout: cfg.keyServer(name).Timeout, known: known[name]}, trusted, before, now, log)
		if err != nil {
			table.close()
			return nil, err
		}
		table.all = append(table.all, s)
	}
	table.byAddress = byAddress(table.all)
	return table, nil
}

func newSite(cfg *Config, i int, a asking, trusted networks, before *sites, now time.Time, log *slog.Logger) (*site, error) {
	keyServer := cfg.keyServer(cfg.Sites[i].KeyServer)
	s := &site{Site: cfg.Sites[i], label: cfg.label(i), asking: a, keyServer: keyServer,
		draft: keyServer.DraftOnly, java: keyServer.JavaNames != "", tickets: new(tickets)}
	s.asking.notFound = s.kick
	log = log.With("site", s.label)

	if err := s.loadChains(cfg, i, before, now, log); err != nil {
		return nil, err
	}
	if s.StaticRSA {
		log.Warn("static_rsa offers cipher suites without forward secrecy")
		if s.java {
			log.Warn("unsafe_java_static_rsa lets clients have the key server decrypt recorded connections")
		}
	}
	if s.LegacyMasterSecret {
		log.Warn("legacy_master_secret accepts clients without extended master secret")
	}
	if clients := s.ClientCertificates; clients.asked() {
		var err error
		if s.clientCAs, err = loadClientCAs(clients.CA, log); err != nil {
			return nil, cfg.errorAt(fmt.Sprintf("sites[%d].client_certificates.ca", i), err)
		}
	}
	s.forward = &forwarding{trusted: trusted, certs: s.ClientCertificates.asked(), chain: s.ClientCertificates.ForwardChain}
	if _, ok := a.transport.(ski.TicketSource); s.Tickets == TicketsShared && !ok {
		return nil, cfg.errorAt(fmt.Sprintf("sites[%d].tickets", i), errNoTicketSource)
	}
	if err := s.open(log); err != nil {
		field := "static"
		if s.Proxy != "" {
			field = "proxy"
		}
		return nil, cfg.errorAt(fmt.Sprintf("sites[%d].%s", i, field), err)
	}
	return s, nil
}

// open makes the handler or the relay.
func (s *site) open(log *slog.Logger) error {
	if s.TCP != "" {
		s.relay = newRelay(&s.Site, log)
		s.content = s.relay
		return nil
	}
	if s.Static != "" {
		folder, err := openFolder(s.Static)
		if err != nil {
			return err
		}
		s.handler, s.content = folder, folder
		return nil
	}
	origin, err := parseOrigin(s.Proxy)
	if err != nil {
		return err
	}
	proxy := newProxy(origin, s.OriginTimeout, s.forward, log)
	s.handler, s.content = proxy, proxy
	return nil
}

func (t *sites) close() {
	for _, s := range t.all {
		s.content.Close()
		s.access.Close()
	}
}

// bind makes c a connection of the site for the server name of its ClientHello.
// It returns false where there is none.
func (t *sites) bind(c *conn, serverName string) bool {
	c.serverName = serverName
	// The key server takes no such name, and the log should not.
	if len(serverName) > maxName || strings.ContainsFunc(serverName, func(r rune) bool { return r <= ' ' || r > '~' }) {
		c.serverName, c.unknown = "", true
		return false
	}
	c.site = t.at(c.LocalAddr()).find(serverName)
	c.unknown = c.site == nil
	return !c.unknown
}

// canonicalName returns a DNS name in the form in which names are compared (RFC
// 4343). Only ASCII has capitals there: strings.ToLower makes a k of the Kelvin sign.
func canonicalName(name string) string {
	return strings.Map(func(r rune) rune {
		if 'A' <= r && r <= 'Z' {
			return r - 'A' + 'a'
		}
		return r
	}, strings.TrimSuffix(name, "."))
}
