package main

import (
	"bufio"
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/json"
	"io"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/tlsski/tlsski/keyserver"
)

const ticketsPolicy = `
edges: [{name: edge, dns: [edge]}, {name: other, dns: [other]}]
rules: [{edges: [edge], keys: ["*"], methods: [ECDHE]}]
tickets: [{name: www.example.com, edges: [edge]}, {name: shop.example.com, edges: [other]}]
`

// startTickets serves the ticket keys of the policy.
func startTickets(t *testing.T) (ks *keyserver.Server, keys keyserver.KeyStore, flags []string) {
	t.Helper()
	site, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	store := new(keyserver.MemoryStore)
	require.NoError(t, store.Add("www.example.com", site))
	policy, err := keyserver.ParsePolicy("policy.yaml", []byte(ticketsPolicy), store)
	require.NoError(t, err)
	ratchet, err := keyserver.OpenTicketRatchet("", bytes.Repeat([]byte{1}, keyserver.MinTicketSecret), time.Now())
	require.NoError(t, err)
	ks, err = keyserver.New(keyserver.Options{
		Keys: store, Policy: policy, Audit: keyserver.NewAuditLog(io.Discard), TicketRatchet: ratchet,
		Logger: slog.New(slog.DiscardHandler),
	})
	require.NoError(t, err)
	return ks, store, startHandler(t, ks)
}

func TestTickets(t *testing.T) {
	_, _, flags := startTickets(t)
	args := append([]string{"tickets"}, flags...)

	status, stdout, stderr := skictl(t, "", append(args, "www.example.com")...)
	require.Zero(t, status, stderr)
	lines := strings.Split(strings.TrimSpace(stdout), "\n")
	require.Len(t, lines, 6, stdout)
	assert.Equal(t, strings.Fields("SITE ID FROM TO UNTIL STATE"), strings.Fields(lines[0]))
	assert.Regexp(t, `^www\.example\.com +[0-9a-f]{16} .*Z +opens tickets$`, lines[1])
	assert.Contains(t, lines[4], "makes tickets")
	assert.Contains(t, lines[5], "next")

	status, stdout, stderr = skictl(t, "", append(args, "--json", "www.example.com")...)
	require.Zero(t, status, stderr)
	var line map[string]any
	require.NoError(t, json.Unmarshal([]byte(stdout), &line))
	for _, key := range line["keys"].([]any) {
		assert.Len(t, key, 5, "id, times and state, and never the key")
	}

	status, stdout, stderr = skictl(t, "", append(args, "shop.example.com")...)
	assert.Equal(t, 3, status)
	assert.Empty(t, stdout)
	assert.Contains(t, stderr, "request denied")

	status, _, stderr = skictl(t, "", append(args, "--endpoint", "https://127.0.0.1:1/ski", "www.example.com")...)
	assert.Equal(t, 1, status)
	assert.Contains(t, stderr, "only coaps:// and coaps+tcp://")
}

func TestTicketsAreFollowed(t *testing.T) {
	ks, keys, flags := startTickets(t)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	out, in := io.Pipe()
	ended := make(chan int, 1)
	go func() {
		ended <- run(ctx, append(append([]string{"tickets"}, flags...), "--follow", "--json", "www.example.com"), strings.NewReader(""), in, io.Discard)
		in.Close()
	}()
	lines := bufio.NewScanner(out)
	require.True(t, lines.Scan())
	first := lines.Text()
	policy, err := keyserver.ParsePolicy("policy.yaml", []byte(strings.Replace(ticketsPolicy, "edges: [edge]}, {name: shop", "edges: [edge], generation: 1}, {name: shop", 1)), keys)
	require.NoError(t, err)
	ks.SetPolicy(policy)
	require.True(t, lines.Scan())
	assert.NotEqual(t, first, lines.Text())
	cancel()
	assert.Zero(t, <-ended)
}
