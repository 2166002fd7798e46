package keyserver

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/pem"
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/tlsski/tlsski/ski"
)

// An edge as a signing oracle: inputs that are what a TLS server signs, byte for
// byte, and something else as well. Each test shows first that the attack is one,
// with a signature made by hand, and then that the key server makes none.

// refusesAttack checks that the signature over the request's input is worth
// something elsewhere, where valid is told it, and that the key server does not
// make it.
func refusesAttack(t *testing.T, site crypto.Signer, req *ski.Request, form string, valid func(signature []byte)) {
	t.Helper()
	store := new(MemoryStore)
	require.NoError(t, store.Add("site", site))
	id, err := ski.PublicKeyID(site.Public())
	require.NoError(t, err)
	req.SPKI = id

	signed := req.Input
	if req.Method == ski.MethodDHE {
		require.NoError(t, checkServerDHParams(signed))
	} else if req.Method != ski.MethodECDHEPMS {
		require.NoError(t, checkServerKeyExchange(signed))
	}
	if valid != nil {
		valid(signedByHand(t, site, req))
	}
	newTestServer(t, store).refuses(req, ski.MalformedRequest, "could be read as "+form)
}

// signedByHand is what the key server would answer.
func signedByHand(t *testing.T, site crypto.Signer, req *ski.Request) []byte {
	t.Helper()
	alg, err := chooseAlgorithm(req, site.Public())
	require.NoError(t, err)
	signature, err := site.Sign(rand.Reader, alg.digest(toBeSigned{req.Input}), alg.opts)
	require.NoError(t, err)
	return signature
}

func openssl(t *testing.T, stdin []byte, args ...string) string {
	t.Helper()
	cmd := exec.Command("openssl", args...)
	cmd.Stdin = bytes.NewReader(stdin)
	out, err := cmd.CombinedOutput()
	require.NoError(t, err, "%s", out)
	return string(out)
}

// siteCertificate has openssl make a certificate as many are made, and returns it
// with its file.
func siteCertificate(t *testing.T, site crypto.Signer) (*x509.Certificate, string) {
	t.Helper()
	dir := t.TempDir()
	der, err := x509.MarshalPKCS8PrivateKey(site)
	require.NoError(t, err)
	key, file := filepath.Join(dir, "key.pem"), filepath.Join(dir, "cert.pem")
	require.NoError(t, os.WriteFile(key, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), 0o600))
	openssl(t, nil, "req", "-x509", "-key", key, "-subj", "/CN=www.example.com", "-days", "30", "-addext", "subjectAltName=DNS:www.example.com", "-out", file)
	data, err := os.ReadFile(file)
	require.NoError(t, err)
	block, _ := pem.Decode(data)
	cert, err := x509.ParseCertificate(block.Bytes)
	require.NoError(t, err)
	return cert, file
}

func newP256(t *testing.T) *ecdsa.PrivateKey {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	return key
}

func newEd25519(t *testing.T) ed25519.PrivateKey {
	_, key, err := ed25519.GenerateKey(rand.Reader)
	require.NoError(t, err)
	return key
}

func der(t *testing.T, v any, params ...string) []byte {
	t.Helper()
	b, err := asn1.MarshalWithParams(v, strings.Join(params, ","))
	require.NoError(t, err)
	return b
}

func subjectPublicKeyInfo(t *testing.T, key crypto.Signer) []byte {
	b, err := x509.MarshalPKIXPublicKey(key.Public())
	require.NoError(t, err)
	return b
}

// signedDER is SIGNED{} of RFC 5280, Appendix A.1: the structure that is signed,
// the algorithm, the signature.
func signedDER(t *testing.T, tbs, alg, signature []byte) []byte {
	return der(t, []any{asn1.RawValue{FullBytes: tbs}, asn1.RawValue{FullBytes: alg}, asn1.BitString{Bytes: signature, BitLength: 8 * len(signature)}})
}

var (
	sha256WithRSA    = []byte{0x30, 13, 6, 9, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 1, 11, 5, 0}
	ed25519Algorithm = []byte{0x30, 5, 6, 3, 0x2b, 0x65, 0x70}
)

// head is identifier and length octets with a length of two octets.
func head(tag byte, n int) []byte { return []byte{tag, 0x82, byte(n >> 8), byte(n)} }

