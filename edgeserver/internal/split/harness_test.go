package split

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
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"io"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/tlsski/tlsski/ski"
)

// allGroups are those that a Config can have.
var allGroups = []tls.CurveID{tls.X25519, tls.CurveP256, tls.CurveP384, tls.CurveP521}

const serverName = "www.example.test"

// localKey does what a key server does, in the same process.
type localKey struct {
	crypto.Signer
	mu    sync.Mutex
	fails error // if set, the answer to everything
}

func (k *localKey) SignMessage(random io.Reader, msg []byte, opts crypto.SignerOpts) ([]byte, error) {
	if err := k.failure(); err != nil {
		return nil, err
	}
	return crypto.SignMessage(k.Signer, random, msg, opts)
}

func (k *localKey) failure() error {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.fails
}

func (k *localKey) fail(err error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.fails = err
}

func (k *localKey) Decrypt(random io.Reader, msg []byte, opts crypto.DecrypterOpts) ([]byte, error) {
	if err := k.failure(); err != nil {
		return nil, err
	}
	secret, err := k.Signer.(*rsa.PrivateKey).Decrypt(random, msg, opts)
	if err != nil { // of the wrong length: what ski.Key makes of it too
		secret = make([]byte, ski.PreMasterSecretLen)
		rand.Read(secret)
	}
	return secret, nil
}

// ephemeral makes an ephemeral key, as with ECDHE-PMS.
func (k *localKey) ephemeral(_ context.Context, _ ski.Connection, group tls.CurveID, randoms []byte, opts crypto.SignerOpts) (*Ephemeral, error) {
	if err := k.failure(); err != nil {
		return nil, err
	}
	key, err := curveOf(group).GenerateKey(rand.Reader)
	if err != nil {
		return nil, err
	}
	params := serverECDHParams(group, key.PublicKey().Bytes())
	signature, err := k.SignMessage(rand.Reader, slices.Concat(randoms, params), opts)
	return &Ephemeral{Params: params, Signature: signature, PreMasterSecret: func(_ context.Context, point []byte) ([]byte, error) {
		if err := k.failure(); err != nil {
			return nil, err
		}
		pub, err := curveOf(group).NewPublicKey(point)
		if err != nil {
			return nil, err
		}
		return key.ECDH(pub)
	}}, err
}

// identity is a certificate of the test's authority with its key.
type identity struct {
	key   *localKey
	chain *Chain
	cert  *x509.Certificate
}

// tls returns it in the form of crypto/tls.
func (i identity) tls() tls.Certificate {
	return tls.Certificate{Certificate: i.chain.Certificates, PrivateKey: i.key.Signer}
}

// files writes certificate and key to PEM files.
func (i identity) files(t testing.TB) (cert, key string) {
	dir := t.TempDir()
	cert, key = filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem")
	require.NoError(t, os.WriteFile(cert, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: i.cert.Raw}), 0o600))
	der, err := x509.MarshalPKCS8PrivateKey(i.key.Signer)
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(key, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), 0o600))
	return cert, key
}

// world is what all tests share: an authority, and what it has issued. Making
// RSA keys takes a while.
type world struct {
	ca    *x509.Certificate
	caKey crypto.Signer
	roots *x509.CertPool

	ecdsa, ecdsa384, rsa, ed25519 identity
	client, clientRSA, expired    identity
	stranger                      identity // of another authority
}

