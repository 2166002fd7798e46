package skiurl

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"log/slog"
	"math/big"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/tlsski/tlsski/ski"
	"github.com/tlsski/tlsski/ski/skicoap"
	"github.com/tlsski/tlsski/ski/skihttp"
	"github.com/tlsski/tlsski/ski/skitest"
)

// network is a private PKI, a site's key, and key servers that have it, all of
// the name keys.test.
type network struct {
	t        *testing.T
	identity tls.Certificate // of edge and key servers alike
	roots    *x509.CertPool
	site     *ecdsa.PrivateKey

	mu      sync.Mutex
	answers []netip.Addr // what a look-up of keys.test says
	err     error
	asked   int // look-ups
}

func newNetwork(t *testing.T) *network {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "keys.test"}, DNSNames: []string{"keys.test"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	require.NoError(t, err)
	n := &network{t: t, identity: tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, roots: x509.NewCertPool()}
	n.identity.Leaf, err = x509.ParseCertificate(der)
	require.NoError(t, err)
	n.roots.AddCert(n.identity.Leaf)
	n.site, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	return n
}

// keyServer is a key server on a real socket that counts and can be slow.
type keyServer struct {
	ski.Handler
	addr  netip.AddrPort
	asked atomic.Int64
	delay atomic.Pointer[func(n int64) time.Duration]
	close func() error
}

func (k *keyServer) ServeSKI(ctx context.Context, peer ski.Peer, req *ski.Request) *ski.Response {
	n := k.asked.Add(1)
	if delay := k.delay.Load(); delay != nil {
		select {
		case <-time.After((*delay)(n)):
		case <-ctx.Done():
		}
	}
	return k.Handler.ServeSKI(ctx, peer, req)
}

func (k *keyServer) slow(f func(n int64) time.Duration) { k.delay.Store(&f) }

// serve starts a key server of a binding.
func (n *network) serve(scheme, addr string) *keyServer {
	n.t.Helper()
	k, err := n.tryServe(scheme, addr)
	require.NoError(n.t, err)
	return k
}

func (n *network) tryServe(scheme, addr string) (*keyServer, error) {
	k := &keyServer{Handler: skitest.NewKeyServer(n.site)}
	quiet := slog.New(slog.DiscardHandler)
	if scheme == "https" {
		s, err := skihttp.Listen(addr, skihttp.ServerConfig{Handler: k, Certificate: n.identity, ClientCAs: n.roots, Logger: quiet})
		if err != nil {
			return nil, err
		}
		go func() { _ = s.Serve() }()
		k.addr, k.close = netip.MustParseAddrPort(fmt.Sprint(s.Addr())), s.Close
	} else {
		listen := skicoap.Listen
		if scheme == "coaps+tcp" {
			listen = skicoap.ListenTCP
		}
		s, err := listen(addr, skicoap.ServerConfig{Handler: k, Certificate: n.identity, ClientCAs: n.roots, Logger: quiet})
		if err != nil {
			return nil, err
		}
		go func() { _ = s.Serve() }()
		k.addr, k.close = netip.MustParseAddrPort(fmt.Sprint(s.Addr())), s.Close
	}
	n.t.Cleanup(func() { _ = k.close() })
	return k, nil
}

// pair starts key servers at 127.0.0.1 and 127.0.0.2, on the same port.
func (n *network) pair(scheme string) (a, b *keyServer) {
	n.t.Helper()
	for range 10 { // where somebody has that port at the second
		a = n.serve(scheme, "127.0.0.1:0")
		b, err := n.tryServe(scheme, netip.AddrPortFrom(netip.MustParseAddr("127.0.0.2"), a.addr.Port()).String())
		if err == nil {
			return a, b
		}
	}
	require.FailNow(n.t, "no port is free at both")
	return nil, nil
}

func (n *network) answer(err error, addrs ...string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.answers, n.err = nil, err
	for _, a := range addrs {
		n.answers = append(n.answers, netip.MustParseAddr(a))
	}
}

func (n *network) lookup(_ context.Context, _, host string) ([]netip.Addr, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if host != "keys.test" {
		return nil, errors.New("no such host")
	}
	n.asked++
	return append([]netip.Addr(nil), n.answers...), n.err
}

// logged is a log that goroutines write.
type logged struct {
	mu sync.Mutex
	bytes.Buffer
}

func (l *logged) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.Buffer.Write(p)
}

