package split

import (
	"crypto/tls"

	"golang.org/x/crypto/cryptobyte"
)

// serverHello is what a ServerHello says (RFC 5246, Section 7.4.1.3). Of the
// extensions it has only those that the client has sent (Section 7.4.1.4).
type serverHello struct {
	random    []byte
	sessionID []byte
	suite     uint16

	serverNameUsed       bool
	alpn                 string // empty: none
	pointFormats         bool
	extendedMasterSecret bool
	secureRenegotiation  bool
	ticketPromised       bool
	serverCertType       *uint8 // nil: not negotiated
	clientCertType       *uint8
	maxFragmentLength    uint8
	recordSizeLimit      uint16
}

// body returns the message's body.
func (h *serverHello) body() []byte {
	var b cryptobyte.Builder
	b.AddUint16(tls.VersionTLS12)
	b.AddBytes(h.random)
	b.AddUint8LengthPrefixed(func(b *cryptobyte.Builder) { b.AddBytes(h.sessionID) })
	b.AddUint16(h.suite)
	b.AddUint8(0) // no compression
	var e cryptobyte.Builder
	add := func(id uint16, content func(b *cryptobyte.Builder)) {
		e.AddUint16(id)
		e.AddUint16LengthPrefixed(content)
	}
	empty := func(*cryptobyte.Builder) {}
	if h.secureRenegotiation {
		add(extRenegotiationInfo, func(b *cryptobyte.Builder) { b.AddUint8(0) })
	}
	if h.extendedMasterSecret {
		add(extExtendedMasterSecret, empty)
	}
	if h.serverNameUsed {
		add(extServerName, empty)
	}
	if h.pointFormats {
		add(extPointFormats, func(b *cryptobyte.Builder) { b.AddBytes([]byte{1, 0}) })
	}
	if h.alpn != "" {
		add(extALPN, func(b *cryptobyte.Builder) {
			b.AddUint16LengthPrefixed(func(b *cryptobyte.Builder) {
				b.AddUint8LengthPrefixed(func(b *cryptobyte.Builder) { b.AddBytes([]byte(h.alpn)) })
			})
		})
	}
	if h.ticketPromised {
		add(extSessionTicket, empty)
	}
	if t := h.serverCertType; t != nil {
		add(extServerCertType, func(b *cryptobyte.Builder) { b.AddUint8(*t) })
	}
	if t := h.clientCertType; t != nil {
		add(extClientCertType, func(b *cryptobyte.Builder) { b.AddUint8(*t) })
	}
	if h.maxFragmentLength != 0 {
		add(extMaxFragmentLength, func(b *cryptobyte.Builder) { b.AddUint8(h.maxFragmentLength) })
	}
	if h.recordSizeLimit != 0 {
		add(extRecordSizeLimit, func(b *cryptobyte.Builder) { b.AddUint16(h.recordSizeLimit) })
	}
	if extensions := e.BytesOrPanic(); len(extensions) > 0 {
		b.AddUint16LengthPrefixed(func(b *cryptobyte.Builder) { b.AddBytes(extensions) })
	}
	return b.BytesOrPanic()
}
