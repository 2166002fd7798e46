package ski_test

import (
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"slices"
	"strings"
)

// requestShapes adds the requests that the draft and its extensions know, and
// values that nobody knows.
func (l *vectorList) requestShapes() {
	l.deterministic("ecdhe", ecdhe, ecdheWant)
	l.deterministic("ecdhe-default-hash", ecdhe.without("hash"), changed(ecdheWant, func(r *vectorRequest) { r.Hash = "" }))
	l.request("ecdhe-said", ecdhe.with("method", text("ECDHE")), &ecdheWant, "")
	l.deterministic("dhe", ecdhe.with("method", text("DHE")), changed(ecdheWant, func(r *vectorRequest) { r.Method = "DHE" }))
	l.ephemeralRequests()
	rsa := ecdhe.without("hash").with("method", text("RSA")).with("input", byteString(rsaInput))
	rsaWant := changed(ecdheWant, func(r *vectorRequest) {
		r.Method, r.Hash, r.Input = "RSA", "", hex.EncodeToString(rsaInput)
	})
	l.deterministic("rsa", rsa, rsaWant)
	l.deterministic("rsa-client-version", rsa.with("client_version", number(0x0303)),
		changed(rsaWant, func(r *vectorRequest) { r.ClientVersion = 0x0303 }))
	l.deterministic("client-version-of-dtls", rsa.with("client_version", number(0xFEFD)),
		changed(rsaWant, func(r *vectorRequest) { r.ClientVersion = 0xFEFD }))
	tls13 := ecdhe.without("hash").with("protocol", text("TLS 1.3")).with("scheme", number(0x0403)).
		with("server_name", text("www.example.com")).with("input", byteString(tls13Input))
	l.deterministic("tls13", tls13, vectorRequest{
		Protocol: "TLS 1.3", Method: "ECDHE", Scheme: 0x0403, ServerName: "www.example.com",
		SPKI: hex.EncodeToString(spki), Input: hex.EncodeToString(tls13Input),
	})
	for _, p := range []string{"TLS 1.0", "TLS 1.1", "DTLS 1.0", "DTLS 1.2", "DTLS 1.3"} {
		name := "protocol-" + strings.ToLower(strings.ReplaceAll(p, " ", "-"))
		l.deterministic(name, ecdhe.with("protocol", text(p)), changed(ecdheWant, func(r *vectorRequest) { r.Protocol = p }))
	}
	for _, h := range []string{"SHA-224", "SHA-384", "SHA-512"} {
		l.deterministic("hash-"+strings.ToLower(h), ecdhe.with("hash", text(h)), changed(ecdheWant, func(r *vectorRequest) { r.Hash = h }))
	}
	name := strings.Repeat("a.", 126) + "a"
	l.deterministic("server-name-253", ecdhe.with("server_name", text(name)), changed(ecdheWant, func(r *vectorRequest) { r.ServerName = name }))

	l.request("unknown-keys", append(slices.Clone(ecdhe), attr{"", text("")}, attr{"x", null}, attr{"flag", boolean}, attr{"half", float}, attr{"list", array(number(1), text("a"))},
		attr{"nested", object(attr{"spki", null})}), &ecdheWant, "")
	l.request("other-case-beside", append(slices.Clone(ecdhe), attr{"SPKI", null}, attr{"Method", text("RSA")}), &ecdheWant, "")

	for _, key := range []string{"protocol", "spki", "input"} {
		l.malformed(key+"-missing", ecdhe.without(key), key)
		upper := ecdhe.without(key).with(strings.ToUpper(key), ecdhe[slices.IndexFunc(ecdhe, func(a attr) bool { return a.key == key })].value)
		l.malformed(key+"-other-case", upper, key)
	}
	l.malformed("all-missing", attrs{}, "spki")
	for key, values := range map[string][]string{
		"protocol": {"TLS 1.4", "tls 1.2", "TLSv1.2", "SSL 3.0", "TLS 1.2 ", "TLS 1.2\x00"},
		"method":   {"ecdhe", "RSA ", "DHE_RSA", "PSK"},
		"hash":     {"SHA-1", "MD5", "sha-256", "SHA256"},
		"server_name": {
			"a b", " a", "a\n", "a\x00.example", "bücher.example", "a\x7f", strings.Repeat("a", 254),
		},
	} {
		for i, v := range values {
			l.malformed(fmt.Sprintf("%s-unknown-%d", dashed(key), i+1), ecdhe.with(key, text(v)), key)
		}
	}
	l.malformed("spki-31", ecdhe.with("spki", byteString(counting(31))), "spki")
	l.malformed("spki-33", ecdhe.with("spki", byteString(counting(33))), "spki")
}

