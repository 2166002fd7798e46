package skicoap

import (
	"bytes"
	"errors"
	"maps"
	"math"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/plgd-dev/go-coap/v3/message"
	"github.com/plgd-dev/go-coap/v3/message/codes"

	"github.com/tlsski/tlsski/ski"
)

const (
	// ticketsSegment follows the path of the SKI resource: the keys of session
	// tickets (docs/protocol.md, Section 7).
	ticketsSegment = "/tickets"
	siteQuery      = "site="
	// ticketsMaxAge is for how long an answer is taken to be fresh, in seconds. A
	// client that observes registers again then, so that it learns of a key
	// server that is gone, and the key server that it is still there.
	ticketsMaxAge = 120
	// seqMask has the bits of the value of Observe (RFC 7641, Section 2).
	seqMask = 1<<24 - 1
)

// The values of Observe in a request (RFC 7641, Section 2).
const (
	observeRegister   = 0
	observeDeregister = 1
)

// ticketRequest is a GET of ticket keys.
type ticketRequest struct {
	token   []byte
	site    string
	have    ski.TicketTag
	observe uint32 // one of the above, or noObserve
	block   *block // that is asked for, or nil
}

const noObserve = math.MaxUint32

// ticketRequest returns what m asks for; nil and no refusal where it is not for
// ticket keys.
func (r *resource) ticketRequest(m *message.Message) (*ticketRequest, *refusal) {
	if !r.tickets {
		return nil, nil
	}
	if path, err := m.Options.Path(); err != nil || path != r.path+ticketsSegment {
		return nil, nil
	}
	q := &ticketRequest{token: bytes.Clone(m.Token), observe: noObserve}
	named := false
	for _, o := range m.Options {
		switch {
		case o.ID == message.URIQuery && strings.HasPrefix(string(o.Value), siteQuery) && !named:
			named, q.site = true, string(o.Value[len(siteQuery):])
		case o.ID == message.URIQuery:
			return nil, refuse(codes.BadOption, "Uri-Query")
		case o.ID == message.ETag && len(o.Value) == len(q.have):
			copy(q.have[:], o.Value)
		case o.ID == message.Block1, o.ID&1 == 1 && !critical[o.ID]:
			return nil, refuse(codes.BadOption, "an option that has no place here")
		}
	}
	b, bad := findBlocks(m.Options)
	if q.block = b.two; bad != nil {
		return nil, bad
	}
	if m.Code != codes.GET {
		return nil, refuse(codes.MethodNotAllowed, "GET only")
	}
	if !ski.ValidTicketSite(q.site) {
		return nil, refuse(codes.BadRequest, "the query is site=NAME")
	}
	if accept, err := m.Options.Accept(); err == nil && uint16(accept) != ski.CBOR.ContentFormat() {
		return nil, refuse(codes.NotAcceptable, "Accept 60")
	}
	if n, err := m.Options.Observe(); err == nil {
		q.observe = n
	}
	return q, nil
}

// whole reports whether what is asked for has room for every answer.
func (q *ticketRequest) whole() bool {
	return q.block == nil || q.block.num == 0 && q.block.szx == largestSZX
}

// ticketResult is the answer to a ticketRequest.
type ticketResult struct {
	code    codes.Code
	options message.Options
	payload []byte // to be cleared
	have    ski.TicketTag
	answer  *ski.TicketAnswer
}

// denied reports whether the peer has lost the keys.
func (r *ticketResult) denied() bool {
	return r.answer.Error == ski.RequestDenied && r.answer.RetryAfter == 0
}

// serveTickets asks the Handler. One that panics costs its request alone.
func (s *session) serveTickets(q *ticketRequest) (r *ticketResult) {
	defer func() {
		if p := recover(); p != nil {
			s.server.log.Error("panic in the handler", "panic", p)
			r = ticketFailure(&ski.TicketAnswer{Error: ski.UnspecifiedError})
		}
	}()
	a := s.server.cfg.Handler.(ski.TicketHandler).ServeTickets(s.ctx, s.asker(), q.site, q.have)
	if a.Error != "" {
		if !a.Overloaded {
			s.slow(a.RetryAfter)
		}
		return ticketFailure(a)
	}
	have := q.have
	r = &ticketResult{code: codes.Valid, answer: a}
	if !a.Same {
		defer a.Keys.Clear()
		data, err := ski.EncodeTicketKeys(a.Keys)
		if err != nil {
			s.server.log.Error("ticket keys", "err", err)
			return ticketFailure(&ski.TicketAnswer{Error: ski.UnspecifiedError})
		}
		r.code, r.payload, have = codes.Content, data, a.Keys.Tag()
		r.options = contentFormat(ski.CBOR.ContentFormat())
	}
	r.have = have
	r.options = append(r.options,
		message.Option{ID: message.ETag, Value: bytes.Clone(have[:])},
		message.Option{ID: message.MaxAge, Value: uintValue(ticketsMaxAge)})
	return r
}

// ticketFailure is a refusal, with the SKI message that a request would get.
func ticketFailure(a *ski.TicketAnswer) *ticketResult {
	resp := &ski.Response{Error: a.Error, RetryAfter: a.RetryAfter, Overloaded: a.Overloaded}
	code, more := responseCode(resp)
	data, err := ski.EncodeResponse(ski.CBOR, resp)
	if err != nil {
		data, more = nil, nil
	}
	return &ticketResult{code: code, payload: data, answer: a, options: append(contentFormat(ski.CBOR.ContentFormat()), more...)}
}

