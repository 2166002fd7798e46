package ski

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rsa"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
)

// Key is a private key that a key server holds: it knows the public half and
// has the operations done over a Transport. PrivateKey returns it in the form
// that goes into a tls.Certificate:
//
//   - crypto.MessageSigner: SignMessage is the one crypto/tls calls in TLS 1.2
//     and TLS 1.3; it gets the whole to-be-signed structure, which becomes the
//     request's input.
//   - crypto.Signer: Sign refuses, with ErrBareDigest. crypto/tls needs it in
//     TLS 1.0 and 1.1, where so only the static RSA key exchange works.
//   - crypto.Decrypter, but only with an RSA key, and only what PrivateKey
//     returns: Decrypt is for the PreMasterSecret of the static RSA key
//     exchange. crypto/tls refuses TLS 1.2 to other keys with such a method.
//
// A Key is immutable and safe for concurrent use. One made by NewKey knows
// nothing of the connection it is used for; ForClientHello and ForConnection
// return one that does, and that is what a server should use: the request then
// ends with the connection, and the key server learns the client's version and
// the server name.
type Key struct {
	transport Transport
	public    crypto.PublicKey
	id        KeyID
	draftOnly bool
	ctx       context.Context
	conn      Connection
}

var (
	_ crypto.MessageSigner = (*Key)(nil)
	_ crypto.Decrypter     = rsaKey{}
)

// rsaKey is a Key that decrypts.
type rsaKey struct{ *Key }

// Connection is what a Key may know of the connection it works for. Any field
// can be left zero.
type Connection struct {
	// Protocol is the version negotiated with the client. Where it is not
	// known, what is to be signed tells TLS 1.3 from TLS 1.2.
	Protocol Protocol
	// ClientVersion is ClientHello.client_version, as on the wire.
	ClientVersion uint16
	// ServerName is the server name the client asked for.
	ServerName string
}

// NewKey returns the Key whose public half is pub: an *ecdsa.PublicKey, an
// *rsa.PublicKey or an ed25519.PublicKey.
func NewKey(t Transport, pub crypto.PublicKey) (*Key, error) {
	switch pub.(type) {
	case *ecdsa.PublicKey, *rsa.PublicKey, ed25519.PublicKey:
	default:
		return nil, fmt.Errorf("ski: a public key of type %T cannot be used with TLS", pub)
	}
	id, err := PublicKeyID(pub)
	if err != nil {
		return nil, err
	}
	return &Key{transport: t, public: pub, id: id}, nil
}

// DraftOnly returns a Key that sends only what the draft itself defines, for a
// key server that knows nothing else: no 'scheme', 'client_version' or
// 'server_name', so no TLS 1.3, RSA-PSS or EdDSA.
func (k *Key) DraftOnly() *Key {
	d := *k
	d.draftOnly = true
	return &d
}

// ForConnection returns a Key for one connection. Its requests end with ctx.
func (k *Key) ForConnection(ctx context.Context, c Connection) *Key {
	b := *k
	b.ctx, b.conn = ctx, c
	return &b
}

// ForClientHello returns a Key for the connection that begins with h. It is to
// be called in tls.Config.GetCertificate; Certificate.GetCertificate does.
func (k *Key) ForClientHello(h *tls.ClientHelloInfo) *Key {
	c := Connection{ServerName: h.ServerName}
	for _, v := range h.SupportedVersions {
		// Versions beyond TLS 1.2 are offered in an extension, while
		// client_version stays at 0x0303 (RFC 8446, Section 4.1.2).
		c.ClientVersion = max(c.ClientVersion, min(v, tls.VersionTLS12))
	}
	switch c.ClientVersion { // A client that offers nothing newer gets nothing newer.
	case tls.VersionTLS10:
		c.Protocol = TLS10
	case tls.VersionTLS11:
		c.Protocol = TLS11
	}
	return k.ForConnection(h.Context(), c)
}

// PrivateKey returns what belongs into tls.Certificate.PrivateKey: the Key
// itself or, if it is an RSA key, one that is a crypto.Decrypter too.
func (k *Key) PrivateKey() crypto.MessageSigner {
	if _, ok := k.public.(*rsa.PublicKey); ok {
		return rsaKey{k}
	}
	return k
}

// ID returns the fingerprint by which the key server knows the key.
func (k *Key) ID() KeyID { return k.id }

// Public returns the public half.
func (k *Key) Public() crypto.PublicKey { return k.public }

// Sign always returns ErrBareDigest.
func (k *Key) Sign(io.Reader, []byte, crypto.SignerOpts) ([]byte, error) {
	return nil, ErrBareDigest
}

// certificateVerifyPrefix begins what is signed in TLS 1.3 (RFC 8446, Section
// 4.4.3); in TLS 1.2 the byte after the randoms is curve_type or the first of
// dh_p's length, never 'T'.
var certificateVerifyPrefix = append(bytes.Repeat([]byte{0x20}, 64), 'T')

