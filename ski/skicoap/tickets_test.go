package skicoap

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os/exec"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/plgd-dev/go-coap/v3/message"
	"github.com/plgd-dev/go-coap/v3/message/codes"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/tlsski/tlsski/ski"
)

// ticketOffice is a Handler that hands out the keys it is told to.
type ticketOffice struct {
	mu      sync.Mutex
	keys    map[string]byte // what a site's keys consist of
	changed chan struct{}
	asked   int // questions that were not answered with Same
	denied  int
	number  int // of keys of a site; 0 stands for 1
	// hold is called, if there is one, when the answer to a question is known.
	hold func()
}

func newTicketOffice() *ticketOffice {
	return &ticketOffice{keys: map[string]byte{"a.test": 1}, changed: make(chan struct{})}
}

func (o *ticketOffice) ServeSKI(ctx context.Context, p ski.Peer, req *ski.Request) *ski.Response {
	return echo(ctx, p, req)
}

func (o *ticketOffice) ServeTickets(_ context.Context, _ ski.Peer, site string, have ski.TicketTag) *ski.TicketAnswer {
	o.mu.Lock()
	defer func() {
		hold := o.hold
		o.mu.Unlock()
		if hold != nil {
			hold()
		}
	}()
	n, ok := o.keys[site]
	if !ok {
		o.denied++
		return &ski.TicketAnswer{Error: ski.RequestDenied}
	}
	keys := &ski.TicketKeys{Site: site}
	for i := range max(1, o.number) {
		keys.Keys = append(keys.Keys, ski.TicketKey{
			ID: ski.TicketKeyID{n, byte(i)}, From: time.Unix(1000, 0), To: time.Unix(2000, 0), Until: time.Unix(3000, 0), Secret: [32]byte{n}})
	}
	a := &ski.TicketAnswer{Changed: o.changed, Next: time.Now().Add(time.Hour)}
	if a.Same = keys.Tag() == have; !a.Same {
		a.Keys = keys
		o.asked++
	}
	return a
}

// change makes a site's keys others; 0 takes them away.
func (o *ticketOffice) change(site string, n byte) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.keys[site] = n
	if n == 0 {
		delete(o.keys, site)
	}
	close(o.changed)
	o.changed = make(chan struct{})
}

// watched is what a WatchTickets has said.
type watched struct {
	keys chan byte
	err  chan error
	stop context.CancelFunc
}

func watchSite(t *testing.T, source ski.TicketSource, site string) watched {
	ctx, cancel := context.WithCancel(t.Context())
	w := watched{keys: make(chan byte, 64), err: make(chan error, 1), stop: cancel}
	go func() {
		w.err <- source.WatchTickets(ctx, site, func(k *ski.TicketKeys) { w.keys <- k.Keys[0].Secret[0] })
	}()
	t.Cleanup(cancel)
	return w
}

func (w watched) next(t *testing.T) byte {
	t.Helper()
	select {
	case n := <-w.keys:
		return n
	case err := <-w.err:
		require.FailNow(t, "the watch has ended", "%v", err)
	case <-time.After(time.Minute):
		require.FailNow(t, "nothing has come")
	}
	return 0
}

func (w watched) end(t *testing.T) error {
	t.Helper()
	select {
	case err := <-w.err:
		return err
	case <-time.After(time.Minute):
		require.FailNow(t, "the watch does not end")
	}
	return nil
}

// What takes the keys back does not go missing where the end of the session overtakes
// it.
func TestTicketKeysAreTakenBackOverANetworkThatReorders(t *testing.T) {
	t.Parallel()
	ca := newTestCA(t)
	office := newTicketOffice()
	office.change("a.test", 1)
	s := serve(t, "127.0.0.1:0", ServerConfig{Handler: office, Certificate: ca.keyServer(), ClientCAs: ca.pool},
		func(s *Server) { s.farewell = time.Minute }) // of a machine that is busy
	c, r := through(t, s, ca)
	r.faults.Store(&faults{delay: 5 * time.Millisecond, held: 0.5})
	for range 20 {
		w := watchSite(t, c, "a.test")
		assert.EqualValues(t, 1, w.next(t))
		s.CloseSessions(errors.New("suspended"), func(ski.Peer) bool { return true })
		assert.ErrorIs(t, w.end(t), ski.RequestDenied)
		require.Eventually(t, func() bool { return !c.current.alive() }, time.Minute, time.Millisecond) // for the next
	}
}

