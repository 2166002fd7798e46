package split

import (
	"bytes"
	"context"
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"math/big"
	"slices"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/tlsski/tlsski/ski"
)

// TestHostileECDHEPublicValues: none may reach the ephemeral key, whosesoever
// it is.
func TestHostileECDHEPublicValues(t *testing.T) {
	for _, keyServer := range []bool{false, true} {
		changes := map[string]func([]byte) []byte{
			"too short": func(b []byte) []byte { return b[:len(b)-1] },
			"too long":  func(b []byte) []byte { return append(slices.Clone(b), 0) },
			"one byte":  func([]byte) []byte { return []byte{0} },
		}
		nist := map[string]func([]byte) []byte{
			"not on the curve": func(b []byte) []byte { b = slices.Clone(b); b[len(b)-1] ^= 1; return b },
			"compressed":       func(b []byte) []byte { return append([]byte{2}, b[1:1+len(b)/2]...) },
			"hybrid":           func(b []byte) []byte { b = slices.Clone(b); b[0] = 6; return b },
			"zeros":            func(b []byte) []byte { return append([]byte{4}, make([]byte, len(b)-1)...) },
		}
		lowOrder := map[string]func([]byte) []byte{}
		for _, s := range []string{ // RFC 7748, Section 6.1: those of which the shared secret is zero
			"0000000000000000000000000000000000000000000000000000000000000000",
			"0100000000000000000000000000000000000000000000000000000000000000",
			"ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
			"edffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
			"e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800",
			"5f9c95bca3508c24b1d0b1559c83ef5b04445cc4581c8e86d8224eddd09f1157",
		} {
			lowOrder["low order "+s[:8]] = func([]byte) []byte { return must(hex.DecodeString(s)) }
		}
		for _, group := range allGroups {
			cfg := hostileConfig()
			cfg.KeyServerEphemeral, cfg.Groups = keyServer, []tls.CurveID{group}
			h := newHostile(t, cfg)
			more := nist
			if group == tls.X25519 {
				more = lowOrder
			}
			for _, set := range []map[string]func([]byte) []byte{changes, more} {
				for what, change := range set {
					r := newRogue(t, h.addr, goodHello(gcm(), group), group)
					r.preMaster = change
					// 8422, Section 5.11, and 7748, Section 6.1.
					h.refuses(r, IllegalParameter, what)
				}
			}
			r := newRogue(t, h.addr, goodHello(gcm(), group), group)
			r.preMaster = func([]byte) []byte { return nil }
			h.refuses(r, DecodeError, "empty")
		}
	}
}

// TestHostilePreMasterSecrets: however the encrypted PreMasterSecret is wrong,
// all that shows is that the Finished does not fit (RFC 5246, Section 7.4.7.1).
func TestHostilePreMasterSecrets(t *testing.T) {
	h := newHostile(t, hostileConfig())
	static := func() *rogue { return newRogue(t, h.addr, goodHello(staticGCM(), tls.X25519), tls.X25519) }
	r := static()
	require.NoError(t, r.handshake())
	r.conn.Close()
	h.outcome(t)
	for what, change := range map[string]func([]byte) []byte{
		"padding":   func(b []byte) []byte { b = slices.Clone(b); b[20] ^= 1; return b },
		"zeros":     func(b []byte) []byte { return make([]byte, len(b)) },
		"above n":   func(b []byte) []byte { return bytes.Repeat([]byte{0xFF}, len(b)) },
		"too short": func(b []byte) []byte { return b[1:] },
		"too long":  func(b []byte) []byte { return append([]byte{0}, b...) },
		"one byte":  func([]byte) []byte { return []byte{1} },
	} {
		r := static()
		r.preMaster = change
		h.refuses(r, BadRecordMAC, what)
	}
	r = static()
	encrypted := r.hello.version
	r.hook = func(name string, contentType uint8, payload []byte) {
		if name == "ClientKeyExchange" {
			r.hello.version = encrypted
		}
		r.record(contentType, payload)
	}
	r.hello.version = 0x0304 // what ClientHello says; the PreMasterSecret is made with another
	r.message(TypeClientHello, r.hello.body())
	_, params, err := r.readFlight()
	require.NoError(t, err)
	r.message(TypeCertificate, []byte{0, 0, 0})
	r.hello.version = 0x0303
	r.derive(r.keyExchange(params))
	r.send("ChangeCipherSpec", recordChangeCipherSpec, []byte{1})
	require.NoError(t, r.finish())
	h.refused(r, r.answer(), BadRecordMAC, "the version in the PreMasterSecret is not the ClientHello's")
}

