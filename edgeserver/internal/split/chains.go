package split

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"slices"
)

// SignedBy returns the algorithms of the signatures in a chain of certificates
// in DER, without that of a root, which signs itself and is not verified.
func SignedBy(chain [][]byte) ([]x509.SignatureAlgorithm, error) {
	var all []x509.SignatureAlgorithm
	for _, der := range chain {
		cert, err := x509.ParseCertificate(der)
		if err != nil {
			return nil, err
		}
		if !bytes.Equal(cert.RawSubject, cert.RawIssuer) {
			all = append(all, cert.SignatureAlgorithm)
		}
	}
	return all, nil
}

// certificateSchemes are what clients call the algorithms (RFC 5246, Section
// 7.4.1.4.1; RFC 8446, Section 4.2.3). Those that are not here no client should
// take.
var certificateSchemes = map[x509.SignatureAlgorithm][]tls.SignatureScheme{
	x509.SHA1WithRSA:      {tls.PKCS1WithSHA1},
	x509.SHA256WithRSA:    {tls.PKCS1WithSHA256},
	x509.SHA384WithRSA:    {tls.PKCS1WithSHA384},
	x509.SHA512WithRSA:    {tls.PKCS1WithSHA512},
	x509.SHA256WithRSAPSS: {tls.PSSWithSHA256, pssPSSWithSHA256},
	x509.SHA384WithRSAPSS: {tls.PSSWithSHA384, pssPSSWithSHA384},
	x509.SHA512WithRSAPSS: {tls.PSSWithSHA512, pssPSSWithSHA512},
	x509.ECDSAWithSHA1:    {tls.ECDSAWithSHA1},
	x509.ECDSAWithSHA256:  {tls.ECDSAWithP256AndSHA256},
	x509.ECDSAWithSHA384:  {tls.ECDSAWithP384AndSHA384},
	x509.ECDSAWithSHA512:  {tls.ECDSAWithP521AndSHA512},
	x509.PureEd25519:      {tls.Ed25519},
}

// rsa_pss_pss_*, for keys that can do PSS alone.
const (
	pssPSSWithSHA256 tls.SignatureScheme = 0x0809
	pssPSSWithSHA384 tls.SignatureScheme = 0x080a
	pssPSSWithSHA512 tls.SignatureScheme = 0x080b
)

// verifiable reports whether the client names the algorithms of all the
// signatures in the chain (RFC 5246, Section 7.4.2), as far as it names any.
func (c *Chain) verifiable(h *ClientHello) bool {
	named := h.CertSchemes
	if named == nil {
		named = h.Schemes
	}
	for _, algorithm := range c.SignedBy {
		known := func(s tls.SignatureScheme) bool { return slices.Contains(certificateSchemes[algorithm], s) }
		if named != nil && !slices.ContainsFunc(named, known) {
			return false
		}
	}
	return true
}

// chainsFor returns the chains in the order in which they are tried for a
// client: those that it says it can verify first. The others are better than
// none: the client may have the authority's certificate already, or name less
// than it can do (RFC 8446, Section 4.4.2.2, of TLS 1.3).
func (c *Config) chainsFor(h *ClientHello) []*Chain {
	if len(c.Chains) < 2 {
		return c.Chains
	}
	var first, last []*Chain
	for _, chain := range c.Chains {
		if chain.verifiable(h) {
			first = append(first, chain)
		} else {
			last = append(last, chain)
		}
	}
	return append(first, last...)
}
