package edgeserver

import (
	"cmp"
	"context"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"sync"
	"time"
)

// Limits bound what clients can take for themselves.
type Limits struct {
	// Connections is how many there are at once. Further ones wait, in the
	// kernel's queue, until others have ended. Default: 16384.
	Connections int `yaml:"connections"`
	// ConnectionsPerAddress is how many of those one client can have, by its IPv4
	// address or the first 64 bits of its IPv6 address. Further ones are closed at
	// once. Default: 1024.
	ConnectionsPerAddress int `yaml:"connections_per_address"`
	// Handshakes is how many are under way at once, each from its ClientHello on.
	// Further ones get the alert internal_error. Default: 4096.
	Handshakes int `yaml:"handshakes"`
	// HeaderBytes bounds the header of a request, in bytes. Default: 65536.
	HeaderBytes int `yaml:"header_bytes"`
	// HandshakeTimeout is how long a client may take for its ClientHello, and for
	// its part of the handshake then. The key server's part, KeyServer.Timeout,
	// comes on top: were the two one, a connection whose key server does not answer
	// would end without an alert. Default: 10s.
	HandshakeTimeout time.Duration `yaml:"handshake_timeout"`
	// HeaderTimeout is how long a client may take to send the header of a request.
	// Default: 10s.
	HeaderTimeout time.Duration `yaml:"header_timeout"`
	// RequestTimeout is how long it may take to send a whole request. Default: as
	// long as it wants, since uploads can be large.
	RequestTimeout time.Duration `yaml:"request_timeout"`
	// WriteTimeout is how long a client may leave what is sent to it, a piece of an
	// answer, untaken. Default: 1m.
	WriteTimeout time.Duration `yaml:"write_timeout"`
	// IdleTimeout is how long a connection may be without a request. Default: 2m.
	IdleTimeout time.Duration `yaml:"idle_timeout"`
}

// withDefaults returns l with the defaults of the fields' comments filled in.
func (l Limits) withDefaults() Limits {
	return Limits{
		Connections:           cmp.Or(l.Connections, 16384),
		ConnectionsPerAddress: cmp.Or(l.ConnectionsPerAddress, 1024),
		Handshakes:            cmp.Or(l.Handshakes, 4096),
		HeaderBytes:           cmp.Or(l.HeaderBytes, 64<<10),
		HandshakeTimeout:      cmp.Or(l.HandshakeTimeout, 10*time.Second),
		HeaderTimeout:         cmp.Or(l.HeaderTimeout, 10*time.Second),
		RequestTimeout:        l.RequestTimeout,
		WriteTimeout:          cmp.Or(l.WriteTimeout, time.Minute),
		IdleTimeout:           cmp.Or(l.IdleTimeout, 2*time.Minute),
	}
}

// limitDurations are the fields with a time.Duration.
var limitDurations = []string{"limits.handshake_timeout", "limits.header_timeout", "limits.request_timeout",
	"limits.write_timeout", "limits.idle_timeout"}

// maxHeader bounds Limits.HeaderBytes: each connection can have that much.
const maxHeader = 1 << 20

func (c *Config) validateLimits() error {
	l := c.Limits
	for _, f := range []struct {
		name  string
		value int64
	}{
		{"connections", int64(l.Connections)}, {"connections_per_address", int64(l.ConnectionsPerAddress)},
		{"handshakes", int64(l.Handshakes)}, {"header_bytes", int64(l.HeaderBytes)},
		{"handshake_timeout", int64(l.HandshakeTimeout)}, {"header_timeout", int64(l.HeaderTimeout)},
		{"request_timeout", int64(l.RequestTimeout)}, {"write_timeout", int64(l.WriteTimeout)},
		{"idle_timeout", int64(l.IdleTimeout)},
	} {
		if f.value < 0 {
			return c.errorf("limits."+f.name, "is negative")
		}
	}
	if l.HeaderBytes < 1<<10 || l.HeaderBytes > maxHeader {
		return c.errorf("limits.header_bytes", "is not from 1024 to %d", maxHeader)
	}
	return nil
}

// Usage is what there is of that which Limits bound, and how often a bound was
// met since the start.
type Usage struct {
	Connections, Handshakes int
	// ConnectionsDelayed have waited for others to end, ConnectionsRefused were
	// too many of one address, HandshakesRefused too many at once.
	ConnectionsDelayed, ConnectionsRefused, HandshakesRefused uint64
}

// Usage returns it as it is now.
func (s *Server) Usage() Usage {
	s.bounds.mu.Lock()
	defer s.bounds.mu.Unlock()
	return s.bounds.Usage
}

// bounds counts what Limits bound.
type bounds struct {
	log *slog.Logger

	mu sync.Mutex
	Usage
	clients map[netip.Prefix]int // connections
	freed   chan struct{}        // closed when a connection ends or a limit changes; nil where nobody waits
	said    map[string]*said     // by message
}

