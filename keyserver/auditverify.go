package keyserver

import (
	"bufio"
	"bytes"
	"crypto/ed25519"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"time"
)

// AuditFinding is what AuditVerifier has to say of a line.
type AuditFinding struct {
	// File and Line, from 1, say where.
	File string
	Line int
	// What is a sentence without a full stop.
	What string
}

func (f AuditFinding) String() string { return fmt.Sprintf("%s:%d: %s", f.File, f.Line, f.What) }

// AuditVerifier finds out whether audit logs are as they were written. The zero
// value checks the chain, which anyone who can write to the file can make anew;
// with Keys, it checks the signatures on it.
type AuditVerifier struct {
	// Keys are the public keys, one of which signed each checkpoint.
	Keys []ed25519.PublicKey
	// Expect is a "SEQUENCE:CHAIN" that Tip has returned before: it must still be
	// there. This is how the loss of the last lines is found whatever else the
	// one who removed them can do. "" is none.
	Expect string

	// Faults are lines that were removed, changed, moved, repeated or added.
	Faults []AuditFinding
	// Notes are what may be all right, and what the verifier cannot know.
	Notes []AuditFinding
	// Lines and Requests count what is in the chain.
	Lines, Requests int

	file         string
	line         int
	first        bool // no line of the file was seen yet
	tip          link
	started      bool            // tip is known
	torn         tear            // what is no line since the last one
	tornLine     int             // where it begins
	last         Event           // of the last line
	cause        string          // its cause
	unsigned     int             // lines since the last good signature
	latest       time.Time       // of the lines up to now
	tips         bool            // a tip is kept, says the last line that could
	broken       []discontinuity // that were not accepted
	anySigned    bool            // there was a good signature
	before       []AuditFinding  // what is not signed before the first one
	unsignedOpen bool            // so was an 'open'
	expected     bool            // Expect was seen
	witness      *witnessCheck   // nil for none
	firstFault   bool            // nothing is kept but the first fault, with which it ends
}

// maxAuditLine bounds what is read at once, in bytes: far more than a line has.
const maxAuditLine = 1 << 20

// File checks the next file; the oldest comes first. The error is that of the
// reader.
func (v *AuditVerifier) File(name string, r io.Reader) error { return v.read(name, r, true) }

// read checks a file, or what is in it after the lines that are known.
func (v *AuditVerifier) read(name string, r io.Reader, whole bool) error {
	v.file, v.line, v.first = name, 0, whole
	in := bufio.NewReaderSize(r, maxAuditLine)
	for begin := true; ; {
		piece, err := in.ReadSlice('\n')
		if len(piece) > 0 {
			if begin {
				v.line++
			}
			v.piece(piece)
		}
		if v.firstFault {
			if v.Notes, v.broken = nil, nil; len(v.Faults) > 0 {
				return nil
			}
		}
		begin = err == nil
		switch {
		case err == nil, errors.Is(err, bufio.ErrBufferFull):
		case errors.Is(err, io.EOF):
			return nil
		default:
			return fmt.Errorf("%s: %w", name, err)
		}
	}
}

// End checks what is known only after the last file. running says that the key
// server still writes to it, or was killed.
func (v *AuditVerifier) End(running bool) {
	v.endWitness()
	if v.torn.bytes > 0 {
		if running {
			v.note("the last line is cut off")
		} else {
			v.spoiled()
		}
	}
	if v.Lines == 0 {
		v.fault("there is not one line of an audit log")
		return
	}
	if !v.closed() && !running {
		v.fault("the log ends without a closing checkpoint: lines are missing, or the key server still runs or was killed")
	}
	v.Faults = append(v.Faults, v.before...)
	for _, d := range v.broken {
		v.Faults = append(v.Faults, d.at)
	}
	switch {
	case len(v.Keys) > 0 && v.unsigned > 0:
		v.note(fmt.Sprintf("the last %d lines are not under a signed checkpoint", v.unsigned))
	case len(v.Keys) == 0:
		v.note("no signature was checked: who can write to the file can make all of it anew")
	}
	if v.Expect != "" && !v.expected {
		v.fault("the line " + v.Expect + " is not in the log: it was removed or changed")
	}
}

// Tip names the last line: a later check of the same log can Expect it.
func (v *AuditVerifier) Tip() string { return tipName(v.tip) }

func tipName(l link) string { return fmt.Sprintf("%d:%s", l.seq, l.hex()) }

// closed reports whether the last line may be the last one.
func (v *AuditVerifier) closed() bool { return v.last == eventCheckpoint && v.cause != causeInterval }

func (v *AuditVerifier) fault(what string) {
	v.Faults = append(v.Faults, AuditFinding{v.file, v.line, what})
}

