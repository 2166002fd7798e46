package keyserver

import (
	"bytes"
	"crypto/x509"
	"encoding/binary"
	"encoding/pem"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/tlsski/tlsski/ski"
)

// opensslServer runs a TLS server of OpenSSL with a key and returns its
// address.
func opensslServer(t *testing.T, key any, args ...string) string {
	t.Helper()
	dir := t.TempDir()
	keyFile, certFile := filepath.Join(dir, "key.pem"), filepath.Join(dir, "cert.pem")
	der, err := x509.MarshalPKCS8PrivateKey(key)
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(keyFile, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), 0o600))
	out, err := exec.Command("openssl", "req", "-x509", "-key", keyFile, "-out", certFile, "-subj", "/CN=test", "-days", "1").CombinedOutput()
	require.NoError(t, err, "%s", out)
	free, err := net.Listen("tcp", "127.0.0.2:0") // whose ports no client's socket takes
	require.NoError(t, err)
	addr := free.Addr().String()
	require.NoError(t, free.Close())
	cmd := exec.Command("openssl", append([]string{"s_server", "-accept", addr, "-key", keyFile, "-cert", certFile, "-quiet"}, args...)...)
	cmd.Stderr = os.Stderr
	require.NoError(t, cmd.Start())
	t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	return addr
}

// serverKeyExchange greets a TLS server, offering one cipher suite and hash,
// and returns the randoms, the parameters that it sends and its signature on
// the two. RFC 5246, Section 7.4.
func serverKeyExchange(t *testing.T, addr string, version, suite, sigAlg uint16) (signed, signature []byte) {
	t.Helper()
	var conn net.Conn
	require.Eventually(t, func() (ok bool) {
		var err error
		conn, err = net.Dial("tcp", addr)
		return err == nil
	}, time.Minute, 20*time.Millisecond)
	defer conn.Close()
	require.NoError(t, conn.SetDeadline(time.Now().Add(time.Minute)))

	u16 := func(v ...int) (b []byte) {
		for _, n := range v {
			b = binary.BigEndian.AppendUint16(b, uint16(n))
		}
		return b
	}
	const supportedGroups, pointFormats, signatureAlgorithms = 10, 11, 13
	clientRandom := bytes.Repeat([]byte{0xC1}, 32)
	extensions := append(u16(supportedGroups, 6, 4, secp256r1, x25519, pointFormats, 2), 1, 0)
	if version == 0x0303 {
		extensions = append(extensions, u16(signatureAlgorithms, 4, 2, int(sigAlg))...)
	}
	hello := append(u16(int(version)), clientRandom...)
	hello = append(append(append(hello, 0), u16(2, int(suite))...), 1, 0)
	hello = append(append(hello, u16(len(extensions))...), extensions...)
	hello = append([]byte{1, 0}, append(u16(len(hello)), hello...)...)
	_, err := conn.Write(append(append([]byte{22, 3, 1}, u16(len(hello))...), hello...))
	require.NoError(t, err)

	var serverRandom, handshake []byte
	for {
		for len(handshake) < 4 || len(handshake) < 4+int(binary.BigEndian.Uint32(handshake)&0xFFFFFF) {
			header := make([]byte, 5)
			_, err := io.ReadFull(conn, header)
			require.NoError(t, err)
			fragment := make([]byte, binary.BigEndian.Uint16(header[3:]))
			_, err = io.ReadFull(conn, fragment)
			require.NoError(t, err)
			require.Equal(t, byte(22), header[0], "an alert: %x", fragment)
			handshake = append(handshake, fragment...)
		}
		n := int(binary.BigEndian.Uint32(handshake) & 0xFFFFFF)
		kind, body := handshake[0], handshake[4:4+n]
		handshake = handshake[4+n:]
		switch kind {
		case 2: // ServerHello
			require.Equal(t, version, binary.BigEndian.Uint16(body))
			serverRandom = body[2:34]
		case 12: // ServerKeyExchange
			length := int(body[3]) + 4 // of ServerECDHParams
			if suite>>8 == 0 {         // of ServerDHParams
				length = 0
				for range 3 {
					length += 2 + int(binary.BigEndian.Uint16(body[length:]))
				}
			}
			signature = body[length:]
			if version == 0x0303 {
				require.Equal(t, sigAlg, binary.BigEndian.Uint16(signature))
				signature = signature[2:]
			}
			require.Len(t, signature[2:], int(binary.BigEndian.Uint16(signature)))
			return bytes.Join([][]byte{clientRandom, serverRandom, body[:length]}, nil), signature[2:]
		}
	}
}

// The key server signs what a TLS server of OpenSSL with the same key signs,
// in the same way: the parameters are those of a real handshake, the RSA
// signatures equal and the ECDSA signatures, of which OpenSSL's are random, good.
func TestServerKeyExchangeOfOpenSSL(t *testing.T) {
	keys := testKeys()
	s := newTestServer(t, keys)
	const (
		ecdheRSA, ecdheECDSA, dheRSA = 0xC013, 0xC009, 0x0033 // with AES_128_CBC_SHA
		rsaSHA1, rsaSHA256           = 0x0201, 0x0401
		ecdsaSHA1, ecdsaSHA256       = 0x0203, 0x0403
	)
	methods := map[uint16]ski.Method{ecdheRSA: ski.MethodECDHE, ecdheECDSA: ski.MethodECDHE, dheRSA: ski.MethodDHE}
	for _, server := range []struct {
		key  string
		args []string
	}{
		{p256, nil},
		{rsa2048, nil}, // DHE with a group of RFC 3526
		{rsa2048, []string{"-dhparam", ffdheFile(t)}},
	} {
		private := keys.MemoryStore.keys[keys.id(server.key)].private
		addr := opensslServer(t, private, append(server.args, "-cipher", "ALL:@SECLEVEL=0")...)
		suites, sigAlgs := []uint16{ecdheRSA, dheRSA}, map[ski.Hash]uint16{"": rsaSHA1, ski.SHA256: rsaSHA256}
		if server.key == p256 {
			suites, sigAlgs = []uint16{ecdheECDSA}, map[ski.Hash]uint16{"": ecdsaSHA1, ski.SHA256: ecdsaSHA256}
		}
		for _, protocol := range []ski.Protocol{ski.TLS10, ski.TLS11, ski.TLS12} {
			for _, suite := range suites {
				for hash, sigAlg := range sigAlgs {
					if hash != "" && protocol != ski.TLS12 {
						continue
					}
					t.Run(fmt.Sprint(protocol, " ", methods[suite], " ", server.key, " ", hash, server.args), func(t *testing.T) {
						signed, signature := serverKeyExchange(t, addr, protocol.Wire(), suite, sigAlg)
						req := &ski.Request{Protocol: protocol, SPKI: keys.id(server.key), Method: methods[suite], Hash: hash, Input: signed}
						resp, rec := s.ask(legacyPeer, req)
						require.NoError(t, resp.Err(), rec.Reason)
						if server.key == rsa2048 {
							require.Equal(t, signature, resp.Output)
						}
						verify(t, keys, req, signature)
						verify(t, keys, req, resp.Output)
					})
				}
			}
		}
	}
}

// ffdheFile returns a file with DH parameters of RFC 7919.
func ffdheFile(t *testing.T) string {
	file := filepath.Join(t.TempDir(), "dh.pem")
	out, err := exec.Command("openssl", "genpkey", "-genparam", "-algorithm", "DH", "-pkeyopt", "group:ffdhe3072", "-out", file).CombinedOutput()
	require.NoError(t, err, "%s", out)
	return file
}
