package main

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
)

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){"ski-edgeserver": main})
}

func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir:                 "testdata/script",
		RequireExplicitExec: true,
		Setup:               func(env *testscript.Env) error { return writePKI(env.WorkDir) },
	})
}

// writePKI writes what the scripts' configurations name: edge.pem, edge.key and
// ca.pem for the SKI channel; site.pem for site.test, site-and-key.pem with its
// private key, and site.key.
func writePKI(dir string) error {
	edge, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	site, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	edgePEM, err := certificate(edge, "edge.test")
	if err != nil {
		return err
	}
	sitePEM, err := certificate(site, "site.test")
	if err != nil {
		return err
	}
	edgeKey, err := privateKey(edge)
	if err != nil {
		return err
	}
	siteKey, err := privateKey(site)
	if err != nil {
		return err
	}
	for name, data := range map[string][]byte{
		"edge.pem": edgePEM, "ca.pem": edgePEM, "edge.key": edgeKey,
		"site.pem": sitePEM, "site.key": siteKey, "site-and-key.pem": append(sitePEM, siteKey...),
	} {
		if err := os.WriteFile(filepath.Join(dir, name), data, 0o600); err != nil {
			return err
		}
	}
	return nil
}

func certificate(key crypto.Signer, name string) ([]byte, error) {
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1),
		Subject:      pkix.Name{CommonName: name},
		DNSNames:     []string{name},
		NotBefore:    time.Now().Add(-time.Hour),
		NotAfter:     time.Now().Add(time.Hour),
		IsCA:         name == "edge.test", BasicConstraintsValid: true, // which is ca.pem too
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), err
}

func privateKey(key crypto.Signer) ([]byte, error) {
	der, err := x509.MarshalPKCS8PrivateKey(key)
	return pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), err
}
