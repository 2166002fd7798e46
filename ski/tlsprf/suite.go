package tlsprf

import "crypto/tls"

// Cipher suites that crypto/tls has no names for (RFC 7251, Section 2).
const (
	TLS_ECDHE_ECDSA_WITH_AES_128_CCM   uint16 = 0xC0AC
	TLS_ECDHE_ECDSA_WITH_AES_128_CCM_8 uint16 = 0xC0AE
)

// suite is what a cipher suite says of its keys (RFC 5246, Section 6.3 and
// Appendix C). All lengths are in bytes.
type suite struct {
	// macKeyLen is the length of the MAC key; 0 marks an AEAD cipher.
	macKeyLen int
	keyLen    int
	// ivLen is fixed_iv_length: for an AEAD cipher the implicit part of its
	// nonce, for a block cipher the IV that TLS 1.0 takes from the key block
	// (RFC 2246, Section 6.3) and later versions send with each record.
	ivLen int
	prf   PRF // in TLS 1.2
}

var (
	aes128CBC        = suite{macKeyLen: 20, keyLen: 16, ivLen: 16, prf: SHA256} // RFC 5246, Appendix A.5
	aes256CBC        = suite{macKeyLen: 20, keyLen: 32, ivLen: 16, prf: SHA256}
	aes128GCM        = suite{keyLen: 16, ivLen: 4, prf: SHA256} // RFC 5288, Section 3
	aes256GCM        = suite{keyLen: 32, ivLen: 4, prf: SHA384}
	aes128CCM        = suite{keyLen: 16, ivLen: 4, prf: SHA256}  // RFC 6655, Section 3
	chaCha20Poly1305 = suite{keyLen: 32, ivLen: 12, prf: SHA256} // RFC 7905, Section 2
)

// suites are the cipher suites by their IANA numbers.
var suites = map[uint16]suite{
	tls.TLS_RSA_WITH_AES_128_CBC_SHA:    aes128CBC,
	tls.TLS_RSA_WITH_AES_256_CBC_SHA:    aes256CBC,
	tls.TLS_RSA_WITH_AES_128_GCM_SHA256: aes128GCM,
	tls.TLS_RSA_WITH_AES_256_GCM_SHA384: aes256GCM,

	tls.TLS_ECDHE_ECDSA_WITH_AES_128_CBC_SHA:          aes128CBC,
	tls.TLS_ECDHE_ECDSA_WITH_AES_256_CBC_SHA:          aes256CBC,
	tls.TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256:       aes128GCM,
	tls.TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384:       aes256GCM,
	tls.TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256: chaCha20Poly1305,
	TLS_ECDHE_ECDSA_WITH_AES_128_CCM:                  aes128CCM,
	TLS_ECDHE_ECDSA_WITH_AES_128_CCM_8:                aes128CCM, // only the tag is shorter

	tls.TLS_ECDHE_RSA_WITH_AES_128_CBC_SHA:          aes128CBC,
	tls.TLS_ECDHE_RSA_WITH_AES_256_CBC_SHA:          aes256CBC,
	tls.TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256:       aes128GCM,
	tls.TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384:       aes256GCM,
	tls.TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256: chaCha20Poly1305,
}
