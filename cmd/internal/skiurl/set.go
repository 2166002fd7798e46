package skiurl

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"net/url"
	"slices"
	"sync"
	"time"

	"github.com/tlsski/tlsski/ski"
)

const (
	// lookupTime bounds the look-ups of all names at once.
	lookupTime = 2 * time.Second
	// Names are looked up again after the first time, and while a key server
	// does not answer whenever the second has passed since the last look-up, which
	// doubles up to the third while they say the same.
	lookupEvery, lookupSooner, lookupSlower = time.Minute, 2 * time.Second, 15 * time.Second
	// retirement is how long a client whose address is gone is kept: requests may
	// be in flight over it.
	retirement = 10 * time.Second
	// maxAddresses bounds what an answer can make of sessions.
	maxAddresses = 16
)

// Lookup returns the addresses of a name, as (*net.Resolver).LookupNetIP does.
type Lookup func(ctx context.Context, network, host string) ([]netip.Addr, error)

// Set keeps the Transports of a ski.Client: one for each URL, or one for each
// address where the URL's host is a name with several.
type Set struct {
	urls   []string
	cfg    Config
	client *ski.Client
	lookup Lookup
	log    *slog.Logger

	kick chan struct{}

	mu      sync.Mutex
	failing map[string]bool // names whose last look-up failed
	closed  bool
	clients []place
	retired []retired
	cancel  context.CancelFunc
	running sync.WaitGroup
}

// place is a client and what it is of.
type place struct {
	url    string
	addr   netip.Addr // invalid where the client looks the name up itself
	client Client
}

type retired struct {
	place
	at time.Time
}

// NewSet gives client the Transports for the URLs, the preferred first. Nothing
// is sent or looked up yet. A nil lookup means that of net.DefaultResolver. The
// error is a *URLError.
func NewSet(urls []string, cfg Config, client *ski.Client, lookup Lookup) (*Set, error) {
	s := &Set{urls: urls, cfg: cfg, client: client, lookup: lookup, log: cfg.Logger, kick: make(chan struct{}, 1), failing: map[string]bool{}}
	if s.lookup == nil {
		s.lookup = net.DefaultResolver.LookupNetIP
	}
	if s.log == nil {
		s.log = slog.Default()
	}
	for i, u := range urls {
		c, err := NewClient(u, cfg)
		if err != nil {
			s.Close()
			return nil, &URLError{i, err}
		}
		s.clients = append(s.clients, place{url: u, client: c})
	}
	s.replace()
	return s, nil
}

// URLError says which of several URLs is wrong.
type URLError struct {
	Index int
	Err   error
}

func (e *URLError) Error() string { return e.Err.Error() }
func (e *URLError) Unwrap() error { return e.Err }

// Start looks the names up and keeps doing so until Close. It returns after the
// first time.
func (s *Set) Start() {
	hosts := s.hosts()
	if len(hosts) == 0 {
		return
	}
	ctx, cancel := context.WithCancel(context.Background())
	s.cancel = cancel
	s.resolve(ctx, hosts)
	s.running.Go(func() { s.keep(ctx, hosts) })
}

// Note has the names looked up soon where an attempt was not answered. It does not
// wait. It is for ski.Client.OnAttempt.
func (s *Set) Note(a ski.Attempt) {
	if a.Err == nil || errors.Is(a.Err, context.Canceled) {
		return
	}
	select {
	case s.kick <- struct{}{}:
	default:
	}
}

// Retry has the key servers asked at once that refuse this edge: an operator has
// done something about it.
func (s *Set) Retry() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, p := range s.clients {
		p.client.Retry()
	}
}

// hosts returns the names in the URLs, each once.
func (s *Set) hosts() []string {
	var hosts []string
	for _, raw := range s.urls {
		if host := hostOf(raw); host != "" && !slices.Contains(hosts, host) {
			hosts = append(hosts, host)
		}
	}
	return hosts
}

// hostOf returns the name in a URL, or "" where it is an address.
func hostOf(raw string) string {
	u, err := url.Parse(raw)
	if err != nil {
		return ""
	}
	if _, err := netip.ParseAddr(u.Hostname()); err == nil {
		return ""
	}
	return u.Hostname()
}

func (s *Set) keep(ctx context.Context, hosts []string) {
	pause := lookupSooner
	for last := time.Now(); ; last = time.Now() {
		regular := time.NewTimer(lookupEvery)
		kicked := false
		select {
		case <-regular.C:
		case <-s.kick:
			kicked = true
			regular.Reset(time.Until(last.Add(pause)))
			select {
			case <-regular.C:
			case <-ctx.Done():
			}
		case <-ctx.Done():
		}
		regular.Stop()
		if ctx.Err() != nil {
			return
		}
		if changed := s.resolve(ctx, hosts); changed || !kicked {
			pause = lookupSooner
		} else {
			pause = min(2*pause, lookupSlower)
		}
		s.closeRetired(time.Now().Add(-retirement))
	}
}

