// Package skicoap carries SKI over CoAP (RFC 7252) on DTLS 1.2 (RFC 6347) with
// mutual authentication: the primary binding of the draft.
//
// A key server calls Listen and Serve; the requests of every authenticated
// peer reach its ski.Handler, each in a goroutine of its own. An edge server
// calls NewClient and has a ski.Transport: one DTLS session to the key server
// that all requests share, made when it is first needed and made again when it
// is lost. Client answers at once, well or badly; ski.Client around it adds the
// deadline and the second attempt.
//
// # What is from go-coap and what is not
//
// The datagrams, the codec, ping and reset, and the session's read loop are
// go-coap's. The exchange of a request for its response is this package's, for
// four reasons that docs/design/0003-coap-exchange.md gives in full: go-coap
// remembers answers by message ID alone, so that a session stops for good when
// the 16-bit IDs wrap; it handles one request of a session at a time; it
// retransmits at fixed distances from one setting for all; and a request whose
// retransmissions are used up waits for its context even if the answer comes.
//
// # Transmission parameters
//
// RFC 7252, Section 4.8 sets NSTART to 1 and ACK_TIMEOUT to 2 s for nodes that
// know nothing of the network between them. Edge and key server are a pair of
// servers that measure it: up to Config.MaxInFlight requests share the session,
// and a request is sent again when the round trip measured so far has passed
// without an answer (RFC 6298), then after twice that time, and so on: the
// probing rate still falls off exponentially, which is what the section asks
// of those who change its parameters.
package skicoap
