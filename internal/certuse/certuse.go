// Package certuse says what a certificate lets its key be used for besides TLS.
package certuse

import (
	"crypto/x509"
	"strings"
)

// tlsUses are the extended key usages of TLS (RFC 5280, Section 4.2.1.12), with
// two that browsers once took for serverAuth.
var tlsUses = map[x509.ExtKeyUsage]bool{
	x509.ExtKeyUsageServerAuth:                 true,
	x509.ExtKeyUsageClientAuth:                 true,
	x509.ExtKeyUsageMicrosoftServerGatedCrypto: true,
	x509.ExtKeyUsageNetscapeServerGatedCrypto:  true,
}

// Beyond returns what makes a verifier take a signature with the certificate's
// key for something else than a TLS handshake's, in words that follow "its
// certificate ": "" if nothing does.
func Beyond(cert *x509.Certificate) string {
	var reasons []string
	if cert.BasicConstraintsValid && cert.IsCA {
		reasons = append(reasons, "is a certificate authority's")
	}
	if len(cert.ExtKeyUsage)+len(cert.UnknownExtKeyUsage) == 0 {
		reasons = append(reasons, "has no extended key usage, which stands for every use")
	}
	var others []string
	for _, use := range cert.ExtKeyUsage {
		if !tlsUses[use] {
			others = append(others, use.String())
		}
	}
	for _, use := range cert.UnknownExtKeyUsage {
		others = append(others, use.String())
	}
	if len(others) > 0 {
		reasons = append(reasons, "has the extended key usage "+strings.Join(others, ", "))
	}
	return strings.Join(reasons, ", ")
}
