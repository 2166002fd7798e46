package keyserver

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/tlsski/tlsski/ski"
)

// Sessions is what a binding lets be done with the sessions it has.
// *skicoap.Server and *skihttp.Server are some.
type Sessions interface {
	// Peers returns the peer of each live session.
	Peers() []ski.Peer
	// CloseSessions closes the sessions of the peers that match, and returns
	// how many there were. Their ticket keys are taken from them, unless the
	// reason is net.ErrClosed.
	CloseSessions(reason error, match func(ski.Peer) bool) int
}

// Handshakes is what Sessions may be too, so that Metrics count them.
// *skicoap.Server and *skihttp.Server are.
type Handshakes interface {
	// Handshakes returns how many ClientHellos were answered with a cookie
	// alone, and how many handshakes were given up because there were too many.
	Handshakes() (cookies, givenUp uint64)
}

// Why a binding is told to close a session.
var (
	errCutOff     = errors.New("the edge is cut off")
	errKeyChanged = errors.New("the edge's pre-shared key is another now")
)

// SetSessions tells the Server of the sessions that Enforce closes, those of
// each binding. It is called before there are any.
func (s *Server) SetSessions(sessions ...Sessions) { s.sessions = sessions }

// Admit reports whether a peer may have a session. The error, which is for the
// log, says why not: the policy does not know it, its certificate is revoked, no
// CRL that has not expired says whether it is (RefuseExpired),
// or the edge is suspended. Bindings call it after the handshake.
func (s *Server) Admit(peer ski.Peer) error {
	edges := s.policy.Load().match(peer)
	if reason := s.cutOff(peer, edges); reason != "" {
		return errors.New(reason)
	}
	if len(edges) == 0 {
		return errors.New(denialUnknownPeer)
	}
	return nil
}

// watchInterval is how often Watch looks: twice within the second in which a
// revocation has to be in effect.
const watchInterval = 500 * time.Millisecond

// Watch reads the CRLs and the pre-shared keys again when their files change,
// and closes the sessions that may not be any more, those of edges that a new policy does not know
// included, until ctx ends. It turns the TicketRatchet too.
func (s *Server) Watch(ctx context.Context) {
	var state sync.WaitGroup
	defer state.Wait()
	// A disk that hangs does not keep edges from being cut off.
	for _, keep := range []func(context.Context, <-chan time.Time){s.keepTickets, s.keepSuspensions} {
		state.Go(func() {
			tick := time.NewTicker(time.Second)
			defer tick.Stop()
			keep(ctx, tick.C)
		})
	}
	tick := time.NewTicker(watchInterval)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		if s.revocations != nil {
			s.reloadRevocations()
		}
		_ = s.reloadPSKs(false) // which logs by itself
		s.Enforce()
	}
}

// keepSuspensions writes those to the state file that could not be written
// when they came.
func (s *Server) keepSuspensions(ctx context.Context, tick <-chan time.Time) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick:
		}
		if s.suspensions.keepAgain() {
			s.log.Info("the state file has the suspensions again")
		}
	}
}

func (s *Server) reloadRevocations() {
	changed, err := s.revocations.Reload()
	if err != nil {
		s.log.Error("the CRLs stay as they were", "error", err)
	}
	if changed {
		s.tickets.change()
		s.log.Info("CRLs read", "revoked", s.revocations.Len())
	}
	level := slog.LevelWarn
	if s.revocations.refuse {
		level = slog.LevelError
	}
	for _, line := range s.revocations.news(changed) {
		s.log.Log(context.Background(), level, "CRL", "what", line)
	}
}

// Enforce closes the sessions of all peers that Admit refuses now, and returns
// how many there were.
func (s *Server) Enforce() int {
	n := s.closeSessions(errUnsure, s.unsure)
	return n + s.closeSessions(errCutOff, func(p ski.Peer) bool { return s.Admit(p) != nil })
}

func (s *Server) closeSessions(reason error, match func(ski.Peer) bool) (n int) {
	for _, sessions := range s.sessions {
		n += sessions.CloseSessions(reason, match)
	}
	if n > 0 {
		s.log.Warn("sessions closed", "reason", reason, "sessions", n)
	}
	return n
}

