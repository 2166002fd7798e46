package ski

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"unicode/utf8"
)

func encodeRequestJSON(r *Request) ([]byte, error) { return json.Marshal(newRequestMap(r)) }

func encodeResponseJSON(r *Response) ([]byte, error) { return json.Marshal(newResponseMap(r)) }

type jsonMap map[string]json.Token

// decodeJSON reads the object token by token: json.Unmarshal would take the
// last of duplicate keys and match names without regard to case.
func decodeJSON(data []byte) (jsonMap, error) {
	if !utf8.Valid(data) {
		return nil, malformed("", "it is not UTF-8")
	}
	d := json.NewDecoder(bytes.NewReader(data))
	d.UseNumber()
	start, err := d.Token()
	if err != nil {
		return nil, malformed("", jsonReason(err))
	}
	if start != json.Delim('{') {
		return nil, malformed("", "it is not a JSON object")
	}
	m := make(jsonMap)
	for d.More() {
		key, err := d.Token()
		if err != nil {
			return nil, malformed("", jsonReason(err))
		}
		name, ok := key.(string)
		if !ok {
			return nil, malformed("", "it is not well-formed JSON")
		}
		if _, twice := m[name]; twice {
			return nil, malformed("", "it has a key twice")
		}
		if len(m) == MaxPairs {
			return nil, malformed("", fmt.Sprintf("it has more than %d pairs", MaxPairs))
		}
		if m[name], err = jsonValue(d); err != nil {
			return nil, err
		}
	}
	if _, err := d.Token(); err != nil { // the closing brace
		return nil, malformed("", jsonReason(err))
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return nil, malformed("", "it has bytes after the object")
	}
	return m, nil
}

// jsonValue reads one value. An array or object, which only an unknown key can
// have, is read to its end and stands for itself with its opening delimiter.
func jsonValue(d *json.Decoder) (json.Token, error) {
	first, err := d.Token()
	if err != nil {
		return nil, malformed("", jsonReason(err))
	}
	if _, ok := first.(json.Delim); !ok {
		return first, nil
	}
	names := make(map[json.Token]bool) // of an object, whose tokens are a name and a value in turn
	for isName := first == json.Delim('{'); ; isName = first == json.Delim('{') && !isName {
		t, err := d.Token()
		if err != nil {
			return nil, malformed("", jsonReason(err))
		}
		switch t {
		case json.Delim(']'), json.Delim('}'):
			return first, nil
		case json.Delim('['), json.Delim('{'):
			return nil, malformed("", fmt.Sprintf("it is nested more than %d levels deep", MaxDepth))
		}
		switch {
		case !isName:
		case names[t]:
			return nil, malformed("", "it has a key twice")
		case len(names) == MaxPairs:
			return nil, malformed("", fmt.Sprintf("it has more than %d pairs", MaxPairs))
		default:
			names[t] = true
		}
	}
}

func jsonReason(err error) string {
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return "it ends too early"
	}
	return "it is not well-formed JSON"
}

func (m jsonMap) textValue(name string) (string, bool, error) {
	v, ok := m[name]
	if !ok {
		return "", false, nil
	}
	s, isText := v.(string)
	if !isText {
		return "", true, errNotText
	}
	return s, true, nil
}

// bytesValue reads standard base64 (RFC 4648, Section 4). Padding is complete
// or absent, and white space around the text does not count; a line break
// inside it does, although encoding/base64 would skip it.
func (m jsonMap) bytesValue(name string) ([]byte, bool, error) {
	s, ok, err := m.textValue(name)
	if !ok || err != nil {
		return nil, ok, err
	}
	s = strings.TrimSpace(s)
	enc := base64.StdEncoding
	if len(s)%4 != 0 {
		enc = base64.RawStdEncoding
	}
	v, err := enc.Strict().DecodeString(s)
	if err != nil || strings.ContainsAny(s, "\r\n") {
		return nil, true, errNotBase64
	}
	return v, true, nil
}

func (m jsonMap) uintValue(name string) (uint64, bool, error) {
	v, ok := m[name]
	if !ok {
		return 0, false, nil
	}
	n, isNumber := v.(json.Number)
	if !isNumber {
		return 0, true, errNotUint
	}
	u, err := strconv.ParseUint(n.String(), 10, 64)
	if err != nil {
		return 0, true, errNotUint
	}
	return u, true, nil
}

var errNotBase64 = errors.New("is not base64")
