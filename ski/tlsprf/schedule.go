package tlsprf

import (
	"cmp"
	"crypto/tls"
	"errors"
	"fmt"
)

// Lengths in bytes.
const (
	RandomLen       = 32 // ClientHello.random and ServerHello.random (RFC 5246, Section 7.4.1.2)
	MasterSecretLen = 48 // RFC 5246, Section 8.1
	VerifyDataLen   = 12 // RFC 5246, Section 7.4.9
)

// The versions of DTLS as on the wire (RFC 6347, Section 4.1).
const (
	versionDTLS10 = 0xFEFF
	versionDTLS12 = 0xFEFD
)

// What New refuses; errors.Is finds them in its error.
var (
	ErrVersion = errors.New("tlsprf: not a version from TLS 1.0 to TLS 1.2 or of DTLS 1.0 or DTLS 1.2")
	ErrSuite   = errors.New("tlsprf: unknown cipher suite")
)

// Schedule derives the secrets of one connection's version and cipher suite.
// It is immutable and holds no secret.
type Schedule struct {
	prf   PRF
	suite suite
}

// New returns the Schedule for a version and a cipher suite as negotiated in
// the ServerHello, both as on the wire: 0x0303 for TLS 1.2, 0xFEFD for DTLS
// 1.2. The error is ErrVersion, or wraps ErrSuite for a suite that is not known
// or that the version does not have.
func New(version, cipherSuite uint16) (Schedule, error) {
	cs, ok := suites[cipherSuite]
	if !ok {
		return Schedule{}, fmt.Errorf("%w 0x%04X", ErrSuite, cipherSuite)
	}
	s := Schedule{prf: cs.prf, suite: cs}
	switch version {
	case tls.VersionTLS12, versionDTLS12:
	case tls.VersionTLS10, tls.VersionTLS11, versionDTLS10:
		if cs.macKeyLen == 0 {
			// RFC 5246, Section 6.2.3.3 brought the AEAD ciphers.
			return Schedule{}, fmt.Errorf("%w in this version: 0x%04X", ErrSuite, cipherSuite)
		}
		s.prf = MD5SHA1
	default:
		return Schedule{}, ErrVersion
	}
	if cs.macKeyLen > 0 && version != tls.VersionTLS10 {
		s.suite.ivLen = 0
	}
	return s, nil
}

// PRF returns the connection's pseudorandom function.
func (s Schedule) PRF() PRF { return s.prf }

// MasterSecret returns the 48 bytes of RFC 5246, Section 8.1. The randoms have
// 32 bytes each.
func (s Schedule) MasterSecret(preMasterSecret, clientRandom, serverRandom []byte) ([]byte, error) {
	if err := cmp.Or(
		checkPreMasterSecret(preMasterSecret),
		checkLen("ClientRandom", clientRandom, RandomLen),
		checkLen("ServerRandom", serverRandom, RandomLen),
	); err != nil {
		return nil, err
	}
	return s.prf.Derive(MasterSecretLen, preMasterSecret, "master secret", clientRandom, serverRandom)
}

// ExtendedMasterSecret returns the 48 bytes of RFC 7627, Section 4.
// sessionHash is the handshake hash over the messages from ClientHello to
// ClientKeyExchange.
func (s Schedule) ExtendedMasterSecret(preMasterSecret, sessionHash []byte) ([]byte, error) {
	if err := cmp.Or(
		checkPreMasterSecret(preMasterSecret),
		checkLen("session_hash", sessionHash, s.prf.Size()),
	); err != nil {
		return nil, err
	}
	return s.prf.Derive(MasterSecretLen, preMasterSecret, "extended master secret", sessionHash)
}

// Keys are the parts of a connection's key block (RFC 5246, Section 6.3).
type Keys struct {
	// ClientMACKey and ServerMACKey are empty for an AEAD cipher.
	ClientMACKey, ServerMACKey []byte
	ClientKey, ServerKey       []byte
	// ClientIV and ServerIV are the implicit part of the nonce of an AEAD
	// cipher: 4 bytes for GCM and CCM, 12 for ChaCha20-Poly1305. For a block
	// cipher they are the first IV in TLS 1.0 and empty in later versions.
	ClientIV, ServerIV []byte
}

// Keys derives the key block and cuts it as the cipher suite says. The randoms
// have 32 bytes each.
func (s Schedule) Keys(masterSecret, clientRandom, serverRandom []byte) (*Keys, error) {
	if err := cmp.Or(
		checkLen("master_secret", masterSecret, MasterSecretLen),
		checkLen("ClientRandom", clientRandom, RandomLen),
		checkLen("ServerRandom", serverRandom, RandomLen),
	); err != nil {
		return nil, err
	}
	length := 2 * (s.suite.macKeyLen + s.suite.keyLen + s.suite.ivLen)
	// The randoms stand in the opposite order to that of the master secret.
	block, err := s.prf.Derive(length, masterSecret, "key expansion", serverRandom, clientRandom)
	if err != nil {
		return nil, err
	}
	next := func(n int) []byte {
		part := block[:n:n]
		block = block[n:]
		return part
	}
	var k Keys
	k.ClientMACKey, k.ServerMACKey = next(s.suite.macKeyLen), next(s.suite.macKeyLen)
	k.ClientKey, k.ServerKey = next(s.suite.keyLen), next(s.suite.keyLen)
	k.ClientIV, k.ServerIV = next(s.suite.ivLen), next(s.suite.ivLen)
	return &k, nil
}

// ClientFinished returns the 12 bytes of verify_data in the client's Finished
// (RFC 5246, Section 7.4.9). handshakeHash covers all handshake messages
// before it.
func (s Schedule) ClientFinished(masterSecret, handshakeHash []byte) ([]byte, error) {
	return s.finished(masterSecret, "client finished", handshakeHash)
}

// ServerFinished is ClientFinished for the server's Finished.
func (s Schedule) ServerFinished(masterSecret, handshakeHash []byte) ([]byte, error) {
	return s.finished(masterSecret, "server finished", handshakeHash)
}

func (s Schedule) finished(masterSecret []byte, label string, handshakeHash []byte) ([]byte, error) {
	if err := cmp.Or(
		checkLen("master_secret", masterSecret, MasterSecretLen),
		checkLen("handshake hash", handshakeHash, s.prf.Size()),
	); err != nil {
		return nil, err
	}
	return s.prf.Derive(VerifyDataLen, masterSecret, label, handshakeHash)
}

// checkPreMasterSecret refuses the one length that no key exchange has: the
// others depend on the group.
func checkPreMasterSecret(b []byte) error {
	if len(b) == 0 {
		return errors.New("tlsprf: the PreMasterSecret is empty")
	}
	return nil
}

func checkLen(name string, b []byte, want int) error {
	if len(b) != want {
		return fmt.Errorf("tlsprf: the %s has %d bytes, not %d", name, len(b), want)
	}
	return nil
}
