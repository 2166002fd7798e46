package ski

import (
	"bytes"
	"crypto/tls"
	"encoding/base64"
	"encoding/binary"
	"flag"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// inputOf returns an input with these randoms, or as much of them as there is,
// and ServerECDHParams of a group, whose point ends as told.
func inputOf(group tls.CurveID, randoms, end string) []byte {
	in := append([]byte(randoms), bytes.Repeat([]byte{0xa5}, 64-len(randoms))...)
	in = append(in, namedCurve, byte(group>>8), byte(group), byte(pointLen(group)))
	in = append(in, bytes.Repeat([]byte{0xc3}, pointLen(group))...)
	copy(in[len(in)-len(end):], end)
	return in
}

func TestFormsThatAreSignedElsewhereAreFound(t *testing.T) {
	jws := func(header string) []byte {
		return inputOf(tls.X25519, base64.RawURLEncoding.EncodeToString([]byte(header))+".", "")
	}
	p256, curve25519 := tls.CurveP256, tls.X25519
	octets := func(n byte) string { return "\x04" + string([]byte{n}) }
	for name, c := range map[string]struct {
		form  string
		input []byte
	}{
		"long form":                        {"BER", inputOf(p256, "\x30\x81\x82", "")},
		"SET":                              {"BER", inputOf(p256, "\x31\x81\x82", "")},
		"long form of two octets":          {"BER", inputOf(p256, "\x30\x82\x00\x81", "")},
		"long form where short would do":   {"BER", inputOf(curve25519, "\x30\x81\x61", "")},
		"long form, padded":                {"BER", inputOf(curve25519, "\x30\x85\x00\x00\x00\x00\x5d", "")},
		"length beyond 32 bits":            {"BER", inputOf(curve25519, "\x30\x85\x01\x00\x00\x00\x5d", "")},
		"indefinite":                       {"BER", inputOf(curve25519, "\x30\x80", "\x00\x00")},
		"indefinite, end in the long form": {"BER", inputOf(curve25519, "\x31\x80", "\x00\x81\x00")},
		"indefinite, constructed end":      {"BER", inputOf(curve25519, "\x30\x80", "\x20\x00")},
		"the same in the long form":        {"BER", inputOf(curve25519, "\x30\x80", "\x20\x81\x00")},
		"indefinite, nested":               {"BER", inputOf(p256, "\x30\x80\x30\x80\x30\x80", "\x00\x00\x00\x00\x00\x00")},
		"members to the end":               {"BER", inputOf(curve25519, "\x30\x62\x0c\x60", "")},
		"members, the last one padded":     {"BER", inputOf(curve25519, "\x30\x62\x0c\x82\x00\x5e", "")},
		"members of high tags":             {"BER", inputOf(curve25519, "\x30\x62\x1f\x80\x0c\x5e", "")},
		"a member of indefinite length":    {"BER", inputOf(curve25519, "\x30\x62\x20\x80\x0c\x5c", "\x00\x00")},
		"a member without its end":         {"BER", inputOf(curve25519, "\x30\x62\x20\x80\x0c\x5e", "")},
		"known members and something else": {"BER", inputOf(curve25519, "\x30\x62\x02\x01\x00\x30\x00\xff\xff\xff", "")},
		"a time as the second member":      {"BER", inputOf(curve25519, "\x30\x62\xc2\x02\x04\x00\x18\x0f20261129000000Z\xff\xff\xff", "")},
		"a time as the third member":       {"BER", inputOf(curve25519, "\x30\x62\xa0\x03\x02\x01\x00\x42\x02\x04\x00\x18\x0f20261129000000Z\xff\xff\xff", "")},
		"a tag in the form for high ones":  {"BER", inputOf(p256, "\x3f\x10\x81\x81", "")},
		"the same, padded":                 {"BER", inputOf(p256, "\x3f\x80\x80\x11\x81\x7f", "")},
		"two of them":                      {"BER", inputOf(curve25519, "\x30\x02\x05\x00\x30\x5e\x02\x01\x00"+octets(0x59), "")},
		"Sig_structure of COSE_Sign1":      {"COSE", inputOf(curve25519, "\x84\x6aSignature1\x43\xa1\x01\x26\x40\x58\x53", "")},
		"Sig_structure of COSE_Sign":       {"COSE", inputOf(curve25519, "\x85\x69Signature\x43\xa1\x01\x26\x40\x40\x58\x53", "")},
		"Countersign_structure":            {"COSE", inputOf(curve25519, "\x86\x72CounterSignatureV2\x40", "")},
		"heads that are too long":          {"COSE", inputOf(curve25519, "\x9b\x00\x00\x00\x00\x00\x00\x00\x04\x7b\x00\x00\x00\x00\x00\x00\x00\x0aSignature1", "")},
		"indefinite array and text":        {"COSE", inputOf(curve25519, "\x9f\x7f\x6aSignature1\xff", "")},
		"SSHSIG":                           {"SSH", inputOf(curve25519, "SSHSIG\x00\x00\x00\x04file", "")},
		"a certificate of SSH":             {"SSH", inputOf(curve25519, "\x00\x00\x00\x20ssh-ed25519-cert-v01@openssh.com\x00\x00\x00\x20", "")},
		"a certificate of SSH, ECDSA":      {"SSH", inputOf(curve25519, "\x00\x00\x00\x28ecdsa-sha2-nistp256-cert-v01@openssh.com", "")},
		"SSH user authentication":          {"SSH", inputOf(curve25519, "\x00\x00\x00\x20"+strings.Repeat("\xaa", 32)+"\x32\x00\x00\x00\x04root", "")},
		"OpenPGP version 4":                {"OpenPGP", inputOf(curve25519, "", "\x04\x00\x13\x08\x00\x00\x04\xff\x00\x00\x00\x06")},
		"OpenPGP version 5":                {"OpenPGP", inputOf(curve25519, "", "\x05\x00\x13\x08\x00\x00\x05\xff\x00\x00\x00\x00\x00\x00\x00\x06")},
		"OpenPGP version 6":                {"OpenPGP", inputOf(curve25519, "", "\x06\x00\x1b\x08\x00\x00\x00\x00\x06\xff\x00\x00\x00\x08")},
		"OpenPGP, the whole input":         {"OpenPGP", inputOf(curve25519, "", "\x04\xff\x00\x00\x00\x5e")},
		"OpenPGP version 3, certification": {"OpenPGP", inputOf(curve25519, "\x99\x00\x51\x04\x66\x00\x00\x00\x16", "\x13\x66\x00\x00\x00")},
		"one ClientHello":                  {"TLS client", inputOf(curve25519, "\x01\x00\x00\x60\x03\x03", "")},
		"ClientHello, ServerHello":         {"TLS client", inputOf(curve25519, "\x01\x00\x00\x02\x03\x03\x02\x00\x00\x5a", "")},
		"DTLS":                             {"TLS client", inputOf(curve25519, "\x01\x00\x00\x58\x00\x00\x00\x00\x00\x00\x00\x58\xfe\xfd", "")},
		"DTLS, after the cookie":           {"TLS client", inputOf(curve25519, "\x01\x00\x00\x58\x00\x01\x00\x00\x00\x00\x00\x58\xfe\xfd", "")},
		"ClientHello of version 2.0":       {"TLS client", inputOf(curve25519, "\x01\x03\x03\x00\x03\x00\x00\x00\x10"+strings.Repeat("\xaa", 0x13)+"\x02\x00\x00\x44", "")},
		"JWS":                              {"JSON Web", inputOf(curve25519, "eyJhbGciOiJFUzI1NiIsImI2NCI6ZmFsc2UsImNyaXQiOlsiYjY0Il19.", "")},
		"JWS, white space before it":       {"JSON Web", jws("\r\n\t {\"alg\":\"EdDSA\"}")},
		"JWS, white space within it":       {"JSON Web", jws("{ \"alg\" : \"EdDSA\" }")},
		"JWS, byte order mark":             {"JSON Web", jws("\xef\xbb\xbf{\"alg\":\"EdDSA\"}")},
		"JWS, UTF-16":                      {"JSON Web", jws("{\x00\"\x00a\x00l\x00g\x00\"\x00:\x00")},
		"JWS, UTF-16 and byte order mark":  {"JSON Web", jws("\xfe\xff\x00{\x00\"\x00a\x00l\x00g\x00\"\x00:")},
		"JWS, other characters":            {"JSON Web", inputOf(curve25519, "!e y\nJhbGciOiJFZERTQSJ9.", "")},
		"IKE_SA_INIT of a responder":       {"IKEv2", inputOf(curve25519, strings.Repeat("\xaa", 16)+"\x21\x20\x22\x20\x00\x00\x00\x00\x00\x00\x00\x50", "")},
		"IKE_SA_INIT, minor version 1":     {"IKEv2", inputOf(curve25519, strings.Repeat("\xaa", 16)+"\x21\x21\x22\x08\x00\x00\x00\x00", "")},
		"IKE_SA_INIT, reserved flags":      {"IKEv2", inputOf(curve25519, strings.Repeat("\xaa", 16)+"\x21\x20\x22\x59\x00\x00\x00\x00", "")},
	} {
		t.Run(name, func(t *testing.T) {
			err := CheckForm(c.input)
			require.ErrorContains(t, err, c.form)
			require.ErrorAs(t, err, new(*FormError))
		})
	}
}

// What is refused is no more than has to be: what only begins like one of the
// forms is let through.
func TestOtherInputsHaveNoForm(t *testing.T) {
	for name, in := range map[string][]byte{
		"a length that is too short":  inputOf(tls.CurveP256, "\x30\x81\x81", ""),
		"a length that is too long":   inputOf(tls.CurveP256, "\x30\x81\x83", ""),
		"members that do not fit":     inputOf(tls.X25519, "\x30\x62\x0c\x5e", "\x04\x05"),
		"one member that fits":        inputOf(tls.X25519, "\x30\x62\x02\x01\x00\x30\x7f", ""),
		"indefinite, without end":     inputOf(tls.X25519, "\x30\x80\x02\x01\x00\x30\x00", ""),
		"not a ClientHello":           inputOf(tls.X25519, "\x02\x00\x00\x60\x03\x03", ""),
		"not whole messages":          inputOf(tls.X25519, "\x01\x00\x00\x61\x03\x03", ""),
		"an OpenPGP trailer too long": inputOf(tls.X25519, "", "\x04\xff\x00\x00\x00\x5f"),
		"a script":                    []byte("#!/bin/sh\necho\n"),
		"nothing":                     {},
		"randoms of zeros":            inputOf(tls.X25519, strings.Repeat("\x00", 64), ""),
	} {
		require.NoError(t, CheckForm(in), name)
	}
}

// ClientRandom begins with the time in clients up to TLS 1.2 that do as RFC 5246,
// Section 7.4.1.2, says. Devices without a clock begin at 0 with each start.
func TestClientsThatSendTheTimeAreNotMistaken(t *testing.T) {
	r := rand.NewChaCha8([32]byte{2})
	for _, first := range []uint32{0, 315532800, 820454400, 946684800, 1796000000} { // 1970, 1980, 1996, 2000, 2026
		for _, g := range []tls.CurveID{tls.X25519, tls.CurveP256} {
			in := inputOf(g, "", "")
			for second := range uint32(300) {
				for range 200 {
					r.Read(in[4:64])
					copy(in[56:], "DOWNGRD\x01")
					r.Read(in[68:])
					binary.BigEndian.PutUint32(in, first+second)
					require.NoError(t, CheckForm(in), "%x", in)
				}
			}
		}
	}
}

// In TLS 1.3 the first 98 bytes are given, so that no form but a trailer is
// possible, and that one has to be in the transcript hash.
func TestACertificateVerifyHasNoFormButATrailer(t *testing.T) {
	prefix := append(bytes.Repeat([]byte{0x20}, 64), "TLS 1.3, server CertificateVerify\x00"...)
	for _, n := range []int{32, 48} {
		for range 10_000 {
			hash := make([]byte, n)
			for i := range hash { // mostly bytes that mean something to one of the forms
				hash[i] = []byte{0, 1, 4, 6, 0x30, 0x31, 0x80, 0x81, 0xff, 'S', byte(rand.Uint32())}[rand.IntN(11)]
			}
			in := slices.Concat(prefix, hash)
			for _, f := range otherForms {
				require.False(t, f.is(in) && !bytes.Contains(hash[n-10:], []byte{0xff}), "%s %x", f.name, hash)
				require.False(t, f.is(in) && f.name != "content with an OpenPGP trailer", "%s %x", f.name, hash)
			}
		}
	}
	in := slices.Concat(prefix, make([]byte, 20), []byte("\x04\x00\x13\x08\x00\x00\x04\xff\x00\x00\x00\x06"))
	require.ErrorContains(t, CheckForm(in), "OpenPGP")
}

func TestRandomsThatForceAForm(t *testing.T) {
	groups := []tls.CurveID{tls.CurveP256, tls.CurveP384, tls.CurveP521, tls.X25519}
	randoms := func(begin string) []byte { return inputOf(tls.X25519, begin, "")[:64] }
	for _, g := range groups {
		require.NoError(t, CheckRandoms(randoms(""), g))
		for _, begin := range []string{"\x84\x6aSignature1", "SSHSIG", "eyJhbGciOiJFUzI1NiIs"} {
			require.Error(t, CheckRandoms(randoms(begin), g), "%v %q", g, begin)
		}
	}
	require.Error(t, CheckRandoms(randoms("\x30\x81\x82"), tls.CurveP256))
	require.NoError(t, CheckRandoms(randoms("\x30\x81\x82"), tls.X25519), "another group is the way out")
	require.NoError(t, CheckRandoms(randoms("\x30\x80"), tls.X25519), "whether it ends in zeros depends on the point")
	require.NoError(t, CheckRandoms(randoms("\x30\x62\x0c\x45"), tls.X25519), "where the next member ends depends on the point")

	in := randoms("")
	require.NoError(t, CheckRandoms(in[:32:64], tls.X25519))
	require.Equal(t, randoms(""), in, "the caller's array is not written to")
}

var formSamples = flag.Int("forms", 100_000, "how many inputs TestHowOftenAnInputHasAFormByChance draws of each kind")

// Whatever is refused by mistake costs a handshake with crypto/tls. The figure is in
// docs/protocol.md.
//
//	go test ./ski -run TestHowOftenAnInputHasAFormByChance -v -forms 30000000
func TestHowOftenAnInputHasAFormByChance(t *testing.T) {
	r := rand.NewChaCha8([32]byte{1})
	for _, g := range []struct {
		group tls.CurveID
		most  float64
	}{{tls.X25519, 1. / 1e6}, {tls.CurveP256, 1. / 4e6}, {tls.CurveP384, 1. / 4e6}, {tls.CurveP521, 1. / 4e6}} {
		in := inputOf(g.group, "", "")
		draw := func() {
			r.Read(in[:64])
			r.Read(in[68:])
			if g.group != tls.X25519 {
				in[68] = 4
			}
		}
		// Inputs are drawn by the first byte, 0x30 or 0x31 in 1 of 128, and by a
		// second that can be a length, in 1 of 256 for each: otherwise it would
		// take thousands of millions.
		given := 0.
		for _, second := range []byte{byte(len(in) - 2), 0x80, 0x81, 0x82} {
			if second == byte(len(in)-2) && second >= 0x80 {
				continue
			}
			n := 0
			for range *formSamples {
				draw()
				in[0], in[1] = 0x30|in[0]&1, second
				if CheckForm(in) != nil {
					n++
				}
			}
			given += float64(n) / float64(*formSamples) / 256
		}
		any := 0 // of the rest, of which there should be nothing
		for range *formSamples {
			draw()
			if in[0]&^1 != 0x30 && CheckForm(in) != nil {
				any++
			}
		}
		short := 0 // first bytes that are right, with a short length that does not fit the whole
		for range *formSamples {
			draw()
			in[0] = 0x30 | in[0]&1
			in[1] &= 0x7f
			if in[1] != byte(len(in)-2) && CheckForm(in) != nil {
				short++
			}
		}
		p := given/128 + float64(short)/float64(*formSamples)/256
		t.Logf("%v: 1 in %.3g, of inputs with another first byte %d of %d", g.group, 1/p, any, *formSamples)
		require.Less(t, p, g.most, g.group)
		require.Zero(t, any)
	}
}
