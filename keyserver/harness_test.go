package keyserver

import (
	"bytes"
	"context"
	"crypto"
	"crypto/elliptic"
	"crypto/rsa"
	"io"
	"log/slog"
	"math/big"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/tlsski/tlsski/ski"
)

// The test keys, by their names in the store.
const (
	p256    = "test-only-ecdsa-p256"
	p384    = "test-only-ecdsa-p384"
	p521    = "test-only-ecdsa-p521"
	rsa2048 = "test-only-rsa-2048"
	ed      = "test-only-ed25519"
)

const vectors = "../testdata/vectors"

// testStore is a MemoryStore whose keys are found by name.
type testStore struct {
	*MemoryStore
	byName map[string]ski.KeyID
}

func (s testStore) id(name string) ski.KeyID { return s.byName[name] }

func (s testStore) public(name string) crypto.PublicKey {
	_, pub, _ := s.Lookup(s.id(name))
	return pub
}

// testKeys loads the keys of testdata the way a key server does. Version
// control keeps no file modes, so they are copied first.
var testKeys = sync.OnceValue(func() testStore {
	dir, err := os.MkdirTemp("", "tlsski-test-keys-")
	if err != nil {
		panic(err)
	}
	defer os.RemoveAll(dir)
	files, err := filepath.Glob(vectors + "/input-keys/*.pem")
	if err != nil || len(files) == 0 {
		panic("no test keys: go test ./keyserver -run TestVectors -update")
	}
	for _, f := range files {
		data, err := os.ReadFile(f)
		if err != nil {
			panic(err)
		}
		if err := os.WriteFile(filepath.Join(dir, filepath.Base(f)), data, 0o600); err != nil {
			panic(err)
		}
	}
	store, err := LoadFolder(dir)
	if err != nil {
		panic(err)
	}
	return named(store)
})

func named(store *MemoryStore) testStore {
	s := testStore{MemoryStore: store, byName: make(map[string]ski.KeyID)}
	for id, k := range store.keys {
		s.byName[k.name] = id
	}
	return s
}

// auditTrail is an Auditor that keeps its records, or fails with err.
type auditTrail struct {
	mu      sync.Mutex
	records []Record
	err     error
}

func (a *auditTrail) Audit(_ context.Context, r *Record) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.records = append(a.records, *r)
	return a.err
}

func (a *auditTrail) fail(err error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.err = err
}

func (a *auditTrail) all() []Record {
	a.mu.Lock()
	defer a.mu.Unlock()
	return slices.Clone(a.records)
}

func (a *auditTrail) last() Record {
	all := a.all()
	return all[len(all)-1]
}

// edgePeer is a peer that testPolicy knows as "edge".
var edgePeer = ski.Peer{
	Addr:     netip.MustParseAddrPort("192.0.2.7:40000"),
	DNSNames: []string{"edge.example.net"},
}

// legacyPeer is one that may use what is off by default.
var legacyPeer = ski.Peer{DNSNames: []string{"legacy.example.net"}}

const testPolicy = `
edges:
  - {name: edge, dns: [edge.example.net]}
  - {name: legacy, dns: [legacy.example.net]}
rules:
  - edges: [edge, legacy]
    keys: ["*"]
    methods: [ECDHE, DHE, ECDHE-PMS, RSA]
    groups: [secp256r1, secp384r1, secp521r1, x25519, ffdhe2048, ffdhe3072, ffdhe4096, ffdhe6144, ffdhe8192, modp_2048, modp_3072, modp_4096, modp_6144, modp_8192]
  - edges: [legacy]
    keys: ["*"]
    methods: [ECDHE, DHE, ECDHE-PMS, RSA]
    groups: [secp256r1, secp384r1, secp521r1, x25519, ffdhe2048, ffdhe3072, modp_2048]
    legacy: [sha-1, md5-sha-1, rsa-below-2048, tls-1.0, tls-1.1, dtls-1.0]
`

// fleetStateKey is that of all test servers: they are one fleet.
var fleetStateKey = bytes.Repeat([]byte{0x57}, MinStateKey)

// testServer is a Server with what a test wants to look at.
type testServer struct {
	*Server
	t     testing.TB
	trail *auditTrail
}

func newTestServer(t testing.TB, keys KeyStore, change ...func(*Options)) testServer {
	t.Helper()
	policy, err := ParsePolicy("policy.yaml", []byte(testPolicy), keys)
	require.NoError(t, err)
	trail := new(auditTrail)
	policy.detectors = detectorRules{} // They would find that tests ask the same again.
	policy.limits.edge.audit = 0       // Tests want to see all records.
	o := Options{
		Keys: keys, Policy: policy, Audit: trail, StateKey: fleetStateKey,
		Logger: slog.New(slog.NewTextHandler(io.Discard, nil)),
	}
	for _, c := range change {
		c(&o)
	}
	s, err := New(o)
	require.NoError(t, err)
	return testServer{s, t, trail}
}

