package ski

import (
	"crypto"
	"crypto/tls"
	"errors"
	"fmt"
	"strings"
	"time"
)

// MinMTU and MaxMTU bound the MTU that can be configured for the path between an
// edge server and a key server: the longest IP packet, in bytes.
const (
	MinMTU = 400
	MaxMTU = 65535
)

// Limits on what is read from the wire. They are checked before anything is
// looked up, so that an unknown peer's lengths never decide an allocation.
const (
	// MaxMessageSize is the largest encoded request or response, in bytes. The
	// largest legitimate one, DHE with an 8192-bit group, stays below it.
	MaxMessageSize = 4096
	// MaxPairs is the largest number of pairs in the message's map.
	MaxPairs = 32
	// MaxDepth is the deepest nesting: the message's map is level 1, an array
	// or map as the value of an unknown key is level 2.
	MaxDepth = 2
	// MaxServerNameLen is the longest server_name in bytes: that of a DNS name
	// (RFC 1035, Section 2.3.4) in its text form.
	MaxServerNameLen = 253
	// MaxParamsLen is the longest 'params' in bytes: curve_type, namedcurve and
	// a point with its length of one byte (RFC 8422, Section 5.4).
	MaxParamsLen = 4 + 255
	// MaxStateLen is the longest 'state' in bytes. It has a server name in it.
	MaxStateLen = 1024
)

// PreMasterSecretLen is the length in bytes of the RSA PreMasterSecret
// (RFC 5246, Section 7.4.7.1).
const PreMasterSecretLen = 48

// RandomLen is the length in bytes of ClientHello.random and
// ServerHello.random (RFC 5246, Section 7.4.1.2).
const RandomLen = 32

// Protocol is the protocol version negotiated between client and edge server,
// as the text that goes over the wire (draft, Section 5.2).
type Protocol string

// The protocol versions of the draft, and those of TLS 1.3 that this project
// adds to them.
const (
	TLS10  Protocol = "TLS 1.0"
	TLS11  Protocol = "TLS 1.1"
	TLS12  Protocol = "TLS 1.2"
	TLS13  Protocol = "TLS 1.3" // extension
	DTLS10 Protocol = "DTLS 1.0"
	DTLS12 Protocol = "DTLS 1.2"
	DTLS13 Protocol = "DTLS 1.3" // extension
)

// Protocols lists every Protocol, oldest first.
func Protocols() []Protocol {
	return []Protocol{TLS10, TLS11, TLS12, TLS13, DTLS10, DTLS12, DTLS13}
}

// Valid reports whether p is one of the versions above.
func (p Protocol) Valid() bool {
	switch p {
	case TLS10, TLS11, TLS12, TLS13, DTLS10, DTLS12, DTLS13:
		return true
	}
	return false
}

// Is13 reports whether p is TLS 1.3 or DTLS 1.3, whose signatures cover a
// CertificateVerify content instead of ServerECDHParams.
func (p Protocol) Is13() bool { return p == TLS13 || p == DTLS13 }

// Is12 reports whether p is TLS 1.2 or DTLS 1.2, the versions in which the
// signature's hash is negotiated.
func (p Protocol) Is12() bool { return p == TLS12 || p == DTLS12 }

// Wire returns the version as it stands in a ClientHello (0x0303 for TLS 1.2,
// 0xFEFD for DTLS 1.2), or 0 for a Protocol that is not valid.
func (p Protocol) Wire() uint16 {
	switch p {
	case TLS10:
		return tls.VersionTLS10
	case TLS11:
		return tls.VersionTLS11
	case TLS12:
		return tls.VersionTLS12
	case TLS13:
		return tls.VersionTLS13
	case DTLS10:
		return 0xFEFF
	case DTLS12:
		return 0xFEFD
	case DTLS13:
		return 0xFEFC
	}
	return 0
}

// Method is the key exchange method (draft, Section 5.2).
type Method string

// The methods. MethodECDHE is the default: it is what an absent 'method' means.
const (
	MethodECDHE Method = "ECDHE"
	MethodRSA   Method = "RSA"
	MethodDHE   Method = "DHE"
	// MethodECDHEPMS is an extension, of two exchanges: in the first the key
	// server makes the ephemeral key and signs it, in the second it returns the
	// PreMasterSecret. The edge never has an ephemeral private key.
	MethodECDHEPMS Method = "ECDHE-PMS"
)

// Methods lists every Method.
func Methods() []Method {
	return []Method{MethodECDHE, MethodRSA, MethodDHE, MethodECDHEPMS}
}

// Valid reports whether m is one of the methods above.
func (m Method) Valid() bool {
	switch m {
	case MethodECDHE, MethodRSA, MethodDHE, MethodECDHEPMS:
		return true
	}
	return false
}

// Hash is the hash of the signature (draft, Section 5.2). The empty Hash means
// the protocol's default: SHA-1 for TLS 1.2 and DTLS 1.2 (RFC 5246, Section
// 7.4.1.4.1); for older versions SHA-1 with ECDSA and MD5 followed by SHA-1
// with RSA (RFC 4346, Section 7.4.3).
type Hash string

