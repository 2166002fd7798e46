package keyserver

import (
	"bytes"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha1"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/binary"
	"encoding/pem"
	"errors"
	"io"
	"math/big"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/fxamacker/cbor/v2"
	"github.com/stretchr/testify/require"

	"github.com/tlsski/tlsski/ski"
)

// The Sig_structure of a COSE_Sign1 (RFC 9052, Section 4.4) with ES256 and a
// payload that the edge chooses 46 bytes of.
func coseSign1(inputLen int) []byte {
	head := []byte("\x84\x6aSignature1\x43\xa1\x01\x26\x40\x58")
	return append(append(head, byte(inputLen-len(head)-1)), "the edge's own words"...)
}

func TestNoCOSESignatureIsMade(t *testing.T) {
	site := newP256(t)
	in := onX25519(filled(coseSign1(100)), nil)
	req := &ski.Request{Protocol: ski.TLS12, Method: ski.MethodECDHE, Hash: ski.SHA256, Input: in}
	refusesAttack(t, site, req, "a COSE Sig_structure", func([]byte) { verifiesAsCOSE(t, in) })

	// With the key server's own params behind it the payload ends otherwise.
	for group, length := range map[tls.CurveID]int{tls.X25519: 32, tls.CurveP256: 65, tls.CurveP384: 97, tls.CurveP521: 133} {
		randoms := filled(coseSign1(64 + 4 + length))
		verifiesAsCOSE(t, append(bytes.Clone(randoms), make([]byte, 4+length)...))
		refusesAttack(t, site, &ski.Request{Protocol: ski.TLS12, Method: ski.MethodECDHEPMS, Hash: ski.SHA256, Group: group, Input: randoms},
			"a COSE Sig_structure", nil)
	}
}

// Where it is the key server's own public key that gives the form, here in one of
// 16, it makes another.
func TestAnotherEphemeralKeyIsMadeWhereOneGivesAForm(t *testing.T) {
	keys := testKeys()
	s := newTestServer(t, keys)
	first := firstRequest(keys, tls.X25519)
	copy(first.Input, []byte{0x30, 98, 2, 64}) // so that the next element begins with the point
	found := 0
	for range 200 {
		point := make([]byte, 32)
		rand.Read(point)
		if ski.CheckForm(onX25519(first.Input, point)) != nil {
			found++
		}
		resp, rec := s.ask(edgePeer, first)
		require.Empty(t, resp.Error, rec.Reason)
		require.NoError(t, ski.CheckForm(slices.Concat(first.Input, resp.Params)))
	}
	require.NotZero(t, found, "with these randoms some points give the form")
}

// verifiesAsCOSE checks that the input is what a verifier encodes of a message
// with this payload.
func verifiesAsCOSE(t *testing.T, in []byte) {
	t.Helper()
	var parts []any
	require.NoError(t, cbor.Unmarshal(in, &parts))
	again, err := cbor.Marshal([]any{"Signature1", []byte{0xa1, 1, 0x26}, []byte{}, parts[3]})
	require.NoError(t, err)
	require.Equal(t, in, again)
	require.Contains(t, string(parts[3].([]byte)), "the edge's own words")
}

