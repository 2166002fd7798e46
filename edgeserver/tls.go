package edgeserver

import (
	"crypto/tls"
	"log/slog"
	"slices"

	"github.com/tlsski/tlsski/edgeserver/internal/split"
	"github.com/tlsski/tlsski/ski"
)

// The cipher suites for TLS 1.2. Those for TLS 1.3 cannot be chosen.
var (
	// forwardSecret are the suites with an ephemeral key exchange and AEAD
	// encryption, the only ones that HTTP/2 allows (RFC 9113, Section 9.2.2).
	forwardSecret = []uint16{
		tls.TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256,
		tls.TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384,
		tls.TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256,
		tls.TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256,
		tls.TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384,
		tls.TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256,
	}
	// staticRSA are the suites of Site.StaticRSA.
	staticRSA = []uint16{
		tls.TLS_RSA_WITH_AES_128_GCM_SHA256,
		tls.TLS_RSA_WITH_AES_256_GCM_SHA384,
	}
)

// newTLSConfig returns the configuration that a connection begins with. Once
// the ClientHello is there, that of its site takes over.
func newTLSConfig(table *sites, keys *keyLog) *tls.Config {
	base := &tls.Config{
		KeyLogWriter: keys.writer(),
		MinVersion:   tls.VersionTLS12,
		CipherSuites: forwardSecret,
	}
	if !slices.ContainsFunc(table.all, func(s *site) bool { return !s.draft }) {
		base.MaxVersion = tls.VersionTLS12
	}
	for _, s := range table.all {
		s.config, s.staticRSA = s.tlsConfigs(base)
		if s.Engine == EngineSplit {
			s.split = s.splitConfig(keys)
		}
		s.serve()
	}

	// A connection for which no site is found goes on with base. It has no
	// certificate, for which crypto/tls sends the alert unrecognized_name, as
	// RFC 6066, Section 3 has it; an error returned here would become
	// internal_error.
	base.SessionTicketsDisabled = true
	base.GetConfigForClient = func(hello *tls.ClientHelloInfo) (*tls.Config, error) {
		c := connFrom(hello.Context())
		bound := table.bind(c, hello.ServerName)
		if err := c.begin(); err != nil {
			return nil, err
		}
		if !bound {
			return nil, nil
		}
		c.site.awaitAnswer(hello.Context())
		return c.site.configFor(hello), nil
	}
	return base
}

// tlsConfigs returns the configuration of the site's connections, and the one
// for clients that support only static RSA.
func (s *site) tlsConfigs(base *tls.Config) (config, static *tls.Config) {
	// All configurations that GetConfigForClient returns have the ticket keys
	// of the configuration it was called on, unless their own are set: a ticket
	// of one site is to be noise to all others.
	config = base.Clone()
	config.GetCertificate = s.certificate
	config.NextProtos = s.nextProtos()
	s.useTickets(config)
	s.askClients(config)
	config.CurvePreferences = s.curvePreferences()
	if !s.has(ski.TLS12) || s.Engine == EngineSplit {
		config.MinVersion = tls.VersionTLS13
	}
	if s.draft || !s.has(ski.TLS13) {
		config.MaxVersion = tls.VersionTLS12
	}
	if !s.StaticRSA || config.MinVersion == tls.VersionTLS13 {
		return config, nil
	}
	static = config.Clone()
	static.MaxVersion = tls.VersionTLS12
	static.CipherSuites = staticRSA
	// HTTP/2 forbids these suites (RFC 9113, Section 9.2.2), and a client that
	// offers it with nothing better would be turned away.
	if s.TCP == "" {
		static.NextProtos = []string{"http/1.1"}
	}
	return config, static
}

// configFor returns the site's configuration for a client. It offers static
// RSA only to those that support nothing else.
func (s *site) configFor(hello *tls.ClientHelloInfo) *tls.Config {
	chosen := &connFrom(hello.Context()).chosen
	*chosen = nil
	if s.hasGroupOf(hello) {
		*chosen, _ = s.choose(hello)
	}
	if s.refusesHTTP(hello.SupportedProtos) {
		config := s.config.Clone()
		config.NextProtos = notHTTP
		return config
	}
	if s.staticRSA == nil || *chosen != nil {
		return s.config
	}
	return s.staticRSA
}

// hasGroupOf reports whether the client has a group for an ephemeral key in
// TLS 1.2, or may do without since there is TLS 1.3.
func (s *site) hasGroupOf(hello *tls.ClientHelloInfo) bool {
	if slices.Contains(hello.SupportedVersions, tls.VersionTLS13) && s.config.MaxVersion != tls.VersionTLS12 {
		return true
	}
	offered := s.groupCodes()
	return slices.ContainsFunc(hello.SupportedCurves, func(c tls.CurveID) bool { return slices.Contains(offered, c) })
}

// certificate is tls.Config.GetCertificate. Where the client supports none of
// the chains it gets the first, and crypto/tls the say on which alert that is.
func (s *site) certificate(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
	// With the site's configuration crypto/tls would hold the curve of a
	// certificate to the groups of the ephemeral key.
	if cert := connFrom(hello.Context()).chosen; cert != nil {
		return cert, nil
	}
	cert, err := s.choose(hello)
	if err != nil {
		cert = s.chains()[0].ForClientHello(hello)
	}
	return cert, nil
}

// choose returns the first of the chains that the client supports. The error
// is that of the last one.
func (s *site) choose(hello *tls.ClientHelloInfo) (cert *tls.Certificate, err error) {
	// The name has chosen the site already, and at the default site it is in
	// no certificate. The question may be asked of the base configuration, which
	// has versions that the site has not.
	anonymous := *hello
	anonymous.ServerName = ""
	if most := s.config.MaxVersion; most != 0 {
		anonymous.SupportedVersions = without(hello.SupportedVersions, func(v uint16) bool { return v > most })
	}
	for _, chain := range s.chains() {
		cert := chain.ForClientHello(hello)
		if err = anonymous.SupportsCertificate(cert); err == nil {
			return cert, nil
		}
	}
	return nil, err
}

// without returns a copy of list without some.
func without[T any](list []T, some func(T) bool) []T {
	return slices.DeleteFunc(slices.Clone(list), some)
}

// negotiated returns what client and edge have agreed on, for the log.
func negotiated(state tls.ConnectionState) []slog.Attr {
	return []slog.Attr{
		slog.String("version", tls.VersionName(state.Version)),
		slog.String("cipher_suite", split.SuiteName(state.CipherSuite)),
		slog.String("protocol", state.NegotiatedProtocol),
		slog.Bool("resumed", state.DidResume),
	}
}
