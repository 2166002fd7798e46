package keyserver

import (
	"bytes"
	"crypto/ed25519"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/tlsski/tlsski/ski"
)

// WitnessEntry says how far an audit log went at a time, signed with the key of
// its checkpoints. A witness keeps such entries where whoever can change the log,
// its tip and the state cannot change them.
type WitnessEntry struct {
	// Seq and Chain are of the last line of the log, which was on the disk.
	Seq   uint64 `json:"seq"`
	Chain string `json:"chain"`
	Time  string `json:"time"`
	// Signer is the SPKI fingerprint of the key.
	Signer string `json:"signer"`

	line []byte // as it stands in a witness, with its newline
	link link
}

const (
	witnessContext = "tlsski audit witness\x00"
	// MaxWitnessEntry bounds an entry's line, in bytes.
	MaxWitnessEntry = 1 << 10
	// witnessTail is how much of a witness's end is looked at, in bytes.
	witnessTail = 1 << 16
)

func newWitnessEntry(at link, now time.Time, key ed25519.PrivateKey) (*WitnessEntry, error) {
	id, err := ski.PublicKeyID(key.Public())
	if err != nil {
		return nil, err
	}
	e := &WitnessEntry{Seq: at.seq, Chain: at.hex(), Time: auditTime(now), Signer: id.String(), link: at}
	e.line, err = encodeSigned(witnessContext, e, key)
	return e, err
}

// ParseWitnessEntry reads a line of a witness, with its newline, which has to be
// signed by one of the keys.
func ParseWitnessEntry(line []byte, keys []ed25519.PublicKey) (*WitnessEntry, error) {
	if len(line) > MaxWitnessEntry {
		return nil, fmt.Errorf("it has more than %d bytes", MaxWitnessEntry)
	}
	e := &WitnessEntry{line: bytes.Clone(line)}
	text, err := decodeSigned(witnessContext, line, e)
	if err != nil {
		return nil, err
	}
	if e.link, err = newLink(e.Seq, e.Chain); err != nil {
		return nil, err
	}
	if _, err := time.Parse(time.RFC3339Nano, e.Time); err != nil {
		return nil, errors.New("its time is not RFC 3339")
	}
	for _, key := range keys {
		if text.by(key) {
			return e, nil
		}
	}
	return nil, fmt.Errorf("it is not signed by the key of the audit log, but says it is by %q", e.Signer)
}

// Line returns the entry as it stands in a witness, with its newline.
func (e *WitnessEntry) Line() []byte { return e.line }

// String names the entry in messages.
func (e *WitnessEntry) String() string { return fmt.Sprintf("line %d, of %s", e.Seq, e.Time) }

// Follows reports whether the entry can come after another of the same log.
func (e *WitnessEntry) Follows(last *WitnessEntry) bool {
	return last == nil || e.Seq > last.Seq || e.link == last.link
}

func (e *WitnessEntry) at() time.Time {
	t, _ := time.Parse(time.RFC3339Nano, e.Time)
	return t
}

// Witness is a file that entries are appended to, each a line. It has one writer.
type Witness struct {
	file string
	last *WitnessEntry
	size int64 // of the file, after last
	// create says that the file may be made. One that was there and has gone may
	// be that of a mount that has.
	create bool
}

// OpenWitness reads the last entry of a file, which has to be signed by one of
// the keys. What could only be written in part is left out. A file that is not
// there is an empty one. The Witness is never nil, and has no last entry where
// there is an error.
func OpenWitness(file string, keys []ed25519.PublicKey) (*Witness, error) {
	w := &Witness{file: file, create: true}
	if err := checkWitnessKind(file); err != nil {
		return w, err
	}
	f, err := os.Open(file)
	if errors.Is(err, fs.ErrNotExist) {
		return w, nil
	}
	if err != nil {
		return w, err
	}
	defer f.Close()
	if w.size, err = f.Seek(0, io.SeekEnd); err != nil {
		return w, err
	}
	n := min(w.size, witnessTail)
	tail := make([]byte, n)
	if _, err := io.ReadFull(io.NewSectionReader(f, w.size-n, n), tail); err != nil {
		return w, err
	}
	line, ok := lastWitnessLine(tail)
	if !ok {
		if w.size == 0 || n == w.size && isTornLine(tail) {
			return w, nil
		}
		return w, fmt.Errorf("%s: it is not a witness of an audit log", file)
	}
	last, err := ParseWitnessEntry(line, keys)
	if err != nil {
		return w, fmt.Errorf("%s: its last line: %w", file, err)
	}
	w.last = last
	return w, nil
}

// lastWitnessLine returns the last line that is not one that was cut off.
func lastWitnessLine(tail []byte) (line []byte, ok bool) {
	for end := len(tail); ; {
		newline := bytes.LastIndexByte(tail[:end], '\n')
		if newline < 0 {
			return nil, false
		}
		begin := bytes.LastIndexByte(tail[:newline], '\n') + 1
		if line = tail[begin : newline+1]; !isCutOff(line) {
			return line, true
		}
		end = newline
	}
}

// isCutOff reports whether a line is the beginning of an entry.
func isCutOff(line []byte) bool {
	text := bytes.TrimSuffix(line, []byte{'\n'})
	return isTornLine(text) && !bytes.HasSuffix(text, []byte("}"))
}

// checkWitnessKind refuses what is no file that can be appended to and read.
func checkWitnessKind(file string) error {
	info, err := os.Stat(file)
	if errors.Is(err, fs.ErrNotExist) {
		_, err = os.Stat(filepath.Dir(file))
		return err
	}
	if err == nil && !info.Mode().IsRegular() {
		err = fmt.Errorf("%s: it is not a regular file", file)
	}
	return err
}

// Last returns the last entry, nil for none.
func (w *Witness) Last() *WitnessEntry { return w.last }

// Append writes an entry, and returns when it is on the disk.
func (w *Witness) Append(e *WitnessEntry) error {
	flags := os.O_RDWR | os.O_APPEND
	if w.create {
		flags |= os.O_CREATE
	}
	f, err := os.OpenFile(w.file, flags, 0o600)
	if err != nil {
		return err
	}
	err = w.append(f, e.line)
	if errClose := f.Close(); err == nil {
		err = errClose
	}
	if err == nil && w.create {
		w.create = false
		err = syncFolder(filepath.Dir(w.file))
	}
	if err == nil {
		w.last = e
	}
	return err
}

func (w *Witness) append(f *os.File, line []byte) error {
	size, err := w.check(f)
	if err != nil {
		return err
	}
	end := make([]byte, 1)
	if size > 0 {
		if _, err := f.ReadAt(end, size-1); err != nil {
			return err
		}
		if end[0] != '\n' { // What was cut off is a line of its own.
			line = append([]byte{'\n'}, line...)
		}
	}
	n, err := f.Write(line)
	w.size = size + int64(n)
	if err != nil {
		return err
	}
	return f.Sync()
}

// check finds out whether the entries are still there.
func (w *Witness) check(f *os.File) (size int64, err error) {
	info, err := f.Stat()
	switch {
	case err != nil:
		return 0, err
	case !info.Mode().IsRegular():
		return 0, fmt.Errorf("%s: it is not a regular file", w.file)
	case info.Size() < w.size:
		return 0, fmt.Errorf("%s: it has %d bytes, and had %d: entries were removed", w.file, info.Size(), w.size)
	}
	return info.Size(), nil
}

// Check finds out whether the entries are still there when there is no other to
// append.
func (w *Witness) Check() error {
	f, err := os.Open(w.file)
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = w.check(f)
	return err
}