// A signature of a document, version 4, by an RSA key (RFC 9580, Section 5.2.4):
// the document is what comes before the hashed part of the signature.
func TestNoOpenPGPSignatureIsMade(t *testing.T) {
	site := newRSA(t, 2048)
	hashed := []byte{4, 0, 1, 8, 0, 6, 5, 2, 0x66, 0, 0, 0}
	trailer := []byte{4, 0xff, 0, 0, 0, byte(len(hashed))}
	in := onX25519(filled([]byte("a document of the edge's own\n")), slices.Concat(hashed, trailer))
	req := &ski.Request{Protocol: ski.TLS12, Method: ski.MethodECDHE, Hash: ski.SHA256, Input: in}
	refusesAttack(t, site, req, "content with an OpenPGP trailer", func(signature []byte) {
		dir := t.TempDir()
		packet := func(tag byte, body ...[]byte) []byte {
			b := bytes.Join(body, nil)
			return slices.Concat([]byte{0x80 | tag<<2 | 1, byte(len(b) >> 8), byte(len(b))}, b)
		}
		mpi := func(b []byte) []byte {
			n := new(big.Int).SetBytes(b)
			return append(binary.BigEndian.AppendUint16(nil, uint16(n.BitLen())), n.Bytes()...)
		}
		key := slices.Concat([]byte{4, 0x60, 0, 0, 0, 1}, mpi(site.N.Bytes()), mpi([]byte{1, 0, 1}))
		signed := func(hashed, content, signature []byte) []byte {
			digest := sha256.Sum256(content)
			return packet(2, hashed, []byte{0, 10, 9, 16}, openPGPKeyID(key), digest[:2], mpi(signature))
		}
		// The owner has made an OpenPGP key of it.
		certified := slices.Concat([]byte{4, 0x13}, hashed[2:])
		certification := slices.Concat([]byte{0x99, byte(len(key) >> 8), byte(len(key))}, key, []byte("\xb4\x00\x00\x00\x04site"), certified, trailer)
		own := signedByHand(t, site, &ski.Request{Protocol: ski.TLS12, Hash: ski.SHA256, Input: certification})
		for name, data := range map[string][]byte{
			"keyring": slices.Concat(packet(6, key), packet(13, []byte("site")), signed(certified, certification, own)),
			"sig":     signed(hashed, in, signature),
			"doc":     in[:len(in)-len(hashed)-len(trailer)],
		} {
			require.NoError(t, os.WriteFile(filepath.Join(dir, name), data, 0o600))
		}
		cmd := exec.Command("gpgv", "--homedir", dir, "--keyring", filepath.Join(dir, "keyring"), filepath.Join(dir, "sig"), filepath.Join(dir, "doc"))
		out, err := cmd.CombinedOutput()
		require.NoError(t, err, "%s", out)
		require.Contains(t, string(out), `Good signature from "site"`)
	})
	// The transcript hash of TLS 1.3 has room for one too.
	in = slices.Concat(certificateVerifyPrefix, make([]byte, 14), hashed, trailer)
	keys := testKeys()
	newTestServer(t, keys).refuses(&ski.Request{Protocol: ski.TLS13, SPKI: keys.id(p256), Scheme: tls.ECDSAWithP256AndSHA256, Input: in},
		ski.MalformedRequest, "OpenPGP")
}

// openPGPKeyID returns the key ID of version 4 (RFC 9580, Section 5.5.4.2).
func openPGPKeyID(key []byte) []byte {
	fingerprint := sha1.Sum(slices.Concat([]byte{0x99, byte(len(key) >> 8), byte(len(key))}, key))
	return fingerprint[12:]
}

// A certificate of SSH (PROTOCOL.certkeys of OpenSSH), in whose nonce dh_p is.
func TestNoSSHSignatureIsMade(t *testing.T) {
	site := newRSA(t, 2048)
	str := func(s string) []byte { return append(binary.BigEndian.AppendUint32(nil, uint32(len(s))), s...) }
	begin := append(str("ssh-ed25519-cert-v01@openssh.com"), 0, 0, 1, 64)
	in := dheInput("ffdhe2048", filled(begin), bytes.Repeat([]byte{7}, 200))
	refusesAttack(t, site, &ski.Request{Protocol: ski.TLS12, Method: ski.MethodDHE, Hash: ski.SHA256, Input: in}, "an SSH signature's content", nil)
	in = onX25519(filled([]byte("SSHSIG"), str("file"), str(""), str("sha512"), []byte{0, 0, 0, 64}), nil)
	refusesAttack(t, site, &ski.Request{Protocol: ski.TLS12, Hash: ski.SHA256, Input: in}, "an SSH signature's content", nil)
}

// A CertificateVerify of a TLS 1.2 client covers all handshake messages (RFC 5246,
// Section 7.4.8). dh_p and dh_g are in an extension of the ClientHello; the rest
// fits dh_Ys, so that the edge could be a client with the site's certificate.
func TestNoCertificateVerifyOfAClientIsMade(t *testing.T) {
	site := newRSA(t, 2048)
	const ysLen = 960 // with dh_p of 8192 bits
	var in []byte
	err := clientOfGo(t, site, ysLen, func(messages []byte) []byte {
		in = messages
		require.Greater(t, len(in), 64)
		req := &ski.Request{Protocol: ski.TLS12, Method: ski.MethodDHE, Hash: ski.SHA256, Input: in}
		signature := signedByHand(t, site, req)
		refusesAttack(t, site, req, "handshake messages of a TLS client", nil)
		return signature
	})
	require.ErrorContains(t, err, "unexpected", "the server took the CertificateVerify, and not what came after it")
	err = clientOfGo(t, site, ysLen, func([]byte) []byte { return make([]byte, 256) })
	require.ErrorContains(t, err, "invalid signature by the client certificate")
}

