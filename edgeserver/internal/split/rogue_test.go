package split

import (
	"crypto/ecdh"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/crypto/cryptobyte"

	"github.com/tlsski/tlsski/ski/tlsprf"
)

// extension is one of a ClientHello.
type extension struct {
	id   uint16
	data []byte
}

// helloSpec is a ClientHello, right or wrong.
type helloSpec struct {
	version     uint16
	random      []byte
	sessionID   []byte
	suites      []uint16
	compression []byte
	extensions  []extension
}

func u16s(values ...uint16) []byte {
	var b cryptobyte.Builder
	b.AddUint16LengthPrefixed(func(b *cryptobyte.Builder) {
		for _, v := range values {
			b.AddUint16(v)
		}
	})
	return b.BytesOrPanic()
}

// goodHello offers one suite and one group, and all that is needed.
func goodHello(s *suite, group tls.CurveID) *helloSpec {
	h := &helloSpec{
		version: tls.VersionTLS12, random: make([]byte, 32), suites: []uint16{s.id, emptyRenegotiationInfo}, compression: []byte{0},
		extensions: []extension{
			{extServerName, slices.Concat([]byte{0, byte(len(serverName) + 3), 0, 0, byte(len(serverName))}, []byte(serverName))},
			{extSupportedGroups, u16s(uint16(group), uint16(tls.CurveP256))},
			{extPointFormats, []byte{1, 0}},
			{extSignatureAlgorithms, u16s(0x0403, 0x0804, 0x0401)},
			{extExtendedMasterSecret, nil},
		},
	}
	rand.Read(h.random)
	return h
}

// with returns a copy with an extension more, or in the place of the old one.
func (h helloSpec) with(id uint16, data []byte) *helloSpec {
	h.extensions = append(h.without(id).extensions, extension{id, data})
	return &h
}

func (h helloSpec) without(id uint16) *helloSpec {
	h.extensions = slices.DeleteFunc(slices.Clone(h.extensions), func(e extension) bool { return e.id == id })
	return &h
}

func (h *helloSpec) body() []byte {
	var b cryptobyte.Builder
	b.AddUint16(h.version)
	b.AddBytes(h.random)
	b.AddUint8LengthPrefixed(func(b *cryptobyte.Builder) { b.AddBytes(h.sessionID) })
	b.AddBytes(u16s(h.suites...))
	b.AddUint8LengthPrefixed(func(b *cryptobyte.Builder) { b.AddBytes(h.compression) })
	if h.extensions != nil {
		b.AddUint16LengthPrefixed(func(b *cryptobyte.Builder) {
			for _, e := range h.extensions {
				b.AddUint16(e.id)
				b.AddUint16LengthPrefixed(func(b *cryptobyte.Builder) { b.AddBytes(e.data) })
			}
		})
	}
	return b.BytesOrPanic()
}

// alertError is an alert that the server has sent.
type alertError struct {
	level uint8
	alert Alert
}

func (e *alertError) Error() string { return fmt.Sprintf("alert %d, level %d", e.alert, e.level) }

// rogue is a client for tests that does as it is told. It does an honest
// handshake, but everything that it sends goes through hook first.
type rogue struct {
	conn     net.Conn
	hello    *helloSpec
	group    tls.CurveID
	identity *identity // its certificate; nil: none

	// hook, if set, sends a record in place of rogue: name is the message's.
	hook func(name string, contentType uint8, payload []byte)
	// preMaster, if set, changes the encrypted PreMasterSecret or ECDHE public value.
	preMaster func([]byte) []byte

	suite       *suite
	schedule    tlsprf.Schedule
	random      []byte // the server's
	extensions  map[uint16][]byte
	transcript  []byte
	collected   []byte
	master      []byte
	read, write *Protection
	next        *tlsprf.Keys
	rseq, wseq  uint64
	ticket      []byte
	resume      []byte // the master secret of a session to resume
	requested   bool
}

func newRogue(t testing.TB, addr string, h *helloSpec, group tls.CurveID) *rogue {
	conn, err := net.Dial("tcp", addr)
	require.NoError(t, err)
	t.Cleanup(func() { conn.Close() })
	conn.SetDeadline(time.Now().Add(time.Minute))
	return &rogue{conn: conn, hello: h, group: group}
}

// record sends one record, protected if the epoch is.
func (r *rogue) record(contentType uint8, payload []byte) {
	if r.write != nil {
		payload = r.write.Seal(nil, r.wseq, contentType, tls.VersionTLS12, payload)
		r.wseq++
	}
	r.raw(contentType, tls.VersionTLS12, payload)
}