// ask returns the answer and its audit record. There is always one record: that
// of a request which a limit refused is an EventRefusals.
func (s testServer) ask(peer ski.Peer, req *ski.Request) (*ski.Response, Record) {
	s.t.Helper()
	before := len(s.trail.all())
	resp := s.ServeSKI(s.t.Context(), peer, req)
	require.NotNil(s.t, resp)
	require.NoError(s.t, resp.Validate())
	s.recordRefusals()
	require.Len(s.t, s.trail.all(), before+1)
	return resp, s.trail.last()
}

// refuses asks and checks what is told and what is recorded.
func (s testServer) refuses(req *ski.Request, wire ski.Error, reason string) {
	s.t.Helper()
	resp, rec := s.ask(edgePeer, req)
	require.Equal(s.t, wire, resp.Error)
	require.Equal(s.t, string(wire), rec.Outcome)
	require.Contains(s.t, rec.Reason, reason)
	require.Equal(s.t, "edge", rec.Edge)
}

// exceeds asks for what a limit refuses, and checks what is told and counted.
func (s testServer) exceeds(limit string, peer ski.Peer, req *ski.Request) *ski.Response {
	s.t.Helper()
	wire := ski.RequestDenied
	if limit == limitServer {
		wire = ski.UnspecifiedError
	}
	resp, rec := s.ask(peer, req)
	require.Equal(s.t, wire, resp.Error)
	require.Equal(s.t, EventRefusals, rec.Event)
	require.Equal(s.t, map[string]uint64{limit: 1}, rec.Refused)
	require.Equal(s.t, limit == limitServer, resp.Overloaded)
	require.Positive(s.t, resp.RetryAfter)
	return resp
}

// randoms is ClientRandom and ServerRandom.
func randoms() []byte {
	b := make([]byte, 2*ski.RandomLen)
	for i := range b {
		b[i] = byte(i)
	}
	return b
}

// ecdhe returns the input of MethodECDHE up to TLS 1.2.
func ecdhe(group uint16, point []byte) []byte {
	in := append(randoms(), 3, byte(group>>8), byte(group), byte(len(point)))
	return append(in, point...)
}

const (
	secp256r1 = 23
	secp384r1 = 24
	secp521r1 = 25
	x25519    = 29
)

// basePoint returns the generator of the group: a valid public key.
func basePoint(group uint16) []byte {
	curves := map[uint16]elliptic.Curve{
		secp256r1: elliptic.P256(), secp384r1: elliptic.P384(), secp521r1: elliptic.P521(),
	}
	c, ok := curves[group]
	if !ok {
		point := make([]byte, 32)
		point[0] = 9
		return point
	}
	size := (c.Params().BitSize + 7) / 8
	point := append([]byte{4}, c.Params().Gx.FillBytes(make([]byte, size))...)
	return append(point, c.Params().Gy.FillBytes(make([]byte, size))...)
}

// certificateVerify returns the input of MethodECDHE in TLS 1.3.
func certificateVerify(hashLen int) []byte {
	return append(append([]byte(nil), certificateVerifyPrefix...), make([]byte, hashLen)...)
}

// encodedMessage returns EM of RSAES-PKCS1-v1_5 (RFC 8017, Section 7.2.1) for
// a message, with padding that is always the same.
func encodedMessage(pub *rsa.PublicKey, message []byte) []byte {
	em := make([]byte, pub.Size())
	em[1] = 2
	zero := len(em) - len(message) - 1
	for i := 2; i < zero; i++ {
		em[i] = 0xA5
	}
	copy(em[zero+1:], message)
	return em
}

// rawEncrypt is RSAEP (RFC 8017, Section 5.1.1).
func rawEncrypt(pub *rsa.PublicKey, em []byte) []byte {
	c := new(big.Int).Exp(new(big.Int).SetBytes(em), big.NewInt(int64(pub.E)), pub.N)
	return c.FillBytes(make([]byte, pub.Size()))
}

// preMasterSecret returns one that begins with a version.
func preMasterSecret(version uint16) []byte {
	secret := make([]byte, ski.PreMasterSecretLen)
	for i := range secret {
		secret[i] = byte(0x40 + i)
	}
	secret[0], secret[1] = byte(version>>8), byte(version)
	return secret
}

func rsaPublic(keys testStore) *rsa.PublicKey { return keys.public(rsa2048).(*rsa.PublicKey) }

// fixedTime takes out of a record what is never the same.
type fixedTime struct{ Auditor }

func (f fixedTime) Audit(ctx context.Context, r *Record) error {
	r.Time, r.Duration = time.Unix(0, 0), 0
	return f.Auditor.Audit(ctx, r)
}
