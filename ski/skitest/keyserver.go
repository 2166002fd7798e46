package skitest

import (
	"context"
	"crypto"
	"crypto/ecdh"
	"crypto/md5"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha1"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"slices"
	"sync"

	"github.com/tlsski/tlsski/ski"
)

// KeyServer is a key server in memory: a ski.Handler that does what it is asked
// with the keys it has and checks nothing. It is for tests alone: it would sign
// and decrypt anything for anyone.
type KeyServer struct {
	mu       sync.Mutex
	keys     map[ski.KeyID]crypto.Signer
	refusal  ski.Error
	requests []ski.Request
}

// NewKeyServer returns a KeyServer with keys.
func NewKeyServer(keys ...crypto.Signer) *KeyServer {
	s := &KeyServer{keys: map[ski.KeyID]crypto.Signer{}}
	for _, key := range keys {
		s.Add(key)
	}
	return s
}

// Add gives the KeyServer one more key. It panics if its public half is of a
// type that has no SubjectPublicKeyInfo.
func (s *KeyServer) Add(key crypto.Signer) {
	id, err := ski.PublicKeyID(key.Public())
	if err != nil {
		panic(err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.keys[id] = key
}

// Remove takes a key away.
func (s *KeyServer) Remove(id ski.KeyID) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.keys, id)
}

// Refuse makes e the answer to everything from now on; the empty one makes the
// KeyServer answer again.
func (s *KeyServer) Refuse(e ski.Error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.refusal = e
}

// Requests returns what the KeyServer has been asked since it was made, or
// since Forget.
func (s *KeyServer) Requests() []ski.Request {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.requests)
}

// Forget returns what Requests does and forgets it.
func (s *KeyServer) Forget() []ski.Request {
	s.mu.Lock()
	defer s.mu.Unlock()
	requests := s.requests
	s.requests = nil
	return requests
}

// ServeSKI answers a request.
func (s *KeyServer) ServeSKI(_ context.Context, _ ski.Peer, req *ski.Request) *ski.Response {
	s.mu.Lock()
	s.requests = append(s.requests, *req)
	key, refusal := s.keys[req.SPKI], s.refusal
	s.mu.Unlock()
	switch {
	case refusal != "":
		return ski.Failed(refusal)
	case key == nil:
		return ski.Failed(ski.SPKINotFound)
	case req.KeyExchange() == ski.MethodECDHE && len(req.Input) < 2*ski.RandomLen:
		return ski.Failed(ski.MalformedRequest)
	}
	resp, err := operate(key, req)
	if errors.Is(err, errNotServed) {
		return ski.Failed(ski.MalformedRequest)
	}
	if err != nil {
		return ski.Failed(ski.UnspecifiedError)
	}
	return resp
}

var errNotServed = errors.New("skitest: the key has no such operation")

func operate(key crypto.Signer, req *ski.Request) (*ski.Response, error) {
	switch req.KeyExchange() {
	case ski.MethodRSA:
		decrypter, ok := key.(crypto.Decrypter)
		if !ok {
			return nil, errNotServed
		}
		//lint:ignore SA1019 it is what static RSA is made of
		secret, err := decrypter.Decrypt(rand.Reader, req.Input, &rsa.PKCS1v15DecryptOptions{SessionKeyLen: ski.PreMasterSecretLen})
		return &ski.Response{Output: secret}, err
	case ski.MethodECDHEPMS:
		if len(req.State) > 0 {
			return agree(req)
		}
		return signEphemeral(key, req)
	}
	signature, err := sign(key, req, req.Input)
	return &ski.Response{Output: signature}, err
}

func sign(key crypto.Signer, req *ski.Request, input []byte) ([]byte, error) {
	opts := signerOpts(req, key.Public())
	if opts.HashFunc() == crypto.MD5SHA1 { // RFC 4346, Section 7.4.3
		m, h := md5.Sum(input), sha1.Sum(input)
		return key.Sign(rand.Reader, append(m[:], h[:]...), opts)
	}
	return crypto.SignMessage(key, rand.Reader, input, opts)
}

// signEphemeral is the first exchange of ECDHE-PMS. The state is the group and
// the private key as it is: nothing is kept, and nothing protected.
func signEphemeral(key crypto.Signer, req *ski.Request) (*ski.Response, error) {
	curve, ok := curves[req.Group]
	if !ok {
		return nil, errNotServed
	}
	private, err := curve.GenerateKey(rand.Reader)
	if err != nil {
		return nil, err
	}
	params := serverECDHParams(nil, req.Group, private.PublicKey().Bytes())
	signature, err := sign(key, req, slices.Concat(req.Input, params))
	return &ski.Response{
		Output: signature, Params: params,
		State: append([]byte{byte(req.Group >> 8), byte(req.Group)}, private.Bytes()...),
	}, err
}

// agree is the second exchange.
func agree(req *ski.Request) (*ski.Response, error) {
	_, private := openState(req.State)
	if private == nil {
		return nil, errNotServed
	}
	public, err := private.Curve().NewPublicKey(req.Input)
	if err != nil {
		return nil, errNotServed
	}
	secret, err := private.ECDH(public)
	if err != nil {
		return nil, errNotServed
	}
	return &ski.Response{Output: secret}, nil
}

// openState returns the group and the private key of a KeyServer's state, or
// nil for what is none.
func openState(state []byte) (tls.CurveID, *ecdh.PrivateKey) {
	if len(state) < 2 {
		return 0, nil
	}
	group := tls.CurveID(binary.BigEndian.Uint16(state))
	curve, ok := curves[group]
	if !ok {
		return 0, nil
	}
	private, err := curve.NewPrivateKey(state[2:])
	if err != nil {
		return 0, nil
	}
	return group, private
}

// signerOpts returns what a request for a signature asks for: see ski.Request.
func signerOpts(req *ski.Request, pub crypto.PublicKey) crypto.SignerOpts {
	if req.Scheme == 0 {
		if req.Hash != ski.HashDefault {
			return req.Hash.Func()
		}
		if _, ok := pub.(*rsa.PublicKey); ok && !req.Protocol.Is12() {
			return crypto.MD5SHA1
		}
		return crypto.SHA1
	}
	hash := schemeHashes[req.Scheme]
	if req.Scheme>>8 == 8 && req.Scheme != tls.Ed25519 {
		return &rsa.PSSOptions{SaltLength: rsa.PSSSaltLengthEqualsHash, Hash: hash}
	}
	return hash
}

// schemeHashes are the hashes of the SignatureSchemes (RFC 8446, Section
// 4.2.3). Ed25519 has none.
var schemeHashes = map[tls.SignatureScheme]crypto.Hash{
	tls.PKCS1WithSHA256:        crypto.SHA256,
	tls.PKCS1WithSHA384:        crypto.SHA384,
	tls.PKCS1WithSHA512:        crypto.SHA512,
	tls.PSSWithSHA256:          crypto.SHA256,
	tls.PSSWithSHA384:          crypto.SHA384,
	tls.PSSWithSHA512:          crypto.SHA512,
	tls.ECDSAWithP256AndSHA256: crypto.SHA256,
	tls.ECDSAWithP384AndSHA384: crypto.SHA384,
	tls.ECDSAWithP521AndSHA512: crypto.SHA512,
}