func (l *logged) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.Buffer.String()
}

// lookups returns how often keys.test has been looked up.
func (n *network) lookups() int {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.asked
}

// dial makes a set for client, which the test ends.
func (n *network) dial(client *ski.Client, urls ...string) (*Set, *logged) {
	n.t.Helper()
	log := new(logged)
	set, err := NewSet(urls, Config{
		Certificate: n.identity, RootCAs: n.roots, ServerName: "keys.test", Logger: slog.New(slog.NewTextHandler(log, nil)),
	}, client, n.lookup)
	require.NoError(n.t, err)
	n.t.Cleanup(set.Close)
	set.Start()
	return set, log
}

// ask has something signed, and checks it.
func (n *network) ask(c *ski.Client) {
	n.t.Helper()
	id, err := ski.PublicKeyID(n.site.Public())
	require.NoError(n.t, err)
	req := &ski.Request{Protocol: ski.TLS12, SPKI: id, Hash: ski.SHA256, Input: skitest.ECDHEInput(tls.CurveP256)}
	resp, err := c.RoundTrip(n.t.Context(), req)
	require.NoError(n.t, err)
	require.NoError(n.t, resp.Err())
	digest := sha256.Sum256(req.Input)
	require.True(n.t, ecdsa.VerifyASN1(n.site.Public().(*ecdsa.PublicKey), digest[:], resp.Output))
}

func TestANameWithSeveralAddressesIsAKeyServerAtEach(t *testing.T) {
	for _, scheme := range []string{"coaps", "coaps+tcp", "https"} {
		t.Run(scheme, func(t *testing.T) {
			n := newNetwork(t)
			a, b := n.pair(scheme)
			n.answer(nil, "127.0.0.1", "::ffff:127.0.0.2", "127.0.0.1")
			c := &ski.Client{Balance: ski.RoundRobin}
			url := scheme + "://keys.test:" + portOf(a)
			_, log := n.dial(c, url)
			assert.Contains(t, log.String(), "127.0.0.2")
			for range 20 {
				n.ask(c)
			}
			assert.EqualValues(t, 10, a.asked.Load())
			assert.EqualValues(t, 10, b.asked.Load())

			require.NoError(t, a.close())
			for range 20 {
				n.ask(c)
			}
			assert.GreaterOrEqual(t, b.asked.Load(), int64(29))
			assert.Eventually(t, func() bool { return strings.Contains(log.String(), `keyserver="`+url+` at 127.0.0.1"`) }, time.Minute, time.Millisecond,
				"the log says which")
		})
	}
}

func portOf(k *keyServer) string { return strconv.Itoa(int(k.addr.Port())) }

func TestAddressesComeAndGo(t *testing.T) {
	n := newNetwork(t)
	a, b := n.pair("coaps")
	n.answer(errors.New("no answer"))
	c := &ski.Client{Balance: ski.RoundRobin}
	// The key server that is not of the name stays as it is.
	fixed := n.serve("coaps", "127.0.0.1:0")
	set, log := n.dial(c, "coaps://keys.test:"+portOf(a), "coaps://"+fixed.addr.String())
	assert.Contains(t, log.String(), `msg="a key server's name cannot be looked up" name=keys.test`)
	n.ask(c)

	again := func() { set.resolve(t.Context(), set.hosts()) }
	n.answer(nil, "127.0.0.1", "127.0.0.2")
	again()
	known := set.clients
	require.Len(t, known, 3)
	for range 9 {
		n.ask(c)
	}
	assert.EqualValues(t, 3, a.asked.Load())
	assert.EqualValues(t, 3, b.asked.Load())

	n.answer(nil, "127.0.0.2", "127.0.0.1")
	again()
	assert.Equal(t, known, set.clients, "the order of an answer says nothing")
	n.answer(errors.New("no answer"))
	again()
	assert.Equal(t, known, set.clients, "what is known stays in use")

	n.answer(nil, "127.0.0.2", "127.0.0.3")
	again()
	require.Len(t, set.clients, 3)
	assert.Equal(t, known[1], set.clients[0])
	before := a.asked.Load()
	for range 9 {
		n.ask(c)
	}
	assert.Equal(t, before, a.asked.Load(), "an address that is gone is not asked")
	assert.NotEmpty(t, set.retired)
	set.closeRetired(time.Now())
	assert.Empty(t, set.retired)
}

