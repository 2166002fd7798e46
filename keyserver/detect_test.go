package keyserver

import (
	"crypto/rand"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/tlsski/tlsski/ski"
)

// freshRequest is one of a handshake of its own.
func freshRequest(keys testStore) *ski.Request {
	req := grantedRequest(keys)
	rand.Read(req.Input[:curveTypeOffset])
	return req
}

// alarms returns those raised by a detector.
func (a *auditTrail) alarms(d detector) []Record {
	a.mu.Lock()
	defer a.mu.Unlock()
	var all []Record
	for _, r := range a.records {
		if r.Event == EventAlarm && r.Detector == d.String() {
			all = append(all, r)
		}
	}
	return all
}

func (s testServer) awaitAlarm(d detector) Record {
	s.t.Helper()
	require.Eventually(s.t, func() bool { return len(s.trail.alarms(d)) == 1 }, time.Minute, time.Millisecond)
	return s.trail.alarms(d)[0]
}

// What one edge has asked no other may ask, in each kind of input; the first
// may ask again, as it does after a lost session.
func TestReplayByAnotherEdge(t *testing.T) {
	keys := testKeys()
	pub := rsaPublic(keys)
	tls13 := &ski.Request{Protocol: ski.TLS13, SPKI: keys.id(p256), Scheme: 0x0403, Input: certificateVerify(32)}
	rand.Read(tls13.Input[len(certificateVerifyPrefix):])
	for name, c := range map[string]struct {
		req    *ski.Request
		finds  detector
		reason string
	}{
		"randoms":         {freshRequest(keys), detectReplay, "asked what another edge has asked"},
		"transcript hash": {tls13, detectReplay, "asked what another edge has asked"},
		"RSA": {&ski.Request{Protocol: ski.TLS12, SPKI: keys.id(rsa2048), Method: ski.MethodRSA,
			Input: rawEncrypt(pub, encodedMessage(pub, preMasterSecret(0x0303)))},
			detectPreMasterReplay, "an EncryptedPreMasterSecret that another edge has sent"},
	} {
		t.Run(name, func(t *testing.T) {
			req := c.req
			s := newTestServer(t, keys, withPolicy(t, keys, "# detectors: as they are by default\n"))
			for range 3 {
				require.NoError(t, s.ServeSKI(t.Context(), edgePeer, req).Err())
			}
			require.Equal(t, ski.RequestDenied, s.ServeSKI(t.Context(), legacyPeer, req).Error)
			alarm := s.awaitAlarm(c.finds)
			require.Equal(t, "legacy", alarm.Edge)
			require.Contains(t, alarm.Reason, c.reason)
			require.NoError(t, s.ServeSKI(t.Context(), edgePeer, req).Err())
			require.Equal(t, uint64(1), s.Detections()[c.finds.String()])
			require.Equal(t, uint64(3), s.Detections()["repeat"]+s.Detections()["premaster-repeat"])
		})
	}
}

// A client that sends one EncryptedPreMasterSecret to two edges does not cut
// either off where replays of handshakes do, and the operator is told what does.
func TestClientsCutNobodyOff(t *testing.T) {
	keys := testKeys()
	s := newTestServer(t, keys, withPolicy(t, keys, "detectors:\n  replay: {action: suspend}\n"))
	require.NotContains(t, strings.Join(s.policy.Load().Warnings(time.Now()), ""), "detector")
	pub := rsaPublic(keys)
	sent := &ski.Request{Protocol: ski.TLS12, SPKI: keys.id(rsa2048), Method: ski.MethodRSA,
		Input: rawEncrypt(pub, encodedMessage(pub, preMasterSecret(0x0303)))}
	require.NoError(t, s.ServeSKI(t.Context(), edgePeer, sent).Err())
	require.Equal(t, ski.RequestDenied, s.ServeSKI(t.Context(), legacyPeer, sent).Error)
	s.awaitAlarm(detectPreMasterReplay)
	require.Empty(t, s.suspensions.All())

	replayed := freshRequest(keys)
	require.NoError(t, s.ServeSKI(t.Context(), edgePeer, replayed).Err())
	require.Equal(t, ski.RequestDenied, s.ServeSKI(t.Context(), legacyPeer, replayed).Error)
	require.Eventually(t, func() bool { return s.Admit(legacyPeer) != nil }, time.Minute, time.Millisecond)
	require.NoError(t, s.Admit(edgePeer), "who has asked first")

	for _, d := range []string{"premaster-replay", "premaster-repeat", "rsa-failures"} {
		p, err := ParsePolicy("policy.yaml", []byte(testPolicy+"detectors:\n  "+d+": {action: suspend}\n"), keys)
		require.NoError(t, err)
		require.Contains(t, p.Warnings(time.Now()), "detector "+d+" suspends an edge for what its clients send: anybody can cut it off")
	}
}

