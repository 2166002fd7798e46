// Package split is the server's side of TLS 1.2 for an edge server that has no
// private key: the key server signs, decrypts or agrees, and the session keys
// are derived here, from the PreMasterSecret and the two randoms.
//
// crypto/tls can have its signatures made elsewhere, but makes its own ephemeral
// key and keeps the PreMasterSecret to itself. This package exists for what it
// cannot do, and has nothing else: no client, no other version, no CBC, no
// compression, no renegotiation.
//
//	conn := split.Server(tcpConn, func(ctx context.Context, h *split.ClientHello) (*split.Config, error) {
//		return configs[h.ServerName], nil // nil: unrecognized_name
//	})
//	err := conn.HandshakeContext(ctx)
//
// From the inside out:
//
//   - transitions.go is the handshake: a table of states, inputs and what comes
//     of them. machine.go works through it; steps.go are the single steps. A
//     Machine does no I/O. It is fed handshake messages and the answers to its
//     questions ("signature wanted", "ephemeral wanted", "premaster wanted"),
//     and its events say what to send and to ask.
//   - clienthello.go, extensions.go, serverhello.go and messages.go are the
//     messages; negotiate.go is what client and site have in common;
//     clientauth.go and tickets.go are what their names say.
//   - protection.go encrypts a record and knows nothing of how records look.
//     record.go has the records of TLS; collector makes messages of them.
//   - conn.go and handshake.go join a Machine to a net.Conn and to the private
//     key. Only they know TLS from DTLS.
//
// Methods of the key exchange: ECDHE (the edge's ephemeral key, signed by the
// key server), ECDHE-PMS (the key server's ephemeral key; the edge gets the
// PreMasterSecret), RSA (the key server decrypts the PreMasterSecret).
//
// Every error that a client causes is an *Error with the alert that RFC 5246 or
// the extension's own document asks for. The design is docs/design/0008.
package split
