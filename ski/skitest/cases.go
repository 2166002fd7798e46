package skitest

import (
	"slices"

	"github.com/tlsski/tlsski/ski"
)

// Cases returns all cases in the order they are run. Names are stable: they
// are what --skip of skictl conformance takes.
func Cases() []Case {
	return slices.Concat(
		encodingCases,
		attributeCases,
		orderCases,
		ecdheCases,
		dheCases,
		rsaCases,
		pmsCases,
		tls13Cases,
		bindingCases,
		channelCases,
	)
}

const (
	sectionSKI        = "draft, Section 5.2"
	sectionProcessing = "draft, Section 5.2.1"
	sectionDH         = "draft, Section 5.1.2"
	sectionRSA        = "draft, Section 5.1.1"
	messages          = "docs/protocol.md, section 1"
	coap              = "docs/protocol.md, section 2"
	processing        = "docs/protocol.md, section 3"
)

var (
	onlyCBOR = []ski.Format{ski.CBOR}
	onlyJSON = []ski.Format{ski.JSON}
	aSigner  = []Need{NeedSigner}
	aRSA     = []Need{NeedRSA}
	anECDSA  = []Need{NeedECDSA}
)

// changed makes a case out of a good request that is changed, and the errors
// one of which has to come.
func changed(change func(t *trial, m Message) Message, want ...ski.Error) func(*trial) error {
	return func(t *trial) error {
		return t.refused(change(t, t.goodMessage()).Encode(t.format), want...)
	}
}

// set is changed by one pair.
func set(key string, value any, want ...ski.Error) func(*trial) error {
	return changed(func(_ *trial, m Message) Message { return m.With(key, value) }, want...)
}

// malformedBody makes a case out of a body that is no SKI request.
func malformedBody(make func(t *trial, good []byte) []byte) func(*trial) error {
	return func(t *trial) error {
		return t.refused(make(t, t.goodMessage().Encode(t.format)), ski.MalformedRequest)
	}
}

// signedBody makes a case out of a good request that is encoded in an unusual
// way and still has to be answered.
func signedBody(make func(t *trial, m Message) []byte) func(*trial) error {
	return func(t *trial) error {
		pub, req := t.good()
		return t.signed(make(t, RequestMessage(req)), pub, req)
	}
}
