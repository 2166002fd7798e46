package split

import (
	"crypto/hmac"
	"crypto/rand"
	"crypto/subtle"
	"crypto/tls"
	"crypto/x509"
	"slices"
	"time"

	"github.com/tlsski/tlsski/ski"
	"github.com/tlsski/tlsski/ski/tlsprf"
)

// takeClientHello parses the ClientHello and asks whose it is.
func (m *Machine) takeClientHello(in *input) *Error {
	var err *Error
	if m.hello, err = parseClientHello(in.body); err != nil {
		return err
	}
	if err := checkVersion(m.hello); err != nil {
		return err
	}
	m.messages = append(m.messages, in.message...)
	m.emit(SiteWanted{m.hello})
	return nil
}

// takeSite negotiates.
func (m *Machine) takeSite(in *input) *Error {
	m.cfg = in.site
	a, err := m.cfg.negotiate(m.hello)
	if err != nil {
		return err
	}
	m.agreement = *a
	if m.session, m.newestTicket, err = m.cfg.resumable(m.hello, a); err != nil {
		return err
	}
	if m.session != nil {
		m.suite = suiteByID(m.session.suite)
	}
	schedule, e := tlsprf.New(tls.VersionTLS12, m.suite.id)
	if e != nil {
		return &Error{InternalError, "no key schedule", e}
	}
	m.schedule = schedule
	m.makeServerRandom()
	m.transcript = m.schedule.PRF().New()
	m.transcript.Write(m.messages)
	if m.cfg.ClientAuth == NoClientCert {
		m.messages = nil
	}
	return nil
}

func (m *Machine) makeServerRandom() {
	m.serverRandom = make([]byte, tlsprf.RandomLen)
	rand.Read(m.serverRandom)
	if m.cfg.TLS13 {
		// RFC 8446, Section 4.1.3: a client that can do TLS 1.3 as well ends
		// the handshake, since someone has taken that from its ClientHello.
		copy(m.serverRandom[24:], "DOWNGRD\x01")
	}
}

// serverHello returns what both kinds of handshake say.
func (m *Machine) serverHello() *serverHello {
	h := &serverHello{
		random:               m.serverRandom,
		suite:                m.suite.id,
		alpn:                 m.alpn,
		pointFormats:         m.hello.pointFormats && !m.suite.staticRSA,
		extendedMasterSecret: m.hello.extendedMasterSecret,
		secureRenegotiation:  m.hello.secureRenegotiation,
		maxFragmentLength:    m.hello.fragmentLength(),
	}
	if m.hello.recordSizeLimit != 0 {
		h.recordSizeLimit = maxPlaintext
	}
	return h
}

// sendServerHello sends it, and the limits that it sets.
func (m *Machine) sendServerHello(h *serverHello) {
	m.send(TypeServerHello, h.body())
	l := limitsFor(m.hello)
	m.emit(Limit{In: l.in, Out: l.out})
}

// maxServerRandoms is how many are tried. A client that leaves less than a half of
// them is not one by chance.
const maxServerRandoms = 16

// askForEphemeral asks for an ephemeral key. Randoms that make what is signed look
// like something else that is signed (ski.CheckForm) are no use with this group:
// it takes another, and then another ServerRandom. The key server would refuse
// them, so it is not asked.
func (m *Machine) askForEphemeral() *Error {
	var err error
	for range maxServerRandoms {
		for _, m.group = range m.groups {
			if err = ski.CheckRandoms(slices.Concat(m.hello.Random, m.serverRandom), m.group); err != nil {
				continue
			}
			m.emit(EphemeralWanted{
				Chain: m.chain, Group: m.group, Signed: m.cfg.KeyServerEphemeral, Scheme: m.scheme,
				ClientRandom: m.hello.Random, ServerRandom: m.serverRandom,
			})
			return nil
		}
		m.makeServerRandom()
	}
	return &Error{IllegalParameter, "the client's random", err}
}

// takeEphemeral asks for the signature of the edge's own ephemeral key.
func (m *Machine) takeEphemeral(in *input) *Error {
	if m.cfg.KeyServerEphemeral {
		return fail(InternalError, "the ephemeral key is not the key server's")
	}
	m.params = serverECDHParams(m.group, in.public)
	m.emit(SignatureWanted{
		Chain: m.chain, Scheme: m.scheme,
		Message: slices.Concat(m.hello.Random, m.serverRandom, m.params),
	})
	return nil
}

// takeSignedEphemeral takes the key server's.
func (m *Machine) takeSignedEphemeral(in *input) *Error {
	if !m.cfg.KeyServerEphemeral {
		return fail(InternalError, "the ephemeral key is not the edge's")
	}
	if err := checkServerECDHParams(in.params, m.group); err != nil {
		return &Error{InternalError, "the key server's ephemeral key", err}
	}
	m.params, m.signature = in.params, in.signature
	return nil
}

