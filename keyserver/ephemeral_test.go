package keyserver

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdh"
	"crypto/rand"
	"crypto/tls"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/tlsski/tlsski/ski"
)

// onWire is a Transport that has everything encoded on its way to h.
func onWire(h ski.Handler, peer ski.Peer, f ski.Format) ski.Transport {
	return ski.TransportFunc(func(ctx context.Context, req *ski.Request) (*ski.Response, error) {
		body, err := ski.EncodeRequest(f, req)
		if err != nil {
			return nil, err
		}
		answer, _ := ski.Serve(ctx, h, peer, f, body, f)
		return ski.DecodeResponse(f, answer)
	})
}

// client is a TLS client's part of ECDHE.
func client(t testing.TB, params []byte) (point, secret []byte) {
	t.Helper()
	group := tls.CurveID(params[1])<<8 | tls.CurveID(params[2])
	require.Len(t, params, 4+int(params[3]))
	server, err := ephemeralGroups[group].NewPublicKey(params[4:])
	require.NoError(t, err)
	private, err := ephemeralGroups[group].GenerateKey(rand.Reader)
	require.NoError(t, err)
	secret, err = private.ECDH(server)
	require.NoError(t, err)
	return private.PublicKey().Bytes(), secret
}

// firstRequest is that of a first exchange with randoms of its own.
func firstRequest(keys testStore, group tls.CurveID) *ski.Request {
	req := &ski.Request{
		Protocol: ski.TLS12, SPKI: keys.id(p256), Method: ski.MethodECDHEPMS, Hash: ski.SHA256,
		Group: group, Input: make([]byte, 2*ski.RandomLen),
	}
	rand.Read(req.Input)
	return req
}

// secondRequest is that of the second exchange, as a peer sends it that sends
// no more than it has to.
func secondRequest(first *ski.Request, state, point []byte) *ski.Request {
	return &ski.Request{Protocol: first.Protocol, SPKI: first.SPKI, Method: first.Method, State: state, Input: point}
}

// begin does a first exchange and returns the request of the second, and what
// has to come of it.
func (s testServer) begins(first *ski.Request) (second *ski.Request, secret []byte) {
	s.t.Helper()
	resp, rec := s.ask(edgePeer, first)
	require.NoError(s.t, resp.Err(), rec.Reason)
	point, secret := client(s.t, resp.Params)
	return secondRequest(first, resp.State, point), secret
}

// The client and the edge have the same PreMasterSecret, leading zeros
// included, with each group, key and format.
func TestECDHEPMS(t *testing.T) {
	keys := testKeys()
	s := newTestServer(t, keys)
	for _, group := range []tls.CurveID{secp256r1, secp384r1, secp521r1, x25519} {
		zero := false // whether a secret with a leading zero has been seen: looking for one takes a while
		for name, hash := range map[string]crypto.Hash{p256: crypto.SHA256, p521: crypto.SHA512, rsa2048: crypto.SHA384, ed: 0} {
			for _, protocol := range []ski.Protocol{ski.TLS12, ski.DTLS12} {
				for _, f := range []ski.Format{ski.CBOR, ski.JSON} {
					key, err := ski.NewKey(onWire(s, edgePeer, f), keys.public(name))
					require.NoError(t, err)
					key = key.ForConnection(t.Context(), ski.Connection{Protocol: protocol, ServerName: "www.example.com"})
					e, err := key.NewEphemeral(t.Context(), group, randoms(), hash)
					require.NoError(t, err)
					signed := &ski.Request{Protocol: protocol, SPKI: keys.id(name), Input: append(randoms(), e.Params...)}
					if signed.Hash, _ = ski.HashOf(hash); hash == 0 {
						signed.Scheme = tls.Ed25519
					}
					verify(t, keys, signed, e.Signature)

					point, secret := client(t, e.Params)
					for tries := 1; !zero && secret[0] != 0; tries++ {
						if tries%20 == 0 { // A state expires.
							e, err = key.NewEphemeral(t.Context(), group, randoms(), hash)
							require.NoError(t, err)
						}
						point, secret = client(t, e.Params)
					}
					zero = true
					got, err := e.PreMasterSecret(t.Context(), point)
					require.NoError(t, err)
					require.Equal(t, secret, got)
					require.Len(t, got, map[tls.CurveID]int{secp256r1: 32, secp384r1: 48, secp521r1: 66, x25519: 32}[group])
				}
			}
		}
	}
}