// DTLS has longer headers (RFC 6347, Section 4.2.6). Without a cookie the message_seq
// of the ClientHello is 0, with one it is 1.
func TestNoCertificateVerifyOfADTLSClientIsMade(t *testing.T) {
	site := newRSA(t, 2048)
	message := func(kind, seq byte, n int) []byte {
		return []byte{kind, 0, byte(n >> 8), byte(n), 0, seq, 0, 0, 0, 0, byte(n >> 8), byte(n)}
	}
	for seq := range byte(2) {
		rest := slices.Concat(message(2, seq, 70), make([]byte, 70), message(14, seq+1, 0), message(16, 2, 33), make([]byte, 33))
		const hello = 64 + 2 + 256 + 3 + 2 + 10 // to the tenth byte of dh_Ys
		ys := append(bytes.Repeat([]byte{7}, 10), rest...)
		in := dheInput("ffdhe2048", filled(message(1, seq, hello-12), []byte{0xfe, 0xfd}), ys)
		refusesAttack(t, site, &ski.Request{Protocol: ski.TLS12, Method: ski.MethodDHE, Hash: ski.SHA256, Input: in},
			"handshake messages of a TLS client", nil)
	}
}

// clientOfGo is a client of crypto/tls that authenticates itself with a signature
// over the messages from sign. It returns how the server's handshake has ended;
// after the CertificateVerify it gets a ClientHello.
func clientOfGo(t *testing.T, site *rsa.PrivateKey, ysLen int, sign func(messages []byte) []byte) error {
	t.Helper()
	serverKey, authority := newEd25519(t), newEd25519(t)
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour)}
	serverCert, err := x509.CreateCertificate(rand.Reader, template, template, serverKey.Public(), serverKey)
	require.NoError(t, err)
	issuer := &x509.Certificate{Subject: pkix.Name{CommonName: "a"}}
	clientCert := func(padding int) []byte {
		template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour),
			ExtraExtensions: []pkix.Extension{{Id: []int{2, 999, 1}, Value: make([]byte, padding)}}}
		cert, err := x509.CreateCertificate(rand.Reader, template, issuer, site.Public(), authority)
		require.NoError(t, err)
		return cert
	}

	listener, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer listener.Close()
	client, err := net.Dial("tcp", listener.Addr().String())
	require.NoError(t, err)
	defer client.Close()
	require.NoError(t, client.SetDeadline(time.Now().Add(time.Minute)))
	ended := make(chan error, 1)
	go func() {
		server, err := listener.Accept()
		if err != nil {
			ended <- err
			return
		}
		defer server.Close()
		ended <- tls.Server(server, &tls.Config{
			Certificates: []tls.Certificate{{Certificate: [][]byte{serverCert}, PrivateKey: serverKey}},
			ClientAuth:   tls.RequireAnyClientCert, MaxVersion: tls.VersionTLS12, CurvePreferences: []tls.CurveID{tls.X25519},
		}).Handshake()
	}()
	send := func(message []byte) {
		_, err := client.Write(slices.Concat([]byte{22, 3, 3, byte(len(message) >> 8), byte(len(message))}, message))
		require.NoError(t, err)
	}

	g, _ := dhGroupNamed("ffdhe8192")
	u16 := func(n int) []byte { return []byte{byte(n >> 8), byte(n)} }
	message := func(kind byte, body []byte) []byte { return slices.Concat([]byte{kind, 0}, u16(len(body)), body) }
	extensions := []byte{0, 13, 0, 6, 0, 4, 8, 7, 4, 1, 0, 10, 0, 4, 0, 2, 0, 29} // signature_algorithms, supported_groups
	params := slices.Concat(u16(1024), g.p.Bytes(), []byte{0, 1, 2}, u16(ysLen))
	fixed := slices.Concat([]byte{3, 3}, bytes.Repeat([]byte{0x77}, 32), []byte{0, 0, 2, 0xcc, 0xa9, 1, 0})
	pad := 64 - 4 - len(fixed) - 2 - 4 // of an extension that nobody knows
	extension := slices.Concat([]byte{0xfa, 0xfa}, u16(pad+len(params)), make([]byte, pad), params)
	hello := message(1, slices.Concat(fixed, u16(len(extension)+len(extensions)), extension, extensions))
	require.Equal(t, params, hello[64:64+len(params)])
	send(hello)

	transcript := hello
	for kind := byte(0); kind != 14; { // to the ServerHelloDone
		var header [5]byte
		_, err := io.ReadFull(client, header[:])
		if err != nil {
			return errors.Join(err, <-ended)
		}
		record := make([]byte, binary.BigEndian.Uint16(header[3:]))
		_, err = io.ReadFull(client, record)
		require.NoError(t, err)
		require.Equal(t, byte(22), header[0], "an alert: %x", record)
		transcript = append(transcript, record...)
		for rest := record; len(rest) > 0; rest = rest[4+int(binary.BigEndian.Uint16(rest[2:])):] {
			kind = rest[0]
		}
	}
	keyExchange := message(16, append([]byte{32}, bytes.Repeat([]byte{9}, 32)...))
	// The client's certificate is as long as is left of dh_Ys.
	whole := func(certificate []byte) []byte {
		u24 := func(n int) []byte { return append([]byte{0}, u16(n)...) }
		return message(11, slices.Concat(u24(len(certificate)+3), u24(len(certificate)), certificate))
	}
	left := 64 + len(params) + ysLen - len(transcript) - len(keyExchange)
	missing := left - len(whole(clientCert(0)))
	require.GreaterOrEqual(t, missing, 0, "the messages do not fit")
	certificate := whole(clientCert(missing))
	require.Len(t, certificate, left)
	send(certificate)
	send(keyExchange)
	transcript = slices.Concat(transcript, certificate, keyExchange)
	signature := sign(transcript)
	send(message(15, slices.Concat([]byte{4, 1}, u16(len(signature)), signature)))
	_, _ = client.Write(slices.Concat([]byte{22, 3, 3}, u16(len(hello)), hello)) // which may be closed
	_, _ = io.Copy(io.Discard, client)
	return <-ended
}