// dheInput is an input of DHE with these randoms and dh_Ys.
func dheInput(group string, randoms, ys []byte) []byte {
	g, _ := dhGroupNamed(group)
	in := bytes.Clone(randoms)
	for _, v := range [][]byte{g.p.Bytes(), {dhGenerator}, ys} {
		in = append(append(in, byte(len(v)>>8), byte(len(v))), v...)
	}
	return in
}

// filled fills up to the 64 bytes of the randoms.
func filled(begin ...[]byte) []byte {
	b := bytes.Join(begin, nil)
	return append(b, bytes.Repeat([]byte{0x11}, 2*ski.RandomLen-len(b))...)
}

// onX25519 appends ServerECDHParams whose public value ends as told.
func onX25519(randoms []byte, end []byte) []byte {
	point := append(bytes.Repeat([]byte{9}, 32-len(end)), end...)
	return slices.Concat(randoms, []byte{3, 0, x25519, 32}, point)
}

func TestNoCertificateIsMintedWithDHE(t *testing.T) {
	site := newRSA(t, 2048)
	issuer, file := siteCertificate(t, site) // a CA, with openssl's default configuration
	require.True(t, issuer.IsCA)
	san := der(t, []asn1.RawValue{{Class: 2, Tag: 2, Bytes: []byte("anything.example.org")}})
	ys := bytes.Join([][]byte{
		sha256WithRSA,
		issuer.RawSubject,
		der(t, []time.Time{time.Now().Add(-time.Hour).UTC(), time.Now().AddDate(20, 0, 0).UTC()}),
		der(t, pkix.Name{CommonName: "anything.example.org"}.ToRDNSequence()),
		subjectPublicKeyInfo(t, newP256(t)),
		der(t, []pkix.Extension{{Id: asn1.ObjectIdentifier{2, 5, 29, 17}, Value: san}}, "explicit", "tag:3"),
	}, nil)
	const p = 1024 // dh_p and the other randoms are in the serial number
	total := 64 + 2 + p + 3 + 2 + len(ys)
	randoms := filled(head(0x30, total-4), []byte{0xA0, 3, 2, 1, 2}, head(2, total-len(ys)-13))
	in := dheInput("ffdhe8192", randoms, ys)
	req := &ski.Request{Protocol: ski.TLS12, Method: ski.MethodDHE, Hash: ski.SHA256, Input: in}
	refusesAttack(t, site, req, "a BER SEQUENCE or SET", func(signature []byte) {
		minted := filepath.Join(t.TempDir(), "minted.pem")
		cert := signedDER(t, in, sha256WithRSA, signature)
		require.NoError(t, os.WriteFile(minted, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert}), 0o644))
		require.Contains(t, openssl(t, nil, "verify", "-CAfile", file, "-verify_hostname", "anything.example.org", minted), "OK")
	})
}

func TestNoCertificationRequestIsSignedWithDHE(t *testing.T) {
	site := newRSA(t, 2048)
	name := der(t, pkix.RelativeDistinguishedNameSET{{Type: asn1.ObjectIdentifier{2, 5, 4, 3}, Value: "another.example.org"}})
	ys := slices.Concat(name, subjectPublicKeyInfo(t, site), []byte{0xA0, 0})
	const before = 4 + 3 + 4 + 4 + 4 + 5 + 4 // the heads, of a name in which dh_p is
	ysAt := 64 + 2 + 512 + 3 + 2
	blob := ysAt - before
	attribute := 5 + 4 + blob
	randoms := filled(head(0x30, ysAt+len(ys)-4), []byte{2, 1, 0}, head(0x30, 4+4+attribute+len(name)),
		head(0x31, 4+attribute), head(0x30, attribute), []byte{6, 3, 0x2A, 3, 4}, head(0x14, blob))
	in := dheInput("ffdhe4096", randoms, ys)
	req := &ski.Request{Protocol: ski.TLS12, Method: ski.MethodDHE, Hash: ski.SHA256, Input: in}
	refusesAttack(t, site, req, "a BER SEQUENCE or SET", func(signature []byte) {
		out := openssl(t, signedDER(t, in, sha256WithRSA, signature), "req", "-inform", "DER", "-verify", "-noout", "-subject")
		require.Contains(t, out, "verify OK")
		require.Contains(t, out, "another.example.org")
	})
}

