package edgeserver

import (
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"reflect"
	"slices"
	"time"

	"github.com/tlsski/tlsski/edgeserver/internal/split"
	"github.com/tlsski/tlsski/internal/certuse"
	"github.com/tlsski/tlsski/ski"
)

// certSlot is the place of one of a site's certificate files. What can change is
// guarded by site.renewing.
type certSlot struct {
	site *site
	file string
	// now is the chain that handshakes get; nil where the site has others and the
	// file's is still waiting.
	now *ski.Certificate
	// next is the file's chain while it waits for a key server to serve its key;
	// nil once it is now.
	next *ski.Certificate
	// reason says why next is not served yet; fault says why the file cannot be used,
	// whose chain is the last that could be. since is when either was found.
	reason, fault string
	since         time.Time

	kicked chan struct{} // asks for another question about next, soon
	// elsewhere says that the key servers are others than those that now was with.
	// Then asked is closed after the first question about next: until then nothing
	// says that they have the key of now.
	elsewhere bool
	asked     chan struct{}
}

// isPending reports whether the file's chain is not what is served.
func (c *certSlot) isPending() bool { return c.next != nil || c.fault != "" }

// why says what a slot that isPending waits for.
func (c *certSlot) why() string {
	if c.next == nil || c.fault == "" {
		return c.fault + c.reason
	}
	return c.fault + "; " + c.reason
}

// isRSA reports whether the file's chain has an RSA key.
func (c *certSlot) isRSA() bool {
	_, ok := c.chain().Leaf.PublicKey.(*rsa.PublicKey)
	return ok
}

// chain returns the file's own, the last one where the file is broken.
func (c *certSlot) chain() *ski.Certificate {
	if c.next != nil {
		return c.next
	}
	return c.now
}

// takeUp makes next what is served.
func (c *certSlot) takeUp() { c.now, c.next, c.reason = c.next, nil, "" }

// served are the chains that a site's handshakes get. It is not changed once made:
// another takes its place.
type served struct {
	chains []*ski.Certificate
	split  *split.Config // nil without that engine
}

// chains returns what the site serves now.
func (s *site) chains() []*ski.Certificate { return s.served.Load().chains }

// serve makes what the slots have now what new handshakes get. The caller holds
// s.renewing, or is the only one to have the site.
func (s *site) serve() {
	now := new(served)
	for _, slot := range s.slots {
		if slot.now != nil {
			now.chains = append(now.chains, slot.now)
		}
	}
	if s.split != nil {
		config := *s.split
		config.Chains = splitChains(now.chains)
		now.split = &config
	}
	s.served.Store(now)
}

// loadChains reads the site's certificate files. A chain whose key is another
// than that of before's has to wait. A file that was good in before and cannot be used
// now is taken for what it had. The error is of a field of cfg, which has the site at i.
func (s *site) loadChains(cfg *Config, i int, before *sites, now time.Time, log *slog.Logger) error {
	for j, file := range s.Certificates {
		slot := &certSlot{site: s, file: file, since: now}
		s.slots = append(s.slots, slot)
		var err error
		if slot.next, err = s.loadChain(file); err == nil {
			warnOfChain(file, slot.next, now, log)
			continue
		}
		err = cfg.errorAt(fmt.Sprintf("sites[%d].certificates[%d]", i, j), err)
		if !s.retain(slot, before, err, log) {
			return err
		}
	}
	if s.StaticRSA && !slices.ContainsFunc(s.slots, (*certSlot).isRSA) {
		err := cfg.errorAt(fmt.Sprintf("sites[%d].static_rsa", i), errors.New("needs an RSA certificate"))
		retained := false
		for _, slot := range s.slots {
			old := before.sameSite(s).slot(slot.file)
			retained = old != nil && old.isRSA() && s.retain(slot, before, err, log) || retained
		}
		if !retained {
			return err
		}
	}
	s.keepCertificates(before, now, log)
	return nil
}

// retain takes a slot's file, which cannot be used, for what it had before. It returns
// false where that was nothing for the site.
func (s *site) retain(slot *certSlot, before *sites, err error, log *slog.Logger) bool {
	old := before.sameSite(s).slot(slot.file)
	if old == nil || s.fits(old.chain()) != nil {
		return false
	}
	log.Error("a certificate file cannot be used: the certificate before stays", "error", err)
	slot.next, slot.fault = s.rebind(old.chain()), err.Error()
	if old.fault != "" {
		slot.since = old.since
	}
	return true
}

