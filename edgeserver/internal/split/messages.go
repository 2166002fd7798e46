package split

import (
	"crypto/tls"
	"fmt"

	"golang.org/x/crypto/cryptobyte"
)

// MessageType is HandshakeType (RFC 5246, Section 7.4).
type MessageType uint8

// The messages of a TLS 1.2 handshake.
const (
	TypeHelloRequest       MessageType = 0
	TypeClientHello        MessageType = 1
	TypeServerHello        MessageType = 2
	TypeNewSessionTicket   MessageType = 4 // RFC 5077, Section 3.3
	TypeCertificate        MessageType = 11
	TypeServerKeyExchange  MessageType = 12
	TypeCertificateRequest MessageType = 13
	TypeServerHelloDone    MessageType = 14
	TypeCertificateVerify  MessageType = 15
	TypeClientKeyExchange  MessageType = 16
	TypeFinished           MessageType = 20
)

// String returns the message's name.
func (t MessageType) String() string {
	switch t {
	case TypeHelloRequest:
		return "HelloRequest"
	case TypeClientHello:
		return "ClientHello"
	case TypeServerHello:
		return "ServerHello"
	case TypeNewSessionTicket:
		return "NewSessionTicket"
	case TypeCertificate:
		return "Certificate"
	case TypeServerKeyExchange:
		return "ServerKeyExchange"
	case TypeCertificateRequest:
		return "CertificateRequest"
	case TypeServerHelloDone:
		return "ServerHelloDone"
	case TypeCertificateVerify:
		return "CertificateVerify"
	case TypeClientKeyExchange:
		return "ClientKeyExchange"
	case TypeFinished:
		return "Finished"
	}
	return fmt.Sprintf("handshake message %d", uint8(t))
}

// maxBody bounds, in bytes, the body of each message that a client sends. A
// ClientHello with everything that TLS 1.3 brought has some 2 KiB; an
// EncryptedPreMasterSecret or a signature is as long as an RSA modulus.
var maxBody = map[MessageType]int{
	TypeClientHello:       16 << 10,
	TypeCertificate:       16 << 10,
	TypeClientKeyExchange: 4 << 10,
	TypeCertificateVerify: 4 << 10,
	TypeFinished:          12,
}

// messageHeaderLen is the length of type and length.
const messageHeaderLen = 4

// frame returns a handshake message with the header of TLS.
func frame(t MessageType, body []byte) []byte {
	n := len(body)
	return append([]byte{byte(t), byte(n >> 16), byte(n >> 8), byte(n)}, body...)
}

// certificateBody returns the body of a Certificate with X.509 certificates
// (RFC 5246, Section 7.4.2).
func certificateBody(chain [][]byte) []byte {
	var b cryptobyte.Builder
	b.AddUint24LengthPrefixed(func(b *cryptobyte.Builder) {
		for _, cert := range chain {
			b.AddUint24LengthPrefixed(func(b *cryptobyte.Builder) { b.AddBytes(cert) })
		}
	})
	return b.BytesOrPanic()
}

// rawPublicKeyBody returns the body of a Certificate with a raw public key
// (RFC 7250, Section 3).
func rawPublicKeyBody(spki []byte) []byte {
	var b cryptobyte.Builder
	b.AddUint24LengthPrefixed(func(b *cryptobyte.Builder) { b.AddBytes(spki) })
	return b.BytesOrPanic()
}

// maxClientChain bounds a client's chain, whose signatures will be verified.
const maxClientChain = 10

// parseCertificate parses the body of a client's Certificate. An empty list
// is one: the client has none (RFC 5246, Section 7.4.6).
func parseCertificate(body []byte) ([][]byte, *Error) {
	s := cryptobyte.String(body)
	var list cryptobyte.String
	if !s.ReadUint24LengthPrefixed(&list) || !s.Empty() {
		return nil, fail(DecodeError, "malformed Certificate")
	}
	var chain [][]byte
	for !list.Empty() {
		var cert cryptobyte.String
		if !list.ReadUint24LengthPrefixed(&cert) || len(cert) == 0 {
			return nil, fail(DecodeError, "malformed Certificate")
		}
		if len(chain) == maxClientChain {
			return nil, fail(BadCertificate, "the client's chain has more than %d certificates", maxClientChain)
		}
		chain = append(chain, cert)
	}
	return chain, nil
}

