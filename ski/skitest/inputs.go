package skitest

import (
	"bytes"
	"crypto/ecdh"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"encoding/binary"
	"math/big"
	"slices"

	"github.com/tlsski/tlsski/ski"
)

var curves = map[tls.CurveID]ecdh.Curve{
	tls.CurveP256: ecdh.P256(),
	tls.CurveP384: ecdh.P384(),
	tls.CurveP521: ecdh.P521(),
	tls.X25519:    ecdh.X25519(),
}

// ECDHEInput returns an input of method ECDHE up to TLS 1.2: two random
// randoms, and ServerECDHParams with a fresh key of the group, which is P-256,
// P-384, P-521 or X25519.
func ECDHEInput(group tls.CurveID) []byte {
	key, err := curves[group].GenerateKey(rand.Reader)
	if err != nil {
		panic(err)
	}
	return serverECDHParams(Randoms(), group, key.PublicKey().Bytes())
}

// Randoms returns a ClientRandom and a ServerRandom, which an input of method
// ECDHE up to TLS 1.2 begins with. They do not begin like a SEQUENCE or SET, since
// one in a million and a half of the inputs would be refused otherwise
// (ski.CheckForm).
func Randoms() []byte {
	for {
		if r := randomBytes(2 * ski.RandomLen); r[0]&^1 != 0x30 {
			return r
		}
	}
}

// serverECDHParams appends ServerECDHParams (RFC 8422, Section 5.4) with any
// group and point.
func serverECDHParams(to []byte, group tls.CurveID, point []byte) []byte {
	to = append(to, 3) // curve_type named_curve
	to = binary.BigEndian.AppendUint16(to, uint16(group))
	return append(append(to, byte(len(point))), point...)
}

// CertificateVerifyInput returns an input of method ECDHE in TLS 1.3: the
// content covered by a server's CertificateVerify (RFC 8446, Section 4.4.3),
// with a random transcript hash of 32 or 48 bytes.
func CertificateVerifyInput(hashLen int) []byte {
	return certificateVerify("TLS 1.3, server CertificateVerify", randomBytes(hashLen))
}

func certificateVerify(context string, transcriptHash []byte) []byte {
	return slices.Concat(bytes.Repeat([]byte{0x20}, 64), []byte(context), []byte{0}, transcriptHash)
}

// PreMasterSecret returns a random one that begins with version.
func PreMasterSecret(version uint16) []byte {
	return append(binary.BigEndian.AppendUint16(nil, version), randomBytes(ski.PreMasterSecretLen-2)...)
}

// EncryptPreMasterSecret returns the EncryptedPreMasterSecret (RFC 5246,
// Section 7.4.7.1), without its 2-byte length.
func EncryptPreMasterSecret(pub *rsa.PublicKey, secret []byte) ([]byte, error) {
	//lint:ignore SA1019 it is what static RSA is made of
	return rsa.EncryptPKCS1v15(rand.Reader, pub, secret)
}

// rawEncrypt encrypts a block as long as the modulus, with no padding of its
// own.
func rawEncrypt(pub *rsa.PublicKey, block []byte) []byte {
	c := new(big.Int).Exp(new(big.Int).SetBytes(block), big.NewInt(int64(pub.E)), pub.N)
	return c.FillBytes(make([]byte, pub.Size()))
}

// encryptBlockType is EncryptPreMasterSecret with any block type (RFC 8017,
// Section 7.2.1, where it is 2).
func encryptBlockType(pub *rsa.PublicKey, blockType byte, secret []byte) []byte {
	block := bytes.Repeat([]byte{0xA5}, pub.Size())
	block[0], block[1] = 0, blockType
	block[len(block)-len(secret)-1] = 0
	copy(block[len(block)-len(secret):], secret)
	return rawEncrypt(pub, block)
}

func randomBytes(n int) []byte {
	b := make([]byte, n)
	rand.Read(b)
	return b
}
