package skicoap

import (
	"encoding/binary"
	"net"
)

// The record types of DTLS 1.2 (RFC 5246, Section 6.2.1; RFC 9146, Section 4).
const (
	recordChangeCipherSpec = 20
	recordAlert            = 21
	recordHandshake        = 22
	recordCID              = 25
)

// The layout of a record: type(1), version(2), epoch(2), sequence number(6),
// with type 25 the connection ID, length(2), fragment (RFC 6347, Section 4.1).
const (
	recordHeaderLen = 13
	recordCIDOffset = 11
)

// admit drops from a datagram the records that only a forger sends: those that
// nothing protects and that have no place in a handshake. pion answers them
// with a fatal alert, which it protects, so that anybody who knows two
// addresses could end a session. RFC 6347, Section 4.1.2.7, wants them
// discarded. cidLen is the length of the connection IDs that are expected; 0
// means none.
//
// What is left is at the beginning of datagram, which is changed.
func admit(datagram []byte, cidLen int) []byte { return keep(datagram, cidLen, isGenuine) }

// protectedOnly drops the records that nothing protects.
func protectedOnly(datagram []byte, cidLen int) []byte {
	return keep(datagram, cidLen, func(_ byte, epoch uint16, _ []byte) bool { return epoch > 0 })
}

// keep drops the records that are not wanted, and what is no record.
func keep(datagram []byte, cidLen int, wanted func(kind byte, epoch uint16, fragment []byte) bool) []byte {
	kept := datagram[:0]
	for len(datagram) >= recordHeaderLen {
		header := recordHeaderLen
		kind := datagram[0]
		if kind == recordCID {
			if cidLen == 0 {
				break
			}
			header += cidLen
		}
		if len(datagram) < header {
			break
		}
		size := header + int(binary.BigEndian.Uint16(datagram[header-2:]))
		if len(datagram) < size {
			break
		}
		if wanted(kind, binary.BigEndian.Uint16(datagram[3:]), datagram[header:size]) {
			kept = append(kept, datagram[:size]...)
		}
		datagram = datagram[size:]
	}
	return kept
}

func isGenuine(kind byte, epoch uint16, fragment []byte) bool {
	switch {
	case kind == recordChangeCipherSpec: // never protected in DTLS 1.2 before renegotiation
		return epoch == 0 && len(fragment) == 1 && fragment[0] == 1
	case epoch == 0:
		return kind == recordAlert || kind == recordHandshake
	}
	return true // protected: pion discards it if it is not authentic
}

// isFirst reports whether a datagram begins with the plaintext handshake
// message of the given type (RFC 5246, Section 7.4).
func isFirst(datagram []byte, handshakeType byte) bool {
	return len(datagram) > recordHeaderLen && datagram[0] == recordHandshake &&
		binary.BigEndian.Uint16(datagram[3:]) == 0 && datagram[recordHeaderLen] == handshakeType
}

// admitting is a client's socket without the records that only a forger sends.
// The client hands out no connection IDs.
type admitting struct{ net.PacketConn }

func (a admitting) ReadFrom(b []byte) (int, net.Addr, error) {
	for {
		n, from, err := a.PacketConn.ReadFrom(b)
		if err != nil {
			return n, from, err
		}
		if n = len(admit(b[:n], 0)); n > 0 {
			return n, from, nil
		}
	}
}
