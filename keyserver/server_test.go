package keyserver

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/md5"
	"crypto/rsa"
	"crypto/sha1"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"runtime"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/tlsski/tlsski/ski"
)

func validRequest(keys testStore) *ski.Request {
	return &ski.Request{Protocol: ski.TLS12, SPKI: keys.id(p256), Hash: ski.SHA256, Input: ecdhe(x25519, basePoint(x25519))}
}

// hookStore is a KeyStore whose operations a test can replace.
type hookStore struct {
	KeyStore
	sign    func(context.Context) ([]byte, error)
	decrypt func(context.Context) error
}

func (s hookStore) Sign(ctx context.Context, id ski.KeyID, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	if s.sign != nil {
		return s.sign(ctx)
	}
	return s.KeyStore.Sign(ctx, id, digest, opts)
}

func (s hookStore) DecryptPreMasterSecret(ctx context.Context, id ski.KeyID, ciphertext, secret []byte) error {
	if s.decrypt != nil {
		return s.decrypt(ctx)
	}
	return s.KeyStore.DecryptPreMasterSecret(ctx, id, ciphertext, secret)
}

func TestRecord(t *testing.T) {
	keys := testKeys()
	s := newTestServer(t, keys)
	req := validRequest(keys)
	req.ServerName = "www.example.com"
	peer := edgePeer
	peer.SPKI = ski.KeyID{1, 2, 3}
	begin := time.Now()
	_, rec := s.ask(peer, req)
	require.WithinRange(t, rec.Time, begin, time.Now())
	require.Positive(t, rec.Duration)
	rec.Time, rec.Duration = time.Time{}, 0
	require.Equal(t, Record{
		Edge: "edge", Peer: peer.ID(), Address: edgePeer.Addr, Key: keys.id(p256), KeyName: p256,
		Protocol: ski.TLS12, Method: ski.MethodECDHE, Hash: "SHA-256", Group: "x25519", ClaimedServerName: "www.example.com", Outcome: "output",
	}, rec)
}

// RFC 6979: the same question has the same answer.
func TestECDSAIsDeterministic(t *testing.T) {
	keys := testKeys()
	s := newTestServer(t, keys)
	first, _ := s.ask(edgePeer, validRequest(keys))
	second, _ := s.ask(edgePeer, validRequest(keys))
	require.Equal(t, first.Output, second.Output)
}

func TestLegacyDefaults(t *testing.T) {
	keys := testKeys()
	s := newTestServer(t, keys)
	input := ecdhe(secp256r1, basePoint(secp256r1))
	sha := sha1.Sum(input)
	md := md5.Sum(input)
	for _, c := range []struct {
		protocol ski.Protocol
		hash     string // with RSA
	}{
		{ski.TLS12, "SHA-1"}, {ski.DTLS12, "SHA-1"},
		{ski.TLS10, "MD5+SHA-1"}, {ski.TLS11, "MD5+SHA-1"}, {ski.DTLS10, "MD5+SHA-1"},
	} {
		t.Run(string(c.protocol), func(t *testing.T) {
			req := &ski.Request{Protocol: c.protocol, SPKI: keys.id(p256), Input: input}
			s.refuses(req, ski.RequestDenied, "no rule grants")
			resp, rec := s.ask(legacyPeer, req)
			require.Empty(t, resp.Error, rec.Reason)
			require.Equal(t, "SHA-1", rec.Hash)
			require.True(t, ecdsa.VerifyASN1(keys.public(p256).(*ecdsa.PublicKey), sha[:], resp.Output))

			req.SPKI = keys.id(rsa2048)
			s.refuses(req, ski.RequestDenied, "no rule grants")
			resp, rec = s.ask(legacyPeer, req)
			require.Empty(t, resp.Error, rec.Reason)
			require.Equal(t, c.hash, rec.Hash)
			digest, hash := sha[:], crypto.SHA1
			if c.hash != "SHA-1" {
				digest, hash = append(md[:], sha[:]...), crypto.MD5SHA1
			}
			require.NoError(t, rsa.VerifyPKCS1v15(keys.public(rsa2048).(*rsa.PublicKey), hash, digest, resp.Output))
		})
	}
	for _, p := range []ski.Protocol{ski.TLS10, ski.TLS11, ski.DTLS10} {
		resp, rec := s.ask(legacyPeer, &ski.Request{Protocol: p, SPKI: keys.id(p256), Scheme: tls.ECDSAWithP256AndSHA256, Input: input})
		require.Equal(t, ski.MalformedRequest, resp.Error)
		require.Equal(t, "'scheme' does not exist in this protocol", rec.Reason)
		resp, rec = s.ask(legacyPeer, &ski.Request{Protocol: p, SPKI: keys.id(p256), Hash: ski.SHA256, Input: input})
		require.Equal(t, ski.MalformedRequest, resp.Error)
		require.Equal(t, "'hash' does not exist in this protocol", rec.Reason)
	}
}

