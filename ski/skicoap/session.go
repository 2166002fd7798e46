package skicoap

import (
	"context"
	"sync/atomic"
	"time"

	"github.com/pion/dtls/v3"
	"github.com/plgd-dev/go-coap/v3/message"
	"github.com/plgd-dev/go-coap/v3/message/codes"
	"github.com/plgd-dev/go-coap/v3/message/pool"

	"github.com/tlsski/tlsski/ski"
)

// session is the server's side of one DTLS session.
type session struct {
	server    *Server
	link      *link
	peer      ski.Peer
	ctx       context.Context
	cancel    context.CancelFunc
	exchanges exchanges
	active    atomic.Int64 // time of the last message, Unix nanoseconds
	nextMID   atomic.Uint32
}

func newSession(s *Server, conn *dtls.Conn, peer ski.Peer) *session {
	sess := &session{server: s, peer: peer}
	sess.ctx, sess.cancel = context.WithCancel(s.ctx)
	sess.active.Store(time.Now().UnixNano())
	sess.link = newLink(conn, s.messages, sess.receive)
	return sess
}

func (s *session) lastActive() time.Time { return time.Unix(0, s.active.Load()) }

// receive is called by the link's reader. The work is done elsewhere, so that
// a slow operation holds up nothing that comes after it.
func (s *session) receive(m *pool.Message) bool {
	now := time.Now()
	s.active.Store(now.UnixNano())
	if m.Code() == codes.Empty && m.Type() == message.Confirmable {
		return false // a ping: go-coap resets it
	}
	if m.Code() < codes.GET || m.Code() > 31 || m.Type() > message.NonConfirmable {
		return true // nothing that a server waits for
	}
	id := newExchangeID(m.MessageID(), m.Token())
	e, answer := s.exchanges.begin(id, now)
	if e == nil {
		if len(answer) > 0 {
			_ = s.link.write(answer)
			clear(answer)
		}
		return true
	}
	re := reply{token: append([]byte(nil), m.Token()...), mid: m.MessageID(), confirmable: m.Type() == message.Confirmable}
	in, out, refused := s.server.links.check(m)
	if refused != nil {
		if re.confirmable || refused.code != codes.BadOption { // RFC 7252, Section 5.4.1
			s.answer(e, re, refused.code, refused.options, []byte(refused.payload))
		}
		return true
	}
	body, err := m.ReadBody()
	if err != nil || !s.server.start() {
		s.exchanges.abandon(e) // a retransmission may find a place
		return true
	}
	go func() {
		defer s.server.finish()
		data, resp := ski.Serve(s.ctx, s.server.cfg.Handler, s.peer, in, body, out)
		clear(body)
		code, options := responseCode(resp)
		s.answer(e, re, code, append(contentFormat(out.ContentFormat()), options...), data)
		clear(data)
	}()
	return true
}

// reply is what an answer needs to know of its request.
type reply struct {
	token       []byte
	mid         int32
	confirmable bool
}

// answer sends the answer, piggybacked on the acknowledgement of a confirmable
// request (RFC 7252, Section 5.2.1), and remembers it.
func (s *session) answer(e *exchange, re reply, code codes.Code, options message.Options, payload []byte) {
	m := message.Message{
		Type: message.Acknowledgement, MessageID: re.mid,
		Token: re.token, Code: code, Options: options, Payload: payload,
	}
	if !re.confirmable {
		m.Type, m.MessageID = message.NonConfirmable, int32(uint16(s.nextMID.Add(1)))
	}
	datagram, err := encode(m)
	if err != nil {
		s.server.log.Error("answer", "peer", s.peer.Addr, "err", err)
		return
	}
	if err := s.link.write(datagram); err != nil && s.ctx.Err() == nil {
		s.server.log.Warn("answer", "peer", s.peer.Addr, "err", err)
	}
	s.exchanges.finish(e, datagram)
}