// The hashes of the draft.
const (
	HashDefault Hash = ""
	SHA224      Hash = "SHA-224"
	SHA256      Hash = "SHA-256"
	SHA384      Hash = "SHA-384"
	SHA512      Hash = "SHA-512"
)

// Valid reports whether h is one of the hashes above.
func (h Hash) Valid() bool {
	switch h {
	case HashDefault, SHA224, SHA256, SHA384, SHA512:
		return true
	}
	return false
}

// Func returns the hash function, or 0 for the empty Hash, whose function
// depends on the protocol and the key.
func (h Hash) Func() crypto.Hash {
	switch h {
	case SHA224:
		return crypto.SHA224
	case SHA256:
		return crypto.SHA256
	case SHA384:
		return crypto.SHA384
	case SHA512:
		return crypto.SHA512
	}
	return 0
}

// HashOf returns the wire name of h. SHA-1 has none: it is the default that is
// left out. ok is false for a hash the draft cannot express.
func HashOf(h crypto.Hash) (name Hash, ok bool) {
	switch h {
	case crypto.SHA1:
		return HashDefault, true
	case crypto.SHA224:
		return SHA224, true
	case crypto.SHA256:
		return SHA256, true
	case crypto.SHA384:
		return SHA384, true
	case crypto.SHA512:
		return SHA512, true
	}
	return "", false
}

// Request is one question to the key server.
type Request struct {
	// Protocol is the version negotiated between client and edge. Required.
	Protocol Protocol
	// SPKI names the private key by the SHA-256 fingerprint of its public half
	// (RFC 7469, Section 2.4). Required.
	SPKI KeyID
	// Method is the key exchange. The zero value means MethodECDHE.
	Method Method
	// Hash is the hash of the signature; see there for the zero value. Ignored
	// for MethodRSA, and where Scheme is set.
	Hash Hash
	// Input is what the operation is done on. Required.
	//
	//	RSA       EncryptedPreMasterSecret, without its 2-byte length
	//	ECDHE     ClientRandom(32) + ServerRandom(32) + ServerECDHParams
	//	DHE       ClientRandom(32) + ServerRandom(32) + ServerDHParams
	//	ECDHE in TLS 1.3 and DTLS 1.3: the content covered by the
	//	          CertificateVerify signature (RFC 8446, Section 4.4.3)
	//	ECDHE-PMS with Group: ClientRandom(32) + ServerRandom(32)
	//	ECDHE-PMS with State: the client's ECDH public value (the point of its
	//	          ClientKeyExchange, without the length byte)
	Input []byte

	// Scheme replaces Hash by a SignatureScheme (RFC 8446, Section 4.2.3); it
	// is how RSA-PSS and EdDSA are asked for. 0 means not sent. Extension,
	// required with TLS 1.3 and DTLS 1.3.
	Scheme tls.SignatureScheme
	// ClientVersion is ClientHello.client_version as on the wire (0x0303),
	// which the PreMasterSecret of MethodRSA must begin with. 0 means not
	// sent. Extension.
	ClientVersion uint16
	// ServerName is the name the client asked for (RFC 6066, Section 3), for
	// policy and audit. At most MaxServerNameLen bytes. Extension.
	ServerName string
	// Group is the NamedGroup (RFC 8422, Section 5.1.1) of the ephemeral key
	// that the first exchange of MethodECDHEPMS asks for. 0 means not sent.
	Group tls.CurveID
	// State is the Response's of the first exchange of MethodECDHEPMS, and
	// makes this the second: Hash, Scheme and ServerName are then those of the
	// first, whatever is said here. At most MaxStateLen bytes.
	State []byte

	origin *member // who gave State; nil where that is not known
}

// Validate checks that the fields hold values that exist; it says nothing of
// whether Input fits them, which the key server checks. Its error is a
// *MalformedError.
func (r *Request) Validate() error {
	switch {
	case r.Protocol == "":
		return malformed("protocol", "is missing")
	case !r.Protocol.Valid():
		return malformed("protocol", "is not one of the known versions")
	case !r.method().Valid():
		return malformed("method", "is not one of the known methods")
	case !r.Hash.Valid():
		return malformed("hash", "is not one of the known hashes")
	case len(r.Input) == 0:
		return malformed("input", "is missing or empty")
	case len(r.Input) > MaxMessageSize:
		return malformed("input", fmt.Sprintf("has more than %d bytes", MaxMessageSize))
	case len(r.ServerName) > MaxServerNameLen:
		return malformed("server_name", fmt.Sprintf("has more than %d bytes", MaxServerNameLen))
	case strings.IndexFunc(r.ServerName, notPrintable) >= 0:
		return malformed("server_name", "has a character that no host name has")
	case len(r.State) > MaxStateLen:
		return malformed("state", fmt.Sprintf("has more than %d bytes", MaxStateLen))
	case r.Method == MethodECDHEPMS && r.Group == 0 && len(r.State) == 0:
		return malformed("group", "and 'state' are both missing")
	case r.Method == MethodECDHEPMS && r.Group != 0 && len(r.State) != 0:
		return malformed("group", "and 'state' are both present")
	}
	return nil
}

