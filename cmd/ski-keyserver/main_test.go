package main

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"math/big"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
)

// commands are the programs that the tests run as processes.
var commands = map[string]func(){"ski-keyserver": main}

func TestMain(m *testing.M) {
	syscall.Umask(0o022) // The key server reads no file of a script that its group can write.
	testscript.Main(m, commands)
}

func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir:                 "testdata/script",
		RequireExplicitExec: true,
		Setup:               func(env *testscript.Env) error { return writeFiles(env.WorkDir) },
	})
}

// writeFiles writes what a configuration names: ca.pem and .key, and crl.pem
// that revokes nothing; keyserver.pem and .key
// for 127.0.0.1; edge.pem and .key for edge.test; and the keys of the sites
// ecdsa.test and rsa.test in keys. A config.yaml and policy.yaml that a script
// has brought along stay as they are.
func writeFiles(dir string) error {
	if err := os.Chmod(dir, 0o700); err != nil { // whatever the umask is
		return err
	}
	if err := os.Mkdir(filepath.Join(dir, "keys"), 0o700); err != nil && !errors.Is(err, os.ErrExist) {
		return err
	}
	for name, text := range map[string]string{"config.yaml": configYAML, "policy.yaml": policyYAML} {
		file := filepath.Join(dir, name)
		if _, err := os.Stat(file); err == nil {
			continue
		}
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			return err
		}
	}
	ca, err := newIdentity(dir, "ca", nil, &x509.Certificate{
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
	})
	if err != nil {
		return err
	}
	if err := writeCRL(filepath.Join(dir, "crl.pem"), ca, 1); err != nil {
		return err
	}
	for name, template := range map[string]*x509.Certificate{
		"keyserver": {DNSNames: []string{"keyserver.test"}, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}},
		"edge":      {DNSNames: []string{"edge.test"}, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}},
	} {
		if _, err := newIdentity(dir, name, ca, template); err != nil {
			return err
		}
	}
	ecdsaKey, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	rsaKey, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		return err
	}
	return errors.Join(
		writeKey(filepath.Join(dir, "keys", "ecdsa.test.pem"), ecdsaKey),
		writeKey(filepath.Join(dir, "keys", "rsa.test.pem"), rsaKey),
	)
}

const configYAML = `listen: 127.0.0.1:0
certificate: keyserver.pem
key: keyserver.key
client_ca: ca.pem
keys: keys
policy: policy.yaml
audit: {file: audit.log}
`

const policyYAML = `edges:
  - name: edge-1
    dns: [edge.test]
rules:
  - edges: [edge-1]
    keys: ["*"]
    methods: [ECDHE]
  - edges: [edge-1]
    keys: [rsa.test]
    methods: [RSA]
    protocols: [TLS 1.2]
    server_names: [rsa.test]
`

// identity is a certificate with its key.
type identity struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

// newIdentity writes NAME.pem and NAME.key. Without an issuer the certificate
// is self-signed.
func newIdentity(dir, name string, issuer *identity, template *x509.Certificate) (*identity, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	template.SerialNumber = big.NewInt(time.Now().UnixNano())
	template.Subject = pkix.Name{CommonName: name}
	template.NotBefore = time.Now().Add(-time.Hour)
	template.NotAfter = time.Now().Add(24 * time.Hour)
	if issuer == nil {
		issuer = &identity{template, key}
	}
	der, err := x509.CreateCertificate(rand.Reader, template, issuer.cert, &key.PublicKey, issuer.key)
	if err != nil {
		return nil, err
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, err
	}
	text := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	if err := os.WriteFile(filepath.Join(dir, name+".pem"), text, 0o644); err != nil {
		return nil, err
	}
	return &identity{cert, key}, writeKey(filepath.Join(dir, name+".key"), key)
}

// writeCRL writes a CRL that revokes certificates.
func writeCRL(file string, ca *identity, number int64, serials ...*big.Int) error {
	return writeCRLUntil(file, ca, number, time.Now().Add(time.Hour), serials...)
}

// writeCRLUntil writes a CRL that is to be replaced by a time.
func writeCRLUntil(file string, ca *identity, number int64, nextUpdate time.Time, serials ...*big.Int) error {
	list := &x509.RevocationList{Number: big.NewInt(number), ThisUpdate: time.Now().Add(-time.Hour), NextUpdate: nextUpdate}
	for _, s := range serials {
		list.RevokedCertificateEntries = append(list.RevokedCertificateEntries,
			x509.RevocationListEntry{SerialNumber: s, RevocationTime: time.Now()})
	}
	der, err := x509.CreateRevocationList(rand.Reader, list, ca.cert, ca.key)
	if err != nil {
		return err
	}
	return os.WriteFile(file, pem.EncodeToMemory(&pem.Block{Type: "X509 CRL", Bytes: der}), 0o600)
}

func writeKey(file string, key crypto.Signer) error {
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return err
	}
	return os.WriteFile(file, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), 0o600)
}
