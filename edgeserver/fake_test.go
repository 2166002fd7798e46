package edgeserver

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
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
)

// fakeKeyServer has the keys of test certificates. It checks nothing.
type fakeKeyServer struct {
	mu       sync.Mutex
	keys     map[ski.KeyID]crypto.Signer
	requests []ski.Request
	refuse   ski.Error // if set, the answer to everything
}

func (f *fakeKeyServer) ServeSKI(_ context.Context, _ ski.Peer, req *ski.Request) *ski.Response {
	f.mu.Lock()
	f.requests = append(f.requests, *req)
	key, refuse := f.keys[req.SPKI], f.refuse
	f.mu.Unlock()
	switch {
	case refuse != "":
		return ski.Failed(refuse)
	case key == nil:
		return ski.Failed(ski.SPKINotFound)
	case req.KeyExchange() != ski.MethodRSA && len(req.Input) < 64:
		return ski.Failed(ski.MalformedRequest)
	}
	output, err := operate(key, req)
	if err != nil {
		return ski.Failed(ski.UnspecifiedError)
	}
	return &ski.Response{Output: output}
}

func operate(key crypto.Signer, req *ski.Request) ([]byte, error) {
	if req.Method == ski.MethodRSA {
		//lint:ignore SA1019 it is what static RSA is made of
		return key.(crypto.Decrypter).Decrypt(rand.Reader, req.Input, &rsa.PKCS1v15DecryptOptions{SessionKeyLen: 48})
	}
	var opts crypto.SignerOpts = req.Hash.Func()
	switch req.Scheme {
	case tls.PSSWithSHA256:
		opts = &rsa.PSSOptions{SaltLength: rsa.PSSSaltLengthEqualsHash, Hash: crypto.SHA256}
	case tls.ECDSAWithP256AndSHA256:
		opts = crypto.SHA256
	}
	return crypto.SignMessage(key, rand.Reader, req.Input, opts)
}

// asked returns the requests so far, and forgets them.
func (f *fakeKeyServer) asked() []ski.Request {
	f.mu.Lock()
	defer f.mu.Unlock()
	requests := f.requests
	f.requests = nil
	return requests
}

func (f *fakeKeyServer) set(change func()) {
	f.mu.Lock()
	defer f.mu.Unlock()
	change()
}

// testPKI issues the certificates of a test, into a folder. Their keys go to
// the key server.
type testPKI struct {
	dir   string
	keys  *fakeKeyServer
	roots *x509.CertPool
}

func newPKI(t *testing.T) *testPKI {
	return &testPKI{
		dir:   t.TempDir(),
		keys:  &fakeKeyServer{keys: map[ski.KeyID]crypto.Signer{}},
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
	serial := big.NewInt(time.Now().UnixNano())
	template := &x509.Certificate{
		SerialNumber: serial,
		Subject:      pkix.Name{CommonName: "edgeserver test"},
		DNSNames:     names,
		NotBefore:    time.Now().Add(-2 * time.Hour),
		NotAfter:     time.Now().Add(life),
		KeyUsage:     x509.KeyUsageDigitalSignature | x509.KeyUsageKeyEncipherment,
		ExtKeyUsage:  []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	require.NoError(t, err)
	cert, err := x509.ParseCertificate(der)
	require.NoError(t, err)
	p.roots.AddCert(cert)
	p.keys.set(func() { p.keys.keys[ski.CertificateKeyID(cert)] = key })
	file := filepath.Join(p.dir, serial.String()+".pem")
	require.NoError(t, os.WriteFile(file, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o600))
	return file
}