// ephemeralRequests adds the two exchanges of ECDHE-PMS.
func (l *vectorList) ephemeralRequests() {
	randoms, point, state := ecdheInput[:64], ecdheInput[68:], counting(200)
	pms := ecdhe.with("method", text("ECDHE-PMS"))
	first := pms.with("group", number(29)).with("input", byteString(randoms))
	second := pms.without("hash").with("state", byteString(state)).with("input", byteString(point))
	l.deterministic("ecdhe-pms", first, changed(ecdheWant, func(r *vectorRequest) {
		r.Method, r.Group, r.Input = "ECDHE-PMS", 29, hex.EncodeToString(randoms)
	}))
	l.deterministic("ecdhe-pms-state", second, changed(ecdheWant, func(r *vectorRequest) {
		r.Method, r.Hash, r.State, r.Input = "ECDHE-PMS", "", hex.EncodeToString(state), hex.EncodeToString(point)
	}))
	long := counting(1024)
	l.deterministic("state-1024", second.with("state", byteString(long)), changed(ecdheWant, func(r *vectorRequest) {
		r.Method, r.Hash, r.State, r.Input = "ECDHE-PMS", "", hex.EncodeToString(long), hex.EncodeToString(point)
	}))
	l.deterministic("ecdhe-group-and-state", ecdhe.with("group", number(29)).with("state", byteString(spki)),
		changed(ecdheWant, func(r *vectorRequest) { r.Group, r.State = 29, hex.EncodeToString(spki) })) // other methods do not look
	l.malformed("ecdhe-pms-neither", pms, "group")
	l.malformed("ecdhe-pms-both", first.with("state", byteString(state)), "group")
	l.malformed("state-1025", second.with("state", byteString(counting(1025))), "state")
}

func dashed(key string) string { return strings.ReplaceAll(key, "_", "-") }

// requestTypes adds every attribute with every type that it has not.
func (l *vectorList) requestTypes() {
	bad := func(key, name string, v value) {
		l.malformed(dashed(key)+"-"+name, ecdhe.with(key, v), key)
	}
	for _, key := range []string{"protocol", "method", "hash", "server_name", "spki", "input", "state"} {
		bad(key, "null", null)
		bad(key, "boolean", boolean)
		bad(key, "number", number(1))
		bad(key, "negative", negative)
		bad(key, "array", array(number(1), number(2)))
		bad(key, "map", object(attr{"a", number(1)}))
		bad(key, "empty", value{map[bool][]byte{true: {0x40}, false: {0x60}}[key == "spki" || key == "input" || key == "state"], `""`})
	}
	for _, key := range []string{"scheme", "client_version", "group"} {
		bad(key, "null", null)
		bad(key, "boolean", boolean)
		bad(key, "text", text("1027"))
		bad(key, "array", array(number(1027)))
		bad(key, "map", object(attr{"a", number(1)}))
		bad(key, "zero", number(0))
		bad(key, "negative", negative)
		bad(key, "65536", number(65536))
		bad(key, "64-bits", bignum)
		bad(key, "65-bits", tooBig)
		bad(key, "float", float)
	}
	// An array of small integers must not pass for a byte string.
	ints := make([]value, 32)
	for i := range ints {
		ints[i] = number(i)
	}
	bad("spki", "array-of-32", array(ints...))
}

