package skicoap

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"slices"
	"sync"
	"syscall"
	"time"

	"github.com/pion/dtls/v3"
	"github.com/plgd-dev/go-coap/v3/message"
	"github.com/plgd-dev/go-coap/v3/message/codes"

	"github.com/tlsski/tlsski/ski/internal/source"
)

// tick is how often requests that wait are looked at.
const tick = 10 * time.Millisecond

var (
	errSilent = errors.New("the key server no longer answers")
	errReset  = errors.New("the key server reset the request")
	errEnded  = errors.New("the session ended")
)

// clientSession is the client's side of one DTLS session.
type clientSession struct {
	link      *link
	deadAfter time.Duration
	path      *clientPath
	wake      chan struct{} // has a value when calls is no longer empty

	mu        sync.Mutex
	calls     map[uint32]*call // by token
	watches   map[uint32]*watch
	nextToken uint32
	nextTag   uint32
	nextMID   uint16
	rtt       roundTrips
	credit    credit
	heard     time.Time // when the last message came
	pinged    time.Time
	looked    time.Time // when look was last called
	probing   *call     // a probe of the path, or nil
	probeSent time.Time // when it was sent last
	inVain    int       // how often it was, and only something else came back
	lastProbe time.Time // when one ended
}

// call is a request that waits for its answer.
type call struct {
	token    uint32
	mid      uint16
	datagram []byte
	began    time.Time
	schedule schedule
	sent     int          // how often
	next     time.Time    // when to send it again
	accepted bool         // an empty acknowledgement came: a response will
	done     chan outcome // of capacity 1
}

type outcome struct {
	answer *answer
	err    error
}

func newClientSession(conn *dtls.Conn, deadAfter time.Duration, path *clientPath) *clientSession {
	return &clientSession{
		link:      newLink(conn),
		deadAfter: deadAfter,
		path:      path,
		wake:      make(chan struct{}, 1),
		calls:     make(map[uint32]*call),
		watches:   make(map[uint32]*watch),
		nextToken: rand.Uint32(),
		nextMID:   uint16(rand.Uint32()),
		heard:     time.Now(),
		looked:    time.Now(),
	}
}

func (s *clientSession) close(cause error) { s.link.close(cause) }

func (s *clientSession) local() net.Addr { return s.link.conn.LocalAddr() }

func (s *clientSession) alive() bool {
	select {
	case <-s.link.done:
		return false
	default:
		return true
	}
}

// run reads answers until the session ends, fails the requests that still wait
// and returns the reason.
func (s *clientSession) run() error {
	var others sync.WaitGroup
	others.Go(s.retransmit)
	others.Go(func() { every(time.Second, s.link.done, s.attend) })
	others.Go(func() {
		source.Watch(s.local(), s.link.done, func() { s.link.close(source.ErrGone) })
	})
	err := s.link.run(s.receive)
	others.Wait()
	return err
}

// ask sends a message and waits for its answer, the context or the end of the
// session. Whichever comes, nothing is left behind.
func (s *clientSession) ask(ctx context.Context, options message.Options, payload []byte) (*answer, error) {
	return s.askAs(ctx, codes.POST, nil, options, payload)
}

// askAs is ask with another method and, where w is not nil, its token.
func (s *clientSession) askAs(ctx context.Context, method codes.Code, w *watch, options message.Options, payload []byte) (*answer, error) {
	c, err := s.begin(method, w, options, payload)
	if err != nil {
		return nil, err
	}
	defer s.end(c)
	if err := s.transmit(c.datagram); err != nil {
		return nil, err
	}
	select {
	case out := <-c.done:
		return out.answer, out.err
	case <-ctx.Done():
		return nil, ctx.Err()
	case <-s.link.done:
		return nil, fmt.Errorf("%w: %w", errEnded, s.link.cause)
	}
}