// resolve looks all names up at once, and makes and drops clients as the answers
// say, and reports whether that has changed any. A name that cannot be looked up
// keeps what it has.
func (s *Set) resolve(ctx context.Context, hosts []string) (changed bool) {
	ctx, cancel := context.WithTimeout(ctx, lookupTime)
	defer cancel()
	var mu sync.Mutex
	found := map[string][]netip.Addr{}
	var all sync.WaitGroup
	for _, host := range hosts {
		all.Go(func() {
			addrs, err := s.lookup(ctx, "ip", host)
			s.logLookup(host, err)
			if err != nil {
				return
			}
			good := usable(addrs)
			if len(good) == 0 && len(addrs) > 0 {
				return // It is this machine's network that is away.
			}
			mu.Lock()
			defer mu.Unlock()
			found[host] = good
		})
	}
	all.Wait()
	return s.apply(found)
}

// logLookup logs when a name can no longer be looked up, and when it can again.
func (s *Set) logLookup(host string, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.failing[host] == (err != nil) || s.closed {
		return
	}
	if s.failing[host] = err != nil; err != nil {
		s.log.Warn("a key server's name cannot be looked up", "name", host, "error", err)
	} else {
		s.log.Info("a key server's name can be looked up again", "name", host)
	}
}

// usable returns the addresses that this machine has a way to: one without IPv6
// has none to half of a name's. Nothing is sent.
func usable(addrs []netip.Addr) []netip.Addr {
	if len(addrs) > maxAddresses { // of which each answer may have others first
		addrs = slices.SortedFunc(slices.Values(addrs), netip.Addr.Compare)
	}
	var good []netip.Addr
	for _, a := range addrs {
		a = a.Unmap()
		if len(good) == maxAddresses || slices.Contains(good, a) {
			continue
		}
		if c, err := net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(netip.AddrPortFrom(a, 9))); err == nil {
			_ = c.Close()
			good = append(good, a)
		}
	}
	return good
}

func (s *Set) apply(found map[string][]netip.Addr) (changed bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return false
	}
	var next []place
	for _, raw := range s.urls {
		had := slices.DeleteFunc(slices.Clone(s.clients), func(p place) bool { return p.url != raw })
		addrs, ok := found[hostOf(raw)]
		if !ok {
			next = append(next, had...)
			continue
		}
		if len(addrs) < 2 {
			addrs = []netip.Addr{{}} // The client looks it up whenever it dials.
		}
		// Those that are known stay in their order, whatever order the answer has
		// this time.
		for _, p := range had {
			if slices.Contains(addrs, p.addr) {
				next = append(next, p)
			}
		}
		for _, addr := range addrs {
			if slices.ContainsFunc(had, func(p place) bool { return p.addr == addr }) {
				continue
			}
			cfg := s.cfg
			cfg.Address = addr
			c, err := NewClient(raw, cfg)
			if err != nil { // The same URL was good before.
				s.log.Error("no client of a key server", "url", raw, "address", addr, "error", err)
				continue
			}
			next = append(next, place{raw, addr, c})
		}
	}
	for _, p := range s.clients {
		if !slices.Contains(next, p) {
			s.retired = append(s.retired, retired{p, time.Now()})
		}
	}
	if slices.Equal(next, s.clients) {
		return false
	}
	s.clients = next
	s.log.Info("key servers", "endpoints", s.replace())
	return true
}

// replace tells the Client, and returns what it is told.
func (s *Set) replace() (endpoints []string) {
	var transports []ski.Transport
	for _, p := range s.clients {
		transports = append(transports, p.client)
		endpoints = append(endpoints, p.client.Endpoint())
	}
	s.client.Replace(transports)
	return endpoints
}

// URL returns the one of the URLs that a Transport of the Client is for, or "" if
// it is gone.
func (s *Set) URL(t ski.Transport) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, p := range s.clients {
		if p.client == t {
			return p.url
		}
	}
	for _, r := range s.retired {
		if r.client == t {
			return r.url
		}
	}
	return ""
}

// closeRetired closes the clients that were retired before a time.
func (s *Set) closeRetired(before time.Time) {
	s.mu.Lock()
	var old []Client
	s.retired = slices.DeleteFunc(s.retired, func(r retired) bool {
		if r.at.After(before) {
			return false
		}
		old = append(old, r.client)
		return true
	})
	s.mu.Unlock()
	for _, c := range old {
		_ = c.Close()
	}
}

// Close ends the look-ups, the Client's attempts that nobody waits for, and all
// sessions.
func (s *Set) Close() {
	if s.cancel != nil {
		s.cancel()
	}
	s.running.Wait()
	s.mu.Lock()
	s.closed = true
	clients := s.clients
	s.mu.Unlock()
	_ = s.client.Close()
	s.closeRetired(time.Now())
	for _, p := range clients {
		_ = p.client.Close()
	}
}