// requestLimits adds the requests at and beyond the limits of a message.
func (l *vectorList) requestLimits() {
	twice := append(slices.Clone(ecdhe), attr{"spki", byteString(spki)})
	l.malformed("duplicate-key", twice, "")
	l.malformed("duplicate-key-null", append(slices.Clone(ecdhe), attr{"spki", null}), "")
	l.malformed("duplicate-unknown-key", append(slices.Clone(ecdhe), attr{"x", null}, attr{"x", null}), "")

	many := slices.Clone(ecdhe)
	for len(many) < 32 {
		many = append(many, attr{fmt.Sprintf("x%02d", len(many)), null})
	}
	l.request("pairs-32", many, &ecdheWant, "")
	l.malformed("pairs-33", append(many, attr{"y", null}), "")

	l.request("nesting-2", ecdhe.with("x", array(null, number(1))), &ecdheWant, "")
	l.request("nesting-2-empty", ecdhe.with("x", array()).with("y", object()), &ecdheWant, "")
	l.malformed("nesting-3", ecdhe.with("x", array(array())), "")
	l.malformed("nesting-3-map-in-array", ecdhe.with("x", array(null, object())), "")
	l.malformed("nesting-3-array-in-map", ecdhe.with("x", object(attr{"a", array()})), "")
	l.malformed("nesting-3-in-known-key", ecdhe.with("spki", array(array())), "")
	deep := value{slices.Concat(bytes.Repeat([]byte{0x81}, 1000), []byte{0x80}), strings.Repeat("[", 1000) + strings.Repeat("]", 1000)}
	l.malformed("nesting-1000", ecdhe.with("x", deep), "")

	// The padding is the value of an unknown key, so that the rest is sound.
	pad := func(size int) attrs {
		a := ecdhe.with("x", text(""))
		return ecdhe.with("x", text(strings.Repeat("p", size-len(object(a...).cbor)-2))) // two more bytes of length
	}
	padJSON := func(size int) string {
		a := ecdhe.with("x", text(""))
		return object(ecdhe.with("x", text(strings.Repeat("p", size-len(object(a...).json))))...).json
	}
	l.cbor("request", "size-4096", object(pad(4096)...).cbor, &ecdheWant, nil, "")
	l.cbor("request", "size-4097", object(pad(4097)...).cbor, nil, nil, "")
	l.json("request", "size-4096", padJSON(4096), &ecdheWant, nil, "")
	l.json("request", "size-4097", padJSON(4097), nil, nil, "")

	good := object(ecdhe...)
	for name, v := range map[string]value{
		"empty":         {},
		"null":          null,
		"top-number":    number(1),
		"top-text":      text("TLS 1.2"),
		"top-array":     array(good),
		"truncated":     {good.cbor[:len(good.cbor)-1], good.json[:len(good.json)-1]},
		"cut-in-half":   {good.cbor[:len(good.cbor)/2], good.json[:len(good.json)/2]},
		"trailing-byte": {append(slices.Clone(good.cbor), 0), good.json + "0"},
		"twice":         {slices.Concat(good.cbor, good.cbor), good.json + good.json},
	} {
		l.cbor("request", name, v.cbor, nil, nil, "")
		l.json("request", name, v.json, nil, nil, "")
	}
}

