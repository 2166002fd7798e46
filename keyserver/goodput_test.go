package keyserver

import (
	"context"
	"fmt"
	"math/rand/v2"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"

	"github.com/tlsski/tlsski/ski"
)

// busyKeyServer does operations of 10 ms, one at a time. Over CoAP it does not learn
// that an edge waits no longer.
type busyKeyServer struct {
	tu      *turns
	asked   atomic.Int64
	serving sync.WaitGroup
}

func (s *busyKeyServer) serve(edge string) *ski.Response {
	s.asked.Add(1)
	if s.tu.begin(context.Background(), edge) != nil {
		return ski.Busy(retryOverloaded)
	}
	const cost = 10 * time.Millisecond
	time.Sleep(cost)
	s.tu.end(cost)
	return &ski.Response{Output: []byte{1}}
}

// busyTransport is an edge's way to a busyKeyServer.
type busyTransport struct {
	server *busyKeyServer
	edge   string
}

func (t *busyTransport) RoundTrip(ctx context.Context, _ *ski.Request) (*ski.Response, error) {
	answer := make(chan *ski.Response, 1)
	t.server.serving.Go(func() { answer <- t.server.serve(t.edge) })
	select {
	case resp := <-answer:
		return resp, nil
	case <-ctx.Done():
		return nil, &ski.TransportError{Endpoint: "coaps://ks", Op: "read", Err: ctx.Err()}
	}
}

// Whatever is asked of them, key servers do what they can, for edges that still wait;
// and the edges take none of them for dead.
func TestBusyKeyServersDoWhatTheyCan(t *testing.T) {
	for _, balance := range []ski.Balance{ski.Failover, ski.RoundRobin} {
		for _, edges := range []int{1, 20} {
			for servers := 1; servers <= 3; servers++ {
				for _, load := range []float64{0.9, 1.5, 3} {
					t.Run(fmt.Sprintf("%s %d edges %d key servers %.1f", balance, edges, servers, load), func(t *testing.T) {
						synctest.Test(t, func(t *testing.T) { testBusy(t, balance, edges, servers, load) })
					})
				}
			}
		}
	}
}

func testBusy(t *testing.T, balance ski.Balance, edges, servers int, load float64) {
	var down, served atomic.Int64
	all := make([]*busyKeyServer, servers)
	for i := range all {
		all[i] = &busyKeyServer{tu: newTurns(1, DefaultMaxWait)}
	}
	clients := make([]*ski.Client, edges)
	for i := range clients {
		c := &ski.Client{Balance: balance, OnHealth: func(h ski.Health) {
			if !h.Answers {
				down.Add(1)
			}
		}}
		for _, s := range all {
			c.Transports = append(c.Transports, &busyTransport{s, strconv.Itoa(i)})
		}
		clients[i] = c
		defer c.Close()
	}
	const from, to = 8 * time.Second, 20 * time.Second
	possible := 100 * float64(servers)
	begun := time.Now()
	var waiting sync.WaitGroup
	requests := 0
	for ; time.Since(begun) < to; requests++ {
		time.Sleep(time.Duration(rand.ExpFloat64() / (load * possible) * float64(time.Second)))
		c := clients[requests%edges]
		waiting.Go(func() {
			resp, err := c.RoundTrip(context.Background(), &ski.Request{Protocol: ski.TLS12, Hash: ski.SHA256, Input: make([]byte, 64)})
			if now := time.Since(begun); err == nil && resp.Error == "" && now > from && now < to {
				served.Add(1)
			}
		})
	}
	waiting.Wait()
	asked := int64(0)
	for _, s := range all {
		s.serving.Wait()
		asked += s.asked.Load()
	}
	goodput := float64(served.Load()) / ((to - from).Seconds() * possible * min(load, 1))
	t.Logf("goodput %.2f, asked %.2f times", goodput, float64(asked)/float64(requests))
	assert.Greater(t, goodput, 0.8)
	assert.Less(t, float64(asked)/float64(requests), 1.35)
	assert.Zero(t, down.Load())
}
