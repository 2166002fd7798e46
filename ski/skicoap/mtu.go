package skicoap

import (
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/plgd-dev/go-coap/v3/message"
	"github.com/plgd-dev/go-coap/v3/message/codes"

	"github.com/tlsski/tlsski/ski"
)

// mtu is the longest IP packet that a path carries, in bytes (docs/design/0025-small-paths.md).
type mtu int

const (
	// maxMTU is what every IPv6 path carries (RFC 8200, Section 5). No packet is
	// longer.
	maxMTU mtu = 1280
	// safeMTU is what every IPv4 host takes (RFC 791, Section 3.1). No packet of a
	// handshake is longer, and none of a path that loses longer ones.
	safeMTU mtu = 576
	// ipHeaders are the headers of IPv6 (40) and UDP (8).
	ipHeaders = 40 + 8
	// recordOverhead is what a DTLS record adds to a message: a header (13), a
	// connection ID of up to 42, a nonce of 8, the type within, a tag of 16.
	recordOverhead = 13 + 42 + 8 + 1 + 16
	// narrowFor is how long answers stay short on a path that has lost long ones
	// (RFC 8899, Section 5.1.1, PMTU_RAISE_TIMER).
	narrowFor = 10 * time.Minute
	// raiseAfter is the same of a client, which loses no time with a probe.
	raiseAfter = time.Minute
	// maxProbes is how often a probe is sent before it counts as lost. RFC 8899,
	// Section 5.1.2, has 3; but where one datagram in five is lost each way, so are
	// three of them one time in twenty, and eight one time in 3,500.
	maxProbes = 8
	// probeInterval is the shortest pause between two of these.
	probeInterval = 100 * time.Millisecond
	// probePause is how long after an answered probe there is no other.
	probePause = time.Second
)

// configuredMTU returns the MTU of a configuration, in which 0 stands for none.
func configuredMTU(n int) (mtu, error) {
	if n != 0 && (n < ski.MinMTU || n > ski.MaxMTU) {
		return 0, fmt.Errorf("skicoap: the MTU %d is not 0 or %d to %d bytes", n, ski.MinMTU, ski.MaxMTU)
	}
	if n == 0 {
		return maxMTU, nil
	}
	return min(mtu(n), maxMTU), nil
}

// handshake returns what pion takes for the MTU: it cuts messages into fragments
// of so many bytes, to which it adds headers.
func (m mtu) handshake() int {
	return int(min(m, safeMTU)) - ipHeaders - recordHeaderLen - handshakeHeaderLen
}

// message returns the length of the longest CoAP message.
func (m mtu) message() int { return int(m) - ipHeaders - recordOverhead }

// whole returns the length of the longest payload that is sent in one message.
// The rest is for the header, a token of 8 bytes and options.
func (m mtu) whole() int { return m.message() - 64 }

// szx returns the size of the largest block that has room, as an exponent (RFC
// 7959, Section 2.2).
func (m mtu) szx() uint8 {
	b := block{szx: largestSZX}
	for b.szx > 0 && b.size() > m.whole() {
		b.szx--
	}
	return b.szx
}

// lossy counts the long answers of a session, and tells a path on which they are
// all lost from one that loses some, as it loses others.
type lossy struct {
	mu     sync.Mutex
	long   int       // answers that were sent whole at first
	cut    int       // those of them that arrived in blocks
	narrow time.Time // until when all go in blocks
}

// sent notes a long answer.
func (l *lossy) sent() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.long++; l.long >= 32 { // what was long ago counts less and less
		l.long, l.cut = l.long/2, l.cut/2
	}
}

// arrived notes that a long answer has arrived in blocks. It reports whether
// all are cut from now on that were not before.
func (l *lossy) arrived(now time.Time) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.cut++
	if l.cut < 5 || 3*l.cut < 2*l.long || now.Before(l.narrow) {
		return false
	}
	l.narrow, l.long, l.cut = now.Add(narrowFor), 0, 0
	return true
}

