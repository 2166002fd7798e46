package keyserver

import (
	"bufio"
	"errors"
	"fmt"
	"io"
)

// witnessCheck goes through the entries of a witness as AuditVerifier goes
// through the lines of the log.
type witnessCheck struct {
	name     string
	in       *bufio.Reader
	line     int
	next     *WitnessEntry // nil at the end
	last     *WitnessEntry // the one before
	from, to *WitnessEntry // those that were compared
	compared int
	differ   int // beyond the first
	older    int // of lines before the first of the log
}

// Witness has the log compared with the entries of a witness, which are signed
// by one of Keys. It comes before the first File.
func (v *AuditVerifier) Witness(name string, r io.Reader) {
	v.witness = &witnessCheck{name: name, in: bufio.NewReaderSize(r, MaxWitnessEntry)}
	v.nextEntry()
}

func (v *AuditVerifier) witnessFault(what string) {
	v.Faults = append(v.Faults, AuditFinding{v.witness.name, v.witness.line, what})
}

// nextEntry reads up to the next entry.
func (v *AuditVerifier) nextEntry() {
	w := v.witness
	if w.next != nil {
		w.last = w.next
	}
	for w.next = nil; w.next == nil; {
		line, err := w.in.ReadSlice('\n')
		if len(line) == 0 && errors.Is(err, io.EOF) {
			return
		}
		w.line++
		switch {
		case errors.Is(err, bufio.ErrBufferFull):
			v.witnessFault(fmt.Sprintf("it has more than %d bytes", MaxWitnessEntry))
			for errors.Is(err, bufio.ErrBufferFull) {
				_, err = w.in.ReadSlice('\n')
			}
			continue
		case err != nil && !errors.Is(err, io.EOF):
			v.witnessFault(err.Error())
			return
		case isCutOff(line):
			v.Notes = append(v.Notes, AuditFinding{w.name, w.line, "the entry is cut off"})
			continue
		}
		e, err := ParseWitnessEntry(line, v.Keys)
		switch {
		case err != nil:
			v.witnessFault("it is not an entry of the log's witness: " + err.Error())
		case !e.Follows(w.last):
			v.witnessFault(fmt.Sprintf("it names line %d, and the one before names line %d: it was moved, repeated or is of another log", e.Seq, w.last.Seq))
		default:
			w.next = e
		}
	}
}

// compareWitness compares the entries that come before or name a line of the
// log, which is the first of it or not.
func (v *AuditVerifier) compareWitness(l *signedLine, at link) {
	w := v.witness
	for ; w.next != nil && w.next.Seq < at.seq; v.nextEntry() {
		switch {
		case v.Lines == 0:
			w.older++
		case l.Event == eventOpen && l.Cause == causeBroken: // The line says so itself.
		default:
			v.entryDiffers("the witness has line %d, of %s, and the log does not")
		}
	}
	for ; w.next != nil && w.next.Seq == at.seq; v.nextEntry() {
		if w.next.link != at {
			v.entryDiffers("line %d, or one before it, is another than the witness has, of %s: the log was made anew")
			continue
		}
		if w.compared++; w.from == nil {
			w.from = w.next
		}
		w.to = w.next
	}
}

func (v *AuditVerifier) entryDiffers(format string) {
	w := v.witness
	if w.differ++; w.differ == 1 {
		v.witnessFault(fmt.Sprintf(format, w.next.Seq, w.next.Time))
	}
}

// endWitness checks what is known only after the last line.
func (v *AuditVerifier) endWitness() {
	w := v.witness
	if w == nil {
		return
	}
	note := func(format string, args ...any) {
		v.Notes = append(v.Notes, AuditFinding{w.name, w.line, fmt.Sprintf(format, args...)})
	}
	beyond := 0
	for first := true; w.next != nil; v.nextEntry() {
		beyond++
		if first {
			v.witnessFault(fmt.Sprintf("the witness has line %d, of %s, and the log ends with line %d: what came after was removed", w.next.Seq, w.next.Time, v.tip.seq))
		}
		first = false
	}
	if more := w.differ + beyond; more > 1 {
		note("%d entries differ from the log", more)
	}
	if w.older > 0 {
		note("%d entries are of lines before the first of these files, and were not compared", w.older)
	}
	switch {
	case w.compared == 0:
		note("no entry of the witness names a line of these files")
	case w.to.link != v.tip:
		note("%d entries agree with the log, from %s to %s; no entry covers the last %d lines", w.compared, w.from.Time, w.to.Time, v.tip.seq-w.to.Seq)
	default:
		note("%d entries agree with the log, from %s to %s", w.compared, w.from.Time, w.to.Time)
	}
}