func TestHonestEdgesRaiseNoAlarm(t *testing.T) {
	keys := testKeys()
	s := newTestServer(t, keys, withPolicy(t, keys, "# detectors: as they are by default\n"))
	moved := edgePeer
	moved.Addr = netip.MustParseAddrPort("192.0.2.8:1")
	for _, peer := range []ski.Peer{edgePeer, legacyPeer, moved} {
		for range 100 {
			require.NoError(t, s.ServeSKI(t.Context(), peer, freshRequest(keys)).Err())
		}
	}
	for name, n := range s.Detections() {
		require.Zero(t, n, name)
	}
}

func TestWeakRandoms(t *testing.T) {
	keys := testKeys()
	few, constant := freshRequest(keys), freshRequest(keys)
	for i := range ski.RandomLen {
		few.Input[ski.RandomLen+i] = byte(i % 15)
	}
	s := newTestServer(t, keys, withPolicy(t, keys, "detectors:\n  weak-randoms: {action: deny, threshold: 1}\n"))
	require.Equal(t, ski.RequestDenied, s.ServeSKI(t.Context(), edgePeer, few).Error)
	s.awaitAlarm(detectWeakRandoms)

	require.NoError(t, s.ServeSKI(t.Context(), legacyPeer, constant).Err())
	require.NoError(t, s.ServeSKI(t.Context(), legacyPeer, constant).Err(), "the same handshake")
	rand.Read(constant.Input[:ski.RandomLen]) // another client, the same ServerRandom
	require.Equal(t, ski.RequestDenied, s.ServeSKI(t.Context(), legacyPeer, constant).Error)
}

func TestOneIdentityAtTwoAddresses(t *testing.T) {
	keys := testKeys()
	s := newTestServer(t, keys, withPolicy(t, keys, "detectors:\n  addresses: {action: suspend, threshold: 2}\n"))
	there := edgePeer
	there.Addr = netip.MustParseAddrPort("198.51.100.1:40000")
	for _, peer := range []ski.Peer{edgePeer, there, edgePeer} { // the third is back: one finding
		require.NoError(t, s.ServeSKI(t.Context(), peer, freshRequest(keys)).Err())
	}
	require.Equal(t, ski.RequestDenied, s.ServeSKI(t.Context(), there, freshRequest(keys)).Error)
	s.awaitAlarm(detectAddresses)
	require.Eventually(t, func() bool { return s.Admit(edgePeer) != nil }, time.Minute, time.Millisecond)
	require.ErrorContains(t, s.Admit(edgePeer), "by detector addresses")
}

