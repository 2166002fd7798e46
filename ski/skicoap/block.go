package skicoap

import (
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"slices"

	"github.com/plgd-dev/go-coap/v3/message"
	"github.com/plgd-dev/go-coap/v3/message/codes"

	"github.com/tlsski/tlsski/ski"
)

const (
	// largestSZX is that of blocks of 1,024 bytes; 7 is reserved (RFC 7959,
	// Section 2.2).
	largestSZX = 6
	// optionRequestTag tells apart the transfers that a client has under way
	// at once (RFC 9175, Section 3). It is elective.
	optionRequestTag message.OptionID = 292
)

// block is the value of a Block1 or Block2 option (RFC 7959, Section 2.2).
type block struct {
	num  uint32 // below 2^20
	more bool
	szx  uint8
}

func (b block) size() int   { return 16 << b.szx }
func (b block) offset() int { return int(b.num) * b.size() }

func (b block) option(id message.OptionID) message.Option {
	v := b.num<<4 | uint32(b.szx)
	if b.more {
		v |= 8
	}
	return message.Option{ID: id, Value: uintValue(v)}
}

// fits reports whether n bytes can be the payload of a block: all of them are
// full but the last, which is not empty unless it is the only one.
func (b block) fits(n int) bool {
	return n == b.size() || !b.more && n < b.size() && (n > 0 || b.num == 0)
}

// findBlock returns a block option, or nil where there is none.
func findBlock(options message.Options, id message.OptionID) (*block, error) {
	first, end, err := options.Find(id)
	if err != nil {
		return nil, nil
	}
	value := options[first].Value
	if end-first > 1 || len(value) > 3 { // RFC 7252, Section 5.4.3 and 5.4.5
		return nil, fmt.Errorf("option %d is there twice or longer than 3 bytes", id)
	}
	var v uint32
	for _, b := range value {
		v = v<<8 | uint32(b)
	}
	return &block{num: v >> 4, more: v&8 != 0, szx: uint8(v & 7)}, nil
}

// blocks are the block options of a request; each may be nil.
type blocks struct{ one, two *block }

func findBlocks(options message.Options) (b blocks, _ *refusal) {
	var err error
	if b.one, err = findBlock(options, message.Block1); err != nil {
		return b, refuse(codes.BadOption, err.Error())
	}
	if b.two, err = findBlock(options, message.Block2); err != nil {
		return b, refuse(codes.BadOption, err.Error())
	}
	for _, b := range []*block{b.one, b.two} {
		if b != nil && b.szx > largestSZX {
			return blocks{}, refuse(codes.BadRequest, "block size 7 is reserved")
		}
	}
	return b, nil
}

// isPart reports whether the request carries, or asks for, less than all.
func (b blocks) isPart() bool {
	return b.one != nil && (b.one.num > 0 || b.one.more) || b.two != nil && b.two.num > 0
}

// fitsAnswer reports whether an answer of n bytes goes in one message.
func (b blocks) fitsAnswer(n int, limit mtu) bool {
	return n <= limit.whole() && (b.two == nil || n <= b.two.size())
}

// answerSZX is the block size of the answer: the client's, if it has a wish.
func (b blocks) answerSZX() uint8 {
	if b.two != nil {
		return b.two.szx
	}
	return largestSZX
}

// transferKey is what the requests of one block-wise transfer have in common:
// the method and all options that are part of a cache key, which Request-Tag
// is, except the block options (RFC 7959, Section 2.4; RFC 9175, Section 3.3).
// The token is not: a client may have a new one for each block.
type transferKey [sha256.Size]byte

func newTransferKey(m *message.Message) (key transferKey) {
	h := sha256.New()
	h.Write([]byte{byte(m.Code)})
	for _, o := range m.Options {
		if o.ID == message.Block1 || o.ID == message.Block2 || o.ID&0x1e == 0x1c { // NoCacheKey (RFC 7252, Section 5.4.6)
			continue
		}
		var head [4]byte
		binary.BigEndian.PutUint16(head[:], uint16(o.ID))
		binary.BigEndian.PutUint16(head[2:], uint16(len(o.Value)))
		h.Write(head[:])
		h.Write(o.Value)
	}
	h.Sum(key[:0])
	return key
}

// tooLarge is the answer to a request that is too long, with the length that
// is not (RFC 7959, Section 2.9.3).
func tooLarge() *refusal {
	return &refusal{
		code: codes.RequestEntityTooLarge, payload: fmt.Appendf(nil, "at most %d bytes", ski.MaxMessageSize),
		options: message.Options{{ID: message.Size1, Value: uintValue(ski.MaxMessageSize)}},
	}
}

// part returns the block of content that is asked for.
func part(content []byte, asked block) (payload []byte, b block, _ *refusal) {
	if asked.num > 0 && asked.offset() >= len(content) {
		return nil, asked, refuse(codes.BadRequest, "the block is behind the end")
	}
	end := min(len(content), asked.offset()+asked.size())
	b = block{num: asked.num, more: end < len(content), szx: asked.szx}
	return content[asked.offset():end], b, nil
}

// inOrder sorts options by number, as they are encoded.
func inOrder(options message.Options) message.Options {
	slices.SortStableFunc(options, func(a, b message.Option) int { return int(a.ID) - int(b.ID) })
	return options
}
