package skihttp

import (
	"bytes"
	"net/http"
	"strconv"
	"strings"

	"golang.org/x/net/http2/hpack"

	"github.com/tlsski/tlsski/ski"
)

// paddingHeader makes the header of one answer as long as that of another. It
// means nothing.
const paddingHeader = "Ski-Padding"

// The lengths that a padded header has, without the content of the padding: more
// than the longest of the headers here.
const (
	paddedHTTP1 = 256
	paddedHTTP2 = 160
)

// pad evens out an answer whose length would tell something: its header gets one
// length and its body another, because HTTP/2 sends the two in TLS records of
// their own. The header must have everything else already.
func pad(h http.Header, http2 bool, status int, f ski.Format, body []byte, bodyLen int) []byte {
	body = ski.PadResponse(f, body, bodyLen)
	h.Set("Content-Length", strconv.Itoa(len(body)))
	n := paddedHTTP1 - lenHTTP1(h, status)
	if http2 {
		n = paddedHTTP2 - lenHTTP2(h, status)
	}
	// HPACK's Huffman code has 8 bits for an X, so that the text is sent as it
	// is (RFC 7541, Section 5.2 and Appendix B).
	h.Set(paddingHeader, strings.Repeat("X", max(0, n)))
	return body
}

// lenHTTP1 is the length in bytes of a status line and a header (RFC 9112).
func lenHTTP1(h http.Header, status int) int {
	n := len("HTTP/1.1 000 \r\n") + len(http.StatusText(status))
	for name, values := range h {
		for _, v := range values {
			n += len(name) + len(": \r\n") + len(v)
		}
	}
	return n
}

// lenHTTP2 is the length in bytes of the field block of a header without what
// depends on earlier ones: the server's encoder has no dynamic table.
func lenHTTP2(h http.Header, status int) int {
	var block bytes.Buffer
	encoder := hpack.NewEncoder(&block)
	write := func(name, value string) { _ = encoder.WriteField(hpack.HeaderField{Name: name, Value: value}) }
	encoder.SetMaxDynamicTableSize(0)
	write("", "") // after which the change of the table's size has been said
	block.Reset()
	write(":status", strconv.Itoa(status))
	for name, values := range h {
		for _, v := range values {
			write(strings.ToLower(name), v)
		}
	}
	return block.Len()
}
