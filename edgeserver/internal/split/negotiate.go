package split

import (
	"crypto/tls"
	"slices"
)

// agreement is what a ClientHello and a Config have come to.
type agreement struct {
	suite *suite
	chain *Chain
	// group and scheme are those of ECDHE. group is the first of groups, which
	// client and site have in common, until askForEphemeral takes another.
	group  tls.CurveID
	groups []tls.CurveID
	scheme tls.SignatureScheme

	alpn           string // empty: none
	rawPublicKey   bool   // the server's Certificate has its raw public key
	clientRaw      bool   // the client's has
	serverCertType *uint8 // what the ServerHello says of them; nil: nothing
	clientCertType *uint8
}

// checkVersion checks that the client's highest version is at least TLS 1.2, and
// that it may be (RFC 5246, Appendix E.1; RFC 8446, Section 4.2.1).
func checkVersion(h *ClientHello) *Error {
	fallback := h.offers(fallbackSCSV)
	switch {
	case h.Version < tls.VersionTLS12 && fallback:
		return fail(InappropriateFallback, "the client has fallen back to version %#04x", h.Version)
	case h.Version < tls.VersionTLS12:
		return fail(ProtocolVersion, "the client's version is %#04x", h.Version)
	case h.Versions != nil && !slices.Contains(h.Versions, tls.VersionTLS12):
		return fail(ProtocolVersion, "TLS 1.2 is not among the client's versions")
	}
	return nil
}

// negotiate finds what client and site have in common.
func (c *Config) negotiate(h *ClientHello) (*agreement, *Error) {
	if c.TLS13 && h.offers(fallbackSCSV) && !h.Supports13() {
		return nil, fail(InappropriateFallback, "the client has fallen back to TLS 1.2")
	}
	if !c.LegacyMasterSecret && !h.extendedMasterSecret {
		return nil, fail(HandshakeFailure, "the client has no extended master secret")
	}
	a := c.negotiateKey(h)
	if a == nil {
		reason := "no cipher suite, group and signature scheme in common"
		if h.Schemes == nil {
			reason += ", without signature_algorithms" // SHA-1 (RFC 5246, Section 7.4.1.4.1), which is not used
		}
		return nil, fail(HandshakeFailure, "%s", reason)
	}
	if err := c.negotiateALPN(h, a); err != nil {
		return nil, err
	}
	return a, c.negotiateCertTypes(h, a)
}

// negotiateKey returns the first chain, and for it the first suite, that the
// client supports; static RSA comes after all that have forward secrecy.
func (c *Config) negotiateKey(h *ClientHello) *agreement {
	groups, chains := c.negotiateGroups(h), c.chainsFor(h)
	for _, chain := range chains {
		if len(groups) == 0 || !chain.forClient(h) {
			continue
		}
		scheme := chain.negotiateScheme(h)
		if scheme == 0 {
			continue
		}
		if s := c.negotiateSuite(h, func(s *suite) bool { return !s.staticRSA && s.rsa == chain.isRSA() }); s != nil {
			return &agreement{suite: s, chain: chain, group: groups[0], groups: groups, scheme: scheme}
		}
	}
	for _, chain := range chains {
		if s := c.negotiateSuite(h, func(s *suite) bool { return s.staticRSA && chain.isRSA() }); s != nil {
			return &agreement{suite: s, chain: chain}
		}
	}
	return nil
}

// negotiateSuite returns the first of the suites that are fit. ChaCha20 goes
// before AES for a client that puts it first: it has no hardware for AES.
func (c *Config) negotiateSuite(h *ClientHello, fit func(*suite) bool) *suite {
	var first *suite
	for _, s := range suites {
		if c.enabled(s) && h.offers(s.id) && fit(s) {
			if first == nil {
				first = s
			}
			if !s.explicitNonce && prefersChaCha(h) {
				return s
			}
		}
	}
	return first
}