var theWorld = sync.OnceValue(func() *world {
	w := &world{roots: x509.NewCertPool()}
	w.caKey = must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))
	w.ca = w.issue(w.caKey, "split test authority", time.Hour, nil, true)
	w.roots.AddCert(w.ca)
	p256 := func() crypto.Signer { return must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader)) }
	_, ed, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		panic(err)
	}
	w.ecdsa = w.identity(p256(), time.Hour)
	w.ecdsa384 = w.identity(must(ecdsa.GenerateKey(elliptic.P384(), rand.Reader)), time.Hour)
	w.rsa = w.identity(must(rsa.GenerateKey(rand.Reader, 2048)), time.Hour)
	w.ed25519 = w.identity(ed, time.Hour)
	w.client = w.identity(p256(), time.Hour)
	w.clientRSA = w.identity(must(rsa.GenerateKey(rand.Reader, 2048)), time.Hour)
	w.expired = w.identity(p256(), -time.Minute)
	other := &world{caKey: p256()}
	other.ca = other.issue(other.caKey, "another authority", time.Hour, nil, true)
	w.stranger = other.identity(p256(), time.Hour)
	return w
})

// file returns the authority's certificate as a PEM file.
func (w *world) file(t testing.TB) string {
	file := filepath.Join(t.TempDir(), "ca.pem")
	require.NoError(t, os.WriteFile(file, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: w.ca.Raw}), 0o600))
	return file
}

func (w *world) identity(key crypto.Signer, life time.Duration) identity {
	cert := w.issue(key, serverName, life, []string{serverName}, false)
	local := &localKey{Signer: key}
	return identity{key: local, cert: cert, chain: &Chain{
		Certificates: [][]byte{cert.Raw},
		Leaf:         cert,
		Key:          func(context.Context, ski.Connection) crypto.MessageSigner { return local },
		Ephemeral:    local.ephemeral,
	}}
}

func (w *world) issue(key crypto.Signer, name string, life time.Duration, names []string, ca bool) *x509.Certificate {
	serial := must(rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120)))
	template := &x509.Certificate{
		SerialNumber: serial, Subject: pkix.Name{CommonName: name}, DNSNames: names,
		NotBefore: time.Now().Add(-2 * time.Hour), NotAfter: time.Now().Add(life),
		KeyUsage:    x509.KeyUsageDigitalSignature | x509.KeyUsageKeyEncipherment,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	parent, signer := w.ca, w.caKey
	if ca {
		template.IsCA, template.BasicConstraintsValid, template.KeyUsage = true, true, x509.KeyUsageCertSign
		template.ExtKeyUsage = nil
		parent, signer = template, key
	}
	return must(x509.ParseCertificate(must(x509.CreateCertificate(rand.Reader, template, parent, key.Public(), signer))))
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

// fixed is a GetConfig that always has the same.
func fixed(c *Config) GetConfig {
	return func(context.Context, *ClientHello) (*Config, error) { return c, nil }
}

// outcome is how the server has seen a connection.
type outcome struct {
	conn *Conn
	err  error // of the handshake, or of reading
	read []byte
}

// testServer answers each connection with what it has sent, in upper case or
// not, until the client closes it.
type testServer struct {
	addr     string
	outcomes chan outcome
}

// serve runs a server on a loopback port. It echoes what it reads.
func serve(t testing.TB, cfg *Config) *testServer {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	s := &testServer{addr: l.Addr().String(), outcomes: make(chan outcome, 64)}
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			raw, err := l.Accept()
			if err != nil {
				return
			}
			wg.Go(func() {
				c := Server(raw, fixed(cfg))
				defer c.Close()
				raw.SetDeadline(time.Now().Add(time.Minute))
				out := outcome{conn: c}
				if out.err = c.Handshake(); out.err == nil {
					var buf [4096]byte
					for out.err == nil {
						var n int
						n, out.err = c.Read(buf[:])
						out.read = append(out.read, buf[:n]...)
						if n > 0 {
							c.Write(buf[:n])
						}
					}
					if errors.Is(out.err, io.EOF) {
						out.err = nil
					}
				}
				s.outcomes <- out
			})
		}
	})
	t.Cleanup(func() {
		l.Close()
		wg.Wait()
	})
	return s
}

// outcome returns that of the next connection.
func (s *testServer) outcome(t testing.TB) outcome {
	select {
	case o := <-s.outcomes:
		return o
	case <-time.After(time.Minute):
		require.FailNow(t, "the connection does not end")
		return outcome{}
	}
}