// limit returns what fits now of m.
func (l *lossy) limit(m mtu, now time.Time) mtu {
	l.mu.Lock()
	defer l.mu.Unlock()
	if now.Before(l.narrow) {
		return min(m, safeMTU)
	}
	return m
}

// errNarrow ends a request that is too long for its path, which then goes in
// blocks.
var errNarrow = errors.New("the path loses long datagrams")

// clientPath is what a client knows of the path to its key server, from one
// session to the next.
type clientPath struct {
	mtu mtu // as configured
	log *slog.Logger

	mu     sync.Mutex
	narrow bool
	until  time.Time // when a probe is due
}

// limit returns the MTU as it is now.
func (p *clientPath) limit() mtu {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.narrow {
		return min(p.mtu, safeMTU)
	}
	return p.mtu
}

// due reports that it is time to probe whether longer messages arrive again, once.
func (p *clientPath) due(now time.Time) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.narrow || now.Before(p.until) {
		return false
	}
	p.until = now.Add(raiseAfter)
	return true
}

// found notes what a probe has shown.
func (p *clientPath) found(narrow bool, now time.Time) {
	p.mu.Lock()
	was := p.narrow
	p.narrow, p.until = narrow, now.Add(raiseAfter)
	p.mu.Unlock()
	switch {
	case narrow && !was:
		p.log.Warn("the path loses long datagrams: requests go in smaller blocks", "mtu", int(safeMTU))
	case was && !narrow:
		p.log.Info("the path carries long datagrams again", "mtu", int(p.mtu))
	}
}

// early returns the option that asks for an answer in blocks that fit (RFC 7959,
// Section 2.4), where an MTU is configured. Otherwise the key server finds out.
func (p *clientPath) early() message.Options {
	if p.mtu == maxMTU {
		return nil
	}
	return message.Options{block{szx: p.mtu.szx()}.option(message.Block2)}
}

// isLong reports whether a datagram may be what a narrow path loses.
func isLong(datagram []byte) bool { return len(datagram) > safeMTU.message() }

// probe asks for something short with the longest message that there is. A key
// server answers that at once, unlike a request: where it does not, but answers the
// ping that is sent beside, such messages do not arrive (RFC 8899, Section 4.3).
func (s *clientSession) probe() {
	const optionHead = 5 // of a value of more than 268 bytes: RFC 7252, Section 3.1
	options := message.Options{
		{ID: message.URIPath, Value: []byte(".well-known")}, {ID: message.URIPath, Value: []byte("core")},
	}
	empty, err := encode(message.Message{Code: codes.GET, Token: tokenBytes(0), Options: options})
	if err != nil {
		return
	}
	options = append(options, message.Option{ID: optionPadding, Value: make([]byte, s.path.mtu.message()-len(empty)-optionHead)})
	s.mu.Lock()
	if s.probing != nil {
		s.mu.Unlock()
		return
	}
	c, err := s.beginLocked(codes.GET, nil, options, nil)
	s.probing, s.probeSent, s.inVain = c, time.Now(), 0
	s.nextMID++
	mid := s.nextMID - 1
	s.mu.Unlock()
	if err == nil {
		_ = s.link.write(c.datagram) // like any datagram, it may be lost
		s.link.sendEmpty(message.Confirmable, int32(mid))
	}
}

// probeOverdue notes that the probe was not answered in time, and reports whether
// it is lost. What was sent when nothing at all came back does not count: the path
// was interrupted. It is called with s.mu held.
func (s *clientSession) probeOverdue(now time.Time) (lost bool) {
	if s.heard.After(s.probeSent) {
		s.inVain++
	}
	s.probeSent = now
	s.probing.next = now.Add(max(s.rtt.timeout(), probeInterval))
	return s.inVain >= maxProbes
}

// probed ends the probe. It is called with s.mu held.
func (s *clientSession) probed(narrow bool, now time.Time) {
	delete(s.calls, s.probing.token)
	s.probing, s.lastProbe = nil, now
	s.path.found(narrow, now)
	if !narrow {
		return
	}
	for _, c := range s.calls {
		if isLong(c.datagram) {
			s.settle(c, outcome{nil, errNarrow})
		}
	}
}
