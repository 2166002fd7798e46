package keyserver

import (
	"context"
	"crypto/hkdf"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/binary"
	"fmt"

	"github.com/tlsski/tlsski/ski"
)

// RSAFailure is what the answer is where an EncryptedPreMasterSecret has wrong
// padding, or its plaintext a wrong length or version.
type RSAFailure string

const (
	// RSAFailureRandom answers with a secret that looks like any other, as RFC
	// 5246, Section 7.4.7.1, asks of a server: the peer cannot use the key
	// server as a padding oracle. It is the default.
	RSAFailureRandom RSAFailure = "random"
	// RSAFailureError answers 'malformed request', which is the draft's letter
	// (Section 5.1.1). It makes every edge that may use the RSA method able to
	// decrypt recorded connections and to sign with the key (Bleichenbacher's
	// attack), and is meant for tests of interoperability.
	RSAFailureError RSAFailure = "error"
)

// MinRSAFailureSecret is the shortest Options.RSAFailureSecret, in bytes.
const MinRSAFailureSecret = 32

// decryption gets the PreMasterSecret out of an EncryptedPreMasterSecret
// (RFC 5246, Section 7.4.7.1).
type decryption struct {
	key  key
	epms encryptedPreMasterSecret
}

// do takes the same steps whatever the plaintext is: nothing after the
// decryption branches, indexes, allocates or returns by it until the answer is
// formed. With RSAFailureRandom nothing does afterwards either.
func (o *decryption) do(ctx context.Context, s *Server) (outcome, error) {
	answer, err := o.fallback(s.failureSecret(o.key))
	if err != nil {
		return outcome{}, err
	}
	secret := append([]byte(nil), answer...)
	defer clear(secret)
	err = s.schedule.private(ctx, o.key, func(ctx context.Context) error {
		return o.key.store.DecryptPreMasterSecret(ctx, o.key.id, o.epms.ciphertext, secret)
	})
	if err != nil {
		return outcome{}, fmt.Errorf("decrypting: %w", err)
	}

	// Where the padding is wrong, secret still is the fallback, whose version
	// is right: it is then copied over itself.
	paddingWrong := subtle.ConstantTimeCompare(secret, answer)
	versionRight := o.epms.versions.contains(secret)
	subtle.ConstantTimeCopy(versionRight, answer, secret)
	found := verdictOf(paddingWrong, versionRight)

	if s.rsaFailure == RSAFailureError && found != preMasterSecretCorrect {
		clear(answer)
		return outcome{wire: ski.MalformedRequest, reason: "the PreMasterSecret is wrong", preMasterSecret: found}, nil
	}
	return outcome{output: answer, preMasterSecret: found}, nil
}

// fallback returns what the answer is if the decryption fails: implicit
// rejection as in draft-irtf-cfrg-rsa-guidance, which makes the answer a
// function of the question, since two answers to the same one would give it
// away.
//
// It begins with a version that a success can begin with: the one, where
// 'client_version' was sent or the protocol is (D)TLS 1.2. Before that, and
// without 'client_version', the edge takes several, and a failure begins with
// the newest of them: clients that offer an older one are told apart from
// failures by it. Edges that know 'client_version' should send it.
//
// And the version is hashed into the rest: asked for the same ciphertext with
// another client_version, the answer to a failure is wholly another one. In a
// success it is the same or, where the version is wrong, a failure's.
func (o *decryption) fallback(secret []byte) ([]byte, error) {
	version := binary.BigEndian.AppendUint16(nil, o.epms.versions.newest)
	info := "tlsski RSA failure " + string(version) + string(o.epms.ciphertext)
	f, err := hkdf.Key(sha256.New, secret, o.key.id[:], info, ski.PreMasterSecretLen)
	if err != nil {
		return nil, fmt.Errorf("deriving the fallback: %w", err)
	}
	copy(f, version)
	return f, nil
}

// failureSecret returns what the answers to wrong PreMasterSecrets of a key are
// derived from.
func (s *Server) failureSecret(k key) []byte {
	if secret, ok := s.ownFailureSecret(k); ok {
		return secret[:]
	}
	return s.rsaFailureSecret
}

// ownFailureSecret is what is derived from the private key alone.
func (s *Server) ownFailureSecret(k key) (secret [32]byte, ok bool) {
	store, derives := k.store.(FailureKeyStore)
	if !derives || !s.failureKeys {
		return secret, false
	}
	return store.FailureKey(k.id)
}

// chooseFailureSecret is for a Server that is given none.
func (s *Server) chooseFailureSecret() {
	s.failureKeys = true
	s.rsaFailureSecret = make([]byte, MinRSAFailureSecret)
	rand.Read(s.rsaFailureSecret)
	for _, id := range s.keyStore().IDs() {
		if k, ok := lookup(s.keyStore(), id); ok {
			s.warnOfFailureSecret(k)
		}
	}
}

// warnOfFailureSecret warns of an RSA key whose answers to wrong PreMasterSecrets
// are derived from what is not the same after a restart.
func (s *Server) warnOfFailureSecret(k key) {
	if _, isRSA := k.public.(*rsa.PublicKey); !isRSA || !s.failureKeys {
		return
	}
	if _, ok := s.ownFailureSecret(k); ok {
		return
	}
	s.log.Warn("answers to wrong PreMasterSecrets change with a restart and from key server to key server, "+
		"which gives them away: set an RSA failure secret if the policy grants RSA", "key", k.name)
}

// contains returns 1 if the secret begins with a version of the range and
// otherwise 0, in constant time.
func (r versionRange) contains(secret []byte) int {
	v := int(binary.BigEndian.Uint16(secret))
	return subtle.ConstantTimeLessOrEq(int(r.lowest), v) & subtle.ConstantTimeLessOrEq(v, int(r.highest))
}

// What the audit log says of a PreMasterSecret. The words have one length, so
// that the time it takes to choose and to write them does not tell which it
// was.
const (
	preMasterSecretCorrect = "correct"
	preMasterSecretPadding = "padding" // or the plaintext's length
	preMasterSecretVersion = "version"
)

func verdictOf(paddingWrong, versionRight int) string {
	word := []byte(preMasterSecretVersion)
	subtle.ConstantTimeCopy(versionRight, word, []byte(preMasterSecretCorrect))
	subtle.ConstantTimeCopy(paddingWrong, word, []byte(preMasterSecretPadding))
	return string(word)
}
