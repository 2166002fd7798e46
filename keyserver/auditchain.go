package keyserver

import (
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"hash"
	"io"
	"strconv"
	"time"

	"github.com/tlsski/tlsski/ski"
)

// cutOff ends a line that could only be written in part, so that it is none.
const cutOff = " [cut off]\n"

// chainWriter writes lines that are chained to each other. It is not safe for
// concurrent use.
type chainWriter struct {
	w    io.Writer
	tip  link
	size int64 // of what w has, in bytes
	torn tear
	open bool               // whether w ends without a newline
	key  ed25519.PrivateKey // nil for none
	now  func() time.Time
	step func() // for tests: what comes before each Write; nil for nothing
	buf  []byte
}

// tear is what there is behind the last whole line, in this file and, where it
// has no line yet, at the end of the one before it.
type tear struct {
	bytes int64
	hash  hash.Hash
}

func (t *tear) add(p []byte) {
	if len(p) == 0 {
		return
	}
	if t.hash == nil {
		t.hash = sha256.New()
	}
	t.bytes += int64(len(p))
	t.hash.Write(p)
}

// sum returns what an auditLine says of a tear: zeros where there is none.
func (t *tear) sum() (bytes int64, digest string) {
	if t.bytes == 0 {
		return 0, ""
	}
	return t.bytes, hex.EncodeToString(t.hash.Sum(nil))
}

// append writes a line, which is the JSON of an auditLine.
func (c *chainWriter) append(line []byte) error {
	if err := c.mend(); err != nil {
		return err
	}
	return c.write(line, nil)
}

// mend takes note of what could only be written in part, as on a full disk.
// That is not in the chain; but that it is there is, so that no part of the
// file goes unwatched.
func (c *chainWriter) mend() error {
	if c.torn.bytes == 0 {
		return nil
	}
	return c.writeMended(auditLine{Event: eventTorn})
}

// writeMended writes a line that takes note of the tear.
func (c *chainWriter) writeMended(line auditLine) error {
	if c.open {
		n, err := c.put([]byte(cutOff))
		c.wrote([]byte(cutOff)[:n])
		if err != nil {
			return err
		}
	}
	line.TornBytes, line.TornSHA256 = c.torn.sum()
	return c.writeOwn(line)
}

// writeOwn writes a line of the log itself. It is signed if there is a key, but
// for a 'torn'.
func (c *chainWriter) writeOwn(line auditLine) error {
	line.Time = auditTime(c.now())
	if line.Event == eventTorn {
		return c.write(line.encode(), nil)
	}
	line.Previous = c.tip.hex()
	if c.key != nil {
		id, err := ski.PublicKeyID(c.key.Public())
		if err != nil {
			return err
		}
		line.Signer = id.String()
	}
	return c.write(line.encode(), c.key)
}

func (c *chainWriter) put(p []byte) (int, error) {
	if c.step != nil {
		c.step()
	}
	return c.w.Write(p)
}

// wrote counts what is behind the last whole line.
func (c *chainWriter) wrote(p []byte) {
	c.size += int64(len(p))
	c.torn.add(p)
	if len(p) > 0 {
		c.open = p[len(p)-1] != '\n'
	}
}

func (c *chainWriter) write(line []byte, key ed25519.PrivateKey) error {
	b := append(c.buf[:0], seqPrefix...)
	b = strconv.AppendUint(b, c.tip.seq+1, 10)
	b = append(b, ',')
	b = append(b, line[1:len(line)-1]...) // without the braces
	if key != nil {
		signature := ed25519.Sign(key, append([]byte(signatureContext), b...))
		b = append(b, signaturePrefix...)
		b = base64.StdEncoding.AppendEncode(b, signature)
		b = append(b, signatureSuffix...)
	}
	next := c.tip.next(b)
	b = append(b, chainPrefix...)
	b = hex.AppendEncode(b, next.chain[:])
	b = append(b, chainSuffix...)
	b = append(b, '\n')
	c.buf = b

	n, err := c.put(b)
	if err != nil {
		c.wrote(b[:n])
		return err
	}
	c.size += int64(n)
	c.tip, c.torn, c.open = next, tear{}, false
	return nil
}

// begin writes the first line after a start, or of a file.
func (c *chainWriter) begin(line auditLine) error {
	line.Event = eventOpen
	return c.writeMended(line)
}

// appendOwn writes another line of the log itself.
func (c *chainWriter) appendOwn(line auditLine) error {
	if err := c.mend(); err != nil {
		return err
	}
	return c.writeOwn(line)
}
