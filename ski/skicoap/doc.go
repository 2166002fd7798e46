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
// # What is from the libraries and what is not
//
// The messages are go-coap's and the sessions pion's. Matching requests and
// responses is this package's, and so is telling the peers of a socket apart:
// docs/design/0003-coap-exchange.md and 0001-pion-dtls-v3.md say why.
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
