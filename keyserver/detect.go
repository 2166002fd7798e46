package keyserver

import (
	"context"
	"fmt"
	"time"

	"github.com/tlsski/tlsski/ski"
)

// detector is one of those that watch what edges ask for.
type detector int

const (
	detectReplay detector = iota
	detectRepeat
	detectPreMasterReplay
	detectPreMasterRepeat
	detectWeakRandoms
	detectRSAFailures
	detectAddresses
	detectors // how many there are
)

// detectorNames are those of the policy file and of the audit log.
var detectorNames = [detectors]string{
	detectReplay:          "replay",
	detectRepeat:          "repeat",
	detectPreMasterReplay: "premaster-replay",
	detectPreMasterRepeat: "premaster-repeat",
	detectWeakRandoms:     "weak-randoms",
	detectRSAFailures:     "rsa-failures",
	detectAddresses:       "addresses",
}

func (d detector) String() string { return detectorNames[d] }

// detectorAction is what follows when a detector has found enough.
type detectorAction string

const (
	actionOff     detectorAction = "off"
	actionAlarm   detectorAction = "alarm"   // a record in the audit log, a line in the other
	actionDeny    detectorAction = "deny"    // and the request is denied
	actionSuspend detectorAction = "suspend" // and the edge is cut off
)

// detectorRule is when a detector speaks up: when there have been threshold
// findings with an edge within the window. The zero value never does.
type detectorRule struct {
	action    detectorAction
	threshold int
	window    time.Duration
	share     float64 // of detectRSAFailures: failures among all, at least
}

// detectorRules are those of a policy.
type detectorRules [detectors]detectorRule

// causedByClients are the detectors of what an edge's clients, who may be
// anybody, can bring about: they send EncryptedPreMasterSecrets. What else there
// is to find comes from the edge itself.
var causedByClients = []detector{detectPreMasterReplay, detectPreMasterRepeat, detectRSAFailures}

// defaultDetectors alarm rather than cut off: an edge that is found to be
// innocent has been out of service otherwise.
var defaultDetectors = detectorRules{
	detectReplay:          {action: actionDeny, threshold: 1, window: time.Minute},
	detectRepeat:          {action: actionAlarm, threshold: 100, window: time.Minute},
	detectPreMasterReplay: {action: actionDeny, threshold: 1, window: time.Minute},
	detectPreMasterRepeat: {action: actionAlarm, threshold: 100, window: time.Minute},
	detectWeakRandoms:     {action: actionAlarm, threshold: 3, window: time.Minute},
	detectRSAFailures:     {action: actionAlarm, threshold: 20, window: time.Minute, share: 0.1},
	detectAddresses:       {action: actionAlarm, threshold: 3, window: time.Minute},
}

// findings counts what a detector has found with one edge.
type findings struct {
	begin time.Time // of the window
	n     int
	told  bool // the alarm has been raised in this window
}

// add counts one more. It reports whether that is enough, and whether it is for
// the first time in this window.
func (f *findings) add(now time.Time, r detectorRule) (enough, first bool) {
	if now.Sub(f.begin) >= r.window {
		*f = findings{begin: now}
	}
	f.n++
	enough = f.n >= r.threshold
	first = enough && !f.told
	f.told = f.told || enough
	return enough, first
}

// inspect has the detectors look at a request that would be answered. The
// edges are at least one: the first stands for the peer.
func (s *Server) inspect(policy *Policy, edges []*edge, peer ski.Peer, req *ski.Request, rec *Record) (refusal outcome, ok bool) {
	name := edges[0].name
	state := s.states.of(name)
	denied := false
	for _, d := range s.memory.look(state.number, peer, req, rec.Time) {
		s.found[d].Add(1)
		rule := policy.detectors[d]
		if rule.action == actionOff || rule.action == "" {
			continue
		}
		state.mu.Lock()
		enough, first := state.findings[d].add(rec.Time, rule)
		state.mu.Unlock()
		if first {
			request, reason := *rec, fmt.Sprintf("%d within %v: %s", rule.threshold, rule.window, detectorFindings[d])
			s.background.Go(func() { s.alarm(d, rule, request, name, reason) })
		}
		if enough && rule.action != actionAlarm {
			rec.Detector, denied = d.String(), true
		}
	}
	if denied {
		return refused(ski.RequestDenied, "the detector denies it"), false
	}
	return outcome{}, true
}

// detectorFindings say what was found, for the reason of an alarm.
var detectorFindings = [detectors]string{
	detectReplay:          "asked what another edge has asked",
	detectRepeat:          "asked for a handshake that it has asked for before",
	detectPreMasterReplay: "sent an EncryptedPreMasterSecret that another edge has sent",
	detectPreMasterRepeat: "sent an EncryptedPreMasterSecret that it has sent before",
	detectWeakRandoms:     "a ServerRandom or a transcript hash that is not random",
	detectRSAFailures:     "EncryptedPreMasterSecrets that are wrong",
	detectAddresses:       "one certificate in use at two addresses",
}

// alarm records that a detector has found enough, and cuts the edge off if that
// is the rule. It has its own goroutine: no answer waits for it.
func (s *Server) alarm(d detector, rule detectorRule, request Record, name, reason string) {
	rec := &Record{
		Time: time.Now(), Event: EventAlarm, Detector: d.String(), Reason: reason,
		Edge: request.Edge, Peer: request.Peer, Address: request.Address,
		Key: request.Key, KeyName: request.KeyName,
	}
	_ = s.record(context.Background(), rec) // It has been logged if it fails.
	s.metrics.Alarmed(d.String())
	s.log.Warn("alarm", "detector", d, "edge", request.Edge, "address", rec.line().Address, "reason", reason)
	if rule.action == actionSuspend {
		_, _ = s.Suspend(Suspension{Edge: name, By: "detector " + d.String(), Reason: reason}) // logs by itself
	}
}

// Detections returns how often each detector has found something since the
// start, whatever came of it, by the detector's name.
func (s *Server) Detections() map[string]uint64 {
	counts := make(map[string]uint64, detectors)
	for d := range s.found {
		counts[detectorNames[d]] = s.found[d].Load()
	}
	return counts
}