// bothBindings runs f over DTLS and over TLS.
func bothBindings(t *testing.T, h ski.Handler, f func(t *testing.T, s *Server, connect func() *Client)) {
	for _, scheme := range []string{"coaps", "coaps+tcp"} {
		t.Run(scheme, func(t *testing.T) {
			ca := newTestCA(t)
			cfg := ServerConfig{Handler: h, Certificate: ca.keyServer(), ClientCAs: ca.pool, Logger: quiet}
			listen := Listen
			if scheme == schemeTCP {
				listen = ListenTCP
			}
			s, err := listen("127.0.0.1:0", cfg)
			require.NoError(t, err)
			s.farewell = time.Minute // of a machine that is busy
			served := make(chan error, 1)
			go func() { served <- s.Serve() }()
			t.Cleanup(func() {
				assert.NoError(t, s.Close())
				assert.NoError(t, <-served)
				assert.Zero(t, s.observations.Load())
			})
			edge := ca.edge()
			f(t, s, func() *Client {
				cfg := ca.client()
				cfg.Certificate = edge
				c, err := NewClient(fmt.Sprintf("%s://%s/ski", scheme, s.Addr()), cfg)
				require.NoError(t, err)
				t.Cleanup(func() { assert.NoError(t, c.Close()) })
				return c
			})
		})
	}
}

func TestTicketKeysComeAndAreFollowedByTheirChanges(t *testing.T) {
	bothBindings(t, newTicketOffice(), func(t *testing.T, s *Server, connect func() *Client) {
		office := s.cfg.Handler.(*ticketOffice)
		office.change("a.test", 1)
		c := connect()
		w := watchSite(t, c, "a.test")
		assert.EqualValues(t, 1, w.next(t))
		for n := byte(2); n < 5; n++ {
			office.change("a.test", n)
			assert.Equal(t, n, w.next(t))
		}
		require.NoError(t, ask(t.Context(), c, 1), "requests go on beside it")

		w.stop()
		require.ErrorIs(t, w.end(t), context.Canceled)
		require.Eventually(t, func() bool { return s.observations.Load() == 0 }, time.Minute, time.Millisecond)
	})
}

func TestTicketKeysAreTakenBack(t *testing.T) {
	t.Run("those of a site that the policy no longer grants", func(t *testing.T) {
		bothBindings(t, newTicketOffice(), func(t *testing.T, s *Server, connect func() *Client) {
			office := s.cfg.Handler.(*ticketOffice)
			office.change("a.test", 1)
			office.change("b.test", 2)
			c := connect()
			a, b := watchSite(t, c, "a.test"), watchSite(t, c, "b.test")
			assert.EqualValues(t, 1, a.next(t))
			assert.EqualValues(t, 2, b.next(t))
			office.change("a.test", 0)
			assert.ErrorIs(t, a.end(t), ski.RequestDenied)
			office.change("b.test", 3)
			assert.EqualValues(t, 3, b.next(t), "the other site's observation goes on")
		})
	})
	t.Run("those of a peer that is cut off", func(t *testing.T) {
		bothBindings(t, newTicketOffice(), func(t *testing.T, s *Server, connect func() *Client) {
			s.cfg.Handler.(*ticketOffice).change("a.test", 1)
			w := watchSite(t, connect(), "a.test")
			assert.EqualValues(t, 1, w.next(t))
			s.CloseSessions(errors.New("suspended"), func(ski.Peer) bool { return true })
			assert.ErrorIs(t, w.end(t), ski.RequestDenied)
		})
	})
}

func TestAKeyServerThatStopsTakesNoTicketKeysBack(t *testing.T) {
	bothBindings(t, newTicketOffice(), func(t *testing.T, s *Server, connect func() *Client) {
		w := watchSite(t, connect(), "a.test")
		assert.EqualValues(t, 1, w.next(t))
		require.NoError(t, s.Close())
		err := w.end(t)
		require.Error(t, err)
		assert.NotErrorIs(t, err, ski.RequestDenied)
	})
}

func TestWhatIsNotGrantedIsDenied(t *testing.T) {
	bothBindings(t, newTicketOffice(), func(t *testing.T, _ *Server, connect func() *Client) {
		assert.ErrorIs(t, watchSite(t, connect(), "other.test").end(t), ski.RequestDenied)
	})
}

