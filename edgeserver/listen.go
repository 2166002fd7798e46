package edgeserver

import (
	"fmt"
	"net"
	"slices"
	"strings"
)

// listener is what ListenAndServe has for an address.
type listener struct {
	addr        string         // as in Config.Listen
	sockets     []net.Listener // one, or those of systemd
	handshakers []*handshaker  // once they run
}

// socketName returns the NAME in "systemd:NAME".
func socketName(addr string) (string, bool) { return strings.CutPrefix(addr, "systemd:") }

// open listens on the i-th of c.Listen.
func (c *Config) open(i int) (_ *listener, err error) {
	l := &listener{addr: c.Listen[i]}
	name, inherited := socketName(l.addr)
	switch {
	case !inherited:
		var socket net.Listener
		socket, err = net.Listen("tcp", l.addr)
		l.sockets = []net.Listener{socket}
	case c.Sockets == nil:
		err = fmt.Errorf("there is no socket named '%s'", name)
	default:
		l.sockets, err = c.Sockets(name)
	}
	if err != nil {
		return nil, c.errorAt(fmt.Sprintf("listen[%d]", i), err)
	}
	return l, nil
}

func closeAll(listeners []*listener) {
	for _, l := range listeners {
		for _, socket := range l.sockets {
			socket.Close()
		}
	}
}

// openNew listens on the addresses of cfg on which ListenAndServe does not yet.
func (s *Server) openNew(cfg *Config) (added []*listener, err error) {
	s.mu.Lock()
	listening, there := s.listeners != nil, slices.Clone(s.listeners)
	s.mu.Unlock()
	if !listening {
		return nil, nil
	}
	for i, addr := range cfg.Listen {
		// The same address can be there twice, with port 0.
		if have := slices.IndexFunc(there, func(l *listener) bool { return l.addr == addr }); have >= 0 {
			there = slices.Delete(there, have, have+1)
			continue
		}
		l, err := cfg.open(i)
		if err != nil {
			closeAll(added)
			return nil, err
		}
		added = append(added, l)
	}
	return added, nil
}

// Listen opens the addresses in Config.Listen and begins to serve on them, with
// which ListenAndServe then goes on.
func (s *Server) Listen() error {
	s.reloading.Lock()
	defer s.reloading.Unlock()
	s.mu.Lock()
	listening := s.listeners != nil
	if !listening {
		s.listeners = []*listener{}
	}
	s.mu.Unlock()
	if listening {
		return nil
	}
	all, err := s.openNew(&s.current().cfg)
	s.mu.Lock()
	defer s.mu.Unlock()
	if err != nil {
		s.listeners = nil
		return err
	}
	s.changeListeners(nil, all)
	return nil
}

// ListenAndServe calls Serve for each address in Config.Listen. It returns nil
// after Shutdown or Close; if one of the addresses fails, it closes the Server.
func (s *Server) ListenAndServe() error {
	if err := s.Listen(); err != nil {
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

// serve serves on l. s.mu is held.
func (s *Server) serve(l *listener) {
	for _, socket := range l.sockets {
		h := s.acceptLocked(socket, nil)
		l.handshakers = append(l.handshakers, h)
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
		for _, h := range l.handshakers {
			h.retire()
		}
	}
	for _, l := range added {
		s.serve(l)
	}
	s.listeners = append(kept, added...)
}
