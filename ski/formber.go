package ski

import "bytes"

// isBER reports whether input is one or more SEQUENCEs or SETs in BER (X.690) to
// its last byte. Several stand for a PKCS #7 content without its own header,
// which is how RFC 2315, Section 9.3, has it digested.
//
// A length in the long form that fits, padded or not, is enough. With the
// short form, which fits by chance in one of 32,768 inputs of 100 bytes, the
// members have to fit too. What has an indefinite length ends with
// end-of-contents.
func isBER(input []byte) bool {
	for {
		h, contents, ok := cutBERHeader(input)
		switch {
		case !ok || !h.isSequenceOrSet():
			return false
		case h.indefinite:
			return endsWithEndOfContents(contents)
		case uint64(h.length) > uint64(len(contents)):
			return false
		}
		contents, input = contents[:h.length], contents[h.length:]
		if !h.long && !hasMembersToItsEnd(contents) && !beginsLikeAStructure(contents) {
			return false
		}
		if len(input) == 0 {
			return true
		}
	}
}

// endsWithEndOfContents takes the one octet of its length in the long form too, and
// a tag that says that it is constructed.
func endsWithEndOfContents(contents []byte) bool {
	contents, ok := bytes.CutSuffix(contents, []byte{0})
	contents = bytes.TrimSuffix(contents, []byte{0x81})
	return ok && len(contents) > 0 && contents[len(contents)-1]&^0x20 == 0
}

// hasMembersToItsEnd reports whether contents is whole elements. Elements of an
// indefinite length are entered, so that end-of-contents is one more element:
// whatever reader finds an end for them, it has met the same headers.
func hasMembersToItsEnd(contents []byte) bool {
	for len(contents) > 0 {
		var ok bool
		if _, contents, ok = cutBERElement(contents); !ok {
			return false
		}
	}
	return true
}

// beginsLikeAStructure reports whether contents begins with two whole elements
// such as the structures that are signed begin with: first an INTEGER, OBJECT
// IDENTIFIER, SEQUENCE, SET or one of [0] to [3], then anything of the classes
// universal and context-specific; or with a time as the second or third element,
// as the data of OCSP responses do, whose first can have any tag. There are
// readers, Go's of certificates, certification requests and OCSP among them, that
// take no notice of what follows the members that they know.
func beginsLikeAStructure(contents []byte) bool {
	first, rest, ok := cutBERElement(contents)
	if !ok {
		return false
	}
	second, rest, ok := cutBERElement(rest)
	switch {
	case !ok:
		return false
	case second.isTime():
		return true
	case first.beginsAStructure() && (second.class == classUniversal || second.class == classContext):
		return true
	}
	third, _, ok := cutBERElement(rest)
	return ok && third.isTime()
}

func (h *berHeader) beginsAStructure() bool {
	if h.constructed {
		return h.isSequenceOrSet() || h.class == classContext && h.number <= 3
	}
	return h.class == classUniversal && (h.number == tagInteger || h.number == tagOID)
}

func (h *berHeader) isSequenceOrSet() bool {
	return h.constructed && h.class == classUniversal && (h.number == tagSequence || h.number == tagSet)
}

func (h *berHeader) isTime() bool {
	return h.class == classUniversal && (h.number == tagUTCTime || h.number == tagGeneralizedTime)
}

// The classes and the universal tags (X.690, Section 8.1.2; X.680, Section 8).
const (
	classUniversal = 0x00
	classContext   = 0x80

	tagInteger         = 2
	tagOID             = 6
	tagSequence        = 16
	tagSet             = 17
	tagUTCTime         = 23
	tagGeneralizedTime = 24
)

// berHeader is the identifier and length octets of an element.
type berHeader struct {
	class       byte
	constructed bool
	number      uint32
	length      uint32 // of the contents; 0 with an indefinite one
	long        bool   // the length has more than one octet
	indefinite  bool
}

// cutBERElement cuts off an element, or only the header of one that has an
// indefinite length.
func cutBERElement(b []byte) (h berHeader, rest []byte, ok bool) {
	h, rest, ok = cutBERHeader(b)
	if !ok || uint64(h.length) > uint64(len(rest)) {
		return h, nil, false
	}
	return h, rest[h.length:], true
}

// cutBERHeader cuts off a header in any encoding: tags below 31 in the form for
// high ones, numbers with leading zeros, lengths of up to 127 octets. Numbers
// wrap around as they do in readers of 32 bits.
func cutBERHeader(b []byte) (h berHeader, rest []byte, ok bool) {
	if len(b) < 2 {
		return h, nil, false
	}
	h.class, h.constructed, h.number = b[0]&0xc0, b[0]&0x20 != 0, uint32(b[0]&0x1f)
	b = b[1:]
	if h.number == 0x1f {
		h.number = 0
		for more := true; more; b = b[1:] {
			if len(b) == 0 {
				return h, nil, false
			}
			h.number, more = h.number<<7|uint32(b[0]&0x7f), b[0]&0x80 != 0
		}
	}
	if len(b) == 0 {
		return h, nil, false
	}
	first, b := b[0], b[1:]
	octets := int(first & 0x7f)
	switch {
	case first < 0x80:
		h.length = uint32(first)
		return h, b, true
	case octets == 0:
		h.indefinite = true
		return h, b, true
	case octets > len(b):
		return h, nil, false
	}
	h.long = true
	for _, c := range b[:octets] {
		h.length = h.length<<8 | uint32(c)
	}
	return h, b[octets:], true
}
