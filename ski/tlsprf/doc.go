// Package tlsprf derives the secrets of TLS 1.0 to 1.2 and DTLS 1.0 and 1.2:
// from the PreMasterSecret, which a key server decrypted or an ephemeral key
// exchange agreed on, to the keys of the record layer and the verify_data of
// the Finished messages.
//
//	s, err := tlsprf.New(version, cipherSuite) // as negotiated in the ServerHello
//	transcript := s.PRF().New()                // takes every handshake message
//	...
//	master, err := s.ExtendedMasterSecret(preMasterSecret, transcript.Sum(nil))
//	keys, err := s.Keys(master, clientRandom, serverRandom)
//	data, err := s.ServerFinished(master, transcript.Sum(nil))
//
// Versions and cipher suites are the numbers of the wire, so that the package
// needs nothing but the standard library. TLS 1.3 derives its keys in another
// way (RFC 8446, Section 7.1) and is not here.
//
// Every returned slice is new and belongs to the caller, who clears it when it
// is no longer needed.
package tlsprf
