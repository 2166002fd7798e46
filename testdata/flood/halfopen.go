package main

import (
	"crypto/rand"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

const (
	coapsTCPAddr = "127.0.0.1:5684"
	httpsAddr    = "127.0.0.1:8443"
	// halfOpenRate is how many half-open handshakes begin in a second.
	halfOpenRate = 1000
)

// source is one of many addresses of this machine.
func source(i int) net.IP { return net.IPv4(127, 100+byte(i>>14), byte(i>>7)&0x7f, 1+byte(i&0x7f)) }

// stoppers are peers that begin handshakes and do not go on with them.
type stoppers struct {
	socks          []net.Conn
	begun          atomic.Int64
	sent, received atomic.Int64 // bytes
}

func (s *stoppers) close() {
	for _, c := range s.socks {
		c.Close()
	}
	s.socks = nil
}

// begin opens the handshakes, at halfOpenRate.
func (s *stoppers) begin(from, to int, open func(i int) (net.Conn, error)) error {
	const workers = 16
	var wg sync.WaitGroup
	var mu sync.Mutex
	var failed error
	began := time.Now()
	next := atomic.Int64{}
	next.Store(int64(from))
	for range workers {
		wg.Go(func() {
			for {
				i := int(next.Add(1)) - 1
				if i >= to {
					return
				}
				time.Sleep(time.Until(began.Add(time.Duration(i-from) * time.Second / halfOpenRate)))
				c, err := open(i)
				mu.Lock()
				if err == nil {
					s.socks = append(s.socks, c)
				} else {
					failed = errors.Join(failed, err)
				}
				mu.Unlock()
				if err != nil {
					return
				}
			}
		})
	}
	wg.Wait()
	return failed
}

// overDTLS returns the cookie and says no more.
func (s *stoppers) overDTLS(i int) (net.Conn, error) {
	c, err := net.DialUDP("udp", &net.UDPAddr{IP: source(i)}, net.UDPAddrFromAddrPort(netip.MustParseAddrPort(keyServerAddr)))
	if err != nil {
		return nil, err
	}
	var random [32]byte
	rand.Read(random[:])
	buf := make([]byte, 4096)
	for try := range 20 {
		h := hello(0, random[:], nil)
		h[10] = byte(try)
		if _, err := c.Write(h); err != nil {
			return nil, err
		}
		s.sent.Add(int64(len(h)))
		_ = c.SetReadDeadline(time.Now().Add(time.Second))
		n, err := c.Read(buf)
		if errors.Is(err, os.ErrDeadlineExceeded) {
			continue // lost
		}
		if err != nil {
			return nil, err
		}
		s.received.Add(int64(n))
		const cookieAt = 13 + 12 + 2
		if n <= cookieAt || buf[13] != 3 {
			return nil, fmt.Errorf("no HelloVerifyRequest: %x", buf[:n])
		}
		h = hello(1, random[:], buf[cookieAt+1:n])
		h[10] = byte(try + 1)
		if _, err := c.Write(h); err != nil {
			return nil, err
		}
		s.sent.Add(int64(len(h)))
		s.begun.Add(1)
		return c, nil
	}
	return nil, errors.New("no HelloVerifyRequest in 20 s")
}

// drain counts what has come.
func (s *stoppers) drain() {
	buf := make([]byte, 4096)
	for _, c := range s.socks {
		_ = c.SetReadDeadline(time.Now().Add(time.Microsecond))
		for {
			n, err := c.Read(buf)
			if err != nil {
				break
			}
			s.received.Add(int64(n))
		}
	}
}

// halfOpen measures handshakes over DTLS that stop when their cookie has come back.
func (l *laboratory) halfOpen(text *strings.Builder) error {
	return l.keyServer(func(k *server) error {
		var s stoppers
		defer s.close()
		most := k.watch()
		beside := make(chan []float64, 1)
		failed := make(chan error, 1)
		go func() {
			time.Sleep(2 * time.Second)
			took, err := k.newEdges(3, "")
			beside <- took
			failed <- err
		}()
		known := make(chan []float64, 1)
		if err := s.begin(0, *half, s.overDTLS); err != nil {
			return err
		}
		took, err := <-beside, <-failed
		if err != nil {
			return fmt.Errorf("a new edge beside half-open handshakes: %w", err)
		}
		s.drain()
		s.close()
		go func() {
			took, err := k.newEdges(3, "127.0.0.1")
			known <- took
			failed <- err
		}()
		if err := s.begin(0, *half, s.overDTLS); err != nil {
			return err
		}
		tookKnown, err := <-known, <-failed
		if err != nil {
			return fmt.Errorf("a known edge beside half-open handshakes: %w", err)
		}
		time.Sleep(10 * time.Second) // the server's flights come to their end
		s.drain()
		memory, err := most()
		if err != nil {
			return err
		}
		if err := k.edge.ask(); err != nil {
			return fmt.Errorf("the session that was there: %w", err)
		}
		fmt.Fprintf(text, "\nHalf-open handshakes over DTLS, which return the cookie and stop: %d from as many addresses, %d begin in a second. Resident %.1f MiB idle, %.1f at most: %.2f x. "+
			"Three new edges beside them, one after the other, round trip %v: %s ms; three at an address that is known: %s ms. Sent back for each byte that came: %.1f.\n",
			s.begun.Load(), halfOpenRate, k.idle, memory, memory/k.idle, roundTrip, list(took), list(tookKnown),
			float64(s.received.Load())/float64(s.sent.Load()))
		return nil
	})
}

func list(all []float64) string {
	return strings.ReplaceAll(strings.Trim(fmt.Sprintf("%.0f", all), "[]"), " ", ", ")
}

// halfOpenTCP measures connections over TCP that stop after the ClientHello.
func (l *laboratory) halfOpenTCP(text *strings.Builder) error {
	for _, binding := range []struct{ scheme, addr, protocol string }{{"coaps+tcp", coapsTCPAddr, "coap"}, {"https", httpsAddr, "h2"}} {
		err := l.keyServer(func(k *server) error {
			var s stoppers
			defer s.close()
			most := k.watch()
			h, err := tlsHello(binding.protocol)
			if err != nil {
				return err
			}
			var took []string
			failed := make(chan error, 1)
			go func() {
				time.Sleep(2 * time.Second)
				for range 3 {
					began := time.Now()
					e, err := k.newEdge(binding.scheme + "://" + binding.addr)
					if err != nil {
						failed <- fmt.Errorf("a new edge beside half-open connections: %w", err)
						return
					}
					took = append(took, fmt.Sprint(time.Since(began).Milliseconds()))
					e.close()
				}
				failed <- nil
			}()
			err = s.begin(0, *half, func(i int) (net.Conn, error) {
				d := net.Dialer{LocalAddr: &net.TCPAddr{IP: source(i)}, Timeout: 20 * time.Second}
				c, err := d.Dial("tcp", binding.addr)
				if err == nil {
					_, _ = c.Write(h) // it may have had to give way
				}
				return c, err
			})
			if err != nil {
				return err
			}
			if err := <-failed; err != nil {
				return err
			}
			memory, err := most()
			if err != nil {
				return err
			}
			fmt.Fprintf(text, "\nHalf-open connections over %s, which send a ClientHello and stop: %d from as many addresses, %d begin in a second. Resident %.1f MiB idle, %.1f at most: %.2f x. Three new edges beside them, one after the other, without a round trip: %s ms.\n",
				binding.scheme, len(s.socks), halfOpenRate, k.idle, memory, memory/k.idle, strings.Join(took, ", "))
			return nil
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// tlsHello is what a TLS client sends first.
func tlsHello(protocol string) ([]byte, error) {
	client, server := net.Pipe()
	defer server.Close()
	go func() {
		_ = tls.Client(client, &tls.Config{InsecureSkipVerify: true, NextProtos: []string{protocol}}).Handshake()
		client.Close()
	}()
	buf := make([]byte, 4096)
	n, err := server.Read(buf)
	return buf[:n], err
}
