package keyserver

import (
	"bytes"
	"io"
)

// backward calls visit with each line of a file, the last first, without its
// newline and with the offset behind that, until visit returns false. What
// comes after the last newline is no line.
func backward(r io.ReaderAt, size int64, visit func(line []byte, end int64) (more bool)) error {
	const block = 1 << 18
	var buf []byte // the file from pos on, up to what was visited
	for pos := size; pos > 0; {
		n := min(pos, block)
		pos -= n
		grown := make([]byte, int(n)+len(buf))
		if _, err := io.ReadFull(io.NewSectionReader(r, pos, n), grown[:n]); err != nil {
			return err
		}
		copy(grown[n:], buf)
		buf = grown
		for {
			newline := bytes.LastIndexByte(buf, '\n')
			if newline < 0 {
				break
			}
			begin := bytes.LastIndexByte(buf[:newline], '\n') + 1
			if begin == 0 && pos > 0 {
				break // The rest of it is in the block before.
			}
			if !visit(buf[begin:newline], pos+int64(newline)+1) {
				return nil
			}
			buf = buf[:begin]
		}
		if len(buf) > maxAuditLine {
			buf = buf[:block] // What is so long is no line: its end is not needed.
		}
	}
	return nil
}
