// Package skicoap carries SKI over CoAP (RFC 7252) on DTLS 1.2 (RFC 6347) with
// mutual authentication: the primary binding of the draft. Where a network
// blocks UDP it does so on TLS (RFC 8323).
//
// A key server calls Listen or ListenTCP, and Serve; the requests of every
// authenticated peer reach its ski.Handler, each in a goroutine of its own. An
// edge server calls NewClient and has a ski.Transport: one session to the key
// server that all requests share, made when it is first needed and made again
// when it is lost. Client answers at once, well or badly; ski.Client around it
// adds the deadline and the second attempt.
//
// Where the Handler is a ski.TicketHandler, the keys of session tickets are a
// resource that edge servers observe (RFC 7641; docs/protocol.md, section 7), and
// Client is a ski.TicketSource.
//
// # What is from the libraries and what is not
//
// The messages are go-coap's, the channels pion's and crypto/tls's. Matching
// requests and responses is this package's, and so is telling the peers of a
// socket apart: docs/design/0001, 0003, 0006 and 0014 say why; 0005 is on
// pre-shared keys.
//
// # Transmission parameters
//
// RFC 7252, Section 4.8 sets NSTART to 1 and ACK_TIMEOUT to 2 s for nodes that
// know nothing of the network between them. Edge and key server are a pair of
// servers that measure it: up to Config.MaxInFlight requests share the session,
// and a request is sent again when the round trip measured so far has passed
// without an answer (RFC 6298), and then often enough for twelve attempts within
// ski.DefaultTimeout. What a session sends again is bounded by the answers that
// come: docs/design/0027.
package skicoap
