package edgeserver

import (
	"context"
	"crypto/rsa"
	"errors"
	"log/slog"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/tlsski/tlsski/ski"
)

// The pause before the key servers are asked again for a key that they did not
// have. It doubles from the first value to the second, and half of it is random.
const (
	firstRenewalPause = time.Second
	lastRenewalPause  = time.Minute
	// leastRenewalPause is that after a handshake that failed since the key before is
	// not there any more.
	leastRenewalPause = time.Second
)

// PendingCertificate is one that a site does not show its clients yet: no key
// server is known to have its key, it is not valid now, or its file cannot be used.
type PendingCertificate struct {
	// Site is what logs and metrics call the site.
	Site string
	// File is the one of Site.Certificates that it is in.
	File string
	// SPKI is its key's fingerprint; of a file that cannot be used, that of the
	// certificate before.
	SPKI ski.KeyID
	// Since is when it was found.
	Since time.Time
	// Reason says what it waits for, by key server, or what is wrong with the file.
	Reason string
}

// Pending returns the certificates that Reload has not taken up. In their places
// are those before, if there were any. Such a certificate is taken up, without
// another Reload, once a key server serves its key and none would refuse it where it
// serves the key before, or when the one before ends within the hour.
func (s *Server) Pending() (all []PendingCertificate) {
	for _, site := range s.current().sites.all {
		all = append(all, site.pending()...)
	}
	return all
}

func (s *site) pending() (all []PendingCertificate) {
	s.renewing.Lock()
	defer s.renewing.Unlock()
	for _, slot := range s.slots {
		if slot.isPending() {
			all = append(all, PendingCertificate{Site: s.label, File: slot.file,
				SPKI: slot.chain().Key.ID(), Since: slot.since, Reason: slot.why()})
		}
	}
	return all
}

// inUse returns the chains that are served, by their files.
func (s *site) inUse() map[string]*ski.Certificate {
	s.renewing.Lock()
	defer s.renewing.Unlock()
	all := map[string]*ski.Certificate{}
	for _, slot := range s.slots {
		if slot.now != nil {
			all[slot.file] = slot.now
		}
	}
	return all
}

// asks are the questions of one generation for the keys of pending certificates.
// The zero value is ready for use.
type asks struct {
	cancel  context.CancelFunc // nil before start
	running sync.WaitGroup
}

// start begins to ask. Each certificate is asked for on its own.
func (a *asks) start(s *Server, all []*site) {
	ctx, cancel := context.WithCancel(s.ctx)
	a.cancel = cancel
	for _, site := range all {
		for _, slot := range site.slots {
			if slot.next != nil { // which nobody changes yet
				a.running.Go(func() { s.renew(ctx, site, slot) })
			}
		}
	}
}

// stop ends what start has begun.
func (a *asks) stop() {
	if a.cancel != nil {
		a.cancel()
	}
}

// close is stop, and returns when all has ended.
func (a *asks) close() {
	a.stop()
	a.running.Wait()
}

// renew asks for the key of a slot's next chain until that can be taken up, or ctx
// ends.
func (s *Server) renew(ctx context.Context, site *site, slot *certSlot) {
	next, now, compared := slot.next, slot.now, slot.now
	if now == nil { // With it some clients get another chain than without, and should be none the worse.
		compared = site.chains()[0]
	}
	log := s.log.With("site", site.label, "certificate", slot.file, "spki", next.Key.ID())
	if now != nil {
		log = log.With("before", now.Key.ID(), "not_after", now.Leaf.NotAfter)
	}
	answered := sync.OnceFunc(func() {
		if slot.asked != nil {
			close(slot.asked)
		}
	})
	defer answered()
	said := ""
	for pause := s.renewalPause; ctx.Err() == nil; pause = min(2*pause, lastRenewalPause) {
		if now != nil && givesWay(now, next, s.clock()) {
			if s.takeUp(ctx, site, slot) {
				log.Warn("the renewed certificate is taken up, though no key server is known to have its key: the one before ends within the hour")
			}
			return
		}
		asked := time.Now()
		isServed, reason := false, invalid(next.Leaf, s.clock())
		if reason == "" {
			isServed, reason = site.serves(ctx, next, compared)
		}
		if isServed {
			if s.takeUp(ctx, site, slot) {
				log.Info("the renewed certificate is taken up: a key server has its key")
				if reason != "" {
					log.Warn("not each key server is known to have the key of the certificate that is taken up", "reason", reason)
				}
			}
			return
		}
		if ctx.Err() != nil {
			return
		}
		answered()
		site.note(slot, reason)
		if reason != said {
			said = reason
			warnOfPending(log, now != nil, reason)
		}
		if slot.awaitKick(ctx, pause/2+rand.N(pause/2)) {
			sleep(ctx, time.Until(asked.Add(leastRenewalPause)))
			pause = s.renewalPause / 2
		}
	}
}

