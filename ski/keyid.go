package ski

import (
	"crypto"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
)

// KeyID names a key pair: the SHA-256 of its DER SubjectPublicKeyInfo (RFC
// 7469, Section 2.4). It is the same for a certificate, for its renewal with
// the same key, and for a raw public key (RFC 7250).
type KeyID [sha256.Size]byte

// CertificateKeyID returns the fingerprint of the certificate's public key.
func CertificateKeyID(cert *x509.Certificate) KeyID {
	return sha256.Sum256(cert.RawSubjectPublicKeyInfo)
}

// PublicKeyID returns the fingerprint of a public key of one of the types that
// x509.MarshalPKIXPublicKey knows.
func PublicKeyID(pub crypto.PublicKey) (KeyID, error) {
	der, err := x509.MarshalPKIXPublicKey(pub)
	if err != nil {
		return KeyID{}, fmt.Errorf("ski: public key: %w", err)
	}
	return sha256.Sum256(der), nil
}

// ParseKeyID reads the 64 hexadecimal digits that String writes.
func ParseKeyID(s string) (KeyID, error) {
	var id KeyID
	if hex.DecodedLen(len(s)) != len(id) {
		return id, fmt.Errorf("ski: an SPKI fingerprint has %d hexadecimal digits, not %d", 2*len(id), len(s))
	}
	if _, err := hex.Decode(id[:], []byte(s)); err != nil {
		return KeyID{}, errors.New("ski: an SPKI fingerprint has only hexadecimal digits")
	}
	return id, nil
}

// String returns the fingerprint as 64 lower-case hexadecimal digits.
func (id KeyID) String() string { return hex.EncodeToString(id[:]) }

// IsZero reports whether id is the zero value, which names no key.
func (id KeyID) IsZero() bool { return id == KeyID{} }

// MarshalText writes what String returns, for JSON and YAML.
func (id KeyID) MarshalText() ([]byte, error) { return []byte(id.String()), nil }

// UnmarshalText reads what ParseKeyID reads.
func (id *KeyID) UnmarshalText(text []byte) (err error) {
	*id, err = ParseKeyID(string(text))
	return err
}
