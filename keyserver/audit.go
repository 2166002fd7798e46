package keyserver

import (
	"context"
	"net/netip"
	"time"

	"github.com/tlsski/tlsski/ski"
)

// Event says what a Record is of.
type Event string

// The events.
const (
	EventRequest    Event = "request"     // a request was answered; the zero value stands for it
	EventAlarm      Event = "alarm"       // a detector has found something; see Record.Detector
	EventSuspend    Event = "suspend"     // an edge was cut off
	EventResume     Event = "resume"      // an edge may ask again
	EventTickets    Event = "tickets"     // ticket keys were asked for; see Record.TicketSite
	EventKeyAdded   Event = "key-added"   // a key is served that was not; see Record.Key
	EventKeyRemoved Event = "key-removed" // a key is not served any more
	// EventRefusals stands for refused requests of an edge that have no Record
	// of their own; see Record.Refused.
	EventRefusals Event = "refusals"
)

// Record is what the audit log keeps of one request, or of another event. It
// never holds an input, an output or a secret. Fields that are not known,
// because the message could not be parsed, are zero.
type Record struct {
	// Time is when the request was there.
	Time time.Time
	// Event is what happened. The zero value means EventRequest.
	Event Event
	// Edge is the peer's name in the policy. Where the peer is several of the
	// policy's edges, their names are joined by commas; where it is none, the
	// field is empty.
	Edge string
	// Peer is the fingerprint of the peer's public key, or the identity of its
	// pre-shared key.
	Peer ski.PeerID
	// Address is where the request came from.
	Address netip.AddrPort
	// Key is the fingerprint of the key that was asked for, and KeyName its
	// name in the key store if it is there.
	Key     ski.KeyID
	KeyName string
	// Protocol and Method are the request's.
	Protocol ski.Protocol
	Method   ski.Method
	// Exchange is, with ECDHE-PMS, which of the two the request is: 1 or 2.
	Exchange int
	// Hash or Scheme is the algorithm of a signature: the one that a request
	// without 'hash' implies is named too.
	Hash   string
	Scheme string
	// Group is that of the ephemeral key: secp256r1, x25519, ffdhe2048. It is
	// empty with TLS 1.3 and static RSA, which have none that the key server
	// sees, and where it could not be read.
	Group string
	// ClaimedServerName is the name that the client asked for, as the edge has
	// it: nothing in a request proves it.
	ClaimedServerName string
	// Outcome is "output" or the error that the peer was told.
	Outcome string
	// PreMasterSecret says what was found in an EncryptedPreMasterSecret:
	// "correct", "padding" (wrong, or the length) or "version". The peer is not
	// told.
	PreMasterSecret string
	// Reason is why there was no output. The peer is not told.
	Reason string
	// Detector is the name of the detector that spoke up: in an EventAlarm, and
	// in the EventRequest that it had denied.
	Detector string
	// TicketSite is, in an EventTickets, the site whose ticket keys were asked for
	// if the policy knows it, and TicketKeys the IDs of those that were handed
	// out, joined by commas.
	TicketSite string
	TicketKeys string
	// Refused is, in an EventRefusals, how many requests were refused between the
	// times First and Last: by the limit that refused them (edge_rate,
	// edge_in_flight, key_rate, server), or by what the edge was told. Peer and
	// Address are those of the last.
	Refused     map[string]uint64
	First, Last time.Time
	// Duration is how long the answer took, without the writing of this.
	Duration time.Duration
}

// outcomeOutput is the Outcome of a request that got its output.
const outcomeOutput = "output"

// Auditor keeps Records. It is called by many goroutines at once. The Record of
// a request for which a private key was used, or ticket keys were handed out,
// comes before the answer goes out: an output that was given has been recorded.
// A refusal has a Record before its answer too, or is counted in an
// EventRefusals that comes within a second.
type Auditor interface {
	Audit(ctx context.Context, r *Record) error
}
