package split

// State is where a handshake stands.
type State uint8

// The states. In those that end in Wanted the machine waits for its own side, in
// the others for the client.
const (
	StateFailed State = iota // for good
	StateClientHello
	StateSiteWanted
	StateEphemeralWanted
	StateSignatureWanted
	StateCertificate
	StateClientKeyExchange
	StatePreMasterWanted
	StateCertificateVerify
	StateChangeCipherSpec
	StateFinished
	StateResumedChangeCipherSpec
	StateResumedFinished
	StateConnected
)

var stateNames = map[State]string{
	StateFailed:                  "failed",
	StateClientHello:             "ClientHello",
	StateSiteWanted:              "site wanted",
	StateEphemeralWanted:         "ephemeral wanted",
	StateSignatureWanted:         "signature wanted",
	StateCertificate:             "Certificate",
	StateClientKeyExchange:       "ClientKeyExchange",
	StatePreMasterWanted:         "premaster wanted",
	StateCertificateVerify:       "CertificateVerify",
	StateChangeCipherSpec:        "ChangeCipherSpec",
	StateFinished:                "Finished",
	StateResumedChangeCipherSpec: "resumed, ChangeCipherSpec",
	StateResumedFinished:         "resumed, Finished",
	StateConnected:               "connected",
}

// String returns the state's name, which is that of the message it waits for.
func (s State) String() string { return stateNames[s] }

// Input is what the machine is fed with.
type Input uint8

// The inputs: first the client's, then the answers to what the machine wants.
const (
	InClientHello Input = iota
	InCertificate
	InClientKeyExchange
	InCertificateVerify
	InChangeCipherSpec
	InFinished

	InSite
	InEphemeral
	InSignedEphemeral
	InSignature
	InPreMaster
)

var inputNames = map[Input]string{
	InClientHello:       "ClientHello",
	InCertificate:       "Certificate",
	InClientKeyExchange: "ClientKeyExchange",
	InCertificateVerify: "CertificateVerify",
	InChangeCipherSpec:  "ChangeCipherSpec",
	InFinished:          "Finished",
	InSite:              "site",
	InEphemeral:         "ephemeral key",
	InSignedEphemeral:   "signed ephemeral key",
	InSignature:         "signature",
	InPreMaster:         "PreMasterSecret",
}

// String returns the input's name.
func (i Input) String() string { return inputNames[i] }

// inputOf is the input that a handshake message is. Those that are not here
// are never a client's to send in TLS 1.2.
var inputOf = map[MessageType]Input{
	TypeClientHello:       InClientHello,
	TypeCertificate:       InCertificate,
	TypeClientKeyExchange: InClientKeyExchange,
	TypeCertificateVerify: InCertificateVerify,
	TypeFinished:          InFinished,
}

// transition is a row of the table: what an input does in a state.
type transition struct {
	from State
	on   Input
	// do is done first. Its error ends the connection.
	do func(*Machine, *input) *Error
	// to are the ways on. The first whose condition holds is taken.
	to []branch
}

// branch is a way on from a transition.
type branch struct {
	when  condition
	do    func(*Machine) *Error // nil: nothing more
	state State
}

// condition is something that has been negotiated.
type condition struct {
	name  string
	holds func(*Machine) bool
}

var (
	always      = condition{"", func(*Machine) bool { return true }}
	resumed     = condition{"a ticket is good", func(m *Machine) bool { return m.session != nil }}
	ephemeral   = condition{"ECDHE", func(m *Machine) bool { return !m.suite.staticRSA }}
	asksClients = condition{"clients are asked for a certificate", func(m *Machine) bool { return m.cfg.ClientAuth != NoClientCert }}
	hasPeer     = condition{"the client has a certificate", func(m *Machine) bool { return m.peer.present() }}
)

// transitions are all that the machine does. What is not here, a message out of
// order above all, ends the connection with unexpected_message. The table
// is also in docs/design, where a test keeps it.
var transitions = []transition{
	{StateClientHello, InClientHello, (*Machine).takeClientHello, []branch{
		{always, nil, StateSiteWanted},
	}},
	{StateSiteWanted, InSite, (*Machine).takeSite, []branch{
		{resumed, (*Machine).sendResumption, StateResumedChangeCipherSpec},
		{ephemeral, (*Machine).askForEphemeral, StateEphemeralWanted},
		{asksClients, (*Machine).sendFlight, StateCertificate},
		{always, (*Machine).sendFlight, StateClientKeyExchange},
	}},
	{StateEphemeralWanted, InEphemeral, (*Machine).takeEphemeral, []branch{
		{always, nil, StateSignatureWanted},
	}},
	{StateEphemeralWanted, InSignedEphemeral, (*Machine).takeSignedEphemeral, []branch{
		{asksClients, (*Machine).sendFlight, StateCertificate},
		{always, (*Machine).sendFlight, StateClientKeyExchange},
	}},
	{StateSignatureWanted, InSignature, (*Machine).takeSignature, []branch{
		{asksClients, (*Machine).sendFlight, StateCertificate},
		{always, (*Machine).sendFlight, StateClientKeyExchange},
	}},
	{StateCertificate, InCertificate, (*Machine).takeCertificate, []branch{
		{always, nil, StateClientKeyExchange},
	}},
	{StateClientKeyExchange, InClientKeyExchange, (*Machine).takeClientKeyExchange, []branch{
		{always, nil, StatePreMasterWanted},
	}},
	{StatePreMasterWanted, InPreMaster, (*Machine).takePreMaster, []branch{
		{hasPeer, nil, StateCertificateVerify},
		{always, nil, StateChangeCipherSpec},
	}},
	{StateCertificateVerify, InCertificateVerify, (*Machine).verifyCertificateVerify, []branch{
		{always, nil, StateChangeCipherSpec},
	}},
	{StateChangeCipherSpec, InChangeCipherSpec, (*Machine).takeChangeCipherSpec, []branch{
		{always, nil, StateFinished},
	}},
	{StateFinished, InFinished, (*Machine).verifyFinished, []branch{
		{always, (*Machine).sendFinished, StateConnected},
	}},
	{StateResumedChangeCipherSpec, InChangeCipherSpec, (*Machine).takeChangeCipherSpec, []branch{
		{always, nil, StateResumedFinished},
	}},
	{StateResumedFinished, InFinished, (*Machine).verifyFinished, []branch{
		{always, (*Machine).connect, StateConnected},
	}},
	{StateConnected, InClientHello, (*Machine).refuseRenegotiation, []branch{
		{always, nil, StateConnected},
	}},
}

// find returns the row for an input in a state, or nil.
func find(from State, on Input) *transition {
	for i := range transitions {
		if t := &transitions[i]; t.from == from && t.on == on {
			return t
		}
	}
	return nil
}
