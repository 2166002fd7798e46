package keyserver

import (
	"bytes"
	"crypto/ed25519"
	"encoding/base64"
	"encoding/json"
	"errors"
	"slices"
)

// signedText is a file of one JSON object whose last field, if it has one, is
// the base64 of a signature on a context and the bytes before it: the tip of an
// audit log, and an operator's acceptance.
type signedText struct {
	signed    []byte // what the signature is on
	signature []byte // nil for none
}

// encodeSigned returns v as such a file. Without a key there is no signature.
func encodeSigned(context string, v any, key ed25519.PrivateKey) ([]byte, error) {
	data, err := json.Marshal(v)
	if err != nil {
		return nil, err
	}
	if key != nil {
		data = data[:len(data)-1] // without the brace
		signature := ed25519.Sign(key, slices.Concat([]byte(context), data))
		data = append(data, signaturePrefix...)
		data = base64.StdEncoding.AppendEncode(data, signature)
		data = append(data, signatureSuffix+"}"...)
	}
	return append(data, '\n'), nil
}

// decodeSigned reads into v what encodeSigned has returned, and nothing that
// differs from that by a byte. The signature is not checked.
func decodeSigned(context string, data []byte, v any) (signedText, error) {
	const signatureLen = len(signaturePrefix) + (ed25519.SignatureSize+2)/3*4 + len(signatureSuffix)
	object, ok := bytes.CutSuffix(data, []byte("}\n"))
	if !ok {
		return signedText{}, errors.New("it is cut off")
	}
	var t signedText
	if at := len(object) - signatureLen; at > 0 && bytes.HasPrefix(object[at:], []byte(signaturePrefix)) {
		text := bytes.TrimSuffix(object[at+len(signaturePrefix):], []byte(signatureSuffix))
		var err error
		if t.signature, err = base64.StdEncoding.Strict().DecodeString(string(text)); err != nil || len(t.signature) != ed25519.SignatureSize {
			return signedText{}, errors.New("its signature is malformed")
		}
		object = object[:at]
	}
	d := json.NewDecoder(bytes.NewReader(append(slices.Clip(object), '}')))
	d.DisallowUnknownFields()
	if err := d.Decode(v); err != nil {
		return signedText{}, err
	}
	again, err := encodeSigned(context, v, nil)
	if err != nil || !bytes.Equal(again, append(slices.Clip(object), "}\n"...)) {
		return signedText{}, errors.New("it is not as a key server writes it")
	}
	t.signed = slices.Concat([]byte(context), object)
	return t, nil
}

// by reports whether the signature is that of the key.
func (t signedText) by(key ed25519.PublicKey) bool {
	return t.signature != nil && ed25519.Verify(key, t.signed, t.signature)
}