// Another key server of the fleet, which has the same state key, does the
// second exchange.
func TestEphemeralKeyOfAnotherServerOfTheFleet(t *testing.T) {
	keys := testKeys()
	one, two := newTestServer(t, keys), newTestServer(t, keys)
	second, secret := one.begins(firstRequest(keys, secp256r1))
	resp, _ := two.ask(edgePeer, second)
	require.Equal(t, secret, resp.Output)
	// Each of them forgets that the other has done so.
	resp, _ = one.ask(edgePeer, second)
	require.Equal(t, secret, resp.Output)

	alone := newTestServer(t, keys, func(o *Options) { o.StateKey = nil })
	second, _ = one.begins(firstRequest(keys, secp256r1))
	alone.refuses(second, ski.MalformedRequest, errStateNotOpened.Error())
	second, secret = alone.begins(firstRequest(keys, x25519))
	one.refuses(second, ski.MalformedRequest, errStateNotOpened.Error())
	resp, _ = alone.ask(edgePeer, second)
	require.Equal(t, secret, resp.Output)
}

func TestStateIsUsedOnce(t *testing.T) {
	keys := testKeys()
	s := newTestServer(t, keys)
	second, secret := s.begins(firstRequest(keys, x25519))
	var outputs, denied int
	var mu sync.Mutex
	var wg sync.WaitGroup
	for range 50 {
		wg.Go(func() {
			resp := s.ServeSKI(t.Context(), edgePeer, second)
			mu.Lock()
			defer mu.Unlock()
			if bytes.Equal(resp.Output, secret) {
				outputs++
			} else if resp.Error == ski.RequestDenied {
				denied++
			}
		})
	}
	wg.Wait()
	require.Equal(t, 1, outputs)
	require.Equal(t, 49, denied)
	s.refuses(second, ski.RequestDenied, "the state has been used")
	second.Input = basePoint(x25519)
	s.refuses(second, ski.RequestDenied, "the state has been used")
}

func TestStateExpires(t *testing.T) {
	keys := testKeys()
	s := newTestServer(t, keys)
	first := firstRequest(keys, secp256r1)
	second, _ := s.begins(first)
	owner := stateOwner(edgePeer, s.policy.Load().match(edgePeer), first)
	sealed, err := s.sealer.open(second.State, owner)
	require.NoError(t, err)
	require.WithinDuration(t, time.Now().Add(30*time.Second), sealed.expires, 10*time.Second)

	for _, c := range []struct {
		left   time.Duration
		reason string
	}{
		{-time.Millisecond, "the state has expired"},
		{-time.Hour, "the state has expired"},
		{time.Minute, "clock that is ahead"},
	} {
		old := *sealed
		old.expires = time.Now().Add(c.left)
		second.State = s.sealer.seal(&old, owner)
		s.refuses(second, ski.RequestDenied, c.reason)
	}
	recent := *sealed
	recent.expires = time.Now().Add(stateLifetime + stateClockSkew - time.Second) // of a clock that is ahead a little
	second.State = s.sealer.seal(&recent, owner)
	resp, _ := s.ask(edgePeer, second)
	require.NoError(t, resp.Err())
}

