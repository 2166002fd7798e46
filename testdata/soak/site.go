package main

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"os"
	"path/filepath"
	"sync"
	"time"
)

// site is served by each edge server, with a pair of each type of key.
type site struct {
	name   string
	group  string // of key servers that it is served with
	htdocs string
	body   string // of its one page
	roots  string // a file with all certificates it may be served with
	pairs  []*pair

	mu       sync.Mutex
	accepted [][]byte // certificates, DER
}

// pair is a certificate and its private key, PEM.
type pair struct {
	name             string // of the file at the edges, without its ending
	version          int    // counts renewals, from 1
	certificate, key []byte
	der              []byte // the certificate
}

func newSite(dir, group string) (*site, error) {
	s := &site{name: group + ".example.com", group: group, htdocs: filepath.Join(dir, "htdocs", group), roots: filepath.Join(dir, group+".roots")}
	s.body = "This is " + s.name + ".\n"
	s.pairs = make([]*pair, 2)
	for i := range s.pairs {
		if err := s.renew(i); err != nil {
			return nil, err
		}
	}
	return s, errors.Join(os.MkdirAll(s.htdocs, 0o755), os.WriteFile(filepath.Join(s.htdocs, "index.html"), []byte(s.body), 0o644))
}

// renew makes another pair, which clients accept beside those before.
func (s *site) renew(i int) error {
	kind, version := []string{"ecdsa", "rsa"}[i], 1
	if s.pairs[i] != nil {
		version = s.pairs[i].version + 1
	}
	var key crypto.Signer
	var err error
	if kind == "rsa" {
		key, err = rsa.GenerateKey(rand.Reader, 2048)
	} else {
		key, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	}
	if err != nil {
		return err
	}
	serial, err := rand.Int(rand.Reader, big.NewInt(1<<62))
	if err != nil {
		return err
	}
	template := &x509.Certificate{
		SerialNumber: serial, Subject: pkix.Name{CommonName: fmt.Sprintf("%s, %s %d", s.name, kind, version)}, DNSNames: []string{s.name},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(7 * 24 * time.Hour),
		KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageKeyEncipherment, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return err
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.accepted = append(s.accepted, der)
	var roots []byte
	for _, der := range s.accepted {
		roots = append(roots, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})...)
	}
	s.pairs[i] = &pair{s.name + "-" + kind, version, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}),
		pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: keyDER}), der}
	return replace(s.roots, roots)
}

// accepts reports whether the site may be served with a certificate.
func (s *site) accepts(der []byte) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, a := range s.accepted {
		if bytes.Equal(a, der) {
			return true
		}
	}
	return false
}