func (m *Machine) takeSignature(in *input) *Error {
	m.signature = in.signature
	return nil
}

// sendFlight sends everything from ServerHello to ServerHelloDone (RFC 5246,
// Section 7.3).
func (m *Machine) sendFlight() *Error {
	h := m.serverHello()
	h.serverNameUsed = m.hello.ServerName != ""
	h.ticketPromised = m.promisesTicket()
	h.serverCertType, h.clientCertType = m.serverCertType, m.clientCertType
	m.sendServerHello(h)
	if m.rawPublicKey {
		spki, err := x509.MarshalPKIXPublicKey(m.chain.Leaf.PublicKey)
		if err != nil {
			return &Error{InternalError, "raw public key", err}
		}
		m.send(TypeCertificate, rawPublicKeyBody(spki))
	} else {
		m.send(TypeCertificate, certificateBody(m.chain.Certificates))
	}
	if !m.suite.staticRSA {
		m.send(TypeServerKeyExchange, serverKeyExchangeBody(m.params, m.scheme, m.signature))
	}
	if m.cfg.ClientAuth != NoClientCert {
		m.send(TypeCertificateRequest, certificateRequestBody(m.cfg.authorities()))
	}
	m.send(TypeServerHelloDone, nil)
	return nil
}

// promisesTicket reports whether the client gets a ticket after a full
// handshake.
func (m *Machine) promisesTicket() bool {
	return m.hello.sessionTicket && len(m.cfg.ticketKeys()) > 0
}

// takeCertificate takes the client's Certificate, which can be empty.
func (m *Machine) takeCertificate(in *input) *Error {
	m.record(in.message)
	empty := slices.Equal(in.body, []byte{0, 0, 0})
	switch {
	case empty && m.cfg.ClientAuth == RequireClientCert:
		// RFC 5246, Section 7.4.6.
		return &Error{HandshakeFailure, "the client has no certificate", ErrNoCertificate}
	case empty:
		return nil
	case m.clientRaw:
		spki, err := parseRawPublicKey(in.body)
		if err != nil {
			return err
		}
		m.peer = peer{certificates: [][]byte{spki}, raw: true}
	default:
		chain, err := parseCertificate(in.body)
		if err != nil {
			return err
		}
		m.peer = peer{certificates: chain}
	}
	return m.cfg.verifyPeer(&m.peer)
}

// takeClientKeyExchange asks for the PreMasterSecret.
func (m *Machine) takeClientKeyExchange(in *input) *Error {
	m.record(in.message)
	if m.suite.staticRSA {
		encrypted, err := parseEncryptedPreMasterSecret(in.body)
		if err != nil {
			return err
		}
		m.fallback = make([]byte, ski.PreMasterSecretLen)
		rand.Read(m.fallback) // Before the answer is known, so that its time tells nothing.
		m.emit(PreMasterWanted{Chain: m.chain, Encrypted: encrypted})
		return nil
	}
	public, err := parseClientECDHPublic(in.body)
	if err != nil {
		return err
	}
	if err := checkPublic(m.group, public); err != nil {
		return &Error{IllegalParameter, "the client's ECDHE public value", err}
	}
	m.emit(PreMasterWanted{Chain: m.chain, ClientPublic: public})
	return nil
}

// takePreMaster derives the secrets (RFC 5246, Section 8.1; RFC 7627, Section
// 4). The handshake hash is that up to the ClientKeyExchange.
func (m *Machine) takePreMaster(in *input) *Error {
	if m.suite.staticRSA {
		takePreMasterSecret(m.fallback, in.secret, m.hello.Version)
		in.secret = m.fallback
		defer clear(m.fallback)
	}
	var err error
	if m.hello.extendedMasterSecret {
		m.masterSecret, err = m.schedule.ExtendedMasterSecret(in.secret, m.transcript.Sum(nil))
	} else {
		m.masterSecret, err = m.schedule.MasterSecret(in.secret, m.hello.Random, m.serverRandom)
	}
	if err != nil {
		return &Error{InternalError, "master secret", err}
	}
	return m.deriveKeys()
}

// takePreMasterSecret copies decrypted to random if it is a PreMasterSecret that
// begins with the client's version, in constant time (RFC 5246, Section
// 7.4.7.1). ski.Key has done that already; another key must not make the edge an
// oracle.
func takePreMasterSecret(random, decrypted []byte, version uint16) {
	var taken [ski.PreMasterSecretLen]byte
	copy(taken[:], decrypted)
	right := subtle.ConstantTimeEq(int32(len(decrypted)), ski.PreMasterSecretLen) &
		subtle.ConstantTimeCompare(taken[:2], []byte{byte(version >> 8), byte(version)})
	subtle.ConstantTimeCopy(right, random, taken[:])
	clear(taken[:])
}