func TestAKeyServerWithoutTicketKeysSaysSo(t *testing.T) {
	bothBindings(t, ski.HandlerFunc(echo), func(t *testing.T, _ *Server, connect func() *Client) {
		assert.ErrorIs(t, watchSite(t, connect(), "a.test").end(t), ski.ErrNoTickets)
	})
}

// TestASessionObservesASiteOnce: more registrations replace the first.
func TestASessionObservesASiteOnce(t *testing.T) {
	bothBindings(t, newTicketOffice(), func(t *testing.T, s *Server, connect func() *Client) {
		office := s.cfg.Handler.(*ticketOffice)
		office.change("a.test", 1)
		c := connect()
		first := watchSite(t, c, "a.test")
		first.next(t)
		second := watchSite(t, c, "a.test")
		second.next(t)
		assert.EqualValues(t, 1, s.observations.Load())
		office.change("a.test", 2)
		assert.EqualValues(t, 2, second.next(t))
	})
}

func TestThereAreOnlySoManyObservations(t *testing.T) {
	bothBindings(t, newTicketOffice(), func(t *testing.T, s *Server, connect func() *Client) {
		s.cfg.Handler.(*ticketOffice).change("a.test", 1)
		s.observations.Store(maxAllObservations)
		w := watchSite(t, connect(), "a.test")
		assert.EqualValues(t, 1, w.next(t), "it is answered, and not told of changes")
		assert.EqualValues(t, maxAllObservations, s.observations.Load())
		s.observations.Store(0)
	})
}

// TestTheEndOfAWatchAsksForNoTicketKeys: what the key server hands out or denies
// goes into its audit log.
func TestTheEndOfAWatchAsksForNoTicketKeys(t *testing.T) {
	bothBindings(t, newTicketOffice(), func(t *testing.T, s *Server, connect func() *Client) {
		office := s.cfg.Handler.(*ticketOffice)
		office.change("a.test", 1)
		office.mu.Lock()
		office.asked, office.denied = 0, 0
		office.mu.Unlock()
		c := connect()
		w := watchSite(t, c, "a.test")
		w.next(t)
		w.stop()
		require.ErrorIs(t, w.end(t), context.Canceled)
		require.Eventually(t, func() bool { return s.observations.Load() == 0 }, time.Minute, time.Millisecond)
		require.ErrorIs(t, watchSite(t, c, "other.test").end(t), ski.RequestDenied)
		for range 3 {
			require.NoError(t, ask(t.Context(), c, 1))
		}
		office.mu.Lock()
		defer office.mu.Unlock()
		assert.Equal(t, 1, office.asked)
		assert.Equal(t, 1, office.denied)
	})
}

// TestANotificationThatIsOvertakenByARegistrationIsOlder has a client register
// again while a notification of before is about to be sent.
func TestANotificationThatIsOvertakenByARegistrationIsOlder(t *testing.T) {
	office := newTicketOffice()
	ca := newTestCA(t)
	s := serve(t, "127.0.0.1:0", ServerConfig{Handler: office, Certificate: ca.keyServer(), ClientCAs: ca.pool})
	sess := newSession(s, ski.Peer{}, func(error) {})
	t.Cleanup(func() {
		sess.cancel()
		sess.unobserve(func(string, *observation) bool { return true })
	})
	number := func(options message.Options) uint32 {
		n, err := inOrder(options).Observe()
		require.NoError(t, err)
		return n
	}
	notified := make(chan uint32, 9)
	sess.notify = func(_ *observation, r *ticketResult, _ <-chan struct{}) error {
		notified <- number(r.options)
		return nil
	}
	register := func() (n uint32) {
		sess.getTickets(&ticketRequest{site: "a.test", observe: observeRegister}, func(_ codes.Code, o message.Options, _ []byte) { n = number(o) })
		return n
	}
	register()
	known, goOn := make(chan struct{}), make(chan struct{})
	office.mu.Lock()
	office.hold = func() {
		close(known)
		<-goOn
	}
	office.mu.Unlock()
	office.change("a.test", 2)
	<-known // what the notification says, which is not sent yet
	office.mu.Lock()
	office.hold = nil
	office.mu.Unlock()
	office.change("a.test", 3)
	answer := register()
	close(goOn)
	assert.Less(t, <-notified, answer)
}

