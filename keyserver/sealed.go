package keyserver

import (
	"crypto/cipher"
	"crypto/ecdh"
	"crypto/hkdf"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"golang.org/x/crypto/chacha20poly1305"

	"github.com/tlsski/tlsski/ski"
)

// MinStateKey is the shortest Options.StateKey, in bytes.
const MinStateKey = 32

// firstExchange is what a key server has to know of the first exchange of
// ECDHE-PMS in the second. It keeps none of it: the edge brings it back, sealed.
type firstExchange struct {
	id         stateID
	expires    time.Time
	group      tls.CurveID
	private    *ecdh.PrivateKey
	hash       ski.Hash
	scheme     tls.SignatureScheme
	serverName string
}

// stateID tells states apart.
type stateID [chacha20poly1305.NonceSizeX]byte

// A state is a random nonce and, encrypted with XChaCha20-Poly1305, whose
// nonces are long enough to be random however many there are:
//
//	expires(8)    Unix time in milliseconds
//	group(2)      NamedGroup
//	scheme(2)     SignatureScheme, or 0
//	hash(1)       index in draftHashes
//	scalar(66)    as long as the group's, then zeros
//	server_name   the rest
//
// so that its length depends on the server name alone.
const (
	stateScalarOffset = 8 + 2 + 2 + 1
	longestScalar     = 66 // of secp521r1
	stateNameOffset   = stateScalarOffset + longestScalar
	stateOverhead     = chacha20poly1305.NonceSizeX + stateNameOffset + chacha20poly1305.Overhead
)

// stateLen returns the length in bytes of a state.
func stateLen(serverName string) int { return stateOverhead + len(serverName) }

// sealer makes states and opens them.
type sealer struct{ aead cipher.AEAD }

// newSealer derives the key that seals states from a secret. The label stands
// for the format too.
func newSealer(secret []byte) (*sealer, error) {
	key, err := hkdf.Key(sha256.New, secret, nil, "tlsski ECDHE-PMS state 1", chacha20poly1305.KeySize)
	if err != nil {
		return nil, err
	}
	defer clear(key)
	aead, err := chacha20poly1305.NewX(key)
	return &sealer{aead}, err
}

// chooseStateKey makes the sealer, with a key of its own where none is given.
func (s *Server) chooseStateKey(secret []byte, p *Policy) (err error) {
	switch {
	case secret == nil:
		secret = make([]byte, MinStateKey)
		rand.Read(secret)
		defer clear(secret)
		if p.grants(ski.MethodECDHEPMS) {
			s.log.Info("no state key: the two exchanges of ECDHE-PMS have to come to this process, " +
				"set the same on all key servers that an edge can fall over between")
		}
	case len(secret) < MinStateKey:
		return fmt.Errorf("keyserver: StateKey has less than %d bytes", MinStateKey)
	}
	s.sealer, err = newSealer(secret)
	return err
}

// stateOwner returns what a state is bound to: the peer by its certificate's key
// or its pre-shared key, and by its names in the policy, the private key that signs, and the protocol.
func stateOwner(peer ski.Peer, edges []*edge, req *ski.Request) []byte {
	id := peer.ID().String() // SPKI is the same, zero, for all with a pre-shared key
	owner := slices.Concat([]byte{byte(len(id))}, []byte(id), req.SPKI[:], []byte{byte(len(req.Protocol))}, []byte(req.Protocol))
	return append(owner, edgeNames(edges)...)
}

// seal returns the state for an owner. It has no use for f.id, which it makes.
func (s *sealer) seal(f *firstExchange, owner []byte) []byte {
	plain := make([]byte, stateNameOffset, stateNameOffset+len(f.serverName))
	defer clear(plain[:stateNameOffset])
	binary.BigEndian.PutUint64(plain, uint64(f.expires.UnixMilli()))
	binary.BigEndian.PutUint16(plain[8:], uint16(f.group))
	binary.BigEndian.PutUint16(plain[10:], uint16(f.scheme))
	plain[12] = byte(slices.Index(draftHashes, f.hash))
	scalar := f.private.Bytes()
	copy(plain[stateScalarOffset:], scalar)
	clear(scalar)
	plain = append(plain, f.serverName...)
	state := make([]byte, chacha20poly1305.NonceSizeX, stateLen(f.serverName))
	rand.Read(state)
	return s.aead.Seal(state, state, plain, owner)
}

// errStateNotOpened says as little as can be known: it may be of another edge,
// key, protocol or fleet, or not a state at all.
var errStateNotOpened = errors.New("the state is not one for this edge, key and protocol")

// open returns what has been sealed for the same owner.
func (s *sealer) open(state, owner []byte) (*firstExchange, error) {
	if len(state) < stateOverhead {
		return nil, errStateNotOpened
	}
	id := stateID(state[:chacha20poly1305.NonceSizeX])
	plain, err := s.aead.Open(nil, id[:], state[len(id):], owner)
	if err != nil {
		return nil, errStateNotOpened
	}
	defer clear(plain)
	f := &firstExchange{
		id:         id,
		expires:    time.UnixMilli(int64(binary.BigEndian.Uint64(plain))),
		group:      tls.CurveID(binary.BigEndian.Uint16(plain[8:])),
		scheme:     tls.SignatureScheme(binary.BigEndian.Uint16(plain[10:])),
		serverName: strings.Clone(string(plain[stateNameOffset:])),
	}
	curve, ok := ephemeralGroups[f.group]
	if hash := int(plain[12]); !ok || hash >= len(draftHashes) {
		return nil, errStateNotOpened // Nobody has sealed this.
	} else {
		f.hash = draftHashes[hash]
	}
	if f.private, err = curve.NewPrivateKey(plain[stateScalarOffset:][:scalarLen(f.group)]); err != nil {
		return nil, fmt.Errorf("the state's scalar: %w", err)
	}
	return f, nil
}

// scalarLen returns the length in bytes of a group's scalars, and of its
// coordinates.
func scalarLen(group tls.CurveID) int {
	switch group {
	case tls.CurveP384:
		return 48
	case tls.CurveP521:
		return longestScalar
	}
	return 32
}