// What is not the state that was given to this edge, for this key and protocol,
// is refused with one error and reason.
func TestStateThatIsNotTheEdges(t *testing.T) {
	keys := testKeys()
	s := newTestServer(t, keys)
	second, secret := s.begins(firstRequest(keys, secp256r1))
	refused := func(peer ski.Peer, change func(r *ski.Request)) {
		t.Helper()
		r := *second
		r.State = bytes.Clone(r.State)
		change(&r)
		resp, rec := s.ask(peer, &r)
		require.Equal(t, ski.MalformedRequest, resp.Error)
		require.Equal(t, errStateNotOpened.Error(), rec.Reason)
		require.Equal(t, 2, rec.Exchange)
	}
	same := func(*ski.Request) {}
	refused(legacyPeer, same)
	renewed := edgePeer
	renewed.SPKI[0] ^= 1
	refused(renewed, same)
	both := edgePeer
	both.DNSNames = append(slices.Clone(both.DNSNames), legacyPeer.DNSNames...)
	refused(both, same)
	stranger := *second
	resp, rec := s.ask(ski.Peer{}, &stranger)
	require.Equal(t, ski.RequestDenied, resp.Error, "who is nobody's edge is told nothing of states")
	require.Equal(t, denialUnknownPeer, rec.Reason)
	refused(edgePeer, func(r *ski.Request) { r.SPKI = keys.id(p384) })
	refused(edgePeer, func(r *ski.Request) { r.Protocol = ski.DTLS12 })
	refused(edgePeer, func(r *ski.Request) { r.Protocol = ski.TLS13 })
	for i := range second.State {
		refused(edgePeer, func(r *ski.Request) { r.State[i] ^= 1 })
	}
	for n := 1; n < len(second.State); n++ {
		refused(edgePeer, func(r *ski.Request) { r.State = r.State[:n] })
	}
	refused(edgePeer, func(r *ski.Request) { r.State = append(r.State, 0) })
	refused(edgePeer, func(r *ski.Request) { r.State = make([]byte, ski.MaxStateLen) })

	resp, _ = s.ask(edgePeer, second) // None of this has used it up.
	require.Equal(t, secret, resp.Output)
}

// A point that is not of the group is malformed, as in the ServerECDHParams of
// an edge, and does not use the state up.
func TestClientsPoint(t *testing.T) {
	keys := testKeys()
	s := newTestServer(t, keys)
	for _, group := range []tls.CurveID{secp256r1, secp384r1, secp521r1, x25519} {
		second, secret := s.begins(firstRequest(keys, group))
		good := second.Input
		bad := [][]byte{good[1:], append(slices.Clone(good), 0), make([]byte, len(good)), {0}}
		for other := range ephemeralGroups {
			if g := basePoint(uint16(other)); len(g) != len(good) {
				bad = append(bad, g)
			}
		}
		if group == x25519 {
			for _, low := range x25519LowOrder {
				lastBit := low
				lastBit[31] |= 0x80
				bad = append(bad, low[:], lastBit[:])
			}
		} else {
			for _, at := range []int{1, len(good) - 1} {
				off := slices.Clone(good)
				off[at] ^= 1
				bad = append(bad, off)
			}
			for _, form := range []byte{0, 2, 3, 6, 7} {
				bad = append(bad, append([]byte{form}, good[1:]...), append([]byte{form}, good[1:1+len(good)/2]...))
			}
		}
		for _, point := range bad {
			second.Input = point
			s.refuses(second, ski.MalformedRequest, "not a public key of the state's group")
		}
		second.Input = good
		resp, _ := s.ask(edgePeer, second)
		require.Equal(t, secret, resp.Output)
	}
}

