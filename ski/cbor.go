package ski

import (
	"errors"
	"fmt"
	"io"

	"github.com/fxamacker/cbor/v2"
)

// requestMap and responseMap give the messages their CBOR and JSON names.
type requestMap struct {
	Protocol      string `cbor:"protocol" json:"protocol"`
	Method        string `cbor:"method,omitempty" json:"method,omitempty"`
	Hash          string `cbor:"hash,omitempty" json:"hash,omitempty"`
	SPKI          []byte `cbor:"spki" json:"spki"`
	Scheme        uint16 `cbor:"scheme,omitempty" json:"scheme,omitempty"`
	ClientVersion uint16 `cbor:"client_version,omitempty" json:"client_version,omitempty"`
	ServerName    string `cbor:"server_name,omitempty" json:"server_name,omitempty"`
	Group         uint16 `cbor:"group,omitempty" json:"group,omitempty"`
	Input         []byte `cbor:"input" json:"input"`
	State         []byte `cbor:"state,omitempty" json:"state,omitempty"`
}

type responseMap struct {
	Output []byte `cbor:"output,omitempty" json:"output,omitempty"`
	Params []byte `cbor:"params,omitempty" json:"params,omitempty"`
	State  []byte `cbor:"state,omitempty" json:"state,omitempty"`
	Error  string `cbor:"error,omitempty" json:"error,omitempty"`
}

func newRequestMap(r *Request) *requestMap {
	m := &requestMap{
		Protocol:      string(r.Protocol),
		Method:        string(r.Method),
		Hash:          string(r.Hash),
		SPKI:          r.SPKI[:],
		Scheme:        uint16(r.Scheme),
		ClientVersion: r.ClientVersion,
		ServerName:    r.ServerName,
		Group:         uint16(r.Group),
		State:         r.State,
		Input:         r.Input,
	}
	if r.Method == MethodECDHE {
		m.Method = "" // the default goes unsaid
	}
	return m
}

var (
	cborEnc = must(cbor.CoreDetEncOptions().EncMode()) // RFC 8949, Section 4.2.1
	cborDec = must(cbor.DecOptions{
		DupMapKey:        cbor.DupMapKeyEnforcedAPF,
		MaxMapPairs:      MaxPairs,
		MaxArrayElements: MaxMessageSize,
		MaxNestedLevels:  4, // The library's least; depth does the rest.
		IndefLength:      cbor.IndefLengthAllowed,
	}.DecMode())
)

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

func newResponseMap(r *Response) *responseMap {
	return &responseMap{Output: r.Output, Params: r.Params, State: r.State, Error: string(r.Error)}
}

func encodeRequestCBOR(r *Request) ([]byte, error) { return cborEnc.Marshal(newRequestMap(r)) }

func encodeResponseCBOR(r *Response) ([]byte, error) { return cborEnc.Marshal(newResponseMap(r)) }

type cborMap map[cborKey]cbor.RawMessage

// cborKey is a key of the map. The library would take null for an empty text.
type cborKey string

func (k *cborKey) UnmarshalCBOR(data []byte) error {
	if major(data) != majorText {
		return errNotText
	}
	return cborDec.Unmarshal(data, (*string)(k))
}

// The major types of RFC 8949, Section 3.1.
const (
	majorUint  = 0
	majorBytes = 2
	majorText  = 3
	majorArray = 4
	majorMap   = 5
	majorTag   = 6
)

func major(raw []byte) byte { return raw[0] >> 5 }

func decodeCBOR(data []byte) (cborMap, error) {
	m, err := decodeCBORMap(data)
	if err != nil {
		return nil, err
	}
	for _, raw := range m {
		switch major(raw) {
		case majorArray, majorMap, majorTag:
			var v any
			if err := cborDec.Unmarshal(raw, &v); err != nil {
				return nil, malformed("", cborReason(err))
			}
			if depth(v) > MaxDepth-1 {
				return nil, malformed("", fmt.Sprintf("it is nested more than %d levels deep", MaxDepth))
			}
		}
	}
	return m, nil
}

// decodeCBORMap is decodeCBOR for a message that may be nested as deep as the
// library lets it be.
func decodeCBORMap(data []byte) (cborMap, error) {
	if len(data) == 0 {
		return nil, malformed("", "it is empty")
	}
	if major(data) != majorMap {
		return nil, malformed("", "it is not a CBOR map")
	}
	var m cborMap
	if err := cborDec.Unmarshal(data, &m); err != nil {
		return nil, malformed("", cborReason(err))
	}
	return m, nil
}

// depth returns how many arrays, maps and tags are nested in v.
func depth(v any) int {
	n := 0
	switch v := v.(type) {
	case []any:
		for _, e := range v {
			n = max(n, depth(e))
		}
		return n + 1
	case map[any]any:
		for k, e := range v {
			n = max(n, depth(k), depth(e))
		}
		return n + 1
	case cbor.Tag:
		return depth(v.Content) + 1
	}
	return 0
}

// cborReason turns the library's error into a fixed text: its own may quote
// the message.
func cborReason(err error) string {
	var (
		dup      *cbor.DupMapKeyError
		syntax   *cbor.SyntaxError
		semantic *cbor.SemanticError
		extra    *cbor.ExtraneousDataError
		pairs    *cbor.MaxMapPairsError
		elements *cbor.MaxArrayElementsError
		levels   *cbor.MaxNestedLevelError
	)
	switch {
	case errors.As(err, &dup):
		return "it has a key twice"
	case errors.As(err, &extra):
		return "it has bytes after the map"
	case errors.As(err, &pairs):
		return fmt.Sprintf("it has more than %d pairs", MaxPairs)
	case errors.As(err, &elements):
		return "it has an array that is too long"
	case errors.As(err, &levels):
		return fmt.Sprintf("it is nested more than %d levels deep", MaxDepth)
	case errors.Is(err, errNotText):
		return "it has a key that is not text"
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return "it ends too early"
	case errors.As(err, &syntax), errors.As(err, &semantic):
		return "it is not well-formed CBOR"
	}
	return "it is not valid CBOR"
}

// The type of a known value is looked at before it is decoded: the library
// would also take an array of integers for a byte string, and null for
// anything.

func (m cborMap) textValue(name string) (v string, ok bool, err error) {
	err = m.value(name, majorText, errNotText, &v)
	return v, m[cborKey(name)] != nil, err
}

func (m cborMap) bytesValue(name string) (v []byte, ok bool, err error) {
	err = m.value(name, majorBytes, errNotBytes, &v)
	return v, m[cborKey(name)] != nil, err
}

func (m cborMap) uintValue(name string) (v uint64, ok bool, err error) {
	err = m.value(name, majorUint, errNotUint, &v)
	return v, m[cborKey(name)] != nil, err
}

func (m cborMap) value(name string, want byte, wrongType error, v any) error {
	raw, ok := m[cborKey(name)]
	if !ok {
		return nil
	}
	if major(raw) != want || cborDec.Unmarshal(raw, v) != nil {
		return wrongType
	}
	return nil
}
