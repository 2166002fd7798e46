package ski

import (
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
)

// Certificate is a certificate chain whose private key a key server holds.
//
// The CurvePreferences of the tls.Config should be the groups that the key
// server's policy grants, with their hybrids: crypto/tls has P-521 by default,
// which ski-keyserver denies by default, so that a client that offers nothing
// else causes a request that is denied.
type Certificate struct {
	// Key is the private key, not bound to a connection.
	Key *Key
	// Leaf is the first certificate of the chain.
	Leaf *x509.Certificate

	chain     [][]byte
	draftOnly bool
}

// NewCertificate returns the Certificate for a chain of DER certificates, the
// server's own first, with the operations of its key done over t.
func NewCertificate(t Transport, chain ...[]byte) (*Certificate, error) {
	if len(chain) == 0 {
		return nil, errors.New("ski: a certificate chain has at least one certificate")
	}
	leaf, err := x509.ParseCertificate(chain[0])
	if err != nil {
		return nil, fmt.Errorf("ski: certificate: %w", err)
	}
	key, err := NewKey(t, leaf.PublicKey)
	if err != nil {
		return nil, err
	}
	return &Certificate{Key: key, Leaf: leaf, chain: chain}, nil
}

// LoadCertificate is NewCertificate for the CERTIFICATE blocks of a PEM file.
func LoadCertificate(t Transport, file string) (*Certificate, error) {
	data, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	var chain [][]byte
	for {
		var block *pem.Block
		if block, data = pem.Decode(data); block == nil {
			break
		}
		if block.Type == "CERTIFICATE" {
			chain = append(chain, block.Bytes)
		}
	}
	if len(chain) == 0 {
		return nil, fmt.Errorf("ski: %s has no PEM block of type CERTIFICATE", file)
	}
	c, err := NewCertificate(t, chain...)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	return c, nil
}

// DraftOnly returns a Certificate whose Key is DraftOnly. It is negotiated
// only with what the draft can express; the tls.Config's MaxVersion must be
// TLS 1.2.
func (c *Certificate) DraftOnly() *Certificate {
	d := *c
	d.Key, d.draftOnly = c.Key.DraftOnly(), true
	return &d
}

// ForClientHello returns the tls.Certificate for the connection that begins
// with h.
func (c *Certificate) ForClientHello(h *tls.ClientHelloInfo) *tls.Certificate {
	cert := &tls.Certificate{
		Certificate: c.chain,
		PrivateKey:  c.Key.ForClientHello(h).PrivateKey(),
		Leaf:        c.Leaf,
	}
	if _, ok := c.Leaf.PublicKey.(*rsa.PublicKey); ok && c.draftOnly {
		cert.SupportedSignatureAlgorithms = []tls.SignatureScheme{
			tls.PKCS1WithSHA256, tls.PKCS1WithSHA384, tls.PKCS1WithSHA512,
		}
	}
	return cert
}

// GetCertificate is ForClientHello in the form of tls.Config.GetCertificate.
func (c *Certificate) GetCertificate(h *tls.ClientHelloInfo) (*tls.Certificate, error) {
	return c.ForClientHello(h), nil
}
