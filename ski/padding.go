package ski

import (
	"bytes"
	"encoding/binary"
	"math"
)

// The key of the pair that makes a CBOR message longer, and the one for the
// lengths that it cannot have. No reader knows either, so every reader ignores
// them, and both sort behind 'output' and 'error' (RFC 8949, Section 4.2.1).
const (
	attrPadding     = "padding"
	attrPaddingMore = "padding-"
)

// The longest error of the four, encoded.
const (
	longestErrorCBOR = "\xa1\x65error\x71malformed request"
	longestErrorJSON = `{"error":"malformed request"}`
)

// PaddedBodyLen is r.PaddedLen for a binding that pads with PadResponse: the
// length in bytes that it can give to every answer to such a request, errors
// included.
func (r *Response) PaddedBodyLen(f Format) int {
	if f == JSON {
		return max(r.PaddedLen(f), len(longestErrorJSON))
	}
	return max(r.PaddedLen(f), len(longestErrorCBOR)) + 1 + len(attrPadding) + 1
}

// PadResponse makes what EncodeResponse returned n bytes long without a change
// of what it says: JSON by white space after it, CBOR by a pair that readers do
// not know. It is for bindings that cannot hide the length of a message
// below it. A message that is too long already, by PaddedBodyLen, stays as it is.
// Where the result is another slice, data is cleared.
func PadResponse(f Format, data []byte, n int) []byte {
	missing := n - len(data)
	if missing <= 0 {
		return data
	}
	const mapHead, manyPairs = 0xa0, 0xb7 // with the number of pairs up to 23 in it
	if f != JSON && (missing < 1+len(attrPadding)+1 || data[0] < mapHead || data[0] >= manyPairs) {
		return data
	}
	longer := append(make([]byte, 0, n), data...)
	clear(data)
	data = longer
	if f == JSON {
		return append(data, bytes.Repeat([]byte{' '}, missing)...)
	}
	data[0]++
	key := attrPadding
	// A byte string's head has 1 byte below 24 bytes, 2 below 256, then 3 (RFC
	// 8949, Section 3): with this key, no string gives these two lengths.
	if missing == 1+len(attrPadding)+1+24 || missing == 1+len(attrPadding)+2+256 {
		key = attrPaddingMore
	}
	data = append(data, 0x60|byte(len(key)))
	data = append(data, key...)
	switch value := missing - 1 - len(key); {
	case value-1 < 24:
		data = append(data, 0x40|byte(value-1))
		missing = value - 1
	case value-2 <= math.MaxUint8:
		data = append(data, 0x58, byte(value-2))
		missing = value - 2
	default:
		data = append(data, 0x59)
		data = binary.BigEndian.AppendUint16(data, uint16(value-3))
		missing = value - 3
	}
	return append(data, make([]byte, missing)...)
}
