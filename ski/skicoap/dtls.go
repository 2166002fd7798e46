package skicoap

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"time"

	"github.com/pion/dtls/v3"
	"github.com/pion/dtls/v3/pkg/crypto/elliptic"
	"github.com/pion/logging"
)

// cipherSuites are forward secret and AEAD only (draft, REQ 4). AES-128-GCM
// costs least where the processor has AES; CCM_8 is the suite every CoAP
// client must have (RFC 7252, Section 9.1.3.3).
var cipherSuites = []dtls.CipherSuiteID{
	dtls.TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256,
	dtls.TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256,
	dtls.TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256,
	dtls.TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256,
	dtls.TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384,
	dtls.TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384,
	dtls.TLS_ECDHE_ECDSA_WITH_AES_128_CCM,
	dtls.TLS_ECDHE_ECDSA_WITH_AES_128_CCM_8,
}

// pskSuites are those for pre-shared keys, under the same rule (RFC 7905). pion
// has no other; OpenSSL and GnuTLS have it too.
var pskSuites = []dtls.CipherSuiteID{dtls.TLS_ECDHE_PSK_WITH_CHACHA20_POLY1305_SHA256}

// pskSuitesWithoutForwardSecrecy are AEAD, and those of constrained clients
// (RFC 7252, Section 9.1.3.1; RFC 7925, Section 4.2). See
// docs/design/0005-pre-shared-keys.md.
var pskSuitesWithoutForwardSecrecy = []dtls.CipherSuiteID{
	dtls.TLS_PSK_WITH_AES_128_GCM_SHA256,
	dtls.TLS_PSK_WITH_AES_128_CCM,
	dtls.TLS_PSK_WITH_AES_128_CCM_8,
}

const (
	// cidLen is the length of the connection IDs (RFC 9146) the server hands
	// out: unguessable, and constant so that a datagram can be routed by it.
	cidLen = 8
	// replayWindow is how many records a late one may be behind, wide enough
	// for MaxInFlight requests that a network reorders.
	replayWindow = 1024
	// flightInterval is how soon a handshake flight is sent again at first.
	flightInterval = 250 * time.Millisecond
)

func commonOptions(log *slog.Logger, limit mtu) []dtls.Option {
	return []dtls.Option{
		dtls.WithEllipticCurves(elliptic.X25519, elliptic.P256, elliptic.P384),
		dtls.WithExtendedMasterSecret(dtls.RequireExtendedMasterSecret),
		dtls.WithReplayProtectionWindow(replayWindow),
		dtls.WithFlightInterval(flightInterval),
		dtls.WithMTU(limit.handshake()),
		dtls.WithLoggerFactory(loggerFactory{log}),
	}
}

func serverOptions(cfg *ServerConfig, limit mtu, connectionID func() []byte, psk *pskLookup) []dtls.ServerOption {
	var opts []dtls.ServerOption
	for _, o := range commonOptions(cfg.Logger, limit) {
		opts = append(opts, o)
	}
	suites := slices.Clone(cipherSuites)
	if cfg.PSK != nil {
		suites = append(suites, pskSuites...)
		if cfg.PSKWithoutForwardSecrecy {
			suites = append(suites, pskSuitesWithoutForwardSecrecy...)
		}
		opts = append(opts, dtls.WithPSK(psk.key))
	}
	return append(opts,
		dtls.WithCertificates(*cfg.certificate()),
		dtls.WithCipherSuites(suites...),
		dtls.WithClientAuth(dtls.RequireAndVerifyClientCert),
		dtls.WithClientCAs(cfg.ClientCAs),
		dtls.WithConnectionIDGenerator(connectionID),
	)
}

func clientOptions(cfg *ClientConfig, v *verifier, limit mtu) []dtls.ClientOption {
	var opts []dtls.ClientOption
	for _, o := range commonOptions(cfg.Logger, limit) {
		opts = append(opts, o)
	}
	opts = append(opts,
		dtls.WithServerName(cfg.ServerName),
		dtls.WithConnectionIDGenerator(dtls.OnlySendCIDGenerator()),
	)
	if cfg.PSK != nil {
		return append(opts,
			dtls.WithCipherSuites(pskSuites...),
			dtls.WithPSKIdentityHint([]byte(cfg.PSK.Identity)), // which is the identity, in a client
			dtls.WithPSK(func([]byte) ([]byte, error) { return cfg.PSK.Key, nil }),
		)
	}
	return append(opts,
		dtls.WithCertificates(cfg.Certificate),
		dtls.WithCipherSuites(cipherSuites...),
		dtls.WithInsecureSkipVerify(true), // verifier does it
		dtls.WithVerifyPeerCertificate(v.verify),
	)
}

// verifier verifies the key server's certificate in pion's place, because what comes back of pion's own verdict is only the alert that
// the server answers it with: an operator could not tell an expired
// certificate from a wrong name.
type verifier struct {
	roots *x509.CertPool
	name  string
	err   error // the verdict; not nil before there is one
}

func newVerifier(cfg *ClientConfig) *verifier {
	return &verifier{roots: cfg.RootCAs, name: cfg.ServerName, err: errNotVerified}
}

var errNotVerified = errors.New("the key server's certificate was not verified")

func (v *verifier) verify(rawCerts [][]byte, _ [][]*x509.Certificate) error {
	opts := x509.VerifyOptions{
		Roots:         v.roots,
		Intermediates: x509.NewCertPool(),
		DNSName:       v.name,
		KeyUsages:     []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}, // not an edge's
	}
	var certs []*x509.Certificate
	for _, raw := range rawCerts {
		cert, err := x509.ParseCertificate(raw)
		if err != nil {
			v.err = err
			return err
		}
		if len(certs) > 0 {
			opts.Intermediates.AddCert(cert)
		}
		certs = append(certs, cert)
	}
	if len(certs) == 0 {
		return v.err
	}
	if _, v.err = certs[0].Verify(opts); v.err == nil {
		v.err = checkUsage(certs[0], x509.ExtKeyUsageServerAuth)
	}
	return v.err
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
		return errors.New("skicoap: the channel is mutually authenticated: a certificate with its key is needed")
	}
	return nil
}

// loggerFactory gives pion's messages to slog at debug level: what matters of
// them comes back as an error and is logged where it is handled.
type loggerFactory struct{ log *slog.Logger }

func (f loggerFactory) NewLogger(scope string) logging.LeveledLogger {
	return leveledLogger{f.log.With("scope", "pion/"+scope)}
}

type leveledLogger struct{ log *slog.Logger }

func (l leveledLogger) logf(format string, args ...any) {
	if l.log.Enabled(context.Background(), slog.LevelDebug) {
		l.log.Debug(fmt.Sprintf(format, args...))
	}
}

// pion's traces quote handshake messages; they are left out.
func (l leveledLogger) Trace(string)          {}
func (l leveledLogger) Tracef(string, ...any) {}

func (l leveledLogger) Debug(msg string)                  { l.log.Debug(msg) }
func (l leveledLogger) Debugf(format string, args ...any) { l.logf(format, args...) }
func (l leveledLogger) Info(msg string)                   { l.log.Debug(msg) }
func (l leveledLogger) Infof(format string, args ...any)  { l.logf(format, args...) }
func (l leveledLogger) Warn(msg string)                   { l.log.Debug(msg) }
func (l leveledLogger) Warnf(format string, args ...any)  { l.logf(format, args...) }
func (l leveledLogger) Error(msg string)                  { l.log.Debug(msg) }
func (l leveledLogger) Errorf(format string, args ...any) { l.logf(format, args...) }
