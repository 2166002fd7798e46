package cmd_test

import (
	"crypto/tls"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"

	"github.com/tlsski/tlsski/internal/netlab"
)

// A fifth of the packets between edge server and key server is lost each way, on a
// path of 20 ms, and no client's handshake fails for it.
func TestNoHandshakeFailsWithAFifthOfThePacketsLostEachWay(t *testing.T) {
	t.Parallel()
	s := newFarSite(t)
	s.start()
	s.logged("edge.log", "the key server has the key")
	s.path.Set(netlab.Conditions{Delay: 10 * time.Millisecond, Loss: 0.2, Seed: 7})
	const workers, each = 20, 10
	var all sync.WaitGroup
	for i := range workers {
		all.Go(func() {
			for range each {
				_, err := s.get(&tls.Config{MaxVersion: []uint16{tls.VersionTLS12, tls.VersionTLS13}[i%2]})
				assert.NoError(t, err)
			}
		})
	}
	all.Wait()
	assert.Greater(t, s.path.From(s.edge).Counts().Lost, uint64(workers*each/10), "real loss")
	assert.Greater(t, s.path.From(s.keys).Counts().Lost, uint64(workers*each/10))
}
