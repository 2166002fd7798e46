package ski_test

import (
	"bytes"
	"cmp"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
)

// The messages are put together here by hand, not by the package under test.

// attr is a pair of the message's map, in both formats.
type attr struct {
	key   string
	value value
}

type value struct {
	cbor []byte
	json string
}

// head is the initial byte and argument of a CBOR data item in its shortest
// form (RFC 8949, Section 3).
func head(major byte, n int) []byte {
	switch m := major << 5; {
	case n < 24:
		return []byte{m | byte(n)}
	case n < 1<<8:
		return []byte{m | 24, byte(n)}
	case n < 1<<16:
		return binary.BigEndian.AppendUint16([]byte{m | 25}, uint16(n))
	default:
		return binary.BigEndian.AppendUint32([]byte{m | 26}, uint32(n))
	}
}

func jsonText(s string) string {
	b, err := json.Marshal(s)
	if err != nil {
		panic(err)
	}
	return string(b)
}

func text(s string) value { return value{append(head(3, len(s)), s...), jsonText(s)} }

func byteString(b []byte) value {
	return value{append(head(2, len(b)), b...), jsonText(base64.StdEncoding.EncodeToString(b))}
}

func number(n int) value { return value{head(0, n), fmt.Sprint(n)} }

func array(v ...value) value {
	c, j := head(4, len(v)), []string{}
	for _, e := range v {
		c, j = append(c, e.cbor...), append(j, e.json)
	}
	return value{c, "[" + strings.Join(j, ",") + "]"}
}

func object(a ...attr) value {
	c, j := head(5, len(a)), []string{}
	for _, e := range a {
		c = slices.Concat(c, text(e.key).cbor, e.value.cbor)
		j = append(j, jsonText(e.key)+":"+e.value.json)
	}
	return value{c, "{" + strings.Join(j, ",") + "}"}
}

var (
	null     = value{[]byte{0xF6}, "null"}
	boolean  = value{[]byte{0xF5}, "true"}
	negative = value{[]byte{0x20}, "-1"}
	float    = value{unhexLiteral("F97C00"), "0.5"} // Infinity, which JSON has not, and 0.5
	bignum   = value{unhexLiteral("1BFFFFFFFFFFFFFFFF"), "18446744073709551615"}
	tooBig   = value{unhexLiteral("C249010000000000000000"), "18446744073709551616"} // 2^64
)

func unhexLiteral(s string) []byte {
	b, err := hex.DecodeString(s)
	if err != nil {
		panic(err)
	}
	return b
}

// attrs are the pairs of a message.
type attrs []attr

// with returns the pairs with one replaced, or added at the end.
func (a attrs) with(key string, v value) attrs {
	b := slices.Clone(a)
	if i := slices.IndexFunc(b, func(e attr) bool { return e.key == key }); i >= 0 {
		b[i].value = v
		return b
	}
	return append(b, attr{key, v})
}

func (a attrs) without(key string) attrs {
	return slices.DeleteFunc(slices.Clone(a), func(e attr) bool { return e.key == key })
}

// cborOrder is that of deterministic encoding: the bytes of the encoded keys
// (RFC 8949, Section 4.2.1).
func (a attrs) cborOrder() attrs {
	return slices.SortedStableFunc(slices.Values(a), func(x, y attr) int {
		return bytes.Compare(text(x.key).cbor, text(y.key).cbor)
	})
}

// jsonOrder has no rule behind it but that it is always the same.
func (a attrs) jsonOrder() attrs {
	order := []string{"protocol", "method", "hash", "spki", "scheme", "client_version", "server_name", "group", "input", "output", "params", "state", "error"}
	return slices.SortedStableFunc(slices.Values(a), func(x, y attr) int {
		return cmp.Compare(uint(slices.Index(order, x.key)), uint(slices.Index(order, y.key)))
	})
}

// counting is n bytes 0, 1, 2...
func counting(n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(i)
	}
	return b
}

var (
	spki = counting(32)
	// ecdheInput is ClientRandom, ServerRandom and ServerECDHParams for x25519.
	ecdheInput = slices.Concat(bytes.Repeat([]byte{0xC1}, 32), bytes.Repeat([]byte{0x5E}, 32), []byte{3, 0, 29, 32}, counting(32))
	// tls13Input is the content covered by CertificateVerify (RFC 8446,
	// Section 4.4.3).
	tls13Input = slices.Concat(bytes.Repeat([]byte{0x20}, 64), []byte("TLS 1.3, server CertificateVerify\x00"), counting(32))
	rsaInput   = bytes.Repeat([]byte{0xE5}, 256)

	ecdhe = attrs{
		{"protocol", text("TLS 1.2")},
		{"hash", text("SHA-256")},
		{"spki", byteString(spki)},
		{"input", byteString(ecdheInput)},
	}
	ecdheWant = vectorRequest{
		Protocol: "TLS 1.2", Method: "ECDHE", Hash: "SHA-256",
		SPKI: hex.EncodeToString(spki), Input: hex.EncodeToString(ecdheInput),
	}
)

// A vectorList collects the cases.
type vectorList []*vector

// vectorCases returns all of them.
func vectorCases() []*vector {
	var l vectorList
	l.requestShapes()
	l.requestTypes()
	l.requestLimits()
	l.requestCBOR()
	l.requestJSON()
	l.responses()
	return l
}

func (l *vectorList) add(v vector) { *l = append(*l, &v) }