// requestCBOR adds what only CBOR can say.
func (l *vectorList) requestCBOR() {
	ok := func(name string, data []byte) { l.cbor("request", name, data, &ecdheWant, nil, "") }
	bad := func(name string, data []byte, attribute string) { l.cbor("request", name, data, nil, nil, attribute) }
	raw := func(b []byte) value { return value{cbor: b} }
	with := func(key string, b []byte) []byte { return object(ecdhe.with(key, raw(b)).cborOrder()...).cbor }
	body := object(ecdhe...).cbor[1:] // without the map's head

	ok("indefinite-map", slices.Concat([]byte{0xBF}, body, []byte{0xFF}))
	ok("indefinite-bytes", with("input", slices.Concat([]byte{0x5F}, byteString(ecdheInput[:50]).cbor, byteString(ecdheInput[50:]).cbor, []byte{0xFF})))
	ok("indefinite-text", with("protocol", slices.Concat([]byte{0x7F}, text("TLS ").cbor, text("1.2").cbor, []byte{0xFF})))
	ok("long-heads", slices.Concat([]byte{0xBA, 0, 0, 0, 4}, body))
	ok("long-length", with("spki", slices.Concat([]byte{0x5B, 0, 0, 0, 0, 0, 0, 0, 32}, spki)))
	ok("other-order", object(ecdhe[3], ecdhe[2], ecdhe[1], ecdhe[0]).cbor)
	ok("unknown-tag", with("x", unhexLiteral("D90400F6")))

	bad("indefinite-map-open", slices.Concat([]byte{0xBF}, body), "")
	bad("indefinite-map-odd", slices.Concat([]byte{0xBF}, body, text("x").cbor, []byte{0xFF}), "")
	bad("indefinite-bytes-of-text", with("spki", slices.Concat([]byte{0x5F}, text("a").cbor, []byte{0xFF})), "")
	bad("indefinite-map-pairs-33", slices.Concat([]byte{0xBF}, body, bytes.Join(pairs(29), nil), []byte{0xFF}), "")
	bad("indefinite-duplicate-key", slices.Concat([]byte{0xA5}, body, []byte{0x7F}, text("sp").cbor, text("ki").cbor, []byte{0xFF, 0xF6}), "")
	bad("spki-text", with("spki", text(string(counting(32))).cbor), "spki")
	bad("input-text", with("input", text("input").cbor), "input")
	bad("protocol-bytes", with("protocol", byteString([]byte("TLS 1.2")).cbor), "protocol")
	bad("hash-bytes", with("hash", byteString([]byte("SHA-256")).cbor), "hash")
	bad("server-name-bytes", with("server_name", byteString([]byte("a")).cbor), "server_name")
	bad("spki-undefined", with("spki", []byte{0xF7}), "spki")
	bad("spki-tagged", with("spki", slices.Concat([]byte{0xD7}, byteString(spki).cbor)), "spki") // tag 23, expected base16
	bad("protocol-tagged", with("protocol", slices.Concat([]byte{0xD8, 0x23}, text("TLS 1.2").cbor)), "protocol")
	bad("scheme-tagged", with("scheme", unhexLiteral("C1190403")), "scheme")                // tag 1, a time
	bad("scheme-float-whole", with("scheme", unhexLiteral("FB4090040000000000")), "scheme") // 1025.0
	bad("self-described", slices.Concat([]byte{0xD9, 0xD9, 0xF7}, object(ecdhe...).cbor), "")
	bad("nesting-3-tag", with("x", unhexLiteral("81D90400F6")), "")
	bad("key-integer", slices.Concat([]byte{0xA5, 0x01, 0xF6}, body), "")
	bad("key-bytes", slices.Concat([]byte{0xA5}, byteString([]byte("x")).cbor, []byte{0xF6}, body), "")
	bad("key-array", slices.Concat([]byte{0xA5, 0x80, 0xF6}, body), "")
	bad("key-null", slices.Concat([]byte{0xA5, 0xF6, 0xF6}, body), "")
	bad("key-not-utf8", slices.Concat([]byte{0xA5, 0x61, 0xFF, 0xF6}, body), "")
	bad("protocol-not-utf8", with("protocol", []byte{0x61, 0xFF}), "protocol")
	bad("server-name-not-utf8", with("server_name", []byte{0x62, 0xC3, 0x28}), "server_name")
	bad("reserved-length", with("x", []byte{0x1C}), "")
	bad("break-alone", with("x", []byte{0xFF}), "")
	for name, b := range map[string]byte{"bytes": 0x5B, "text": 0x7B, "array": 0x9B, "map": 0xBB} {
		for _, length := range []string{"FFFFFFFFFFFFFFFF", "7FFFFFFFFFFFFFFF", "00000000FFFFFFFF"} {
			huge := append([]byte{b}, unhexLiteral(length)...)
			bad("huge-"+name+"-"+strings.ToLower(length), with("input", huge), "")
		}
	}
	bad("huge-message", unhexLiteral("BBFFFFFFFFFFFFFFFF"), "")
}

// pairs returns n encoded pairs of unknown keys.
func pairs(n int) [][]byte {
	var p [][]byte
	for i := range n {
		p = append(p, slices.Concat(text(fmt.Sprintf("x%02d", i)).cbor, null.cbor))
	}
	return p
}

