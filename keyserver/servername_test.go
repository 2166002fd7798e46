package keyserver

import (
	"bytes"
	"context"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"math/big"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/santhosh-tekuri/jsonschema/v6"
	"github.com/stretchr/testify/require"

	"github.com/tlsski/tlsski/ski"
)

// What docs/operations.md says of server_names: the name is the edge's own
// word. A rule for one name keeps an edge from a mistake, not from serving any
// name that the certificate has; and the audit log does not say more than that
// the edge claims it.
func TestTheServerNameIsTheEdgesWord(t *testing.T) {
	site := newECDSA(t, elliptic.P256())
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour), DNSNames: []string{"*.example.com"}}
	der, err := x509.CreateCertificate(rand.Reader, template, template, site.Public(), site)
	require.NoError(t, err)
	leaf, err := x509.ParseCertificate(der)
	require.NoError(t, err)
	store := new(MemoryStore)
	require.NoError(t, store.Add("wildcard", site))
	policy, err := ParsePolicy("policy.yaml", []byte(oneRule("ECDHE", "server_names: [www.example.com]")), store)
	require.NoError(t, err)

	for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
		for _, claim := range []string{"bank.example.com", "www.example.com"} {
			var log bytes.Buffer
			s, err := New(Options{Keys: store, Policy: policy, Audit: NewAuditLog(&log)})
			require.NoError(t, err)
			asking := ski.TransportFunc(func(ctx context.Context, req *ski.Request) (*ski.Response, error) {
				claiming := *req
				claiming.ServerName = claim
				return ski.Direct(s, edgePeer).RoundTrip(ctx, &claiming)
			})
			cert, err := ski.NewCertificate(asking, der)
			require.NoError(t, err)
			err = visit(t, &tls.Config{GetCertificate: cert.GetCertificate, MaxVersion: version}, "bank.example.com", leaf)

			var line map[string]any
			require.NoError(t, json.Unmarshal(bytes.TrimSpace(log.Bytes()[bytes.LastIndexByte(bytes.TrimSpace(log.Bytes()), '\n')+1:]), &line))
			require.Equal(t, claim, line["claimed_server_name"])
			require.NotContains(t, line, "server_name")
			if claim == "bank.example.com" {
				require.Error(t, err, "the edge that says what the client asked for")
				require.Equal(t, "no rule grants the server name", line["reason"])
				continue
			}
			require.NoError(t, err, "the edge that claims the name which it may serve")
			require.Equal(t, outcomeOutput, line["outcome"])
		}
	}
}

// visit returns what a TLS client of the name makes of a server.
func visit(t *testing.T, server *tls.Config, name string, root *x509.Certificate) error {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer l.Close()
	client, err := net.Dial("tcp", l.Addr().String())
	require.NoError(t, err)
	defer client.Close()
	accepted, err := l.Accept()
	require.NoError(t, err)
	defer accepted.Close()
	served := make(chan error, 1)
	go func() { served <- tls.Server(accepted, server).HandshakeContext(t.Context()) }()
	roots := x509.NewCertPool()
	roots.AddCert(root)
	conn := tls.Client(client, &tls.Config{ServerName: name, RootCAs: roots})
	if err := conn.HandshakeContext(t.Context()); err != nil {
		return err
	}
	return <-served
}

// A log of an older release calls the name server_name. The chain is what it
// was, and the schema has both.
func TestVerifyReadsLogsWithAServerNameThatIsNotCalledClaimed(t *testing.T) {
	schema, err := jsonschema.NewCompiler().Compile("../docs/audit.schema.json")
	require.NoError(t, err)
	var log bytes.Buffer
	tip := link{}
	for _, content := range []string{
		`{"seq":1,"time":"2026-03-01T11:00:00Z","event":"open","cause":"start","previous":"` + tip.hex() + `"`,
		`{"seq":2,"time":"2026-03-01T11:00:01Z","event":"request","edge":"edge-1","server_name":"www.example.com","outcome":"output","duration_us":1`,
	} {
		tip = tip.next([]byte(content))
		line := content + chainPrefix + tip.hex() + chainSuffix
		parsed, err := jsonschema.UnmarshalJSON(strings.NewReader(line))
		require.NoError(t, err)
		require.NoError(t, schema.Validate(parsed))
		log.WriteString(line + "\n")
	}
	v := new(AuditVerifier)
	require.NoError(t, v.File("audit.log", &log))
	v.End(true)
	require.Empty(t, v.Faults)
	require.EqualValues(t, 2, v.Lines)
}
