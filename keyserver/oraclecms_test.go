package keyserver

import (
	"bytes"
	"crypto"
	"crypto/elliptic"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/binary"
	"math/big"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/tlsski/tlsski/ski"
)

// The attributes that a signature in CMS covers (RFC 5652, Section 5.4) are a SET:
// contentType, messageDigest of a content of the edge's choice, and one that
// nobody knows, for the bytes that the edge does not choose.
func TestNoCMSSignatureIsMadeWithECDHE(t *testing.T) {
	content := []byte("Pay 1,000,000 to Mallory. Signed: www.example.com\n")
	digest := sha256.Sum256(content)
	contentType := []byte{0x30, 24, 6, 9, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 9, 3, 0x31, 11, 6, 9, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 7, 1}
	messageDigest := append([]byte{0x30, 47, 6, 9, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 9, 4, 0x31, 34, 4, 32}, digest[:]...)
	unknown := func(n byte, oid byte) []byte { // an attribute of n bytes, or its beginning
		return []byte{0x30, n - 2, 6, 1, oid, 0x31, n - 7, 4, n - 9}
	}

	// secp521r1: messageDigest is in the coordinate x.
	x := slices.Concat([]byte{0}, messageDigest, unknown(82, 0x2b))
	p521Input := slices.Concat(filled([]byte{0x31, 0x81, 198}, contentType, unknown(41, 0x2a)), []byte{3, 0, secp521r1, 133}, pointWithX(x))
	// x25519: 100 bytes are enough where contentType comes last, which verifiers
	// that keep the order accept.
	x25519Input := onX25519(filled([]byte{0x31, 98}, messageDigest, unknown(23, 0x2a)), slices.Concat(make([]byte, 6), contentType))

	for name, site := range map[string]crypto.Signer{"RSA": newRSA(t, 2048), "P-256": newP256(t)} {
		cert, file := siteCertificate(t, site)
		for group, in := range map[string][]byte{"secp521r1": p521Input, "x25519": x25519Input} {
			t.Run(name+" "+group, func(t *testing.T) {
				req := &ski.Request{Protocol: ski.TLS12, Method: ski.MethodECDHE, Hash: ski.SHA256, Input: in}
				refusesAttack(t, site, req, "a BER SEQUENCE or SET", func(signature []byte) {
					cms := filepath.Join(t.TempDir(), "cms")
					require.NoError(t, os.WriteFile(cms, signedData(t, cert, content, in, signature), 0o644))
					for _, command := range []string{"cms", "smime"} {
						out := openssl(t, nil, command, "-verify", "-inform", "DER", "-in", cms, "-CAfile", file)
						require.Contains(t, out, string(content))
					}
				})
			})
		}
	}
}

// signedData is a ContentInfo with SignedData (RFC 5652, Section 5.1).
func signedData(t *testing.T, cert *x509.Certificate, content, attributes, signature []byte) []byte {
	sha := pkix.AlgorithmIdentifier{Algorithm: asn1.ObjectIdentifier{2, 16, 840, 1, 101, 3, 4, 2, 1}}
	alg := pkix.AlgorithmIdentifier{Algorithm: asn1.ObjectIdentifier{1, 2, 840, 10045, 4, 3, 2}}
	if _, ok := cert.PublicKey.(*rsa.PublicKey); ok {
		alg = pkix.AlgorithmIdentifier{Algorithm: asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 1, 1}, Parameters: asn1.NullRawValue}
	}
	implicit := bytes.Clone(attributes)
	implicit[0] = 0xA0
	type issuerAndSerial struct {
		Issuer asn1.RawValue
		Serial *big.Int
	}
	type signerInfo struct {
		Version    int
		SID        issuerAndSerial
		Digest     pkix.AlgorithmIdentifier
		Attributes asn1.RawValue
		Algorithm  pkix.AlgorithmIdentifier
		Signature  []byte
	}
	type encapsulated struct {
		Type    asn1.ObjectIdentifier
		Content []byte `asn1:"explicit,tag:0"`
	}
	type signed struct {
		Version      int
		Digests      []pkix.AlgorithmIdentifier `asn1:"set"`
		Content      encapsulated
		Certificates asn1.RawValue
		Signers      []signerInfo `asn1:"set"`
	}
	type contentInfo struct {
		Type       asn1.ObjectIdentifier
		SignedData signed `asn1:"explicit,tag:0"`
	}
	return der(t, contentInfo{asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 7, 2}, signed{
		1, []pkix.AlgorithmIdentifier{sha}, encapsulated{asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 7, 1}, content},
		asn1.RawValue{Class: 2, Tag: 0, IsCompound: true, Bytes: cert.Raw},
		[]signerInfo{{
			1, issuerAndSerial{asn1.RawValue{FullBytes: cert.RawIssuer}, cert.SerialNumber}, sha,
			asn1.RawValue{FullBytes: implicit}, alg, signature,
		}},
	}})
}

// pointWithX returns a point of P-521 whose x begins so: 7 bytes of it are found
// by trying, in two tries on average.
func pointWithX(begin []byte) []byte {
	p, b := elliptic.P521().Params().P, elliptic.P521().Params().B
	x := make([]byte, 66)
	copy(x, begin)
	for i := uint64(0); ; i++ {
		binary.BigEndian.PutUint32(x[62:], uint32(i))
		n := new(big.Int).SetBytes(x)
		square := new(big.Int).Exp(n, big.NewInt(3), p)
		square.Sub(square, n.Mul(n, big.NewInt(3))).Add(square, b).Mod(square, p)
		if y := new(big.Int).ModSqrt(square, p); y != nil {
			return slices.Concat([]byte{4}, x, y.FillBytes(make([]byte, 66)))
		}
	}
}