// transmit writes a datagram. One that the network does not take now counts as lost,
// as if it were lost further on: a route may come back, and where none does, the
// silence ends the session. Without the address that it is sent from none does.
// The error is of a datagram that no path takes.
func (s *clientSession) transmit(datagram []byte) error {
	err := s.link.write(datagram)
	switch {
	case errors.Is(err, syscall.EMSGSIZE):
		return err
	case err != nil && source.Gone(s.local()):
		s.link.close(source.ErrGone)
	}
	return nil
}

// begin registers a message under a message ID of its own, and a token that is
// the watch's or its own.
func (s *clientSession) begin(method codes.Code, w *watch, options message.Options, payload []byte) (*call, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.beginLocked(method, w, options, payload)
}

// beginLocked is begin with s.mu held.
func (s *clientSession) beginLocked(method codes.Code, w *watch, options message.Options, payload []byte) (*call, error) {
	now := time.Now()
	var token uint32
	if w != nil {
		token = w.token
	} else {
		token = s.freeToken()
	}
	c := &call{
		token:    token,
		mid:      s.nextMID,
		began:    now,
		schedule: s.rtt.schedule(),
		done:     make(chan outcome, 1),
	}
	c.sentAt(now)
	s.nextMID++
	onWire := tokenBytes(c.token)
	if method == codes.Empty {
		onWire = nil // RFC 7252, Section 4.1
	}

	datagram, err := encode(message.Message{
		Type: message.Confirmable, Code: method, MessageID: int32(c.mid),
		Token: onWire, Options: options, Payload: payload,
	})
	if err != nil {
		return nil, err
	}
	c.datagram = datagram
	if len(s.calls) == 0 {
		s.heard, s.looked = now, now // silence counts from here
		select {
		case s.wake <- struct{}{}:
		default:
		}
	}
	s.calls[c.token] = c
	return c, nil
}

func (s *clientSession) end(c *call) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.calls[c.token] == c {
		delete(s.calls, c.token)
	}
}

func tokenBytes(token uint32) []byte { return binary.BigEndian.AppendUint32(nil, token) }

// receive is called by the link's reader.
func (s *clientSession) receive(m *message.Message) {
	now := time.Now()
	s.mu.Lock()
	if now.Sub(s.heard) > s.rtt.timeout() {
		s.credit.heard()
	}
	s.heard = now
	expected := false
	switch {
	case m.Code == codes.Empty:
		s.receiveEmpty(m)
	case m.Code >= 64:
		expected = s.receiveAnswer(m, now)
	}
	s.mu.Unlock()
	if m.Code != codes.Empty && m.Type == message.Confirmable {
		// A separate response (RFC 7252, Section 5.2.2); a request, for which
		// an edge has no resources, is rejected like one that nobody expects.
		t := message.Acknowledgement
		if !expected {
			t = message.Reset
		}
		s.link.sendEmpty(t, m.MessageID)
	}
}

// receiveAnswer hands an answer, or a notification, to who waits for it. It
// reports false if nobody does.
func (s *clientSession) receiveAnswer(m *message.Message, now time.Time) (expected bool) {
	c, w := s.callOf(m), s.watchOf(m)
	if c == nil && w == nil {
		return false
	}
	a, err := newAnswer(m)
	isNew := err == nil && w != nil && w.isNew(a, now)
	switch {
	case c != nil && (w == nil || err != nil || isNew || m.Type == message.Acknowledgement):
		// A new notification that comes first is as good as the answer.
		if w != nil {
			w.drop()
		}
		s.rtt.answered(now.Sub(c.began), c.sent > 1)
		s.credit.answered()
		if p := s.probing; p != nil && c != p && isLong(c.datagram) && c.began.After(p.began) {
			s.probed(false, now) // It shows what the probe is to show.
		}
		s.settle(c, outcome{a, err})
	case isNew:
		w.deliver(a)
	case a != nil:
		clear(a.payload)
	}
	return true
}