// Wrong PreMasterSecrets are noticed when their answers are gone, and cut the
// edge off where the policy says so. A few wrong among many right are not.
func TestRSAFailures(t *testing.T) {
	keys := testKeys()
	pub := rsaPublic(keys)
	ask := func(s testServer, peer ski.Peer, version uint16) *ski.Response {
		secret := preMasterSecret(version)
		rand.Read(secret[2:])
		return s.ServeSKI(t.Context(), peer, &ski.Request{
			Protocol: ski.TLS12, SPKI: keys.id(rsa2048), Method: ski.MethodRSA,
			Input: rawEncrypt(pub, encodedMessage(pub, secret)),
		})
	}
	s := newTestServer(t, keys, withPolicy(t, keys, "detectors:\n  rsa-failures: {action: suspend, threshold: 5, share: 0.5}\n"))
	for range 5 {
		require.NoError(t, ask(s, edgePeer, 0x0300).Err())
	}
	for i := range 24 { // A third of them, which is above the threshold but below the share.
		require.NoError(t, ask(s, legacyPeer, []uint16{0x0300, 0x0303, 0x0303}[i%3]).Err())
	}
	alarm := s.awaitAlarm(detectRSAFailures)
	require.Equal(t, "edge", alarm.Edge)
	require.Regexp(t, `^5 of 5 within 1m0s: `, alarm.Reason)
	require.Eventually(t, func() bool { return s.Admit(edgePeer) != nil }, time.Minute, time.Millisecond)
	require.Equal(t, ski.RequestDenied, ask(s, edgePeer, 0x0303).Error)
	require.NoError(t, ask(s, legacyPeer, 0x0303).Err())
}

// No alarm is lost where the key server is stopped right after what caused it.
func TestAlarmsAreThereAtTheEnd(t *testing.T) {
	keys := testKeys()
	s := newTestServer(t, keys, withPolicy(t, keys, "detectors:\n  rsa-failures: {threshold: 1}\n"))
	req := freshRequest(keys)
	s.ServeSKI(t.Context(), edgePeer, req)
	s.ServeSKI(t.Context(), legacyPeer, req)
	s.ServeSKI(t.Context(), edgePeer, &ski.Request{Protocol: ski.TLS12, SPKI: keys.id(rsa2048), Method: ski.MethodRSA, Input: make([]byte, 256)})
	s.Close()
	require.Len(t, s.trail.alarms(detectReplay), 1)
	require.Len(t, s.trail.alarms(detectRSAFailures), 1)
}

func TestMemoryIsBoundedAndForgetsTheOldest(t *testing.T) {
	g := generations[int, int]{max: 100}
	for i := range 1050 {
		_, seen := g.firstOrPut(i, i)
		require.False(t, seen)
		require.LessOrEqual(t, len(g.young)+len(g.aged), 200)
	}
	former, seen := g.firstOrPut(950, -1)
	require.True(t, seen)
	require.Equal(t, 950, former)
	_, seen = g.firstOrPut(0, 0)
	require.False(t, seen)
}

func TestFindingsCountWithinTheWindow(t *testing.T) {
	var f findings
	rule := detectorRule{threshold: 2, window: time.Minute}
	begin := time.Unix(1_800_000_000, 0)
	for _, c := range []struct {
		after         time.Duration
		enough, first bool
	}{
		{0, false, false},
		{59 * time.Second, true, true},
		{59 * time.Second, true, false},
		{60 * time.Second, false, false},
		{61 * time.Second, true, true},
	} {
		enough, first := f.add(begin.Add(c.after), rule)
		require.Equal(t, c.enough, enough, c.after)
		require.Equal(t, c.first, first, c.after)
	}
}

func TestDetectorsThatAreRefused(t *testing.T) {
	for text, want := range map[string]string{
		"reply: {action: alarm}":       `"reply" is not one of the detectors replay, repeat, `,
		"replay: {action: block}":      `"block" is not one of off, alarm, deny and suspend`,
		"rsa-failures: {action: deny}": "use alarm or suspend",
		"replay: {threshold: 0}":       "at least 1",
		"replay: {share: 0.5}":         "'share' is for rsa-failures",
		"rsa-failures: {share: 1.5}":   "between 0 and 1",
		"replay: {window: 0s}":         "not a duration above zero",
	} {
		_, err := ParsePolicy("policy.yaml", fmt.Appendf(nil, "%sdetectors:\n  %s\n", testPolicy, text), testKeys())
		require.ErrorContains(t, err, want)
		require.ErrorContains(t, err, "policy.yaml:16:")
	}
}
