package edgeserver

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/tlsski/tlsski/ski"
)

// loadChain reads the certificate chain of a site. It refuses a file with a
// private key, of whatever kind: that the edge has none is the point of it.
func loadChain(t ski.Transport, file string, names []string) (*ski.Certificate, error) {
	data, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	if bytes.Contains(data, []byte("PRIVATE KEY-----")) {
		return nil, fmt.Errorf("%s contains a private key: an edge server must not have it; "+
			"leave it to the key server and keep only the certificates here", file)
	}
	var chain [][]byte
	for block, rest := pem.Decode(data); block != nil; block, rest = pem.Decode(rest) {
		if block.Type != "CERTIFICATE" {
			return nil, fmt.Errorf("%s has a PEM block of type %s among the certificates", file, block.Type)
		}
		if _, err := x509.ParseCertificate(block.Bytes); err != nil {
			return nil, fmt.Errorf("%s: %w", file, err)
		}
		chain = append(chain, block.Bytes)
	}
	if len(chain) == 0 {
		return nil, fmt.Errorf("%s has no PEM block of type CERTIFICATE", file)
	}
	if bytes.Count(data, []byte("-----BEGIN ")) != len(chain) { // pem.Decode leaves out what it cannot read.
		return nil, fmt.Errorf("%s has a PEM block that is not whole", file)
	}
	cert, err := ski.NewCertificate(t, chain...)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	for _, name := range names {
		if !covers(cert.Leaf, name) {
			for _, der := range chain[1:] {
				if other, err := x509.ParseCertificate(der); err == nil && covers(other, name) {
					return nil, fmt.Errorf("%s does not begin with the server's own certificate, which covers '%s'", file, name)
				}
			}
			return nil, fmt.Errorf("%s, whose names are '%s', does not cover '%s'",
				file, strings.Join(cert.Leaf.DNSNames, "', '"), name)
		}
	}
	return cert, nil
}

// covers reports whether the certificate is good for a site's name; for a
// wildcard, whether it has the same wildcard.
func covers(cert *x509.Certificate, name string) bool {
	if !strings.HasPrefix(name, "*.") {
		return cert.VerifyHostname(name) == nil
	}
	for _, pattern := range cert.DNSNames {
		if canonicalName(pattern) == canonicalName(name) {
			return true
		}
	}
	return false
}

// PreSharedKey reads the file PSK. It refuses one that group or others can read.
func (k KeyServer) PreSharedKey() (*ski.PSK, error) {
	if err := checkPrivate(k.PSK); err != nil {
		return nil, err
	}
	data, err := os.ReadFile(k.PSK)
	if err != nil {
		return nil, err
	}
	defer clear(data)
	all, err := ski.ParsePSKs(k.PSK, data)
	if err != nil {
		return nil, err
	}
	if len(all) > 1 {
		return nil, fmt.Errorf("%s: an edge has one pre-shared key, not %d", k.PSK, len(all))
	}
	return &all[0], nil
}

func checkPrivate(file string) error {
	info, err := os.Stat(file)
	if err != nil {
		return err
	}
	if mode := info.Mode().Perm(); mode&0o077 != 0 {
		return fmt.Errorf("%s can be used by others than its owner (mode %04o): chmod 600 it", file, mode)
	}
	return nil
}

// Credentials reads the edge's own identity on the SKI channel and the
// authorities it trusts there. It refuses a private key that group or others
// can read, and a certificate that no key server would accept now.
func (k KeyServer) Credentials() (tls.Certificate, *x509.CertPool, error) {
	if err := checkPrivate(k.Key); err != nil {
		return tls.Certificate{}, nil, err
	}
	cert, err := tls.LoadX509KeyPair(k.Certificate, k.Key)
	if err != nil {
		return tls.Certificate{}, nil, fmt.Errorf("%s and %s: %w", k.Certificate, k.Key, err)
	}
	if err := checkIdentity(cert.Leaf, time.Now()); err != nil {
		return tls.Certificate{}, nil, fmt.Errorf("%s: %w", k.Certificate, err)
	}
	ca, err := os.ReadFile(k.CA)
	if err != nil {
		return tls.Certificate{}, nil, err
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(ca) {
		return tls.Certificate{}, nil, errors.New(k.CA + " has no certificate")
	}
	return cert, roots, nil
}

// checkIdentity finds what would fail in every handshake with a key server.
func checkIdentity(leaf *x509.Certificate, now time.Time) error {
	usages := leaf.ExtKeyUsage
	switch {
	case now.After(leaf.NotAfter):
		return fmt.Errorf("the certificate expired at %s", leaf.NotAfter.Format(time.RFC3339))
	case now.Before(leaf.NotBefore):
		return fmt.Errorf("the certificate is not valid before %s", leaf.NotBefore.Format(time.RFC3339))
	case !slices.Contains(usages, x509.ExtKeyUsageClientAuth) && !slices.Contains(usages, x509.ExtKeyUsageAny):
		return errors.New("the certificate does not say that it is for a client (extended key usage clientAuth), so key servers refuse it")
	}
	return nil
}