// A name with more addresses than are used keeps those that are, in whatever
// order they come.
func TestANameWithTooManyAddresses(t *testing.T) {
	n := newNetwork(t)
	var addrs []string
	for i := range 3 * maxAddresses {
		addrs = append(addrs, fmt.Sprintf("127.0.1.%d", i+1))
	}
	n.answer(nil, addrs...)
	set, _ := n.dial(&ski.Client{}, "coaps://keys.test")
	known := set.clients
	require.Len(t, known, maxAddresses)
	slices.Reverse(addrs)
	n.answer(nil, addrs...)
	set.resolve(t.Context(), set.hosts())
	assert.Equal(t, known, set.clients)
}

func TestAKeyServerThatDoesNotAnswerHasItsNameLookedUpAgain(t *testing.T) {
	t.Parallel()
	n := newNetwork(t)
	a, b := n.pair("coaps")
	n.answer(nil, "127.0.0.3", "127.0.0.4") // where nobody listens
	var set *Set
	c := &ski.Client{Timeout: time.Minute, OnAttempt: func(a ski.Attempt) { set.Note(a) }}
	set, _ = n.dial(c, "coaps://keys.test:"+portOf(a))
	before := n.lookups()
	asked := make(chan struct{})
	go func() { // The name moves when it has been looked up in vain.
		defer close(asked)
		for n.lookups() == before {
			time.Sleep(time.Millisecond)
		}
		n.answer(nil, "127.0.0.1", "127.0.0.2")
	}()
	n.ask(c) // waits for the look-up
	<-asked
	assert.EqualValues(t, 1, a.asked.Load()+b.asked.Load())
}

// While a key server is away for months, its name is looked up seldom, and the log
// says once that it cannot be.
func TestANameThatCannotBeLookedUpIsNoFlood(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNetwork(t)
		n.answer(errors.New("no answer"))
		set, log := n.dial(&ski.Client{}, "coaps://keys.test")
		failed := func(d time.Duration) (lookups int) {
			before := n.lookups()
			for range d / (100 * time.Millisecond) {
				set.Note(ski.Attempt{Err: errors.New("no session")})
				time.Sleep(100 * time.Millisecond)
			}
			return n.lookups() - before
		}
		assert.InDelta(t, 4, failed(20*time.Second), 1) // after 2, 4 and 8 s
		assert.InDelta(t, 240, failed(time.Hour), 2)
		assert.Equal(t, 1, strings.Count(log.String(), "cannot be looked up"))

		n.answer(nil, "127.0.0.1")
		failed(time.Minute)
		assert.Equal(t, 1, strings.Count(log.String(), "can be looked up again"))
		n.answer(errors.New("no answer"))
		failed(time.Minute)
		assert.Equal(t, 2, strings.Count(log.String(), "cannot be looked up"))
		time.Sleep(2 * lookupEvery) // and it answers again
		assert.InDelta(t, 2, failed(4*time.Second), 1, "soon at first")
		set.Close()
	})
}

// Without a network there is a way to none of the addresses.
func TestAMachineWithoutANetworkKeepsItsKeyServers(t *testing.T) {
	n := newNetwork(t)
	n.answer(nil, "127.0.0.1", "127.0.0.2")
	set, _ := n.dial(&ski.Client{}, "coaps://keys.test")
	known := set.clients
	require.Len(t, known, 2)
	n.answer(nil, "fe80::1", "fe80::2") // without an interface there is no way to them
	set.resolve(t.Context(), set.hosts())
	assert.Equal(t, known, set.clients)
}

// What can be wrong with a key server costs no request that another can answer,
// and of those that come later no time.
func TestAKeyServerThatIsOfNoUse(t *testing.T) {
	for _, scheme := range []string{"coaps", "coaps+tcp", "https"} {
		for what, addr := range map[string]func(t *testing.T, n *network) string{
			"it takes everything and says nothing": func(t *testing.T, _ *network) string { return blackHole(t, scheme) },
			"nobody listens": func(t *testing.T, n *network) string {
				gone := n.serve(scheme, "127.0.0.1:0")
				require.NoError(t, gone.close())
				return gone.addr.String()
			},
			"its certificate is another's": func(t *testing.T, n *network) string {
				return newNetwork(t).serve(scheme, "127.0.0.1:0").addr.String()
			},
			"it does not answer any more": func(t *testing.T, n *network) string {
				silent := n.serve(scheme, "127.0.0.1:0")
				silent.slow(func(int64) time.Duration { return time.Hour })
				return silent.addr.String()
			},
		} {
			t.Run(scheme+", "+what, func(t *testing.T) {
				t.Parallel()
				n := newNetwork(t)
				good := n.serve(scheme, "127.0.0.1:0")
				var failovers atomic.Int64
				c := &ski.Client{Timeout: 10 * time.Second, OnAttempt: func(a ski.Attempt) {
					if a.Kind == ski.FailoverAttempt {
						failovers.Add(1)
					}
				}}
				n.dial(c, scheme+"://"+addr(t, n), scheme+"://"+good.addr.String())
				for range 20 {
					n.ask(c)
				}
				assert.EqualValues(t, 20, good.asked.Load())
				assert.EqualValues(t, 1, failovers.Load(), "the first finds out, for all that follow")
			})
		}
	}
}

