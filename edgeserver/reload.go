package edgeserver

import (
	"fmt"
	"net"
	"net/http"
	"slices"

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
	s.reloading.Lock()
	defer s.reloading.Unlock()
	before := s.current()
	g, err := s.newGeneration(cfg, func(name string) ski.Transport { return transports[name] }, before)
	if err != nil {
		return nil, err
	}
	added, err := s.openNew(&g.cfg)
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
	before.old.Store(true)
	if before.feeds.stop() {
		g.feeds.start(s.ctx, g.sites.all, s.log)
	}
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

// listener is one of ListenAndServe's.
type listener struct {
	addr string // as in Config.Listen
	net.Listener
	handshaker *handshaker // once it runs
}

// open listens on addr.
func open(addr string) (*listener, error) {
	l, err := net.Listen("tcp", addr)
	if err != nil {
		return nil, err
	}
	return &listener{addr: addr, Listener: l}, nil
}

func closeAll(listeners []*listener) {
	for _, l := range listeners {
		l.Close()
	}
}

// openNew listens on the addresses of cfg on which ListenAndServe does not yet.
func (s *Server) openNew(cfg *Config) (added []*listener, err error) {
	s.mu.Lock()
	listening, listeners := s.listeners != nil, slices.Clone(s.listeners)
	s.mu.Unlock()
	if !listening {
		return nil, nil
	}
	for i, addr := range cfg.Listen {
		if have := slices.IndexFunc(listeners, func(l *listener) bool { return l.addr == addr }); have >= 0 {
			listeners = slices.Delete(listeners, have, have+1) // The same address can be there twice, with port 0.
			continue
		}
		l, err := open(addr)
		if err != nil {
			closeAll(added)
			return nil, cfg.errorAt(fmt.Sprintf("listen[%d]", i), err)
		}
		added = append(added, l)
	}
	return added, nil
}

// ListenAndServe calls Serve for each address in Config.Listen. It returns nil
// after Shutdown or Close; if one of the addresses fails, it closes the Server.
func (s *Server) ListenAndServe() error {
	if err := s.listen(); err != nil {
		return err
	}
	<-s.stopping
	s.serving.Wait()
	select {
	case err := <-s.failed:
		return err
	default:
		return nil
	}
}

// listen opens all addresses and serves on them.
func (s *Server) listen() error {
	s.reloading.Lock()
	defer s.reloading.Unlock()
	var all []*listener
	for _, addr := range s.current().cfg.Listen {
		l, err := open(addr)
		if err != nil {
			closeAll(all)
			return err
		}
		all = append(all, l)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.listeners = all
	for _, l := range all {
		s.serve(l)
	}
	return nil
}

// serve serves on l. s.mu is held.
func (s *Server) serve(l *listener) {
	h := s.acceptLocked(l.Listener, nil)
	l.handshaker = h
	s.serving.Go(func() {
		if err := s.run(h); err != nil {
			select {
			case s.failed <- err:
			default: // Another one was first.
			}
			s.Close()
		}
	})
}

// changeListeners serves on those added, and no more on those whose address is
// not among want. s.mu is held.
func (s *Server) changeListeners(want []string, added []*listener) {
	want = slices.Clone(want)
	kept := []*listener{}
	for _, l := range s.listeners {
		if i := slices.Index(want, l.addr); i >= 0 {
			want = slices.Delete(want, i, i+1)
			kept = append(kept, l)
			continue
		}
		s.log.Info("not listening any more", "addr", l.Addr().String())
		l.handshaker.retire()
	}
	for _, l := range added {
		s.serve(l)
	}
	s.listeners = append(kept, added...)
}
