package main

import (
	"net"
	"sync"
	"sync/atomic"
	"time"
)

// relay carries one client's datagrams to a server and back, each after half of a
// round trip, from an address of its own.
type relay struct {
	front, back net.PacketConn
	running     sync.WaitGroup
}

func newRelay(from, to string, roundTrip time.Duration) (*relay, error) {
	server, err := net.ResolveUDPAddr("udp", to)
	if err != nil {
		return nil, err
	}
	front, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	back, err := net.ListenPacket("udp", net.JoinHostPort(from, "0"))
	if err != nil {
		front.Close()
		return nil, err
	}
	r := &relay{front: front, back: back}
	var client atomic.Pointer[net.Addr] // the last one: each attempt has a port of its own
	r.running.Go(func() {
		r.carry(front, func(from net.Addr, b []byte) {
			client.Store(&from)
			time.AfterFunc(roundTrip/2, func() { _, _ = back.WriteTo(b, server) })
		})
	})
	r.running.Go(func() {
		r.carry(back, func(_ net.Addr, b []byte) {
			to := *client.Load() // it has asked
			time.AfterFunc(roundTrip/2, func() { _, _ = front.WriteTo(b, to) })
		})
	})
	return r, nil
}

func (r *relay) carry(from net.PacketConn, pass func(from net.Addr, b []byte)) {
	for {
		buf := make([]byte, 4096)
		n, addr, err := from.ReadFrom(buf)
		if err != nil {
			return
		}
		pass(addr, buf[:n])
	}
}

func (r *relay) addr() string { return r.front.LocalAddr().String() }

func (r *relay) close() {
	r.front.Close()
	r.back.Close()
	r.running.Wait()
}
