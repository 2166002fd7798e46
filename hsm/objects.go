//go:build cgo

package hsm

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rsa"
	"crypto/x509"
	"encoding/asn1"
	"errors"
	"fmt"
	"math/big"

	"github.com/miekg/pkcs11"
)

// What PKCS #11 3.0 has and the library's constants, of 2.40, have not.
const (
	ckkECEdwards           = 0x00000040 // CKK_EC_EDWARDS
	ckmECEdwardsKeyPairGen = 0x00001055 // CKM_EC_EDWARDS_KEY_PAIR_GEN
	ckmEdDSA               = 0x00001057 // CKM_EDDSA
)

// maxObjects bounds how many objects of a kind are looked at on a token.
const maxObjects = 4096

// findAll returns the objects that have all the attributes.
func (s *session) findAll(attributes ...*pkcs11.Attribute) (found []pkcs11.ObjectHandle, err error) {
	if err := s.FindObjectsInit(s.handle, attributes); err != nil {
		return nil, fmt.Errorf("C_FindObjectsInit: %w", err)
	}
	defer func() {
		if final := s.FindObjectsFinal(s.handle); final != nil && err == nil {
			err = fmt.Errorf("C_FindObjectsFinal: %w", final)
		}
	}()
	for {
		some, _, err := s.FindObjects(s.handle, 64)
		if err != nil {
			return nil, fmt.Errorf("C_FindObjects: %w", err)
		}
		if len(some) == 0 {
			return found, nil
		}
		if found = append(found, some...); len(found) > maxObjects {
			return nil, fmt.Errorf("the token has more than %d objects of this kind", maxObjects)
		}
	}
}

// attribute returns the value of one attribute, nil where the token does not
// give it. They are asked for one by one: one that a token does not know makes
// it refuse them all.
func (s *session) attribute(o pkcs11.ObjectHandle, attribute uint) ([]byte, error) {
	values, err := s.GetAttributeValue(s.handle, o, []*pkcs11.Attribute{pkcs11.NewAttribute(attribute, nil)})
	switch {
	case err == nil && len(values) == 1:
		return values[0].Value, nil
	case err == nil, errors.Is(err, pkcs11.Error(pkcs11.CKR_ATTRIBUTE_TYPE_INVALID)), errors.Is(err, pkcs11.Error(pkcs11.CKR_ATTRIBUTE_SENSITIVE)):
		return nil, nil
	}
	return nil, fmt.Errorf("C_GetAttributeValue: %w", err)
}

// flag returns a CK_BBOOL, or otherwise where the token does not give it.
func (s *session) flag(o pkcs11.ObjectHandle, attribute uint, otherwise bool) (bool, error) {
	v, err := s.attribute(o, attribute)
	if err != nil || len(v) != 1 {
		return otherwise, err
	}
	return v[0] != 0, nil
}

// keyType returns CKA_KEY_TYPE, a CK_ULONG.
func (s *session) keyType(o pkcs11.ObjectHandle) (uint, error) {
	v, err := s.attribute(o, pkcs11.CKA_KEY_TYPE)
	if err != nil {
		return 0, err
	}
	for t := range map[uint]bool{pkcs11.CKK_RSA: true, pkcs11.CKK_EC: true, ckkECEdwards: true} {
		if bytes.Equal(v, pkcs11.NewAttribute(pkcs11.CKA_KEY_TYPE, t).Value) {
			return t, nil
		}
	}
	return 0, errKeyType
}

var errKeyType = errors.New("its type is not supported: use RSA of 1024 to 8192 bits, EC on P-256, P-384 or P-521, or Ed25519")

// publicKey reads the public half out of a public key object, or an RSA private
// key that has it too. It is nil where the object lacks it.
func (s *session) publicKey(o pkcs11.ObjectHandle) (crypto.PublicKey, error) {
	kind, err := s.keyType(o)
	if err != nil {
		return nil, err
	}
	if kind == pkcs11.CKK_RSA {
		n, err := s.attribute(o, pkcs11.CKA_MODULUS)
		if err != nil {
			return nil, err
		}
		e, err := s.attribute(o, pkcs11.CKA_PUBLIC_EXPONENT)
		if err != nil || len(n) == 0 || len(e) == 0 {
			return nil, err
		}
		return parseRSA(n, e)
	}
	params, err := s.attribute(o, pkcs11.CKA_EC_PARAMS)
	if err != nil {
		return nil, err
	}
	point, err := s.attribute(o, pkcs11.CKA_EC_POINT)
	if err != nil || len(point) == 0 {
		return nil, err
	}
	if kind == ckkECEdwards {
		return parseEdwards(params, point)
	}
	return parseEC(params, point)
}

