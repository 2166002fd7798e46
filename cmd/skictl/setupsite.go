package main

import (
	"cmp"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	"github.com/tlsski/tlsski/ski"
)

// setupSite is a site as its certificates say it is.
type setupSite struct {
	names  []string // those that all of its certificates have
	chains []setupChain
}

// setupChain is a certificate chain and its private key.
type setupChain struct {
	name   string // of its files, without ending
	certs  []*x509.Certificate
	keyPEM []byte
}

func (c *setupChain) pem() []byte {
	var all []byte
	for _, cert := range c.certs {
		all = append(all, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert.Raw})...)
	}
	return all
}

// readSetupSite finds chains and private keys in files, and which belong
// together.
func readSetupSite(files []string) (*setupSite, error) {
	site := &setupSite{}
	keys := map[ski.KeyID][]byte{}
	keyFile := map[ski.KeyID]string{}
	for _, file := range files {
		data, err := os.ReadFile(file)
		if err != nil {
			return nil, err
		}
		var chain setupChain
		found := false
		for block, rest := pem.Decode(data); block != nil; block, rest = pem.Decode(rest) {
			public, _, err := blockPublicKey(block)
			switch {
			case err != nil:
				return nil, fmt.Errorf("%s: %w", file, err)
			case block.Type == "CERTIFICATE":
				cert, err := x509.ParseCertificate(block.Bytes)
				if err != nil {
					return nil, fmt.Errorf("%s: %w", file, err)
				}
				chain.certs = append(chain.certs, cert)
				found = true
			case strings.HasSuffix(block.Type, "PRIVATE KEY"):
				id, err := ski.PublicKeyID(public)
				if err != nil {
					return nil, fmt.Errorf("%s: %w", file, err)
				}
				keys[id], keyFile[id] = pem.EncodeToMemory(block), file
				found = true
			}
		}
		if !found {
			return nil, fmt.Errorf("%s has no certificate and no private key in PEM form", file)
		}
		if chain.certs != nil {
			site.chains = append(site.chains, chain)
		}
	}
	if len(site.chains) == 0 {
		return nil, errors.New("there is no certificate in the files")
	}
	if err := site.match(keys, keyFile); err != nil {
		return nil, err
	}
	return site, nil
}

// match gives each chain its key and name, and the site its names.
func (s *setupSite) match(keys map[ski.KeyID][]byte, keyFile map[ski.KeyID]string) error {
	s.names = slices.Clone(s.chains[0].certs[0].DNSNames)
	for i := range s.chains {
		c := &s.chains[i]
		own := c.certs[0]
		id := ski.CertificateKeyID(own)
		if c.keyPEM = keys[id]; c.keyPEM == nil {
			return fmt.Errorf("the private key of the certificate %s (spki %s) is in none of the files", own.Subject, id)
		}
		delete(keyFile, id)
		s.names = slices.DeleteFunc(s.names, func(name string) bool { return !slices.Contains(own.DNSNames, name) })
	}
	for _, file := range keyFile {
		return fmt.Errorf("the private key in %s belongs to none of the certificates", file)
	}
	if len(s.names) == 0 {
		return errors.New("there is no DNS name that all certificates have: they are not of one site")
	}
	// The first that a client supports is the one it gets, and all support RSA.
	slices.SortStableFunc(s.chains, func(a, b setupChain) int {
		return cmp.Compare(rank(a.certs[0].PublicKey), rank(b.certs[0].PublicKey))
	})
	base := strings.TrimPrefix(s.names[0], "*.")
	for i := range s.chains {
		c := &s.chains[i]
		c.name = base + "-" + keyType(c.certs[0].PublicKey)
		if slices.ContainsFunc(s.chains[:i], func(before setupChain) bool { return before.name == c.name }) {
			return fmt.Errorf("two certificates with keys of the type %s: clients would never get the second", keyType(c.certs[0].PublicKey))
		}
	}
	return nil
}

func rank(public any) int {
	if _, ok := public.(*rsa.PublicKey); ok {
		return 1
	}
	return 0
}

// keyType is the end of a file's name.
func keyType(public any) string {
	switch public.(type) {
	case *ecdsa.PublicKey:
		return "ecdsa"
	case *rsa.PublicKey:
		return "rsa"
	case ed25519.PublicKey:
		return "ed25519"
	}
	return "other"
}
