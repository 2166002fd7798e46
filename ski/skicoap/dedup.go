package skicoap

import (
	"sync"
	"time"
)

// What the server remembers of the exchanges of one session, to execute a
// retransmitted request once and answer it again (RFC 7252, Section 4.5).
const (
	// rememberFor is longer than MAX_TRANSMIT_SPAN, 45 s with the default
	// parameters (RFC 7252, Section 4.8.2): a peer sends nothing again after
	// that, and a datagram that the network doubled or held back does not get
	// past DTLS. It is shorter than EXCHANGE_LIFETIME (247 s) because an
	// answer can hold a PreMasterSecret.
	rememberFor = 60 * time.Second
	// rememberMost bounds the memory of a session to about 1 MB, 3 MB with
	// answers of RSA-4096. At 10,000 requests a second it is 400 ms' worth, longer than it takes a client
	// that measures its round trips to send again.
	rememberMost = 4096
)

// exchangeID is what a retransmission has in common with its original. The
// message ID alone would come round again after 65,536 requests.
type exchangeID struct {
	mid      uint16
	tokenLen uint8
	token    [8]byte
}

func newExchangeID(mid int32, token []byte) exchangeID {
	id := exchangeID{mid: uint16(mid), tokenLen: uint8(len(token))}
	copy(id.token[:], token)
	return id
}

// exchange is one request and, once there is one, its answer.
type exchange struct {
	id     exchangeID
	began  time.Time
	answer []byte // the encoded message
}

// exchanges is the memory of one session: a map, and a queue of its values in
// the order in which they are to be forgotten.
type exchanges struct {
	mu     sync.Mutex
	known  map[exchangeID]*exchange
	queue  []*exchange
	closed bool
}

// begin notes a request. For one that is known it returns nil and, if it has
// been answered, a copy of the answer.
func (x *exchanges) begin(id exchangeID, now time.Time) (e *exchange, answer []byte) {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.forget(now)
	if old, ok := x.known[id]; ok {
		return nil, append([]byte(nil), old.answer...)
	}
	if x.closed {
		return nil, nil
	}
	if x.known == nil {
		x.known = make(map[exchangeID]*exchange)
	}
	e = &exchange{id: id, began: now}
	x.known[id] = e
	x.queue = append(x.queue, e)
	return e, nil
}

// replace notes another answer in the place of one that was sent. From then on
// it belongs to x.
func (x *exchanges) replace(id exchangeID, answer []byte) {
	x.mu.Lock()
	defer x.mu.Unlock()
	if e := x.known[id]; e != nil {
		clear(e.answer)
		e.answer = answer
	} else {
		clear(answer)
	}
}

// finish notes the answer. From then on it belongs to x.
func (x *exchanges) finish(e *exchange, answer []byte) {
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.known[e.id] == e {
		e.answer = answer
	} else { // forgotten meanwhile
		clear(answer)
	}
}

// abandon forgets a request that nothing was done for: if it comes again, it
// is new.
func (x *exchanges) abandon(e *exchange) {
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.known[e.id] == e {
		delete(x.known, e.id)
	}
	if last := len(x.queue) - 1; last >= 0 && x.queue[last] == e {
		x.queue = x.queue[:last] // or it would push out one that was answered
	}
}

// close forgets everything, and what is finished later.
func (x *exchanges) close() {
	x.mu.Lock()
	defer x.mu.Unlock()
	for _, e := range x.queue {
		clear(e.answer)
	}
	x.known, x.queue, x.closed = nil, nil, true
}

// expire forgets what is old. It is called from time to time, so that the
// answers of a session that went quiet do not stay.
func (x *exchanges) expire(now time.Time) {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.forget(now)
}

func (x *exchanges) forget(now time.Time) {
	n := 0
	for n < len(x.queue) && (len(x.queue)-n >= rememberMost || now.Sub(x.queue[n].began) > rememberFor) {
		e := x.queue[n]
		if x.known[e.id] == e {
			delete(x.known, e.id)
		}
		clear(e.answer)
		x.queue[n] = nil
		n++
	}
	x.queue = x.queue[n:]
}
