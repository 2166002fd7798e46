package keyparts

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/tlsski/tlsski/keyserver"
	"github.com/tlsski/tlsski/ski"
)

type noAudit struct{}

func (noAudit) Audit(context.Context, *keyserver.Record) error { return nil }

// newKeyFile writes a private key and returns its fingerprint.
func newKeyFile(t *testing.T, file string) ski.KeyID {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	der, err := x509.MarshalPKCS8PrivateKey(key)
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(file, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), 0o600))
	id, err := ski.PublicKeyID(key.Public())
	require.NoError(t, err)
	return id
}

// The key server's own key is renewed while the same key comes as a site's: of two
// that are read at once, the site's goes, although no file changes any more.
func TestAKeyThatIsRefusedWhileItComesIsNotServed(t *testing.T) {
	dir := t.TempDir()
	require.NoError(t, os.Chmod(dir, 0o700))
	id, other := newKeyFile(t, filepath.Join(dir, "a.pem")), newKeyFile(t, filepath.Join(dir, "b.pem"))
	log := slog.New(slog.DiscardHandler)
	keys, err := OpenKeys(&keyserver.Config{Keys: dir}, log)
	require.NoError(t, err)
	defer keys.Close()
	policy, err := keyserver.ParsePolicy("policy.yaml",
		[]byte("edges: [{name: edge, dns: [edge.test]}]\nrules: [{edges: [edge], keys: ['*'], methods: [ECDHE]}]\n"), keys.Store)
	require.NoError(t, err)
	server, err := keyserver.New(keyserver.Options{Keys: keys.Store, Policy: policy, Audit: noAudit{}, Logger: log})
	require.NoError(t, err)
	defer server.Close()
	r := NewReloader(keys, server, keyserver.AuditOptions{}, keyserver.NewMetrics("test"), log)
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		r.Run(ctx)
	}()
	// Once it has heard of this one, it has read the files that it watches.
	third := newKeyFile(t, filepath.Join(dir, "c.pem"))
	require.Eventually(t, func() bool { return server.HasKey(third) }, time.Minute, time.Millisecond)
	require.True(t, server.HasKey(id))
	r.Refuse(id, errors.New("it is the key server's own"))
	require.Eventually(t, func() bool { return !server.HasKey(id) }, time.Minute, time.Millisecond)
	require.True(t, server.HasKey(other))
	cancel()
	<-ended
}
