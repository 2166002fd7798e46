package ski

import (
	"crypto/tls"
	"encoding/base64"
	"errors"
	"fmt"
	"math"
)

// Format is how a message is encoded.
type Format uint8

// The two formats of the draft (Section 5.2). The zero value is CBOR.
const (
	CBOR Format = iota
	JSON
)

// ContentFormat returns the CoAP Content-Format number (RFC 7252, Section
// 12.3; RFC 8949, Section 9.4).
func (f Format) ContentFormat() uint16 {
	if f == JSON {
		return 50
	}
	return 60
}

// MediaType returns the media type for HTTP.
func (f Format) MediaType() string {
	if f == JSON {
		return "application/json"
	}
	return "application/cbor"
}

func (f Format) String() string {
	switch f {
	case CBOR:
		return "CBOR"
	case JSON:
		return "JSON"
	}
	return fmt.Sprintf("Format(%d)", uint8(f))
}

// The keys of the message's map.
const (
	attrProtocol      = "protocol"
	attrSPKI          = "spki"
	attrMethod        = "method"
	attrHash          = "hash"
	attrInput         = "input"
	attrScheme        = "scheme"
	attrClientVersion = "client_version"
	attrServerName    = "server_name"
	attrGroup         = "group"
	attrState         = "state"
	attrOutput        = "output"
	attrParams        = "params"
	attrError         = "error"
)

// EncodeRequest encodes r, deterministically: equal requests give equal bytes.
// The error is a *MalformedError.
func EncodeRequest(f Format, r *Request) ([]byte, error) {
	if err := r.Validate(); err != nil {
		return nil, err
	}
	if f == JSON {
		return limited(encodeRequestJSON(r))
	}
	return limited(encodeRequestCBOR(r))
}

// DecodeRequest decodes a request of at most MaxMessageSize bytes and checks
// it with Validate. Keys it does not know are ignored; duplicate keys, wrong
// types, nesting beyond MaxDepth, more than MaxPairs pairs and bytes after the
// message are malformed. The error is a *MalformedError.
func DecodeRequest(f Format, data []byte) (*Request, error) {
	a, err := decode(f, data)
	if err != nil {
		return nil, err
	}
	r := &Request{
		Protocol:      Protocol(a.text(attrProtocol)),
		Method:        Method(a.text(attrMethod)),
		Hash:          Hash(a.text(attrHash)),
		Input:         a.bytes(attrInput),
		Scheme:        tls.SignatureScheme(a.uint16(attrScheme)),
		ClientVersion: a.uint16(attrClientVersion),
		ServerName:    a.text(attrServerName),
		Group:         tls.CurveID(a.uint16(attrGroup)),
		State:         a.bytes(attrState),
	}
	spki := a.bytes(attrSPKI)
	switch {
	case a.err != nil:
		return nil, a.err
	case len(spki) == 0:
		return nil, malformed(attrSPKI, "is missing")
	case len(spki) != len(r.SPKI):
		return nil, malformed(attrSPKI, fmt.Sprintf("does not have %d bytes", len(r.SPKI)))
	}
	copy(r.SPKI[:], spki)
	if err := r.Validate(); err != nil {
		return nil, err
	}
	return r, nil
}

// EncodeResponse encodes r, deterministically. The error is a *MalformedError.
func EncodeResponse(f Format, r *Response) ([]byte, error) {
	if err := r.Validate(); err != nil {
		return nil, err
	}
	if f == JSON {
		return limited(encodeResponseJSON(r))
	}
	return limited(encodeResponseCBOR(r))
}

// EncodedOutputLen returns the length in bytes of an encoded Response whose
// Output has n bytes.
func EncodedOutputLen(f Format, n int) int {
	if f == JSON {
		return len(`{}`) + encodedPairLen(f, attrOutput, n)
	}
	return len("\xa1") + encodedPairLen(f, attrOutput, n)
}