// What the documentation says stays possible: a file without a format, with a
// detached signature. docs/security.md says how many bytes of it an edge chooses.
func TestAScriptWithADetachedSignatureStaysPossible(t *testing.T) {
	site := newP256(t)
	store := new(MemoryStore)
	require.NoError(t, store.Add("site", site))
	s := newTestServer(t, store)
	in := onX25519(filled(append([]byte("#!/bin/sh\necho this was signed; exit 0 "), bytes.Repeat([]byte("#"), 25)...)), bytes.Repeat([]byte("#"), 32))
	req := &ski.Request{Protocol: ski.TLS12, SPKI: named(store).id("site"), Scheme: tls.ECDSAWithP256AndSHA256, Input: in}
	resp, rec := s.ask(edgePeer, req)
	require.Empty(t, resp.Error, rec.Reason)

	dir := t.TempDir()
	write := func(name string, data []byte) string {
		file := filepath.Join(dir, name)
		require.NoError(t, os.WriteFile(file, data, 0o600))
		return file
	}
	key := write("pub", pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: subjectPublicKeyInfo(t, site)}))
	script := write("update.sh", in)
	require.Contains(t, openssl(t, nil, "dgst", "-sha256", "-verify", key, "-signature", write("sig", resp.Output), script), "Verified OK")
	out, err := exec.Command("sh", script).CombinedOutput()
	require.NoError(t, err, "%s", out)
	require.Contains(t, string(out), "this was signed")
}

// In TLS 1.3 an edge chooses no byte before the transcript hash.
func TestTLS13SignsNothingElse(t *testing.T) {
	keys := testKeys()
	s := newTestServer(t, keys)
	for _, in := range [][]byte{
		append([]byte{0x31, 0x81, 198}, make([]byte, 198)...),
		bytes.Repeat([]byte{0x20}, 130),
		slices.Concat(bytes.Repeat([]byte{0x20}, 64), []byte("TLS 1.3, client CertificateVerify\x00"), make([]byte, 32)),
		slices.Concat(bytes.Repeat([]byte{0x20}, 64), []byte("TLS, server delegated credentials\x00"), make([]byte, 32)),
		onX25519(filled(coseSign1(100)), nil),
	} {
		s.refuses(&ski.Request{Protocol: ski.TLS13, SPKI: keys.id(p256), Scheme: tls.ECDSAWithP256AndSHA256, Input: in},
			ski.MalformedRequest, "not the content of a server's CertificateVerify")
	}
}
