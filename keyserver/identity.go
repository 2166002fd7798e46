package keyserver

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"slices"
	"time"
)

// Identity reads the key server's own certificate with its key, and the
// authorities of the edges' certificates. It refuses what no edge would accept
// now, so that it is found at the start.
func (c *Config) Identity(now time.Time) (own tls.Certificate, clientCAs []*x509.Certificate, err error) {
	if own, err = c.OwnCertificate(now); err != nil {
		return tls.Certificate{}, nil, err
	}
	if clientCAs, err = loadAuthorities(c.ClientCA, now); err != nil {
		return tls.Certificate{}, nil, err
	}
	return own, clientCAs, nil
}

// OwnCertificate reads the key server's own certificate with its key, as Identity
// does.
func (c *Config) OwnCertificate(now time.Time) (tls.Certificate, error) {
	chain, err := readTrustedFile(c.Certificate)
	if err != nil {
		return tls.Certificate{}, err
	}
	key, err := readPrivateFile(c.Key)
	if err != nil {
		return tls.Certificate{}, err
	}
	defer clear(key)
	own, err := tls.X509KeyPair(chain, key)
	if err != nil {
		return tls.Certificate{}, fmt.Errorf("%s with %s: %w", c.Certificate, c.Key, err)
	}
	if err := checkTime(own.Leaf, now); err != nil {
		return tls.Certificate{}, fmt.Errorf("%s: %w", c.Certificate, err)
	}
	usages := own.Leaf.ExtKeyUsage
	if !slices.Contains(usages, x509.ExtKeyUsageServerAuth) && !slices.Contains(usages, x509.ExtKeyUsageAny) {
		return tls.Certificate{}, fmt.Errorf("%s: the certificate does not say that it is for a server (extended key usage serverAuth), so edges refuse it", c.Certificate)
	}
	return own, nil
}

func loadAuthorities(file string, now time.Time) ([]*x509.Certificate, error) {
	data, err := readTrustedFile(file)
	if err != nil {
		return nil, err
	}
	var all []*x509.Certificate
	unusable := errors.New("it has no certificate in PEM form")
	usable := false
	for {
		var block *pem.Block
		if block, data = pem.Decode(data); block == nil {
			break
		}
		if block.Type != "CERTIFICATE" {
			continue
		}
		cert, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", file, err)
		}
		if !cert.IsCA {
			return nil, fmt.Errorf("%s: the certificate of %q is not an authority's", file, cert.Subject)
		}
		all = append(all, cert)
		// An old authority may stay beside its successor.
		if err := checkTime(cert, now); err != nil {
			unusable = err
		} else {
			usable = true
		}
	}
	if !usable {
		return nil, fmt.Errorf("%s: %w", file, unusable)
	}
	return all, nil
}

func checkTime(cert *x509.Certificate, now time.Time) error {
	switch {
	case now.After(cert.NotAfter):
		return fmt.Errorf("the certificate of %q expired at %s", cert.Subject, cert.NotAfter.Format(time.RFC3339))
	case now.Before(cert.NotBefore):
		return fmt.Errorf("the certificate of %q is not valid before %s", cert.Subject, cert.NotBefore.Format(time.RFC3339))
	}
	return nil
}
