package keyserver

import (
	"fmt"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/tlsski/tlsski/ski"
)

// Without 'hash', signatures are made with the hash that the protocol has for
// the key; all of these need a legacy switch. verify chooses by the protocol.
func TestDefaultHashes(t *testing.T) {
	keys := testKeys()
	s := newTestServer(t, keys)
	const sha1, md5sha1 = "SHA-1", "MD5+SHA-1"
	older := map[string]string{p256: sha1, p384: sha1, p521: sha1, rsa2048: md5sha1}
	newer := map[string]string{p256: sha1, p384: sha1, p521: sha1, rsa2048: sha1}
	for protocol, hashes := range map[ski.Protocol]map[string]string{
		ski.TLS10: older, ski.TLS11: older, ski.DTLS10: older, ski.TLS12: newer, ski.DTLS12: newer,
	} {
		for _, method := range []ski.Method{ski.MethodECDHE, ski.MethodDHE, ski.MethodECDHEPMS} {
			for name, hash := range hashes {
				if method == ski.MethodDHE && name != rsa2048 {
					continue
				}
				t.Run(fmt.Sprint(protocol, " ", method, " ", name), func(t *testing.T) {
					req := &ski.Request{Protocol: protocol, SPKI: keys.id(name), Method: method}
					switch method {
					case ski.MethodECDHE:
						req.Input = ecdhe(secp256r1, basePoint(secp256r1))
					case ski.MethodDHE:
						req.Input = dhInput("ffdhe2048")
					case ski.MethodECDHEPMS:
						req.Input, req.Group = randoms(), secp256r1
					}
					resp, rec := s.ask(legacyPeer, req)
					require.NoError(t, resp.Err(), rec.Reason)
					require.Equal(t, hash, rec.Hash)
					signed := *req
					signed.Input = append(signed.Input, resp.Params...)
					verify(t, keys, &signed, resp.Output)

					if method == ski.MethodECDHEPMS {
						point, secret := client(t, resp.Params)
						resp, rec = s.ask(legacyPeer, secondRequest(req, resp.State, point))
						require.Equal(t, secret, resp.Output)
						require.Equal(t, hash, rec.Hash)
					}
					resp, _ = s.ask(edgePeer, req)
					require.Equal(t, ski.RequestDenied, resp.Error)

					if !protocol.Is12() { // RFC 4346, Section 7.4.3, leaves no choice.
						req.Hash = ski.SHA256
						resp, rec = s.ask(legacyPeer, req)
						require.Equal(t, ski.MalformedRequest, resp.Error)
						require.Equal(t, "'hash' does not exist in this protocol", rec.Reason)
					}
				})
			}
		}
	}
}

// The PreMasterSecret of an older protocol begins with any version from it on.
func TestPreMasterSecretOfOlderProtocols(t *testing.T) {
	keys := testKeys()
	s := newTestServer(t, keys)
	pub := rsaPublic(keys)
	for protocol, versions := range map[ski.Protocol][]uint16{
		ski.TLS10: {0x0301, 0x0302, 0x0303}, ski.TLS11: {0x0302, 0x0303}, ski.DTLS10: {0xFEFF, 0xFEFD},
	} {
		for _, version := range versions {
			secret := preMasterSecret(version)
			req := &ski.Request{
				Protocol: protocol, SPKI: keys.id(rsa2048), Method: ski.MethodRSA,
				Input: rawEncrypt(pub, encodedMessage(pub, secret)),
			}
			for _, sent := range []uint16{0, version} {
				req.ClientVersion = sent
				resp, rec := s.ask(legacyPeer, req)
				require.Equal(t, secret, resp.Output, "%s 0x%04x", protocol, version)
				require.Equal(t, preMasterSecretCorrect, rec.PreMasterSecret)
			}
			resp, rec := s.ask(edgePeer, req)
			require.Equal(t, ski.RequestDenied, resp.Error)
			require.Equal(t, "no rule grants the protocol", rec.Reason)
		}
	}
}
