package edgeserver

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/tlsski/tlsski/ski"
	"github.com/tlsski/tlsski/ski/skitest"
)

// testPKI issues the certificates of a test, into a folder. Their keys go to
// the key server.
type testPKI struct {
	dir   string
	keys  *skitest.KeyServer
	roots *x509.CertPool
}

func newPKI(t *testing.T) *testPKI {
	return &testPKI{
		dir:   t.TempDir(),
		keys:  skitest.NewKeyServer(),
		roots: x509.NewCertPool(),
	}
}

func (p *testPKI) transport() ski.Transport { return ski.Direct(p.keys, ski.Peer{}) }

// sharedRSA is made once: making one takes a while.
var sharedRSA = sync.OnceValue(func() *rsa.PrivateKey {
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		panic(err)
	}
	return key
})

func (p *testPKI) ecdsa(t *testing.T, names ...string) string {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	return p.issue(t, key, time.Hour, names...)
}

func (p *testPKI) rsa(t *testing.T, names ...string) string {
	return p.issue(t, sharedRSA(), time.Hour, names...)
}

// issue returns the file of a self-signed certificate, which ends after life.
func (p *testPKI) issue(t *testing.T, key crypto.Signer, life time.Duration, names ...string) string {
	return p.issueFrom(t, key, time.Now().Add(-2*time.Hour), life, names...)
}

// issueFrom is issue of one that begins at some time.
func (p *testPKI) issueFrom(t *testing.T, key crypto.Signer, from time.Time, life time.Duration, names ...string) string {
	serial := big.NewInt(time.Now().UnixNano())
	template := &x509.Certificate{
		SerialNumber: serial,
		Subject:      pkix.Name{CommonName: "edgeserver test"},
		DNSNames:     names,
		NotBefore:    from,
		NotAfter:     time.Now().Add(life),
		KeyUsage:     x509.KeyUsageDigitalSignature | x509.KeyUsageKeyEncipherment,
		ExtKeyUsage:  []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	require.NoError(t, err)
	cert, err := x509.ParseCertificate(der)
	require.NoError(t, err)
	p.roots.AddCert(cert)
	p.keys.Add(key)
	file := filepath.Join(p.dir, serial.String()+".pem")
	require.NoError(t, os.WriteFile(file, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o600))
	return file
}
