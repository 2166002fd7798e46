package keyserver

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"net/netip"
	"sync"
	"time"

	"github.com/tlsski/tlsski/ski"
)

// How much is remembered, of the newest, in each of two generations. Full, it
// takes some 20 MB.
const (
	rememberedQuestions     = 1 << 17
	rememberedServerRandoms = 1 << 16
	rememberedIdentities    = 1 << 12
)

// digest stands for something that was asked. It is keyed with a secret of the
// process, so that no edge can choose two things that have the same.
type digest [16]byte

// memory is what the detectors know of the questions of all edges. Its size is
// bounded.
type memory struct {
	secret [32]byte

	mu            sync.Mutex
	questions     generations[digest, uint32] // the number of the edge that asked
	serverRandoms generations[digest, digest] // the question it was in
	identities    generations[ski.PeerID, addresses]
}

func newMemory() *memory {
	m := &memory{
		questions:     generations[digest, uint32]{max: rememberedQuestions},
		serverRandoms: generations[digest, digest]{max: rememberedServerRandoms},
		identities:    generations[ski.PeerID, addresses]{max: rememberedIdentities},
	}
	rand.Read(m.secret[:])
	return m
}

// addresses are the last two that an identity was used at.
type addresses struct {
	last, before netip.Addr
	moved        time.Time // from before to last
}

// atOnceWithin is how soon an identity has to be back at an address that it had
// left for another to be in use at both. An edge that moves does not come back.
const atOnceWithin = 10 * time.Second

// look remembers a request and returns the detectors that find something in
// it.
func (m *memory) look(edge uint32, peer ski.Peer, req *ski.Request, now time.Time) (found []detector) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if !isSecondExchange(req) { // A state is of one edge, and opens once.
		found = m.lookAtHandshake(edge, req)
	}
	if m.isElsewhere(peer, now) {
		found = append(found, detectAddresses)
	}
	return found
}

func (m *memory) lookAtHandshake(edge uint32, req *ski.Request) (found []detector) {
	unique, serverRandom := handshakeOf(req)
	question := m.digest(unique)
	if asker, seen := m.questions.firstOrPut(question, edge); seen {
		switch {
		case asker != edge && req.KeyExchange() == ski.MethodRSA:
			found = append(found, detectPreMasterReplay)
		case asker != edge:
			found = append(found, detectReplay)
		case req.KeyExchange() == ski.MethodRSA:
			found = append(found, detectPreMasterRepeat)
		default:
			found = append(found, detectRepeat)
		}
	}
	if serverRandom != nil && m.isWeak(serverRandom, question) {
		found = append(found, detectWeakRandoms)
	}
	return found
}

// handshakeOf returns the part of an input that no other handshake has, and
// what of it the edge should have taken from a random number generator: what
// comes from the client says nothing of the edge. A transcript hash covers the
// ServerRandom (RFC 8446, Section 4.4.1), and looks as random.
func handshakeOf(req *ski.Request) (unique, serverRandom []byte) {
	switch {
	case req.KeyExchange() == ski.MethodRSA:
		return req.Input, nil
	case req.Protocol.Is13():
		hash := req.Input[len(certificateVerifyPrefix):]
		return hash, hash
	default:
		return req.Input[:curveTypeOffset], req.Input[ski.RandomLen:curveTypeOffset]
	}
}

// digest tells the three kinds of input apart by their length: 64 bytes, 32 or
// 48, and at least 128.
func (m *memory) digest(unique []byte) (d digest) {
	h := sha256.New()
	h.Write(m.secret[:])
	h.Write(binary.BigEndian.AppendUint32(nil, uint32(len(unique))))
	h.Write(unique)
	copy(d[:], h.Sum(nil))
	return d
}

// minDistinctBytes is how many different bytes 32 random ones have at least:
// 30 are usual, and fewer than 16 have a probability below 2^-40, even where
// four are a clock and eight the mark of RFC 8446, Section 4.1.3.
const minDistinctBytes = 16

// isWeak reports whether a ServerRandom is not random: of few different bytes,
// or in another question before. The same question again is a repetition.
func (m *memory) isWeak(serverRandom []byte, question digest) bool {
	var present [256]bool
	distinct := 0
	for _, b := range serverRandom {
		if !present[b] {
			present[b] = true
			distinct++
		}
	}
	former, seen := m.serverRandoms.firstOrPut(m.digest(serverRandom), question)
	return distinct < minDistinctBytes || seen && former != question
}

func (m *memory) isElsewhere(peer ski.Peer, now time.Time) bool {
	here := peer.Addr.Addr()
	if !here.IsValid() {
		return false
	}
	a, _ := m.identities.firstOrPut(peer.ID(), addresses{last: here})
	if a.last == here {
		return false
	}
	back := a.before == here && now.Sub(a.moved) < atOnceWithin
	m.identities.put(peer.ID(), addresses{last: here, before: a.last, moved: now})
	return back
}

// generations is a map of bounded size that forgets the oldest entries: at
// least max of the newest are there, and at most twice as many. The zero value
// with a max is empty.
type generations[K comparable, V any] struct {
	max         int
	young, aged map[K]V
}

// firstOrPut returns what is there for k. Where there is nothing it puts v
// there.
func (g *generations[K, V]) firstOrPut(k K, v V) (_ V, seen bool) {
	if former, ok := g.young[k]; ok {
		return former, true
	}
	former, ok := g.aged[k]
	if ok {
		v = former // It stays as long as it is asked for.
	}
	g.put(k, v)
	return v, ok
}

func (g *generations[K, V]) put(k K, v V) {
	if g.young == nil || len(g.young) >= g.max {
		g.young, g.aged = g.aged, g.young
		clear(g.young)
		if g.young == nil {
			g.young = make(map[K]V)
		}
	}
	g.young[k] = v
}
