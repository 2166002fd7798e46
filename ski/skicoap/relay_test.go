package skicoap

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// relay passes datagrams between clients and a server as a bad network does.
type relay struct {
	t      *testing.T
	server string
	front  *net.UDPConn

	drop      atomic.Bool
	upLimit   atomic.Int64 // bytes of a datagram to the server, above which it is lost; 0: none
	downLimit atomic.Int64 // and to the client
	over      atomic.Int64 // datagrams lost because of these
	lossEvery atomic.Int64 // loses one datagram in so many; 0: none
	count     atomic.Int64
	up        atomic.Int64                // datagrams to the server
	upMost    atomic.Int64                // of them, after which they are lost; 0: none
	longest   atomic.Int64                // bytes in a datagram, either way
	hellos    atomic.Int64                // different ClientHellos without a cookie: handshakes
	down      atomic.Pointer[func(n int)] // is told the length of each datagram to the client
	upward    atomic.Pointer[func(n int)] // and to the server
	faults    atomic.Pointer[faults]

	running sync.WaitGroup // goroutines and datagrams that are held back
	mu      sync.Mutex
	random  *rand.Rand
	backs   map[string]*back // by the client's address
	closed  bool
}

// back is the side of a relay to the server, for one client.
type back struct {
	conn   net.Conn
	client *net.UDPAddr
}

// faults are the parts of the datagrams that something happens to, either way,
// and how long each is under way.
type faults struct {
	lost, doubled, held float64 // held back for up to 3 delays more
	delay               time.Duration
}

func newRelay(t *testing.T, server string) *relay {
	t.Helper()
	front, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	require.NoError(t, err)
	_ = front.SetReadBuffer(4 << 20)
	r := &relay{t: t, server: server, front: front, random: rand.New(rand.NewPCG(1, 2)), backs: map[string]*back{}}
	r.running.Go(r.forward)
	t.Cleanup(func() {
		_ = front.Close()
		r.mu.Lock()
		r.closed = true
		for _, b := range r.backs {
			_ = b.conn.Close()
		}
		r.mu.Unlock()
		r.running.Wait()
	})
	return r
}

func (r *relay) addr() string { return r.front.LocalAddr().String() }

func (r *relay) forward() {
	buf := make([]byte, 65536)
	randoms := map[string]bool{}
	for {
		n, from, err := r.front.ReadFromUDP(buf)
		if err != nil {
			return
		}
		r.mu.Lock()
		b := r.backs[from.String()]
		if b == nil {
			b = &back{client: from}
			r.backs[from.String()] = b
			r.open(b)
		}
		conn := b.conn
		r.mu.Unlock()
		up, most := r.up.Add(1), r.upMost.Load()
		if most > 0 && up > most {
			continue
		}
		if upward := r.upward.Load(); upward != nil {
			(*upward)(n)
		}
		if r.isOver(n, &r.upLimit) {
			continue
		}
		if hello, _, ok := nextPiece(buf[:n]); ok && hello.sequence == 0 && len(hello.data) >= 34 {
			randoms[string(hello.data[2:34])] = true
			r.hellos.Store(int64(len(randoms)))
		}
		r.pass(buf[:n], func(d []byte) { _, _ = conn.Write(d) })
	}
}

func (r *relay) isOver(n int, limit *atomic.Int64) bool {
	if limit.Load() == 0 || int64(n) <= limit.Load() {
		return false
	}
	r.over.Add(1)
	return true
}

// open gives a client a port of the relay's; r.mu is held.
func (r *relay) open(b *back) {
	if r.closed {
		return
	}
	conn, err := net.Dial("udp", r.server)
	require.NoError(r.t, err)
	_ = conn.(*net.UDPConn).SetReadBuffer(4 << 20)
	b.conn = conn
	r.running.Go(func() {
		buf := make([]byte, 65536)
		for {
			n, err := conn.Read(buf)
			if err != nil {
				if !errors.Is(err, net.ErrClosed) {
					continue // nobody listens
				}
				return
			}
			if down := r.down.Load(); down != nil {
				(*down)(n)
			}
			if r.isOver(n, &r.downLimit) {
				continue
			}
			r.pass(buf[:n], func(d []byte) { _, _ = r.front.WriteToUDP(d, b.client) })
		}
	})
}

// rebind gives each client another port, as a NAT does that has forgotten it.
func (r *relay) rebind() {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, b := range r.backs {
		_ = b.conn.Close()
		r.open(b)
	}
}

// inject sends a datagram both ways, as if it came from the other side.
func (r *relay) inject(datagram []byte) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, b := range r.backs {
		_, _ = b.conn.Write(datagram)
		_, _ = r.front.WriteToUDP(datagram, b.client)
	}
}

func (r *relay) pass(datagram []byte, write func([]byte)) {
	for n := int64(len(datagram)); ; {
		if old := r.longest.Load(); n <= old || r.longest.CompareAndSwap(old, n) {
			break
		}
	}
	every := r.lossEvery.Load()
	if r.drop.Load() || every > 0 && r.count.Add(1)%every == 0 {
		return
	}
	f := r.faults.Load()
	if f == nil {
		write(datagram)
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	copies := 1
	switch x := r.random.Float64(); {
	case x < f.lost:
		return
	case x < f.lost+f.doubled:
		copies = 2
	}
	datagram = bytes.Clone(datagram)
	for range copies {
		delay := f.delay
		if r.random.Float64() < f.held {
			delay += time.Duration(3 * r.random.Float64() * float64(f.delay))
		}
		if r.closed {
			return
		}
		r.running.Add(1)
		time.AfterFunc(delay, func() {
			defer r.running.Done()
			write(datagram)
		})
	}
}
