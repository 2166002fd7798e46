package split

import (
	"crypto"
	"crypto/rsa"
	"crypto/x509"
	"errors"
	"slices"

	"github.com/tlsski/tlsski/ski"
)

// peer is a client as its Certificate shows it. The zero value is one without
// a certificate.
type peer struct {
	// certificates are in DER, the client's own first; with raw, the first is
	// its SubjectPublicKeyInfo and there is no other.
	certificates [][]byte
	raw          bool

	// The rest is there once the peer has been verified.
	parsed []*x509.Certificate
	chains [][]*x509.Certificate
	key    crypto.PublicKey
}

func (p *peer) present() bool { return len(p.certificates) > 0 }

// verifyPeer checks that a client's certificate or raw public key is one that
// the site accepts. That the client has the private key is shown by the
// CertificateVerify.
func (c *Config) verifyPeer(p *peer) *Error {
	if p.raw {
		return c.verifyRawPublicKey(p)
	}
	if c.ClientCAs == nil {
		return fail(UnsupportedCertificate, "certificates are not accepted from clients")
	}
	for _, der := range p.certificates {
		cert, err := x509.ParseCertificate(der)
		if err != nil {
			return &Error{BadCertificate, "the client's certificate cannot be parsed", err}
		}
		if tooLarge(cert.PublicKey) {
			return fail(BadCertificate, "an RSA key of the client's chain has more than %d bits", maxClientRSABits)
		}
		p.parsed = append(p.parsed, cert)
	}
	intermediates := x509.NewCertPool()
	for _, cert := range p.parsed[1:] {
		intermediates.AddCert(cert)
	}
	chains, err := p.parsed[0].Verify(x509.VerifyOptions{
		Roots:         c.ClientCAs,
		Intermediates: intermediates,
		CurrentTime:   c.now(),
		KeyUsages:     []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	})
	if err != nil {
		return &Error{certificateAlert(err), "the client's certificate is not accepted", err}
	}
	if schemesOf(p.parsed[0].PublicKey) == nil {
		return fail(UnsupportedCertificate, "the client's key is of type %T", p.parsed[0].PublicKey)
	}
	p.chains, p.key = chains, p.parsed[0].PublicKey
	return nil
}

func (c *Config) verifyRawPublicKey(p *peer) *Error {
	key, err := x509.ParsePKIXPublicKey(p.certificates[0])
	if err != nil {
		return &Error{BadCertificate, "the client's raw public key cannot be parsed", err}
	}
	if schemesOf(key) == nil || tooLarge(key) {
		return fail(UnsupportedCertificate, "the client's key is of type %T, or too large", key)
	}
	id, err := ski.PublicKeyID(key)
	if err != nil || !slices.Contains(c.ClientKeys, id) {
		return fail(AccessDenied, "the client's raw public key is not among those that are accepted")
	}
	p.key = key
	return nil
}

// maxAuthorities bounds, in bytes, the names that a CertificateRequest has. More
// than that are left out: what a client shows is verified all the same.
const maxAuthorities = 8 << 10

// authorities returns the names of ClientCAs, by which a client that has several
// certificates chooses.
func (c *Config) authorities() [][]byte {
	if c.ClientCAs == nil {
		return nil
	}
	//lint:ignore SA1019 it is never the system's pool
	names, size := c.ClientCAs.Subjects(), 0
	for _, name := range names {
		size += 2 + len(name)
	}
	if size > maxAuthorities {
		return nil
	}
	return names
}

// maxClientRSABits bounds the RSA keys that a client has us verify with: the
// time for it grows with the square of their length. crypto/tls has the same
// bound.
const maxClientRSABits = 8192

func tooLarge(key crypto.PublicKey) bool {
	pub, ok := key.(*rsa.PublicKey)
	return ok && pub.N.BitLen() > maxClientRSABits
}

// certificateAlert returns the alert for what x509 says of a certificate (RFC
// 5246, Section 7.2.2).
func certificateAlert(err error) Alert {
	var unknown x509.UnknownAuthorityError
	var invalid x509.CertificateInvalidError
	switch {
	case errors.As(err, &unknown):
		return UnknownCA
	case errors.As(err, &invalid) && invalid.Reason == x509.Expired:
		return CertificateExpired
	case errors.As(err, &invalid) && invalid.Reason == x509.IncompatibleUsage:
		return UnsupportedCertificate
	}
	return BadCertificate
}