// requestJSON adds what only JSON can say.
func (l *vectorList) requestJSON() {
	ok := func(name, data string) { l.json("request", name, data, &ecdheWant, nil, "") }
	bad := func(name, data, attribute string) { l.json("request", name, data, nil, nil, attribute) }
	with := func(key, raw string) string { return object(ecdhe.with(key, value{json: raw}).jsonOrder()...).json }
	good := object(ecdhe...).json
	b64 := base64.StdEncoding.EncodeToString(spki) // one '='

	ok("base64-unpadded", with("spki", jsonText(strings.TrimRight(b64, "="))))
	ok("base64-outer-space", with("spki", jsonText(" \t\r\n"+b64+"\n")))
	ok("base64-unpadded-outer-space", with("spki", jsonText(strings.TrimRight(b64, "=")+"\n")))
	ok("white-space", " \t\r\n"+strings.NewReplacer(`,"`, " ,\n\t\"", ":", " : ").Replace(good)+" \n")
	ok("other-order", object(ecdhe[3], ecdhe[2], ecdhe[1], ecdhe[0]).json)
	ok("escaped-key", strings.Replace(good, `"spki"`, `"\u0073pk\u0069"`, 1))
	ok("unknown-numbers", with("x", "[-0.5e-3, 1e999, 123456789012345678901234567890]"))

	bad("escaped-duplicate-key", strings.Replace(good, "{", `{"sp\u006bi":null,`, 1), "")
	two := base64.StdEncoding.EncodeToString(counting(64)) // two '='
	bad("base64-half-padded", with("input", jsonText(strings.TrimSuffix(two, "="))), "input")
	bad("base64-over-padded", with("input", jsonText(two+"=")), "input")
	bad("base64-only-padding", with("input", `"===="`), "input")
	bad("base64-inner-newline", with("spki", jsonText(b64[:20]+"\n"+b64[20:])), "spki")
	bad("base64-inner-crlf", with("spki", jsonText(b64[:20]+"\r\n"+b64[20:])), "spki")
	bad("base64-inner-space", with("spki", jsonText(b64[:20]+" "+b64[20:])), "spki")
	bad("base64-url-alphabet", with("input", `"-_-_"`), "input")
	bad("base64-trailing-bits", with("input", `"AB=="`), "input")
	bad("base64-one-character", with("input", `"A"`), "input")
	bad("spki-hex", with("spki", jsonText(hex.EncodeToString(spki))), "spki")
	bad("scheme-float-whole", with("scheme", "1027.0"), "scheme")
	bad("scheme-exponent", with("scheme", "1027e0"), "scheme")
	bad("scheme-huge-exponent", with("scheme", "1e400"), "scheme")
	bad("scheme-minus-zero", with("scheme", "-0"), "scheme")
	bad("scheme-leading-zero", with("scheme", "01027"), "")
	bad("scheme-hex", with("scheme", "0x0403"), "")
	bad("surrogate-alone", with("server_name", `"a\ud800"`), "server_name")
	bad("trailing-comma", strings.Replace(good, "}", ",}", 1), "")
	bad("no-comma", strings.Replace(good, ",", " ", 1), "")
	bad("no-colon", strings.Replace(good, ":", " ", 1), "")
	bad("array-open", with("x", "["), "")
	bad("array-no-comma", with("x", "[1 2]"), "")
	bad("array-closed-as-object", with("x", "[1}"), "")
	bad("single-quotes", strings.ReplaceAll(good, `"`, "'"), "")
	bad("comment", "/* a request */"+good, "")
	bad("nan", with("x", "NaN"), "")
	bad("control-character", with("server_name", "\"a\tb\""), "")
	bad("bad-escape", with("server_name", `"\x41"`), "")
	bad("key-number", strings.Replace(good, "{", `{1:null,`, 1), "")
	bad("byte-order-mark", "\ufeff"+good, "")
	for name, data := range map[string]string{
		"not-utf8-value":   with("x", "\"\xff\""),
		"not-utf8-key":     strings.Replace(good, "{", "{\"\xc3\x28\":null,", 1),
		"not-utf8-outside": good + "\xff",
	} {
		l.add(vector{Name: name, Format: "JSON", Message: "request", Class: "malformed", Hex: hex.EncodeToString([]byte(data))})
	}
}
