package tlsprf

import (
	"crypto/hmac"
	"crypto/md5"
	"crypto/sha1"
	"crypto/sha256"
	"crypto/sha512"
	"crypto/subtle"
	"errors"
	"fmt"
	"hash"
)

// MaxOutputLen is the largest length in bytes that Derive returns. The PRF
// itself is endless, but no secret of TLS is longer than a length field of two
// bytes can say: beyond it is a mistake, not a need.
const MaxOutputLen = 1<<16 - 1

// PRF is a pseudorandom function: PRF(secret, label, seed).
type PRF uint8

// The pseudorandom functions.
const (
	// MD5SHA1 is the PRF of TLS 1.0, TLS 1.1 and DTLS 1.0, the exclusive or of
	// one built on HMAC-MD5 and one on HMAC-SHA-1 (RFC 2246, Section 5; RFC
	// 4346, Section 5).
	MD5SHA1 PRF = iota
	// SHA256 is the PRF of TLS 1.2 and DTLS 1.2 with the cipher suites that
	// name no other (RFC 5246, Section 5).
	SHA256
	// SHA384 is the PRF of TLS 1.2 and DTLS 1.2 with the cipher suites that
	// end in SHA384 (RFC 5288, Section 3; RFC 5289, Section 3).
	SHA384
)

// String returns the name of the hash or hashes.
func (p PRF) String() string {
	switch p {
	case MD5SHA1:
		return "MD5-SHA1"
	case SHA256:
		return "SHA256"
	case SHA384:
		return "SHA384"
	}
	return fmt.Sprintf("PRF(%d)", uint8(p))
}

// Size returns the length in bytes of the handshake hash: 36, 32 or 48, and 0
// for a PRF that is not one of the above.
func (p PRF) Size() int {
	switch p {
	case MD5SHA1:
		return md5.Size + sha1.Size
	case SHA256:
		return sha256.Size
	case SHA384:
		return sha512.Size384
	}
	return 0
}

// New returns the hash over the handshake messages that belongs to the PRF:
// what session_hash (RFC 7627, Section 3) and Finished (RFC 5246, Section
// 7.4.9; RFC 4346, Section 7.4.9) are computed from. It returns nil for a PRF
// that is not one of the above.
func (p PRF) New() hash.Hash {
	switch p {
	case MD5SHA1:
		return &md5sha1{md5.New(), sha1.New()}
	case SHA256:
		return sha256.New()
	case SHA384:
		return sha512.New384()
	}
	return nil
}

// Derive returns the first length bytes of PRF(secret, label, seed), where the
// seed is the concatenation of the slices. length is between 1 and
// MaxOutputLen.
func (p PRF) Derive(length int, secret []byte, label string, seed ...[]byte) ([]byte, error) {
	if length < 1 || length > MaxOutputLen {
		return nil, fmt.Errorf("tlsprf: %d bytes asked for, not between 1 and %d", length, MaxOutputLen)
	}
	out := make([]byte, length)
	switch p {
	case MD5SHA1:
		// The halves overlap by one byte where the length is odd.
		half := (len(secret) + 1) / 2
		pHash(md5.New, out, secret[:half], label, seed)
		other := make([]byte, length)
		pHash(sha1.New, other, secret[len(secret)-half:], label, seed)
		subtle.XORBytes(out, out, other)
		clear(other)
	case SHA256:
		pHash(sha256.New, out, secret, label, seed)
	case SHA384:
		pHash(sha512.New384, out, secret, label, seed)
	default:
		return nil, errors.New("tlsprf: unknown PRF")
	}
	return out, nil
}

// pHash fills out with P_hash(secret, label + seed) (RFC 5246, Section 5).
func pHash(h func() hash.Hash, out, secret []byte, label string, seed [][]byte) {
	mac := hmac.New(h, secret)
	writeSeed := func() {
		mac.Write([]byte(label))
		for _, s := range seed {
			mac.Write(s)
		}
	}
	writeSeed()
	a := mac.Sum(nil) // A(1)
	block := make([]byte, 0, mac.Size())
	for {
		mac.Reset()
		mac.Write(a)
		writeSeed()
		block = mac.Sum(block[:0])
		n := copy(out, block)
		if out = out[n:]; len(out) == 0 {
			break
		}
		mac.Reset()
		mac.Write(a)
		a = mac.Sum(a[:0]) // A(i+1)
	}
	clear(block[:cap(block)])
	clear(a)
}

// md5sha1 is the MD5 followed by the SHA-1 of what is written to it.
type md5sha1 struct{ md5, sha1 hash.Hash }

func (h *md5sha1) Write(p []byte) (int, error) {
	h.md5.Write(p)
	return h.sha1.Write(p)
}

func (h *md5sha1) Sum(b []byte) []byte { return h.sha1.Sum(h.md5.Sum(b)) }

func (h *md5sha1) Reset() {
	h.md5.Reset()
	h.sha1.Reset()
}

func (h *md5sha1) Size() int      { return md5.Size + sha1.Size }
func (h *md5sha1) BlockSize() int { return md5.BlockSize } // and sha1.BlockSize
