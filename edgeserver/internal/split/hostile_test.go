package split

import (
	"crypto/tls"
	"encoding/binary"
	"fmt"
	"slices"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// The tests here are a client that means no good. Whatever it does, the
// connection must end, with the alert that RFC 5246, Section 7.2.2 asks for, and
// not have been made.

// hostileConfig asks for certificates, so that every message a client can send
// has its place.
func hostileConfig() *Config {
	w := theWorld()
	return &Config{
		Chains: []*Chain{w.ecdsa.chain, w.rsa.chain}, StaticRSA: true,
		ClientAuth: VerifyClientCertIfGiven, ClientCAs: w.roots,
	}
}

// hostile is a server, and rogues that talk to it.
type hostile struct {
	*testServer
	t *testing.T
}

func newHostile(t *testing.T, cfg *Config) *hostile { return &hostile{serve(t, cfg), t} }

func gcm() *suite       { return suiteByID(tls.TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256) }
func staticGCM() *suite { return suiteByID(tls.TLS_RSA_WITH_AES_128_GCM_SHA256) }

// rogue returns a client with a certificate.
func (h *hostile) rogue() *rogue {
	r := newRogue(h.t, h.addr, goodHello(gcm(), tls.X25519), tls.X25519)
	r.identity = &theWorld().client
	return r
}

// refuses does the handshake of r, which must end in the alert.
func (h *hostile) refuses(r *rogue, want Alert, what string) {
	h.t.Helper()
	err := r.handshake()
	if err == nil {
		err = r.answer()
	}
	h.refused(r, err, want, what)
}

// refused checks that err is the alert, and that the server sees it so too.
func (h *hostile) refused(r *rogue, err error, want Alert, what string) {
	h.t.Helper()
	assert.Equal(h.t, &alertError{alertFatal, want}, err, what)
	r.conn.Close()
	got := h.outcome(h.t)
	assert.Error(h.t, got.err, what)
	assert.Empty(h.t, got.read, what)
}

// clientMessages are those of a full handshake with a certificate.
var clientMessages = []string{"ClientHello", "Certificate", "ClientKeyExchange", "CertificateVerify", "ChangeCipherSpec", "Finished"}

// on has the rogue send its messages as they are, but for one.
func (r *rogue) on(name string, do func(contentType uint8, payload []byte)) *rogue {
	r.hook = func(n string, contentType uint8, payload []byte) {
		if n == name {
			do(contentType, payload)
			return
		}
		r.record(contentType, payload)
	}
	return r
}

func TestHostileHonestClientIsServed(t *testing.T) {
	h := newHostile(t, hostileConfig())
	r := h.rogue()
	require.NoError(t, r.handshake())
	r.record(recordApplicationData, []byte("hello"))
	_, answer, err := r.readRecord()
	require.NoError(t, err)
	assert.Equal(t, "hello", string(answer))
	r.record(recordAlert, []byte{alertWarning, byte(CloseNotify)})
	got := h.outcome(t)
	assert.NoError(t, got.err)
	assert.Equal(t, "hello", string(got.read))
}

// resized sends a message with another body, and the length that goes with it.
func (r *rogue) resized(contentType uint8, payload []byte, n int) {
	body := slices.Clone(payload[4:])
	if n < len(body) {
		body = body[:n]
	} else {
		body = append(body, make([]byte, n-len(body))...)
	}
	r.record(contentType, frame(MessageType(payload[0]), body))
}

func TestHostileTruncatedMessages(t *testing.T) {
	h := newHostile(t, hostileConfig())
	lengths := map[string]int{}
	for _, name := range clientMessages {
		r := h.rogue()
		r.on(name, func(contentType uint8, payload []byte) {
			lengths[name] = len(payload) - 4
			r.record(contentType, payload)
		})
		require.NoError(t, r.handshake())
		r.conn.Close()
		h.outcome(t)
	}
	for _, name := range []string{"ClientHello", "Certificate", "ClientKeyExchange", "CertificateVerify", "Finished"} {
		for n := range lengths[name] {
			if name != "ClientHello" && n%7 != 0 && n != lengths[name]-1 {
				continue // A handshake for each is too many.
			}
			r := h.rogue()
			want := DecodeError
			if name == "ClientHello" && n == len(helloUpToExtensions(r.hello)) {
				want = HandshakeFailure // a whole ClientHello, but for the extensions
			}
			// An ECDSA signature has not always the same length: what is cut off has.
			cut := lengths[name] - n
			r.on(name, func(contentType uint8, payload []byte) {
				r.resized(contentType, payload, max(0, len(payload)-4-cut))
			})
			h.refuses(r, want, fmt.Sprintf("%s without its last %d bytes", name, cut))
		}
	}
}

func helloUpToExtensions(h *helloSpec) []byte {
	short := *h
	short.extensions = nil
	return short.body()
}

func TestHostileExtendedMessages(t *testing.T) {
	h := newHostile(t, hostileConfig())
	for _, name := range []string{"ClientHello", "Certificate", "ClientKeyExchange", "CertificateVerify", "Finished"} {
		for _, more := range []int{1, 2, 255} {
			r := h.rogue()
			r.on(name, func(contentType uint8, payload []byte) { r.resized(contentType, payload, len(payload)-4+more) })
			h.refuses(r, DecodeError, fmt.Sprintf("%s with %d bytes more", name, more))
		}
		r := h.rogue()
		r.on(name, func(contentType uint8, payload []byte) {
			r.record(contentType, []byte{payload[0], 0xFF, 0xFF, 0xFF})
		})
		h.refuses(r, DecodeError, name+" of 16 MiB, by its header")
	}
	for _, payload := range [][]byte{{1, 1}, {0}, {2}, {1, 1, 1}} {
		r := h.rogue()
		r.on("ChangeCipherSpec", func(contentType uint8, _ []byte) { r.record(contentType, payload) })
		h.refuses(r, DecodeError, "malformed ChangeCipherSpec")
	}
}

func TestHostileRepeatedMessages(t *testing.T) {
	h := newHostile(t, hostileConfig())
	for _, name := range clientMessages {
		r := h.rogue()
		r.on(name, func(contentType uint8, payload []byte) {
			r.record(contentType, payload)
			r.record(contentType, payload)
		})
		want := UnexpectedMessage
		if name == "ChangeCipherSpec" {
			want = BadRecordMAC // The second is in the next epoch, in the clear.
		}
		h.refuses(r, want, name+" twice")
	}
}

func TestHostileMissingMessages(t *testing.T) {
	h := newHostile(t, hostileConfig())
	for _, name := range clientMessages[1:5] {
		r := h.rogue()
		r.on(name, func(uint8, []byte) {})
		// A Finished that is encrypted without the ChangeCipherSpec before it is
		// read as it stands.
		h.refusesWithOneOf(r, []Alert{UnexpectedMessage, DecodeError}, name+" left out")
	}
}

func (h *hostile) refusesWithOneOf(r *rogue, want []Alert, what string) {
	h.t.Helper()
	err := r.handshake()
	if err == nil {
		err = r.answer()
	}
	require.IsType(h.t, &alertError{}, err, what)
	assert.Contains(h.t, want, err.(*alertError).alert, what)
	h.refused(r, err, err.(*alertError).alert, what)
}

func TestHostileMessagesOutOfOrder(t *testing.T) {
	h := newHostile(t, hostileConfig())
	for i := 1; i+1 < len(clientMessages); i++ {
		first, second := clientMessages[i], clientMessages[i+1]
		r := h.rogue()
		var held []byte
		var heldType uint8
		r.hook = func(name string, contentType uint8, payload []byte) {
			switch name {
			case first:
				held, heldType = payload, contentType
			case second:
				write := r.write
				r.write = nil // Finished before the ChangeCipherSpec is in the clear.
				r.record(contentType, payload)
				r.record(heldType, held)
				r.write = write
			default:
				r.record(contentType, payload)
			}
		}
		h.refuses(r, UnexpectedMessage, second+" before "+first)
	}
}

// TestHostileWrongTypes sends each type of message, and each of record, in the
// place of each message.
func TestHostileWrongTypes(t *testing.T) {
	h := newHostile(t, hostileConfig())
	types := []MessageType{0, 1, 2, 3, 4, 5, 11, 12, 13, 14, 15, 16, 20, 21, 22, 23, 24, 67, 254, 255}
	for _, name := range []string{"ClientHello", "Certificate", "ClientKeyExchange", "CertificateVerify", "ChangeCipherSpec", "Finished"} {
		for _, typ := range types {
			if typ.String() == name {
				continue
			}
			r := h.rogue()
			r.on(name, func(contentType uint8, payload []byte) {
				if name == "ChangeCipherSpec" {
					payload = make([]byte, 20)
				}
				changed := slices.Clone(payload)
				changed[0] = byte(typ)
				r.record(recordHandshake, changed)
			})
			h.refuses(r, UnexpectedMessage, fmt.Sprintf("%v in the place of %s", typ, name))
		}
		for _, contentType := range []uint8{recordChangeCipherSpec, recordApplicationData, 0, 19, 24, 255} {
			if contentType == recordChangeCipherSpec && name == "ChangeCipherSpec" {
				continue
			}
			r := h.rogue()
			r.on(name, func(uint8, []byte) { r.record(contentType, []byte{1}) })
			if name == "ClientHello" && (contentType < 20 || contentType > 23) {
				continue // It does not speak TLS; see TestHostileFirstBytes.
			}
			h.refuses(r, UnexpectedMessage, fmt.Sprintf("record of type %d in the place of %s", contentType, name))
		}
		r := h.rogue()
		r.on(name, func(uint8, []byte) { r.record(recordAlert, []byte{3, 3}) })
		h.refuses(r, DecodeError, "an alert of no level in the place of "+name)
	}
}

func TestFragmentedMessagesAreAccepted(t *testing.T) {
	h := newHostile(t, hostileConfig())
	accepts := func(r *rogue, what string) {
		t.Helper()
		require.NoError(t, r.handshake(), what)
		r.conn.Close()
		h.outcome(t)
	}
	for _, name := range []string{"ClientHello", "Certificate", "ClientKeyExchange", "CertificateVerify", "Finished"} {
		length := 0
		r := h.rogue()
		r.on(name, func(contentType uint8, payload []byte) {
			length = len(payload)
			for i := range payload {
				r.record(contentType, payload[i:i+1])
			}
		})
		accepts(r, name+" in records of one byte")
		for cut := 1; cut < length; cut++ {
			if cut > 8 && cut < length-3 && cut%23 != 0 {
				continue
			}
			r := h.rogue()
			r.on(name, func(contentType uint8, payload []byte) {
				cut := min(cut, len(payload)-1) // A signature may be shorter this time.
				r.record(contentType, payload[:cut])
				r.record(contentType, payload[cut:])
			})
			accepts(r, fmt.Sprintf("%s in two records, %d bytes in the first", name, cut))
		}
	}
	r := h.rogue()
	var together []byte
	r.hook = func(name string, contentType uint8, payload []byte) {
		switch name {
		case "Certificate", "ClientKeyExchange":
			together = append(together, payload...)
		case "CertificateVerify":
			r.record(contentType, append(together, payload...))
		default:
			r.record(contentType, payload)
		}
	}
	accepts(r, "three messages in one record")
}

// TestHostileFragments puts what does not belong there between the two parts of
// a message.
func TestHostileFragments(t *testing.T) {
	h := newHostile(t, hostileConfig())
	for _, name := range []string{"ClientHello", "Certificate", "ClientKeyExchange", "CertificateVerify", "Finished"} {
		for _, contentType := range []uint8{recordChangeCipherSpec, recordApplicationData} {
			r := h.rogue()
			r.on(name, func(_ uint8, payload []byte) {
				r.record(recordHandshake, payload[:5])
				r.record(contentType, []byte{1})
				r.record(recordHandshake, payload[5:])
			})
			h.refuses(r, UnexpectedMessage, fmt.Sprintf("record of type %d within %s", contentType, name))
		}
		r := h.rogue()
		r.on(name, func(_ uint8, payload []byte) {
			r.record(recordHandshake, payload[:3])
			r.conn.Close()
		})
		assert.Error(t, r.handshake())
		assert.Error(t, h.outcome(t).err, "the end of the connection within "+name)
	}
	// A message after CertificateVerify that has begun but not ended.
	r := h.rogue()
	r.on("CertificateVerify", func(contentType uint8, payload []byte) { r.record(contentType, append(slices.Clone(payload), 20)) })
	h.refuses(r, UnexpectedMessage, "ChangeCipherSpec within a message")
}

func TestHostileEmptyRecords(t *testing.T) {
	h := newHostile(t, hostileConfig())
	for _, name := range clientMessages {
		for _, contentType := range []uint8{recordChangeCipherSpec, recordAlert, recordHandshake, recordApplicationData} {
			r := h.rogue()
			r.on(name, func(right uint8, payload []byte) {
				r.record(contentType, nil)
				r.record(right, payload)
			})
			h.refuses(r, UnexpectedMessage, fmt.Sprintf("empty record of type %d before %s", contentType, name))
		}
	}
}

func TestHostileRecordsTooShortForTheirProtection(t *testing.T) {
	h := newHostile(t, hostileConfig())
	for _, contentType := range []uint8{recordChangeCipherSpec, recordAlert, recordHandshake, recordApplicationData} {
		for n := range 8 + 16 {
			r := h.rogue()
			r.on("Finished", func(uint8, []byte) { r.raw(contentType, 0x0303, make([]byte, n)) })
			h.refuses(r, BadRecordMAC, fmt.Sprintf("record of type %d with %d bytes", contentType, n))
		}
	}
}

func TestHostileEpochs(t *testing.T) {
	h := newHostile(t, hostileConfig())
	tests := map[string]struct {
		want Alert
		do   func(r *rogue, payload []byte)
	}{
		"Finished in the clear":    {BadRecordMAC, func(r *rogue, p []byte) { r.raw(recordHandshake, 0x0303, p) }},
		"alert in the clear":       {BadRecordMAC, func(r *rogue, _ []byte) { r.raw(recordAlert, 0x0303, []byte{1, 0}) }},
		"sequence number 1":        {BadRecordMAC, func(r *rogue, p []byte) { r.wseq = 1; r.record(recordHandshake, p) }},
		"the last sequence number": {BadRecordMAC, func(r *rogue, p []byte) { r.wseq = 1<<64 - 1; r.record(recordHandshake, p) }},
		"the server's keys": {BadRecordMAC, func(r *rogue, p []byte) {
			r.write = newTestProtection(r.suite, r.next.ServerKey, r.next.ServerIV)
			r.record(recordHandshake, p)
		}},
		"another version below": {BadRecordMAC, func(r *rogue, p []byte) {
			r.raw(recordHandshake, 0x0303, r.write.Seal(nil, 0, recordHandshake, 0x0302, p))
		}},
		"another type below": {BadRecordMAC, func(r *rogue, p []byte) {
			r.raw(recordHandshake, 0x0303, r.write.Seal(nil, 0, recordApplicationData, 0x0303, p))
		}},
		"application data first": {UnexpectedMessage, func(r *rogue, p []byte) {
			r.record(recordApplicationData, []byte("GET / HTTP/1.0\r\n\r\n"))
			r.record(recordHandshake, p)
		}},
		"ChangeCipherSpec again, protected": {UnexpectedMessage, func(r *rogue, p []byte) {
			r.record(recordChangeCipherSpec, []byte{1})
			r.record(recordHandshake, p)
		}},
	}
	for name, tt := range tests {
		r := h.rogue()
		r.on("Finished", func(_ uint8, payload []byte) { tt.do(r, payload) })
		h.refuses(r, tt.want, name)
	}
	// Keys before their time.
	r := h.rogue()
	r.on("ChangeCipherSpec", func(uint8, []byte) {})
	h.refusesWithOneOf(r, []Alert{UnexpectedMessage, DecodeError}, "protected Finished without ChangeCipherSpec")
}

func TestHostileEveryByteOfTheFinishedCounts(t *testing.T) {
	h := newHostile(t, hostileConfig())
	for i := range 12 {
		r := h.rogue()
		r.on("Finished", func(contentType uint8, payload []byte) {
			changed := slices.Clone(payload)
			changed[4+i] ^= 1 << (i % 8)
			r.record(contentType, changed)
		})
		h.refuses(r, DecryptError, fmt.Sprintf("Finished, byte %d", i))
	}
	// Every byte of the record that carries it: nonce, ciphertext, tag.
	for i := range 8 + 16 + 16 {
		r := h.rogue()
		r.on("Finished", func(contentType uint8, payload []byte) {
			sealed := r.write.Seal(nil, 0, contentType, 0x0303, payload)
			sealed[i] ^= 0x80
			r.raw(contentType, 0x0303, sealed)
		})
		h.refuses(r, BadRecordMAC, fmt.Sprintf("record of Finished, byte %d", i))
	}
}

func TestHostileEarlyFinished(t *testing.T) {
	h := newHostile(t, hostileConfig())
	finished := frame(TypeFinished, make([]byte, 12))
	for _, name := range clientMessages[:5] {
		r := h.rogue()
		r.on(name, func(uint8, []byte) { r.record(recordHandshake, finished) })
		h.refuses(r, UnexpectedMessage, "Finished in the place of "+name)
		r = h.rogue()
		r.on(name, func(contentType uint8, payload []byte) {
			if name != "ChangeCipherSpec" {
				r.record(recordChangeCipherSpec, []byte{1})
			}
			r.record(recordHandshake, finished)
		})
		want := UnexpectedMessage
		if name == "ChangeCipherSpec" {
			r.on(name, func(uint8, []byte) {
				r.record(recordChangeCipherSpec, []byte{1})
				r.record(recordHandshake, finished)
			})
			want = BadRecordMAC
		}
		h.refuses(r, want, "ChangeCipherSpec and Finished in the place of "+name)
	}
}

func TestHostileRecordHeaders(t *testing.T) {
	h := newHostile(t, hostileConfig())
	for _, name := range clientMessages {
		tests := []struct {
			what   string
			header []byte
			want   Alert
		}{
			{"plaintext of 2^14+1 bytes", []byte{22, 3, 3, 0x40, 0x01}, RecordOverflow},
			{"record of 2^16-1 bytes", []byte{22, 3, 3, 0xFF, 0xFF}, RecordOverflow},
			{"version 3.2", []byte{22, 3, 2, 0, 5}, ProtocolVersion},
			{"version 3.4", []byte{22, 3, 4, 0, 5}, ProtocolVersion},
			{"version 2.0", []byte{22, 2, 0, 0, 5}, ProtocolVersion},
			{"type 0", []byte{0, 3, 3, 0, 5}, UnexpectedMessage},
		}
		for _, tt := range tests {
			if name == "ClientHello" && tt.want != RecordOverflow {
				continue // Any 3.x may stand there (RFC 5246, Appendix E.1).
			}
			r := h.rogue()
			r.on(name, func(uint8, []byte) {
				header := slices.Clone(tt.header)
				if name == "Finished" && tt.want == RecordOverflow {
					n := binary.BigEndian.Uint16(header[3:])
					binary.BigEndian.PutUint16(header[3:], max(n, n+24)) // protected records are longer
				}
				r.conn.Write(header)
			})
			h.refuses(r, tt.want, tt.what+" in the place of "+name)
		}
	}
}
