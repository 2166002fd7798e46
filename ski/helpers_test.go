package ski_test

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"math/big"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/tlsski/tlsski/ski"
)

// privateKeys has one key of each kind that TLS knows.
var privateKeys = sync.OnceValue(func() map[string]crypto.Signer {
	keys := map[string]crypto.Signer{}
	for name, curve := range map[string]elliptic.Curve{
		"P-256": elliptic.P256(), "P-384": elliptic.P384(), "P-521": elliptic.P521(),
	} {
		key, err := ecdsa.GenerateKey(curve, rand.Reader)
		if err != nil {
			panic(err)
		}
		keys[name] = key
	}
	rsaKey, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		panic(err)
	}
	_, edKey, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		panic(err)
	}
	keys["RSA"], keys["Ed25519"] = rsaKey, edKey
	return keys
})

func selfSigned(t testing.TB, key crypto.Signer, name string) *x509.Certificate {
	t.Helper()
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1),
		DNSNames:     []string{name},
		NotAfter:     time.Now().Add(time.Hour),
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	require.NoError(t, err)
	cert, err := x509.ParseCertificate(der)
	require.NoError(t, err)
	return cert
}

// keyServer does the operations and checks nothing. It keeps what it was
// asked.
type keyServer struct {
	key  crypto.Signer
	mu   sync.Mutex
	reqs []ski.Request
}

func (s *keyServer) ServeSKI(_ context.Context, _ ski.Peer, req *ski.Request) *ski.Response {
	s.mu.Lock()
	s.reqs = append(s.reqs, *req)
	s.mu.Unlock()
	if id, err := ski.PublicKeyID(s.key.Public()); err != nil || id != req.SPKI {
		return ski.Failed(ski.SPKINotFound)
	}
	var output []byte
	var err error
	if req.KeyExchange() == ski.MethodRSA {
		//lint:ignore SA1019 This padding is what the key exchange has.
		opts := &rsa.PKCS1v15DecryptOptions{SessionKeyLen: ski.PreMasterSecretLen}
		output, err = s.key.(crypto.Decrypter).Decrypt(rand.Reader, req.Input, opts)
	} else {
		output, err = crypto.SignMessage(s.key, rand.Reader, req.Input, signerOpts(req))
	}
	if err != nil {
		return ski.Failed(ski.UnspecifiedError)
	}
	return &ski.Response{Output: output}
}

func (s *keyServer) requests() []ski.Request {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.reqs
}

func signerOpts(req *ski.Request) crypto.SignerOpts {
	pss := func(h crypto.Hash) crypto.SignerOpts {
		return &rsa.PSSOptions{SaltLength: rsa.PSSSaltLengthEqualsHash, Hash: h}
	}
	switch req.Scheme {
	case 0:
		if req.Hash == ski.HashDefault {
			return crypto.SHA1
		}
		return req.Hash.Func()
	case tls.ECDSAWithP256AndSHA256:
		return crypto.SHA256
	case tls.ECDSAWithP384AndSHA384:
		return crypto.SHA384
	case tls.ECDSAWithP521AndSHA512:
		return crypto.SHA512
	case tls.PSSWithSHA256:
		return pss(crypto.SHA256)
	case tls.PSSWithSHA384:
		return pss(crypto.SHA384)
	case tls.PSSWithSHA512:
		return pss(crypto.SHA512)
	}
	return crypto.Hash(0) // Ed25519
}
