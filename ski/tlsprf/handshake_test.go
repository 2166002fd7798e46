package tlsprf

import (
	"bytes"
	"context"
	"crypto/aes"
	"crypto/cipher"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/hmac"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha1"
	"crypto/tls"
	"crypto/x509"
	"encoding/binary"
	"math/big"
	"net"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// TestHandshake follows whole handshakes of crypto/tls with nothing but their
// bytes and, for the static RSA key exchange, the server's key: what the
// package derives must be the logged master secret, open both Finished messages
// and be the verify_data inside.
func TestHandshake(t *testing.T) {
	rsaKey, err := rsa.GenerateKey(rand.Reader, 2048)
	require.NoError(t, err)
	ecKey, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)

	rsaCert, ecdsaCert := selfSigned(t, &rsaKey.PublicKey, rsaKey), selfSigned(t, &ecKey.PublicKey, ecKey)

	for _, v := range []struct {
		version, suite uint16
		cert           tls.Certificate
		staticRSA      bool
	}{
		{tls.VersionTLS10, tls.TLS_RSA_WITH_AES_128_CBC_SHA, rsaCert, true},
		{tls.VersionTLS11, tls.TLS_RSA_WITH_AES_256_CBC_SHA, rsaCert, true},
		{tls.VersionTLS12, tls.TLS_RSA_WITH_AES_128_CBC_SHA, rsaCert, true},
		{tls.VersionTLS12, tls.TLS_RSA_WITH_AES_128_GCM_SHA256, rsaCert, true},
		{tls.VersionTLS12, tls.TLS_RSA_WITH_AES_256_GCM_SHA384, rsaCert, true},
		{tls.VersionTLS12, tls.TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256, ecdsaCert, false},
		{tls.VersionTLS12, tls.TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384, rsaCert, false},
	} {
		t.Run(tls.VersionName(v.version)+" "+tls.CipherSuiteName(v.suite), func(t *testing.T) {
			h := runHandshake(t, v.version, v.suite, v.cert)
			s, err := New(v.version, v.suite)
			require.NoError(t, err)
			transcript := s.PRF().New()
			transcript.Write(h.client[0]) // ClientHello
			for _, m := range h.server {
				transcript.Write(m)
			}
			transcript.Write(h.client[1]) // ClientKeyExchange

			if v.staticRSA {
				encrypted := h.client[1][4+2:] // without the lengths of the message and of itself
				//lint:ignore SA1019 This padding is what the key exchange has.
				pms, err := rsaKey.Decrypt(rand.Reader, encrypted, &rsa.PKCS1v15DecryptOptions{SessionKeyLen: 48})
				require.NoError(t, err)
				master, err := s.ExtendedMasterSecret(pms, transcript.Sum(nil))
				require.NoError(t, err)
				assert.Equal(t, h.masterSecret, master)
			}

			keys, err := s.Keys(h.masterSecret, h.clientRandom(), h.serverRandom())
			require.NoError(t, err)

			want, err := s.ClientFinished(h.masterSecret, transcript.Sum(nil))
			require.NoError(t, err)
			finished := open(t, v.version, h.clientFinished, keys.ClientMACKey, keys.ClientKey, keys.ClientIV)
			assert.Equal(t, append([]byte{20, 0, 0, VerifyDataLen}, want...), finished)

			transcript.Write(finished)
			want, err = s.ServerFinished(h.masterSecret, transcript.Sum(nil))
			require.NoError(t, err)
			finished = open(t, v.version, h.serverFinished, keys.ServerMACKey, keys.ServerKey, keys.ServerIV)
			assert.Equal(t, append([]byte{20, 0, 0, VerifyDataLen}, want...), finished)
		})
	}
}

// handshake is what went over the wire and into the key log.
type handshake struct {
	client, server                 [][]byte // handshake messages in the clear
	clientFinished, serverFinished []byte   // encrypted records, with their header
	masterSecret                   []byte
}

func (h *handshake) clientRandom() []byte { return h.client[0][4+2:][:RandomLen] }
func (h *handshake) serverRandom() []byte { return h.server[0][4+2:][:RandomLen] }

