package keyserver

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/tlsski/tlsski/internal/guarded"
	"github.com/tlsski/tlsski/ski"
)

// acceptance is a file beside the tip that says that an operator has seen how a
// log differs from what it was left as. The key server puts it into the log.
type acceptance struct {
	Time   string `json:"time"`
	By     string `json:"by"`
	Reason string `json:"reason"`
	// Differs is what a start finds, and End where the log ends then: an
	// acceptance of one discontinuity is none of the next.
	Differs []string `json:"differs,omitempty"`
	End     string   `json:"end,omitempty"`
	// Lines are discontinuities that are in the log, SEQUENCE:CHAIN.
	Lines []string `json:"lines,omitempty"`
	// Signer is the SPKI fingerprint of the log's key.
	Signer string `json:"signer,omitempty"`
}

const (
	acceptContext = "tlsski audit acceptance\x00"
	// maxAcceptance bounds the file, and maxAcceptText what an operator says, in
	// bytes.
	maxAcceptance = 1 << 16
	maxAcceptText = 1000
)

// AcceptAudit says, by the key of the log if it has one, that an operator has
// seen how the log differs from what it was left as: what the next start would
// find, if no key server runs, and the discontinuities that are in the log. It
// returns them. A key server that is required to keep the log starts after
// that, and one that runs puts the acceptance into the log within a second. The
// error is also that there is nothing to accept.
func AcceptAudit(o AuditOptions, by, reason string) ([]string, error) {
	if o.Tip == "" {
		return nil, errors.New("the configuration has no 'state', and without that the log has no tip that it could differ from")
	}
	a := acceptance{Time: auditTime(time.Now()), By: by, Reason: reason}
	for name, text := range map[string]string{"the name": by, "the reason": reason} {
		if strings.TrimSpace(text) == "" || len(text) > maxAcceptText || !utf8.ValidString(text) {
			return nil, fmt.Errorf("%s is empty or has more than %d bytes", name, maxAcceptText)
		}
	}
	if err := a.find(&o); err != nil {
		return nil, err
	}
	if o.Key != nil {
		id, err := ski.PublicKeyID(o.Key.Public())
		if err != nil {
			return nil, err
		}
		a.Signer = id.String()
	}
	data, err := encodeSigned(acceptContext, &a, o.Key)
	if err != nil {
		return nil, err
	}
	found := slices.Clone(a.Differs)
	for _, line := range a.Lines {
		seq, _, _ := strings.Cut(line, ":")
		found = append(found, "the discontinuity in line "+seq)
	}
	return found, replaceFile(o.Tip+auditAcceptSuffix, data)
}

// find finds what there is to accept.
func (a *acceptance) find(o *AuditOptions) error {
	f, running, err := openStopped(o.File)
	if f != nil {
		defer f.Close()
	}
	switch {
	case err != nil:
		return err
	case running:
		tip, err := readTip(o.Tip, o.public())
		if err != nil {
			return err
		}
		if tip != nil {
			a.Lines = tip.Unaccepted
		}
		if w, err := readWitnessed(o); err == nil && w != nil && tip != nil && len(a.Lines) == 0 {
			if differs, _ := compareWitness(o, tip.link, w); differs != "" {
				return fmt.Errorf("the log is not what its witness has (%s): stop the key server, and accept it then", differs)
			}
		}
	default:
		s, err := lookBack(o, f)
		if err != nil {
			return err
		}
		a.Lines, a.Differs, a.End = s.unaccepted, s.differs, tipName(s.end.tip)
	}
	if len(a.Lines) == 0 && len(a.Differs) == 0 {
		return errors.New("there is nothing to accept: the log is as the key server left it")
	}
	return nil
}

// openStopped opens the log of a key server that does not run; nil if there is
// no file, or none that can be read back.
func openStopped(file string) (f *os.File, running bool, err error) {
	if !isFile(file) {
		return nil, false, nil
	}
	f, err = os.Open(file)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, false, nil
	case err != nil:
		return nil, false, err
	case lockFile(f) != nil:
		return f, true, nil
	}
	return f, false, nil
}

// readAcceptance reads the acceptance of a log; nil if there is none.
func readAcceptance(o *AuditOptions) (*acceptance, error) {
	if o.Tip == "" {
		return nil, nil
	}
	file := o.Tip + auditAcceptSuffix
	data, err := guarded.Read(file, guarded.Secret, maxAcceptance)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	a, err := parseAcceptance(data, o)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	return a, nil
}

func parseAcceptance(data []byte, o *AuditOptions) (*acceptance, error) {
	a := new(acceptance)
	text, err := decodeSigned(acceptContext, data, a)
	switch {
	case err != nil:
		return nil, err
	case o.Key != nil && !text.by(o.public()):
		return nil, errors.New("it is not signed by the key of the log")
	case a.By == "" || a.Reason == "" || len(a.By) > maxAcceptText || len(a.Reason) > maxAcceptText || len(a.Lines) > maxUnaccepted:
		return nil, errors.New("it does not say who accepts and why, or says too much")
	}
	return a, nil
}

// of reports whether it is of what a start has found.
func (a *acceptance) of(s *auditStart) bool {
	return a != nil && slices.Equal(a.Differs, s.differs) && a.End == tipName(s.end.tip)
}

// accept puts an acceptance into the log, if it is of discontinuities that are
// there, and removes its file. l.mu is not held.
func (l *AuditLog) accept(a *acceptance, lines []string) {
	l.lock()
	lines = slices.DeleteFunc(slices.Clone(lines), func(line string) bool { return !slices.Contains(l.unaccepted, line) })
	var err error
	if len(lines) > 0 {
		err = l.chain.appendOwn(auditLine{Event: eventAccept, By: a.By, Reason: a.Reason, Accepts: lines})
		if err == nil {
			l.unaccepted = slices.DeleteFunc(slices.Clone(l.unaccepted), func(line string) bool { return slices.Contains(lines, line) })
		}
	}
	l.unlock()
	if err == nil {
		err = l.saveTip(false)
	}
	if err == nil {
		l.change()
		err = os.Remove(l.o.Tip + auditAcceptSuffix)
	}
	switch {
	case err != nil:
		l.log.Error("audit log: an acceptance cannot be recorded", "error", err)
	case len(lines) > 0:
		l.log.Warn("audit log: discontinuities were accepted", "by", a.By, "reason", a.Reason, "lines", len(lines))
	default:
		l.log.Warn("audit log: an acceptance that fits no discontinuity was removed", "by", a.By, "reason", a.Reason)
	}
}

// acceptWhileRunning looks for an acceptance while there is something to accept.
func (l *AuditLog) acceptWhileRunning() {
	if l.Discontinuities() == 0 {
		return
	}
	a, err := readAcceptance(&l.o)
	if err != nil && !l.acceptFails {
		l.log.Error("audit log: an acceptance cannot be used", "error", err)
	}
	if l.acceptFails = err != nil; a != nil {
		l.accept(a, a.Lines)
	}
}

// Discontinuities returns how many times the log was not found as it was left,
// and no operator has accepted it. It counts the newest 32.
func (l *AuditLog) Discontinuities() int {
	return l.state.Load().discontinuities
}
