package edgeserver

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"strings"
	"time"

	"github.com/tlsski/tlsski/edgeserver/internal/split"
)

// The values of ClientCertificates.Mode.
const (
	// ClientCertificatesOff asks for none.
	ClientCertificatesOff = "off"
	// ClientCertificatesOptional asks, and serves clients without one too. One
	// that a client shows must be valid.
	ClientCertificatesOptional = "optional"
	// ClientCertificatesRequired serves only clients with a valid one.
	ClientCertificatesRequired = "required"
)

// ClientCertificates says whether a site asks its clients for certificates. It
// is about TLS, whatever is spoken in it; the origin of a site with Proxy gets
// them in Client-Cert (RFC 9440).
type ClientCertificates struct {
	// Mode is off, optional or required. Default: off.
	Mode string `yaml:"mode"`
	// CA is the PEM file of the authorities that sign the clients' certificates,
	// which must not say that they are for servers alone.
	CA string `yaml:"ca"`
	// ForwardChain has the origin get what is between the client's certificate
	// and the authority too, in Client-Cert-Chain. Only with Proxy.
	ForwardChain bool `yaml:"forward_chain"`
}

// asked reports whether clients are asked for a certificate.
func (c *ClientCertificates) asked() bool {
	return c.Mode == ClientCertificatesOptional || c.Mode == ClientCertificatesRequired
}

func (c *Config) validateClientCertificates(field string, s *Site) error {
	field += ".client_certificates"
	switch clients := &s.ClientCertificates; {
	case clients.Mode == "" && (clients.CA != "" || clients.ForwardChain):
		return c.errorf(field+".mode", "is missing: %s or %s", ClientCertificatesOptional, ClientCertificatesRequired)
	case clients.Mode != "" && clients.Mode != ClientCertificatesOff && !clients.asked():
		return c.errorf(field+".mode", "'%s' is not %s, %s or %s", clients.Mode,
			ClientCertificatesOff, ClientCertificatesOptional, ClientCertificatesRequired)
	case clients.asked() && clients.CA == "":
		return c.errorf(field+".ca", "is missing: it has the authorities that sign the clients' certificates")
	case clients.ForwardChain && s.Proxy == "":
		return c.errorf(field+".forward_chain", "is for sites with proxy")
	}
	return nil
}

// loadClientCAs reads a file of authorities.
func loadClientCAs(file string, log *slog.Logger) (*x509.CertPool, error) {
	data, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	if bytes.Contains(data, []byte("PRIVATE KEY-----")) {
		return nil, fmt.Errorf("%s contains a private key: that of an authority must not be here", file)
	}
	pool, found, now := x509.NewCertPool(), false, time.Now()
	for block, rest := pem.Decode(data); block != nil; block, rest = pem.Decode(rest) {
		if block.Type != "CERTIFICATE" {
			return nil, fmt.Errorf("%s has a PEM block of type %s among the certificates", file, block.Type)
		}
		cert, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", file, err)
		}
		if !cert.IsCA && cert.Version == 3 {
			return nil, fmt.Errorf("%s: the certificate of '%s' is not that of an authority", file, cert.Subject)
		}
		if now.After(cert.NotAfter) || now.Before(cert.NotBefore) {
			log.Warn("the certificate of an authority of clients is not valid now: it lets nobody in", "file", file,
				"subject", cert.Subject.String(), "not_before", cert.NotBefore, "not_after", cert.NotAfter)
		}
		pool.AddCert(cert)
		found = true
	}
	if !found {
		return nil, fmt.Errorf("%s has no PEM block of type CERTIFICATE", file)
	}
	return pool, nil
}

// The bounds on a client's chain, which goes into tickets and header fields.
// Three certificates with RSA keys of 4096 bits have some 6 KiB.
const (
	maxClientChain      = 10       // certificates
	maxClientChainBytes = 16 << 10 // in DER
)

var errClientChain = fmt.Errorf("the client's chain has more than %d certificates or %d bytes", maxClientChain, maxClientChainBytes)

