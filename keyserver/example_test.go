package keyserver_test

import (
	"bytes"
	"context"
	"fmt"
	"net/netip"
	"strings"
	"time"

	"github.com/tlsski/tlsski/keyserver"
	"github.com/tlsski/tlsski/ski"
)

func ExampleAuditLog() {
	var out bytes.Buffer
	log := keyserver.NewAuditLog(&out)
	_ = log.Audit(context.Background(), &keyserver.Record{
		Time:              time.Date(2026, 3, 1, 12, 0, 0, 1234000, time.FixedZone("", 3600)),
		Edge:              "edge-1",
		Peer:              ski.PeerID{SPKI: ski.KeyID{0xaa}},
		Address:           netip.MustParseAddrPort("192.0.2.7:40000"),
		Key:               ski.KeyID{0xbb},
		KeyName:           "www.example.com",
		Protocol:          ski.TLS13,
		Method:            ski.MethodECDHE,
		Scheme:            "ecdsa_secp256r1_sha256",
		ClaimedServerName: "www.example.com",
		Outcome:           "request denied",
		Reason:            "no rule grants the server name",
		Duration:          1500 * time.Microsecond,
	})
	_, line, _ := strings.Cut(out.String(), "\n") // The first says where the log begins.
	line, _, _ = strings.Cut(line, `,"chain"`)
	fmt.Println(line)
	// Output:
	// {"seq":2,"time":"2026-03-01T11:00:00.001234Z","event":"request","edge":"edge-1","peer":"aa00000000000000000000000000000000000000000000000000000000000000","address":"192.0.2.7:40000","key":"bb00000000000000000000000000000000000000000000000000000000000000","key_name":"www.example.com","protocol":"TLS 1.3","method":"ECDHE","scheme":"ecdsa_secp256r1_sha256","claimed_server_name":"www.example.com","outcome":"request denied","reason":"no rule grants the server name","duration_us":1500
}
