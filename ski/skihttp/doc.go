// Package skihttp carries SKI over HTTPS: JSON or CBOR in the body of a POST,
// HTTP/2 or HTTP/1.1, on TLS 1.2 or newer with mutual authentication. It is the
// binding for networks that let nothing else through, and for peers that have an
// HTTP library and no CoAP.
//
// A key server calls Listen and Serve, an edge server NewClient, as in package
// skicoap, and with the same conduct: the same ski.Peer and Admit, sessions (here
// connections) that are closed when an edge is cut off, a Client that answers at
// once, well or badly.
//
// # What is from the library and what is not
//
// net/http speaks HTTP and crypto/tls makes the channel. This package takes the
// connections itself up to the end of the handshake, because net/http has no
// limit of connections and hands out no peer that could be refused; and it pads
// the answers, whose length would tell what they are (docs/protocol.md,
// section 3).
package skihttp
