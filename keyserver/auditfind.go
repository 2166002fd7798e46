package keyserver

import (
	"bytes"
	"crypto/ed25519"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math"
	"os"
)

// findLine looks for the line with a number in the file of a log, or in the one of
// those beside it that has it. The link is zero where the log goes from a lower
// number to a higher one.
func findLine(file string, seq uint64) (link, error) {
	found, ok, err := findLineIn(file, seq)
	if ok || err != nil && !errors.Is(err, fs.ErrNotExist) {
		return found, err
	}
	var next fileEnd
	for _, name := range siblings(file) {
		end, err := readEndOf(name)
		if err == nil && end.tip.seq >= seq && (next.name == "" || end.tip.seq < next.tip.seq) {
			next = end
			next.name = name
		}
	}
	if next.name != "" {
		if found, ok, err = findLineIn(next.name, seq); ok || err != nil {
			return found, err
		}
	}
	return link{}, fmt.Errorf("line %d is in none of the files beside it", seq)
}

// lineSearch is how many bytes of a file are read to find a line when it is known
// to be among them.
const lineSearch = 1 << 20

// findLineIn looks for a line in one file. ok is false where the file begins with
// a later one.
func findLineIn(name string, seq uint64) (found link, ok bool, err error) {
	f, err := os.Open(name)
	if err != nil {
		return link{}, false, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil || firstNumber(f) > seq {
		return link{}, false, err
	}
	// The numbers rise, so that most of a long file need not be read.
	begin, end := int64(0), info.Size()
	for end-begin > lineSearch {
		at, number, ok := nextLine(f, begin+(end-begin)/2)
		if !ok || at >= end {
			break
		}
		if number > seq {
			end = at
		} else {
			begin = at
		}
	}
	err = backward(f, end, func(line []byte, _ int64) bool {
		number, ok := wholeNumber(line)
		if ok && number == seq {
			_, found, _ = splitLine(line)
		}
		return !ok || number > seq
	})
	return found, true, err
}

// firstNumber returns the number of a file's first line, the highest there is
// where it has none.
func firstNumber(f io.ReaderAt) uint64 {
	if _, number, ok := nextLine(f, 0); ok {
		return number
	}
	return math.MaxUint64
}

// wholeNumber returns the number of a line that is not one that was cut off: its
// number may have been, too.
func wholeNumber(line []byte) (uint64, bool) {
	number, ok := lineNumber(line)
	return number, ok && len(line) > chainEnd && bytes.HasPrefix(line[len(line)-chainEnd:], []byte(chainPrefix))
}

// nextLine returns where the first line begins at or after an offset, if it is near,
// and its number.
func nextLine(f io.ReaderAt, offset int64) (at int64, number uint64, ok bool) {
	before := min(offset, 1) // to see whether a line begins there
	near := make([]byte, 1<<18)
	n, _ := f.ReadAt(near, offset-before)
	near = near[:n]
	pos := 0
	if before > 0 {
		pos = bytes.IndexByte(near, '\n') + 1
		if pos == 0 {
			return 0, 0, false
		}
	}
	for {
		length := bytes.IndexByte(near[pos:], '\n')
		if length < 0 {
			return 0, 0, false
		}
		if number, ok := wholeNumber(near[pos : pos+length]); ok {
			return offset - before + int64(pos), number, true
		}
		pos += length + 1
	}
}

// brokenAfter reports whether a log has the record of a discontinuity, signed by
// the key, after the line with a number; compared says that it has to be one that
// was compared with a witness that had the line.
func brokenAfter(file string, seq uint64, compared bool, key ed25519.PublicKey) (recorded bool, err error) {
	before := uint64(math.MaxUint64)
	for name, files := file, 0; files < maxScanFiles && !recorded && before > seq; files++ {
		err := visitBackward(name, func(line []byte) bool {
			if number, ok := wholeNumber(line); ok && number < before {
				before = number
				recorded = number > seq && isBroken(line, seq, compared, key)
			}
			return !recorded && before > seq
		})
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return false, err
		}
		found := findSibling(file, func(end link) bool { return end.seq < before })
		if found.name == "" {
			break
		}
		name = found.name
	}
	return recorded, nil
}

func visitBackward(name string, visit func(line []byte) bool) error {
	f, err := os.Open(name)
	if err != nil {
		return err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return err
	}
	return backward(f, info.Size(), func(line []byte, _ int64) bool { return visit(line) })
}

// isBroken reports whether a line is the record of a discontinuity, by the key.
func isBroken(line []byte, seq uint64, compared bool, key ed25519.PublicKey) bool {
	if !bytes.Contains(line, []byte(`"cause":"`+causeBroken+`"`)) {
		return false
	}
	content, stated, ok := splitLine(line)
	var l signedLine
	return ok && json.Unmarshal(line, &l) == nil && l.Event == eventOpen && l.Cause == causeBroken && (!compared || l.Witnessed >= seq) && l.provenBy(key, content, stated)
}
