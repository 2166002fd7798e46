package skicoap

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/plgd-dev/go-coap/v3/message"
	"github.com/plgd-dev/go-coap/v3/message/codes"

	"github.com/tlsski/tlsski/ski"
)

const (
	// registerTimeout bounds a registration: nobody waits for it.
	registerTimeout = 10 * time.Second
	// maxFresh bounds Max-Age, whatever a key server says.
	maxFresh = time.Hour
	// reorderTime is after how long a notification is newer whatever its number
	// (RFC 7641, Section 3.4).
	reorderTime = 128 * time.Second
	// watchPing is after how much silence a key server is asked for a sign of life
	// that has nothing to say but notifications: it may be gone, and a NAT between
	// the two forgets a session in as little as 30 s. RFC 8085, Section 3.5, has
	// 15 s as the least.
	watchPing = 20 * time.Second
)

// watch is a resource that the client observes in one session. It has a token of
// its own for as long.
type watch struct {
	token    uint32
	options  message.Options // of its requests, but Observe, ETag and Block2
	early    message.Options // Block2, where it is asked for early
	notified chan *answer    // of capacity 1; the session puts the newest there

	// Of the newest answer, where it has a number; the session's lock is held.
	numbered bool
	number   uint32
	at       time.Time
}

func newWatch(token uint32, path, query string) *watch {
	w := &watch{token: token, notified: make(chan *answer, 1)}
	for segment := range strings.SplitSeq(path[1:], "/") {
		w.options = append(w.options, message.Option{ID: message.URIPath, Value: []byte(segment)})
	}
	w.options = append(w.options,
		message.Option{ID: message.URIQuery, Value: []byte(query)},
		message.Option{ID: message.Accept, Value: uintValue(uint32(ski.CBOR.ContentFormat()))})
	return w
}

// request returns the options of a request.
func (w *watch) request(observe uint32, have []byte) message.Options {
	options := append(w.options[:len(w.options):len(w.options)], message.Option{ID: message.Observe, Value: uintValue(observe)})
	options = append(options, w.early...)
	if len(have) > 0 {
		options = append(options, message.Option{ID: message.ETag, Value: have})
	}
	return inOrder(options)
}

// isNew reports whether an answer is newer than those before it (RFC 7641,
// Section 3.4), and notes it if so. One without a number ends the observation.
func (w *watch) isNew(a *answer, now time.Time) bool {
	if !a.observed {
		return true
	}
	v1, v2 := w.number, a.observe&seqMask
	const half = 1 << 23
	newer := !w.numbered || v1 < v2 && v2-v1 < half || v1 > v2 && v1-v2 > half || now.After(w.at.Add(reorderTime))
	if newer {
		w.numbered, w.number, w.at = true, v2, now
	}
	return newer
}

// deliver hands a notification over, in the place of an older one that nobody has
// looked at yet. It is called by the session's reader alone.
func (w *watch) deliver(a *answer) {
	w.drop()
	w.notified <- a
}

// drop forgets a notification that nobody has looked at.
func (w *watch) drop() {
	select {
	case old := <-w.notified:
		clear(old.payload)
	default:
	}
}

// WatchTickets observes the key server's resource of ticket keys; see
// ski.TicketSource.
func (c *Client) WatchTickets(ctx context.Context, site string, update func(*ski.TicketKeys)) (err error) {
	if !ski.ValidTicketSite(site) {
		return fmt.Errorf("skicoap: %q cannot be the name of a ticket site", site)
	}
	s, err := c.session(ctx)
	if err != nil {
		return c.failed(ctx, "dial", err)
	}
	w := s.watch(c.path+ticketsSegment, siteQuery+site)
	t := ticketWatch{site: site, update: update}
	defer func() {
		// A refusal ends the observation, and what is had already need not come,
		// and be recorded, once more.
		refused := errors.Is(err, ski.RequestDenied) || errors.Is(err, ski.ErrNoTickets)
		s.unwatch(w, t.have, !refused)
		w.drop()
	}()
	for {
		asking, cancel := context.WithTimeout(ctx, registerTimeout)
		a, err := s.register(asking, w, t.have)
		if err == nil {
			a, err = s.collectWatched(asking, w, a)
		}
		cancel()
		if err != nil {
			return c.failed(ctx, "request", err)
		}
		c.answered(s)
		if err := c.follow(ctx, s, w, &t, a); err != nil {
			return err
		}
	}
}