// SignMessage has the key server hash and sign msg: in TLS 1.2 ClientRandom +
// ServerRandom + ServerECDHParams, in TLS 1.3 the content covered by the
// CertificateVerify. opts gives the hash and, as *rsa.PSSOptions with a salt
// as long as the hash, RSA-PSS. The reader is not used.
//
// The error is an Error where the key server refused, otherwise a
// *TransportError, the context's, or one that says why it cannot be asked: a
// *FormError for what a key server never signs. That can be a TLS client's doing,
// so the key server is not even asked.
func (k *Key) SignMessage(_ io.Reader, msg []byte, opts crypto.SignerOpts) ([]byte, error) {
	if err := CheckForm(msg); err != nil {
		return nil, err
	}
	req := k.request(MethodECDHE, msg)
	is13 := bytes.HasPrefix(msg, certificateVerifyPrefix)
	switch {
	case req.Protocol == "" && is13:
		req.Protocol = TLS13
	case req.Protocol == "":
		req.Protocol = TLS12
	case req.Protocol.Is13() != is13:
		return nil, fmt.Errorf("ski: what is to be signed is not of %s", req.Protocol)
	}
	if err := k.algorithm(req, opts); err != nil {
		return nil, err
	}
	output, err := k.do(req)
	if err != nil {
		return nil, err
	}
	if err := k.checkSignature(output); err != nil {
		return nil, err
	}
	return output, nil
}

// checkSignature refuses what the client would not even parse.
func (k *Key) checkSignature(signature []byte) error {
	if pub, ok := k.public.(*rsa.PublicKey); ok && len(signature) != pub.Size() {
		return fmt.Errorf("ski: the key server's signature has %d bytes, not the modulus' %d", len(signature), pub.Size())
	}
	return nil
}

// algorithm sets the request's hash where the draft can say what opts ask for,
// and otherwise its scheme.
func (k *Key) algorithm(req *Request, opts crypto.SignerOpts) error {
	if opts == nil {
		return errors.New("ski: SignMessage needs to know the hash")
	}
	hash := opts.HashFunc()
	_, rsaKey := k.public.(*rsa.PublicKey)
	pss, isPSS := opts.(*rsa.PSSOptions)
	if isPSS && pss.SaltLength != rsa.PSSSaltLengthEqualsHash && (hash == 0 || pss.SaltLength != hash.Size()) {
		return errors.New("ski: in TLS the salt of RSA-PSS is as long as the hash")
	}
	if name, ok := HashOf(hash); ok && !req.Protocol.Is13() && !isPSS {
		req.Hash = name
		return nil
	}
	if rsaKey && hash == crypto.MD5SHA1 && !req.Protocol.Is13() && !req.Protocol.Is12() {
		req.Hash = HashDefault
		return nil
	}
	if k.draftOnly {
		return fmt.Errorf("ski: %s with %v is beyond the draft", req.Protocol, hash)
	}
	if req.Scheme = signatureScheme(k.public, hash, isPSS); req.Scheme == 0 {
		return fmt.Errorf("ski: no TLS signature scheme for a %T with %v", k.public, hash)
	}
	return nil
}

// signatureScheme returns the code point of RFC 8446, Section 4.2.3, or 0.
func signatureScheme(pub crypto.PublicKey, hash crypto.Hash, pss bool) tls.SignatureScheme {
	switch pub.(type) {
	case ed25519.PublicKey:
		if hash == 0 {
			return tls.Ed25519
		}
	case *ecdsa.PublicKey:
		switch hash {
		case crypto.SHA256:
			return tls.ECDSAWithP256AndSHA256
		case crypto.SHA384:
			return tls.ECDSAWithP384AndSHA384
		case crypto.SHA512:
			return tls.ECDSAWithP521AndSHA512
		}
	case *rsa.PublicKey:
		switch {
		case pss && hash == crypto.SHA256:
			return tls.PSSWithSHA256
		case pss && hash == crypto.SHA384:
			return tls.PSSWithSHA384
		case pss && hash == crypto.SHA512:
			return tls.PSSWithSHA512
		}
	}
	return 0
}

func (k *Key) request(m Method, input []byte) *Request {
	req := &Request{Protocol: k.conn.Protocol, SPKI: k.id, Method: m, Input: input}
	if !k.draftOnly {
		req.ServerName = k.conn.ServerName
		if m == MethodRSA {
			req.ClientVersion = k.conn.ClientVersion
		}
	}
	return req
}

func (k *Key) do(req *Request) ([]byte, error) {
	resp, err := k.ask(k.context(), req)
	if err != nil {
		return nil, err
	}
	return resp.Output, nil
}

func (k *Key) context() context.Context {
	if k.ctx == nil {
		return context.Background()
	}
	return k.ctx
}

// ask returns the answer, if it is not an error.
func (k *Key) ask(ctx context.Context, req *Request) (*Response, error) {
	resp, err := k.transport.RoundTrip(ctx, req)
	if err != nil {
		return nil, err
	}
	if err := resp.Err(); err != nil {
		return nil, err
	}
	return resp, nil
}
