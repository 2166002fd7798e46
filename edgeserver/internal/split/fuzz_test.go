package split

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// FuzzClientHello: a ClientHello that is accepted is one of which everything
// that counts is there.
func FuzzClientHello(f *testing.F) {
	for _, s := range suites {
		f.Add(goodHello(s, tls.X25519).body())
	}
	f.Add(goodHello(gcm(), tls.CurveP256).with(extALPN, []byte{0, 3, 2, 'h', '2'}).with(extSessionTicket, make([]byte, 100)).body())
	f.Add(goodHello(gcm(), tls.CurveP256).with(extServerCertType, []byte{1, 2}).with(extClientCertType, []byte{2, 2, 0}).body())
	f.Add(goodHello(gcm(), tls.CurveP256).with(extMaxFragmentLength, []byte{1}).with(extRecordSizeLimit, []byte{1, 0}).body())
	f.Add(goodHello(gcm(), tls.CurveP256).with(extSupportedVersions, []byte{4, 3, 4, 3, 3}).with(extRenegotiationInfo, []byte{0}).body())
	cfg := hostileConfig()
	f.Fuzz(func(t *testing.T, body []byte) {
		h, err := parseClientHello(body)
		if err != nil {
			return
		}
		require.Len(t, h.Random, 32)
		require.LessOrEqual(t, len(h.SessionID), 32)
		require.NotEmpty(t, h.CipherSuites)
		a, err := cfg.negotiate(h)
		if err != nil {
			return
		}
		require.Contains(t, h.CipherSuites, a.suite.id)
		if !a.suite.staticRSA {
			require.Contains(t, h.Schemes, a.scheme)
			require.True(t, h.Groups == nil || contains(h.Groups, a.group))
		}
	})
}

func contains[T comparable](list []T, v T) bool {
	for _, e := range list {
		if e == v {
			return true
		}
	}
	return false
}

// FuzzClientMessages: what a parser accepts is what a builder makes of it.
func FuzzClientMessages(f *testing.F) {
	w := theWorld()
	f.Add(certificateBody(w.client.chain.Certificates))
	f.Add(certificateBody([][]byte{w.client.cert.Raw, w.ca.Raw}))
	f.Add(rawPublicKeyBody(w.client.cert.RawSubjectPublicKeyInfo))
	f.Add(append([]byte{32}, make([]byte, 32)...))
	f.Add(append([]byte{1, 0}, make([]byte, 256)...))
	f.Add(serverKeyExchangeBody(nil, tls.ECDSAWithP256AndSHA256, make([]byte, 70)))
	f.Fuzz(func(t *testing.T, body []byte) {
		if chain, err := parseCertificate(body); err == nil {
			require.Equal(t, body, certificateBody(chain))
		}
		if spki, err := parseRawPublicKey(body); err == nil {
			require.Equal(t, body, rawPublicKeyBody(spki))
		}
		if point, err := parseClientECDHPublic(body); err == nil {
			require.Equal(t, body, append([]byte{byte(len(point))}, point...))
		}
		if encrypted, err := parseEncryptedPreMasterSecret(body); err == nil {
			require.Equal(t, body, append([]byte{byte(len(encrypted) >> 8), byte(len(encrypted))}, encrypted...))
		}
		if scheme, signature, err := parseCertificateVerify(body); err == nil {
			require.Equal(t, body, serverKeyExchangeBody(nil, scheme, signature))
		}
		for _, g := range allGroups {
			if checkServerECDHParams(body, g) == nil {
				require.NoError(t, checkPublic(g, body[4:]))
			}
		}
	})
}

// FuzzTicket: only the key's own tickets open, and what they hold is parsed
// without a fault.
func FuzzTicket(f *testing.F) {
	key := NewTicketKey()
	s := &session{suite: gcm().id, extendedMasterSecret: true, created: time.Unix(1e9, 0), masterSecret: make([]byte, 48), serverName: serverName}
	ticket := must(key.seal(s))
	f.Add(ticket)
	f.Fuzz(func(t *testing.T, data []byte) {
		if got, _ := openTicket([]TicketKey{key}, data); got != nil {
			require.Equal(t, ticket, data)
		}
		if got := parseSession(data); got != nil {
			again, err := key.seal(got)
			if err == nil {
				opened, newest := openTicket([]TicketKey{key}, again)
				require.True(t, newest)
				require.Equal(t, got, opened)
			}
		}
	})
}

// onePeer is a net.Conn whose other side has said everything already.
type onePeer struct {
	io.Reader
	out bytes.Buffer
}