// awaitKick returns true when the slot is kicked, and false after the time or when
// ctx ends.
func (c *certSlot) awaitKick(ctx context.Context, most time.Duration) bool {
	ctx, cancel := context.WithTimeout(ctx, most)
	defer cancel()
	select {
	case <-c.kicked:
		return true
	case <-ctx.Done():
		return false
	}
}

// sleep returns after the time or when ctx ends.
func sleep(ctx context.Context, d time.Duration) {
	ctx, cancel := context.WithTimeout(ctx, d)
	defer cancel()
	<-ctx.Done()
}

func warnOfPending(log *slog.Logger, isReplaced bool, reason string) {
	if isReplaced {
		log.Warn("the renewed certificate waits until it can be used: the one before stays", "reason", reason)
	} else {
		log.Warn("the certificate waits until it can be used: clients get the site's others", "reason", reason)
	}
}

// takeUp makes a slot's next chain what new handshakes get. It returns false where
// a Reload has made that of the past.
func (s *Server) takeUp(ctx context.Context, site *site, slot *certSlot) bool {
	s.reloading.Lock() // which looks at what there is
	defer s.reloading.Unlock()
	if ctx.Err() != nil {
		return false
	}
	site.renewing.Lock()
	defer site.renewing.Unlock()
	slot.takeUp()
	site.serve()
	return true
}

// note keeps why a slot's next chain has to wait.
func (s *site) note(slot *certSlot, reason string) {
	s.renewing.Lock()
	defer s.renewing.Unlock()
	slot.reason = reason
}

// kick has the key servers asked again, soon, for what is pending: they have answered
// that they do not have a key.
func (s *site) kick() {
	for _, slot := range s.slots {
		if slot.kicked == nil {
			continue
		}
		select {
		case slot.kicked <- struct{}{}:
		default: // It has been asked for.
		}
	}
}

// awaitAnswer returns when the first questions for the site's pending certificates
// are answered, where it is not known that the certificates before can be used:
// the key servers are others than theirs were.
func (s *site) awaitAnswer(ctx context.Context) {
	for _, slot := range s.slots {
		if slot.asked == nil {
			continue
		}
		select {
		case <-slot.asked:
		case <-ctx.Done():
			return
		}
	}
}

// serves asks all key servers for the keys of two chains. isServed says that the
// first can take the place of the second: a key server would do what handshakes with
// it ask for, and none refuses what it would do with the second. why names those
// that do not, with the reason.
func (s *site) serves(ctx context.Context, next, now *ski.Certificate) (isServed bool, why string) {
	var (
		mu      sync.Mutex
		all     sync.WaitGroup
		served  bool
		worse   bool
		reasons = map[string]bool{}
	)
	for name, asked := range s.asking.each() {
		all.Go(func() {
			o := asked.compare(ctx, s, next, now)
			mu.Lock()
			defer mu.Unlock()
			served, worse = served || o.serves, worse || o.worse
			if o.err != nil {
				reasons[strings.TrimPrefix(name+": "+reason(o.err), ": ")] = true
			}
		})
	}
	all.Wait()
	if !served && len(reasons) == 0 { // A name has no addresses.
		return false, "there is no key server"
	}
	return served && !worse, strings.Join(slices.Sorted(maps.Keys(reasons)), ", ")
}

// opinion is what one key server says of a chain that is to take another's place.
type opinion struct {
	serves bool  // it would do something that handshakes with it ask for
	worse  bool  // handshakes would fail there that do not now
	err    error // why it would not do all
}

// compare asks one key server each question of handshakes with next.
func (a asking) compare(ctx context.Context, s *site, next, now *ski.Certificate) (o opinion) {
	_, isRSA := next.Leaf.PublicKey.(*rsa.PublicKey)
	for _, question := range s.questions(next) {
		same := question.with(now)
		for i, req := range question.requests() {
			err := a.would(ctx, req)
			if err == nil {
				o.serves = true
				continue
			}
			o.err = err
			missing := errors.Is(err, ski.SPKINotFound)
			if !missing && !errors.Is(err, ski.RequestDenied) {
				return o // It is at fault, or does not answer.
			}
			// Where it is missing, ski.Client asks the others, but not with static RSA.
			if (!missing || isRSA && s.StaticRSA) && !o.worse {
				o.worse = a.would(ctx, same.requests()[i]) == nil
			}
			if missing {
				return o // The others have the same answer.
			}
		}
	}
	return o
}
