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
	nextMID   atomic.Uint32
}

func newDTLSSession(s *Server, conn *dtls.Conn, peer ski.Peer) *dtlsSession {
	l := newLink(conn)
	sess := &dtlsSession{session: newSession(s, peer, l.close), link: l}
	sess.expire = sess.exchanges.expire
	return sess
}

// end forgets what the session has, after its link has ended.
func (s *dtlsSession) end() {
	s.cancel()
	s.exchanges.close()
}

// receive is called by the link's reader. The work is done elsewhere, so that
// a slow operation holds up nothing that comes after it.
func (s *dtlsSession) receive(m *message.Message) {
	now := time.Now()
	s.active.Store(now.UnixNano())
	if m.Code < codes.GET || m.Code > 31 || m.Type > message.NonConfirmable {
		return // no request
	}
	e, answer := s.exchanges.begin(newExchangeID(m.MessageID, m.Token), now)
	if e == nil {
		if len(answer) > 0 {
			_ = s.link.write(answer)
			clear(answer)
		}
		return
	}
	re := reply{token: bytes.Clone(m.Token), mid: m.MessageID, confirmable: m.Type == message.Confirmable}
	in, out, refused := s.server.links.check(m)
	if refused != nil {
		if re.confirmable || refused.code != codes.BadOption { // RFC 7252, Section 5.4.1
			s.answer(e, re, refused.code, refused.options, []byte(refused.payload))
		}
		return
	}
	if !s.start() {
		s.exchanges.abandon(e) // a retransmission may find a place
		return
	}
	body := bytes.Clone(m.Payload)
	s.server.workers.run(func() {
		defer s.finish()
		code, options, payload := s.work(in, body, out)
		clear(body)
		s.answer(e, re, code, options, payload)
		clear(payload)
	})
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
	s.exchanges.finish(e, bytes.Clone(datagram))
	if err := s.link.write(datagram); err != nil && s.ctx.Err() == nil {
		s.server.log.Debug("answer", "peer", s.peer.Addr, "err", err)
	}
	clear(datagram)
}