func TestRefusedBeforeTheInputIsLookedAt(t *testing.T) {
	keys := testKeys()
	s := newTestServer(t, keys)

	bad := validRequest(keys)
	bad.Input = []byte{1}
	resp, rec := s.ask(ski.Peer{DNSNames: []string{"stranger.example.net"}}, bad)
	require.Equal(t, ski.RequestDenied, resp.Error)
	require.Equal(t, "the policy does not know the peer", rec.Reason)
	require.Empty(t, rec.Edge)

	bad.SPKI = ski.KeyID{1}
	s.refuses(bad, ski.SPKINotFound, "no key")

	s.refuses(&ski.Request{Protocol: "TLS 9", Input: []byte{1}}, ski.MalformedRequest, "'protocol'")
}

func TestServeMalformed(t *testing.T) {
	s := newTestServer(t, testKeys())
	for _, c := range []struct {
		err    error
		reason string
	}{
		{&ski.MalformedError{Attribute: "spki", Reason: "is missing"}, "ski: malformed message: 'spki' is missing"},
		{errors.New("it holds a secret"), "the message could not be parsed"},
	} {
		resp := s.ServeMalformed(t.Context(), edgePeer, c.err)
		require.Equal(t, ski.MalformedRequest, resp.Error)
		rec := s.trail.last()
		require.Equal(t, c.reason, rec.Reason)
		require.Equal(t, "malformed request", rec.Outcome)
		require.Equal(t, "edge", rec.Edge)
	}
}

func TestKeyStoreFails(t *testing.T) {
	keys := testKeys()
	for name, store := range map[string]hookStore{
		"error": {keys,
			func(context.Context) ([]byte, error) { return nil, errors.New("token removed") },
			func(context.Context) error { return errors.New("token removed") }},
		"panic": {keys,
			func(context.Context) ([]byte, error) { panic("bug") },
			func(context.Context) error { panic("bug") }},
	} {
		t.Run(name, func(t *testing.T) {
			s := newTestServer(t, store)
			decrypt := &ski.Request{Protocol: ski.TLS12, SPKI: keys.id(rsa2048), Method: ski.MethodRSA, Input: make([]byte, 256)}
			for range 2 * (s.schedule.rsa.free + 1) { // A failure gives back what it held.
				s.refuses(validRequest(keys), ski.UnspecifiedError, "see the log")
				s.refuses(decrypt, ski.UnspecifiedError, "see the log")
			}
			require.Zero(t, s.schedule.inFlight.Load())
		})
	}
}

func TestAuditFails(t *testing.T) {
	keys := testKeys()
	for _, required := range []bool{false, true} {
		t.Run(fmt.Sprint(required), func(t *testing.T) {
			s := newTestServer(t, keys, func(o *Options) { o.AuditRequired = required })
			s.trail.err = errors.New("disk full")
			resp, _ := s.ask(edgePeer, validRequest(keys))
			if required {
				require.Equal(t, ski.UnspecifiedError, resp.Error)
			} else {
				require.Empty(t, resp.Error)
			}
			s.trail.err = nil
			resp, _ = s.ask(edgePeer, validRequest(keys))
			require.Empty(t, resp.Error)
		})
	}
}

// What the operator sees of a log that fails for a while: two lines.
func TestAuditFailureIsLoggedOnce(t *testing.T) {
	var out bytes.Buffer
	s := newTestServer(t, testKeys(), func(o *Options) { o.Logger = slog.New(slog.NewTextHandler(&out, nil)) })
	for _, err := range []error{nil, errors.New("disk full"), errors.New("disk full"), nil, nil} {
		s.trail.err = err
		s.ask(edgePeer, validRequest(testKeys()))
	}
	require.Equal(t, 1, strings.Count(out.String(), `msg="audit log fails" error="disk full"`))
	require.Equal(t, 1, strings.Count(out.String(), `msg="audit log works again"`))
}

// The record of a request is written though its caller has gone.
func TestAuditOfACallerThatHasGone(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	var audited error = errors.New("not at all")
	s := newTestServer(t, testKeys(), func(o *Options) {
		o.Audit = auditFunc(func(ctx context.Context, _ *Record) error {
			audited = ctx.Err()
			return audited
		})
	})
	s.ServeSKI(ctx, edgePeer, validRequest(testKeys()))
	require.NoError(t, audited)
}

