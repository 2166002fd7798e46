package skitest

import (
	"encoding/base64"
	"encoding/json"
	"slices"
	"strings"

	"github.com/fxamacker/cbor/v2"

	"github.com/tlsski/tlsski/ski"
)

// Message is a message as its pairs, in any order and with any values, for what
// a ski.Request cannot hold. A []byte is a byte string: in JSON, base64 (RFC
// 4648, Section 4).
type Message []Pair

// Pair is one of them. A Value of type Raw stands for itself.
type Pair struct {
	Key   string
	Value any
}

// Raw is a value that is encoded already, in CBOR or in JSON.
type Raw struct{ CBOR, JSON []byte }

// RequestMessage returns the pairs of a request.
func RequestMessage(r *ski.Request) Message {
	m := Message{{"protocol", string(r.Protocol)}, {"spki", r.SPKI[:]}}
	for _, p := range []struct {
		key, text string
	}{{"method", string(r.Method)}, {"hash", string(r.Hash)}, {"server_name", r.ServerName}} {
		if p.text != "" {
			m = append(m, Pair{p.key, p.text})
		}
	}
	for _, p := range []struct {
		key    string
		number uint16
	}{{"scheme", uint16(r.Scheme)}, {"client_version", r.ClientVersion}, {"group", uint16(r.Group)}} {
		if p.number != 0 {
			m = append(m, Pair{p.key, p.number})
		}
	}
	if len(r.State) > 0 {
		m = append(m, Pair{"state", r.State})
	}
	return append(m, Pair{"input", r.Input})
}

// With returns the message with a pair replaced, or added at its end.
func (m Message) With(key string, value any) Message {
	m = slices.Clone(m)
	if i := m.index(key); i >= 0 {
		m[i].Value = value
		return m
	}
	return append(m, Pair{key, value})
}

// Without returns the message without a pair.
func (m Message) Without(key string) Message {
	return slices.DeleteFunc(slices.Clone(m), func(p Pair) bool { return p.Key == key })
}

func (m Message) index(key string) int {
	return slices.IndexFunc(m, func(p Pair) bool { return p.Key == key })
}

// Encode encodes the message, its pairs in the order they are in, and each as
// often as it is there. It panics on a value that has no encoding.
func (m Message) Encode(f ski.Format) []byte {
	if f == ski.JSON {
		pairs := make([]string, len(m))
		for i, p := range m {
			pairs[i] = string(encodeJSON(p.Key)) + ":" + string(encodeJSON(p.Value))
		}
		return []byte("{" + strings.Join(pairs, ",") + "}")
	}
	data := cborHead(5, len(m))
	for _, p := range m {
		data = append(append(data, encodeCBOR(p.Key)...), encodeCBOR(p.Value)...)
	}
	return data
}

func encodeJSON(v any) []byte {
	if raw, ok := v.(Raw); ok {
		return raw.JSON
	}
	data, err := json.Marshal(v)
	if err != nil {
		panic(err)
	}
	return data
}

func encodeCBOR(v any) []byte {
	if raw, ok := v.(Raw); ok {
		return raw.CBOR
	}
	data, err := cbor.Marshal(v)
	if err != nil {
		panic(err)
	}
	return data
}

// cborHead is the initial byte and argument of a data item (RFC 8949, Section
// 3), for arguments below 65536.
func cborHead(major byte, n int) []byte {
	switch {
	case n < 24:
		return []byte{major<<5 | byte(n)}
	case n < 1<<8:
		return []byte{major<<5 | 24, byte(n)}
	}
	return []byte{major<<5 | 25, byte(n >> 8), byte(n)}
}

// base64Text is a byte string in JSON whose text is changed.
func base64Text(data []byte, change func(string) string) Raw {
	return Raw{JSON: encodeJSON(change(base64.StdEncoding.EncodeToString(data)))}
}
