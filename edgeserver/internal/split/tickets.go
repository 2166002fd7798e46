package split

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"errors"
	"slices"
	"time"

	"golang.org/x/crypto/cryptobyte"

	"github.com/tlsski/tlsski/ski/tlsprf"
)

// TicketLifetime is how long a session can be resumed after its full
// handshake.
const TicketLifetime = 24 * time.Hour

// TicketKey protects session tickets (RFC 5077, Section 4). The sites of one
// server have keys of their own, so that a ticket of one is noise to the others.
type TicketKey struct {
	name   [16]byte
	secret [32]byte
}

// NewTicketKey returns a random key.
func NewTicketKey() TicketKey {
	var k TicketKey
	rand.Read(k.name[:])
	rand.Read(k.secret[:])
	return k
}

// TicketKeyLen is the length in bytes of what a TicketKey is made from.
const TicketKeyLen = 16 + 32

// TicketKeyFrom returns the key that consists of TicketKeyLen secret random
// bytes, the first 16 of which are its name and not kept secret.
func TicketKeyFrom(material []byte) TicketKey {
	var k TicketKey
	copy(k.name[:], material)
	copy(k.secret[:], material[len(k.name):])
	return k
}

// session is what a ticket holds.
type session struct {
	suite                uint16
	extendedMasterSecret bool
	maxFragmentLength    uint8     // its code (RFC 6066, Section 4); 0: none
	created              time.Time // of the full handshake
	masterSecret         []byte
	serverName           string
	peer                 peer
}

// ticketFormat is the first byte of a ticket's content, to be changed with it.
const ticketFormat = 2

// maxTicket bounds a ticket in bytes: it has to fit a ClientHello that is
// accepted here.
const maxTicket = 8 << 10

var errTicketTooLong = errors.New("split: the session does not fit a ticket")

func (k *TicketKey) aead() cipher.AEAD {
	block, err := aes.NewCipher(k.secret[:])
	if err != nil {
		panic(err) // The key has the right length.
	}
	aead, err := cipher.NewGCM(block)
	if err != nil {
		panic(err)
	}
	return aead
}

// seal returns the ticket of s: the key's name, a nonce, and the sealed content.
func (k *TicketKey) seal(s *session) ([]byte, error) {
	var b cryptobyte.Builder
	b.AddUint8(ticketFormat)
	b.AddUint16(s.suite)
	b.AddUint8(flag(s.extendedMasterSecret))
	b.AddUint8(s.maxFragmentLength)
	b.AddUint64(uint64(s.created.Unix()))
	b.AddBytes(s.masterSecret)
	b.AddUint8LengthPrefixed(func(b *cryptobyte.Builder) { b.AddBytes([]byte(s.serverName)) })
	b.AddUint8(flag(s.peer.raw))
	b.AddUint24LengthPrefixed(func(b *cryptobyte.Builder) {
		for _, cert := range s.peer.certificates {
			b.AddUint24LengthPrefixed(func(b *cryptobyte.Builder) { b.AddBytes(cert) })
		}
	})
	content := b.BytesOrPanic()
	defer clear(content)
	aead := k.aead()
	ticket := slices.Grow(slices.Clone(k.name[:]), aead.NonceSize()+len(content)+aead.Overhead())
	nonce := make([]byte, aead.NonceSize())
	rand.Read(nonce)
	ticket = append(ticket, nonce...)
	ticket = aead.Seal(ticket, nonce, content, k.name[:])
	if len(ticket) > maxTicket {
		return nil, errTicketTooLong
	}
	return ticket, nil
}

// openTicket returns the session in a ticket. newest says that its key is the
// first of keys. A ticket that is none, or of other keys, is no session.
func openTicket(keys []TicketKey, ticket []byte) (s *session, newest bool) {
	var name [16]byte
	if copy(name[:], ticket) < len(name) {
		return nil, false
	}
	for i := range keys {
		k := &keys[i]
		if k.name != name {
			continue
		}
		aead := k.aead()
		rest := ticket[len(name):]
		if len(rest) < aead.NonceSize() {
			return nil, false
		}
		content, err := aead.Open(nil, rest[:aead.NonceSize()], rest[aead.NonceSize():], name[:])
		if err != nil {
			return nil, false
		}
		if s = parseSession(content); s == nil {
			clear(content)
		}
		return s, i == 0
	}
	return nil, false
}

// parseSession parses a ticket's content, which a key of the server has sealed.
// It returns nil for another format. The session's master secret is a part of
// content.
func parseSession(content []byte) *session {
	in := cryptobyte.String(content)
	s := new(session)
	var format, extended, raw uint8
	var created uint64
	var name, list cryptobyte.String
	if !in.ReadUint8(&format) || format != ticketFormat ||
		!in.ReadUint16(&s.suite) || !in.ReadUint8(&extended) ||
		!in.ReadUint8(&s.maxFragmentLength) || !in.ReadUint64(&created) ||
		!in.ReadBytes(&s.masterSecret, tlsprf.MasterSecretLen) ||
		!in.ReadUint8LengthPrefixed(&name) || !in.ReadUint8(&raw) ||
		!in.ReadUint24LengthPrefixed(&list) || !in.Empty() {
		return nil
	}
	s.extendedMasterSecret = extended == 1
	s.created = time.Unix(int64(created), 0)
	s.serverName = string(name)
	s.peer.raw = raw == 1
	for !list.Empty() {
		var cert cryptobyte.String
		if !list.ReadUint24LengthPrefixed(&cert) {
			return nil
		}
		s.peer.certificates = append(s.peer.certificates, cert)
	}
	return s
}

func flag(b bool) uint8 {
	if b {
		return 1
	}
	return 0
}

// resumable returns the session of the client's ticket if it can be resumed. A
// session that cannot is no error, but for one thing: RFC 7627, Section 5.3 ends
// the handshake if the extended master secret is missing now that was there
// before.
func (c *Config) resumable(h *ClientHello, a *agreement) (s *session, newest bool, err *Error) {
	keys := c.ticketKeys()
	if len(h.ticket) == 0 || len(keys) == 0 {
		return nil, false, nil
	}
	s, newest = openTicket(keys, h.ticket)
	if s == nil {
		return nil, false, nil
	}
	if ok, err := c.canResume(s, h, a); !ok {
		return nil, false, err
	}
	return s, newest, nil
}

// canResume reports whether s can be resumed, and clears its secret if not.
func (c *Config) canResume(s *session, h *ClientHello, a *agreement) (ok bool, err *Error) {
	defer func() {
		if !ok {
			clear(s.masterSecret)
		}
	}()
	if s.extendedMasterSecret && !h.extendedMasterSecret {
		return false, fail(HandshakeFailure, "the session to be resumed has an extended master secret")
	}
	now := c.now()
	suite := suiteByID(s.suite)
	switch {
	case !s.extendedMasterSecret && h.extendedMasterSecret,
		s.serverName != h.ServerName, // RFC 6066, Section 3
		// It is the same for all of a session (RFC 6066, Section 4).
		s.maxFragmentLength != h.fragmentLength(),
		suite == nil || !c.enabled(suite) || !h.offers(s.suite),
		a.alpn == "h2" && suite.staticRSA,
		now.Before(s.created.Add(-time.Hour)) || now.After(s.created.Add(TicketLifetime)),
		!s.peer.present() && c.ClientAuth == RequireClientCert,
		s.peer.present() && (c.ClientAuth == NoClientCert || s.peer.raw != a.clientRaw):
		return false, nil
	}
	// Or it has expired, or its authority is gone.
	return !s.peer.present() || c.verifyPeer(&s.peer) == nil, nil
}