// follow takes an answer and the notifications after it, until it is time to
// register again.
func (c *Client) follow(ctx context.Context, s *held, w *watch, t *ticketWatch, a *answer) error {
	for {
		fresh, err := t.take(a)
		clear(a.payload)
		if err != nil {
			te := &ski.TransportError{Endpoint: c.endpoint, Op: "answer", Err: err}
			te.Permanent = errors.Is(err, ski.ErrNoTickets)
			return te
		}
		timer := time.NewTimer(fresh)
		select {
		case a = <-w.notified:
			timer.Stop()
			asking, cancel := context.WithTimeout(ctx, registerTimeout)
			a, err = s.collectWatched(asking, w, a)
			cancel()
			if err != nil {
				return nil // register again: what was to be collected may have changed
			}
			continue
		case <-timer.C:
			return nil
		case <-s.ended():
		case <-ctx.Done():
		}
		timer.Stop()
		// What came before the end counts: it may say why.
		select {
		case a = <-w.notified:
			if ctx.Err() == nil && (a.two == nil || !a.two.more) {
				continue
			}
			clear(a.payload)
		default:
		}
		return c.failed(ctx, "request", errEnded)
	}
}

// ticketWatch is what is known of a site's keys.
type ticketWatch struct {
	site   string
	update func(*ski.TicketKeys)
	have   []byte // the ETag
}

// take makes use of an answer, and says for how long it is fresh.
func (t *ticketWatch) take(a *answer) (fresh time.Duration, err error) {
	fresh = max(time.Second, min(seconds(a.maxAge), maxFresh))
	switch a.code {
	case codes.Content:
		keys, err := t.decode(a)
		if err != nil {
			return 0, err
		}
		t.have = a.etag
		t.update(keys)
		return fresh, nil
	case codes.Valid:
		if len(t.have) == 0 || !bytes.Equal(a.etag, t.have) {
			t.have = nil
			return 0, errors.New(codeText(a.code) + " with another ETag than was asked for")
		}
		return fresh, nil
	case codes.TooManyRequests, codes.ServiceUnavailable:
		return fresh, nil
	case codes.RequestEntityIncomplete: // They have changed meanwhile.
		return time.Second, nil
	case codes.Forbidden, codes.Unauthorized:
		return 0, ski.RequestDenied
	case codes.NotFound:
		return 0, ski.ErrNoTickets
	}
	return 0, errors.New(codeText(a.code) + " in the place of ticket keys")
}

func (t *ticketWatch) decode(a *answer) (*ski.TicketKeys, error) {
	if f, ok := format(a.format, a.formErr); !ok || f != ski.CBOR {
		return nil, errors.New("the ticket keys are not in CBOR")
	}
	keys, err := ski.DecodeTicketKeys(a.payload)
	switch {
	case err != nil:
		return nil, fmt.Errorf("the ticket keys: %v", err) // Not wrapped: no request is malformed.
	case keys.Site != t.site:
		keys.Clear()
		return nil, errors.New("the ticket keys are those of another site")
	}
	return keys, nil
}

var _ ski.TicketSource = (*Client)(nil)

// watch begins to expect notifications under a token of their own.
func (s *clientSession) watch(path, query string) *watch {
	s.mu.Lock()
	defer s.mu.Unlock()
	w := newWatch(s.freeToken(), path, query)
	w.early = s.path.early()
	s.watches[w.token] = w
	return w
}

func (s *clientSession) freeToken() uint32 {
	for s.calls[s.nextToken] != nil || s.watches[s.nextToken] != nil {
		s.nextToken++
	}
	s.nextToken++
	return s.nextToken - 1
}

