package keyserver

import (
	"context"
	"crypto"
	"crypto/md5"
	"crypto/rsa"
	"crypto/sha1"
	_ "crypto/sha256" // the hashes of the draft
	_ "crypto/sha512"
	"errors"
	"fmt"

	"github.com/tlsski/tlsski/ski"
)

// operation is what is done with a private key for one request, with all its
// inputs checked. The error is for the operator: the peer is told
// 'unspecified error'.
type operation interface {
	do(ctx context.Context, s *Server) (outcome, error)
}

// parseOperation checks the structure of the request's input and that it fits
// the key. The error is a fixed text without any of the input.
func parseOperation(req *ski.Request, k key, alg algorithm, algErr error, exchange pmsExchange) (operation, error) {
	pub, isRSA := k.public.(*rsa.PublicKey)
	switch req.KeyExchange() {
	case ski.MethodRSA, ski.MethodDHE: // the draft has no DHE_DSS
		if !isRSA {
			return nil, errors.New("the key is not an RSA key")
		}
	case ski.MethodECDHEPMS:
		return parseEphemeral(req, k, alg, algErr, exchange)
	}
	if req.KeyExchange() == ski.MethodRSA {
		if !k.decrypts() {
			return nil, errors.New("the key's device does not decrypt")
		}
		epms, err := parseEncryptedPreMasterSecret(req, pub)
		if err != nil {
			return nil, err
		}
		return &decryption{key: k, epms: epms}, nil
	}
	if algErr != nil {
		return nil, algErr
	}
	tbs, err := parseToBeSigned(req)
	if err != nil {
		return nil, err
	}
	return &signing{key: k, alg: alg, tbs: tbs}, nil
}

// signing makes the signature of a ServerKeyExchange (RFC 8422, Section 5.4)
// or a CertificateVerify (RFC 8446, Section 4.4.3).
type signing struct {
	key key
	alg algorithm
	tbs toBeSigned
}

func (o *signing) do(ctx context.Context, s *Server) (outcome, error) {
	digest := o.alg.digest(o.tbs)
	var signature []byte
	err := s.schedule.private(ctx, o.key, func(ctx context.Context) (err error) {
		signature, err = o.key.store.Sign(ctx, o.key.id, digest, o.alg.opts)
		return err
	})
	if err != nil {
		return outcome{}, fmt.Errorf("signing: %w", err)
	}
	return outcome{output: signature}, nil
}

// digest returns what the KeyStore signs: with Ed25519 the content itself.
func (a algorithm) digest(tbs toBeSigned) []byte {
	switch a.hash {
	case 0:
		return tbs.content
	case crypto.MD5SHA1: // RFC 4346, Section 7.4.3
		m, s := md5.Sum(tbs.content), sha1.Sum(tbs.content)
		return append(m[:], s[:]...)
	}
	h := a.hash.New()
	h.Write(tbs.content)
	return h.Sum(nil)
}
