package ski_test

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"log"
	"math/big"
	"net"
	"time"

	"github.com/tlsski/tlsski/ski"
)

// A TLS server whose private key is elsewhere: the certificate is made from a
// Transport to the key server, and a tls.Config takes it with GetCertificate.
func Example() {
	transport, chain := exampleKeyServer()

	cert, err := ski.NewCertificate(transport, chain...)
	if err != nil {
		log.Fatal(err)
	}
	config := &tls.Config{GetCertificate: cert.GetCertificate}

	clientSide, serverSide := net.Pipe()
	go func() {
		conn := tls.Server(serverSide, config)
		defer conn.Close()
		fmt.Fprint(conn, "hello")
	}()

	roots := x509.NewCertPool()
	roots.AddCert(cert.Leaf)
	client := tls.Client(clientSide, &tls.Config{RootCAs: roots, ServerName: "www.example.com"})
	greeting := make([]byte, 5)
	if _, err := client.Read(greeting); err != nil {
		log.Fatal(err)
	}
	fmt.Println(tls.VersionName(client.ConnectionState().Version), string(greeting))
	// Output:
	// key server: ECDHE for www.example.com
	// TLS 1.3 hello
}

// exampleKeyServer returns a certificate chain and the Transport to the
// Handler that has the key. A real one is a skicoap.Client, wrapped in a
// ski.Client for deadlines and failover.
func exampleKeyServer() (ski.Transport, [][]byte) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		log.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1),
		DNSNames:     []string{"www.example.com"},
		NotAfter:     time.Now().Add(time.Hour),
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		log.Fatal(err)
	}
	handler := ski.HandlerFunc(func(_ context.Context, _ ski.Peer, req *ski.Request) *ski.Response {
		fmt.Println("key server:", req.KeyExchange(), "for", req.ServerName)
		digest := sha256.Sum256(req.Input)
		signature, err := key.Sign(rand.Reader, digest[:], crypto.SHA256)
		if err != nil {
			return ski.Failed(ski.UnspecifiedError)
		}
		return &ski.Response{Output: signature}
	})
	return ski.Direct(handler, ski.Peer{}), [][]byte{der}
}