// said is when a message was last logged, and how often it was not since then.
type said struct {
	at     time.Time
	missed int
}

// sayEvery is how often one message about a limit is logged, at the most: who
// meets one does so often.
const sayEvery = 10 * time.Second

func newBounds(log *slog.Logger) *bounds {
	return &bounds{log: log, clients: map[netip.Prefix]int{}, said: map[string]*said{}}
}

// say logs a warning. It is called with mu held and releases it: a log that hangs
// is to keep nobody else waiting.
func (b *bounds) say(message string, attrs ...any) {
	last := b.said[message]
	if last == nil {
		last = new(said)
		b.said[message] = last
	}
	if time.Since(last.at) < sayEvery {
		last.missed++
		b.mu.Unlock()
		return
	}
	times := last.missed + 1
	*last = said{at: time.Now()}
	b.mu.Unlock()
	b.log.Warn(message, append(attrs, "times_since", times)...)
}

// enter counts a connection, once there are fewer than limit, or returns false
// when ctx ends.
func (b *bounds) enter(ctx context.Context, limit func() int) bool {
	for delayed := false; ; delayed = true {
		most := limit() // not under mu
		b.mu.Lock()
		if b.Connections < most {
			b.Connections++
			b.mu.Unlock()
			return true
		}
		if b.freed == nil {
			b.freed = make(chan struct{})
		}
		freed := b.freed
		if delayed {
			b.mu.Unlock()
		} else {
			b.ConnectionsDelayed++
			b.say("limits.connections is reached: no more are accepted until others have ended", "connections", b.Connections)
		}
		select {
		case <-freed:
		case <-ctx.Done():
			return false
		}
	}
}

// wake has those who wait in enter look again. mu is held.
func (b *bounds) wake() {
	if b.freed != nil {
		close(b.freed)
		b.freed = nil
	}
}

// leave takes a connection away.
func (b *bounds) leave(client netip.Prefix) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.Connections--
	b.wake()
	if !client.IsValid() {
		return
	}
	if b.clients[client]--; b.clients[client] == 0 {
		delete(b.clients, client)
	}
}

// admit counts a connection for its client, unless that has enough.
func (b *bounds) admit(client netip.Prefix, limit int) error {
	b.mu.Lock()
	if b.clients[client] >= limit {
		b.ConnectionsRefused++
		b.say("limits.connections_per_address is reached: connections are closed", "remote", client.Addr(), "connections", b.clients[client])
		return errCrowd
	}
	b.clients[client]++
	b.mu.Unlock()
	return nil
}

// clientOf returns the part of an address that stands for one client.
func clientOf(addr net.Addr) netip.Prefix {
	tcp, ok := addr.(*net.TCPAddr)
	if !ok {
		return netip.Prefix{}
	}
	ip := tcp.AddrPort().Addr().Unmap().WithZone("")
	bits := 32
	if ip.Is6() {
		bits = 64
	}
	prefix, _ := ip.Prefix(bits)
	return prefix
}

// Why a connection ends.
var (
	errCrowd = errors.New("limits.connections_per_address is reached")
	errBusy  = errors.New("limits.handshakes is reached")
)

// begin counts a handshake.
func (b *bounds) begin(limit int) error {
	b.mu.Lock()
	if b.Handshakes >= limit {
		b.HandshakesRefused++
		b.say("limits.handshakes is reached: clients get the alert internal_error", "handshakes", b.Handshakes)
		return errBusy
	}
	b.Handshakes++
	b.mu.Unlock()
	return nil
}

// end takes a handshake away.
func (b *bounds) end() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.Handshakes--
}

// stallWriter bounds how long a client of HTTP/2 may leave a piece of its answer
// untaken: for HTTP/1.1 conn sees to it, but here what is sent waits for the
// stream's window (RFC 9113, Section 5.2).
type stallWriter struct {
	http.ResponseWriter
	control *http.ResponseController
	timeout time.Duration
}

func newStallWriter(w http.ResponseWriter, timeout time.Duration) *stallWriter {
	return &stallWriter{w, http.NewResponseController(w), timeout}
}

// Unwrap is for http.ResponseController.
func (w *stallWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }

// Write writes.
func (w *stallWriter) Write(b []byte) (int, error) {
	w.bound()
	defer w.unbound()
	return w.ResponseWriter.Write(b)
}

// FlushError sends what is buffered.
func (w *stallWriter) FlushError() error {
	w.bound()
	defer w.unbound()
	return w.control.Flush()
}

// bound begins the time. Called once the handler is done, it is for what net/http
// still has in its buffer then.
func (w *stallWriter) bound() {
	_ = w.control.SetWriteDeadline(time.Now().Add(w.timeout)) // HTTP/2 has it
}

func (w *stallWriter) unbound() { _ = w.control.SetWriteDeadline(time.Time{}) }