func (p *onePeer) Write(b []byte) (int, error)      { return p.out.Write(b) }
func (p *onePeer) Close() error                     { return nil }
func (p *onePeer) LocalAddr() net.Addr              { return &net.TCPAddr{} }
func (p *onePeer) RemoteAddr() net.Addr             { return &net.TCPAddr{} }
func (p *onePeer) SetDeadline(time.Time) error      { return nil }
func (p *onePeer) SetReadDeadline(time.Time) error  { return nil }
func (p *onePeer) SetWriteDeadline(time.Time) error { return nil }

// FuzzRecords feeds a connection whatever comes: it ends, without a handshake.
func FuzzRecords(f *testing.F) {
	hello := frame(TypeClientHello, goodHello(gcm(), tls.X25519).body())
	record := func(contentType byte, payload []byte) []byte {
		return append([]byte{contentType, 3, 3, byte(len(payload) >> 8), byte(len(payload))}, payload...)
	}
	f.Add(record(22, hello))
	f.Add(append(record(22, hello[:40]), record(22, hello[40:])...))
	f.Add(append(record(22, hello), record(20, []byte{1})...))
	f.Add(append(record(22, hello), record(22, frame(TypeClientKeyExchange, append([]byte{32}, make([]byte, 32)...)))...))
	cfg := hostileConfig()
	f.Fuzz(func(t *testing.T, data []byte) {
		peer := &onePeer{Reader: bytes.NewReader(data)}
		c := Server(peer, fixed(cfg))
		err := c.HandshakeContext(context.Background())
		require.Error(t, err)
		if e := (*Error)(nil); errors.As(err, &e) {
			sent := peer.out.Bytes()
			require.GreaterOrEqual(t, len(sent), 7)
			require.Equal(t, []byte{21, 3, 3, 0, 2, 2, byte(e.Alert)}, sent[len(sent)-7:])
		}
	})
}

// FuzzFlights has the machine do what the input says, byte by byte: mostly right
// messages, in any order. It gets through to the end only by the order of the
// table, with a Finished that is right.
func FuzzFlights(f *testing.F) {
	f.Add([]byte{0, 1, 2, 3, 4, 5})
	f.Add([]byte{0x80, 2, 3, 4, 5})
	f.Add([]byte{0, 6, 2, 4, 5})
	f.Add([]byte{0, 1, 2, 3, 4, 9})
	f.Add([]byte{0, 4, 5, 2})
	f.Fuzz(func(t *testing.T, script []byte) {
		if len(script) > 12 {
			return
		}
		cfg := hostileConfig()
		m := NewMachine()
		verified := false
		for _, b := range script {
			before := m.State()
			events, err := flightStep(m, b, &verified)
			if err != nil {
				require.Equal(t, StateFailed, m.State())
				_, err = m.ChangeCipherSpec()
				require.Error(t, err)
				return
			}
			for _, e := range answer(t, m, cfg, events) {
				if _, done := e.(Connected); done {
					require.True(t, verified)
					require.Equal(t, StateFinished, before)
				}
			}
		}
		if m.State() == StateConnected {
			require.True(t, verified)
		}
	})
}

// flightStep feeds the machine one message.
func flightStep(m *Machine, b byte, verified *bool) ([]Event, error) {
	message := func(t MessageType, body []byte) ([]Event, error) { return m.Message(t, body, frame(t, body)) }
	switch b & 0x0F {
	case 0:
		s := gcm()
		if b&0x80 != 0 {
			s = staticGCM()
		}
		return message(TypeClientHello, goodHello(s, tls.X25519).body())
	case 1:
		return message(TypeCertificate, certificateBody(theWorld().client.chain.Certificates))
	case 2:
		if m.hello != nil && m.suite != nil && m.suite.staticRSA {
			return message(TypeClientKeyExchange, append([]byte{1, 0}, make([]byte, 256)...))
		}
		return message(TypeClientKeyExchange, append([]byte{32, 9}, make([]byte, 31)...))
	case 3:
		signature := must(theWorld().client.key.SignMessage(nil, m.messages, signerOpts(tls.ECDSAWithP256AndSHA256)))
		return message(TypeCertificateVerify, serverKeyExchangeBody(nil, tls.ECDSAWithP256AndSHA256, signature))
	case 4:
		return m.ChangeCipherSpec()
	case 5:
		body := make([]byte, 12)
		if m.masterSecret != nil && m.transcript != nil {
			body = must(m.schedule.ClientFinished(m.masterSecret, m.transcript.Sum(nil)))
			*verified = true
		}
		return message(TypeFinished, body)
	case 6:
		return message(TypeCertificate, []byte{0, 0, 0})
	}
	return message(MessageType(b), make([]byte, 12))
}
