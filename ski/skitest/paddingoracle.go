package skitest

import (
	"context"
	"crypto/rsa"
	"encoding/binary"
	"errors"

	"github.com/tlsski/tlsski/ski"
)

// WrongPreMasterSecret is an answer to MethodRSA that is no PreMasterSecret: what
// key servers say, or could, of a plaintext that is none.
type WrongPreMasterSecret struct {
	// Name says what it is.
	Name string
	// Response is the answer. Not all are ones that Validate lets through.
	Response ski.Response
	// Body is a whole answer in CBOR in place of Response, that is not one of SKI.
	Body []byte
}

// WrongPreMasterSecrets returns every kind there is: each error, outputs of each
// length that could make a difference, or with another version, and what cannot
// be parsed. The version of the client is TLS 1.2.
func WrongPreMasterSecrets() []WrongPreMasterSecret {
	output := func(n int) ski.Response { return ski.Response{Output: PreMasterSecret(0x0303)[:n:n]} }
	long := func(n int) ski.Response {
		return ski.Response{Output: append(PreMasterSecret(0x0303), make([]byte, n-ski.PreMasterSecretLen)...)}
	}
	version := func(v uint16) ski.Response { return ski.Response{Output: PreMasterSecret(v)} }
	body := func(m Message) []byte { return m.Encode(ski.CBOR) }
	return []WrongPreMasterSecret{
		{Name: "request denied", Response: ski.Response{Error: ski.RequestDenied}},
		{Name: "spki not found", Response: ski.Response{Error: ski.SPKINotFound}},
		{Name: "malformed request", Response: ski.Response{Error: ski.MalformedRequest}},
		{Name: "unspecified error", Response: ski.Response{Error: ski.UnspecifiedError}},
		{Name: "an error that there is not", Response: ski.Response{Error: "bad padding"}},
		{Name: "an output beside an error", Response: ski.Response{Output: PreMasterSecret(0x0303), Error: ski.UnspecifiedError}},
		{Name: "nothing", Response: output(0)},
		{Name: "1 byte", Response: output(1)},
		{Name: "47 bytes", Response: output(47)},
		{Name: "49 bytes", Response: long(49)},
		{Name: "64 bytes", Response: long(64)},
		{Name: "4096 bytes", Response: long(4096)},
		{Name: "TLS 1.1", Response: version(0x0302)},
		{Name: "TLS 1.3", Response: version(0x0304)},
		{Name: "no version", Response: version(0)},
		{Name: "an empty body", Body: []byte{}},
		{Name: "text", Body: []byte("javax.crypto.BadPaddingException")},
		{Name: "an error cut off", Body: body(Message{{"error", string(ski.UnspecifiedError)}})[:10]},
		{Name: "an unknown error", Body: body(Message{{"error", "bad padding"}})},
		{Name: "an empty output", Body: body(Message{{"output", []byte{}}})},
		{Name: "both attributes", Body: body(Message{{"output", PreMasterSecret(0x0303)}, {"error", string(ski.UnspecifiedError)}})},
		{Name: "an output that is too long", Body: body(Message{{"output", make([]byte, 5000)}})},
	}
}

// PaddingOracle is a key server with one RSA key that answers as Bleichenbacher
// would have it: what has the right padding comes out, whatever it is, and what
// has not is answered with Wrong.
type PaddingOracle struct {
	Key   *rsa.PrivateKey
	Wrong WrongPreMasterSecret
}

// ServeSKI answers a request. It has no Body of Wrong.
func (o *PaddingOracle) ServeSKI(_ context.Context, _ ski.Peer, req *ski.Request) *ski.Response {
	//lint:ignore SA1019 it is what static RSA is made of
	if secret, err := rsa.DecryptPKCS1v15(nil, o.Key, req.Input); err == nil {
		return &ski.Response{Output: secret}
	}
	wrong := o.Wrong.Response
	wrong.Output = append([]byte(nil), wrong.Output...) // the caller clears it
	return &wrong
}

