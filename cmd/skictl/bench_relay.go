package main

import (
	"net"
	"sync"
	"sync/atomic"
)

// relay stands between this process and a key server and counts what goes
// through.
type relay struct {
	sent, received, sentDatagrams, receivedDatagrams atomic.Int64

	udp      *net.UDPConn
	tcp      net.Listener
	mu       sync.Mutex
	closed   bool
	open     []net.Conn
	forwards sync.WaitGroup
}

func newRelay(t target) (*relay, error) {
	r := &relay{}
	if t.scheme == "coaps" {
		return r, r.relayUDP(t.addr)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	r.tcp = l
	r.forwards.Go(func() { r.accept(t.addr) })
	return r, nil
}

func (r *relay) addr() string {
	if r.udp != nil {
		return r.udp.LocalAddr().String()
	}
	return r.tcp.Addr().String()
}

func (r *relay) Close() error {
	r.mu.Lock()
	r.closed = true
	for _, c := range r.open {
		_ = c.Close()
	}
	r.mu.Unlock()
	if r.tcp != nil {
		_ = r.tcp.Close()
	}
	r.forwards.Wait()
	return nil
}

// keep closes c with the relay. It reports false if that is closed already.
func (r *relay) keep(c net.Conn) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed {
		_ = c.Close()
		return false
	}
	r.open = append(r.open, c)
	return true
}

// relayUDP has one client: the answers go to whom the last datagram came from.
func (r *relay) relayUDP(addr string) error {
	front, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		return err
	}
	back, err := net.Dial("udp", addr)
	if err != nil {
		_ = front.Close()
		return err
	}
	r.udp = front
	r.keep(front)
	r.keep(back)
	var client atomic.Pointer[net.UDPAddr]
	r.forwards.Go(func() {
		buf := make([]byte, 1<<16)
		for {
			n, from, err := front.ReadFromUDP(buf)
			if err != nil {
				return
			}
			client.Store(from)
			r.sent.Add(int64(n))
			r.sentDatagrams.Add(1)
			_, _ = back.Write(buf[:n])
		}
	})
	r.forwards.Go(func() {
		buf := make([]byte, 1<<16)
		for {
			n, err := back.Read(buf)
			if err != nil {
				return
			}
			r.received.Add(int64(n))
			r.receivedDatagrams.Add(1)
			if to := client.Load(); to != nil {
				_, _ = front.WriteToUDP(buf[:n], to)
			}
		}
	})
	return nil
}

func (r *relay) accept(addr string) {
	for {
		front, err := r.tcp.Accept()
		if err != nil {
			return
		}
		back, err := net.Dial("tcp", addr)
		if err != nil {
			_ = front.Close()
			continue
		}
		if !r.keep(front) || !r.keep(back) {
			return
		}
		r.forwards.Go(func() { forward(back, front, &r.sent) })
		r.forwards.Go(func() { forward(front, back, &r.received) })
	}
}

func forward(to, from net.Conn, count *atomic.Int64) {
	buf := make([]byte, 1<<15)
	for {
		n, err := from.Read(buf)
		count.Add(int64(n))
		if n > 0 {
			_, _ = to.Write(buf[:n])
		}
		if err != nil {
			_ = to.Close()
			return
		}
	}
}

// traffic is what has gone through.
type traffic struct{ sent, received, sentDatagrams, receivedDatagrams int64 }

func (r *relay) counted() traffic {
	return traffic{r.sent.Load(), r.received.Load(), r.sentDatagrams.Load(), r.receivedDatagrams.Load()}
}

func (t traffic) since(before traffic, operations int) *benchTraffic {
	n := float64(operations)
	return &benchTraffic{
		BytesSent:         float64(t.sent-before.sent) / n,
		BytesReceived:     float64(t.received-before.received) / n,
		DatagramsSent:     float64(t.sentDatagrams-before.sentDatagrams) / n,
		DatagramsReceived: float64(t.receivedDatagrams-before.receivedDatagrams) / n,
	}
}
