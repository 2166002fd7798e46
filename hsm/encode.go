package hsm

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"errors"
	"fmt"

	"golang.org/x/crypto/cryptobyte"
	"golang.org/x/crypto/cryptobyte/asn1"
)

// ecdsaToDER makes an Ecdsa-Sig-Value (RFC 3279, Section 2.2.3) of the r and s
// that CKM_ECDSA returns, each as long as the curve's order (PKCS #11,
// "ECDSA").
func ecdsaToDER(raw []byte, pub *ecdsa.PublicKey) ([]byte, error) {
	n := (pub.Curve.Params().N.BitLen() + 7) / 8
	if len(raw) != 2*n {
		return nil, fmt.Errorf("the token's ECDSA signature has %d bytes, not %d", len(raw), 2*n)
	}
	order := pub.Curve.Params().N.FillBytes(make([]byte, n))
	b := cryptobyte.NewBuilder(make([]byte, 0, 2*n+16))
	b.AddASN1(asn1.SEQUENCE, func(b *cryptobyte.Builder) {
		addInteger(b, raw[:n], order)
		addInteger(b, raw[n:], order)
	})
	return b.Bytes()
}

// addInteger adds an INTEGER above 0 and below the order, without a big.Int,
// which would take as long as all else that is done here for a signature.
func addInteger(b *cryptobyte.Builder, v, order []byte) {
	short := bytes.TrimLeft(v, "\x00")
	if len(short) == 0 || bytes.Compare(v, order) >= 0 {
		b.SetError(errors.New("the token's ECDSA signature is out of range"))
		return
	}
	b.AddASN1(asn1.INTEGER, func(b *cryptobyte.Builder) {
		if short[0]&0x80 != 0 {
			b.AddUint8(0)
		}
		b.AddBytes(short)
	})
}

// truncateDigest leaves the leftmost bits of a digest that ECDSA uses (FIPS
// 186-5, Section 6.4.1), since tokens refuse longer ones. The orders of P-256
// and P-384 have whole bytes, and P-521's is longer than any digest.
func truncateDigest(digest []byte, pub *ecdsa.PublicKey) []byte {
	return digest[:min(len(digest), (pub.Curve.Params().N.BitLen()+7)/8)]
}

// digestInfoPrefix is what comes before the digest in a DigestInfo (RFC 8017,
// Section 9.2, Note 1). The signatures of TLS 1.0 and 1.1 have none (RFC 4346,
// Section 7.4.3).
var digestInfoPrefix = map[crypto.Hash]string{
	crypto.MD5SHA1: "",
	crypto.SHA1:    "\x30\x21\x30\x09\x06\x05\x2b\x0e\x03\x02\x1a\x05\x00\x04\x14",
	crypto.SHA224:  "\x30\x2d\x30\x0d\x06\x09\x60\x86\x48\x01\x65\x03\x04\x02\x04\x05\x00\x04\x1c",
	crypto.SHA256:  "\x30\x31\x30\x0d\x06\x09\x60\x86\x48\x01\x65\x03\x04\x02\x01\x05\x00\x04\x20",
	crypto.SHA384:  "\x30\x41\x30\x0d\x06\x09\x60\x86\x48\x01\x65\x03\x04\x02\x02\x05\x00\x04\x30",
	crypto.SHA512:  "\x30\x51\x30\x0d\x06\x09\x60\x86\x48\x01\x65\x03\x04\x02\x03\x05\x00\x04\x40",
}

// digestInfo returns what CKM_RSA_PKCS pads and signs.
func digestInfo(hash crypto.Hash, digest []byte) ([]byte, error) {
	prefix, ok := digestInfoPrefix[hash]
	if !ok {
		return nil, fmt.Errorf("RSA signatures with PKCS #1 v1.5 padding are made over a digest, not %s", hash)
	}
	return append([]byte(prefix), digest...), nil
}