// encodedPairLen returns the length of a pair of a map, with a short key and a
// byte string of n bytes.
func encodedPairLen(f Format, key string, n int) int {
	if f == JSON {
		return len(`"":""`) + len(key) + base64.StdEncoding.EncodedLen(n)
	}
	head := 1 // of a byte string: RFC 8949, Section 3
	switch {
	case n > math.MaxUint8:
		head = 3
	case n >= 24:
		head = 2
	}
	return 1 + len(key) + head + n
}

// PaddedLen returns the length in bytes to which a binding brings the encoded
// r, below the message, so that every answer to such a request has the same. It
// is that of a response with OutputLen, ParamsLen and StateLen bytes, or 0
// where there is nothing to hide.
func (r *Response) PaddedLen(f Format) int {
	if r.OutputLen == 0 {
		return 0
	}
	n := EncodedOutputLen(f, r.OutputLen)
	if r.StateLen > 0 {
		n += encodedPairLen(f, attrParams, r.ParamsLen) + encodedPairLen(f, attrState, r.StateLen)
		if f == JSON {
			n += len(`,,`)
		}
	}
	return n
}

// limited refuses what the peer would refuse.
func limited(data []byte, err error) ([]byte, error) {
	if len(data) > MaxMessageSize {
		clear(data)
		return nil, malformed("", tooLarge)
	}
	return data, err
}

// DecodeResponse decodes a response, with the same strictness as
// DecodeRequest. The error is a *MalformedError.
func DecodeResponse(f Format, data []byte) (*Response, error) {
	a, err := decode(f, data)
	if err != nil {
		return nil, err
	}
	r := &Response{
		Output: a.bytes(attrOutput),
		Error:  Error(a.text(attrError)),
		Params: a.bytes(attrParams),
		State:  a.bytes(attrState),
	}
	if a.err != nil {
		return nil, a.err
	}
	if err := r.Validate(); err != nil {
		return nil, err
	}
	return r, nil
}

// attributes is a decoded map whose values are still encoded. The first value
// that does not have the type it is read as is kept in err.
type attributes struct {
	codec
	err error
}

// A codec knows the values of one message by their names. The methods return
// the value, whether it is there, and what is wrong with its type.
type codec interface {
	textValue(name string) (string, bool, error)
	bytesValue(name string) ([]byte, bool, error)
	uintValue(name string) (uint64, bool, error)
}

func decode(f Format, data []byte) (*attributes, error) {
	if len(data) > MaxMessageSize {
		return nil, malformed("", tooLarge)
	}
	var c codec
	var err error
	switch f {
	case CBOR:
		c, err = decodeCBOR(data)
	case JSON:
		c, err = decodeJSON(data)
	default:
		err = malformed("", "unknown format")
	}
	if err != nil {
		return nil, err
	}
	return &attributes{codec: c}, nil
}

func (a *attributes) fail(name string, err error) {
	if a.err == nil {
		a.err = malformed(name, err.Error())
	}
}

func (a *attributes) text(name string) string {
	v, ok, err := a.textValue(name)
	switch {
	case err != nil:
		a.fail(name, err)
	case ok && v == "":
		a.fail(name, errEmpty) // or it would pass for an absent one
	}
	return v
}

func (a *attributes) bytes(name string) []byte {
	v, ok, err := a.bytesValue(name)
	switch {
	case err != nil:
		a.fail(name, err)
	case ok && len(v) == 0:
		a.fail(name, errEmpty) // or it would pass for an absent one
	}
	return v
}

func (a *attributes) uint16(name string) uint16 {
	v, ok, err := a.uintValue(name)
	switch {
	case err != nil:
		a.fail(name, err)
	case ok && (v == 0 || v > math.MaxUint16):
		a.fail(name, errRange) // 0 would pass for an absent one
	}
	return uint16(v)
}

var tooLarge = fmt.Sprintf("it has more than %d bytes", MaxMessageSize)

var (
	errEmpty    = errors.New("is empty")
	errRange    = errors.New("is not between 1 and 65535")
	errNotText  = errors.New("is not a text string")
	errNotBytes = errors.New("is not a byte string")
	errNotArray = errors.New("is not an array")
	errNotUint  = errors.New("is not an unsigned integer")
)