type auditFunc func(context.Context, *Record) error

func (f auditFunc) Audit(ctx context.Context, r *Record) error { return f(ctx, r) }

// holdStore holds signatures and decryptions up until it is released.
type holdStore struct {
	KeyStore
	entered, release chan bool
}

func newHoldStore(keys KeyStore) holdStore {
	return holdStore{keys, make(chan bool, 1<<12), make(chan bool)}
}

func (s holdStore) Sign(context.Context, ski.KeyID, []byte, crypto.SignerOpts) ([]byte, error) {
	s.entered <- true
	<-s.release
	return []byte("signature"), nil
}

func (s holdStore) DecryptPreMasterSecret(context.Context, ski.KeyID, []byte, []byte) error {
	s.entered <- true
	<-s.release
	return nil
}

func decryption2048(keys testStore) *ski.Request {
	return &ski.Request{Protocol: ski.TLS12, SPKI: keys.id(rsa2048), Method: ski.MethodRSA, Input: make([]byte, 256)}
}

func TestOverload(t *testing.T) {
	keys := testKeys()
	store := newHoldStore(keys)
	s := newTestServer(t, store, func(o *Options) { o.MaxInFlight = 2 })
	var wg sync.WaitGroup
	for _, peer := range []ski.Peer{edgePeer, legacyPeer} {
		wg.Go(func() { s.ServeSKI(t.Context(), peer, grantedRequest(keys)) })
		<-store.entered
	}
	s.exceeds(limitServer, edgePeer, validRequest(keys))
	s.exceeds(limitServer, ski.Peer{SPKI: ski.KeyID{1}}, validRequest(keys))
	close(store.release)
	wg.Wait()
	require.Zero(t, s.schedule.inFlight.Load())
}

// An edge alone has half of what there may be in flight; another then has half of
// the rest.
func TestOneEdgesRequestsInFlightLeaveRoomForAnother(t *testing.T) {
	keys := testKeys()
	store := newHoldStore(keys)
	s := newTestServer(t, store, func(o *Options) { o.MaxInFlight = 8 })
	var wg sync.WaitGroup
	defer wg.Wait()
	defer close(store.release)
	for _, edge := range []struct {
		peer ski.Peer
		most int
	}{{edgePeer, 4}, {legacyPeer, 2}, {edgePeer, 0}, {ski.Peer{SPKI: ski.KeyID{1}}, 0}} {
		for range edge.most {
			wg.Go(func() { s.ServeSKI(t.Context(), edge.peer, grantedRequest(keys)) })
			<-store.entered
		}
		if edge.peer.SPKI == (ski.KeyID{1}) {
			resp, _ := s.ask(edge.peer, grantedRequest(keys))
			require.Equal(t, ski.RequestDenied, resp.Error, "there is room to look at it")
		} else {
			s.exceeds(limitServer, edge.peer, grantedRequest(keys))
		}
	}
}

// What waits for its turn is not at work: it keeps nobody out, and not its own
// edge either.
func TestOperationsThatWaitKeepNoOthersOut(t *testing.T) {
	keys := testKeys()
	synctest.Test(t, func(t *testing.T) {
		store := newHoldStore(keys)
		s := newTestServer(t, store, func(o *Options) { o.RSAWorkers, o.MaxInFlight = 1, 8 })
		var wg sync.WaitGroup
		const burst = 100
		refused := make(chan *ski.Response, burst)
		for range burst {
			wg.Go(func() {
				if resp := s.ServeSKI(t.Context(), edgePeer, decryption2048(keys)); resp.Error != "" {
					refused <- resp
				}
			})
			synctest.Wait()
		}
		require.Empty(t, refused)
		require.Equal(t, burst-1, s.schedule.rsa.waits())
		require.EqualValues(t, burst, s.schedule.inFlight.Load())
		for _, peer := range []ski.Peer{edgePeer, legacyPeer} {
			wg.Go(func() { require.Empty(t, s.ServeSKI(t.Context(), peer, grantedRequest(keys)).Error) })
		}
		synctest.Wait()
		close(store.release)
		wg.Wait()
		require.Empty(t, refused)
		require.Zero(t, s.schedule.waiting.Load())
		require.Zero(t, s.states.of("edge-1").waiting.Load())
	})
}