// deriveKeys makes the protection of both directions from the master secret.
func (m *Machine) deriveKeys() *Error {
	if m.cfg.KeyLog != nil {
		m.cfg.KeyLog(m.hello.Random, m.masterSecret)
	}
	keys, err := m.schedule.Keys(m.masterSecret, m.hello.Random, m.serverRandom)
	if err != nil {
		return &Error{InternalError, "key block", err}
	}
	if m.read, err = newProtection(m.suite, keys.ClientKey, keys.ClientIV); err == nil {
		m.write, err = newProtection(m.suite, keys.ServerKey, keys.ServerIV)
	}
	for _, secret := range [][]byte{keys.ClientKey, keys.ServerKey, keys.ClientIV, keys.ServerIV} {
		clear(secret)
	}
	if err != nil {
		return &Error{InternalError, "record protection", err}
	}
	return nil
}

// verifyCertificateVerify checks that the client has the private key of its
// certificate (RFC 5246, Section 7.4.8).
func (m *Machine) verifyCertificateVerify(in *input) *Error {
	scheme, signature, err := parseCertificateVerify(in.body)
	if err != nil {
		return err
	}
	if !slices.Contains(acceptedSchemes, scheme) || !slices.Contains(schemesOf(m.peer.key), scheme) {
		return fail(IllegalParameter, "the client's signature scheme %v is not one for it", scheme)
	}
	if err := verifySignature(m.peer.key, scheme, m.messages, signature); err != nil {
		return &Error{DecryptError, "the client's CertificateVerify", err}
	}
	m.record(in.message)
	return nil
}

func (m *Machine) takeChangeCipherSpec(*input) *Error {
	m.emit(Expect{m.read})
	return nil
}

// verifyFinished checks the client's Finished (RFC 5246, Section 7.4.9): of a
// full handshake, or of a resumption, where it comes last.
func (m *Machine) verifyFinished(in *input) *Error {
	want, err := m.schedule.ClientFinished(m.masterSecret, m.transcript.Sum(nil))
	if err != nil {
		return &Error{InternalError, "verify_data", err}
	}
	if len(in.body) != len(want) {
		return fail(DecodeError, "Finished of %d bytes", len(in.body))
	}
	if !hmac.Equal(in.body, want) {
		return fail(DecryptError, "the client's Finished is wrong")
	}
	m.record(in.message)
	return nil
}

// sendFinished ends a full handshake.
func (m *Machine) sendFinished() *Error {
	if m.promisesTicket() {
		s := &session{
			suite: m.suite.id, extendedMasterSecret: m.hello.extendedMasterSecret, created: m.cfg.now(),
			masterSecret: m.masterSecret, serverName: m.hello.ServerName, peer: m.peer,
			maxFragmentLength: m.hello.fragmentLength(),
		}
		m.sendTicket(s)
	}
	if err := m.sendOwnFinished(); err != nil {
		return err
	}
	return m.connect()
}

// sendTicket sends a NewSessionTicket. Once it is promised it has to come: an
// empty one says that there is none after all (RFC 5077, Section 3.3).
func (m *Machine) sendTicket(s *session) {
	var ticket []byte
	var lifetime time.Duration
	if keys := m.cfg.ticketKeys(); len(keys) > 0 {
		var err error
		if ticket, err = keys[0].seal(s); err == nil {
			lifetime = s.created.Add(TicketLifetime).Sub(m.cfg.now())
		}
	}
	m.send(TypeNewSessionTicket, newSessionTicketBody(uint32(max(lifetime, 0)/time.Second), ticket))
}

// sendOwnFinished sends ChangeCipherSpec and Finished.
func (m *Machine) sendOwnFinished() *Error {
	data, err := m.schedule.ServerFinished(m.masterSecret, m.transcript.Sum(nil))
	if err != nil {
		return &Error{InternalError, "verify_data", err}
	}
	m.emit(SendChangeCipherSpec{m.write})
	m.send(TypeFinished, data)
	return nil
}

// sendResumption sends the whole of the server's part in a resumption (RFC
// 5077, Section 3.1). A client whose ticket is of an older key gets a new one,
// of the same age.
func (m *Machine) sendResumption() *Error {
	h := m.serverHello()
	h.sessionID = m.hello.SessionID // the same: it is resumed (RFC 5077, Section 3.4)
	h.ticketPromised = m.hello.sessionTicket && !m.newestTicket
	m.sendServerHello(h)
	m.peer = m.session.peer
	m.masterSecret = slices.Clone(m.session.masterSecret)
	if err := m.deriveKeys(); err != nil {
		return err
	}
	if h.ticketPromised {
		m.sendTicket(m.session)
	}
	return m.sendOwnFinished()
}

func (m *Machine) connect() *Error {
	m.emit(Connected{})
	m.forget()
	return nil
}

// refuseRenegotiation answers a ClientHello on a connection that exists (RFC
// 5246, Section 7.2.2).
func (m *Machine) refuseRenegotiation(*input) *Error {
	m.emit(SendWarning{NoRenegotiation})
	return nil
}
