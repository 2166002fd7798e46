package skitest

import (
	"bytes"
	"crypto/rsa"
	"crypto/tls"
	"strings"

	"github.com/tlsski/tlsski/ski"
)

// wrongTypes are values that are neither text nor bytes nor numbers.
var (
	null    = Raw{CBOR: []byte{0xF6}, JSON: []byte("null")}
	boolean = Raw{CBOR: []byte{0xF5}, JSON: []byte("true")}
	// tagged is the good thing behind a tag (RFC 8949, Section 3.4).
	taggedProtocol = Raw{CBOR: append([]byte{0xD8, 0x63}, encodeCBOR("TLS 1.2")...)}
)

var attributeCases = []Case{
	{
		Name: "attributes/protocol-missing", Section: sectionSKI, Needs: aSigner,
		Rule: "'protocol' is required",
		run:  without("protocol"),
	},
	{
		Name: "attributes/protocol-unknown", Section: sectionSKI, Needs: aSigner,
		Rule: "'protocol' is one of the listed versions",
		run:  set("protocol", "SSL 3.0", ski.MalformedRequest),
	},
	{
		Name: "attributes/protocol-other-case", Section: sectionSKI, Needs: aSigner,
		Rule: "'protocol' is one of the listed versions as they are written",
		run:  set("protocol", "tls 1.2", ski.MalformedRequest),
	},
	{
		Name: "attributes/protocol-empty", Section: sectionSKI, Needs: aSigner,
		Rule: "'protocol' is one of the listed versions",
		run:  set("protocol", "", ski.MalformedRequest),
	},
	{
		Name: "attributes/protocol-number", Section: sectionSKI, Needs: aSigner,
		Rule: "'protocol' is text",
		run:  set("protocol", 0x0303, ski.MalformedRequest),
	},
	{
		Name: "attributes/protocol-null", Section: messages, Needs: aSigner,
		Rule: "null is no text",
		run:  set("protocol", null, ski.MalformedRequest),
	},
	{
		Name: "attributes/protocol-tagged", Section: messages, Needs: aSigner, Formats: onlyCBOR,
		Rule: "a tagged value does not have the type of what it holds",
		run:  set("protocol", taggedProtocol, ski.MalformedRequest),
	},

	{
		Name: "attributes/spki-missing", Section: sectionSKI, Needs: aSigner,
		Rule: "'spki' is required",
		run:  without("spki"),
	},
	{
		Name: "attributes/spki-empty", Section: sectionSKI, Needs: aSigner,
		Rule: "'spki' is a SHA-256 fingerprint (RFC 7469): 32 bytes",
		run:  set("spki", []byte{}, ski.MalformedRequest),
	},
	{
		Name: "attributes/spki-short", Section: sectionSKI, Needs: aSigner,
		Rule: "'spki' is a SHA-256 fingerprint (RFC 7469): 32 bytes",
		run: changed(func(_ *trial, m Message) Message {
			return m.With("spki", m[m.index("spki")].Value.([]byte)[:31])
		}, ski.MalformedRequest),
	},
	{
		Name: "attributes/spki-long", Section: sectionSKI, Needs: aSigner,
		Rule: "'spki' is a SHA-256 fingerprint (RFC 7469): 32 bytes",
		run: changed(func(_ *trial, m Message) Message {
			return m.With("spki", append(m[m.index("spki")].Value.([]byte), 0))
		}, ski.MalformedRequest),
	},
	{
		Name: "attributes/spki-hexadecimal", Section: sectionSKI, Needs: aSigner,
		Rule: "'spki' is the fingerprint's bytes, not its digits",
		run: func(t *trial) error {
			pub, req := t.good()
			return t.refused(RequestMessage(req).With("spki", []byte(keyID(pub).String())).Encode(t.format), ski.MalformedRequest)
		},
	},
	{
		Name: "attributes/spki-text", Section: sectionSKI, Needs: aSigner, Formats: onlyCBOR,
		Rule: "'spki' is a byte string",
		run:  set("spki", strings.Repeat("a", 32), ski.MalformedRequest),
	},
	{
		Name: "attributes/spki-null", Section: messages, Needs: aSigner,
		Rule: "null is no byte string",
		run:  set("spki", null, ski.MalformedRequest),
	},

	{
		Name: "attributes/method-absent", Section: sectionSKI, Needs: aSigner,
		Rule: "without 'method', it is ECDHE",
		run: signedBody(func(t *trial, m Message) []byte {
			return m.Without("method").Encode(t.format)
		}),
	},
	{
		Name: "attributes/method-ecdhe", Section: sectionSKI, Needs: aSigner,
		Rule: "'method' may say ECDHE",
		run: signedBody(func(t *trial, m Message) []byte {
			return m.With("method", "ECDHE").Encode(t.format)
		}),
	},
	{
		Name: "attributes/method-unknown", Section: sectionSKI, Needs: aSigner,
		Rule: "'method' is one of the listed ones",
		run:  set("method", "PSK", ski.MalformedRequest),
	},
	{
		Name: "attributes/method-other-case", Section: sectionSKI, Needs: aSigner,
		Rule: "'method' is one of the listed ones as they are written",
		run:  set("method", "ecdhe", ski.MalformedRequest),
	},
	{
		Name: "attributes/method-boolean", Section: sectionSKI, Needs: aSigner,
		Rule: "'method' is text",
		run:  set("method", boolean, ski.MalformedRequest),
	},
	{
		Name: "attributes/method-null", Section: messages, Needs: aSigner,
		Rule: "null is not absence",
		run:  set("method", null, ski.MalformedRequest),
	},

	{
		Name: "attributes/hash-unknown", Section: sectionSKI, Needs: aSigner,
		Rule: "'hash' is one of the listed ones",
		run:  set("hash", "SHA3-256", ski.MalformedRequest),
	},
	{
		Name: "attributes/hash-sha1", Section: sectionSKI, Needs: aSigner,
		Rule: "SHA-1 is asked for by leaving 'hash' out, not by its name",
		run:  set("hash", "SHA-1", ski.MalformedRequest),
	},
	{
		Name: "attributes/hash-other-name", Section: sectionSKI, Needs: aSigner,
		Rule: "'hash' is one of the listed ones as they are written",
		run:  set("hash", "SHA256", ski.MalformedRequest),
	},
	{
		Name: "attributes/hash-number", Section: sectionSKI, Needs: aSigner,
		Rule: "'hash' is text",
		run:  set("hash", 4, ski.MalformedRequest),
	},
	{
		Name: "attributes/hash-null", Section: messages, Needs: aSigner,
		Rule: "null is not absence",
		run:  set("hash", null, ski.MalformedRequest),
	},

	{
		Name: "attributes/input-missing", Section: sectionSKI, Needs: aSigner,
		Rule: "'input' is required",
		run:  without("input"),
	},
	{
		Name: "attributes/input-empty", Section: sectionSKI, Needs: aSigner,
		Rule: "'input' has the data of the operation",
		run:  set("input", []byte{}, ski.MalformedRequest),
	},
	{
		Name: "attributes/input-number", Section: sectionSKI, Needs: aSigner,
		Rule: "'input' is a byte string",
		run:  set("input", 1, ski.MalformedRequest),
	},
	{
		Name: "attributes/input-array", Section: sectionSKI, Needs: aSigner, Formats: onlyCBOR,
		Rule: "'input' is a byte string, not an array of numbers",
		run: changed(func(_ *trial, m Message) Message {
			return m.With("input", Raw{CBOR: append(cborHead(4, 64), bytes.Repeat([]byte{1}, 64)...)})
		}, ski.MalformedRequest),
	},
	{
		Name: "attributes/input-null", Section: messages, Needs: aSigner,
		Rule: "null is no byte string",
		run:  set("input", null, ski.MalformedRequest),
	},

	{
		Name: "attributes/scheme-text", Section: messages, Needs: aSigner, Extension: true,
		Rule: "'scheme' is an unsigned integer",
		run:  set("scheme", "ed25519", ski.MalformedRequest),
	},
	{
		Name: "attributes/scheme-range", Section: messages, Needs: aSigner, Extension: true,
		Rule: "a SignatureScheme has 16 bits (RFC 8446, Section 4.2.3)",
		run:  set("scheme", 1<<16, ski.MalformedRequest),
	},
	{
		Name: "attributes/scheme-negative", Section: messages, Needs: aSigner, Extension: true,
		Rule: "'scheme' is an unsigned integer",
		run:  set("scheme", -1, ski.MalformedRequest),
	},
	{
		Name: "attributes/scheme-zero", Section: messages, Needs: aSigner, Extension: true,
		Rule: "'scheme' is left out where there is none, not 0",
		run:  set("scheme", 0, ski.MalformedRequest),
	},
	{
		Name: "attributes/scheme-null", Section: messages, Needs: aSigner, Extension: true,
		Rule: "null is not absence",
		run:  set("scheme", null, ski.MalformedRequest),
	},
	{
		Name: "attributes/scheme-replaces-hash", Section: messages, Needs: aRSA, Extension: true,
		Rule: "where 'scheme' is there, 'hash' does not count",
		run: func(t *trial) error {
			pub := keyOf[*rsa.PublicKey](t.cfg)
			req := request(pub)
			req.Hash, req.Scheme = ski.SHA512, tls.PSSWithSHA256
			return t.signs(pub, req)
		},
	},
	{
		Name: "attributes/client-version-text", Section: messages, Needs: aSigner, Extension: true,
		Rule: "'client_version' is an unsigned integer",
		run:  set("client_version", "TLS 1.2", ski.MalformedRequest),
	},
	{
		Name: "attributes/client-version-range", Section: messages, Needs: aSigner, Extension: true,
		Rule: "a client_version has 16 bits (RFC 5246, Section 7.4.1.2)",
		run:  set("client_version", 1<<16, ski.MalformedRequest),
	},
	{
		Name: "attributes/client-version-negative", Section: messages, Needs: aSigner, Extension: true,
		Rule: "'client_version' is an unsigned integer",
		run:  set("client_version", -1, ski.MalformedRequest),
	},
	{
		Name: "attributes/client-version-zero", Section: messages, Needs: aSigner, Extension: true,
		Rule: "'client_version' is left out where it is not known, not 0",
		run:  set("client_version", 0, ski.MalformedRequest),
	},
	{
		Name: "attributes/client-version-null", Section: messages, Needs: aSigner, Extension: true,
		Rule: "null is not absence",
		run:  set("client_version", null, ski.MalformedRequest),
	},
	{
		Name: "attributes/client-version-unused", Section: messages, Needs: aSigner, Extension: true,
		Rule: "'client_version' means nothing where nothing is decrypted",
		run: func(t *trial) error {
			pub, req := t.good()
			req.ClientVersion = 0x0301
			return t.signs(pub, req)
		},
	},
	{
		Name: "attributes/server-name", Section: messages, Needs: aSigner, Extension: true,
		Rule: "'server_name' is the name that the client asked for; the policy may not know it",
		run: func(t *trial) error {
			pub, req := t.good()
			req.ServerName = "conformance.example"
			return t.signsOrRefuses(pub, req, ski.RequestDenied)
		},
	},
	{
		Name: "attributes/server-name-long", Section: messages, Needs: aSigner, Extension: true,
		Rule: "'server_name' has at most 253 bytes",
		run:  set("server_name", strings.Repeat("a", 254), ski.MalformedRequest),
	},
	{
		Name: "attributes/server-name-control", Section: messages, Needs: aSigner, Extension: true,
		Rule: "'server_name' has printable ASCII alone",
		run:  set("server_name", "a\nb", ski.MalformedRequest),
	},
	{
		Name: "attributes/server-name-number", Section: messages, Needs: aSigner, Extension: true,
		Rule: "'server_name' is text",
		run:  set("server_name", 1, ski.MalformedRequest),
	},
	{
		Name: "attributes/server-name-empty", Section: messages, Needs: aSigner, Extension: true,
		Rule: "'server_name' is left out where the client asked for none",
		run:  set("server_name", "", ski.MalformedRequest),
	},
	{
		Name: "attributes/server-name-null", Section: messages, Needs: aSigner, Extension: true,
		Rule: "null is not absence",
		run:  set("server_name", null, ski.MalformedRequest),
	},

	{
		Name: "attributes/group-text", Section: messages, Needs: aSigner, Extension: true,
		Rule: "'group' is an unsigned integer",
		run:  set("group", "x25519", ski.MalformedRequest),
	},
	{
		Name: "attributes/group-range", Section: messages, Needs: aSigner, Extension: true,
		Rule: "a NamedGroup has 16 bits (RFC 8446, Section 4.2.7)",
		run:  set("group", 1<<16, ski.MalformedRequest),
	},
	{
		Name: "attributes/group-null", Section: messages, Needs: aSigner, Extension: true,
		Rule: "null is not absence",
		run:  set("group", null, ski.MalformedRequest),
	},
	{
		Name: "attributes/state-number", Section: messages, Needs: aSigner, Extension: true,
		Rule: "'state' is a byte string",
		run:  set("state", 1, ski.MalformedRequest),
	},
	{
		Name: "attributes/state-long", Section: messages, Needs: aSigner, Extension: true,
		Rule: "'state' has at most 1024 bytes",
		run:  set("state", make([]byte, ski.MaxStateLen+1), ski.MalformedRequest),
	},
	{
		Name: "attributes/state-null", Section: messages, Needs: aSigner, Extension: true,
		Rule: "null is no byte string",
		run:  set("state", null, ski.MalformedRequest),
	},
}

