package split

import (
	"crypto/tls"
	"hash"

	"github.com/tlsski/tlsski/ski/tlsprf"
)

// Machine is the server's side of one handshake. It does no I/O: it is fed
// handshake messages and the answers to its own questions, and says what is to
// be sent, asked and changed. What it does when is the table in transitions.go.
//
// Each method that feeds it returns the events that follow, to be carried out
// in their order. An error is for good; its Alert is what the client is to get.
type Machine struct {
	state  State
	events []Event

	hello *ClientHello
	cfg   *Config
	agreement
	session      *session // that is resumed
	newestTicket bool     // it came with a ticket of the newest key
	peer         peer

	serverRandom []byte
	params       []byte // ServerECDHParams
	signature    []byte

	schedule     tlsprf.Schedule
	fallback     []byte // with static RSA: the PreMasterSecret, unless a right one is decrypted
	masterSecret []byte
	read, write  *Protection // from the next ChangeCipherSpec on

	transcript hash.Hash // nil until the cipher suite is known
	// messages are those that transcript has not got, or that a
	// CertificateVerify will cover.
	messages []byte
}

// NewMachine returns a Machine that waits for a ClientHello.
func NewMachine() *Machine { return &Machine{state: StateClientHello} }

// State returns where the handshake stands.
func (m *Machine) State() State { return m.state }

// Event is something that the machine wants done: one of the types below.
type Event any

type (
	// SiteWanted asks for the Config of the site, to be given to Site.
	SiteWanted struct{ Hello *ClientHello }

	// EphemeralWanted asks for an ephemeral key. With Signed it is the key
	// server's and comes with a signature of Scheme (SignedEphemeral);
	// otherwise it is made here (Ephemeral).
	EphemeralWanted struct {
		Chain                      *Chain
		Group                      tls.CurveID
		Signed                     bool
		Scheme                     tls.SignatureScheme
		ClientRandom, ServerRandom []byte
	}

	// SignatureWanted asks for the signature of Message, which is ClientRandom
	// + ServerRandom + ServerECDHParams, to be given to Signature.
	SignatureWanted struct {
		Chain   *Chain
		Scheme  tls.SignatureScheme
		Message []byte
	}

	// PreMasterWanted asks for the PreMasterSecret, to be given to PreMaster:
	// either what is shared with the ECDHE public value of the client, or what
	// the key decrypts.
	PreMasterWanted struct {
		Chain        *Chain
		ClientPublic []byte
		Encrypted    []byte
	}

	// Send is a handshake message to be sent. Message has the header of TLS.
	Send struct{ Message []byte }

	// SendChangeCipherSpec is a ChangeCipherSpec to be sent, and what protects
	// that which is sent after it.
	SendChangeCipherSpec struct{ Write *Protection }

	// Expect is what protects that which the client sends after its
	// ChangeCipherSpec.
	Expect struct{ Read *Protection }

	// SendWarning is an alert of level warning to be sent.
	SendWarning struct{ Alert Alert }

	// Limit are the longest plaintexts of records in either direction, in
	// bytes, from the next record on.
	Limit struct{ In, Out int }

	// Connected says that the handshake is done.
	Connected struct{}
)

// input is what one step is fed with.
type input struct {
	body, message []byte // without and with the header
	site          *Config
	public        []byte
	params        []byte
	signature     []byte
	secret        []byte
}

// Admit checks whether a message of type t with a body of length bytes may come
// next, so that what may not is not even collected.
func (m *Machine) Admit(t MessageType, length int) error {
	if err := m.admit(t, length); err != nil {
		m.state = StateFailed
		return err
	}
	return nil
}

func (m *Machine) admit(t MessageType, length int) *Error {
	on, known := inputOf[t]
	switch {
	case !known || find(m.state, on) == nil:
		return fail(UnexpectedMessage, "%s where %s was to come", t, m.state)
	case length > maxBody[t]:
		return fail(DecodeError, "%s of %d bytes", t, length)
	}
	return nil
}

// Message takes a handshake message of the client: its body, and the whole with
// its header as it goes into the handshake hash, which in DTLS is that of the
// message in one fragment (RFC 6347, Section 4.2.6).
func (m *Machine) Message(t MessageType, body, whole []byte) ([]Event, error) {
	if err := m.Admit(t, len(body)); err != nil {
		return nil, err
	}
	return m.step(inputOf[t], &input{body: body, message: whole})
}

// ChangeCipherSpec takes the client's ChangeCipherSpec.
func (m *Machine) ChangeCipherSpec() ([]Event, error) { return m.step(InChangeCipherSpec, &input{}) }

// Site takes the answer to SiteWanted.
func (m *Machine) Site(c *Config) ([]Event, error) { return m.step(InSite, &input{site: c}) }

// Ephemeral takes the public value of an ephemeral key.
func (m *Machine) Ephemeral(public []byte) ([]Event, error) {
	return m.step(InEphemeral, &input{public: public})
}

// SignedEphemeral takes the ServerECDHParams of the key server's ephemeral key
// and their signature.
func (m *Machine) SignedEphemeral(params, signature []byte) ([]Event, error) {
	return m.step(InSignedEphemeral, &input{params: params, signature: signature})
}

// Signature takes the answer to SignatureWanted.
func (m *Machine) Signature(signature []byte) ([]Event, error) {
	return m.step(InSignature, &input{signature: signature})
}

// PreMaster takes the PreMasterSecret, and clears it.
func (m *Machine) PreMaster(secret []byte) ([]Event, error) {
	defer clear(secret)
	return m.step(InPreMaster, &input{secret: secret})
}

// Fail ends the handshake.
func (m *Machine) Fail() {
	m.state = StateFailed
	m.forget()
}

// step carries out the table's row for an input.
func (m *Machine) step(on Input, in *input) ([]Event, error) {
	m.events = nil
	if err := m.follow(on, in); err != nil {
		m.Fail()
		return nil, err
	}
	return m.events, nil
}

func (m *Machine) follow(on Input, in *input) *Error {
	t := find(m.state, on)
	if t == nil {
		return fail(UnexpectedMessage, "%s where %s was to come", on, m.state)
	}
	if err := t.do(m, in); err != nil {
		return err
	}
	for _, b := range t.to {
		if !b.when.holds(m) {
			continue
		}
		if b.do != nil {
			if err := b.do(m); err != nil {
				return err
			}
		}
		m.state = b.state
		return nil
	}
	return fail(InternalError, "no way on from %s with %s", m.state, on)
}

func (m *Machine) emit(e Event) { m.events = append(m.events, e) }

// send emits a handshake message.
func (m *Machine) send(t MessageType, body []byte) {
	message := frame(t, body)
	m.record(message)
	m.emit(Send{message})
}

// record adds a message to the handshake hash.
func (m *Machine) record(message []byte) {
	if m.transcript != nil {
		m.transcript.Write(message)
	}
	if m.transcript == nil || m.cfg.ClientAuth != NoClientCert {
		m.messages = append(m.messages, message...)
	}
}

// forget clears what is not needed once the handshake has ended.
func (m *Machine) forget() {
	clear(m.masterSecret)
	m.masterSecret, m.messages, m.transcript = nil, nil, nil
	m.read, m.write = nil, nil
	if m.session != nil {
		clear(m.session.masterSecret)
	}
}
