package keyserver

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rsa"
	"crypto/tls"
	"errors"
	"fmt"
	"maps"
	"slices"

	"github.com/tlsski/tlsski/ski"
)

// algorithm is how a signature is made.
type algorithm struct {
	// hash is what the content is hashed with. 0 with Ed25519, which does that
	// itself.
	hash crypto.Hash
	// opts is what the KeyStore is told.
	opts crypto.SignerOpts
}

// scheme is a SignatureScheme (RFC 8446, Section 4.2.3).
type scheme struct {
	name string
	kind keyKind
	hash crypto.Hash
	// curve is the one that TLS 1.3 binds an ECDSA scheme to. TLS 1.2 does not
	// (RFC 8446, Section 4.2.3: "ECDSA algorithms").
	curve elliptic.Curve
	// pss is set for RSA-PSS; PKCS #1 v1.5 is not for the handshake signatures
	// of TLS 1.3.
	pss bool
}

type keyKind string

const (
	kindECDSA   keyKind = "ECDSA"
	kindRSA     keyKind = "RSA"
	kindEd25519 keyKind = "Ed25519"
)

func kindOf(pub crypto.PublicKey) keyKind {
	switch pub.(type) {
	case *ecdsa.PublicKey:
		return kindECDSA
	case *rsa.PublicKey:
		return kindRSA
	case ed25519.PublicKey:
		return kindEd25519
	}
	return ""
}

// schemes are those served. SHA-1 is asked for by leaving 'hash' out, so that
// there is one way to ask and one switch that allows it.
var schemes = map[tls.SignatureScheme]scheme{
	tls.PKCS1WithSHA256:        {name: "rsa_pkcs1_sha256", kind: kindRSA, hash: crypto.SHA256},
	tls.PKCS1WithSHA384:        {name: "rsa_pkcs1_sha384", kind: kindRSA, hash: crypto.SHA384},
	tls.PKCS1WithSHA512:        {name: "rsa_pkcs1_sha512", kind: kindRSA, hash: crypto.SHA512},
	tls.PSSWithSHA256:          {name: "rsa_pss_rsae_sha256", kind: kindRSA, hash: crypto.SHA256, pss: true},
	tls.PSSWithSHA384:          {name: "rsa_pss_rsae_sha384", kind: kindRSA, hash: crypto.SHA384, pss: true},
	tls.PSSWithSHA512:          {name: "rsa_pss_rsae_sha512", kind: kindRSA, hash: crypto.SHA512, pss: true},
	tls.ECDSAWithP256AndSHA256: {name: "ecdsa_secp256r1_sha256", kind: kindECDSA, hash: crypto.SHA256, curve: elliptic.P256()},
	tls.ECDSAWithP384AndSHA384: {name: "ecdsa_secp384r1_sha384", kind: kindECDSA, hash: crypto.SHA384, curve: elliptic.P384()},
	tls.ECDSAWithP521AndSHA512: {name: "ecdsa_secp521r1_sha512", kind: kindECDSA, hash: crypto.SHA512, curve: elliptic.P521()},
	tls.Ed25519:                {name: "ed25519", kind: kindEd25519},
}

// schemeName returns the name of RFC 8446, or the code point of a scheme that
// is not served.
func schemeName(s tls.SignatureScheme) string {
	if known, ok := schemes[s]; ok {
		return known.name
	}
	return fmt.Sprintf("0x%04x", uint16(s))
}

// hashName returns the draft's name of a hash; SHA-1 and MD5 followed by SHA-1,
// which it only implies, have names of ours.
func hashName(h crypto.Hash) string {
	switch h {
	case crypto.MD5SHA1:
		return "MD5+SHA-1"
	case 0:
		return ""
	}
	return h.String()
}

// draftHashes are the values of 'hash', the one that is left out included.
var draftHashes = []ski.Hash{ski.HashDefault, ski.SHA224, ski.SHA256, ski.SHA384, ski.SHA512}

// algorithmName returns what audit logs and policies call the algorithm that a
// request for a signature asks for: the scheme's name where it asks with
// 'scheme', and otherwise the hash's.
func algorithmName(req *ski.Request, alg algorithm) string {
	if req.Scheme != 0 {
		return schemeName(req.Scheme)
	}
	return hashName(alg.hash)
}

// algorithmNames returns the names of all that is served and is not legacy.
func algorithmNames() []string {
	var names []string
	for _, h := range draftHashes {
		if h != ski.HashDefault {
			names = append(names, string(h))
		}
	}
	for _, code := range slices.Sorted(maps.Keys(schemes)) {
		names = append(names, schemes[code].name)
	}
	return names
}

// chooseAlgorithm returns the algorithm that a request for a signature asks
// for, or why it does not fit the protocol or the key.
func chooseAlgorithm(req *ski.Request, pub crypto.PublicKey) (algorithm, error) {
	switch {
	case req.Scheme == 0 && req.Protocol.Is13():
		return algorithm{}, errors.New("'scheme' is missing, which this protocol needs")
	case req.Scheme == 0:
		return chooseByHash(req, pub)
	case !req.Protocol.Is12() && !req.Protocol.Is13():
		return algorithm{}, errors.New("'scheme' does not exist in this protocol")
	default:
		return chooseByScheme(req, pub)
	}
}

func chooseByHash(req *ski.Request, pub crypto.PublicKey) (algorithm, error) {
	kind := kindOf(pub)
	if kind == kindEd25519 {
		return algorithm{}, errors.New("'scheme' is missing, which an Ed25519 key needs")
	}
	hash := req.Hash.Func()
	switch {
	case req.Hash != ski.HashDefault && !req.Protocol.Is12():
		// RFC 4346, Section 7.4.3, leaves no choice.
		return algorithm{}, errors.New("'hash' does not exist in this protocol")
	case req.Hash != ski.HashDefault:
	case kind == kindRSA && !req.Protocol.Is12():
		hash = crypto.MD5SHA1
	default:
		hash = crypto.SHA1
	}
	return algorithm{hash: hash, opts: hash}, nil
}

func chooseByScheme(req *ski.Request, pub crypto.PublicKey) (algorithm, error) {
	s, ok := schemes[req.Scheme]
	switch {
	case !ok:
		return algorithm{}, errors.New("'scheme' is not one of those served")
	case s.kind != kindOf(pub):
		return algorithm{}, fmt.Errorf("'scheme' is for keys of type %s", s.kind)
	case req.Protocol.Is13() && s.kind == kindRSA && !s.pss:
		return algorithm{}, errors.New("'scheme' is not for signatures of TLS 1.3")
	}
	switch pub := pub.(type) {
	case *ecdsa.PublicKey:
		if req.Protocol.Is13() && pub.Curve != s.curve {
			return algorithm{}, errors.New("'scheme' is for another curve")
		}
	case *rsa.PublicKey:
		if s.pss && (pub.N.BitLen()+6)/8 < 2*s.hash.Size()+2 { // RFC 8017, Section 9.1.1, step 3
			return algorithm{}, errors.New("'scheme' is for a longer key")
		}
	}
	if s.pss {
		return algorithm{hash: s.hash, opts: &rsa.PSSOptions{
			Hash: s.hash, SaltLength: rsa.PSSSaltLengthEqualsHash,
		}}, nil
	}
	return algorithm{hash: s.hash, opts: s.hash}, nil
}
