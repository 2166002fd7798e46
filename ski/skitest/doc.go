// Package skitest helps to test programs that speak SKI.
//
// For programs that embed package ski there is a key server in memory,
// KeyServer, and faults to put before a Transport or a Handler: Faulty and
// FaultyHandler. A fault before the other side has done its work and one after
// it are different things, and both are there.
//
// For implementations of the draft, in any language, there is the conformance
// suite. Cases is a table of named cases, each of which cites the section that
// it holds a key server to; Run runs them through an Exchanger, which carries
// encoded messages over whatever binding there is. Edge is the other role: it
// answers an edge server's requests and says what is wrong with them. skictl
// conformance runs both over the network.
//
// "draft" is draft-cairns-tls-session-key-interface-01. Where the draft is
// silent, the cases cite docs/protocol.md of this project.
package skitest