// A refusal for overload says nothing of what would be decrypted: whichever way it
// comes about, the key has not been used. What the key store fails with is no
// overload.
func TestAnOverloadIsDecidedBeforeAnythingIsDecrypted(t *testing.T) {
	keys := testKeys()
	for name, overload := range map[string]func(s testServer){
		"too many in flight":       func(s testServer) { s.schedule.maxInFlight = 0 },
		"it has waited too long":   func(s testServer) { s.schedule.rsa.patience = time.Millisecond },
		"it would wait too long":   func(s testServer) { s.schedule.rsa.cost = cost{enough, time.Hour} },
		"too many wait":            func(s testServer) { s.schedule.rsa.room = 1 },
		"another edge needs room":  func(s testServer) { s.schedule.rsa.room = 2 },
		"the edge always has some": func(s testServer) { s.schedule.rsa.cost = cost{enough, time.Second} },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				used := 0
				store := hookStore{KeyStore: keys, decrypt: func(context.Context) error { used++; return nil }}
				s := newTestServer(t, store, func(o *Options) { o.RSAWorkers = 1 })
				rsa := s.schedule.rsa
				ctx, leave := context.WithCancel(t.Context())
				require.NoError(t, rsa.begin(ctx, "edge-1"))
				var others sync.WaitGroup
				wait := func(edge string) {
					others.Go(func() { _ = rsa.begin(ctx, edge) })
					synctest.Wait()
				}
				wait("edge-1")
				if name == "the edge always has some" {
					rsa.queues[0].since = time.Now().Add(-time.Hour)
					wait("edge-1")
				}
				overload(s)
				answered := make(chan *ski.Response, 1)
				go func() { answered <- s.ServeSKI(ctx, edgePeer, decryption2048(keys)) }()
				synctest.Wait()
				if name == "another edge needs room" {
					require.Empty(t, answered)
					wait("another")
				}
				resp := <-answered
				require.Equal(t, ski.UnspecifiedError, resp.Error)
				require.True(t, resp.Overloaded)
				require.Equal(t, time.Second, resp.RetryAfter)
				require.Zero(t, used)
				leave()
				others.Wait()
			})
		})
	}
	for _, failure := range []error{errors.New("device removed"), context.DeadlineExceeded, context.Canceled} {
		s := newTestServer(t, hookStore{KeyStore: keys, decrypt: func(context.Context) error { return failure }})
		resp, rec := s.ask(edgePeer, decryption2048(keys))
		require.Equal(t, ski.UnspecifiedError, resp.Error)
		require.False(t, resp.Overloaded)
		require.Zero(t, resp.RetryAfter)
		require.Equal(t, "operation failed, see the log", rec.Reason)
	}
}

// RSA operations queue behind each other; those on curves pass them; what
// nobody waits for any more is not done.
func TestScheduling(t *testing.T) {
	keys := testKeys()
	synctest.Test(t, func(t *testing.T) {
		done := 0
		release := make(chan bool)
		store := hookStore{KeyStore: keys, decrypt: func(context.Context) error {
			<-release
			done++
			return nil
		}}
		s := newTestServer(t, store, func(o *Options) { o.RSAWorkers = 1 })
		decrypt := func(ctx context.Context) *ski.Response {
			return s.ServeSKI(ctx, edgePeer, &ski.Request{
				Protocol: ski.TLS12, SPKI: keys.id(rsa2048), Method: ski.MethodRSA, Input: make([]byte, 256),
			})
		}
		var wg sync.WaitGroup
		wg.Go(func() { decrypt(t.Context()) })
		synctest.Wait()

		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		require.Equal(t, ski.UnspecifiedError, decrypt(ctx).Error)
		require.Equal(t, "the caller has gone", s.trail.last().Reason)

		resp, _ := s.ask(edgePeer, validRequest(keys))
		require.Empty(t, resp.Error)

		close(release)
		wg.Wait()
		require.Equal(t, 1, done)

		require.Equal(t, ski.UnspecifiedError, decrypt(ctx).Error, "the context has ended")
		require.Equal(t, 1, done)
	})
}

// A worker that becomes free at the moment when the caller goes does not work
// for nobody.
func TestNothingIsDoneForACallerWhoHasGone(t *testing.T) {
	s := newScheduler(0, 1, 0)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	for range 100 { // select is free to choose
		err := s.private(ctx, key{public: rsaPublic(testKeys())}, func(context.Context) error { panic("done") })
		require.ErrorIs(t, err, context.Canceled)
	}
	require.Equal(t, 1, s.rsa.free)
}

