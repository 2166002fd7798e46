package keyserver

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// openAuditFile opens a file to append to, and locks it.
func openAuditFile(file string) (*os.File, error) {
	if err := checkAuditKind(file); err != nil {
		return nil, err
	}
	f, err := os.OpenFile(file, os.O_RDWR|os.O_APPEND|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	if err := lockFile(f); err != nil {
		_ = f.Close()
		return nil, fmt.Errorf("%s: another process writes to it: %w", file, err)
	}
	return f, nil
}

// checkAuditKind refuses what cannot be appended to: to open a pipe would mean
// to wait for its other end.
func checkAuditKind(file string) error {
	info, err := os.Stat(file)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return err
	case info.Mode().IsRegular() || info.Mode()&fs.ModeCharDevice != 0:
		return nil
	}
	return fmt.Errorf(`%s: it is neither a regular file nor a character device ("-" is standard output)`, file)
}

// CheckAuditLog finds out what OpenAuditLog would make of the log, as far as
// that can be told without creating or changing a file, and while another
// process writes to it. The error is why it would fail; differs is what it would
// record as a discontinuity.
func CheckAuditLog(o AuditOptions) (differs []string, err error) {
	if differs, err = o.check(); err != nil {
		return nil, fmt.Errorf("audit log: %w", err)
	}
	if len(differs) > 0 && o.Required {
		return nil, &DiscontinuityError{File: o.File, Differs: differs}
	}
	return differs, nil
}

// check looks again where it finds a difference and a key server has written
// meanwhile: that may have begun a new file.
func (o *AuditOptions) check() (differs []string, err error) {
	for range 3 {
		before, _ := os.Stat(o.File)
		if differs, err = o.checkOnce(); err != nil || len(differs) == 0 {
			break
		}
		after, _ := os.Stat(o.File)
		if before == nil || after == nil || os.SameFile(before, after) && before.Size() == after.Size() {
			break
		}
	}
	return differs, err
}

func (o *AuditOptions) checkOnce() (differs []string, err error) {
	var f *os.File
	if o.File != "-" {
		if err := checkAuditKind(o.File); err != nil {
			return nil, err
		}
		switch f, err = os.OpenFile(o.File, os.O_RDWR|os.O_APPEND, 0); {
		case errors.Is(err, fs.ErrNotExist):
			if err := mayCreateIn(filepath.Dir(o.File)); err != nil {
				return nil, err
			}
			f = nil
		case err != nil:
			return nil, err
		default:
			defer f.Close()
		}
	}
	s, err := lookBack(o, f)
	if err != nil {
		return nil, err
	}
	return s.differs, nil
}

// auditFileWarning returns what the operator should know of the file, or "".
// The log says which PreMasterSecrets were wrong, and in what: to an edge
// server that can read it, it is the padding oracle that the answers are not.
func auditFileWarning(file string) string {
	if file == "-" {
		return ""
	}
	info, err := os.Stat(file)
	if err != nil || !info.Mode().IsRegular() || info.Mode().Perm()&0o077 == 0 {
		return ""
	}
	return fmt.Sprintf("audit log %s: group or others have rights to it (mode %04o), and it says what edges must not know: chmod 600",
		file, info.Mode().Perm())
}

// fileEnd is where a log goes on.
type fileEnd struct {
	tip    link
	size   int64
	torn   tear   // what is behind the last whole line
	rest   []byte // which is this
	open   bool   // whether there is no newline at the end
	name   string // the file's, where it is not the log's own
	before string // the name of the file with the last line, where that is not the log's own

	beforeSize int64 // of that file
}

// firstTail is how much of a file's end is looked at first, in bytes. It holds
// hundreds of lines.
const firstTail = 1 << 18

// maxTail is how much is looked at, in bytes: more than can be behind the last
// whole line.
const maxTail = 1 << 26

// readEnd finds the last whole line of a file. A file that has none but has
// something else is no audit log, and is refused.
func readEnd(f *os.File) (fileEnd, error) {
	info, err := f.Stat()
	if err != nil || !info.Mode().IsRegular() {
		return fileEnd{}, err
	}
	size := info.Size()
	for n := min(size, firstTail); ; n = min(size, 4*n, maxTail) {
		tail := make([]byte, n)
		if _, err := io.ReadFull(io.NewSectionReader(f, size-n, n), tail); err != nil {
			return fileEnd{}, err
		}
		end := fileEnd{size: size}
		tip, rest, found := lastLine(tail)
		end.tip = tip
		switch {
		case found, n == size && isTornLine(tail):
			end.torn.add(rest)
			end.rest = rest
			end.open = len(rest) > 0 && rest[len(rest)-1] != '\n'
			return end, nil
		case n == size, n == maxTail:
			return fileEnd{}, fmt.Errorf("%s: it is not an audit log: move it away", f.Name())
		}
	}
}

// lastLine returns the link behind the last whole line and what comes then.
func lastLine(tail []byte) (tip link, rest []byte, ok bool) {
	for end := len(tail); ; {
		newline := bytes.LastIndexByte(tail[:end], '\n')
		if newline < 0 {
			return link{}, tail, false
		}
		begin := bytes.LastIndexByte(tail[:newline], '\n') + 1
		if _, tip, ok := splitLine(tail[begin:newline]); ok {
			return tip, tail[newline+1:], true
		}
		end = newline
	}
}

// isTornLine reports whether data can be what came of a first line.
func isTornLine(data []byte) bool {
	first := []byte(seqPrefix)
	n := min(len(data), len(first))
	return bytes.Equal(data[:n], first[:n])
}

// rotatedName is what a file is renamed to whose last line has this number.
func rotatedName(file string, seq uint64) string { return fmt.Sprintf("%s.%012d", file, seq) }

// predecessor returns the end of the last file that was rotated, or nothing: a
// crash can come between the renaming and the first line of the new file.
func predecessor(file string) (fileEnd, error) {
	rotated, err := filepath.Glob(globQuote(file) + "." + strings.Repeat("[0-9]", 12))
	if err != nil || len(rotated) == 0 {
		return fileEnd{}, err
	}
	name := rotated[len(rotated)-1] // Glob sorts.
	end, err := readEndOf(name)
	end.name = name
	return end, err
}

// globQuote makes a name stand for itself in a pattern.
func globQuote(name string) string {
	return strings.NewReplacer(`\`, `\\`, `*`, `\*`, `?`, `\?`, `[`, `\[`).Replace(name)
}

// renameNew renames a file, but never over another: that one has records too.
func renameNew(from, to string) error {
	if _, err := os.Lstat(to); err == nil {
		return fmt.Errorf("%s: %w", to, fs.ErrExist)
	}
	return os.Rename(from, to)
}

// isOpenFile reports whether name is still that of f.
func isOpenFile(name string, f *os.File) bool {
	there, err := os.Stat(name)
	if err != nil {
		return false
	}
	open, err := f.Stat()
	return err == nil && os.SameFile(there, open)
}