// askClients has the connections of crypto/tls ask for certificates. At a
// resumption crypto/tls does a full handshake where the policy now wants another
// one than the session has, where a certificate of the chain has expired, or
// where the chain leads to none of the authorities any more.
func (s *site) askClients(c *tls.Config) {
	switch s.ClientCertificates.Mode {
	case ClientCertificatesOptional:
		c.ClientAuth = tls.VerifyClientCertIfGiven
	case ClientCertificatesRequired:
		c.ClientAuth = tls.RequireAndVerifyClientCert
	default:
		return
	}
	c.ClientCAs = s.clientCAs
	c.VerifyConnection = func(state tls.ConnectionState) error {
		size := 0
		for _, cert := range state.PeerCertificates {
			size += len(cert.Raw)
		}
		if len(state.PeerCertificates) > maxClientChain || size > maxClientChainBytes {
			return errClientChain
		}
		return nil
	}
}

// askClientsOfSplit is askClients for the split engine, which has the same
// bounds.
func (s *site) askClientsOfSplit(c *split.Config) {
	switch s.ClientCertificates.Mode {
	case ClientCertificatesOptional:
		c.ClientAuth = split.VerifyClientCertIfGiven
	case ClientCertificatesRequired:
		c.ClientAuth = split.RequireClientCert
	default:
		return
	}
	c.ClientCAs = s.clientCAs
}

// clientChain returns the client's certificate and what leads from it to an
// authority, the authority at its end, as it has been verified. It is nil where
// the client has shown none or was not asked. It is there once the handshake is
// done.
func (c *conn) clientChain() []*x509.Certificate {
	if len(c.state.VerifiedChains) == 0 {
		return nil
	}
	return c.state.VerifiedChains[0]
}

// clientCertificate returns who the client has shown to be: the subject, and the
// SHA-256 hash of the certificate in hexadecimal. Both are empty where it has
// shown no certificate.
func (c *conn) clientCertificate() (subject, fingerprint string) {
	chain := c.clientChain()
	if chain == nil {
		return "", ""
	}
	hash := sha256.Sum256(chain[0].Raw)
	return chain[0].Subject.String(), hex.EncodeToString(hash[:])
}

// refusesCertificate reports whether the handshake has ended with err for what the
// site wants of the client's certificate.
func (c *conn) refusesCertificate(err error) bool {
	return err != nil && c.site != nil && c.site.ClientCertificates.asked() && refusedCertificate(err) != ""
}

// The bounds of linger.
const (
	lingerTime  = 2 * time.Second
	lingerBytes = 64 << 10
)

// linger waits for the end of what the client sends. In TLS 1.3 a client has sent
// a request before it learns that its certificate is not accepted; closing a
// connection with something unread resets it, and the alert may be lost.
func linger(ctx context.Context, c net.Conn) {
	half, ok := c.(interface{ CloseWrite() error })
	if !ok || half.CloseWrite() != nil {
		return
	}
	defer context.AfterFunc(ctx, func() { c.Close() })()
	c.SetReadDeadline(time.Now().Add(lingerTime))
	io.CopyN(io.Discard, c, lingerBytes)
}

// refusedCertificate returns what was wrong with the client's certificate, or
// nothing where a handshake has ended with err for another reason.
func refusedCertificate(err error) string {
	var unknown x509.UnknownAuthorityError
	var invalid x509.CertificateInvalidError
	var refused *split.Error
	switch text := fmt.Sprint(err); {
	case errors.Is(err, split.ErrNoCertificate), strings.HasSuffix(text, "client didn't provide a certificate"): // in crypto/tls
		return "no certificate"
	case errors.As(err, &unknown):
		return "unknown authority"
	case errors.As(err, &invalid) && invalid.Reason == x509.Expired:
		return "expired or not yet valid"
	case errors.As(err, &invalid) && invalid.Reason == x509.IncompatibleUsage:
		return "not for clients"
	case errors.Is(err, errClientChain), errors.As(err, &invalid), errors.As(err, new(*tls.CertificateVerificationError)),
		errors.As(err, &refused) && (refused.Alert == split.BadCertificate || refused.Alert == split.UnsupportedCertificate),
		strings.Contains(text, "client certificate"), strings.Contains(text, "client's CertificateVerify"):
		return "not valid"
	}
	return ""
}
