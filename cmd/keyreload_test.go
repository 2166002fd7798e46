package cmd_test

import (
	"path/filepath"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"
)

// With a key server in its own process, too, an edge server serves a key that was
// made on the token while it runs, and none that was destroyed.
func TestKeysOfAnEmbeddedKeyServerComeAndGo(t *testing.T) {
	e := newEmbedded(t)
	p := e.start()
	e.must(filepath.Join(bin, "skictl"), "key", "generate", "--uri", e.uri(";object=new.test"), "--type", "ec-p256", "--usage", "sign")
	p.signal(syscall.SIGHUP)
	p.until(`msg="a key is new" keyserver=embedded key=new.test spki=[0-9a-f]{64}`)
	for _, kind := range []string{"privkey", "pubkey"} {
		e.must("pkcs11-tool", "--module", softHSM, "--token-label", "site-keys", "--login", "--pin", "12345678",
			"--delete-object", "--type", kind, "--label", "ec.test")
	}
	p.signal(syscall.SIGHUP)
	p.until(`msg="a key is gone" keyserver=embedded key=ec.test spki=`)
	p.until(`policy rule 1 names keys that are not there: \\"ec.test\\"`)
	all, status := p.curl("ec.test", "1.3")
	require.NotZero(t, status, all)
	all, status = p.curl("rsa.test", "1.3")
	require.Zero(t, status, all)
	require.Zero(t, p.stop())
}
