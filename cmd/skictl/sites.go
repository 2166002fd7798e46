package main

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"fmt"
	"math/big"
	"os"
	"path/filepath"
	"time"

	"github.com/tlsski/tlsski/ski"
)

// devSite is a web site of the development set-up.
type devSite struct {
	Name string    `json:"name"`
	Cert string    `json:"cert"`
	SPKI ski.KeyID `json:"spki"`

	key crypto.Signer // to look for it where it must not be
}

// splitSite begins the names by which the same sites are served by the split
// engine.
const splitSite = "split."

// makeSites makes a site for each type of key, with certificates of an
// authority of their own: caFile. A site's certificate goes to certDir, its
// private key to keyDir, unless it was made on a token.
func makeSites(ctx context.Context, caFile, certDir, keyDir string, token *devToken, life time.Duration) ([]devSite, error) {
	now := time.Now()
	authority, err := newAuthority(now, life+day)
	if err != nil {
		return nil, err
	}
	if err := os.WriteFile(caFile, authority.certPEM(), 0o644); err != nil {
		return nil, err
	}
	sites := []devSite{{Name: "ecdsa.localhost"}, {Name: "rsa.localhost"}}
	for i := range sites {
		s := &sites[i]
		switch {
		case token != nil:
			s.key, err = token.newKey(ctx, s.Name, []string{"ec-p256", "rsa-2048"}[i])
		case i == 0:
			s.key, err = newKey()
		default:
			s.key, err = rsa.GenerateKey(rand.Reader, 2048)
		}
		if err != nil {
			return nil, err
		}
		s.Cert = filepath.Join(certDir, s.Name+".pem")
		id, err := authority.issue(leaf{
			name: s.Name, usage: x509.ExtKeyUsageServerAuth, dns: []string{s.Name, splitSite + s.Name}, life: life, key: s.key,
		}, now)
		if err != nil {
			return nil, err
		}
		s.SPKI = ski.CertificateKeyID(id.cert)
		if token == nil {
			keyPEM, err := id.keyPEM()
			if err != nil {
				return nil, err
			}
			if err := os.WriteFile(filepath.Join(keyDir, s.Name+".pem"), keyPEM, 0o600); err != nil {
				return nil, err
			}
		}
		if err := os.WriteFile(s.Cert, id.certPEM(), 0o644); err != nil {
			return nil, err
		}
	}
	return sites, nil
}

// secrets returns the numbers that make up the private key, in both byte
// orders: files have them big-endian, arithmetic mostly little-endian.
func (s devSite) secrets() map[string][]byte {
	numbers := map[string]*big.Int{}
	switch key := s.key.(type) {
	case *ecdsa.PrivateKey:
		if scalar, err := key.Bytes(); err == nil {
			numbers["private scalar"] = new(big.Int).SetBytes(scalar)
		}
	case *rsa.PrivateKey:
		numbers["private exponent"] = key.D
		numbers["first prime"] = key.Primes[0]
		numbers["second prime"] = key.Primes[1]
	}
	secrets := map[string][]byte{}
	for what, n := range numbers {
		big := n.Bytes()
		little := make([]byte, len(big))
		for i, b := range big {
			little[len(big)-1-i] = b
		}
		secrets[fmt.Sprintf("%s: %s", s.Name, what)] = big
		secrets[fmt.Sprintf("%s: %s, little-endian", s.Name, what)] = little
	}
	return secrets
}
