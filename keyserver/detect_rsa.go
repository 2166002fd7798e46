package keyserver

import (
	"crypto/subtle"
	"fmt"
	"sync/atomic"
	"time"
)

// rsaSweep is how often the counts of PreMasterSecrets are looked at.
const rsaSweep = 250 * time.Millisecond

// rsaCounts counts the PreMasterSecrets of one edge. Each is counted in the
// same steps whether it was right or wrong; nothing is decided by it until a
// timer looks at the sums, for which no answer waits.
type rsaCounts struct {
	all, wrong atomic.Uint64

	// What only the sweep uses: the sums at its last time and at the window's
	// begin.
	last, base struct{ all, wrong uint64 }
	window     findings
}

// countRSA counts the outcome of a decryption. verdict is the audit log's word
// for it, or empty for another operation.
func (s *Server) countRSA(e *edgeState, verdict string) {
	if verdict == "" {
		return
	}
	right := subtle.ConstantTimeCompare([]byte(verdict), []byte(preMasterSecretCorrect))
	e.rsa.wrong.Add(uint64(1 - right))
	e.rsa.all.Add(1)
	if s.sweeping.CompareAndSwap(false, true) {
		s.background.Add(1)
		time.AfterFunc(rsaSweep, func() { defer s.background.Done(); s.sweepRSA() })
	}
}

// sweepRSA looks for edges with many wrong PreMasterSecrets: it takes
// thousands of them to decrypt one (Bleichenbacher's attack).
func (s *Server) sweepRSA() {
	s.sweeping.Store(false) // What is counted from now on has a sweep of its own.
	now := time.Now()
	rule := s.policy.Load().detectors[detectRSAFailures]
	for name, e := range s.states.all() {
		e.mu.Lock()
		wrong, all, first := e.rsa.sweep(now, rule, &s.found[detectRSAFailures])
		e.mu.Unlock()
		if first && rule.action != actionOff && rule.action != "" {
			s.alarm(detectRSAFailures, rule, Record{Edge: name}, name,
				fmt.Sprintf("%d of %d within %v: %s", wrong, all, rule.window, detectorFindings[detectRSAFailures]))
		}
	}
}

// sweep returns the sums of the window, and whether they are enough for the
// first time in it.
func (c *rsaCounts) sweep(now time.Time, rule detectorRule, found *atomic.Uint64) (wrong, all uint64, first bool) {
	if now.Sub(c.window.begin) >= rule.window {
		c.window, c.base = findings{begin: now}, c.last
	}
	// In this order no wrong one is there that is not among all.
	sumWrong, sumAll := c.wrong.Load(), c.all.Load()
	found.Add(sumWrong - c.last.wrong)
	c.last.all, c.last.wrong = sumAll, sumWrong
	wrong, all = sumWrong-c.base.wrong, sumAll-c.base.all
	enough := wrong > 0 && wrong >= uint64(rule.threshold) && float64(wrong) >= rule.share*float64(all)
	first = enough && !c.window.told
	c.window.told = c.window.told || enough
	return wrong, all, first
}