func (v *AuditVerifier) note(what string) {
	v.Notes = append(v.Notes, AuditFinding{v.file, v.line, what})
}

// piece takes a line with its newline, or what is too long or too short to be
// one.
func (v *AuditVerifier) piece(piece []byte) {
	text, whole := bytes.CutSuffix(piece, []byte{'\n'})
	content, stated, ok := splitLine(text)
	var l signedLine
	if !whole || !ok || json.Unmarshal(text, &l) != nil {
		if v.torn.bytes == 0 {
			v.tornLine = v.line
		}
		v.torn.add(piece)
		return
	}
	v.checkTorn(&l)
	first := v.first
	v.first = false
	if !v.checkChain(&l, content, stated, first) {
		return
	}
	if v.witness != nil {
		v.compareWitness(&l, stated)
	}
	v.Lines++
	v.unsigned++
	v.checkTime(&l)
	v.checkEvent(&l, content, stated)
	v.last, v.cause = l.Event, l.Cause
	v.expected = v.expected || v.Expect == tipName(stated)
}

func (v *AuditVerifier) checkEvent(l *signedLine, content []byte, stated link) {
	if v.last == eventCheckpoint && v.cause == causeStop && l.Event != eventOpen {
		v.fault("the key server had stopped before this line, and had not started again")
	}
	switch l.Event {
	case EventRequest:
		v.Requests++
		return
	case eventOpen:
		v.checkOpen(l, stated)
	case eventAccept:
		v.accepted(l)
	}
	v.checkSignature(l, content)
}

// checkOpen takes note of what a start has found.
func (v *AuditVerifier) checkOpen(l *signedLine, stated link) {
	switch {
	case l.Cause == causeBroken:
		v.broken = append(v.broken, discontinuity{tipName(stated), AuditFinding{v.file, v.line, "the log was not as the key server had left it: " + l.Reason}})
	case l.Unsigned > 0:
		v.note(fmt.Sprintf("the key server starts here and had not been stopped: the %d lines before it were not signed yet, and may be made up", l.Unsigned))
	case !v.closed() && v.last != "" && l.Cause == causeRestart:
		v.note("the key server starts here and had not been stopped: lines before it may never have been written, or are missing")
	}
	switch {
	case l.Tip == nil && v.tips:
		v.note("from here on no tip is kept: lines can be removed while the key server is stopped, and nothing shows it")
	case l.Tip != nil && *l.Tip == 0 && l.Cause == causeRestart:
		v.note("from here on a tip is kept; before, lines could be removed while the key server was stopped, and nothing shows it")
	}
	v.tips = l.Tip != nil
}

// discontinuity is a start that has not found the log as it was left.
type discontinuity struct {
	name string // of the line, SEQUENCE:CHAIN
	at   AuditFinding
}

// accepted takes a discontinuity that an operator has seen for no fault.
func (v *AuditVerifier) accepted(l *signedLine) {
	v.broken = slices.DeleteFunc(v.broken, func(d discontinuity) bool {
		if !slices.Contains(l.Accepts, d.name) {
			return false
		}
		v.Notes = append(v.Notes, AuditFinding{d.at.File, d.at.Line, fmt.Sprintf("%s; accepted at %s by %s: %s", d.at.What, l.Time, l.By, l.Reason)})
		return true
	})
}

// clockTolerance is how far the times of two lines may run backwards: clocks
// are set, and a request's time is that of its beginning.
const clockTolerance = time.Minute

// checkTime notes where the clock was set back.
func (v *AuditVerifier) checkTime(l *signedLine) {
	at, err := time.Parse(time.RFC3339Nano, l.Time)
	if err != nil {
		v.fault("its time is not RFC 3339")
		return
	}
	if l.DurationUS != nil {
		at = at.Add(time.Duration(*l.DurationUS) * time.Microsecond)
	}
	if back := v.latest.Sub(at); back > clockTolerance {
		v.note(fmt.Sprintf("the time runs backwards by %s here: the clock was set back, or was wrong before", back.Round(time.Second)))
		v.latest = at
	}
	if at.After(v.latest) {
		v.latest = at
	}
}

// signedLine is auditLine and what is not in it until it is written.
type signedLine struct {
	auditLine
	Signature []byte `json:"signature"`
}

// checkTorn takes what is no line for the rest of a write that was cut short
// only where the next line says so.
func (v *AuditVerifier) checkTorn(l *signedLine) {
	bytes, digest := v.torn.sum()
	switch {
	case bytes == l.TornBytes && digest == l.TornSHA256:
	case bytes == 0:
		v.fault("the remains of a line that could not be written are missing before this one")
	default:
		v.spoiled()
	}
	v.torn = tear{}
}