// The second exchange is judged by what the first asked for, and by the policy
// that is in force then.
func TestPolicyOfBothExchanges(t *testing.T) {
	keys := testKeys()
	s := policyServer(t, keys, oneRule("ECDHE-PMS", "algorithms: [SHA-256]", "server_names: [www.example.com]"))
	first := firstRequest(keys, x25519)
	resp, rec := s.ask(edgePeer, first)
	require.Equal(t, ski.RequestDenied, resp.Error)
	require.Equal(t, "no rule grants the server name", rec.Reason)
	first.ServerName = "www.example.com"
	second, secret := s.begins(first)
	require.Equal(t, 1, s.trail.last().Exchange)

	second.ServerName, second.Hash = "other.example.com", ski.SHA512 // What is said here does not count.
	resp, rec = s.ask(edgePeer, second)
	require.Equal(t, secret, resp.Output)
	require.Equal(t, ski.MethodECDHEPMS, rec.Method)
	require.Equal(t, 2, rec.Exchange)
	require.Equal(t, "SHA-256", rec.Hash)
	require.Equal(t, "www.example.com", rec.ClaimedServerName)
	require.Equal(t, "x25519", rec.Group)

	second, _ = s.begins(first)
	for _, rule := range [][]string{
		{"ECDHE", "algorithms: [SHA-256]"},
		{"ECDHE-PMS", "algorithms: [SHA-384]"},
		{"ECDHE-PMS", "groups: [secp256r1]"},
		{"ECDHE-PMS", "server_names: [other.example.com]"},
		{"ECDHE-PMS", "networks: [198.51.100.0/24]"},
		{"ECDHE-PMS", "not_after: 2020-01-01T00:00:00Z"},
		{"ECDHE-PMS", "protocols: [DTLS 1.2]"},
	} {
		s.SetPolicy(parsePolicy(t, oneRule(rule[0], rule[1:]...)))
		require.Equal(t, ski.RequestDenied, s.ServeSKI(t.Context(), edgePeer, second).Error, rule)
	}
	s.SetPolicy(parsePolicy(t, oneRule("ECDHE-PMS")))
	require.NoError(t, s.ServeSKI(t.Context(), edgePeer, second).Err())

	ecdheRequest := grantedRequest(keys) // which the grant of ECDHE-PMS does not include
	require.Equal(t, ski.RequestDenied, s.ServeSKI(t.Context(), edgePeer, ecdheRequest).Error)
}

// All answers to an exchange with one key and server name have one length,
// whatever the group is, refusals included once the policy has granted it.
func TestLengthsOfECDHEPMS(t *testing.T) {
	keys := testKeys()
	s := newTestServer(t, keys)
	for _, f := range []ski.Format{ski.CBOR, ski.JSON} {
		for _, name := range []string{p256, rsa2048} {
			lengths := map[int]map[int]bool{1: {}, 2: {}}
			add := func(exchange int, resp *ski.Response) {
				padded := resp.PaddedLen(f)
				lengths[exchange][padded] = true
				data, err := ski.EncodeResponse(f, resp)
				require.NoError(t, err)
				require.LessOrEqual(t, len(data), padded)
			}
			for group := range ephemeralGroups {
				first := firstRequest(keys, group)
				first.SPKI, first.ServerName = keys.id(name), "www.example.com"
				resp, _ := s.ask(edgePeer, first)
				require.NoError(t, resp.Err())
				require.Len(t, resp.State, resp.StateLen)
				if group == secp521r1 {
					require.Len(t, resp.Params, resp.ParamsLen)
				}
				add(1, resp)
				point, _ := client(t, resp.Params)
				second := secondRequest(first, resp.State, point[1:])
				malformed, _ := s.ask(edgePeer, second)
				require.Equal(t, ski.MalformedRequest, malformed.Error)
				add(2, malformed)
				second.Input = point
				forged := *second
				forged.State = make([]byte, 200)
				malformed, _ = s.ask(edgePeer, &forged)
				require.Equal(t, ski.MalformedRequest, malformed.Error)
				add(2, malformed)
				output, _ := s.ask(edgePeer, second)
				require.NoError(t, output.Err())
				add(2, output)
				denied, _ := s.ask(edgePeer, second)
				require.Equal(t, ski.RequestDenied, denied.Error)
				add(2, denied)
				first.Group = 30
				malformed, _ = s.ask(edgePeer, first)
				require.Equal(t, ski.MalformedRequest, malformed.Error)
				add(1, malformed)
			}
			require.Len(t, lengths[1], 1)
			require.Len(t, lengths[2], 1)
		}
	}
}

// The detectors look at the randoms of the first exchange. That the second
// comes is no repetition.
func TestDetectorsAndECDHEPMS(t *testing.T) {
	keys := testKeys()
	s := newTestServer(t, keys, withPolicy(t, keys, "# detectors: as they are by default\n"))
	for range 3 {
		first := firstRequest(keys, x25519)
		second, secret := s.begins(first)
		resp, _ := s.ask(edgePeer, second)
		require.Equal(t, secret, resp.Output)
		for name, n := range s.Detections() {
			require.Zero(t, n, name)
		}
	}
	first := firstRequest(keys, x25519)
	s.begins(first)
	require.Equal(t, ski.RequestDenied, s.ServeSKI(t.Context(), legacyPeer, first).Error)
	s.awaitAlarm(detectReplay)
}