func without(key string) func(*trial) error {
	return changed(func(_ *trial, m Message) Message { return m.Without(key) }, ski.MalformedRequest)
}

var orderCases = []Case{
	{
		Name: "order/spki-not-found", Section: sectionProcessing,
		Rule: "where there is no key of this fingerprint: 'spki not found'",
		run: func(t *trial) error {
			return t.refused(RequestMessage(strangeKey()).Encode(t.format), ski.SPKINotFound)
		},
	},
	{
		Name: "order/spki-not-found-rsa", Section: sectionProcessing,
		Rule: "where there is no key of this fingerprint: 'spki not found'",
		run: func(t *trial) error {
			req := &ski.Request{Protocol: ski.TLS12, SPKI: ski.KeyID(randomBytes(32)), Method: ski.MethodRSA, Input: randomBytes(256)}
			return t.refused(RequestMessage(req).Encode(t.format), ski.SPKINotFound)
		},
	},
	{
		Name: "order/parse-before-key", Section: processing,
		Rule: "a request that cannot be parsed is malformed, whatever its key",
		run: func(t *trial) error {
			return t.refused(RequestMessage(strangeKey()).With("protocol", 1).Encode(t.format), ski.MalformedRequest)
		},
	},
	{
		Name: "order/key-before-input", Section: processing,
		Rule: "the key is looked up before the input is looked into",
		run: func(t *trial) error {
			req := strangeKey()
			req.Input = []byte{1}
			return t.refused(RequestMessage(req).Encode(t.format), ski.SPKINotFound)
		},
	},
	{
		Name: "order/denied", Section: sectionProcessing, Needs: []Need{NeedDenied},
		Rule: "an edge server that may not use the key: 'request denied'",
		run: func(t *trial) error {
			return t.refused(RequestMessage(request(t.cfg.Denied)).Encode(t.format), ski.RequestDenied)
		},
	},
	{
		Name: "order/denied-before-input", Section: processing, Needs: []Need{NeedDenied},
		Rule: "who may not use a key is not told what is wrong with the input",
		run: func(t *trial) error {
			req := request(t.cfg.Denied)
			req.Input = []byte{1}
			return t.refused(RequestMessage(req).Encode(t.format), ski.RequestDenied)
		},
	},
	{
		Name: "order/parse-before-denied", Section: processing, Needs: []Need{NeedDenied},
		Rule: "a request that cannot be parsed is malformed, whoever asks",
		run: func(t *trial) error {
			return t.refused(RequestMessage(request(t.cfg.Denied)).With("hash", "none").Encode(t.format), ski.MalformedRequest)
		},
	},
	{
		Name: "order/error-alone", Section: sectionSKI,
		Rule: "'error' is not sent together with 'output'",
		run: func(t *trial) error { // reading the answer refuses both
			_, err := t.ask(RequestMessage(strangeKey()).Encode(t.format))
			return err
		},
	},
	{
		Name: "order/errors-say-no-more", Section: "draft, Section 4.3, REQ 6", Needs: aSigner,
		Rule: "two inputs that are malformed in other ways have the same answer: what is wrong is not told",
		run: func(t *trial) error {
			_, req := t.good()
			long, wrong := append(bytes.Clone(req.Input), 0), bytes.Clone(req.Input)
			wrong[len(wrong)-1] ^= 1 // off the curve
			m := RequestMessage(req)
			a, err := t.post(m.With("input", long).Encode(t.format))
			if err != nil {
				return err
			}
			b, err := t.post(m.With("input", wrong).Encode(t.format))
			if err != nil {
				return err
			}
			return sameBody(a, b)
		},
	},
}

// strangeKey is a good request for a key that nobody has.
func strangeKey() *ski.Request {
	return &ski.Request{Protocol: ski.TLS12, SPKI: ski.KeyID(randomBytes(32)), Hash: ski.SHA256, Input: ECDHEInput(tls.CurveP256)}
}
