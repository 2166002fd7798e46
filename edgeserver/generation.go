package edgeserver

import (
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/tlsski/tlsski/ski"
)

// generation is what a Server has made of one Config. It is not changed once
// made, but for a certificate that had to wait for its key: a Reload makes another. A connection keeps to the one that was current
// when it was accepted, and the generation is there until the last of them has
// ended.
type generation struct {
	cfg     Config
	sites   *sites
	engines engines
	timeout time.Duration // of a handshake
	keys    *keyLog
	feeds   ticketFeeds
	asks    asks

	*refs                 // the connections, what goes on on them, and the Server while this is current
	old      atomic.Bool  // another one is current
	draining *atomic.Bool // the Server's
	ended    chan struct{}

	ending sync.Once
}

// newGeneration opens the files that cfg names. What a site of before, which may
// be nil, has for those that come back to it goes over to the same site.
func (s *Server) newGeneration(cfg Config, transport func(name string) ski.Transport, before *generation) (*generation, error) {
	cfg = cfg.withDefaults()
	if err := cfg.validate(); err != nil {
		return nil, err
	}
	g := &generation{cfg: cfg, refs: newRefs(), draining: &s.draining, ended: make(chan struct{})}
	for i, site := range cfg.Sites {
		if transport(site.KeyServer) == nil {
			return nil, cfg.errorf(fmt.Sprintf("sites[%d].keyserver", i), "there is no Transport for it")
		}
		timeout := cfg.keyServer(site.KeyServer).Timeout
		if site.Method == string(ski.MethodECDHEPMS) { // It asks twice.
			timeout *= 2
		}
		g.timeout = max(g.timeout, timeout+cfg.Limits.HandshakeTimeout)
	}
	var err error
	var sitesBefore *sites
	if before != nil {
		sitesBefore = before.sites
	}
	if g.sites, err = newSites(&cfg, transport, sitesBefore, s.clock(), s.log); err != nil {
		return nil, err
	}
	if err = s.logs.openAccessLogs(&cfg, g.sites); err != nil {
		g.sites.close()
		return nil, err
	}
	if cfg.KeyLog != "" {
		if g.keys, err = s.keyLogs.openKeyLog(cfg.KeyLog); err != nil {
			g.sites.close()
			return nil, cfg.errorAt("key_log", err)
		}
		s.log.Warn("key_log writes down the secrets of every connection: who reads the file reads them all", "file", cfg.KeyLog)
	}
	g.sites.keepTickets(sitesBefore)
	g.engines = newEngines(g.sites, newTLSConfig(g.sites, g.keys))
	for _, site := range g.sites.all {
		site.web = &web{Server: s.newHTTP(g, site), ready: newHTTPListener()}
	}
	return g, nil
}

// close ends what g has open, and its connections for HTTP, if any are left.
func (g *generation) close() error {
	err := g.sites.disconnect()
	g.ending.Do(func() {
		g.feeds.close()
		g.asks.close()
		g.sites.close()
		g.keys.Close()
		close(g.ended)
	})
	return err
}

// refs counts who uses something.
type refs struct {
	mu   sync.Mutex
	n    int
	free chan struct{} // closed when nobody does any more
}

// newRefs returns refs with one user.
func newRefs() *refs { return &refs{n: 1, free: make(chan struct{})} }

// acquire adds a user. It returns false where the last has left already.
func (r *refs) acquire() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.n == 0 {
		return false
	}
	r.n++
	return true
}

// release takes one away.
func (r *refs) release() {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.n--; r.n == 0 {
		close(r.free)
	}
}
