package skicoap

import (
	"bufio"
	"errors"
	"fmt"
	"io"

	"github.com/plgd-dev/go-coap/v3/message"
	"github.com/plgd-dev/go-coap/v3/tcp/coder"
)

const (
	// maxFrame is the largest message of RFC 8323 that is read, for the reason
	// that maxDatagram has. The peer is told with Max-Message-Size.
	maxFrame = maxDatagram
	// baseMaxFrame is what a peer takes that has not said otherwise (RFC 8323,
	// Section 5.3.1).
	baseMaxFrame = 1152
)

// frameError is a message that breaks the format, after which nobody knows
// where the next one begins.
type frameError struct{ reason string }

func (e *frameError) Error() string { return e.reason }

// frameReader reads the messages of a stream (RFC 8323, Section 3.2).
type frameReader struct {
	r       *bufio.Reader
	frame   [maxFrame]byte // the one that was read last
	options message.Options
}

func newFrameReader(r io.Reader) *frameReader {
	return &frameReader{r: bufio.NewReaderSize(r, maxFrame), options: make(message.Options, 0, maxOptions)}
}

// read returns the next message. It and what it refers to are only valid until
// the next call. begun is called when its first byte is there and others are
// not. The error is a *frameError or the stream's.
func (f *frameReader) read(begun func()) (message.Message, error) {
	first, err := f.r.Peek(1)
	if err != nil {
		return message.Message{}, err
	}
	if first[0]&0x0f > message.MaxTokenSize {
		return message.Message{}, &frameError{"malformed header"}
	}
	// Len and TKL say how long the header is: 1 + extended length + Code + token.
	size := 1 + 1 + int(first[0]&0x0f)
	switch first[0] >> 4 {
	case 13:
		size++
	case 14:
		size += 2
	case 15:
		size += 4
	}
	if f.r.Buffered() < size {
		begun()
	}
	if _, err := io.ReadFull(f.r, f.frame[:size]); err != nil {
		return message.Message{}, partly(err)
	}
	var header coder.MessageHeader
	if _, err := coder.DefaultCoder.DecodeHeader(f.frame[:size], &header); err != nil {
		return message.Message{}, &frameError{"malformed header"}
	}
	if header.MessageLength > maxFrame { // before anything is made for it
		return message.Message{}, &frameError{fmt.Sprintf("a message of %d bytes, and %d is the most", header.MessageLength, maxFrame)}
	}
	rest := f.frame[size:header.MessageLength]
	if f.r.Buffered() < len(rest) {
		begun()
	}
	if _, err := io.ReadFull(f.r, rest); err != nil {
		return message.Message{}, partly(err)
	}
	m := message.Message{Options: f.options[:0]}
	if _, err := coder.DefaultCoder.DecodeWithHeader(rest, header, &m); err != nil {
		return message.Message{}, &frameError{"malformed options"}
	}
	return m, nil
}

// clear forgets the message that was read last: it may have held a
// PreMasterSecret.
func (f *frameReader) clear() { clear(f.frame[:]) }

// partly tells the end of the stream within a message from that between two.
func partly(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}

func encodeFrame(m message.Message) ([]byte, error) {
	size, err := coder.DefaultCoder.Size(m)
	if err != nil {
		return nil, err
	}
	frame := make([]byte, size)
	n, err := coder.DefaultCoder.Encode(m, frame)
	if err != nil {
		return nil, err
	}
	return frame[:n], nil
}
