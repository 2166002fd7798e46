package split

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/tls"

	"github.com/pion/dtls/v3/pkg/crypto/ccm"
	"golang.org/x/crypto/chacha20poly1305"

	"github.com/tlsski/tlsski/ski/tlsprf"
)

// Signalling values among the cipher suites.
const (
	emptyRenegotiationInfo uint16 = 0x00FF // RFC 5746, Section 3.3
	fallbackSCSV           uint16 = 0x5600 // RFC 7507, Section 2
)

// suite is what the machine and the record layer have to know of a cipher
// suite; lengths and PRF are tlsprf's.
type suite struct {
	id   uint16
	name string
	// staticRSA marks TLS_RSA_*: no ephemeral key, the client encrypts the
	// PreMasterSecret. All others are ECDHE.
	staticRSA bool
	// rsa says that the certificate's key is RSA; otherwise it is ECDSA or
	// EdDSA.
	rsa bool
	// aead makes the cipher for a key.
	aead func(key []byte) (cipher.AEAD, error)
	// explicitNonce says that each record carries the last 8 bytes of its nonce
	// (RFC 5288, Section 3; RFC 6655, Section 3). Otherwise the sequence number
	// is mixed into the IV (RFC 7905, Section 2).
	explicitNonce bool
	// maxRecords is how many records one key may protect.
	maxRecords uint64
}

// The bounds are those of RFC 8446, Section 5.5 (2^24.5 full-size records) and
// RFC 9147, Section 4.5.3 (2^23). The sequence number's own, 2^64-1, is out of
// reach (RFC 5246, Section 6.1).
const (
	maxRecordsGCM    = 23_726_566
	maxRecordsCCM    = 1 << 23
	maxRecordsChaCha = 1<<64 - 1
)

// suites are all that are implemented, in the server's order of preference.
var suites = []*suite{
	{tls.TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256, "TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256", false, false, aesGCM, true, maxRecordsGCM},
	{tls.TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256, "TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256", false, true, aesGCM, true, maxRecordsGCM},
	{tls.TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384, "TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384", false, false, aesGCM, true, maxRecordsGCM},
	{tls.TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384, "TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384", false, true, aesGCM, true, maxRecordsGCM},
	{tls.TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256, "TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256", false, false, chacha20poly1305.New, false, maxRecordsChaCha},
	{tls.TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256, "TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256", false, true, chacha20poly1305.New, false, maxRecordsChaCha},
	{tlsprf.TLS_ECDHE_ECDSA_WITH_AES_128_CCM, "TLS_ECDHE_ECDSA_WITH_AES_128_CCM", false, false, aesCCM(16), true, maxRecordsCCM},
	{tlsprf.TLS_ECDHE_ECDSA_WITH_AES_128_CCM_8, "TLS_ECDHE_ECDSA_WITH_AES_128_CCM_8", false, false, aesCCM(8), true, maxRecordsCCM},
	{tls.TLS_RSA_WITH_AES_128_GCM_SHA256, "TLS_RSA_WITH_AES_128_GCM_SHA256", true, true, aesGCM, true, maxRecordsGCM},
	{tls.TLS_RSA_WITH_AES_256_GCM_SHA384, "TLS_RSA_WITH_AES_256_GCM_SHA384", true, true, aesGCM, true, maxRecordsGCM},
}

func suiteByID(id uint16) *suite {
	for _, s := range suites {
		if s.id == id {
			return s
		}
	}
	return nil
}

// SuiteName returns the IANA name of a cipher suite that is implemented here;
// crypto/tls does not know all of them.
func SuiteName(id uint16) string {
	if s := suiteByID(id); s != nil {
		return s.name
	}
	return tls.CipherSuiteName(id)
}

func aesGCM(key []byte) (cipher.AEAD, error) {
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, err
	}
	return cipher.NewGCM(block)
}

func aesCCM(tagLen int) func(key []byte) (cipher.AEAD, error) {
	return func(key []byte) (cipher.AEAD, error) {
		block, err := aes.NewCipher(key)
		if err != nil {
			return nil, err
		}
		return ccm.NewCCM(block, tagLen, 12)
	}
}