func runHandshake(t *testing.T, version, suite uint16, cert tls.Certificate) *handshake {
	var keyLog bytes.Buffer
	config := &tls.Config{
		Certificates:           []tls.Certificate{cert},
		MinVersion:             version,
		MaxVersion:             version,
		CipherSuites:           []uint16{suite},
		SessionTicketsDisabled: true,
		KeyLogWriter:           &keyLog,
	}
	clientSide, serverSide := net.Pipe()
	client, server := &recorder{Conn: clientSide}, &recorder{Conn: serverSide}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	served := make(chan error, 1)
	go func() { served <- tls.Server(server, config).HandshakeContext(ctx) }()
	require.NoError(t, tls.Client(client, &tls.Config{
		InsecureSkipVerify: true, // The keys are what is tested.
		MinVersion:         version,
		CipherSuites:       []uint16{suite},
	}).HandshakeContext(ctx))
	require.NoError(t, <-served)

	h := &handshake{}
	h.client, h.clientFinished = client.messages(t)
	h.server, h.serverFinished = server.messages(t)
	fields := bytes.Fields(keyLog.Bytes()) // CLIENT_RANDOM <client random> <master secret>
	require.Len(t, fields, 3)
	require.Equal(t, h.clientRandom(), unhex(t, string(fields[1])))
	h.masterSecret = unhex(t, string(fields[2]))
	return h
}

// recorder keeps what one side wrote.
type recorder struct {
	net.Conn
	written bytes.Buffer
}

func (r *recorder) Write(b []byte) (int, error) {
	r.written.Write(b)
	return r.Conn.Write(b)
}

// messages returns the handshake messages before the ChangeCipherSpec and the
// record after it.
func (r *recorder) messages(t *testing.T) (messages [][]byte, finished []byte) {
	const header = 5 // type, version, length
	var clear []byte
	data := r.written.Bytes()
	for {
		n := header + int(binary.BigEndian.Uint16(data[3:]))
		record := data[:n]
		data = data[n:]
		if record[0] == 20 { // change_cipher_spec
			break
		}
		clear = append(clear, record[header:]...)
	}
	for len(clear) > 0 {
		n := 4 + int(binary.BigEndian.Uint32(clear)&0xFFFFFF)
		messages = append(messages, clear[:n])
		clear = clear[n:]
	}
	require.NotEmpty(t, messages)
	return messages, data
}

// open decrypts the first encrypted record of a connection.
func open(t *testing.T, version uint16, record, macKey, key, iv []byte) []byte {
	header, payload := record[:5], record[5:]
	block, err := aes.NewCipher(key)
	require.NoError(t, err)
	seqAndHeader := func(length int) []byte {
		return slices.Concat(make([]byte, 8), header[:3], binary.BigEndian.AppendUint16(nil, uint16(length)))
	}
	if len(macKey) == 0 { // RFC 5288, Section 3
		aead, err := cipher.NewGCM(block)
		require.NoError(t, err)
		nonce, sealed := slices.Concat(iv, payload[:8]), payload[8:]
		plain, err := aead.Open(nil, nonce, sealed, seqAndHeader(len(sealed)-aead.Overhead()))
		require.NoError(t, err)
		return plain
	}
	if version != tls.VersionTLS10 { // RFC 5246, Section 6.2.3.2
		iv, payload = payload[:aes.BlockSize], payload[aes.BlockSize:]
	}
	plain := make([]byte, len(payload))
	cipher.NewCBCDecrypter(block, iv).CryptBlocks(plain, payload)
	plain = plain[:len(plain)-1-int(plain[len(plain)-1])]
	plain, tag := plain[:len(plain)-sha1.Size], plain[len(plain)-sha1.Size:]
	mac := hmac.New(sha1.New, macKey)
	mac.Write(seqAndHeader(len(plain)))
	mac.Write(plain)
	assert.Equal(t, mac.Sum(nil), tag)
	return plain
}

func selfSigned(t *testing.T, pub, key any) tls.Certificate {
	der, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{
		SerialNumber: big.NewInt(1),
		NotAfter:     time.Now().Add(time.Hour),
	}, &x509.Certificate{}, pub, key)
	require.NoError(t, err)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}