// request adds a request in both formats. want is nil for a malformed one.
func (l *vectorList) request(name string, a attrs, want *vectorRequest, attribute string) {
	l.cbor("request", name, object(a.cborOrder()...).cbor, want, nil, attribute)
	l.json("request", name, object(a.jsonOrder()...).json, want, nil, attribute)
}

// deterministic adds a request that an encoder gives, too.
func (l *vectorList) deterministic(name string, a attrs, want vectorRequest) {
	l.request(name, a, &want, "")
	for _, v := range (*l)[len(*l)-2:] {
		v.Deterministic = true
	}
}

func (l *vectorList) malformed(name string, a attrs, attribute string) {
	l.request(name, a, nil, attribute)
}

func (l *vectorList) cbor(message, name string, data []byte, req *vectorRequest, resp *vectorResponse, attribute string) {
	l.add(vector{
		Name: name, Format: "CBOR", Message: message, Class: class(req, resp), Attribute: attribute,
		Hex: hex.EncodeToString(data), Request: req, Response: resp,
	})
}

func (l *vectorList) json(message, name, data string, req *vectorRequest, resp *vectorResponse, attribute string) {
	l.add(vector{
		Name: name, Format: "JSON", Message: message, Class: class(req, resp), Attribute: attribute,
		Text: data, Request: req, Response: resp,
	})
}

func class(req *vectorRequest, resp *vectorResponse) string {
	if req == nil && resp == nil {
		return "malformed"
	}
	return "ok"
}

// changed returns a changed copy.
func changed(r vectorRequest, f func(*vectorRequest)) vectorRequest {
	f(&r)
	return r
}

// responses adds the responses.
func (l *vectorList) responses() {
	signature := unhexLiteral("3006020101020102")
	ok := func(name string, a attrs, want vectorResponse, deterministic bool) {
		l.cbor("response", name, object(a.cborOrder()...).cbor, nil, &want, "")
		l.json("response", name, object(a.jsonOrder()...).json, nil, &want, "")
		for _, v := range (*l)[len(*l)-2:] {
			v.Deterministic = deterministic
		}
	}
	malformed := func(name string, a attrs, attribute string) {
		l.cbor("response", name, object(a.cborOrder()...).cbor, nil, nil, attribute)
		l.json("response", name, object(a.jsonOrder()...).json, nil, nil, attribute)
	}
	output, denied := attr{"output", byteString(signature)}, attr{"error", text("request denied")}
	want := vectorResponse{Output: hex.EncodeToString(signature)}

	ok("output", attrs{output}, want, true)
	ok("premaster", attrs{{"output", byteString(counting(48))}}, vectorResponse{Output: hex.EncodeToString(counting(48))}, true)
	for _, e := range []string{"request denied", "spki not found", "malformed request", "unspecified error"} {
		ok("error-"+strings.ReplaceAll(e, " ", "-"), attrs{{"error", text(e)}}, vectorResponse{Error: e}, true)
	}
	ok("unknown-key", attrs{output, {"x", array(null)}}, want, false)

	params, state := attr{"params", byteString(ecdheInput[64:])}, attr{"state", byteString(counting(200))}
	ok("ecdhe-pms", attrs{output, params, state}, vectorResponse{
		Output: hex.EncodeToString(signature), Params: hex.EncodeToString(ecdheInput[64:]), State: hex.EncodeToString(counting(200)),
	}, true)
	malformed("params-alone", attrs{output, params}, "params")
	malformed("state-alone", attrs{output, state}, "params")
	malformed("params-and-state-alone", attrs{params, state}, "output")
	malformed("params-and-error", attrs{denied, params, state}, "params")
	malformed("params-empty", attrs{output, {"params", byteString(nil)}, state}, "params")
	malformed("params-number", attrs{output, {"params", number(1)}, state}, "params")
	malformed("params-260", attrs{output, {"params", byteString(counting(260))}, state}, "params")
	malformed("state-empty", attrs{output, params, {"state", byteString(nil)}}, "state")
	malformed("state-null", attrs{output, params, {"state", null}}, "state")
	malformed("state-1025", attrs{output, params, {"state", byteString(counting(1025))}}, "state")

	malformed("neither", attrs{}, "output")
	malformed("both", attrs{output, denied}, "output")
	malformed("both-output-empty", attrs{{"output", byteString(nil)}, denied}, "output")
	malformed("output-empty", attrs{{"output", byteString(nil)}}, "output")
	malformed("output-null", attrs{{"output", null}}, "output")
	malformed("output-null-and-error", attrs{{"output", null}, denied}, "output")
	malformed("output-number", attrs{{"output", number(1)}}, "output")
	malformed("output-array", attrs{{"output", array(number(1))}}, "output")
	malformed("error-empty", attrs{{"error", text("")}}, "error")
	malformed("error-null", attrs{{"error", null}}, "error")
	malformed("error-null-and-output", attrs{output, {"error", null}}, "error")
	malformed("error-number", attrs{{"error", number(1)}}, "error")
	malformed("error-unknown", attrs{{"error", text("teapot")}}, "error")
	malformed("error-other-case", attrs{{"error", text("Request denied")}}, "error")
	malformed("duplicate-output", attrs{output, output}, "")
	malformed("other-case", attrs{{"Output", byteString(signature)}}, "output")

	l.cbor("response", "output-text", object(attr{"output", text("a signature")}).cbor, nil, nil, "output")
	l.cbor("response", "trailing-byte", append(object(output).cbor, 0), nil, nil, "")
	l.json("response", "trailing-byte", object(output).json+"0", nil, nil, "")
	l.json("response", "html", "<html><body>502 Bad Gateway</body></html>", nil, nil, "")
}