func (r *rogue) raw(contentType uint8, version uint16, payload []byte) {
	header := []byte{contentType, byte(version >> 8), byte(version), byte(len(payload) >> 8), byte(len(payload))}
	r.conn.Write(append(header, payload...)) // An error shows when the answer is read.
}

func (r *rogue) send(name string, contentType uint8, payload []byte) {
	if r.hook != nil {
		r.hook(name, contentType, payload)
		return
	}
	r.record(contentType, payload)
}

// message sends a handshake message.
func (r *rogue) message(t MessageType, body []byte) {
	whole := frame(t, body)
	r.transcript = append(r.transcript, whole...)
	r.send(t.String(), recordHandshake, whole)
}

// readRecord returns the next record's plaintext; an alert is an error.
func (r *rogue) readRecord() (uint8, []byte, error) {
	var header [5]byte
	if _, err := io.ReadFull(r.conn, header[:]); err != nil {
		return 0, nil, err
	}
	payload := make([]byte, binary.BigEndian.Uint16(header[3:]))
	if _, err := io.ReadFull(r.conn, payload); err != nil {
		return 0, nil, err
	}
	if r.read != nil {
		var err error
		if payload, err = r.read.Open(r.rseq, header[0], tls.VersionTLS12, payload); err != nil {
			return 0, nil, err
		}
		r.rseq++
	}
	if header[0] == recordAlert {
		return 0, nil, &alertError{payload[0], Alert(payload[1])}
	}
	return header[0], payload, nil
}

// readMessage returns the next handshake message, or nil for a
// ChangeCipherSpec.
func (r *rogue) readMessage() (MessageType, []byte, error) {
	for {
		if b := r.collected; len(b) >= 4 {
			if n := 4 + int(b[1])<<16 + int(b[2])<<8 + int(b[3]); len(b) >= n {
				r.collected = b[n:]
				return MessageType(b[0]), b[:n:n], nil
			}
		}
		contentType, payload, err := r.readRecord()
		switch {
		case err != nil:
			return 0, nil, err
		case contentType == recordChangeCipherSpec:
			return 0, nil, nil
		case contentType != recordHandshake:
			return 0, nil, fmt.Errorf("record of type %d", contentType)
		}
		r.collected = append(r.collected, payload...)
	}
}

// handshake does the whole of it.
func (r *rogue) handshake() error {
	r.message(TypeClientHello, r.hello.body())
	resumed, params, err := r.readFlight()
	if err != nil {
		return err
	}
	if resumed {
		r.send("ChangeCipherSpec", recordChangeCipherSpec, []byte{1})
		return r.finish()
	}
	if r.requested {
		if r.identity != nil {
			r.message(TypeCertificate, certificateBody(r.identity.chain.Certificates))
		} else {
			r.message(TypeCertificate, []byte{0, 0, 0})
		}
	}
	secret := r.keyExchange(params)
	r.derive(secret)
	if r.requested && r.identity != nil {
		r.message(TypeCertificateVerify, r.certificateVerify())
	}
	r.send("ChangeCipherSpec", recordChangeCipherSpec, []byte{1})
	if err := r.finish(); err != nil {
		return err
	}
	return r.readFinished()
}

// readFlight reads the server's first flight; of a resumption, all of it.
func (r *rogue) readFlight() (resumed bool, params []byte, err error) {
	for {
		t, whole, err := r.readMessage()
		if err != nil {
			return false, nil, err
		}
		if whole == nil { // ChangeCipherSpec: it resumes
			r.master = r.resume
			if err := r.deriveKeys(); err != nil {
				return false, nil, err
			}
			r.read, r.rseq = newTestProtection(r.suite, r.next.ServerKey, r.next.ServerIV), 0
			return true, nil, r.checkFinished()
		}
		r.transcript = append(r.transcript, whole...)
		body := whole[4:]
		switch t {
		case TypeServerHello:
			if err := r.takeServerHello(body); err != nil {
				return false, nil, err
			}
		case TypeServerKeyExchange:
			params = body
		case TypeCertificateRequest:
			r.requested = true
		case TypeNewSessionTicket:
			r.ticket = body[6:]
		case TypeServerHelloDone:
			return false, params, nil
		}
	}
}

func newTestProtection(s *suite, key, iv []byte) *Protection { return must(newProtection(s, key, iv)) }

