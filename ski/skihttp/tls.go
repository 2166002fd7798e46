package skihttp

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"net"
	"slices"

	"github.com/tlsski/tlsski/ski/internal/turn"
)

// cipherSuites are those of TLS 1.2 that RFC 7540, Section 9.2.2 leaves:
// ephemeral key exchange and AEAD. TLS 1.3 has no others.
var cipherSuites = []uint16{
	tls.TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256,
	tls.TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256,
	tls.TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256,
	tls.TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256,
	tls.TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384,
	tls.TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384,
}

// alpn are the protocols, the better first (RFC 7301).
var alpn = []string{"h2", "http/1.1"}

func serverTLS(cfg *ServerConfig) *tls.Config {
	return &tls.Config{
		GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return cfg.certificate(), nil },
		ClientAuth:     tls.RequireAndVerifyClientCert,
		ClientCAs:      cfg.ClientCAs,
		MinVersion:     tls.VersionTLS12,
		CipherSuites:   cipherSuites,
		NextProtos:     alpn,
		// Connections last; a ticket's key would be one more secret.
		SessionTicketsDisabled: true,
		GetConfigForClient:     turn.Heard(func(c net.Conn) *turn.Conn { return c.(*conn).turn }),
	}
}

func clientTLS(cfg *ClientConfig) *tls.Config {
	return &tls.Config{
		// Even if it does not come from an authority that the server names: the
		// server then says what is wrong with it.
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &cfg.Certificate, nil },
		RootCAs:              cfg.RootCAs,
		ServerName:           cfg.ServerName,
		MinVersion:           tls.VersionTLS12,
		CipherSuites:         cipherSuites,
		NextProtos:           alpn,
		VerifyConnection: func(state tls.ConnectionState) error {
			if err := checkUsage(state.PeerCertificates[0], x509.ExtKeyUsageServerAuth); err != nil {
				return &untrustedError{err}
			}
			return nil
		},
	}
}

// checkUsage refuses a certificate that does not say what it is for: crypto/x509
// takes such a one for good for everything, and so an edge's for a key
// server's.
func checkUsage(cert *x509.Certificate, want x509.ExtKeyUsage) error {
	if slices.Contains(cert.ExtKeyUsage, want) || slices.Contains(cert.ExtKeyUsage, x509.ExtKeyUsageAny) {
		return nil
	}
	return errors.New("x509: the certificate lacks the extended key usage of its role " +
		"(serverAuth for a key server, clientAuth for an edge)")
}

// checkIdentity finds what would otherwise only fail in every handshake.
func checkIdentity(cert tls.Certificate) error {
	if len(cert.Certificate) == 0 || cert.PrivateKey == nil {
		return errors.New("skihttp: the channel is mutually authenticated: a certificate with its key is needed")
	}
	return nil
}
