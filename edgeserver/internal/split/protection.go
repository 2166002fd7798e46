package split

import (
	"crypto/cipher"
	"encoding/binary"
	"errors"
)

// Protection is one direction of a connection's AEAD protection (RFC 5246,
// Section 6.2.3.3). It knows nothing of records on the wire, so that those of
// DTLS can use it as well. It is not safe for concurrent use: nonce and
// additional data are built in place, which is what keeps a record free of
// allocations.
type Protection struct {
	aead       cipher.AEAD
	suite      *suite
	iv         [12]byte // 4 bytes of it are used with explicit nonces
	nonce      [12]byte
	additional [13]byte
}

func newProtection(s *suite, key, iv []byte) (*Protection, error) {
	aead, err := s.aead(key)
	if err != nil {
		return nil, err
	}
	p := &Protection{aead: aead, suite: s}
	copy(p.iv[:], iv)
	return p, nil
}

// explicitNonceLen is the length in bytes of the part of the nonce that stands
// in front of a ciphertext.
const explicitNonceLen = 8

// Overhead is by how many bytes a ciphertext is longer than its plaintext.
func (p *Protection) Overhead() int {
	if p.suite.explicitNonce {
		return explicitNonceLen + p.aead.Overhead()
	}
	return p.aead.Overhead()
}

// MaxRecords is how many records may be protected, or opened.
func (p *Protection) MaxRecords() uint64 { return p.suite.maxRecords }

// Seal appends the protected form of plaintext to dst, which must not overlap
// it. seq is the record's sequence number, in DTLS with the epoch in its two
// highest bytes; none is used twice.
func (p *Protection) Seal(dst []byte, seq uint64, contentType uint8, version uint16, plaintext []byte) []byte {
	p.prepare(seq, contentType, version, len(plaintext))
	if p.suite.explicitNonce {
		dst = append(dst, p.nonce[4:]...)
	}
	return p.aead.Seal(dst, p.nonce[:], plaintext, p.additional[:])
}

var errOpen = errors.New("the record's authentication tag is wrong")

// Open returns the plaintext of ciphertext, in the same memory.
func (p *Protection) Open(seq uint64, contentType uint8, version uint16, ciphertext []byte) ([]byte, error) {
	if len(ciphertext) < p.Overhead() {
		return nil, errOpen
	}
	p.prepare(seq, contentType, version, len(ciphertext)-p.Overhead())
	if p.suite.explicitNonce {
		// It is the client's to choose (RFC 5288, Section 3).
		copy(p.nonce[4:], ciphertext[:explicitNonceLen])
		ciphertext = ciphertext[explicitNonceLen:]
	}
	plaintext, err := p.aead.Open(ciphertext[:0], p.nonce[:], ciphertext, p.additional[:])
	if err != nil {
		return nil, errOpen
	}
	return plaintext, nil
}

// prepare sets nonce and additional data: seq_num + type + version + length.
func (p *Protection) prepare(seq uint64, contentType uint8, version uint16, length int) {
	p.nonce = p.iv
	if p.suite.explicitNonce {
		binary.BigEndian.PutUint64(p.nonce[4:], seq)
	} else {
		tail := p.nonce[4:]
		binary.BigEndian.PutUint64(tail, binary.BigEndian.Uint64(tail)^seq)
	}
	binary.BigEndian.PutUint64(p.additional[:], seq)
	p.additional[8] = contentType
	binary.BigEndian.PutUint16(p.additional[9:], version)
	binary.BigEndian.PutUint16(p.additional[11:], uint16(length))
}