func TestUsedStatesAreBounded(t *testing.T) {
	var u usedStates
	id := func(n int) (id stateID) {
		id[0], id[1], id[2] = byte(n), byte(n>>8), byte(n>>16)
		return id
	}
	const edge, half = "edge-1", maxUsedStates / 2
	now := time.Now()
	for n := range half {
		first, room := u.use(id(n), edge, now)
		require.True(t, first && room)
	}
	first, room := u.use(id(half), edge, now)
	require.False(t, first || room)
	for n := range 100 {
		first, room = u.use(id(half+n), "edge-2", now)
		require.True(t, first && room, "one edge does not take the room of another")
	}
	first, room = u.use(id(0), edge, now.Add(34*time.Second))
	require.False(t, first)
	require.True(t, room)
	first, _ = u.use(id(half+100), edge, now.Add(35*time.Second))
	require.True(t, first, "there is room again")
	first, _ = u.use(id(1), edge, now.Add(35*time.Second))
	require.False(t, first, "and no state is forgotten that could still be used")
	first, _ = u.use(id(1), edge, now.Add(71*time.Second))
	require.True(t, first)
	require.Len(t, u.aged, 1)
	u.use(id(2), edge, now.Add(time.Hour))
	require.Empty(t, u.aged)
	require.Len(t, u.young, 1)
}

// Where as many states as can be remembered have been used, no more are.
func TestNoRoomForAUsedState(t *testing.T) {
	keys := testKeys()
	s := newTestServer(t, keys)
	second, secret := s.begins(firstRequest(keys, x25519))
	s.usedStates.begin = time.Now()
	s.usedStates.young = make(map[stateID]struct{})
	s.usedStates.ofEdge = make(map[string]int)
	for n := range maxUsedStates {
		s.usedStates.young[stateID{byte(n), byte(n >> 8), byte(n >> 16)}] = struct{}{}
	}
	s.exceeds(limitServer, edgePeer, second)
	s.usedStates.young = nil
	s.usedStates.begin = time.Time{}
	resp, _ := s.ask(edgePeer, second)
	require.Equal(t, secret, resp.Output)
}

// What opens is what was sealed, and nothing else opens.
func FuzzOpenState(f *testing.F) {
	seal, err := newSealer(fleetStateKey)
	require.NoError(f, err)
	f.Add([]byte("owner"), uint16(x25519), uint16(0x0403), uint8(0), "www.example.com", bytes.Repeat([]byte{1}, stateOverhead))
	f.Add([]byte{}, uint16(secp521r1), uint16(0), uint8(4), "", []byte{})
	f.Fuzz(func(t *testing.T, owner []byte, group, scheme uint16, hash uint8, name string, forged []byte) {
		_, err := seal.open(forged, owner)
		require.ErrorIs(t, err, errStateNotOpened)
		curve, ok := ephemeralGroups[tls.CurveID(group)]
		if !ok {
			curve, group = ecdh.P256(), secp256r1
		}
		private, err := curve.GenerateKey(rand.Reader)
		require.NoError(t, err)
		first := &firstExchange{
			expires: time.UnixMilli(1_800_000_000_123), group: tls.CurveID(group), private: private,
			hash: draftHashes[int(hash)%len(draftHashes)], scheme: tls.SignatureScheme(scheme), serverName: name,
		}
		state := seal.seal(first, owner)
		require.Len(t, state, stateLen(name))
		got, err := seal.open(state, owner)
		require.NoError(t, err)
		require.True(t, got.private.Equal(private))
		first.id, got.private = stateID(state[:len(first.id)]), private
		require.Equal(t, first, got)

		_, err = seal.open(state, append(slices.Clone(owner), 0))
		require.ErrorIs(t, err, errStateNotOpened)
		for i, b := range forged {
			state[i%len(state)] ^= b
		}
		if slices.ContainsFunc(forged, func(b byte) bool { return b != 0 }) && len(forged) <= len(state) {
			_, err = seal.open(state, owner)
			require.ErrorIs(t, err, errStateNotOpened)
		}
	})
}