func parseRSA(n, e []byte) (crypto.PublicKey, error) {
	exponent := new(big.Int).SetBytes(e)
	if !exponent.IsInt64() || exponent.Int64() < 3 || exponent.Int64() > 1<<31-1 || exponent.Bit(0) == 0 {
		return nil, errors.New("its public exponent is not supported: use 65537")
	}
	pub := &rsa.PublicKey{N: new(big.Int).SetBytes(n), E: int(exponent.Int64())}
	return pub, checkPublic(pub)
}

var curves = map[string]elliptic.Curve{
	"\x06\x08\x2a\x86\x48\xce\x3d\x03\x01\x07": elliptic.P256(), // 1.2.840.10045.3.1.7
	"\x06\x05\x2b\x81\x04\x00\x22":             elliptic.P384(), // 1.3.132.0.34
	"\x06\x05\x2b\x81\x04\x00\x23":             elliptic.P521(), // 1.3.132.0.35
}

// parseEC reads CKA_EC_PARAMS and CKA_EC_POINT. The point is in a DER OCTET
// STRING (PKCS #11, "Elliptic curve public key objects"); some tokens leave that
// out, as versions before 2.20 said.
func parseEC(params, point []byte) (crypto.PublicKey, error) {
	curve, ok := curves[string(params)]
	if !ok {
		return nil, errKeyType
	}
	for _, p := range [][]byte{unwrap(point), point} {
		if pub, err := ecdsa.ParseUncompressedPublicKey(curve, p); err == nil {
			return pub, nil
		}
	}
	return nil, errors.New("its CKA_EC_POINT is not a point of the curve")
}

// edwards25519 are the ways to say so in CKA_EC_PARAMS: the object identifier
// 1.3.101.112 of RFC 8410, and the name (PKCS #11 3.0, "Edwards elliptic curve
// public key objects").
var edwards25519 = map[string]bool{
	"\x06\x03\x2b\x65\x70":                         true,
	"\x13\x0cedwards25519":                         true,
	"\x06\x09\x2b\x06\x01\x04\x01\xda\x47\x0f\x01": true, // of GnuPG, in older tokens
}

// parseEdwards reads a point that is in an OCTET STRING (SoftHSM), in a BIT
// STRING (PKCS #11 3.0 as it was published first), or bare.
func parseEdwards(params, point []byte) (crypto.PublicKey, error) {
	if !edwards25519[string(params)] {
		return nil, errKeyType
	}
	for _, p := range [][]byte{unwrap(point), point} {
		if len(p) == ed25519.PublicKeySize {
			return ed25519.PublicKey(p), nil
		}
	}
	return nil, errors.New("its CKA_EC_POINT is not an Ed25519 public key")
}

// unwrap returns what is in a DER OCTET STRING or BIT STRING, nil if it is not
// one.
func unwrap(der []byte) []byte {
	var v asn1.RawValue
	rest, err := asn1.Unmarshal(der, &v)
	switch {
	case err != nil, len(rest) > 0, v.Class != asn1.ClassUniversal, v.IsCompound:
		return nil
	case v.Tag == asn1.TagOctetString:
		return v.Bytes
	case v.Tag == asn1.TagBitString && len(v.Bytes) > 0 && v.Bytes[0] == 0:
		return v.Bytes[1:]
	}
	return nil
}

// checkPublic says whether a key is of a kind that the key server can use.
func checkPublic(pub crypto.PublicKey) error {
	switch pub := pub.(type) {
	case *rsa.PublicKey:
		if bits := pub.N.BitLen(); bits < 1024 || bits > 8192 {
			return errKeyType
		}
		return nil
	case *ecdsa.PublicKey:
		switch pub.Curve {
		case elliptic.P256(), elliptic.P384(), elliptic.P521():
			return nil
		}
	case ed25519.PublicKey:
		return nil
	}
	return errKeyType
}

// certificate returns a certificate object's, nil if it is none of X.509 or
// cannot be parsed.
func (s *session) certificate(o pkcs11.ObjectHandle) (*x509.Certificate, error) {
	der, err := s.attribute(o, pkcs11.CKA_VALUE)
	if err != nil || len(der) == 0 {
		return nil, err
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, nil // It is of no use here, and none of ours.
	}
	return cert, nil
}
