package hsm

import (
	"crypto/subtle"
	"errors"
	"math/bits"

	"github.com/tlsski/tlsski/ski"
)

// The decryption of an EncryptedPreMasterSecret is divided: the token raises
// the ciphertext to the private exponent and no more (CKM_RSA_X_509), and the
// padding is looked at here, in constant time.
//
// CKM_RSA_PKCS would have the token do both. It is not used, whatever the token
// promises: C_Decrypt then returns CKR_ENCRYPTED_DATA_INVALID where the padding
// is wrong, takes another path through the token's firmware, the driver, the
// wire to it and this process, and copies as many bytes as the plaintext has.
// Each of these can be measured from afar, and each is Bleichenbacher's padding
// oracle (1998): some ten thousand questions decrypt any recorded premaster
// secret or sign anything with the key. The Marvin attack (Kario, 2023) found
// that such differences are measurable over a network in nearly all libraries
// that were thought to be safe, PKCS #11 modules among them. A raw result has no
// right or wrong, and nothing that happens before this code depends on the
// padding.

// minRawLen is the shortest modulus in bytes that has room for a
// PreMasterSecret: 0x00 0x02, 8 bytes of padding, 0x00 and the secret (RFC 8017,
// Section 7.2.1).
const minRawLen = 2 + 8 + 1 + ski.PreMasterSecretLen

var errRawLength = errors.New("the token's answer to a raw RSA decryption is longer than the modulus")

// unpadPreMasterSecret takes the padding of RSAES-PKCS1-v1_5 (RFC 8017, Section
// 7.2.2) off raw, a raw RSA decryption with a modulus of size bytes. Where the
// padding is right and the plaintext as long as secret, which has
// ski.PreMasterSecretLen bytes, the plaintext is copied over secret; otherwise
// secret stays. Which of the two has happened shows neither in the error nor in
// the time: no branch, no index and no length depends on the plaintext.
//
// With one exception that cannot be cured here: some tokens return the result
// as a number, without the zero bytes in front of it, so that len(raw) depends
// on the plaintext. From the copy on, shorter results take the steps that full
// ones take, but the token, its driver and the copy have handled fewer bytes
// then. A right padding has exactly one zero byte in front (0x00 0x02), so what
// this could tell apart are plaintexts that begin with 0x00 from others, and
// those have to be found one in 256 first. SoftHSM and
// opencryptoki return all bytes.
func unpadPreMasterSecret(raw []byte, size int, secret []byte) error {
	if size < minRawLen || len(secret) != ski.PreMasterSecretLen {
		return errors.New("the modulus is too short for a PreMasterSecret")
	}
	if len(raw) > size { // which a token does whatever the plaintext is, if it does
		return errRawLength
	}
	em := make([]byte, size)
	defer clear(em)
	copy(em, raw)
	alignRight(em, len(raw))

	// EM = 0x00 || 0x02 || PS || 0x00 || M, with M of the one length that is
	// asked for: so it is known where the zero byte between them is.
	end := size - ski.PreMasterSecretLen - 1
	ok := subtle.ConstantTimeByteEq(em[0], 0x00)
	ok &= subtle.ConstantTimeByteEq(em[1], 0x02)
	for _, b := range em[2:end] {
		ok &= 1 ^ subtle.ConstantTimeByteEq(b, 0x00)
	}
	ok &= subtle.ConstantTimeByteEq(em[end], 0x00)
	subtle.ConstantTimeCopy(ok, secret, em[end+1:])
	return nil
}

// alignRight moves the n bytes at the beginning of b to its end and fills the
// beginning with zeros, in steps that depend on len(b) alone. The bytes after
// the first n are zero.
func alignRight(b []byte, n int) {
	shift := len(b) - n
	for bit := range bits.Len(uint(len(b))) {
		step, set := 1<<bit, shift>>bit&1
		for i := len(b) - 1; i >= 0; i-- {
			var from byte
			if i >= step {
				from = b[i-step]
			}
			b[i] = byte(subtle.ConstantTimeSelect(set, int(from), int(b[i])))
		}
	}
}