// rawEdge is an authenticated peer whose messages are written by hand.
func rawEdge(t *testing.T, s *Server, ca *testCA) *link {
	t.Helper()
	c := dialTo(t, s, ca)
	side, err := c.session(t.Context())
	require.NoError(t, err)
	return side.clientSide.(*clientSession).link
}

func TestARejectedNotificationEndsTheObservation(t *testing.T) {
	ca := newTestCA(t)
	office := newTicketOffice()
	s := serve(t, "127.0.0.1:0", ServerConfig{Handler: office, Certificate: ca.keyServer(), ClientCAs: ca.pool})
	l := rawEdge(t, s, ca)
	// The client does not know the token, as after a restart of its own.
	datagram, err := encode(message.Message{
		Type: message.NonConfirmable, Code: codes.GET, MessageID: 7, Token: []byte("lost"),
		Options: newWatch(0, "/ski/tickets", "site=a.test").request(observeRegister, nil),
	})
	require.NoError(t, err)
	require.NoError(t, l.write(datagram))
	require.Eventually(t, func() bool { return s.observations.Load() == 1 }, time.Minute, time.Millisecond)
	office.change("a.test", 9)
	require.Eventually(t, func() bool { return s.observations.Load() == 0 }, time.Minute, time.Millisecond)
}

// TestNotificationsInTheWrongOrder is RFC 7641, Section 3.4.
func TestNotificationsInTheWrongOrder(t *testing.T) {
	start := time.Unix(1000, 0)
	tests := []struct {
		name    string
		numbers []uint32
		at      []time.Duration
		want    []bool
	}{
		{"as they were sent", []uint32{5, 6, 9}, nil, []bool{true, true, true}},
		{"one overtaken", []uint32{5, 7, 6}, nil, []bool{true, true, false}},
		{"one twice", []uint32{5, 5}, nil, []bool{true, false}},
		{"over the end of the numbers", []uint32{seqMask, 2, seqMask - 1}, nil, []bool{true, true, false}},
		{"a lower number after a long time", []uint32{900, 3}, []time.Duration{0, 129 * time.Second}, []bool{true, true}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			w := newWatch(1, "/ski/tickets", "site=a")
			for i, n := range tt.numbers {
				at := start
				if tt.at != nil {
					at = start.Add(tt.at[i])
				}
				assert.Equal(t, tt.want[i], w.isNew(&answer{observed: true, observe: n}, at), i)
			}
		})
	}
}

func TestABadNotificationIsAnError(t *testing.T) {
	good, err := ski.EncodeTicketKeys(newTicketOffice().ServeTickets(t.Context(), ski.Peer{}, "a.test", ski.TicketTag{}).Keys)
	require.NoError(t, err)
	cborFormat := message.MediaType(ski.CBOR.ContentFormat())
	tests := []struct {
		name string
		a    answer
		want string
	}{
		{"truncated", answer{code: codes.Content, format: cborFormat, payload: good[:len(good)-1]}, "it ends too early"},
		{"oversized", answer{code: codes.Content, format: cborFormat, payload: append(make([]byte, ski.MaxTicketsLen), good...)}, "it is too long"},
		{"empty", answer{code: codes.Content, format: cborFormat}, "it is empty"},
		{"in JSON", answer{code: codes.Content, format: 50, payload: []byte("{}")}, "not in CBOR"},
		{"valid, of nothing", answer{code: codes.Valid, etag: []byte("x")}, "another ETag"},
		{"an output", answer{code: codes.Changed, format: cborFormat, payload: good}, "2.04 Changed in the place"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			w := ticketWatch{site: "a.test", update: func(*ski.TicketKeys) { t.Error("it was used") }}
			_, err := w.take(&tt.a)
			require.ErrorContains(t, err, tt.want)
			assert.NotErrorIs(t, err, ski.RequestDenied)
		})
	}
	t.Run("of another site", func(t *testing.T) {
		w := ticketWatch{site: "b.test", update: func(*ski.TicketKeys) { t.Error("it was used") }}
		_, err := w.take(&answer{code: codes.Content, format: cborFormat, payload: good})
		require.ErrorContains(t, err, "another site")
	})
}

