package skicoap

import (
	"bytes"
	"sync/atomic"
	"time"

	"github.com/pion/dtls/v3"
	"github.com/plgd-dev/go-coap/v3/message"
	"github.com/plgd-dev/go-coap/v3/message/codes"

	"github.com/tlsski/tlsski/ski"
)

// dtlsSession is the server's side of one DTLS session.
type dtlsSession struct {
	*session
	link      *link
	exchanges exchanges
	transfers *transfers
	lossy     lossy // of long answers
	nextMID   atomic.Uint32
	unacked   unacked
}

func newDTLSSession(s *Server, conn *dtls.Conn, peer ski.Peer) *dtlsSession {
	l := newLink(conn)
	sess := &dtlsSession{session: newSession(s, peer, l.close), link: l}
	sess.from = conn.RemoteAddr
	sess.transfers = newTransfers(&s.transfers, sess.peerTransfers)
	sess.notify = sess.notifyReliably
	sess.expire = func(now time.Time) {
		sess.exchanges.expire(now)
		sess.transfers.expire(now)
	}
	return sess
}

// peerTransfers are those of all sessions of the peer. Which counter that is
// stands fast when the server has added the session.
func (s *dtlsSession) peerTransfers() *atomic.Int64 { return &s.share.transfers }

// end forgets what the session has, after its link has ended.
func (s *dtlsSession) end() {
	s.cancel()
	s.unobserve(func(string, *observation) bool { return true })
	s.exchanges.close()
	s.transfers.close()
}

// receive is called by the link's reader. The work is done elsewhere, so that
// a slow operation holds up nothing that comes after it.
func (s *dtlsSession) receive(m *message.Message) {
	now := time.Now()
	s.active.Store(now.UnixNano())
	if m.Code == codes.Empty && (m.Type == message.Acknowledgement || m.Type == message.Reset) {
		s.unacked.settle(uint16(m.MessageID), m.Type)
		return
	}
	if m.Code < codes.GET || m.Code > 31 || m.Type > message.NonConfirmable {
		return // no request
	}
	e, answer := s.exchanges.begin(newExchangeID(m.MessageID, m.Token), now)
	if e == nil {
		if len(answer) > 0 {
			s.answerAgain(m, answer)
		}
		return
	}
	re := reply{token: bytes.Clone(m.Token), mid: m.MessageID, confirmable: m.Type == message.Confirmable}
	if tickets, refused := s.server.links.ticketRequest(m); tickets != nil || refused != nil {
		s.receiveTickets(e, re, tickets, refused)
		return
	}
	in, out, refused := s.server.links.check(m)
	b, bad := findBlocks(m.Options)
	if bad != nil && refused == nil {
		refused = bad
	}
	if refused != nil {
		s.refuse(e, re, b, refused)
		return
	}
	key := newTransferKey(m)
	if b.two != nil && b.two.num > 0 { // more of an answer
		s.nextBlock(e, re, key, *b.two)
		return
	}
	// The last block of a request is its execution.
	whole := b.one == nil || !b.one.more
	if whole && !s.start() {
		s.exchanges.abandon(e) // a retransmission may find a place
		return
	}
	body := m.Payload
	if b.one == nil {
		body = bytes.Clone(body)
	} else {
		size1, _ := m.Options.GetUint32(message.Size1)
		body, refused = s.transfers.put(key, *b.one, size1, body, now)
		if refused != nil && refused.code == codes.RequestEntityTooLarge {
			// It is answered, and audited, as one that comes in a single message.
			if !whole && !s.start() {
				s.exchanges.abandon(e)
				return
			}
			body, refused, whole = make([]byte, ski.MaxMessageSize+1), nil, true
		}
		if body == nil && whole {
			s.finish()
		}
		switch {
		case refused != nil:
			s.refuse(e, re, blocks{}, refused)
			return
		case body == nil:
			s.exchanges.abandon(e)
			return
		}
	}
	s.server.workers.run(func() {
		defer s.finish()
		r := s.work(in, body, out)
		clear(body)
		s.deliver(e, re, key, b, r)
		clear(r.payload)
	})
}

// deliver sends the Handler's answer, or the first block of it. Which of the
// two, and how long it is, depends only on what everybody may know.
func (s *dtlsSession) deliver(e *exchange, re reply, key transferKey, b blocks, r *result) {
	var more message.Options
	if b.one != nil {
		more = append(more, b.one.option(message.Block1))
	}
	limit := s.limit()
	if b.fitsAnswer(r.maxLen(), limit) {
		s.answer(e, re, r.code, append(r.padded(), more...), r.payload)
		return
	}
	r.padBody()
	first := s.firstBlock(key, min(b.answerSZX(), limit.szx()), r.code, append(r.options, more...), r.payload)
	if first == nil {
		first = &refusal{code: codes.ServiceUnavailable, options: message.Options{{ID: message.MaxAge, Value: uintValue(1)}}}
	}
	s.answer(e, re, first.code, first.options, first.payload)
	clear(first.payload)
}

// refuse answers without the Handler, which is not always a refusal.
func (s *dtlsSession) refuse(e *exchange, re reply, b blocks, r *refusal) {
	if b.two != nil && r.code == codes.Content {
		payload, given, bad := part(r.payload, *b.two)
		if r.payload = payload; bad != nil {
			r = bad
		} else {
			r.options = append(r.options, given.option(message.Block2))
		}
	}
	s.logRefused(r)
	if re.confirmable || r.code != codes.BadOption { // RFC 7252, Section 5.4.1
		s.answer(e, re, r.code, r.options, r.payload)
	}
	clear(r.payload)
}

// reply is what an answer needs to know of its request.
type reply struct {
	token       []byte
	mid         int32
	confirmable bool
}

// answer sends the answer, piggybacked on the acknowledgement of a confirmable
// request (RFC 7252, Section 5.2.1), and remembers it.
func (s *dtlsSession) answer(e *exchange, re reply, code codes.Code, options message.Options, payload []byte) {
	m := message.Message{
		Type: message.Acknowledgement, MessageID: re.mid,
		Token: re.token, Code: code, Options: inOrder(options), Payload: payload,
	}
	if !re.confirmable {
		m.Type, m.MessageID = message.NonConfirmable, int32(uint16(s.nextMID.Add(1)))
	}
	datagram, err := encode(m)
	if err != nil {
		s.server.log.Error("answer", "peer", s.peer.Addr, "err", err)
		return
	}
	if b, _ := findBlock(m.Options, message.Block2); isLong(datagram) && (b == nil || b.num == 0) {
		s.lossy.sent()
	}
	s.exchanges.finish(e, bytes.Clone(datagram))
	if err := s.link.write(datagram); err != nil && s.ctx.Err() == nil {
		s.server.log.Debug("answer", "peer", s.peer.Addr, "err", err)
	}
	clear(datagram)
}
