package main

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/tlsski/tlsski/ski"
)

// site is the private key of a site in a file.
type site struct {
	id  ski.KeyID
	pem []byte
}

func newSite(t *testing.T) site {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	file := filepath.Join(t.TempDir(), "key")
	require.NoError(t, writeKey(file, key))
	text, err := os.ReadFile(file)
	require.NoError(t, err)
	id, err := ski.PublicKeyID(&key.PublicKey)
	require.NoError(t, err)
	return site{id, text}
}

// put puts a key into a file, whole.
func (s site) put(t *testing.T, file string) {
	t.Helper()
	require.NoError(t, os.WriteFile(file+".new", s.pem, 0o600))
	require.NoError(t, os.Rename(file+".new", file))
}

// answer is what the key server says of a key: "" for a signature.
func (d *daemon) answer(id ski.KeyID) ski.Error {
	d.t.Helper()
	own := *d.req
	own.SPKI = id
	resp, err := d.client.RoundTrip(d.t.Context(), &own)
	require.NoError(d.t, err)
	return resp.Error
}

// until waits for an answer.
func (d *daemon) until(id ski.KeyID, want ski.Error) {
	d.t.Helper()
	require.Eventually(d.t, func() bool { return d.answer(id) == want }, 30*time.Second, 10*time.Millisecond)
}

// Within its sandbox: a key comes, another goes, and comes back by a signal, and
// all the while the others are served.
func TestKeysComeAndGoWhileTheKeyServerRuns(t *testing.T) {
	dir := t.TempDir()
	d := startDaemon(t, dir, "audit: {file: audit.log}", nil)
	first, second := d.req.SPKI, newSite(t)
	file := filepath.Join(dir, "keys", "second.test.pem")
	require.Equal(t, ski.SPKINotFound, d.answer(second.id))

	second.put(t, file)
	line := d.logged(`msg="a key is new"`)
	require.Contains(t, line, "key=second.test spki="+second.id.String())
	require.Contains(t, d.logged("msg=keys"), "new=1 gone=0 unchanged=2")
	require.Empty(t, d.answer(second.id))

	require.NoError(t, os.Remove(filepath.Join(dir, "keys", "ecdsa.test.pem")))
	require.Contains(t, d.logged(`msg="a key is gone"`), "key=ecdsa.test spki="+first.String())
	require.Equal(t, ski.SPKINotFound, d.answer(first))
	require.Empty(t, d.answer(second.id))

	d.signal(syscall.SIGHUP)
	d.logged(`msg="policy loaded"`)
	require.Equal(t, ski.SPKINotFound, d.answer(first))
	d.signal(syscall.SIGTERM)
	require.Zero(t, d.end())
	audit, err := os.ReadFile(filepath.Join(dir, "audit.log"))
	require.NoError(t, err)
	require.Contains(t, string(audit), `"event":"key-added","key":"`+second.id.String()+`","key_name":"second.test"`)
	require.Contains(t, string(audit), `"event":"key-removed","key":"`+first.String()+`","key_name":"ecdsa.test"`)
}

// The first half of another key is in the file of a key in use, for longer than
// files take to settle: the key goes on.
func TestAHalfWrittenFileLeavesTheKeyThatWasThere(t *testing.T) {
	dir := t.TempDir()
	d := startDaemon(t, dir, "audit: {file: audit.log}", nil)
	file, other := filepath.Join(dir, "keys", "ecdsa.test.pem"), newSite(t)
	old := d.req.SPKI
	f, err := os.OpenFile(file, os.O_WRONLY|os.O_TRUNC, 0)
	require.NoError(t, err)
	defer f.Close()
	half := len(other.pem) / 2
	_, err = f.Write(other.pem[:half])
	require.NoError(t, err)
	refused := make(chan string, 1)
	go func() {
		for line := range d.log {
			if strings.Contains(line, "level=ERROR") {
				refused <- line
				return
			}
		}
		close(refused)
	}()
	var line string
	for asked := 0; line == ""; asked++ {
		require.Empty(t, d.answer(old))
		select {
		case line = <-refused:
			require.Contains(t, line, "ecdsa.test.pem")
			require.Contains(t, line, "it has a PEM block that cannot be read")
		default:
		}
	}
	require.Empty(t, d.answer(old))
	_, err = f.Write(other.pem[half:])
	require.NoError(t, err)
	require.NoError(t, f.Close())
	d.until(other.id, "")
	require.Equal(t, ski.SPKINotFound, d.answer(old))
	d.signal(syscall.SIGTERM)
	require.Zero(t, d.end())
}

// As Kubernetes does it: the files are links into a directory that a link names,
// and that link is replaced.
func TestKeysBehindALinkThatIsReplaced(t *testing.T) {
	dir := t.TempDir()
	require.NoError(t, writeFiles(dir))
	at := func(names ...string) string { return filepath.Join(append([]string{dir, "keys"}, names...)...) }
	sites := []site{newSite(t), newSite(t)}
	for i, name := range []string{"..1", "..2"} {
		require.NoError(t, os.Mkdir(at(name), 0o700))
		sites[i].put(t, at(name, "www.test.pem"))
	}
	require.NoError(t, os.Symlink("..1", at("..data")))
	require.NoError(t, os.Symlink("..data/www.test.pem", at("www.test.pem")))
	d := startConfigured(t, dir, configYAML, nil)
	require.Empty(t, d.answer(sites[0].id))

	require.NoError(t, os.Symlink("..2", at("..next")))
	require.NoError(t, os.Rename(at("..next"), at("..data")))
	d.until(sites[1].id, "")
	require.Equal(t, ski.SPKINotFound, d.answer(sites[0].id))
	d.signal(syscall.SIGTERM)
	require.Zero(t, d.end())
}

// What takes all keys away in a moment by mistake is told from keys that were
// removed.
func TestAnUnreadableDirectoryTakesNoKeyAway(t *testing.T) {
	dir := t.TempDir()
	d := startDaemon(t, dir, "audit: {file: audit.log}", nil)
	keys := filepath.Join(dir, "keys")
	require.NoError(t, os.Rename(keys, keys+".away"))
	d.signal(syscall.SIGHUP)
	require.Contains(t, d.logged("level=ERROR msg=keys"), "all keys stay as they were: stat "+keys)
	require.Empty(t, d.ask().Error)

	require.NoError(t, os.Mkdir(keys, 0o700))
	d.signal(syscall.SIGHUP)
	d.logged("there is no key left")
	require.Equal(t, ski.SPKINotFound, d.ask().Error)

	require.NoError(t, os.Remove(keys))
	require.NoError(t, os.Rename(keys+".away", keys))
	d.until(d.req.SPKI, "") // without a signal
	d.signal(syscall.SIGTERM)
	require.Zero(t, d.end())
}

// Neither the key server's own key nor that of the audit log becomes a site's.
func TestTheKeyServersOwnKeyIsNotServed(t *testing.T) {
	dir := t.TempDir()
	d := startDaemon(t, dir, "audit: {file: audit.log}", nil)
	own, err := os.ReadFile(filepath.Join(dir, "keyserver.key"))
	require.NoError(t, err)
	site{pem: own}.put(t, filepath.Join(dir, "keys", "own.pem"))
	require.Contains(t, d.logged("level=ERROR msg=keys"), "own: an edge could sign as this key server")
	d.signal(syscall.SIGTERM)
	require.Zero(t, d.end())
}
