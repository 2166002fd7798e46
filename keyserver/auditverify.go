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

	file     string
	line     int
	first    bool // no line of the file was seen yet
	tip      link
	started  bool   // tip is known
	torn     tear   // what is no line since the last one
	tornLine int    // where it begins
	last     Event  // of the last line
	cause    string // its cause
	unsigned int    // lines since the last good checkpoint
	expected bool   // Expect was seen
}

// maxAuditLine bounds what is read at once, in bytes: far more than a line has.
const maxAuditLine = 1 << 20

// File checks the next file; the oldest comes first. The error is that of the
// reader.
func (v *AuditVerifier) File(name string, r io.Reader) error {
	v.file, v.line, v.first = name, 0, true
	in := bufio.NewReaderSize(r, maxAuditLine)
	for begin := true; ; {
		piece, err := in.ReadSlice('\n')
		if len(piece) > 0 {
			if begin {
				v.line++
			}
			v.piece(piece)
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
	v.Lines++
	v.unsigned++
	switch l.Event {
	case EventRequest:
		v.Requests++
	case eventOpen:
		if !v.closed() && v.last != "" && l.Cause == causeRestart {
			v.note("the key server starts here and had not been stopped: lines before it may never have been written, or are missing")
		}
	case eventCheckpoint:
		v.checkSignature(&l, content)
	}
	v.last, v.cause = l.Event, l.Cause
	v.expected = v.expected || v.Expect == tipName(stated)
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
	case !v.started && first && l.Event == eventOpen && l.Cause != causeRestart:
		v.begin(l, stated)
	case !v.started:
		v.fault("a log does not begin with this line: lines before it are missing")
	case first && l.Event == eventOpen && l.Cause == causeStart:
		v.note("a new log begins here: nothing says whether there were files between this one and the one before")
		v.begin(l, stated)
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

// begin takes up the chain from the first line of a file.
func (v *AuditVerifier) begin(l *signedLine, stated link) {
	v.started = true
	v.tip = link{}
	if l.Cause == causeStart {
		return
	}
	v.note(fmt.Sprintf("what was before sequence number %d is in an earlier file, and not checked", stated.seq))
	previous, err := parseChain(l.Previous)
	if err != nil {
		v.fault("'previous' is not the chain of a line")
	}
	v.tip = link{seq: stated.seq - 1, chain: previous}
}

// checkSignature checks a checkpoint whose place in the chain is known to be
// right.
func (v *AuditVerifier) checkSignature(l *signedLine, content []byte) {
	if len(v.Keys) == 0 {
		return
	}
	if l.Signature == nil {
		v.fault("the checkpoint is not signed")
		return
	}
	suffix := signaturePrefix + base64.StdEncoding.EncodeToString(l.Signature) + signatureSuffix
	signed, ok := bytes.CutSuffix(content, []byte(suffix))
	signed = append([]byte(signatureContext), signed...)
	for _, key := range v.Keys {
		if ok && ed25519.Verify(key, signed, l.Signature) {
			v.unsigned = 0
			return
		}
	}
	v.fault("the checkpoint's signature is not by the key: it, or lines since the checkpoint before it, were changed")
}
