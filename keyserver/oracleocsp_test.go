package keyserver

import (
	"bytes"
	"crypto"
	"encoding/asn1"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/crypto/ocsp"

	"github.com/tlsski/tlsski/ski"
)

// An OCSP response (RFC 6960, Section 4.2.1) fits 100 bytes for Go's reader, which
// looks neither at the issuer's hashes nor at the class of the ResponderID, nor at
// what follows the members that it knows.
func TestNoOCSPResponseIsSignedWithECDHE(t *testing.T) {
	const time = "\x18\x0f20261129000000Z"
	for name, responder := range map[string]string{
		"as it should be": "\xa2\x02\x04\x00", "primitive": "\x82\x02\x04\x00", "of another class": "\xc2\x02\x04\x00",
		"behind the version": "\xa0\x03\x02\x01\x00\x42\x02\x04\x00",
	} {
		// The issuer's name hash ends with what the edge does not choose.
		alg := "\x30\x07\x06\x05\x2b\x0e\x03\x02\x1a"
		nameHash := make([]byte, 68-2-len(responder+time+alg)-8)
		certID := alg + "\x04" + string([]byte{byte(len(nameHash))}) + string(nameHash) + "\x04\x00\x02\x01\x01"
		single := "\x30" + string([]byte{byte(len(certID))}) + certID + "\x80\x00" + time
		members := responder + time + "\x30" + string([]byte{byte(len(single) + 2)}) + "\x30" + string([]byte{byte(len(single))}) + single
		point := append([]byte(members[66:]), bytes.Repeat([]byte{0xff}, 98-len(members))...)
		in := onX25519(append([]byte{0x30, 98}, members[:62]...), point)

		for key, site := range map[string]crypto.Signer{"RSA": newRSA(t, 2048), "P-256": newP256(t)} {
			t.Run(name+" "+key, func(t *testing.T) {
				algorithm := sha256WithRSA
				if key == "P-256" {
					algorithm = []byte{0x30, 10, 6, 8, 0x2a, 0x86, 0x48, 0xce, 0x3d, 4, 3, 2}
				}
				issuer, _ := siteCertificate(t, site)
				req := &ski.Request{Protocol: ski.TLS12, Method: ski.MethodECDHE, Hash: ski.SHA256, Input: in}
				refusesAttack(t, site, req, "a BER SEQUENCE or SET", func(signature []byte) {
					bytesOf := struct {
						Type  asn1.ObjectIdentifier
						Basic []byte
					}{asn1.ObjectIdentifier{1, 3, 6, 1, 5, 5, 7, 48, 1, 1}, signedDER(t, in, algorithm, signature)}
					response := der(t, struct {
						Status asn1.Enumerated
						Bytes  any `asn1:"explicit,tag:0"`
					}{0, bytesOf})
					r, err := ocsp.ParseResponse(response, issuer)
					require.NoError(t, err)
					require.Equal(t, ocsp.Good, r.Status)
					require.True(t, slices.Equal(in, r.TBSResponseData))
				})
			})
		}
	}
}