// loadChain reads one of the site's certificate files.
func (s *site) loadChain(file string) (*ski.Certificate, error) {
	chain, err := loadChain(s.asking, file, s.Names)
	if err != nil {
		return nil, err
	}
	if err := s.fits(chain); err != nil {
		return nil, err
	}
	if s.draft {
		chain = chain.DraftOnly()
	}
	return chain, nil
}

// fits returns why a chain cannot be one of the site's.
func (s *site) fits(chain *ski.Certificate) error {
	for _, name := range s.Names {
		if !covers(chain.Leaf, name) {
			return fmt.Errorf("the certificate does not cover '%s'", name)
		}
	}
	return s.canHave(chain)
}

// canHave returns why the site's key server cannot have the chain's key.
func (s *site) canHave(chain *ski.Certificate) error {
	if _, ok := chain.Leaf.PublicKey.(*rsa.PublicKey); !ok && s.java {
		return errors.New("the key server in Java has RSA keys alone")
	}
	return nil
}

// rebind returns the chain with its key asked for where the site's keys are.
func (s *site) rebind(chain *ski.Certificate) *ski.Certificate {
	again, err := ski.NewCertificate(s.asking, chain.ForClientHello(&tls.ClientHelloInfo{}).Certificate...)
	if err != nil {
		panic(err) // It has been one before.
	}
	if s.draft {
		again = again.DraftOnly()
	}
	return again
}

// keepCertificates decides what the slots of a site begin with, whose files have
// been read. A chain whose key the site had before is taken up: it is a mere renewal.
// So is one of a site that was not there, if its file had the key before at another. One with
// another key waits, as one does that is not valid now, and the chain whose place it
// takes stays until then. A site for which nothing stays takes up all.
func (s *site) keepCertificates(before *sites, now time.Time, log *slog.Logger) {
	taken := map[*certSlot]bool{} // of before, by those that go on with it
	same := before.sameSite(s)
	for _, slot := range s.slots {
		known := same.certSlots()
		if old := before.slot(slot.file); same == nil && old != nil {
			known = []*certSlot{old}
		}
		if invalid(slot.next.Leaf, now) != "" {
			continue // It is no renewal of anything yet.
		}
		isKnown := false
		for _, old := range known {
			if old.has(slot.next.Key.ID()) {
				taken[old], isKnown = true, true
			}
		}
		if isKnown {
			slot.takeUp()
		}
	}
	s.wait(before, taken)
	nothing := !slices.ContainsFunc(s.slots, func(slot *certSlot) bool { return slot.now != nil })
	for _, slot := range s.slots {
		if slot.next == nil {
			continue
		}
		switch {
		case nothing:
			slot.takeUp()
		case slot.now != nil && givesWay(slot.now, slot.next, now):
			if !slot.now.Leaf.Equal(slot.next.Leaf) {
				log.Info("the renewed certificate is taken up at once: the one before ends within the hour",
					"certificate", slot.file, "not_after", slot.now.Leaf.NotAfter)
			}
			slot.takeUp()
		case slot.now != nil && slot.elsewhere:
			slot.asked = make(chan struct{})
		}
	}
}

// wait makes the slots that have not been taken up wait, each with the chain that
// stays until then: the one that the same file had, else one of the same site, with
// the same type of key if there is one, that no other goes on with, else the one that
// the file has at another site. There may be none.
func (s *site) wait(before *sites, taken map[*certSlot]bool) {
	same := before.sameSite(s)
	keyType := func(chain *ski.Certificate) reflect.Type { return reflect.TypeOf(chain.Leaf.PublicKey) }
	for _, isLike := range []func(slot, old *certSlot) bool{
		func(slot, old *certSlot) bool { return old.file == slot.file },
		func(slot, old *certSlot) bool { return keyType(old.now) == keyType(slot.next) },
		func(_, _ *certSlot) bool { return true },
	} {
		for _, slot := range s.slots {
			for _, old := range same.certSlots() {
				if slot.next != nil && slot.now == nil && old.now != nil && !taken[old] && s.canStay(old.now) && isLike(slot, old) {
					taken[old] = true
					slot.keep(old)
				}
			}
		}
	}
	for _, slot := range s.slots {
		if slot.next == nil {
			continue
		}
		slot.reason = "the key servers have not answered yet"
		slot.kicked = make(chan struct{}, 1)
		if old := before.slot(slot.file); slot.now == nil && old != nil && old.now != nil && s.canStay(old.now) && !taken[old] {
			slot.keep(old)
		}
		if last := same.slot(slot.file); last != nil && last.next != nil && last.next.Key.ID() == slot.next.Key.ID() {
			slot.since = last.since
		}
	}
}