// prefersChaCha reports whether the first suite that both sides know is one with
// ChaCha20-Poly1305. Those of TLS 1.3 count too.
func prefersChaCha(h *ClientHello) bool {
	for _, id := range h.CipherSuites {
		switch id {
		case tls.TLS_CHACHA20_POLY1305_SHA256:
			return true
		case tls.TLS_AES_128_GCM_SHA256, tls.TLS_AES_256_GCM_SHA384:
			return false
		}
		if s := suiteByID(id); s != nil {
			return !s.explicitNonce
		}
	}
	return false
}

// negotiateGroups returns the groups for the ephemeral key in the site's order. A
// client that does not say which it supports gets P-256 (RFC 8422, Section 5.1).
func (c *Config) negotiateGroups(h *ClientHello) []tls.CurveID {
	var groups []tls.CurveID
	for _, g := range c.groups() {
		if slices.Contains(h.Groups, g) || h.Groups == nil && g == tls.CurveP256 {
			groups = append(groups, g)
		}
	}
	return groups
}

// negotiateScheme returns the first of the client's schemes that the chain's key
// can do, or 0.
func (c *Chain) negotiateScheme(h *ClientHello) tls.SignatureScheme {
	possible := c.schemes()
	for _, s := range h.Schemes {
		if slices.Contains(possible, s) {
			return s
		}
	}
	return 0
}

// negotiateALPN chooses the protocol (RFC 7301, Section 3.2).
func (c *Config) negotiateALPN(h *ClientHello, a *agreement) *Error {
	if len(h.ALPNProtocols) == 0 || len(c.NextProtos) == 0 {
		return nil
	}
	for _, p := range c.NextProtos {
		if slices.Contains(h.ALPNProtocols, p) && !(p == "h2" && a.suite.staticRSA) {
			a.alpn = p
			return nil
		}
	}
	return fail(NoApplicationProtocol, "none of the client's application protocols is served")
}

// negotiateCertTypes chooses between X.509 and raw public keys (RFC 7250,
// Section 4.2).
func (c *Config) negotiateCertTypes(h *ClientHello, a *agreement) *Error {
	choose := func(offered []uint8, served ...uint8) (*uint8, *Error) {
		for _, t := range offered {
			if slices.Contains(served, t) {
				return &t, nil
			}
		}
		return nil, fail(UnsupportedCertificate, "no certificate type in common")
	}
	var err *Error
	if len(h.serverCertTypes) > 0 {
		if a.serverCertType, err = choose(h.serverCertTypes, certTypeX509, certTypeRawPublicKey); err != nil {
			return err
		}
		a.rawPublicKey = *a.serverCertType == certTypeRawPublicKey
	}
	if len(h.clientCertTypes) > 0 && c.ClientAuth != NoClientCert {
		var served []uint8
		if c.ClientCAs != nil {
			served = append(served, certTypeX509)
		}
		if len(c.ClientKeys) > 0 {
			served = append(served, certTypeRawPublicKey)
		}
		if a.clientCertType, err = choose(h.clientCertTypes, served...); err != nil {
			return err
		}
		a.clientRaw = *a.clientCertType == certTypeRawPublicKey
	}
	return nil
}

// What max_fragment_length and record_size_limit mean, in bytes of plaintext.
const maxPlaintext = 1 << 14 // RFC 5246, Section 6.2.1

// limits are the longest plaintexts of records.
type limits struct{ in, out int }

// fragmentLength returns the max_fragment_length that is agreed on. Where
// record_size_limit is there too, that counts (RFC 8449, Section 5).
func (h *ClientHello) fragmentLength() uint8 {
	if h.recordSizeLimit != 0 {
		return 0
	}
	return h.maxFragmentLength
}

// limitsFor returns those that the extensions ask for.
func limitsFor(h *ClientHello) limits {
	switch {
	case h.recordSizeLimit != 0:
		return limits{in: maxPlaintext, out: min(int(h.recordSizeLimit), maxPlaintext)}
	case h.fragmentLength() != 0:
		n := 1 << (8 + h.fragmentLength()) // RFC 6066, Section 4: 2^9 to 2^12
		return limits{in: n, out: n}
	}
	return limits{in: maxPlaintext, out: maxPlaintext}
}