// RoundTrip asks the key server, and does with a Body what a binding does.
func (o *PaddingOracle) RoundTrip(ctx context.Context, req *ski.Request) (*ski.Response, error) {
	resp := o.ServeSKI(ctx, ski.Peer{}, req)
	if o.Wrong.Body == nil || len(resp.Output) > 0 {
		return resp, nil
	}
	_, err := ski.DecodeResponse(ski.CBOR, o.Wrong.Body)
	if err == nil {
		err = errors.New("the answer is one of SKI")
	}
	return nil, &ski.TransportError{Endpoint: "skitest", Op: "answer", Err: errors.New(err.Error())}
}

// WrongPlaintext is a plaintext of an EncryptedPreMasterSecret that is not what a
// client means (RFC 8017, Section 7.2.1).
type WrongPlaintext struct {
	// Name says what it is.
	Name string
	// Block is as long as the modulus.
	Block []byte
	// Secret is what a client that has made Block goes on with, if there is one:
	// 48 bytes at its end.
	Secret []byte
}

// WrongPlaintexts returns those that Bleichenbacher's attack and its successors
// tell apart, for a modulus of size bytes and a client whose version is TLS 1.2.
// The first is right in all, but not the secret that the client goes on with.
func WrongPlaintexts(size int) []WrongPlaintext {
	// block ends in a secret behind a padding that is right.
	block := func(secret []byte) []byte {
		b := append([]byte{0, 2}, nonZero(size-len(secret)-3)...)
		return append(append(b, 0), secret...)
	}
	random := func(n int) []byte {
		return append(binary.BigEndian.AppendUint16(nil, 0x0303), randomBytes(max(n-2, 0))...)[:n]
	}
	var all []WrongPlaintext
	add := func(name string, secret []byte, change func(b []byte)) {
		w := WrongPlaintext{Name: name, Block: block(secret)}
		if change != nil {
			change(w.Block)
		}
		w.Secret = append([]byte(nil), w.Block[size-ski.PreMasterSecretLen:]...)
		all = append(all, w)
	}
	add("another secret", random(48), nil)
	all[0].Secret = PreMasterSecret(0x0303)
	for _, v := range []uint16{0x0300, 0x0301, 0x0302, 0x0304, 0x0000, 0xffff} {
		add("another version", PreMasterSecret(v), nil)
	}
	for _, n := range []int{0, 1, 2, 46, 47, 49, 50, 64, 128, size - 11} {
		add("another length", random(n), nil)
	}
	set := func(i int, v byte) func([]byte) { return func(b []byte) { b[i] = v } }
	add("the first byte is 1", random(48), set(0, 1))
	add("block type 0", random(48), set(1, 0))
	add("block type 1", random(48), set(1, 1))
	add("block type 3", random(48), set(1, 3))
	add("block type 255", random(48), set(1, 0xff))
	add("a padding of 0 bytes", random(48), set(2, 0))
	add("a padding of 7 bytes", random(48), set(9, 0))
	add("a padding of 8 bytes", random(48), set(10, 0))
	add("a padding that ends in the middle", random(48), set(size/2, 0))
	add("a padding that ends a byte too soon", random(48), set(size-50, 0))
	add("no end of the padding", nonZero(48), set(size-49, 7))
	add("zeros for a padding", random(48), func(b []byte) { clear(b[2 : size-48]) })
	add("nothing but zeros", random(48), func(b []byte) { clear(b) })
	add("one", random(48), func(b []byte) { clear(b); b[size-1] = 1 })
	add("random bytes", random(48), func(b []byte) { copy(b[1:], randomBytes(size-1)) })
	return all
}

// nonZero returns n random bytes that are not 0.
func nonZero(n int) []byte {
	b := randomBytes(n)
	for i := range b {
		b[i] |= 1
	}
	return b
}