// unwatch forgets the token. The key server is told, once: it finds out in any
// case when its next notification is rejected.
func (s *clientSession) unwatch(w *watch, have []byte, tell bool) {
	s.mu.Lock()
	delete(s.watches, w.token)
	s.nextMID++
	mid := s.nextMID - 1
	s.mu.Unlock()
	if !tell {
		return
	}
	datagram, err := encode(message.Message{
		Type: message.NonConfirmable, Code: codes.GET, MessageID: int32(mid),
		Token: tokenBytes(w.token), Options: w.request(observeDeregister, have),
	})
	if err == nil && s.alive() {
		_ = s.link.write(datagram)
	}
}

func (s *clientSession) register(ctx context.Context, w *watch, have []byte) (*answer, error) {
	return s.askAs(ctx, codes.GET, w, w.request(observeRegister, have), nil)
}

// collectWatched returns the whole of an answer or a notification (RFC 7959,
// Section 2.6).
func (s *clientSession) collectWatched(ctx context.Context, w *watch, a *answer) (*answer, error) {
	return s.collect(ctx, codes.GET, w.options, a)
}

func (s *clientSession) ended() <-chan struct{} { return s.link.done }

// attend asks a key server for a sign of life that is silent while there is
// something to be notified of (RFC 7252, Section 4.3). Where none comes, the
// session ends as with any request.
func (s *clientSession) attend(now time.Time) {
	s.mu.Lock()
	due := len(s.watches) > 0 && len(s.calls) == 0 && now.Sub(s.heard) > watchPing
	s.mu.Unlock()
	if due {
		ctx, cancel := context.WithTimeout(context.Background(), registerTimeout)
		defer cancel()
		_, _ = s.askAs(ctx, codes.Empty, nil, nil, nil)
	}
}

// watch begins to expect notifications under a token of their own.
func (s *tcpClientSession) watch(path, query string) *watch {
	s.mu.Lock()
	defer s.mu.Unlock()
	w := newWatch(s.freeToken(), path, query)
	s.watches[w.token] = w
	return w
}

func (s *tcpClientSession) freeToken() uint32 {
	for s.calls[s.nextToken] != nil || s.watches[s.nextToken] != nil {
		s.nextToken++
	}
	s.nextToken++
	return s.nextToken - 1
}

// unwatch forgets the token, and has the key server forget it (RFC 8323, Section
// 7.4).
func (s *tcpClientSession) unwatch(w *watch, have []byte, tell bool) {
	s.mu.Lock()
	delete(s.watches, w.token)
	s.mu.Unlock()
	if !tell {
		return
	}
	frame, err := encodeFrame(message.Message{Code: codes.GET, Token: tokenBytes(w.token), Options: w.request(observeDeregister, have)})
	if err != nil || !s.alive() {
		return
	}
	wait := time.NewTimer(farewellTimeout)
	defer wait.Stop()
	select {
	case s.outgoing <- frame:
	case <-s.link.done:
	case <-wait.C: // It does not read.
	}
}

func (s *tcpClientSession) register(ctx context.Context, w *watch, have []byte) (*answer, error) {
	return s.askAs(ctx, w.token, message.Message{Code: codes.GET, Options: w.request(observeRegister, have)})
}

// collectWatched returns a: over TCP it is whole.
func (s *tcpClientSession) collectWatched(_ context.Context, _ *watch, a *answer) (*answer, error) {
	return a, nil
}

func (s *tcpClientSession) ended() <-chan struct{} { return s.link.done }

// attend asks a key server for a sign of life that is silent while there is
// something to be notified of (RFC 8323, Section 5.4).
func (s *tcpClientSession) attend(now time.Time) {
	s.mu.Lock()
	due := len(s.watches) > 0 && len(s.calls) == 0 && now.Sub(s.heard) > watchPing
	token := s.freeToken()
	s.mu.Unlock()
	if due {
		ctx, cancel := context.WithTimeout(context.Background(), registerTimeout)
		defer cancel()
		_, _ = s.askAs(ctx, token, message.Message{Code: codes.Ping})
	}
}
