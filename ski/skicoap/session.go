package skicoap

import (
	"bytes"
	"context"
	"log/slog"
	"runtime/debug"
	"sync/atomic"
	"time"

	"github.com/pion/dtls/v3"
	"github.com/plgd-dev/go-coap/v3/message"
	"github.com/plgd-dev/go-coap/v3/message/codes"

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
	working   atomic.Int64 // requests that are being worked on
	nextMID   atomic.Uint32
}

func newSession(s *Server, conn *dtls.Conn, peer ski.Peer) *session {
	sess := &session{server: s, peer: peer, link: newLink(conn)}
	sess.ctx, sess.cancel = context.WithCancel(s.ctx)
	sess.active.Store(time.Now().UnixNano())
	return sess
}

// end forgets what the session has, after its link has ended.
func (s *session) end() {
	s.cancel()
	s.exchanges.close()
}

func (s *session) lastActive() time.Time { return time.Unix(0, s.active.Load()) }

// receive is called by the link's reader. The work is done elsewhere, so that
// a slow operation holds up nothing that comes after it.
func (s *session) receive(m *message.Message) {
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
		data, resp := s.serve(in, body, out)
		clear(body)
		code, more := responseCode(resp)
		options := append(contentFormat(out.ContentFormat()), more...)
		if resp.OutputLen > 0 {
			options = append(options, padding(resp.PaddedLen(out)-len(data))...)
		}
		s.answer(e, re, code, options, data)
		clear(data)
	})
}

// start reports whether one more request of this session may be worked on. No
// session gets more than its share: the others would have to wait.
func (s *session) start() bool {
	if s.working.Add(1) > int64(max(1, s.server.cfg.MaxInFlight/8)) || !s.server.start() {
		s.working.Add(-1)
		return false
	}
	return true
}

func (s *session) finish() {
	s.working.Add(-1)
	s.server.finish()
}

// serve asks the Handler. One that panics costs its request and not the
// process, in which others' requests are.
func (s *session) serve(in ski.Format, body []byte, out ski.Format) (data []byte, resp *ski.Response) {
	defer func() {
		if p := recover(); p != nil {
			s.server.log.Error("panic in the handler", slog.Any("panic", p), "stack", string(debug.Stack()))
			resp = ski.Failed(ski.UnspecifiedError)
			data, _ = ski.EncodeResponse(out, resp)
		}
	}()
	return ski.Serve(s.ctx, s.server.cfg.Handler, s.peer, in, body, out)
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
	s.exchanges.finish(e, bytes.Clone(datagram))
	if err := s.link.write(datagram); err != nil && s.ctx.Err() == nil {
		s.server.log.Debug("answer", "peer", s.peer.Addr, "err", err)
	}
	clear(datagram)
}