func TestTheKeyServerFails(t *testing.T) {
	cfg := hostileConfig()
	for _, keyServer := range []bool{false, true} {
		for _, s := range []*suite{gcm(), staticGCM()} {
			cfg := *cfg
			cfg.KeyServerEphemeral = keyServer
			ecdsa, rsa := theWorld().ecdsa.key, theWorld().rsa.key
			ecdsa.fail(ski.RequestDenied)
			rsa.fail(ski.RequestDenied)
			h := newHostile(t, &cfg)
			r := newRogue(t, h.addr, goodHello(s, tls.X25519), tls.X25519)
			err := r.handshake()
			if err == nil {
				err = r.answer()
			}
			ecdsa.fail(nil)
			rsa.fail(nil)
			assert.Equal(t, &alertError{alertFatal, InternalError}, err)
			assert.ErrorIs(t, h.outcome(t).err, ski.RequestDenied)
		}
	}
}

// TestTheKeyServersEphemeralKeyIsChecked: what a key server makes has to be what
// was asked for, before a client sees it.
func TestTheKeyServersEphemeralKeyIsChecked(t *testing.T) {
	w := theWorld()
	p256 := serverECDHParams(tls.CurveP256, must(curveOf(tls.CurveP256).GenerateKey(nil)).PublicKey().Bytes())
	off := slices.Clone(p256)
	off[len(off)-1] ^= 1
	for what, params := range map[string][]byte{
		"nothing":            nil,
		"another group":      serverECDHParams(tls.X25519, make([]byte, 32)),
		"another curve type": append([]byte{1}, p256[1:]...),
		"not on the curve":   off,
		"cut short":          p256[:len(p256)-1],
		"with more":          append(slices.Clone(p256), 0),
	} {
		chain := *w.ecdsa.chain
		chain.Ephemeral = func(context.Context, ski.Connection, tls.CurveID, []byte, crypto.SignerOpts) (*Ephemeral, error) {
			return &Ephemeral{Params: params, Signature: make([]byte, 70)}, nil
		}
		h := newHostile(t, &Config{Chains: []*Chain{&chain}, Groups: []tls.CurveID{tls.CurveP256}, KeyServerEphemeral: true})
		r := newRogue(t, h.addr, goodHello(gcm(), tls.CurveP256), tls.CurveP256)
		h.refuses(r, InternalError, what)
	}
	chain := *w.ecdsa.chain
	chain.Ephemeral = func(context.Context, ski.Connection, tls.CurveID, []byte, crypto.SignerOpts) (*Ephemeral, error) {
		return &Ephemeral{Params: serverECDHParams(tls.X25519, make([]byte, 32)), Signature: make([]byte, 70)}, nil
	}
	h := newHostile(t, &Config{Chains: []*Chain{&chain}, Groups: []tls.CurveID{tls.X25519}, KeyServerEphemeral: true})
	h.refuses(newRogue(t, h.addr, goodHello(gcm(), tls.X25519), tls.X25519), InternalError, "a point of low order")
}

func TestHostileClientCertificates(t *testing.T) {
	w := theWorld()
	cfg := hostileConfig()
	cfg.ClientAuth = RequireClientCert
	h := newHostile(t, cfg)
	// Nobody has to have the private half for the bound to matter.
	modulus := new(big.Int).SetBit(big.NewInt(1), maxClientRSABits, 1)
	der := must(x509.CreateCertificate(rand.Reader, w.client.cert, w.ca, &rsa.PublicKey{N: modulus, E: 65537}, w.caKey))
	huge := &identity{key: w.client.key, chain: &Chain{Certificates: [][]byte{der}, Leaf: w.client.cert}}
	for what, tt := range map[string]struct {
		identity *identity
		want     Alert
	}{
		"none":              {nil, HandshakeFailure},
		"expired":           {&w.expired, CertificateExpired},
		"another authority": {&w.stranger, UnknownCA},
		"not DER":           {&identity{key: w.client.key, chain: &Chain{Certificates: [][]byte{[]byte("certificate")}, Leaf: w.client.cert}}, BadCertificate},
		"too many":          {&identity{key: w.client.key, chain: &Chain{Certificates: slices.Repeat([][]byte{w.client.cert.Raw}, 11), Leaf: w.client.cert}}, BadCertificate},
		"a huge RSA key":    {huge, BadCertificate},
		"without its key":   {&identity{key: w.ecdsa.key, chain: w.client.chain, cert: w.client.cert}, DecryptError},
	} {
		r := h.rogue()
		r.identity = tt.identity
		h.refuses(r, tt.want, what)
	}
	for what, change := range map[string]func([]byte){
		"SHA-1":                    func(b []byte) { b[4], b[5] = 2, 3 },
		"a scheme of RSA":          func(b []byte) { b[4], b[5] = 8, 4 },
		"a scheme that is unknown": func(b []byte) { b[4], b[5] = 0xFF, 0xFF },
	} {
		r := h.rogue()
		r.on("CertificateVerify", func(contentType uint8, payload []byte) {
			changed := slices.Clone(payload)
			change(changed)
			r.record(contentType, changed)
		})
		h.refuses(r, IllegalParameter, "CertificateVerify with "+what)
	}
	r := h.rogue()
	r.on("CertificateVerify", func(contentType uint8, payload []byte) {
		changed := slices.Clone(payload)
		changed[len(changed)-1] ^= 1
		r.record(contentType, changed)
	})
	h.refuses(r, DecryptError, "CertificateVerify with another signature")

	for _, id := range []*identity{&w.client, &w.clientRSA} {
		r := h.rogue()
		r.identity = id
		require.NoError(t, r.handshake())
		r.conn.Close()
		state := h.outcome(t).conn.ConnectionState()
		require.Len(t, state.PeerCertificates, 1)
		assert.Equal(t, id.cert.Raw, state.PeerCertificates[0].Raw)
		assert.NotEmpty(t, state.VerifiedChains)
	}
}