func TestWhatIsWrongWithARequestForTicketKeys(t *testing.T) {
	links := newResource("/ski", true)
	path := message.Options{{ID: message.URIPath, Value: []byte("ski")}, {ID: message.URIPath, Value: []byte("tickets")}}
	with := func(more ...message.Option) message.Options {
		return inOrder(append(path[:2:2], more...))
	}
	site := message.Option{ID: message.URIQuery, Value: []byte("site=a.test")}
	tests := []struct {
		name    string
		method  codes.Code
		options message.Options
		want    codes.Code
	}{
		{"no site", codes.GET, path, codes.BadRequest},
		{"an empty site", codes.GET, with(message.Option{ID: message.URIQuery, Value: []byte("site=")}), codes.BadRequest},
		{"two sites", codes.GET, with(site, site), codes.BadOption},
		{"no site and then one", codes.GET, with(message.Option{ID: message.URIQuery, Value: []byte("site=")}, site), codes.BadOption},
		{"another query", codes.GET, with(site, message.Option{ID: message.URIQuery, Value: []byte("x=y")}), codes.BadOption},
		{"POST", codes.POST, with(site), codes.MethodNotAllowed},
		{"JSON", codes.GET, with(site, message.Option{ID: message.Accept, Value: []byte{50}}), codes.NotAcceptable},
		{"an unknown critical option", codes.GET, with(site, message.Option{ID: 4001}), codes.BadOption},
		{"a block of a reserved size", codes.GET, with(site, block{szx: 7}.option(message.Block2)), codes.BadRequest},
		{"a block of a request", codes.GET, with(site, block{szx: 6}.option(message.Block1)), codes.BadOption},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			_, refused := links.ticketRequest(&message.Message{Code: tt.method, Options: tt.options})
			require.NotNil(t, refused)
			assert.Equal(t, codeText(tt.want), codeText(refused.code))
		})
	}
	q, refused := links.ticketRequest(&message.Message{Code: codes.GET, Options: with(site), Token: []byte{1}})
	require.Nil(t, refused)
	assert.Equal(t, "a.test", q.site)
	q, refused = newResource("/ski", false).ticketRequest(&message.Message{Code: codes.GET, Options: with(site)})
	assert.Nil(t, q)
	assert.Nil(t, refused)
}

// TestTicketKeysFitOneMessage has the longest there can be.
func TestTicketKeysFitOneMessage(t *testing.T) {
	keys := &ski.TicketKeys{Site: string(make([]byte, 0, ski.MaxTicketSite))}
	for range ski.MaxTicketSite {
		keys.Site += "s"
	}
	for i := range ski.MaxTicketKeys {
		from := time.Unix(1<<33+int64(i), 0)
		keys.Keys = append(keys.Keys, ski.TicketKey{ID: ski.TicketKeyID{byte(i)}, From: from, To: from.Add(time.Hour), Until: from.Add(2 * time.Hour)})
	}
	data, err := ski.EncodeTicketKeys(keys)
	require.NoError(t, err)
	assert.LessOrEqual(t, len(data), ski.MaxTicketsLen)
	datagram, err := encode(message.Message{
		Type: message.Confirmable, Code: codes.Content, Token: make([]byte, 8), Payload: data,
		Options: inOrder(append(contentFormat(60), message.Option{ID: message.ETag, Value: make([]byte, 8)},
			message.Option{ID: message.MaxAge, Value: uintValue(ticketsMaxAge)}, message.Option{ID: message.Observe, Value: uintValue(seqMask)})),
	})
	require.NoError(t, err)
	assert.LessOrEqual(t, len(datagram), maxMTU.message())
}

// TestNotificationsThatAreLostAreSentAgain loses every third datagram.
func TestNotificationsThatAreLostAreSentAgain(t *testing.T) {
	ca := newTestCA(t)
	office := newTicketOffice()
	s, err := Listen("127.0.0.1:0", ServerConfig{Handler: office, Certificate: ca.keyServer(), ClientCAs: ca.pool, Logger: quiet})
	require.NoError(t, err)
	s.ackTimeout = 20 * time.Millisecond
	served := make(chan error, 1)
	go func() { served <- s.Serve() }()
	t.Cleanup(func() {
		assert.NoError(t, s.Close())
		assert.NoError(t, <-served)
	})
	r := newRelay(t, s.Addr().String())
	c, err := NewClient("coaps://"+r.addr()+"/ski", ca.client())
	require.NoError(t, err)
	t.Cleanup(func() { assert.NoError(t, c.Close()) })
	w := watchSite(t, c, "a.test")
	w.next(t)
	r.lossEvery.Store(3)
	for n := byte(2); n < 10; n++ {
		office.change("a.test", n)
		assert.Equal(t, n, w.next(t))
	}
	office.change("a.test", 0)
	assert.ErrorIs(t, w.end(t), ski.RequestDenied)
}