// observation is one site's ticket keys that a peer observes (RFC 7641).
type observation struct {
	token []byte
	site  string
	block *block        // of the size that is wished for, or nil
	ended chan struct{} // closed when it is over
}

var errSuperseded = errors.New("there is something newer to send")

// maxObservations bounds the sites that one session observes, and
// maxAllObservations those of all sessions. Beyond them a request is answered
// once (RFC 7641, Section 4.1), and the peer has to ask again.
const (
	maxObservations    = 256
	maxAllObservations = 8192
	maxPeerObservation = maxAllObservations / 4
)

// notifyFunc sends a peer what it observes. It returns when the peer has it, or an
// error: errSuperseded once that is closed, another where the peer observes no
// more.
type notifyFunc func(o *observation, r *ticketResult, superseded <-chan struct{}) error

// getTickets answers a request for ticket keys, and begins or ends what it says
// of observing them.
func (s *session) getTickets(q *ticketRequest, answer func(code codes.Code, options message.Options, payload []byte)) {
	if q.observe == observeDeregister {
		s.unobserve(func(site string, o *observation) bool { return site == q.site && bytes.Equal(o.token, q.token) })
	}
	number := s.nextNumber()
	r := s.serveTickets(q)
	var observe func()
	if q.observe == observeRegister && r.answer.Error == "" {
		if observe = s.observe(q, r); observe != nil {
			r.options = append(r.options, number)
		}
	}
	answer(r.code, r.options, r.payload)
	clear(r.payload)
	if observe != nil {
		observe() // after the answer: notifications follow it
	}
}

// nextNumber returns Observe with a value that is above all before (RFC 7641,
// Section 4.4). It is taken before it is known what is sent with it: what is
// known later is never sent with a lower one, whatever overtakes it, but where
// what is known changes once more, and is sent once more.
func (s *session) nextNumber() message.Option {
	return message.Option{ID: message.Observe, Value: uintValue(s.seq.Add(1) & seqMask)}
}

// observe notes that the peer observes a site, in the place of what it did
// before: one observation of each site is enough for a session. It returns nil
// where there is no place for it, and otherwise what begins to send
// notifications.
func (s *session) observe(q *ticketRequest, r *ticketResult) (begin func()) {
	s.observing.Lock()
	defer s.observing.Unlock()
	if s.observations == nil {
		s.observations = make(map[string]*observation)
	}
	old := s.observations[q.site]
	if old == nil {
		switch all, peers := s.server.observations.Add(1), s.share.observations.Add(1); {
		case len(s.observations) >= maxObservations, all > maxAllObservations, peers > maxPeerObservation, s.ctx.Err() != nil:
			s.server.observations.Add(-1)
			s.share.observations.Add(-1)
			return nil
		}
	} else {
		close(old.ended)
	}
	o := &observation{token: q.token, site: q.site, block: q.block, ended: make(chan struct{})}
	s.observations[q.site] = o
	return func() {
		if !s.server.goRun(func() { s.keepTold(q.site, o, r) }) {
			s.unobserve(func(_ string, other *observation) bool { return other == o })
		}
	}
}

// unobserve ends the observations that match.
func (s *session) unobserve(match func(site string, o *observation) bool) {
	s.observing.Lock()
	defer s.observing.Unlock()
	for site, o := range s.observations {
		if match(site, o) {
			delete(s.observations, site)
			close(o.ended)
			s.server.observations.Add(-1)
			s.share.observations.Add(-1)
		}
	}
}

// keepTold sends a notification whenever a site's keys have changed, until the
// observation ends. last is what the peer has been answered.
func (s *session) keepTold(site string, o *observation, last *ticketResult) {
	defer s.unobserve(func(_ string, other *observation) bool { return other == o })
	q := &ticketRequest{site: site, have: last.have}
	a := last.answer
	for {
		wait := time.Until(a.Next)
		if a.Error != "" {
			wait = max(a.RetryAfter, time.Second)
		}
		timer := time.NewTimer(wait)
		select {
		case <-a.Changed: // nil, for ever, after an Error
		case <-timer.C:
		case <-o.ended:
		case <-s.ctx.Done():
		}
		timer.Stop()
		select {
		case <-o.ended:
			return
		case <-s.ctx.Done():
			return
		default:
		}
		number := s.nextNumber()
		r := s.serveTickets(q)
		a = r.answer
		if a.Same || a.Error != "" && !r.denied() {
			clear(r.payload)
			continue
		}
		if a.Error == "" {
			r.options = append(r.options, number)
		}
		err := s.notify(o, r, a.Changed)
		clear(r.payload)
		switch {
		case err == nil && r.denied(): // It is the last (RFC 7641, Section 4.2).
			return
		case err == nil:
			q.have = r.have
		case errors.Is(err, errSuperseded):
		default:
			s.server.log.Debug("a peer no longer observes", "peer", s.peer.Addr, "site", site, "err", err)
			return
		}
	}
}

// revoke tells the peer that it has lost what it observes, and waits for no longer
// than a moment until it has heard: its session is about to end, and over DTLS a
// message just before the end may not be read.
func (s *session) revoke() {
	s.observing.Lock()
	all := slices.Collect(maps.Values(s.observations))
	s.observing.Unlock()
	if len(all) == 0 {
		return
	}
	var telling sync.WaitGroup // until the end of the session, where the peer does not read
	for _, o := range all {
		telling.Go(func() { _ = s.notify(o, ticketFailure(&ski.TicketAnswer{Error: ski.RequestDenied}), nil) })
	}
	told := make(chan struct{})
	go func() {
		defer close(told)
		telling.Wait()
	}()
	select {
	case <-told:
	case <-time.After(s.server.farewell):
	}
}
