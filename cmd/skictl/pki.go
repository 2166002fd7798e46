package main

import (
	"cmp"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"encoding/pem"
	"fmt"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"time"
)

const day = 24 * time.Hour

// backdating lets a certificate be used at once by a machine whose clock is a
// little behind.
const backdating = time.Hour

// identity is a certificate with its private key.
type identity struct {
	cert *x509.Certificate
	key  crypto.Signer
}

// leaf says what is to be in a certificate.
type leaf struct {
	name  string // the subject's common name
	usage x509.ExtKeyUsage
	dns   []string
	ips   []net.IP
	uris  []*url.URL
	life  time.Duration
	key   crypto.Signer // nil: a new ECDSA P-256 key
}

// newAuthority makes a certificate authority for leaves, which cannot have
// another below it.
func newAuthority(now time.Time, life time.Duration) (*identity, error) {
	key, err := newKey()
	if err != nil {
		return nil, err
	}
	spki, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		return nil, err
	}
	// The name differs from that of other authorities, so that a verifier that
	// knows two can tell them apart.
	digest := sha256.Sum256(spki)
	template := &x509.Certificate{
		Subject:               pkix.Name{CommonName: "SKI authority " + hex.EncodeToString(digest[:4])},
		NotBefore:             now.Add(-backdating),
		NotAfter:              now.Add(life),
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
		BasicConstraintsValid: true,
		IsCA:                  true,
		MaxPathLenZero:        true,
	}
	return sign(template, template, key, key)
}

// issue makes a certificate. It can do nothing but authenticate its holder in
// the one direction that l.usage says.
func (a *identity) issue(l leaf, now time.Time) (*identity, error) {
	end := now.Add(l.life).Truncate(time.Second) // as a certificate has it
	if end.After(a.cert.NotAfter) {
		return nil, fmt.Errorf("the certificate would outlive its authority, which ends on %s", a.cert.NotAfter.Format(time.DateOnly))
	}
	key := l.key
	if key == nil {
		var err error
		if key, err = newKey(); err != nil {
			return nil, err
		}
	}
	usage := x509.KeyUsageDigitalSignature
	if _, ok := key.Public().(*rsa.PublicKey); ok {
		usage |= x509.KeyUsageKeyEncipherment // the static RSA key exchange (RFC 5246, Section 7.4.2)
	}
	return sign(&x509.Certificate{
		Subject:               pkix.Name{CommonName: l.name},
		NotBefore:             now.Add(-backdating),
		NotAfter:              end,
		KeyUsage:              usage,
		ExtKeyUsage:           []x509.ExtKeyUsage{l.usage},
		BasicConstraintsValid: true,
		DNSNames:              l.dns,
		IPAddresses:           l.ips,
		URIs:                  l.uris,
	}, a.cert, key, a.key)
}

func newKey() (crypto.Signer, error) { return ecdsa.GenerateKey(elliptic.P256(), rand.Reader) }

// sign makes the certificate of key; crypto/x509 gives it a random serial
// number (RFC 5280, Section 4.1.2.2).
func sign(template, issuer *x509.Certificate, key, issuerKey crypto.Signer) (*identity, error) {
	der, err := x509.CreateCertificate(rand.Reader, template, issuer, key.Public(), issuerKey)
	if err != nil {
		return nil, err
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, err
	}
	return &identity{cert, key}, nil
}

// write writes prefix.pem and prefix.key, the latter as PKCS #8 and for the
// owner only. Without force, neither may exist.
func (id *identity) write(prefix string, force bool) error {
	keyPEM, err := id.keyPEM()
	if err != nil {
		return err
	}
	defer clear(keyPEM)
	for _, file := range []string{prefix + ".key", prefix + ".pem"} {
		if _, err := os.Lstat(file); err == nil && !force {
			return fmt.Errorf("%s exists (use --force to replace it)", file)
		}
	}
	if err := replaceFile(prefix+".key", keyPEM, 0o600); err != nil {
		return err
	}
	return replaceFile(prefix+".pem", id.certPEM(), 0o644)
}

func (id *identity) certPEM() []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: id.cert.Raw})
}

func (id *identity) keyPEM() ([]byte, error) {
	der, err := x509.MarshalPKCS8PrivateKey(id.key)
	if err != nil {
		return nil, err
	}
	defer clear(der)
	return pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), nil
}

// replaceFile writes a file that appears whole or not at all. One that is there
// is not written into: others may have it open, or its mode may let them.
func replaceFile(name string, data []byte, mode os.FileMode) error {
	f, err := os.CreateTemp(filepath.Dir(name), ".skictl-*") // with mode 0600
	if err != nil {
		return err
	}
	defer os.Remove(f.Name()) // fails after the rename
	_, err = f.Write(data)
	if err := cmp.Or(err, f.Chmod(mode), f.Sync(), f.Close()); err != nil {
		return err
	}
	return os.Rename(f.Name(), name)
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

// loadAuthority reads what newAuthority and write made in dir.
func loadAuthority(dir string) (*identity, error) {
	certFile, keyFile := filepath.Join(dir, "ca.pem"), filepath.Join(dir, "ca.key")
	if err := checkPrivate(keyFile); err != nil {
		return nil, err
	}
	pair, err := tls.LoadX509KeyPair(certFile, keyFile)
	if err != nil {
		return nil, fmt.Errorf("%s and %s: %w", certFile, keyFile, err)
	}
	key, ok := pair.PrivateKey.(crypto.Signer)
	if !ok || !pair.Leaf.IsCA {
		return nil, fmt.Errorf("%s is not an authority's certificate", certFile)
	}
	return &identity{pair.Leaf, key}, nil
}

// loadPool reads the certificates of a PEM file.
func loadPool(file string) (*x509.CertPool, error) {
	data, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(data) {
		return nil, fmt.Errorf("%s has no certificate in PEM form", file)
	}
	return pool, nil
}