// blackHole returns an address where everything is taken and nothing answered.
func blackHole(t *testing.T, scheme string) string {
	if scheme == "coaps" {
		udp, err := net.ListenPacket("udp", "127.0.0.1:0")
		require.NoError(t, err)
		t.Cleanup(func() { _ = udp.Close() })
		return udp.LocalAddr().String()
	}
	tcp, err := net.Listen("tcp", "127.0.0.1:0") // whose backlog the kernel fills
	require.NoError(t, err)
	t.Cleanup(func() { _ = tcp.Close() })
	return tcp.Addr().String()
}

func TestASlowKeyServerIsHedgedAroundUpToTheCap(t *testing.T) {
	for _, scheme := range []string{"coaps", "https"} {
		t.Run(scheme, func(t *testing.T) {
			n := newNetwork(t)
			a, b := n.pair(scheme)
			n.answer(nil, "127.0.0.1", "127.0.0.2")
			const maxExtra = 0.3 // more than a busy machine makes slow
			var hedged, failed, won atomic.Int64
			c := &ski.Client{MaxExtra: maxExtra, OnAttempt: func(a ski.Attempt) {
				if a.Kind == ski.FailoverAttempt {
					failed.Add(1)
				}
				if a.Kind == ski.HedgeAttempt {
					hedged.Add(1)
					if a.Outcome() == "output" {
						won.Add(1)
					}
				}
			}}
			n.dial(c, scheme+"://keys.test:"+portOf(a))
			const stall, every, requests = 2 * time.Second, 50, 400
			a.slow(func(n int64) time.Duration {
				if n > 100 && n%every == 0 {
					return stall
				}
				return 5 * time.Millisecond
			})
			slow := 0
			for range requests {
				start := time.Now()
				n.ask(c)
				if time.Since(start) >= stall {
					slow++
				}
			}
			assert.Zero(t, slow, "no request waits for the slow answers")
			assert.GreaterOrEqual(t, won.Load(), int64((requests-100)/every))
			assert.LessOrEqual(t, float64(hedged.Load()), maxExtra*requests)
			assert.Zero(t, failed.Load())
			// One that was not waited for is reported later.
			assert.Eventually(t, func() bool { return b.asked.Load() <= hedged.Load() }, time.Minute, time.Millisecond,
				"the second key server has the hedges alone")
		})
	}
}

func TestTheKeyServerWithTheLeastLatencyIsAskedAndAskedAgainOnceItRecovers(t *testing.T) {
	n := newNetwork(t)
	a, b := n.pair("coaps")
	n.answer(nil, "127.0.0.1", "127.0.0.2")
	c := &ski.Client{Balance: ski.LeastLatency}
	n.dial(c, "coaps://keys.test:"+portOf(a))
	after := func(d time.Duration) { a.slow(func(int64) time.Duration { return d }) }
	b.slow(func(int64) time.Duration { return 30 * time.Millisecond })
	share := func() (ofA, ofB int64) {
		ofA, ofB = a.asked.Load(), b.asked.Load()
		for range 40 {
			n.ask(c)
		}
		return a.asked.Load() - ofA, b.asked.Load() - ofB
	}
	prefers := func(of func() (more, less int64)) {
		t.Helper()
		require.Eventually(t, func() bool { more, less := of(); return more > 5*less }, time.Minute, time.Millisecond)
	}
	prefers(share)
	after(300 * time.Millisecond)
	prefers(func() (int64, int64) { x, y := share(); return y, x })
	after(0)
	prefers(share)
}
