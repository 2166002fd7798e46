package skicoap

import (
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"hash"
	"log/slog"
	"net/netip"
	"reflect"
	"time"
	"unsafe"

	"github.com/pion/dtls/v3"
)

const (
	// cookieLen is the length of a cookie: the number of its secret(1), and the
	// first 128 bits of an HMAC. It is short enough that no answer is longer
	// than the shortest ClientHello.
	cookieLen = 1 + 16
	// cookieSecretPeriod is how often there is a new secret. A cookie is good
	// with the current secret and the previous one, for one to two periods.
	cookieSecretPeriod = 30 * time.Second
	// verifyRequestLen is the length of a HelloVerifyRequest, with its record.
	verifyRequestLen = recordHeaderLen + handshakeHeaderLen + 2 + 1 + cookieLen
)

// cookies makes and checks cookies (RFC 6347, Section 4.2.1): who returns one
// receives what is sent to its address. Nothing is kept of who got one, and
// nothing is allocated. A cookie is bound to the address and port alone, not to
// the ClientHello: an answer that somebody else has caused in a peer's name is
// as good to the peer as its own.
//
// It is not safe for concurrent use.
type cookies struct {
	macs   [2]hash.Hash // HMAC-SHA-256, by the low bit of number
	number byte         // of the current secret
	since  time.Time    // which there is it

	address [18]byte
	sum     [sha256.Size]byte
	answer  [verifyRequestLen]byte
}

func newCookies(now time.Time) *cookies {
	c := &cookies{since: now}
	c.renew()
	c.renew()
	return c
}

// renew makes a new secret in place of the previous one, and the current one
// the previous one.
func (c *cookies) renew() {
	var secret [32]byte
	rand.Read(secret[:])
	c.number++
	c.macs[c.number&1] = hmac.New(sha256.New, secret[:])
}

// advance renews the secrets whose time is over.
func (c *cookies) advance(now time.Time) {
	if now.Sub(c.since) >= cookieSecretPeriod {
		c.renew()
		if now.Sub(c.since) >= 2*cookieSecretPeriod {
			c.renew()
		}
		c.since = now
	}
}

// mac returns the HMAC of an address. It is good until the next call.
func (c *cookies) mac(number byte, addr netip.AddrPort) []byte {
	ip := addr.Addr().As16()
	binary.BigEndian.PutUint16(c.address[copy(c.address[:], ip[:]):], addr.Port())
	m := c.macs[number&1]
	m.Reset()
	m.Write(c.address[:])
	return m.Sum(c.sum[:0])[:cookieLen-1]
}

// verifyRequest returns the HelloVerifyRequest that answers a ClientHello in the
// record with this sequence number. It is good until the next call.
func (c *cookies) verifyRequest(record uint64, addr netip.AddrPort, now time.Time) []byte {
	const body = 2 + 1 + cookieLen
	c.advance(now)
	// The version is that of DTLS 1.0, whatever will be negotiated (RFC 6347,
	// Section 4.2.1).
	b := append(c.answer[:0], recordHandshake, 0xfe, 0xff, 0, 0)
	b = appendUint48(b, record)
	b = binary.BigEndian.AppendUint16(b, handshakeHeaderLen+body)
	b = appendUint24(append(b, handshakeHelloVerifyRequest), body)
	b = appendUint24(append(b, 0, 0, 0, 0, 0), body) // message_seq 0, one fragment
	b = append(b, 0xfe, 0xff, cookieLen, c.number)
	return append(b, c.mac(c.number, addr)...)
}

// valid reports whether a cookie is one that was sent to this address.
func (c *cookies) valid(cookie []byte, addr netip.AddrPort, now time.Time) bool {
	c.advance(now)
	return len(cookie) == cookieLen && c.number-cookie[0] <= 1 && hmac.Equal(cookie[1:], c.mac(cookie[0], addr))
}

// floodHellos is how many ClientHellos in the time between two looks, 10 s, are a
// flood when their cookies do not come back.
const floodHellos = 10_000

// flood tells when ClientHellos come in the names of others, or no longer.
type flood struct {
	asked, returned uint64 // at the last look
	on              bool
}

// look is given the number of ClientHellos that were answered with a cookie, and
// of cookies that came back.
func (f *flood) look(asked, returned uint64, log *slog.Logger) {
	lost := int64(asked-f.asked) - int64(returned-f.returned)
	f.asked, f.returned = asked, returned
	if on := lost >= floodHellos; on != f.on {
		f.on = on
		if on {
			log.Warn("a flood of ClientHellos whose cookies do not come back: their addresses are forged", "count", lost)
		} else {
			log.Info("the flood of ClientHellos is over")
		}
	}
}

// pionCookie is where pion keeps the cookie that it expects, in a dtls.Conn.
var pionCookie, pionCookieFound = cookieField(reflect.TypeFor[dtls.Conn]())

// cookieField returns the offset of state.cookie in a connection. ok is false where
// that is not a field of a field, or no []byte.
func cookieField(conn reflect.Type) (offset uintptr, ok bool) {
	state, ok := conn.FieldByName("state")
	if !ok || len(state.Index) > 1 || state.Type.Kind() != reflect.Struct {
		return 0, false
	}
	cookie, ok := state.Type.FieldByName("cookie")
	if !ok || len(cookie.Index) > 1 || cookie.Type != reflect.TypeFor[[]byte]() {
		return 0, false
	}
	return state.Offset + cookie.Offset, true
}

// checkPion finds a version of pion that this package was not written for.
func checkPion() error {
	if !pionCookieFound {
		return errors.New("skicoap: this version of github.com/pion/dtls/v3 keeps its cookie elsewhere: use the one in skicoap's go.mod")
	}
	return nil
}

// expectCookie has pion take the ClientHello with this cookie for the one that
// it has asked for. pion makes a random cookie of its own for each connection,
// with all of its state, and offers no other way; see
// docs/design/0014-cookies-without-state.md.
//
// It must be called from within the WriteTo with which pion sends its
// HelloVerifyRequest: the goroutine that does is the one that reads the field.
func expectCookie(conn *dtls.Conn, cookie []byte) {
	*(*[]byte)(unsafe.Add(unsafe.Pointer(conn), pionCookie)) = cookie
}
