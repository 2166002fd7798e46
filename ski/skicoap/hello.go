package skicoap

import (
	"encoding/binary"
	"slices"
)

// The handshake messages that the multiplexer knows (RFC 6347, Section 4.3.2).
const (
	handshakeClientHello        = 1
	handshakeServerHello        = 2
	handshakeHelloVerifyRequest = 3
)

const (
	// handshakeHeaderLen is the length of msg_type(1), length(3),
	// message_seq(2), fragment_offset(3), fragment_length(3) (RFC 6347,
	// Section 4.2.2).
	handshakeHeaderLen = 12
	// maxHello bounds the body of a ClientHello. OpenSSL's has 200 bytes.
	maxHello = 4096
)

// helloPiece is a ClientHello, or a fragment of one, that fills a record.
type helloPiece struct {
	version  [2]byte // of the record
	record   uint64  // its sequence number
	sequence uint16  // message_seq: 0 before the cookie, 1 with it
	length   int     // of the message's body
	offset   int     // of data in it
	data     []byte
}

// nextPiece returns the piece of a ClientHello in the first record of a
// datagram, and the records behind it. ok is false where there is none.
func nextPiece(datagram []byte) (p helloPiece, rest []byte, ok bool) {
	if !isFirst(datagram, handshakeClientHello) {
		return p, nil, false
	}
	size := int(binary.BigEndian.Uint16(datagram[recordHeaderLen-2:]))
	fragment := datagram[recordHeaderLen:]
	if size < handshakeHeaderLen || len(fragment) < size {
		return p, nil, false
	}
	fragment, rest = fragment[:size], fragment[size:]
	p = helloPiece{
		version:  [2]byte(datagram[1:]),
		record:   uint48(datagram[5:]),
		length:   uint24(fragment[1:]),
		sequence: binary.BigEndian.Uint16(fragment[4:]),
		offset:   uint24(fragment[6:]),
		data:     fragment[handshakeHeaderLen:],
	}
	if uint24(fragment[9:]) != len(p.data) || p.length > maxHello || p.offset+len(p.data) > p.length {
		return p, nil, false
	}
	return p, rest, true
}

// helloBody is the body of a ClientHello around its cookie (RFC 6347, Section
// 4.2.1). Of a fragment, tail is what has come of it.
type helloBody struct {
	head   []byte // client_version, random, session_id
	cookie []byte
	tail   []byte // cipher_suites and what follows
}

func parseBody(body []byte) (b helloBody, ok bool) {
	const sessionID = 2 + 32
	if len(body) <= sessionID || body[sessionID] > 32 {
		return b, false
	}
	at := sessionID + 1 + int(body[sessionID])
	if len(body) <= at || len(body) < at+1+int(body[at]) {
		return b, false
	}
	end := at + 1 + int(body[at])
	return helloBody{body[:at], body[at+1 : end], body[end:]}, true
}

// random returns client_version and random, which tell one attempt at a
// handshake from another.
func (b *helloBody) random() [34]byte { return [34]byte(b.head) }

// withoutCookie returns the body of the ClientHello that came before it had a
// cookie: it differs in nothing else (RFC 6347, Section 4.2.1).
func (b *helloBody) withoutCookie() []byte { return slices.Concat(b.head, []byte{0}, b.tail) }

// helloRecord returns a record with a whole ClientHello.
func helloRecord(version [2]byte, record uint64, sequence uint16, body []byte) []byte {
	b := append(make([]byte, 0, recordHeaderLen+handshakeHeaderLen+len(body)), recordHandshake, version[0], version[1], 0, 0)
	b = appendUint48(b, record)
	b = binary.BigEndian.AppendUint16(b, uint16(handshakeHeaderLen+len(body)))
	b = appendUint24(append(b, handshakeClientHello), len(body))
	b = binary.BigEndian.AppendUint16(b, sequence)
	b = appendUint24(appendUint24(b, 0), len(body))
	return append(b, body...)
}

// renumber adds n to the sequence numbers of the records of a datagram that
// nothing protects.
func renumber(datagram []byte, n uint64) {
	for len(datagram) >= recordHeaderLen && binary.BigEndian.Uint16(datagram[3:]) == 0 {
		appendUint48(datagram[5:5], uint48(datagram[5:])+n)
		size := recordHeaderLen + int(binary.BigEndian.Uint16(datagram[recordHeaderLen-2:]))
		datagram = datagram[min(size, len(datagram)):]
	}
}

func uint24(b []byte) int { return int(b[0])<<16 | int(b[1])<<8 | int(b[2]) }

func uint48(b []byte) uint64 {
	return uint64(binary.BigEndian.Uint16(b))<<32 | uint64(binary.BigEndian.Uint32(b[2:]))
}

func appendUint24(b []byte, n int) []byte { return append(b, byte(n>>16), byte(n>>8), byte(n)) }

func appendUint48(b []byte, n uint64) []byte {
	return binary.BigEndian.AppendUint32(binary.BigEndian.AppendUint16(b, uint16(n>>32)), uint32(n))
}