func TestSchedulerDefaults(t *testing.T) {
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(4))
	require.Equal(t, 3, newScheduler(0, 0, 0).rsa.free, "one processor is for the others")
	runtime.GOMAXPROCS(1)
	require.Equal(t, 1, newScheduler(0, 0, 0).rsa.free)
	require.Equal(t, 9, newScheduler(0, 9, 0).rsa.free)
}

// That the caller has gone meanwhile does not hide that the key failed.
func TestOperationErrorIsLogged(t *testing.T) {
	keys := testKeys()
	var log bytes.Buffer
	ctx, cancel := context.WithCancel(t.Context())
	s := newTestServer(t, hookStore{KeyStore: keys, sign: func(context.Context) ([]byte, error) {
		cancel()
		return nil, errors.New("token removed")
	}}, func(o *Options) { o.Logger = slog.New(slog.NewTextHandler(&log, nil)) })
	require.Equal(t, ski.UnspecifiedError, s.ServeSKI(ctx, edgePeer, validRequest(keys)).Error)
	require.Contains(t, log.String(), "token removed")
	require.Equal(t, "operation failed, see the log", s.trail.last().Reason)
}

func TestConcurrency(t *testing.T) {
	keys := testKeys()
	s := newTestServer(t, keys)
	s.schedule.rsa.patience = time.Minute // however slow the machine is
	pub := rsaPublic(keys)
	secret := preMasterSecret(0x0303)
	ciphertext := rawEncrypt(pub, encodedMessage(pub, secret))
	type exchange struct {
		req  *ski.Request
		resp *ski.Response
	}
	exchanges := make(chan exchange, 16*8)
	var wg sync.WaitGroup
	for i := range 16 {
		wg.Go(func() {
			for j := range 8 {
				req := validRequest(keys)
				if i%4 == 0 {
					req = &ski.Request{Protocol: ski.TLS12, SPKI: keys.id(rsa2048), Method: ski.MethodRSA, Input: ciphertext}
				} else {
					req.Input[0], req.Input[1] = byte(i), byte(j)
				}
				exchanges <- exchange{req, s.ServeSKI(t.Context(), edgePeer, req)}
			}
		})
	}
	wg.Wait()
	close(exchanges)
	for e := range exchanges {
		require.Empty(t, e.resp.Error)
		if e.req.Method == ski.MethodRSA {
			require.Equal(t, secret, e.resp.Output)
		} else {
			verify(t, keys, e.req, e.resp.Output)
		}
	}
	require.Len(t, s.trail.records, 16*8)
}

func TestNew(t *testing.T) {
	keys := testKeys()
	policy, err := ParsePolicy("policy.yaml", []byte(testPolicy), keys)
	require.NoError(t, err)
	valid := Options{Keys: keys, Policy: policy, Audit: new(auditTrail)}
	_, err = New(valid)
	require.NoError(t, err)
	for name, change := range map[string]func(*Options){
		"Keys":         func(o *Options) { o.Keys = nil },
		"Policy":       func(o *Options) { o.Policy = nil },
		"Audit":        func(o *Options) { o.Audit = nil },
		"RSAFailure":   func(o *Options) { o.RSAFailure = "maybe" },
		"secret":       func(o *Options) { o.RSAFailureSecret = make([]byte, 31) },
		"empty secret": func(o *Options) { o.RSAFailureSecret = []byte{} },
		"state key":    func(o *Options) { o.StateKey = make([]byte, 31) },
		"workers":      func(o *Options) { o.RSAWorkers = -1 },
		"in flight":    func(o *Options) { o.MaxInFlight = -1 },
	} {
		o := valid
		change(&o)
		_, err := New(o)
		require.Error(t, err, name)
	}
}

func BenchmarkECDSAP256(b *testing.B) {
	keys := testKeys()
	s := newTestServer(b, keys, func(o *Options) { o.Audit = NewAuditLog(discard{}) })
	req := validRequest(keys)
	b.ReportAllocs()
	for b.Loop() {
		s.ServeSKI(b.Context(), edgePeer, req)
	}
}

func BenchmarkRSAPreMasterSecret(b *testing.B) {
	keys := testKeys()
	s := newTestServer(b, keys, func(o *Options) { o.Audit = NewAuditLog(discard{}) })
	req := &ski.Request{Protocol: ski.TLS12, SPKI: keys.id(rsa2048), Method: ski.MethodRSA, Input: make([]byte, 256)}
	b.ReportAllocs()
	for b.Loop() {
		s.ServeSKI(b.Context(), edgePeer, req)
	}
}

// discard is an io.Writer; io.Discard would let slog skip its work.
type discard struct{}

func (discard) Write(p []byte) (int, error) { return len(p), nil }
