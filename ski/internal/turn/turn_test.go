package turn

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"io"
	"math/big"
	"net"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// waitingSigner signs when it is told to.
type waitingSigner struct {
	crypto.Signer
	asked, sign chan struct{}
}

func (s waitingSigner) Sign(random io.Reader, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	close(s.asked)
	<-s.sign
	return s.Signer.Sign(random, digest, opts)
}

// A peer's time begins anew with the server's answer, however long that took.
func TestAHandshakeHasItsTimeFromThePeersTurn(t *testing.T) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	require.NoError(t, err)
	signer := waitingSigner{key, make(chan struct{}), make(chan struct{})}

	peer, raw := net.Pipe()
	defer peer.Close()
	defer raw.Close()
	accepted := time.Now().Add(-time.Hour)
	c := New(raw, accepted)
	server := tls.Server(c, &tls.Config{
		Certificates:       []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: signer}},
		GetConfigForClient: Heard(func(conn net.Conn) *Conn { return conn.(*Conn) }),
	})
	assert.Equal(t, accepted, c.Since(), "before the ClientHello it is the peer's turn")
	done := make(chan error, 2)
	go func() { done <- server.Handshake() }()
	go func() { done <- tls.Client(peer, &tls.Config{InsecureSkipVerify: true}).Handshake() }()
	<-signer.asked
	for range 2 {
		before := time.Now()
		assert.False(t, c.Since().Before(before), "while the key server signs its peer cannot be late")
	}
	answered := time.Now()
	close(signer.sign)
	require.NoError(t, <-done)
	require.NoError(t, <-done)
	since := c.Since()
	assert.False(t, since.Before(answered))
	assert.Equal(t, since, c.Since(), "then it is the peer's turn for good")
}