// The certification requests have room for the key and an attribute.
func TestNoCertificationRequestIsSignedWithEd25519(t *testing.T) {
	site := newEd25519(t)
	members := slices.Concat([]byte{2, 1, 0, 0x30, 0}, subjectPublicKeyInfo(t, site))
	point := basePoint(secp256r1)
	viaOpenSSL := func(t *testing.T, csr []byte) {
		require.Contains(t, openssl(t, csr, "req", "-inform", "DER", "-verify", "-noout"), "verify OK")
	}
	for name, c := range map[string]struct {
		input []byte
		valid func(*testing.T, []byte)
	}{
		"of 100 bytes": {
			onX25519(filled([]byte{0x30, 98}, members, []byte{0xA0, 47, 0x30, 45, 6, 1, 0x2A, 0x31, 40, 4, 38}), nil), viaOpenSSL,
		},
		"of 133 bytes": {
			slices.Concat(filled([]byte{0x30, 0x81, 130}, members, []byte{0xA0, 79, 0x30, 77, 6, 1, 0x2A, 0x31, 72, 4, 70}), []byte{3, 0, 23, 65}, point), viaOpenSSL,
		},
		"with an indefinite length": {
			onX25519(filled([]byte{0x30, 0x80}, members, []byte{0xA0, 45, 0x30, 43, 6, 1, 0x2A, 0x31, 38, 4, 36}), []byte{0, 0}), viaOpenSSL,
		},
		"with a padded length": {
			onX25519(filled([]byte{0x30, 0x81, 97}, members, []byte{0xA0, 46, 0x30, 44, 6, 1, 0x2A, 0x31, 39, 4, 37}), nil), viaOpenSSL,
		},
		"with the tag in the form for high ones": {
			onX25519(filled([]byte{0x3f, 0x10, 97}, members, []byte{0xA0, 46, 0x30, 44, 6, 1, 0x2A, 0x31, 39, 4, 37}), nil), viaOpenSSL,
		},
		"with members of indefinite length": {
			onX25519(filled([]byte{0x30, 98}, members, []byte{0xA0, 0x80, 0x30, 43, 6, 1, 0x2A, 0x31, 38, 4, 36}), []byte{0, 0}), viaOpenSSL,
		},
		"with something behind the members, which Go does not look at": {
			onX25519(filled([]byte{0x30, 98}, members, []byte{0xA0, 0, 0xff, 0xff, 0xff}), nil),
			func(t *testing.T, csr []byte) {
				r, err := x509.ParseCertificateRequest(csr)
				require.NoError(t, err)
				require.NoError(t, r.CheckSignature())
			},
		},
	} {
		t.Run(name, func(t *testing.T) {
			req := &ski.Request{Protocol: ski.TLS12, Scheme: tls.Ed25519, Input: c.input}
			refusesAttack(t, site, req, "a BER SEQUENCE or SET", func(signature []byte) {
				c.valid(t, signedDER(t, c.input, ed25519Algorithm, signature))
			})
		})
	}
}

// Only newToBeSigned makes what is signed, and only signing hands it to a
// KeyStore: a new method cannot leave the check out.
func TestNothingIsSignedUnchecked(t *testing.T) {
	makers, signers := map[string]bool{}, map[string]bool{}
	files, err := filepath.Glob("*.go")
	require.NoError(t, err)
	for _, file := range files {
		if strings.HasSuffix(file, "_test.go") {
			continue
		}
		f, err := parser.ParseFile(token.NewFileSet(), file, nil, 0)
		require.NoError(t, err)
		for _, d := range f.Decls {
			fn, ok := d.(*ast.FuncDecl)
			if !ok {
				continue
			}
			ast.Inspect(fn, func(n ast.Node) bool {
				switch n := n.(type) {
				case *ast.CompositeLit:
					if name, ok := n.Type.(*ast.Ident); ok && name.Name == "toBeSigned" && len(n.Elts) > 0 {
						makers[fn.Name.Name] = true
					}
				case *ast.SelectorExpr:
					if x, ok := n.X.(*ast.SelectorExpr); ok && n.Sel.Name == "Sign" && x.Sel.Name == "store" {
						signers[fn.Name.Name] = true
					}
				}
				return true
			})
		}
	}
	require.Equal(t, map[string]bool{"newToBeSigned": true}, makers)
	require.Equal(t, map[string]bool{"do": true}, signers)
}
