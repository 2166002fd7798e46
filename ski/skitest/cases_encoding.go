package skitest

import (
	"bytes"
	"encoding/base64"
	"slices"
	"strings"

	"github.com/tlsski/tlsski/ski"
)

var encodingCases = []Case{
	{
		Name: "encoding/any-order", Section: sectionSKI, Needs: aSigner,
		Rule: "the pairs of the object have no order",
		run: signedBody(func(t *trial, m Message) []byte {
			slices.Reverse(m)
			return m.Encode(t.format)
		}),
	},
	{
		Name: "encoding/unknown-attribute", Section: messages, Needs: aSigner,
		Rule: "an attribute that is not known is ignored, whatever its value",
		run: signedBody(func(t *trial, m Message) []byte {
			return m.With("x-text", "x").With("x-array", []int{1, 2}).With("x-null", nil).Encode(t.format)
		}),
	},
	{
		Name: "encoding/empty", Section: sectionProcessing,
		Rule: "what cannot be parsed is a malformed request: nothing",
		run:  func(t *trial) error { return t.refused(nil, ski.MalformedRequest) },
	},
	{
		Name: "encoding/no-pairs", Section: sectionSKI,
		Rule: "the payload has one or more pairs",
		run:  func(t *trial) error { return t.refused(Message{}.Encode(t.format), ski.MalformedRequest) },
	},
	{
		Name: "encoding/not-an-object", Section: sectionSKI, Needs: aSigner,
		Rule: "the payload is an object, not an array of one",
		run: malformedBody(func(t *trial, good []byte) []byte {
			if t.format == ski.JSON {
				return slices.Concat([]byte("["), good, []byte("]"))
			}
			return append(cborHead(4, 1), good...)
		}),
	},
	{
		Name: "encoding/two-objects", Section: sectionSKI, Needs: aSigner,
		Rule: "the payload is a single object",
		run:  malformedBody(func(_ *trial, good []byte) []byte { return slices.Concat(good, good) }),
	},
	{
		Name: "encoding/trailing-byte", Section: sectionSKI, Needs: aSigner,
		Rule: "there is nothing after the object",
		run:  malformedBody(func(_ *trial, good []byte) []byte { return append(good, '0') }),
	},
	{
		Name: "encoding/truncated", Section: sectionProcessing, Needs: aSigner,
		Rule: "a message that ends too early cannot be parsed",
		run:  malformedBody(func(_ *trial, good []byte) []byte { return good[:len(good)-1] }),
	},
	{
		Name: "encoding/cut-in-half", Section: sectionProcessing, Needs: aSigner,
		Rule: "a message that ends too early cannot be parsed",
		run:  malformedBody(func(_ *trial, good []byte) []byte { return good[:len(good)/2] }),
	},
	{
		Name: "encoding/other-format", Section: sectionSKI, Needs: aSigner,
		Rule: "the body is in the format that the Content-Format or Content-Type names",
		run: func(t *trial) error {
			other := ski.JSON
			if t.format == ski.JSON {
				other = ski.CBOR
			}
			return t.refused(t.goodMessage().Encode(other), ski.MalformedRequest)
		},
	},
	{
		Name: "encoding/attribute-twice", Section: messages, Needs: aSigner,
		Rule: "an attribute that is there twice is malformed: two readers could read two requests",
		run: changed(func(_ *trial, m Message) Message {
			return append(m, Pair{"protocol", string(ski.TLS12)})
		}, ski.MalformedRequest),
	},
	{
		Name: "encoding/names-have-one-case", Section: sectionSKI, Needs: aSigner,
		Rule: "'Input' is not the attribute 'input'",
		run: changed(func(_ *trial, m Message) Message {
			m[m.index("input")].Key = "Input"
			return m
		}, ski.MalformedRequest),
	},
	{
		Name: "encoding/nesting", Section: messages, Needs: aSigner,
		Rule: "nesting of more than two is refused, in an unknown attribute too",
		run: changed(func(_ *trial, m Message) Message {
			return m.With("x", [][][]int{{{1}}})
		}, ski.MalformedRequest),
	},
	{
		Name: "encoding/too-many-pairs", Section: messages, Needs: aSigner,
		Rule: "more than 32 pairs are refused",
		run: changed(func(_ *trial, m Message) Message {
			for i := range 33 {
				m = m.With("x"+strings.Repeat("x", i), i)
			}
			return m
		}, ski.MalformedRequest),
	},
	{
		Name: "encoding/large", Section: messages, Needs: aSigner,
		Rule: "a message of 4096 bytes is read",
		run: func(t *trial) error {
			pub, req := t.good()
			m := RequestMessage(req)
			room := ski.MaxMessageSize - len(m.With("x", strings.Repeat("x", 300)).Encode(t.format)) + 300
			return t.signed(m.With("x", strings.Repeat("x", room)).Encode(t.format), pub, req)
		},
	},
	{
		Name: "encoding/too-large", Section: coap, Needs: aSigner,
		Rule: "a message of 4097 bytes is too large (4.13, 413) or malformed",
		run: func(t *trial) error {
			m := t.goodMessage()
			room := ski.MaxMessageSize + 1 - len(m.With("x", strings.Repeat("x", 300)).Encode(t.format)) + 300
			a, err := t.post(m.With("x", strings.Repeat("x", room)).Encode(t.format))
			if err != nil || a.Status == 413 {
				return err
			}
			return a.refusal(t.format, ski.MalformedRequest)
		},
	},

	{
		Name: "encoding/cbor-indefinite-map", Section: "RFC 8949, Section 3.2.2", Needs: aSigner, Formats: onlyCBOR,
		Rule: "a map of indefinite length is a map",
		run: signedBody(func(_ *trial, m Message) []byte {
			data := m.Encode(ski.CBOR)
			data[0] = 0xBF // five pairs and fewer have a head of one byte
			return append(data, 0xFF)
		}),
	},
	{
		Name: "encoding/cbor-long-heads", Section: "RFC 8949, Section 3", Needs: aSigner, Formats: onlyCBOR,
		Rule: "a length need not be in its shortest form",
		run: signedBody(func(_ *trial, m Message) []byte {
			input := m[m.index("input")].Value.([]byte)
			raw := append([]byte{0x5A, 0, 0, byte(len(input) >> 8), byte(len(input))}, input...)
			return m.With("input", Raw{CBOR: raw}).Encode(ski.CBOR)
		}),
	},
	{
		Name: "encoding/cbor-reserved-head", Section: "RFC 8949, Section 3", Needs: aSigner, Formats: onlyCBOR,
		Rule: "a data item with a reserved length is not well-formed",
		run: changed(func(_ *trial, m Message) Message {
			return m.With("x", Raw{CBOR: []byte{0x1C}})
		}, ski.MalformedRequest),
	},
	{
		Name: "encoding/cbor-break", Section: "RFC 8949, Section 3.2.1", Needs: aSigner, Formats: onlyCBOR,
		Rule: "a break with nothing to end is not well-formed",
		run: changed(func(_ *trial, m Message) Message {
			return m.With("x", Raw{CBOR: []byte{0xFF}})
		}, ski.MalformedRequest),
	},
	{
		Name: "encoding/cbor-key-not-text", Section: messages, Needs: aSigner, Formats: onlyCBOR,
		Rule: "a key that is not text is malformed",
		run: malformedBody(func(_ *trial, good []byte) []byte {
			good[0]++ // one more pair
			return append(good, 1, 1)
		}),
	},
	{
		Name: "encoding/cbor-huge-length", Section: messages, Needs: aSigner, Formats: onlyCBOR,
		Rule: "a length of 2^63-1 is malformed, and costs no memory",
		run: changed(func(_ *trial, m Message) Message {
			return m.With("input", Raw{CBOR: append([]byte{0x5B, 0x7F}, bytes.Repeat([]byte{0xFF}, 7)...)})
		}, ski.MalformedRequest),
	},

	{
		Name: "encoding/json-space", Section: "RFC 8259, Section 2", Needs: aSigner, Formats: onlyJSON,
		Rule: "white space between tokens does not count",
		run: signedBody(func(_ *trial, m Message) []byte {
			data := bytes.ReplaceAll(m.Encode(ski.JSON), []byte(`":`), []byte("\" :\r\n\t"))
			return slices.Concat([]byte(" \n"), data, []byte("\n"))
		}),
	},
	{
		Name: "encoding/json-escape", Section: "RFC 8259, Section 7", Needs: aSigner, Formats: onlyJSON,
		Rule: "a name may be written with escapes",
		run: signedBody(func(_ *trial, m Message) []byte {
			return bytes.Replace(m.Encode(ski.JSON), []byte(`"spki"`), []byte(`"\u0073pki"`), 1)
		}),
	},
	{
		Name: "encoding/json-base64-unpadded", Section: messages, Needs: aSigner, Formats: onlyJSON,
		Rule: "base64 without its padding is read",
		run: signedBody(func(_ *trial, m Message) []byte {
			spki := m[m.index("spki")].Value.([]byte)
			return m.With("spki", base64Text(spki, func(s string) string { return strings.TrimRight(s, "=") })).Encode(ski.JSON)
		}),
	},
	{
		Name: "encoding/json-base64-half-padded", Section: "RFC 4648, Section 3.2", Needs: aSigner, Formats: onlyJSON,
		Rule: "padding is complete or absent",
		run:  base64Case(func(s string) string { return s + "=" }),
	},
	{
		Name: "encoding/json-base64-alphabet", Section: "RFC 4648, Section 3.3", Needs: aSigner, Formats: onlyJSON,
		Rule: "characters outside of the alphabet are refused",
		run:  base64Case(func(s string) string { return "*" + s[1:] }),
	},
	{
		Name: "encoding/json-base64-url", Section: "RFC 4648, Section 4", Needs: aSigner, Formats: onlyJSON,
		Rule: "the alphabet is that of base64, not of base64url",
		run:  base64Case(func(s string) string { return "-_" + s[2:] }),
	},
	{
		Name: "encoding/json-bytes-as-array", Section: sectionSKI, Needs: aSigner, Formats: onlyJSON,
		Rule: "a byte string is base64, not an array of numbers",
		run:  set("spki", slices.Repeat([]int{1}, 32), ski.MalformedRequest),
	},
	{
		Name: "encoding/json-not-utf8", Section: "RFC 8259, Section 8.1", Needs: aSigner, Formats: onlyJSON,
		Rule: "text is UTF-8",
		run:  set("x", Raw{JSON: []byte("\"\xFF\"")}, ski.MalformedRequest),
	},
	{
		Name: "encoding/json-comma", Section: "RFC 8259, Section 4", Needs: aSigner, Formats: onlyJSON,
		Rule: "there is no comma after the last pair",
		run: malformedBody(func(_ *trial, good []byte) []byte {
			return append(good[:len(good)-1], ",}"...)
		}),
	},
}

// base64Case changes the text of the spki, so that it is no base64. The key is
// there whatever the text is.
func base64Case(change func(string) string) func(*trial) error {
	return changed(func(_ *trial, m Message) Message {
		spki := m[m.index("spki")].Value.([]byte)
		text := change(base64.StdEncoding.EncodeToString(spki))
		return m.With("spki", text)
	}, ski.MalformedRequest)
}