func (v *AuditVerifier) spoiled() {
	v.Faults = append(v.Faults, AuditFinding{v.file, v.tornLine, "it is not a line of an audit log: it was changed, cut off or added"})
	v.torn = tear{}
}

// checkChain reports whether the chain goes on behind the line. After a fault
// it goes on from what the line says, so that one fault is found once.
func (v *AuditVerifier) checkChain(l *signedLine, content []byte, stated link, first bool) bool {
	switch {
	case !v.started && first && l.beginsFile():
		v.begin(l, stated)
	case !v.started:
		v.fault("a log does not begin with this line: lines before it are missing")
	case first && l.Event == eventOpen && l.Cause == causeStart:
		v.note("a new log begins here: nothing says whether there were files between this one and the one before")
		v.begin(l, stated)
	}
	if v.started && l.Event == eventOpen && l.Cause == causeBroken && stated.seq > v.tip.seq {
		v.follow(l, stated) // It says itself that what is above is not what was.
	}
	switch expected := v.tip.next(content); {
	case !v.started:
	case stated == expected && l.Previous != "" && l.Previous != v.tip.hex():
		v.fault("the line was made for other lines than those above it")
	case stated == expected:
	case stated.seq < expected.seq:
		v.fault(fmt.Sprintf("sequence number %d comes after %d: the line was moved or repeated", stated.seq, v.tip.seq))
		return false
	case stated.seq > expected.seq:
		v.fault(fmt.Sprintf("sequence numbers %d to %d are missing before this line", expected.seq, stated.seq-1))
	default:
		v.fault("the line, or the one before, was changed")
	}
	v.tip, v.started = stated, true
	return true
}

// beginsFile reports whether the line is the first of a file.
func (l *signedLine) beginsFile() bool {
	return l.Event == eventOpen && l.Cause != causeRestart && (l.Cause != causeBroken || l.NewFile)
}

// begin takes up the chain from the first line of a file.
func (v *AuditVerifier) begin(l *signedLine, stated link) {
	v.started = true
	v.tip = link{}
	if l.Cause == causeStart {
		return
	}
	v.note(fmt.Sprintf("what was before sequence number %d is in an earlier file, and not checked", stated.seq))
	v.follow(l, stated)
}

// follow takes for the line above what an 'open' says that it was.
func (v *AuditVerifier) follow(l *signedLine, stated link) {
	previous, err := parseChain(l.Previous)
	if err != nil {
		v.fault("'previous' is not the chain of a line")
	}
	v.tip = link{seq: stated.seq - 1, chain: previous}
}

// checkSignature checks a line that is signed, or has to be, and whose place in
// the chain is known to be right.
func (v *AuditVerifier) checkSignature(l *signedLine, content []byte) {
	if len(v.Keys) == 0 {
		return
	}
	if l.Signature == nil {
		v.notSigned(l)
		return
	}
	for _, key := range v.Keys {
		if l.signedBy(key, content) {
			v.goodSignature()
			return
		}
	}
	v.fault(fmt.Sprintf("the signature of the %s is not by the key: it, or lines since the one before it, were changed", l.Event))
}

// notSigned takes note of a line without a signature. Where it should have one,
// that is a fault, unless the log was begun without a key and is signed further
// on.
func (v *AuditVerifier) notSigned(l *signedLine) {
	finding := AuditFinding{v.file, v.line, fmt.Sprintf("the %s is not signed", l.Event)}
	switch {
	case l.Event == eventOpen && l.Tip == nil: // Former versions did not sign it.
	case l.Event == eventOpen && !v.anySigned:
		v.unsignedOpen = true
	case l.Event == eventCheckpoint && !v.anySigned:
		v.before = append(v.before, finding)
	case l.Event == eventOpen, l.Event == eventCheckpoint, l.Event == eventAccept:
		v.Faults = append(v.Faults, finding)
	}
}

// goodSignature takes note of a line with one.
func (v *AuditVerifier) goodSignature() {
	if !v.anySigned && (len(v.before) > 0 || v.unsignedOpen) {
		v.note("signatures begin with this line: there was no key before, and what is above it proves nothing against anybody who could write to the file")
	}
	v.anySigned, v.before = true, nil
	v.unsigned = 0
}

// signedBy reports whether the line's signature is by the key.
func (l *signedLine) signedBy(key ed25519.PublicKey, content []byte) bool {
	suffix := signaturePrefix + base64.StdEncoding.EncodeToString(l.Signature) + signatureSuffix
	signed, ok := bytes.CutSuffix(content, []byte(suffix))
	return ok && ed25519.Verify(key, append([]byte(signatureContext), signed...), l.Signature)
}