// cutOff returns why nothing is answered to a peer but 'request denied',
// whatever the policy grants; "" if it is answered. Sessions end within a
// moment, but requests that are on their way are refused at once.
func (s *Server) cutOff(peer ski.Peer, edges []*edge) string {
	if s.revocations != nil && peer.Certificate != nil {
		if reason := s.revocations.revoked(peer.Certificate); reason != "" {
			return reason
		}
	}
	if peer.PSK != "" && s.psks != nil {
		if reason := s.psks.unusable(peer.PSK); reason != "" {
			return reason
		}
	}
	if one, ok := s.suspensions.find(peer, edges); ok {
		return one.String()
	}
	return ""
}

// Suspend cuts an edge of the policy off, or the holder of one certificate or
// pre-shared key by its ski.PeerID: requests are denied from now on, and live sessions are
// closed. It returns how many were. The edge is cut off even if the error says
// that this could not be kept for after a restart, or that the audit log takes no
// record; only where it is ErrUnknownEdge, nothing has been done.
func (s *Server) Suspend(one Suspension) (closed int, err error) {
	if !s.names(one.Edge) {
		return 0, fmt.Errorf("%w: %q", ErrUnknownEdge, one.Edge)
	}
	if one.Since.IsZero() {
		one.Since = time.Now()
	}
	suspend := func() (int, error) {
		err := s.suspensions.Suspend(one)
		s.tickets.change()
		return s.Enforce(), err
	}
	closed, err = suspend()
	s.log.Warn("edge suspended", "edge", one.Edge, "by", one.By, "reason", one.Reason, "sessions", closed)
	if err != nil {
		s.log.Error("the suspension will not outlast a restart", "edge", one.Edge, "error", err)
	}
	// It is in force. The record may have to wait for the audit log, and for that of
	// a change before, since the log's events come in the order of the changes.
	recorded := make(chan struct{})
	go func() {
		defer close(recorded)
		s.suspending.Lock()
		defer s.suspending.Unlock()
		if !s.suspensions.named(one.Edge) { // A Resume has come first.
			_, _ = suspend() // The error has been logged.
		}
		_ = s.event(EventSuspend, one.Edge, one.String()) // It has been logged if it fails.
	}()
	select {
	case <-recorded:
	case <-time.After(auditPatience):
		err = errors.Join(err, errors.New("it is in force, and the audit log has not taken its record yet"))
	}
	return closed, err
}

// Resume ends the suspension of an edge, named as when it was suspended. The
// error is ErrNotSuspended, or that the state file or, where it is required, the
// audit log cannot be written; the edge then stays suspended.
func (s *Server) Resume(name, by string) error {
	s.suspending.Lock()
	defer s.suspending.Unlock()
	if !s.suspensions.named(name) {
		return fmt.Errorf("%w: %q", ErrNotSuspended, name)
	}
	// The log first: were it the state file, a crash in between would look at the
	// next start as if somebody had taken the suspension out of the file.
	if err := s.event(EventResume, name, "resumed by "+by); err != nil && s.auditRequired {
		return fmt.Errorf("the audit log, which is required: %w", err)
	}
	found, err := s.suspensions.Resume(name)
	if err == nil && !found {
		err = fmt.Errorf("%w: %q", ErrNotSuspended, name)
	}
	if err != nil {
		_ = s.event(EventSuspend, name, "it was not resumed: "+err.Error())
		return err
	}
	s.tickets.change()
	s.log.Warn("edge resumed", "edge", name, "by", by)
	return nil
}

// event records what is not a request. The name may be a peer's. An error has
// been logged.
func (s *Server) event(what Event, name, reason string) error {
	rec := &Record{Time: time.Now(), Event: what, Reason: reason}
	if id, err := ski.ParsePeerID(name); err == nil {
		rec.Peer = id
	} else {
		rec.Edge = name
	}
	return s.record(context.Background(), rec)
}

// What Suspend and Resume can find wrong with a name.
var (
	ErrUnknownEdge  = errors.New("it is neither an edge of the policy nor an SPKI fingerprint nor psk:IDENTITY")
	ErrNotSuspended = errors.New("the edge is not suspended")
)

// names reports whether the text is the name of something that can be cut off.
func (s *Server) names(text string) bool {
	return isPeerID(text) || slices.ContainsFunc(s.policy.Load().edges, func(e *edge) bool { return e.name == text })
}

// edgeNames joins the names of the edges that a peer is.
func edgeNames(edges []*edge) string {
	names := make([]string, len(edges))
	for i, e := range edges {
		names[i] = e.name
	}
	return strings.Join(names, ",")
}