func TestHostileAfterTheHandshake(t *testing.T) {
	h := newHostile(t, hostileConfig())
	tests := map[string]struct {
		do   func(r *rogue)
		want Alert
	}{
		"ChangeCipherSpec":          {func(r *rogue) { r.record(recordChangeCipherSpec, []byte{1}) }, UnexpectedMessage},
		"HelloRequest":              {func(r *rogue) { r.record(recordHandshake, []byte{0, 0, 0, 0}) }, UnexpectedMessage},
		"Finished again":            {func(r *rogue) { r.record(recordHandshake, frame(TypeFinished, make([]byte, 12))) }, UnexpectedMessage},
		"KeyUpdate":                 {func(r *rogue) { r.record(recordHandshake, []byte{24, 0, 0, 1, 0}) }, UnexpectedMessage},
		"record in the clear":       {func(r *rogue) { r.raw(recordApplicationData, 0x0303, make([]byte, 64)) }, BadRecordMAC},
		"a record again":            {func(r *rogue) { r.record(23, []byte("a")); r.wseq--; r.record(23, []byte("a")) }, BadRecordMAC},
		"a record left out":         {func(r *rogue) { r.wseq++; r.record(23, []byte("a")) }, BadRecordMAC},
		"a record of 2^14+1":        {func(r *rogue) { r.record(23, make([]byte, 1<<14+1)) }, RecordOverflow},
		"too many empty records":    {func(r *rogue) { many(20, func() { r.record(23, nil) }) }, UnexpectedMessage},
		"too many warnings":         {func(r *rogue) { many(20, func() { r.record(21, []byte{1, 90}) }) }, UnexpectedMessage},
		"malformed alert":           {func(r *rogue) { r.record(21, []byte{1}) }, DecodeError},
		"an empty handshake record": {func(r *rogue) { r.record(22, nil) }, UnexpectedMessage},
		"data within a ClientHello": {func(r *rogue) { r.record(22, []byte{1, 0, 1}); r.record(23, []byte("a")) }, UnexpectedMessage},
		"too many renegotiations": {func(r *rogue) {
			many(20, func() { r.record(22, frame(TypeClientHello, r.hello.body())) })
		}, UnexpectedMessage},
	}
	for what, tt := range tests {
		r := h.rogue()
		require.NoError(t, r.handshake())
		tt.do(r)
		var err error
		for {
			if _, _, err = r.readRecord(); err == nil {
				continue
			}
			if warning := (*alertError)(nil); errors.As(err, &warning) && warning.level == alertWarning {
				assert.Equal(t, NoRenegotiation, warning.alert)
				continue
			}
			break
		}
		assert.Equal(t, &alertError{alertFatal, tt.want}, err, what)
		r.conn.Close()
		assert.Error(t, h.outcome(t).err, what)
	}
}

func many(n int, do func()) {
	for range n {
		do()
	}
}

func TestRenegotiationIsRefusedAndTheConnectionGoesOn(t *testing.T) {
	h := newHostile(t, hostileConfig())
	r := h.rogue()
	require.NoError(t, r.handshake())
	r.record(recordHandshake, frame(TypeClientHello, r.hello.body()))
	_, _, err := r.readRecord()
	assert.Equal(t, &alertError{alertWarning, NoRenegotiation}, err)
	r.record(recordApplicationData, []byte("still here"))
	_, answer, err := r.readRecord()
	require.NoError(t, err)
	assert.Equal(t, "still here", string(answer))
	r.record(recordAlert, []byte{alertWarning, byte(CloseNotify)})
	assert.NoError(t, h.outcome(t).err)
}

func TestAFatalAlertOfTheClientIsTheError(t *testing.T) {
	h := newHostile(t, hostileConfig())
	for _, name := range clientMessages {
		r := h.rogue()
		r.on(name, func(uint8, []byte) { r.record(recordAlert, []byte{alertFatal, 46}) })
		r.handshake()
		assert.EqualError(t, h.outcome(t).err, "remote error: tls: unknown certificate")
	}
}
