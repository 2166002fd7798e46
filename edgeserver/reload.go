package edgeserver

import (
	"net/http"

	"github.com/tlsski/tlsski/ski"
)

// Reload makes cfg what new connections get, with its sites' certificates,
// origins and key servers, and transports as in NewWithKeyServers. Connections
// that there are go on as they were; in the answer to its next request a client
// is asked to make a new one. Sessions of a site can be resumed at the site
// that has the same first name and addresses.
//
// Where ListenAndServe serves, it is on the addresses of cfg.Listen from now on:
// those that are new are opened before anything else is changed, those that are
// gone are closed.
//
// After an error, which is as those of New, all is as it was before. Otherwise
// ended is closed when the last connection of the configuration before has
// ended, for whoever has Transports to close.
func (s *Server) Reload(cfg Config, transports map[string]ski.Transport) (ended <-chan struct{}, err error) {
	return s.ReloadIf(cfg, transports, nil)
}

// ReloadIf is Reload, if check, which is called with what Sites will return, has no
// error. A nil check has none. The transports are not used before that.
func (s *Server) ReloadIf(cfg Config, transports map[string]ski.Transport, check func([]SiteInfo) error) (ended <-chan struct{}, err error) {
	s.reloading.Lock()
	defer s.reloading.Unlock()
	before := s.current()
	g, err := s.newGeneration(cfg, func(name string) ski.Transport { return transports[name] }, before)
	if err != nil {
		return nil, err
	}
	if check != nil {
		err = check(g.sites.infos())
	}
	var added []*listener
	if err == nil {
		added, err = s.openNew(&g.cfg)
	}
	if err != nil {
		g.close()
		return nil, err
	}
	if !s.replace(g, added) {
		closeAll(added)
		g.close()
		return nil, http.ErrServerClosed
	}
	return before.ended, nil
}

// replace makes g the current generation, and lets the one before end when
// nobody uses it any more. It returns false where the Server has been stopped.
func (s *Server) replace(g *generation, added []*listener) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.stopped {
		return false
	}
	before := s.now
	s.now = g
	s.living[g] = struct{}{}
	s.bounds.mu.Lock()
	s.bounds.wake() // The limit may be another one.
	s.bounds.mu.Unlock()
	s.metrics.serve(g.sites)
	before.old.Store(true)
	if before.feeds.stop() {
		g.feeds.start(s.ctx, g.sites.all, s.log)
	}
	before.asks.stop()
	g.asks.start(s, g.sites.all)
	before.sites.forgetTickets(g.sites)
	before.release()
	s.retiring.Go(func() {
		select {
		case <-before.free:
		case <-s.ctx.Done():
		}
		before.close()
		s.mu.Lock()
		defer s.mu.Unlock()
		delete(s.living, before)
	})
	if s.listeners != nil {
		s.changeListeners(g.cfg.Listen, added)
	}
	return true
}