// TestAPeerThatAcknowledgesNothingObservesNoMore hears nothing of the network.
func TestAPeerThatAcknowledgesNothingObservesNoMore(t *testing.T) {
	ca := newTestCA(t)
	office := newTicketOffice()
	s, err := Listen("127.0.0.1:0", ServerConfig{Handler: office, Certificate: ca.keyServer(), ClientCAs: ca.pool, Logger: quiet})
	require.NoError(t, err)
	s.ackTimeout = time.Millisecond
	served := make(chan error, 1)
	go func() { served <- s.Serve() }()
	t.Cleanup(func() {
		assert.NoError(t, s.Close())
		assert.NoError(t, <-served)
	})
	r := newRelay(t, s.Addr().String())
	c, err := NewClient("coaps://"+r.addr()+"/ski", ca.client())
	require.NoError(t, err)
	t.Cleanup(func() { assert.NoError(t, c.Close()) })
	watchSite(t, c, "a.test").next(t)
	r.drop.Store(true)
	office.change("a.test", 2)
	require.Eventually(t, func() bool { return s.observations.Load() == 0 }, time.Minute, time.Millisecond)
}

// TestLibcoapObservesTicketKeys has libcoap's client subscribe for some seconds.
func TestLibcoapObservesTicketKeys(t *testing.T) {
	t.Parallel()
	ca := newTestCA(t)
	office := newTicketOffice()
	s := serve(t, "127.0.0.1:0", ServerConfig{Handler: office, Certificate: ca.keyServer(), ClientCAs: ca.pool})
	edge := pemFile(t, ca.edge())
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	var out bytes.Buffer
	cmd := exec.CommandContext(ctx, "coap-client-openssl", "-m", "get", "-A", "60", "-s", "8", "-B", "50",
		"-c", edge, "-j", edge, "-n", fmt.Sprintf("coaps://%s/ski/tickets?site=a.test", s.Addr()))
	cmd.Stdout, cmd.Stderr = &out, &out
	require.NoError(t, cmd.Start())
	require.Eventually(t, func() bool { return s.observations.Load() == 1 }, time.Minute, time.Millisecond)
	office.change("a.test", 2)
	require.NoError(t, cmd.Wait(), out.String())
	require.Eventually(t, func() bool { return s.observations.Load() == 0 }, time.Minute, time.Millisecond)
	for _, n := range []byte{1, 2} {
		office.change("a.test", n)
		keys, err := ski.EncodeTicketKeys(office.ServeTickets(ctx, ski.Peer{}, "a.test", ski.TicketTag{}).Keys)
		require.NoError(t, err)
		assert.Contains(t, out.String(), string(keys))
	}
}

// TestManySitesAreFollowedAtOnce has the keys of many sites change faster than
// they can be sent.
func TestManySitesAreFollowedAtOnce(t *testing.T) {
	const sites, changes = 150, 20
	bothBindings(t, newTicketOffice(), func(t *testing.T, s *Server, connect func() *Client) {
		office := s.cfg.Handler.(*ticketOffice)
		name := func(i int) string { return fmt.Sprintf("site-%d.test", i) }
		for i := range sites {
			office.change(name(i), 1)
		}
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		var latest [sites]atomic.Uint32
		var watching sync.WaitGroup
		clients := []*Client{connect(), connect()}
		for i := range sites {
			watching.Go(func() {
				for ctx.Err() == nil { // A slow machine may lose a session.
					_ = clients[i%2].WatchTickets(ctx, name(i), func(k *ski.TicketKeys) {
						assert.Equal(t, name(i), k.Site)
						latest[i].Store(uint32(k.Keys[0].Secret[0]))
					})
				}
			})
		}
		require.Eventually(t, func() bool { return s.observations.Load() == sites }, time.Minute, time.Millisecond)
		for n := byte(2); n <= changes; n++ {
			for i := range sites {
				office.change(name(i), n)
			}
		}
		require.Eventually(t, func() bool {
			for i := range latest {
				if latest[i].Load() != changes {
					return false
				}
			}
			return true
		}, time.Minute, 10*time.Millisecond)
		cancel()
		watching.Wait()
		require.Eventually(t, func() bool { return s.observations.Load() == 0 }, time.Minute, time.Millisecond)
	})
}
