// Package ski is the TLS Session Key Interface of
// draft-cairns-tls-session-key-interface-01 ("the draft"): a TLS server split
// into an edge server, which faces the clients and has only public
// certificates, and a key server, which has the private keys and does one
// operation at a time with them.
//
// # At the edge
//
// A Certificate is a certificate chain whose private key a key server holds.
// Its GetCertificate goes into a tls.Config, and crypto/tls does the rest:
//
//	cert, err := ski.LoadCertificate(transport, "www.example.com.pem")
//	...
//	config := &tls.Config{GetCertificate: cert.GetCertificate}
//
// The Transport carries a Request to the key server and brings the Response
// back. Package skicoap has the one of the draft's primary binding. A Client
// around one or more Transports adds the deadline and the second attempt, and
// chooses among several key servers.
//
// Key.NewEphemeral is for TLS servers that derive their session keys themselves:
// the key server then makes the ephemeral key too, and returns the
// PreMasterSecret.
//
// # At the key server
//
// A Handler answers the requests of authenticated peers; keyserver.Server is
// one. A binding calls Serve, which decodes, asks the Handler and encodes.
// Direct joins a Handler and a Transport in one process.
//
// # Errors
//
// What a key server answers is one of four values of type Error, and says
// little on purpose. A *TransportError says why there is no answer. A
// *MalformedError says what is wrong with a message; it stays on the machine
// that found it.
package ski