func (r *rogue) takeServerHello(body []byte) error {
	s := cryptobyte.String(body)
	var sessionID, extensions cryptobyte.String
	var id uint16
	if !s.Skip(2) || !s.ReadBytes(&r.random, 32) || !s.ReadUint8LengthPrefixed(&sessionID) || !s.ReadUint16(&id) || !s.Skip(1) {
		return errors.New("malformed ServerHello")
	}
	r.extensions = map[uint16][]byte{}
	if !s.Empty() && !s.ReadUint16LengthPrefixed(&extensions) {
		return errors.New("malformed ServerHello")
	}
	for !extensions.Empty() {
		var id uint16
		var data cryptobyte.String
		if !extensions.ReadUint16(&id) || !extensions.ReadUint16LengthPrefixed(&data) {
			return errors.New("malformed ServerHello")
		}
		r.extensions[id] = data
	}
	r.suite = suiteByID(id)
	var err error
	r.schedule, err = tlsprf.New(tls.VersionTLS12, id)
	return err
}

// keyExchange sends the ClientKeyExchange and returns the PreMasterSecret.
func (r *rogue) keyExchange(params []byte) []byte {
	change := r.preMaster
	if change == nil {
		change = func(b []byte) []byte { return b }
	}
	if r.suite.staticRSA {
		secret := make([]byte, 48)
		rand.Read(secret)
		binary.BigEndian.PutUint16(secret, r.hello.version)
		//lint:ignore SA1019 it is what static RSA is made of
		encrypted := change(must(rsa.EncryptPKCS1v15(rand.Reader, theWorld().rsa.cert.PublicKey.(*rsa.PublicKey), secret)))
		r.message(TypeClientKeyExchange, append([]byte{byte(len(encrypted) >> 8), byte(len(encrypted))}, encrypted...))
		return secret
	}
	curve := curveOf(r.group)
	key := must(curve.GenerateKey(rand.Reader))
	secret := must(key.ECDH(must(serverPublic(curve, params))))
	public := change(key.PublicKey().Bytes())
	r.message(TypeClientKeyExchange, append([]byte{byte(len(public))}, public...))
	return secret
}

func serverPublic(curve ecdh.Curve, params []byte) (*ecdh.PublicKey, error) {
	return curve.NewPublicKey(params[4 : 4+int(params[3])])
}

func (r *rogue) hash() []byte {
	h := r.schedule.PRF().New()
	h.Write(r.transcript)
	return h.Sum(nil)
}

// derive makes the keys of a full handshake.
func (r *rogue) derive(secret []byte) {
	if _, ok := r.extensions[extExtendedMasterSecret]; ok {
		r.master = must(r.schedule.ExtendedMasterSecret(secret, r.hash()))
	} else {
		r.master = must(r.schedule.MasterSecret(secret, r.hello.random, r.random))
	}
	if err := r.deriveKeys(); err != nil {
		panic(err)
	}
}

func (r *rogue) deriveKeys() (err error) {
	r.next, err = r.schedule.Keys(r.master, r.hello.random, r.random)
	return err
}

func (r *rogue) certificateVerify() []byte {
	scheme := tls.ECDSAWithP256AndSHA256
	if r.identity.chain.isRSA() {
		scheme = tls.PSSWithSHA256
	}
	signature := must(r.identity.key.SignMessage(rand.Reader, r.transcript, signerOpts(scheme)))
	return serverKeyExchangeBody(nil, scheme, signature) // the same but for the params
}

// finish changes to the keys and sends Finished.
func (r *rogue) finish() error {
	r.write, r.wseq = newTestProtection(r.suite, r.next.ClientKey, r.next.ClientIV), 0
	r.message(TypeFinished, must(r.schedule.ClientFinished(r.master, r.hash())))
	return nil
}

// readFinished reads the server's last flight.
func (r *rogue) readFinished() error {
	for {
		t, whole, err := r.readMessage()
		if err != nil {
			return err
		}
		if whole == nil {
			r.read, r.rseq = newTestProtection(r.suite, r.next.ServerKey, r.next.ServerIV), 0
			return r.checkFinished()
		}
		if t != TypeNewSessionTicket {
			return fmt.Errorf("%s before ChangeCipherSpec", t)
		}
		r.ticket = whole[10:]
		r.transcript = append(r.transcript, whole...)
	}
}

// checkFinished reads the server's Finished.
func (r *rogue) checkFinished() error {
	t, whole, err := r.readMessage()
	if err != nil {
		return err
	}
	want := must(r.schedule.ServerFinished(r.master, r.hash()))
	if t != TypeFinished || !slices.Equal(whole[4:], want) {
		return errors.New("the server's Finished is wrong")
	}
	r.transcript = append(r.transcript, whole...)
	return nil
}

// answer returns the alert with which the server ends the connection. Anything
// else that comes is passed over.
func (r *rogue) answer() error {
	for {
		if _, _, err := r.readRecord(); err != nil {
			return err
		}
	}
}