// keep has the chain of another slot stay in this one.
func (c *certSlot) keep(old *certSlot) {
	c.now = c.site.rebind(old.now)
	c.elsewhere = !old.site.keyServer.overlaps(c.site.keyServer) || old.asked != nil && !old.isAsked()
}

// isAsked reports whether the first question about next has been answered.
func (c *certSlot) isAsked() bool {
	select {
	case <-c.asked:
		return true
	default:
		return false
	}
}

// canStay reports whether the chain has a name of the site, and a key that the
// site's key server can have.
func (s *site) canStay(chain *ski.Certificate) bool {
	isFor := func(name string) bool { return covers(chain.Leaf, name) }
	return s.canHave(chain) == nil && (len(s.Names) == 0 || slices.ContainsFunc(s.Names, isFor))
}

// lastHour is how long before the end of its certificate a pair does not count as
// one that works any more.
const lastHour = time.Hour

// givesWay reports whether a chain is replaced by next, whatever is known of the
// key of that.
func givesWay(chain, next *ski.Certificate, now time.Time) bool {
	if invalid(next.Leaf, now) != "" {
		return invalid(chain.Leaf, now) != ""
	}
	return !now.Before(chain.Leaf.NotAfter.Add(-lastHour))
}

// overlaps reports whether a key server is among both.
func (k KeyServer) overlaps(other KeyServer) bool {
	return slices.ContainsFunc(k.Endpoints(), func(url string) bool { return slices.Contains(other.Endpoints(), url) })
}

// sameSite returns the site that is the same as s, or nil.
func (t *sites) sameSite(s *site) *site {
	if t == nil {
		return nil
	}
	for _, other := range t.all {
		if other.ticketID() == s.ticketID() {
			return other
		}
	}
	return nil
}

// slot returns the first place of a file in any site, or nil.
func (t *sites) slot(file string) *certSlot {
	if t == nil {
		return nil
	}
	for _, s := range t.all {
		if slot := s.slot(file); slot != nil {
			return slot
		}
	}
	return nil
}

// has reports whether handshakes get the key's certificate.
func (c *certSlot) has(id ski.KeyID) bool { return c.now != nil && c.now.Key.ID() == id }

// certSlots returns the site's slots, none of no site.
func (s *site) certSlots() []*certSlot {
	if s == nil {
		return nil
	}
	return s.slots
}

// slot returns the place of a file, or nil.
func (s *site) slot(file string) *certSlot {
	for _, slot := range s.certSlots() {
		if slot.file == file {
			return slot
		}
	}
	return nil
}

// invalid returns why clients would not accept the certificate now, or "".
func invalid(leaf *x509.Certificate, now time.Time) string {
	switch {
	case now.Before(leaf.NotBefore):
		return "not valid before " + leaf.NotBefore.Format(time.RFC3339)
	case now.After(leaf.NotAfter):
		return "expired at " + leaf.NotAfter.Format(time.RFC3339)
	}
	return ""
}

func warnOfChain(file string, chain *ski.Certificate, now time.Time, log *slog.Logger) {
	if invalid(chain.Leaf, now) != "" {
		log.Warn("the certificate is not valid now", "file", file,
			"not_before", chain.Leaf.NotBefore, "not_after", chain.Leaf.NotAfter)
	}
	if more := certuse.Beyond(chain.Leaf); more != "" {
		log.Warn("what is signed with the site's key could be taken for something else than a TLS handshake: its certificate "+more, "file", file)
	}
}
