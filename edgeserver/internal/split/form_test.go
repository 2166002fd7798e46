package split

import (
	"bytes"
	"context"
	"crypto"
	"crypto/rand"
	"crypto/tls"
	"io"
	"slices"
	"sync/atomic"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/tlsski/tlsski/ski"
)

// formHello is a ClientHello with groups, whose random begins so.
func formHello(random string, groups ...uint16) *helloSpec {
	h := goodHello(ecdheGCM(), tls.X25519).with(extSupportedGroups, u16s(groups...))
	copy(h.random, random)
	return h
}

func ecdheGCM() *suite { return suiteByID(tls.TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256) }

// ephemeralWanted returns what a machine asks for after a ClientHello.
func ephemeralWanted(t testing.TB, cfg *Config, h *helloSpec) (EphemeralWanted, error) {
	m := NewMachine()
	body := h.body()
	_, err := m.Message(TypeClientHello, body, frame(TypeClientHello, body))
	require.NoError(t, err)
	events, err := m.Site(cfg)
	if err != nil {
		require.Empty(t, events)
		return EphemeralWanted{}, err
	}
	require.Len(t, events, 1)
	return events[0].(EphemeralWanted), nil
}

// What a key server never signs depends on the length with one of the groups: the
// client gets another.
func TestAFormIsAvoidedWithAnotherGroup(t *testing.T) {
	x25519, p256, p384 := uint16(tls.X25519), uint16(tls.CurveP256), uint16(tls.CurveP384)
	for _, signed := range []bool{false, true} {
		cfg := &Config{Chains: []*Chain{theWorld().ecdsa.chain}, KeyServerEphemeral: signed, TLS13: true}
		for _, c := range []struct {
			random string
			groups []uint16
			want   tls.CurveID
		}{
			{"", []uint16{p384, p256, x25519}, tls.X25519},
			{"\x30\x81\x61", []uint16{x25519, p256}, tls.CurveP256},                   // 100 bytes
			{"\x30\x82\x00\x60", []uint16{p384, p256, x25519}, tls.CurveP256},         // the same, padded
			{"\x31\x81\x82", []uint16{p384, p256}, tls.CurveP384},                     // 133 bytes
			{"\x01\x00\x00\x60\x03\x03", []uint16{x25519, p256, p384}, tls.CurveP256}, // a ClientHello
		} {
			e, err := ephemeralWanted(t, cfg, formHello(c.random, c.groups...))
			require.NoError(t, err)
			require.Equal(t, c.want, e.Group, "%x", c.random)
			require.Equal(t, "DOWNGRD\x01", string(e.ServerRandom[24:]))
		}
	}
}

// Where there is no other group there is another ServerRandom, with the sentinel of
// RFC 8446, Section 4.1.3, where it is due.
func TestAFormIsAvoidedWithAnotherServerRandom(t *testing.T) {
	// An INTEGER to the end of the ClientRandom: in one of 8 cases the
	// ServerRandom goes on with what is read as the next member.
	h := formHello("\x30\x62\x02\x1c", uint16(tls.X25519)).with(extSignatureAlgorithms, u16s(0x0807))
	forced := 0
	for _, sentinel := range []bool{false, true} {
		cfg := &Config{Chains: []*Chain{theWorld().ed25519.chain}, TLS13: sentinel}
		for range 300 {
			e, err := ephemeralWanted(t, cfg, h)
			require.NoError(t, err)
			require.Equal(t, tls.X25519, e.Group)
			require.Equal(t, sentinel, string(e.ServerRandom[24:]) == "DOWNGRD\x01")
			require.NoError(t, ski.CheckRandoms(slices.Concat(e.ClientRandom, e.ServerRandom), e.Group))
			random := make([]byte, 32)
			rand.Read(random)
			if ski.CheckRandoms(slices.Concat(h.random, random), tls.X25519) != nil {
				forced++
			}
		}
	}
	require.NotZero(t, forced, "some ServerRandoms are not fit")
}

// A client that forces the form whatever the edge does is not one by chance.
func TestAClientRandomThatForcesAFormIsRefused(t *testing.T) {
	for _, signed := range []bool{false, true} {
		cfg := &Config{Chains: []*Chain{theWorld().ecdsa.chain}, KeyServerEphemeral: signed}
		for _, random := range []string{"SSHSIG", "\x84\x6aSignature1", "\x85\x69Signature"} {
			_, err := ephemeralWanted(t, cfg, formHello(random, uint16(tls.X25519), uint16(tls.CurveP256)))
			var e *Error
			require.ErrorAs(t, err, &e)
			require.Equal(t, IllegalParameter, e.Alert)
			require.ErrorAs(t, err, new(*ski.FormError))
		}
	}
}

// formChecking is a private key that does not sign what a key server does not.
type formChecking struct {
	crypto.MessageSigner
	asked, refused *atomic.Int32
}

func (k formChecking) SignMessage(random io.Reader, msg []byte, opts crypto.SignerOpts) ([]byte, error) {
	k.asked.Add(1)
	if err := ski.CheckForm(msg); err != nil {
		k.refused.Add(1)
		return nil, err
	}
	return k.MessageSigner.SignMessage(random, msg, opts)
}

// The edge's own ephemeral key is made anew where its public value, here one of
// 16, gives the form.
func TestAFormIsAvoidedWithAnotherEphemeralKey(t *testing.T) {
	e := EphemeralWanted{Group: tls.X25519, ClientRandom: make([]byte, 32), ServerRandom: make([]byte, 32)}
	copy(e.ClientRandom, []byte{0x30, 98, 2, 64}) // the next element begins with the point
	form := func(public []byte) error {
		return ski.CheckForm(slices.Concat(e.ClientRandom, e.ServerRandom, serverECDHParams(e.Group, public)))
	}
	found := 0
	for range 200 {
		point := make([]byte, 32)
		rand.Read(point)
		if form(point) != nil {
			found++
		}
		c := new(Conn)
		require.NoError(t, c.generateEphemeral(e))
		require.NoError(t, form(c.ephemeral.PublicKey().Bytes()))
	}
	require.NotZero(t, found, "with these randoms some points give the form")
}

// The key server is asked once for each handshake, and for nothing that it refuses.
func TestHandshakesOfClientsThatNearlyForceAForm(t *testing.T) {
	var asked, refused atomic.Int32
	chain := *theWorld().ed25519.chain
	chain.Key = func(context.Context, ski.Connection) crypto.MessageSigner {
		return formChecking{theWorld().ed25519.key, &asked, &refused}
	}
	s := serve(t, &Config{Chains: []*Chain{&chain}})
	const times = 100
	for range times {
		c, err := tls.Dial("tcp", s.addr, &tls.Config{
			RootCAs: theWorld().roots, ServerName: serverName, MaxVersion: tls.VersionTLS12, CurvePreferences: []tls.CurveID{tls.X25519},
			Rand: io.MultiReader(bytes.NewReader([]byte{0x30, 98, 2, 28}), rand.Reader),
		})
		require.NoError(t, err)
		require.NoError(t, c.Close())
		require.NoError(t, s.outcome(t).err)
	}
	require.EqualValues(t, times, asked.Load())
	require.Zero(t, refused.Load())
}