// watchOf returns the watch whose notification m is, or nil.
func (s *clientSession) watchOf(m *message.Message) *watch {
	if len(m.Token) != 4 {
		return nil
	}
	return s.watches[binary.BigEndian.Uint32(m.Token)]
}

// callOf returns the request that m answers, or nil.
func (s *clientSession) callOf(m *message.Message) *call {
	if len(m.Token) != 4 {
		return nil
	}
	c := s.calls[binary.BigEndian.Uint32(m.Token)]
	if c != nil && m.Type == message.Acknowledgement && uint16(m.MessageID) != c.mid {
		return nil
	}
	return c
}

// receiveEmpty handles what has only a message ID: an acknowledgement that
// promises a separate response, a reset, or the answer to our ping.
func (s *clientSession) receiveEmpty(m *message.Message) {
	var meant *call
	for _, c := range s.calls {
		if c.mid != uint16(m.MessageID) {
			continue
		}
		if meant != nil {
			return // the IDs have come round while a request waited: it could be either
		}
		meant = c
	}
	switch {
	case meant == nil:
	case m.Type == message.Acknowledgement:
		meant.accepted = true
	case m.Type == message.Reset:
		s.settle(meant, outcome{nil, errReset})
	}
}

func (s *clientSession) settle(c *call, out outcome) {
	if delete(s.calls, c.token); c == s.probing {
		s.probed(false, time.Now()) // whatever the answer is
	}
	c.done <- out
}

// retransmit sends overdue requests again while there are any, and ends the
// session of a key server that is silent.
func (s *clientSession) retransmit() {
	t := time.NewTicker(tick)
	defer t.Stop()
	for {
		t.Stop()
		select {
		case <-s.wake:
		case <-s.link.done:
			return
		}
		t.Reset(tick)
		for waiting := true; waiting; {
			select {
			case now := <-t.C:
				waiting = s.look(now)
			case <-s.link.done:
				return
			}
		}
	}
}

// look does what is due and reports whether requests wait.
func (s *clientSession) look(now time.Time) bool {
	s.mu.Lock()
	waiting := len(s.calls) > 0
	if now.Sub(s.looked) > s.deadAfter/4 {
		s.heard = now // It was this process that was silent: ask first.
	}
	s.looked = now
	silence := now.Sub(s.heard)
	ping := false
	if waiting && silence > s.deadAfter/4 && now.Sub(s.pinged) > s.deadAfter/4 {
		// An operation may take its time, the answer to a ping does not.
		ping = true
	}
	if p := s.probing; p != nil && now.Sub(p.began) > maxTransmitSpan { // It shows nothing.
		delete(s.calls, p.token)
		s.probing, s.lastProbe = nil, now
	}
	var due [][]byte
	doubt, narrow := false, false
	for _, c := range s.overdue(now) {
		switch {
		case c != s.probing:
			doubt = doubt || isLong(c.datagram)
		case s.probeOverdue(now):
			narrow = true
			continue
		default:
			ping = true
		}
		due = append(due, c.datagram)
	}
	if ping {
		s.pinged = now
		s.nextMID++
	}
	mid := s.nextMID - 1
	if narrow {
		s.probed(true, now)
		due = slices.DeleteFunc(due, isLong)
	}
	doubt = doubt && s.probing == nil && now.Sub(s.lastProbe) > probePause
	// On a long path an answer and a few that are lost take their time.
	dead := silence > max(s.deadAfter, 4*s.rtt.timeout())
	s.mu.Unlock()

	if waiting && dead {
		s.link.close(errSilent)
		return false
	}
	if ping {
		s.link.sendEmpty(message.Confirmable, int32(mid))
	}
	if doubt {
		s.probe()
	}
	for _, datagram := range due {
		_ = s.transmit(datagram)
	}
	return waiting
}

func seconds(n uint32) time.Duration { return time.Duration(n) * time.Second }
