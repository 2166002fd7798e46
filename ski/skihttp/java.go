package skihttp

import (
	"crypto/sha1"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"strings"

	"github.com/tlsski/tlsski/ski"
)

// JavaKeyServer is what a Client does otherwise for the open source key server
// in Java (github.com/mami-project/KeyServer, version 0.4), which knows an early
// form of the draft: JSON only, the method and the hash always present, RSA keys
// alone, and of the extensions none. It answers its errors with 200, and what is
// no base64 with 500 and without an SKI message.
//
// An edge that uses it offers TLS 1.2 at most, with the curve P-256 and an RSA
// certificate.
type JavaKeyServer struct {
	// KeyName returns what the key server calls a key: whatever its operator
	// has put into its database. nil means the SPKI fingerprint as 64 lower-case
	// hexadecimal digits; see also CertificateNames.
	KeyName func(ski.KeyID) (string, error)
	// UnsafeStaticRSA allows ski.MethodRSA, which is refused otherwise. How long
	// that key server takes depends on the plaintext, so that a TLS client that
	// measures it can have recorded connections decrypted (Bleichenbacher, 1998),
	// whatever a ski.Key makes of the answer.
	UnsafeStaticRSA bool
}

// CertificateNames returns a KeyName for a database whose names are the SHA-1
// fingerprints of the sites' certificates, in upper-case hexadecimal.
func CertificateNames(certs ...*x509.Certificate) func(ski.KeyID) (string, error) {
	names := make(map[ski.KeyID]string, len(certs))
	for _, cert := range certs {
		sum := sha1.Sum(cert.Raw) // A name, not a proof.
		names[ski.CertificateKeyID(cert)] = strings.ToUpper(hex.EncodeToString(sum[:]))
	}
	return func(id ski.KeyID) (string, error) {
		if name, ok := names[id]; ok {
			return name, nil
		}
		return "", &ski.MalformedError{Attribute: "spki", Reason: "is that of none of the certificates whose names are known"}
	}
}

// javaInputLen is the only length of an ECDHE input: two randoms and
// ServerECDHParams with an uncompressed point of P-256.
const javaInputLen = 2*ski.RandomLen + 4 + 65

// javaHash is its name for the hash that has none in the draft.
const javaHash = "SHA1"

// EncodeRequest is ski.EncodeRequest for this key server. What it cannot do is an
// error here, a *ski.MalformedError: it would answer some of it with a signature
// of something else.
func (j *JavaKeyServer) EncodeRequest(req *ski.Request) ([]byte, error) {
	if err := req.Validate(); err != nil {
		return nil, err
	}
	method, hash := req.KeyExchange(), ""
	switch {
	case req.Protocol.Is13():
		return nil, cannot("protocol", "is not one that the key server knows")
	case req.Scheme != 0:
		return nil, cannot("scheme", "is an extension that the key server does not know")
	case method == ski.MethodECDHE && len(req.Input) != javaInputLen:
		return nil, cannot("input", "is not of the curve P-256, which alone the key server knows")
	case method == ski.MethodECDHE:
		if hash = string(req.Hash); hash == "" {
			hash = javaHash
		}
	case method != ski.MethodRSA:
		return nil, cannot("method", "is not one that the key server knows")
	case !j.UnsafeStaticRSA:
		return nil, cannot("method", "is RSA, and the time of the key server tells what is wrong with a plaintext: see UnsafeStaticRSA")
	}
	name := req.SPKI.String()
	if j.KeyName != nil {
		var err error
		if name, err = j.KeyName(req.SPKI); err != nil {
			return nil, err
		}
	}
	return json.Marshal(struct {
		Protocol ski.Protocol `json:"protocol"`
		SPKI     string       `json:"spki"`
		Method   ski.Method   `json:"method"`
		Hash     string       `json:"hash,omitempty"`
		Input    []byte       `json:"input"` // in standard base64, padded
	}{req.Protocol, name, method, hash, req.Input})
}

func cannot(attribute, reason string) error {
	return &ski.MalformedError{Attribute: attribute, Reason: reason}
}