// notPrintable keeps control characters and spaces out of a name that policy
// compares and logs show. Internationalised names are ASCII in a ClientHello
// (RFC 6066, Section 3).
func notPrintable(r rune) bool { return r <= ' ' || r > '~' }

// method returns Method with its default filled in.
func (r *Request) method() Method {
	if r.Method == "" {
		return MethodECDHE
	}
	return r.Method
}

// KeyExchange returns Method, or MethodECDHE where it is empty.
func (r *Request) KeyExchange() Method { return r.method() }

// Response is the key server's answer: exactly one of Output and Error is set.
type Response struct {
	// Output is the 48-byte PreMasterSecret for MethodRSA; in the second
	// exchange of MethodECDHEPMS the PreMasterSecret, as long as a coordinate
	// of the group (RFC 8422, Section 5.10); for the others the signature as it
	// goes into ServerKeyExchange or CertificateVerify (ECDSA: the DER
	// Ecdsa-Sig-Value; RSA: as long as the modulus).
	Output []byte
	// Error is one of the draft's four errors, or empty.
	Error Error
	// Params and State are beside Output in the answer to the first exchange of
	// MethodECDHEPMS, and nowhere else: the ServerECDHParams that Output signs,
	// and what the second exchange has to bring back.
	Params []byte
	State  []byte

	// OutputLen is the longest Output that this method has with this key, in
	// bytes, whatever the answer is: an Error has it too, if it came of the
	// operation. A binding pads the answer to the length of such an Output, so
	// that the protected answer's length says nothing (an ECDSA signature is
	// not always equally long in DER). It is not in the message. 0 means that
	// the length tells nothing that is not known. ParamsLen and StateLen are the
	// same for Params and State; see PaddedLen.
	OutputLen, ParamsLen, StateLen int

	// TooLarge says that the request had more than MaxMessageSize bytes, which
	// a binding has a code of its own for. It is not in the message.
	TooLarge bool

	// Overloaded says that the key server has refused the request before it did
	// anything for it, because there is too much to do; Error is UnspecifiedError.
	// The key server is not at fault, and may answer the same request later. It is
	// not in the message: bindings have a code of their own for it, 5.03 (RFC 7252,
	// Section 5.9.3.4) or 503 (RFC 9110, Section 15.6.4).
	Overloaded bool
	// RetryAfter is how long the edge should wait before it asks again, where
	// a limit refused the request or the key server is overloaded. It travels beside
	// the message, in the binding's own terms: Max-Age (RFC 8516; RFC 7252, Section
	// 5.9.3.4) or Retry-After (RFC 9110). It is carried in whole seconds. 0 means no
	// such advice.
	RetryAfter time.Duration
	// Slow is the time after which the peer may ask again, where the limit that
	// refused is the peer's own. It is not in the message: the servers of the
	// bindings read such a peer no faster than it may ask, so that one that asks
	// all the same takes no time from others. 0 means that it is read as others
	// are.
	Slow time.Duration

	origin *member // who gave State, where a Client asked
}

// Validate checks that exactly one of Output and Error is set, that Error is
// one of the four, and that Params and State come together, with an Output. Its
// error is a *MalformedError.
func (r *Response) Validate() error {
	switch {
	case len(r.Output) == 0 && r.Error == "":
		return malformed("output", "and 'error' are both missing")
	case len(r.Output) > 0 && r.Error != "":
		return malformed("output", "and 'error' are both present")
	case r.Error != "" && !r.Error.Valid():
		return malformed("error", "is not one of the four errors")
	case len(r.Output) > MaxMessageSize:
		return malformed("output", fmt.Sprintf("has more than %d bytes", MaxMessageSize))
	case len(r.Params) > MaxParamsLen:
		return malformed("params", fmt.Sprintf("has more than %d bytes", MaxParamsLen))
	case len(r.State) > MaxStateLen:
		return malformed("state", fmt.Sprintf("has more than %d bytes", MaxStateLen))
	case (len(r.Params) == 0) != (len(r.State) == 0):
		return malformed("params", "and 'state' do not come together")
	case len(r.Params) > 0 && len(r.Output) == 0:
		return malformed("params", "comes with an error")
	}
	return nil
}

// Err returns the response's Error as an error, or nil for a success. Where the
// key server is overloaded, it is ErrOverloaded.
func (r *Response) Err() error {
	switch {
	case r.Error == "":
		return nil
	case r.Overloaded:
		return ErrOverloaded
	}
	return r.Error
}

// Failed returns a Response that carries e.
func Failed(e Error) *Response { return &Response{Error: e} }

// Busy returns the Response of a key server that is overloaded until then.
func Busy(retryAfter time.Duration) *Response {
	return &Response{Error: UnspecifiedError, Overloaded: true, RetryAfter: retryAfter}
}

// ErrNoResponse is what an exchange ends with when the Handler answered
// nothing; it is a programming error of the Handler.
var ErrNoResponse = errors.New("ski: handler returned no response")
