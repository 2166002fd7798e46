package keyserver

import (
	"bytes"
	"cmp"
	"crypto/ed25519"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// A DiscontinuityError is why an audit log that is required is not continued: it
// was not found as it was left. AcceptAudit lets the next start continue it.
type DiscontinuityError struct {
	// File is the log.
	File string
	// Differs says what was found.
	Differs []string
}

func (e *DiscontinuityError) Error() string {
	return fmt.Sprintf("audit log %s: it is not as the key server left it: %s. Put it right, or find out who did that and accept it: "+
		"skictl audit accept --config FILE --reason TEXT", e.File, strings.Join(e.Differs, "; "))
}

// auditStart is what the log, its tip and the suspensions say of each other
// before anything is written.
type auditStart struct {
	end       fileEnd       // where the chain goes on
	cause     string        // of the 'open' line
	tip       *auditTip     // nil for none
	witnessed *WitnessEntry // the newest that a witness has; nil for none
	// witnessedUnusable says that the file with the last entry is not one by the key.
	witnessedUnusable bool
	unsigned          uint64 // lines at the end that neither a signature nor the tip covers
	// unsignedYet says that there is a key, and that no line is signed by it.
	unsignedYet bool
	suspended   []string // edges that the log says are suspended, and the state does not
	differs     []string // what is not as it was left
	warning     string   // what may be all right

	unaccepted []string // discontinuities that are in the log
}

// knownTip is a place that has to be in the log, and who says so.
type knownTip struct {
	from string
	tip  *auditTip
	seen bool // it is in the log
	past bool // the line with its number was looked at
}

// lookBack compares what is there at a start. f is the log's file, nil where
// there is none or where it cannot be read back.
func lookBack(o *AuditOptions, f *os.File) (*auditStart, error) {
	s := &auditStart{cause: causeStart}
	var known []*knownTip
	if o.Tip != "" {
		tip, err := readTip(o.Tip, o.public())
		if err != nil {
			s.differ("its tip cannot be used: %v", err)
		}
		if s.tip = tip; tip != nil {
			s.unaccepted = tip.Unaccepted
			known = append(known, &knownTip{from: o.Tip, tip: tip})
		}
	}
	if f == nil && !isFile(o.File) {
		s.continueUnread()
		return s, nil
	}
	if err := s.findEnd(o.File, f); err != nil {
		return nil, err
	}
	if o.Tip == "" {
		return s, nil
	}
	if err := s.compare(o, f, known); err != nil {
		return nil, err
	}
	s.compareWitnesses(o)
	return s, nil
}

// continueUnread continues what cannot be read back, as standard output: from
// the tip, if nothing was written after it.
func (s *auditStart) continueUnread() {
	if s.tip != nil && s.tip.Closed && s.tip.Seq > 0 {
		s.end.tip, s.cause = s.tip.link, causeRestart
	}
}

// isFile reports whether a log is in a file that can be read back, or will be.
func isFile(file string) bool {
	if file == "-" {
		return false
	}
	info, err := os.Stat(file)
	return err != nil || info.Mode().IsRegular()
}

func (s *auditStart) differ(format string, args ...any) {
	const most = 1000 // bytes: some of it may be what somebody has forged
	text := fmt.Sprintf(format, args...)
	s.differs = append(s.differs, strings.ToValidUTF8(text[:min(len(text), most)], ""))
}

// findEnd finds the end of the log: in its file, or else in the one before.
func (s *auditStart) findEnd(file string, f *os.File) error {
	var here fileEnd
	var err error
	if f != nil {
		if here, err = readEnd(f); err != nil {
			return err
		}
	}
	if here.tip.seq > maxLineSeq {
		return fmt.Errorf("%s: its last line has the number %d, which no key server has given it: remove what was added, or move the file away", file, here.tip.seq)
	}
	s.end = here
	if here.tip.seq > 0 {
		s.cause = causeRestart
		return nil
	}
	before, err := s.predecessor(file)
	if err != nil || before.tip.seq == 0 {
		return err
	}
	s.cause = causeRotation
	s.end.tip, s.end.torn, s.end.before, s.end.beforeSize = before.tip, before.torn, before.name, before.size
	s.end.torn.add(here.rest)
	return nil
}

// predecessor returns the end of the file that was written to before: the one
// that has the tip, whatever it is called, or else the last that the key server
// has renamed. A crash can come between the renaming and the first line of the
// new file, and a restart can take the place of a SIGHUP.
func (s *auditStart) predecessor(file string) (fileEnd, error) {
	if s.tip != nil && s.tip.Seq > 0 {
		found := findSibling(file, func(end link) bool { return end.seq >= s.tip.Seq })
		if found.name != "" {
			return found, nil
		}
	}
	return predecessor(file)
}

// siblings returns the files beside a log that can be older ones of it.
func siblings(file string) []string {
	names, _ := filepath.Glob(globQuote(file) + `[\-._]*`)
	return slices.DeleteFunc(names, func(name string) bool {
		info, err := os.Lstat(name)
		return err != nil || !info.Mode().IsRegular()
	})
}

// findSibling returns the end of the longest of the files that stand beside the
// log and have a name that begins with its name, whose end matches.
func findSibling(file string, match func(link) bool) (longest fileEnd) {
	for _, name := range siblings(file) {
		end, err := readEndOf(name)
		if err == nil && end.tip.seq <= maxLineSeq && match(end.tip) && end.tip.seq > longest.tip.seq {
			longest = end
			longest.name = name
		}
	}
	return longest
}

func readEndOf(name string) (fileEnd, error) {
	f, err := os.Open(name)
	if err != nil {
		return fileEnd{}, err
	}
	defer f.Close()
	begin := make([]byte, len(seqPrefix)) // What is compressed may be long.
	if n, _ := f.ReadAt(begin, 0); !isTornLine(begin[:n]) {
		return fileEnd{}, fmt.Errorf("%s: it is not an audit log", name)
	}
	return readEnd(f)
}

// compare finds what differs between the log, what is known of it, and the
// suspensions.
func (s *auditStart) compare(o *AuditOptions, f *os.File, known []*knownTip) error {
	end := s.end.tip
	for _, k := range known {
		switch {
		case k.tip.Seq > 0 && end.seq == 0:
			s.differ("it is missing or empty, but %s knows line %d, of %s", k.from, k.tip.Seq, k.tip.Time)
		case k.tip.Seq > end.seq:
			s.differ("it ends with line %d, but %s knows line %d, of %s", end.seq, k.from, k.tip.Seq, k.tip.Time)
		}
	}
	if end.seq == 0 {
		return nil
	}
	scan := &logScan{key: o.public(), known: known, end: end, size: s.end.size, suspended: make(map[string]bool)}
	defer scan.close()
	name := o.File
	if s.end.before != "" {
		name, f = s.end.before, nil
		scan.size = s.end.beforeSize
	}
	if err := scan.run(o.File, name, f); err != nil {
		return err
	}
	s.unsignedYet = scan.key != nil && scan.signed.seq == 0
	if s.unsignedYet { // The key is new.
		scan.base, scan.baseLink = scan.unproven, scan.unprovenLink
	}
	s.compareTips(o, scan, known)
	s.compareSuspensions(o, scan)
	return nil
}

func (s *auditStart) compareTips(o *AuditOptions, scan *logScan, known []*knownTip) {
	end := s.end.tip
	if s.tip == nil && len(s.differs) == 0 && scan.base != nil && scan.base.Tip != nil {
		s.differ("its tip %s is missing, and line %d says that there was one", o.Tip, scan.baseLink.seq)
	}
	proven := scan.signed.seq
	for _, k := range known {
		switch {
		case k.tip.Seq > end.seq: // It was said.
			continue
		case scan.key != nil && k.tip.Signer == "" && scan.signed.seq > 0:
			s.differ("%s is not signed, and line %d of the log is", k.from, scan.signed.seq)
			continue
		case s.unsignedYet && k.tip.Signer != "" && !k.tip.Unsigned:
			s.differ("%s is signed, and no line of the log is", k.from)
		case !k.seen && (k.past || k.tip.Seq >= scan.signed.seq):
			s.differ("line %d is not the one that %s names: it was removed or changed", k.tip.Seq, k.from)
		case k.tip.Closed && k.tip.Seq >= scan.signed.seq && end.seq > k.tip.Seq:
			s.differ("%d lines were added after line %d, with which the key server had stopped", end.seq-k.tip.Seq, k.tip.Seq)
		case k.tip.Seq < scan.previousSigned:
			s.warning = fmt.Sprintf("%s names line %d, and the log was signed up to line %d: the state directory may be an older copy", k.from, k.tip.Seq, scan.signed.seq)
		}
		proven = max(proven, k.tip.Seq)
	}
	if fault := scan.verify(); fault != "" {
		s.differ("%s", fault)
	}
	if s.tip != nil || scan.key != nil {
		s.unsigned = end.seq - min(proven, end.seq)
	}
	for _, name := range scan.broken {
		s.unaccepted = addUnaccepted(s.unaccepted, name)
	}
	s.unaccepted = slices.DeleteFunc(slices.Clone(s.unaccepted), func(name string) bool { return slices.Contains(scan.accepted, name) })
}

// compareSuspensions finds the edges that the log says are suspended and the
// state does not: the state is an older one, or is missing.
func (s *auditStart) compareSuspensions(o *AuditOptions, scan *logScan) {
	if o.Suspensions == nil || !o.Suspensions.Lasting() || scan.base == nil {
		return
	}
	for _, name := range scan.base.Suspended {
		// A signature follows each resumption, and what is not signed resumes nobody.
		if later, ok := scan.suspended[name]; !ok || !later && scan.signed.seq > 0 {
			scan.suspended[name] = true
		}
	}
	for name, suspended := range scan.suspended {
		if suspended && !o.Suspensions.has(name) {
			s.suspended = append(s.suspended, name)
		}
	}
	if slices.Sort(s.suspended); len(s.suspended) > 0 {
		s.differ("%d edges are suspended by the log and not by the state file, which may be an older copy: %s", len(s.suspended), someNames(s.suspended))
	}
}

// someNames joins the first of them.
func someNames(all []string) string {
	const most = 10
	if len(all) > most {
		return fmt.Sprintf("%s and %d more", strings.Join(all[:most], ", "), len(all)-most)
	}
	return strings.Join(all, ", ")
}

// logScan looks at a log from its end back to the last line that is signed,
// or, without a key, to the tip.
type logScan struct {
	key   ed25519.PublicKey
	known []*knownTip
	end   link
	size  int64 // of the file with the end, when that was found: the log may be written meanwhile

	files          []*os.File // of the lines that were looked at, the oldest first
	opened         []*os.File
	anchor         link // from which the chain is verified
	anchorFile     *os.File
	anchorEnd      int64
	anchored       bool
	signed         link // the last line that is signed
	signedEnd      int64
	previousSigned uint64      // of 'tip' in that line: where the tip was when it was written
	base           *signedLine // the last line that names the edges that are suspended
	baseLink       link
	unproven       *signedLine // one that is not signed, though there is a key
	unprovenLink   link
	first          *signedLine     // the first line that was looked at
	firstLink      link            // and where it is
	suspended      map[string]bool // by the lines after base
	broken         []string        // discontinuities after the tip
	accepted       []string
}

func (c *logScan) close() {
	for _, f := range c.opened {
		_ = f.Close()
	}
}

// maxScanFiles bounds how many files are looked at. One is enough but where a
// crash came while files were rotated.
const maxScanFiles = 16

// run looks at the last file, which is f or else to be opened, and at the ones
// before it as far as it must.
func (c *logScan) run(file, name string, f *os.File) error {
	for range maxScanFiles {
		if f == nil {
			var err error
			if f, err = os.Open(name); err != nil {
				return err
			}
			c.opened = append(c.opened, f)
		}
		c.files = slices.Insert(c.files, 0, f)
		size, err := c.sizeOf(f)
		if err != nil {
			return err
		}
		done := false
		if err := backward(f, size, func(line []byte, end int64) bool {
			done = c.visit(line, end)
			return !done
		}); err != nil || done || c.signed.seq > 0 {
			return err
		}
		if c.firstLink.seq == 1 {
			if !c.anchored {
				c.take(link{}, 0)
			}
			return nil
		}
		// The file's first line says how the one before it ends.
		if c.first == nil || c.first.Event != eventOpen {
			return nil
		}
		previous, err := parseChain(c.first.Previous)
		if err != nil {
			return nil
		}
		want := link{seq: c.firstLink.seq - 1, chain: previous}
		found := findSibling(file, func(end link) bool { return end == want })
		if found.name == "" {
			return nil
		}
		name, f = found.name, nil
	}
	return nil
}

// sizeOf returns how much of a file is looked at.
func (c *logScan) sizeOf(f *os.File) (int64, error) {
	if f == c.files[len(c.files)-1] {
		return c.size, nil
	}
	info, err := f.Stat()
	if err != nil {
		return 0, err
	}
	return info.Size(), nil
}

// take makes a place in the oldest file the one that the chain is verified from.
func (c *logScan) take(at link, end int64) {
	c.see(at)
	c.anchor, c.anchorFile, c.anchorEnd, c.anchored = at, c.files[0], end, true
}

// see finds out whether a place is a tip's.
func (c *logScan) see(at link) {
	for _, k := range c.known {
		k.seen = k.seen || k.tip.link == at
	}
}

// visit takes a line, the last first. It returns true when no more are needed.
func (c *logScan) visit(line []byte, end int64) (done bool) {
	// Most lines need not be parsed.
	seq, ok := lineNumber(line)
	if !ok {
		return false
	}
	if c.signed.seq > 0 && c.signedEnd-end > maxBehind {
		return true
	}
	named := slices.ContainsFunc(c.known, func(k *knownTip) bool { return k.tip.Seq == seq })
	if !named && isRequest(line) && seq > 1 {
		c.first = nil
		return false
	}
	content, stated, ok := splitLine(line)
	var l signedLine
	if !ok || json.Unmarshal(line, &l) != nil {
		return false
	}
	c.first, c.firstLink = &l, stated
	for _, k := range c.known {
		k.past = k.past || k.tip.Seq == seq
	}
	if c.signed.seq > 0 { // It is enough; a tip may be further back.
		c.see(stated)
		return c.allPast(seq)
	}
	if named {
		c.take(stated, end)
	}
	proven := c.key != nil && l.provenBy(c.key, content, stated)
	c.note(&l, stated, proven)
	if c.key == nil { // There are the tips alone, and what is said of suspensions.
		return (c.base != nil || l.Event == eventOpen) && c.allPast(seq)
	}
	if !proven {
		return false
	}
	c.signed, c.signedEnd = stated, end
	if l.Tip != nil {
		c.previousSigned = *l.Tip
	}
	c.take(stated, end)
	return c.allPast(seq)
}

// allPast reports whether no tip is further back than a line.
func (c *logScan) allPast(seq uint64) bool {
	return !slices.ContainsFunc(c.known, func(k *knownTip) bool { return k.tip.Seq < seq })
}

// maxBehind bounds how far back a tip is looked for, in bytes, where the log is
// signed after it.
const maxBehind = 64 << 20

// note keeps what a line says of suspensions and discontinuities. Where there is
// a key, anybody can have written what is not proven by it.
func (c *logScan) note(l *signedLine, at link, proven bool) {
	trusted := proven || c.key == nil
	switch l.Event {
	case EventSuspend, EventResume:
		name := cmp.Or(l.Edge, l.Peer)
		if _, later := c.suspended[name]; !later && c.base == nil {
			c.suspended[name] = l.Event == EventSuspend
		}
	case eventAccept:
		if trusted {
			c.accepted = append(c.accepted, l.Accepts...)
		}
	case eventOpen, eventCheckpoint:
		switch {
		case l.Tip == nil:
		case trusted && c.base == nil:
			c.base, c.baseLink = l, at
		case c.unproven == nil:
			c.unproven, c.unprovenLink = l, at
		}
		if trusted && l.Cause == causeBroken {
			c.broken = append(c.broken, tipName(at))
		}
	}
}

// verify checks the chain from the anchor to the end. It returns what is wrong.
func (c *logScan) verify() string {
	if !c.anchored {
		return ""
	}
	v := AuditVerifier{started: true, tip: c.anchor, firstFault: true}
	if c.key != nil {
		v.Keys = []ed25519.PublicKey{c.key}
	}
	for _, f := range c.files[slices.Index(c.files, c.anchorFile):] {
		size, err := c.sizeOf(f)
		if err != nil {
			return err.Error()
		}
		if f == c.anchorFile && c.anchor.seq > 0 {
			err = v.read(f.Name(), io.NewSectionReader(f, c.anchorEnd, size-c.anchorEnd), false)
		} else {
			err = v.File(f.Name(), io.NewSectionReader(f, 0, size))
		}
		if err != nil {
			return err.Error()
		}
	}
	switch {
	case len(v.Faults) > 0:
		return fmt.Sprintf("after line %d: %s", c.anchor.seq, v.Faults[0].What)
	case v.tip != c.end:
		return fmt.Sprintf("the chain from line %d does not lead to line %d", c.anchor.seq, c.end.seq)
	}
	return ""
}

// provenBy reports whether a line is signed by the key, and its chain is right.
func (l *signedLine) provenBy(key ed25519.PublicKey, content []byte, stated link) bool {
	previous, err := parseChain(l.Previous)
	return err == nil && l.signedBy(key, content) && (link{seq: stated.seq - 1, chain: previous}).next(content) == stated
}

// lineNumber returns the number at the beginning of a line.
func lineNumber(line []byte) (seq uint64, ok bool) {
	digits, ok := bytes.CutPrefix(line, []byte(seqPrefix))
	for i, d := range digits {
		if d < '0' || d > '9' {
			return seq, ok && i > 0
		}
		seq = seq*10 + uint64(d-'0')
	}
	return 0, false
}

// isRequest reports whether a line is of a request, as most are.
func isRequest(line []byte) bool {
	const near = 100 // bytes: 'seq' and 'time' are before it
	return bytes.Contains(line[:min(len(line), near)], []byte(`"event":"request"`))
}
