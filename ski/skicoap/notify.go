package skicoap

import (
	"errors"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/plgd-dev/go-coap/v3/message"
	"github.com/plgd-dev/go-coap/v3/message/codes"
)

// The transmission parameters of notifications (RFC 7252, Section 4.8).
const (
	ackTimeout    = 2 * time.Second
	maxRetransmit = 4
)

var errUnacknowledged = errors.New("a notification was not acknowledged")

// unacked are the notifications that a peer has not yet acknowledged, by message
// ID. There is one of each observation at most. The zero value is ready for use.
type unacked struct {
	mu    sync.Mutex
	waits map[uint16]chan message.Type // of capacity 1
}

func (u *unacked) add(mid uint16) chan message.Type {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.waits == nil {
		u.waits = make(map[uint16]chan message.Type)
	}
	c := make(chan message.Type, 1)
	u.waits[mid] = c
	return c
}

func (u *unacked) settle(mid uint16, t message.Type) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if c := u.waits[mid]; c != nil {
		delete(u.waits, mid)
		c <- t
	}
}

func (u *unacked) remove(mid uint16) {
	u.mu.Lock()
	defer u.mu.Unlock()
	delete(u.waits, mid)
}

// receiveTickets answers a request for ticket keys.
func (s *dtlsSession) receiveTickets(e *exchange, re reply, q *ticketRequest, refused *refusal) {
	if refused != nil {
		s.refuse(e, re, blocks{}, refused)
		return
	}
	if q.block != nil && q.block.num > 0 {
		s.nextBlock(e, re, ticketTransfer(q.site), *q.block)
		return
	}
	if !s.start() {
		s.exchanges.abandon(e) // a retransmission may find a place
		return
	}
	s.server.workers.run(func() {
		defer s.finish()
		s.getTickets(q, func(code codes.Code, options message.Options, payload []byte) {
			a := s.ticketBlock(q.site, q.block, s.limit(), &refusal{code, payload, options})
			s.answer(e, re, a.code, a.options, a.payload)
			clear(a.payload)
		})
	})
}

// ticketBlock returns an answer about a site's keys, or the first block of it
// where it is longer than a block that is asked for, if it is, or than the limit.
func (s *dtlsSession) ticketBlock(site string, asked *block, limit mtu, a *refusal) *refusal {
	b := blocks{two: asked}
	if b.fitsAnswer(len(a.payload), limit) {
		return a
	}
	first := s.firstBlock(ticketTransfer(site), min(b.answerSZX(), limit.szx()), a.code, a.options, a.payload)
	if first == nil {
		return &refusal{code: codes.ServiceUnavailable, options: message.Options{{ID: message.MaxAge, Value: uintValue(1)}}}
	}
	return first
}

// notification encodes a confirmable notification.
func (s *dtlsSession) notification(o *observation, r *ticketResult, mid uint16, limit mtu) ([]byte, error) {
	a := s.ticketBlock(o.site, o.block, limit, &refusal{r.code, r.payload, r.options})
	return encode(message.Message{
		Type: message.Confirmable, MessageID: int32(mid),
		Token: o.token, Code: a.code, Options: inOrder(a.options), Payload: a.payload,
	})
}

// notifyReliably sends a notification until it is acknowledged (RFC 7641, Section
// 4.5). A peer that rejects it does not observe any more.
func (s *dtlsSession) notifyReliably(o *observation, r *ticketResult, superseded <-chan struct{}) error {
	mid, limit := uint16(s.nextMID.Add(1)), s.limit()
	datagram, err := s.notification(o, r, mid, limit)
	if err != nil {
		return err
	}
	defer func() { clear(datagram) }()
	if isLong(datagram) {
		s.lossy.sent()
	}
	acked := s.unacked.add(mid)
	defer s.unacked.remove(mid)
	interval := s.server.ackTimeout + rand.N(s.server.ackTimeout/2)
	for i := range maxRetransmit + 1 {
		if i == 1 && isLong(datagram) {
			clear(datagram)
			if datagram, err = s.notification(o, r, mid, min(limit, safeMTU)); err != nil {
				return err
			}
			s.transfers.markCut(ticketTransfer(o.site))
		}
		if err := s.link.write(datagram); err != nil {
			return err
		}
		timer := time.NewTimer(interval)
		select {
		case t := <-acked:
			timer.Stop()
			if t == message.Reset {
				return errReset
			}
			return nil
		case <-superseded:
			timer.Stop()
			return errSuperseded
		case <-o.ended:
			timer.Stop()
			return errSuperseded
		case <-s.ctx.Done():
			timer.Stop()
			return s.ctx.Err()
		case <-timer.C:
		}
		interval *= 2
	}
	return errUnacknowledged
}

// receiveTickets answers a request for ticket keys.
func (s *tcpSession) receiveTickets(token []byte, q *ticketRequest, refused *refusal) {
	if refused == nil && !q.whole() {
		refused = refuse(codes.BadOption, "a smaller block over TCP")
	}
	if refused == nil && !s.start() {
		refused = &refusal{code: codes.ServiceUnavailable, options: message.Options{{ID: message.MaxAge, Value: uintValue(1)}}}
	} else if refused != nil {
		s.logRefused(refused)
	}
	if refused != nil {
		s.answer(token, refused.code, refused.options, refused.payload)
		return
	}
	s.server.workers.run(func() {
		defer s.finish()
		s.getTickets(q, func(code codes.Code, options message.Options, payload []byte) {
			s.answer(token, code, inOrder(options), payload)
		})
	})
}

// notifyOrdered sends a notification: the connection sees to the rest (RFC 8323,
// Section 7.1).
func (s *tcpSession) notifyOrdered(o *observation, r *ticketResult, _ <-chan struct{}) error {
	frame, err := encodeFrame(message.Message{Token: o.token, Code: r.code, Options: inOrder(r.options), Payload: r.payload})
	if err == nil {
		err = s.link.write(frame)
	}
	clear(frame)
	return err
}