// parseRawPublicKey parses the body of a client's Certificate with a raw
// public key. A client that has none sends the empty list of X.509.
func parseRawPublicKey(body []byte) ([]byte, *Error) {
	s := cryptobyte.String(body)
	var spki cryptobyte.String
	if !s.ReadUint24LengthPrefixed(&spki) || !s.Empty() {
		return nil, fail(DecodeError, "malformed Certificate with a raw public key")
	}
	return spki, nil
}

// serverKeyExchangeBody returns the body of a ServerKeyExchange (RFC 8422,
// Section 5.4).
func serverKeyExchangeBody(params []byte, scheme tls.SignatureScheme, signature []byte) []byte {
	var b cryptobyte.Builder
	b.AddBytes(params)
	b.AddUint16(uint16(scheme))
	b.AddUint16LengthPrefixed(func(b *cryptobyte.Builder) { b.AddBytes(signature) })
	return b.BytesOrPanic()
}

// ClientCertificateType (RFC 5246, Section 7.4.4; RFC 8422, Section 5.5).
const (
	clientCertRSASign   = 1
	clientCertECDSASign = 64
)

// certificateRequestBody returns the body of a CertificateRequest (RFC 5246,
// Section 7.4.4). authorities are names in DER; without one, a client may send
// what it has.
func certificateRequestBody(authorities [][]byte) []byte {
	var b cryptobyte.Builder
	b.AddUint8LengthPrefixed(func(b *cryptobyte.Builder) { b.AddBytes([]byte{clientCertECDSASign, clientCertRSASign}) })
	b.AddUint16LengthPrefixed(func(b *cryptobyte.Builder) {
		for _, scheme := range acceptedSchemes {
			b.AddUint16(uint16(scheme))
		}
	})
	b.AddUint16LengthPrefixed(func(b *cryptobyte.Builder) {
		for _, name := range authorities {
			b.AddUint16LengthPrefixed(func(b *cryptobyte.Builder) { b.AddBytes(name) })
		}
	})
	return b.BytesOrPanic()
}

// parseClientECDHPublic parses the body of a ClientKeyExchange with the
// client's ECDHE public value (RFC 8422, Section 5.7).
func parseClientECDHPublic(body []byte) ([]byte, *Error) {
	s := cryptobyte.String(body)
	var point cryptobyte.String
	if !s.ReadUint8LengthPrefixed(&point) || len(point) == 0 || !s.Empty() {
		return nil, fail(DecodeError, "malformed ClientKeyExchange")
	}
	return point, nil
}

// parseEncryptedPreMasterSecret parses the body of a ClientKeyExchange with an
// EncryptedPreMasterSecret (RFC 5246, Section 7.4.7.1).
func parseEncryptedPreMasterSecret(body []byte) ([]byte, *Error) {
	s := cryptobyte.String(body)
	var encrypted cryptobyte.String
	if !s.ReadUint16LengthPrefixed(&encrypted) || len(encrypted) == 0 || !s.Empty() {
		return nil, fail(DecodeError, "malformed ClientKeyExchange")
	}
	return encrypted, nil
}

// parseCertificateVerify parses the body of a CertificateVerify (RFC 5246,
// Section 7.4.8).
func parseCertificateVerify(body []byte) (tls.SignatureScheme, []byte, *Error) {
	s := cryptobyte.String(body)
	var scheme uint16
	var signature cryptobyte.String
	if !s.ReadUint16(&scheme) || !s.ReadUint16LengthPrefixed(&signature) || len(signature) == 0 || !s.Empty() {
		return 0, nil, fail(DecodeError, "malformed CertificateVerify")
	}
	return tls.SignatureScheme(scheme), signature, nil
}

// newSessionTicketBody returns the body of a NewSessionTicket (RFC 5077,
// Section 3.3). lifetime is in seconds.
func newSessionTicketBody(lifetime uint32, ticket []byte) []byte {
	var b cryptobyte.Builder
	b.AddUint32(lifetime)
	b.AddUint16LengthPrefixed(func(b *cryptobyte.Builder) { b.AddBytes(ticket) })
	return b.BytesOrPanic()
}
