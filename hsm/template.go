package hsm

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rsa"
	"fmt"
	"maps"
	"slices"
	"strings"
)

// Template says what key pair Generate makes.
type Template struct {
	// Type is one of KeyTypes.
	Type string
	// Sign lets the key sign, Decrypt lets an RSA key decrypt. A key that is for
	// one of them is of no use to who would misuse it for the other.
	Sign, Decrypt bool
}

// keyTypes are the types of keys that Generate makes: RSA with bits, and the
// others by their CKA_EC_PARAMS.
var keyTypes = map[string]struct {
	bits   int
	params string
}{
	"ec-p256":  {params: "\x06\x08\x2a\x86\x48\xce\x3d\x03\x01\x07"},
	"ec-p384":  {params: "\x06\x05\x2b\x81\x04\x00\x22"},
	"ec-p521":  {params: "\x06\x05\x2b\x81\x04\x00\x23"},
	"ed25519":  {params: "\x13\x0cedwards25519"},
	"rsa-2048": {bits: 2048},
	"rsa-3072": {bits: 3072},
	"rsa-4096": {bits: 4096},
}

// KeyTypes returns the types of keys that Generate makes, separated by commas.
func KeyTypes() string {
	return strings.Join(slices.Sorted(maps.Keys(keyTypes)), ", ")
}

// TypeOf returns what KeyInfo.Type calls keys such as that of pub.
func TypeOf(pub crypto.PublicKey) string {
	switch pub := pub.(type) {
	case *rsa.PublicKey:
		return fmt.Sprintf("rsa-%d", pub.N.BitLen())
	case *ecdsa.PublicKey:
		return fmt.Sprintf("ec-p%d", pub.Curve.Params().BitSize)
	case ed25519.PublicKey:
		return "ed25519"
	}
	return ""
}
