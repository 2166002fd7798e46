package keyserver

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"log/slog"
	"math/big"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/tlsski/tlsski/ski"
)

// reload reads a directory again, at once.
func reload(t *testing.T, f *KeyFolder) []error {
	t.Helper()
	r, err := f.Reload(true)
	require.NoError(t, err)
	return r.Faults
}

// names returns the fingerprints by name.
func names(f *KeyFolder) map[string]ski.KeyID { return named(f.Store()).byName }

func idOf(t *testing.T, key crypto.Signer) ski.KeyID {
	id, err := ski.PublicKeyID(key.Public())
	require.NoError(t, err)
	return id
}

func TestAKeyFolderIsReadAgain(t *testing.T) {
	a, b, c := newECDSA(t, elliptic.P256()), newECDSA(t, elliptic.P256()), newRSA(t, 2048)
	dir := folder(t, map[string][]byte{"a.pem": pkcs8(t, a), "b.pem": pkcs8(t, b)})
	put := func(name string, data []byte, mode os.FileMode) {
		t.Helper()
		require.NoError(t, os.WriteFile(filepath.Join(dir, name), data, 0o600))
		require.NoError(t, os.Chmod(filepath.Join(dir, name), mode))
	}
	f, err := OpenKeyFolder(dir)
	require.NoError(t, err)
	first := f.Store()

	put("c.key", pkcs8(t, c), 0o600)
	require.NoError(t, os.Remove(filepath.Join(dir, "b.pem")))
	require.Empty(t, reload(t, f))
	require.Equal(t, map[string]ski.KeyID{"a": idOf(t, a), "c": idOf(t, c)}, names(f))
	require.Len(t, first.IDs(), 2, "what a request has found stays as it was")
	require.Same(t, first.keys[idOf(t, a)], f.Store().keys[idOf(t, a)], "a key that stays is not read again")

	// Files that cannot be used, of keys that are in use and of none.
	for name, bad := range map[string]struct {
		data []byte
		mode os.FileMode
		want string
	}{
		"empty":       {nil, 0o600, "it has no private key in PEM form"},
		"half":        {pkcs8(t, b)[:100], 0o600, "a PEM block that cannot be read"},
		"others read": {pkcs8(t, b), 0o644, "chmod 600"},
		"encrypted":   {pemBlock("ENCRYPTED PRIVATE KEY", []byte{1}), 0o600, "passphrase"},
		"same key":    {pkcs8(t, c), 0o600, "it is the same key as"},
	} {
		t.Run(name, func(t *testing.T) {
			put("new.pem", bad.data, bad.mode)
			faults := reload(t, f)
			require.Len(t, faults, 1)
			require.ErrorContains(t, faults[0], "new.pem: ")
			require.ErrorContains(t, faults[0], bad.want)
			require.Len(t, names(f), 2)
			if name == "same key" { // The file has no old key any more.
				return
			}
			put("a.pem", bad.data, bad.mode)
			require.Len(t, reload(t, f), 2)
			require.Equal(t, idOf(t, a), names(f)["a"])
			put("a.pem", pkcs8(t, a), 0o600)
		})
	}
	require.NoError(t, os.Remove(filepath.Join(dir, "new.pem")))

	// Two files exchange their keys.
	put("a.pem", pkcs8(t, c), 0o600)
	put("c.key", pkcs8(t, a), 0o600)
	require.Empty(t, reload(t, f))
	require.Equal(t, map[string]ski.KeyID{"a": idOf(t, c), "c": idOf(t, a)}, names(f))

	// A key under another name, beside the old one for a while.
	put("z.pem", pkcs8(t, a), 0o600)
	require.Len(t, reload(t, f), 1)
	require.Equal(t, idOf(t, a), names(f)["c"])
	require.NoError(t, os.Remove(filepath.Join(dir, "c.key")))
	require.Empty(t, reload(t, f))
	require.Equal(t, map[string]ski.KeyID{"a": idOf(t, c), "z": idOf(t, a)}, names(f))
}

// Files that have long been the same are not read each time, and a key is found
// that takes the place of another in the same file, of the same length and with its
// time.
func TestWhatHasNotChangedIsNotReadAgain(t *testing.T) {
	a, b := newECDSA(t, elliptic.P256()), newECDSA(t, elliptic.P256())
	dir := folder(t, map[string][]byte{"a.pem": pkcs8(t, a)})
	file := filepath.Join(dir, "a.pem")
	f, err := OpenKeyFolder(dir)
	require.NoError(t, err)
	again := func() (before, now *keyFile) {
		t.Helper()
		before = f.files["a.pem"]
		r, err := f.Reload(false)
		require.NoError(t, err)
		require.Empty(t, r.Faults)
		return before, f.files["a.pem"]
	}
	require.Eventually(t, func() bool { // The access time may have changed.
		before, now := again()
		return before.state.stat == now.state.stat
	}, time.Minute, time.Millisecond)
	before, now := again()
	require.NotSame(t, before, now, "it may be written within the time that the file system counts")
	now.state.since = now.state.since.Add(-statSettles)
	_, now = again()
	require.True(t, now.state.settled)
	before, now = again()
	require.Same(t, before, now)

	info, err := os.Stat(file)
	require.NoError(t, err)
	require.Len(t, pkcs8(t, b), int(info.Size()))
	require.NoError(t, os.WriteFile(file, pkcs8(t, b), 0o600))
	require.NoError(t, os.Chtimes(file, time.Time{}, info.ModTime()))
	again()
	require.Equal(t, map[string]ski.KeyID{"a": idOf(t, b)}, names(f))

	// A link is read each time: what it points at, and where that is, counts.
	require.NoError(t, os.Rename(file, filepath.Join(dir, "version1")))
	require.NoError(t, os.Symlink("version1", file))
	again()
	require.Zero(t, f.files["a.pem"].state)
	require.Equal(t, []string{dir + "/", file}, f.Watched())
}

// A file that is written in place is faulty for a moment: nobody is told at once,
// and whoever asks is.
func TestAFaultOfAKeyFileMaySettle(t *testing.T) {
	dir := folder(t, map[string][]byte{"a.pem": pkcs8(t, newECDSA(t, elliptic.P256()))})
	f, err := OpenKeyFolder(dir)
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(filepath.Join(dir, "a.pem"), nil, 0o600))
	r, err := f.Reload(false)
	require.NoError(t, err)
	require.Equal(t, FolderReload{Unsettled: true}, r)
	require.Len(t, reload(t, f), 1)
	f.faulty["a.pem"] = time.Now().Add(-keySettles)
	r, err = f.Reload(false)
	require.NoError(t, err)
	require.False(t, r.Unsettled)
	require.Len(t, r.Faults, 1)
	require.Len(t, f.Store().IDs(), 1)
}

func TestADirectoryThatCannotBeReadLosesNoKey(t *testing.T) {
	dir := folder(t, map[string][]byte{"a.pem": pkcs8(t, newECDSA(t, elliptic.P256()))})
	f, err := OpenKeyFolder(dir)
	require.NoError(t, err)
	keeps := func(want string) {
		t.Helper()
		_, err := f.Reload(true)
		require.ErrorContains(t, err, "all keys stay as they were: ")
		require.ErrorContains(t, err, want)
		require.Len(t, f.Store().IDs(), 1)
	}
	require.NoError(t, os.Chmod(dir, 0o777))
	keeps("group or others can write the folder")
	require.NoError(t, os.Chmod(dir, 0o700))
	require.NoError(t, os.Rename(dir, dir+".away"))
	keeps("no such file")
	require.NoError(t, os.Mkdir(dir, 0o700))
	f.device++ // as where another file system was mounted
	keeps("another file system is there, without keys")
	f.device--
	require.Empty(t, reload(t, f))
	require.Empty(t, f.Store().IDs())
}

// The private key of a file that is gone is overwritten, but not while it is used.
func TestAKeyThatIsGoneIsOverwritten(t *testing.T) {
	dir := folder(t, map[string][]byte{"a.pem": pkcs8(t, newECDSA(t, elliptic.P256())), "b.pem": pkcs8(t, newRSA(t, 2048))})
	f, err := OpenKeyFolder(dir)
	require.NoError(t, err)
	var numbers []*big.Int
	for _, k := range f.Store().keys {
		switch private := k.private.(type) {
		case *ecdsa.PrivateKey:
			//lint:ignore SA1019 There is no other way to look at it.
			numbers = append(numbers, private.D)
		default:
			continue
		}
	}
	require.Len(t, numbers, 1)
	inUse := f.Store()
	require.NoError(t, os.Remove(filepath.Join(dir, "a.pem")))
	require.Empty(t, reload(t, f))
	runtime.GC()
	require.NotZero(t, numbers[0].Sign())
	require.Len(t, inUse.IDs(), 2)
	inUse = nil
	require.Eventually(t, func() bool {
		runtime.GC()
		for _, word := range numbers[0].Bits() {
			if word != 0 {
				return false
			}
		}
		return true
	}, time.Minute, 10*time.Millisecond)
}

// A request that has begun with a key ends with it, although the key has gone
// meanwhile; the next is refused. The policy, which names the key, stays.
func TestARequestEndsWithTheKeyItBeganWith(t *testing.T) {
	keys := testKeys()
	log := new(syncBuffer)
	entered, release := make(chan bool), make(chan bool)
	hooked := hookStore{KeyStore: keys, sign: func(context.Context) ([]byte, error) {
		entered <- true
		<-release
		return []byte("signature"), nil
	}}
	s := newTestServer(t, hooked, func(o *Options) {
		var err error
		o.Policy, err = ParsePolicy("policy.yaml", []byte("edges: [{name: edge, dns: [edge.example.net]}]\n"+
			"rules: [{edges: [edge], keys: ["+p256+"], methods: [ECDHE]}]\nlimits: {keys: {"+p384+": {rate: 5}}}\n"), keys)
		require.NoError(t, err)
		require.Empty(t, o.Policy.Warnings(time.Now()))
		o.Logger = slog.New(slog.NewTextHandler(log, nil))
	})
	answer := make(chan *ski.Response, 1)
	go func() { answer <- s.ServeSKI(t.Context(), edgePeer, grantedRequest(keys)) }()
	<-entered
	empty := new(MemoryStore)
	require.NoError(t, s.SetKeys(empty))
	resp, _ := s.ask(edgePeer, grantedRequest(keys))
	require.Equal(t, ski.SPKINotFound, resp.Error)
	release <- true
	require.Equal(t, []byte("signature"), (<-answer).Output)

	require.Contains(t, log.String(), `msg="a key is gone" key=`+p256+" spki="+keys.id(p256).String())
	require.Contains(t, log.String(), "there is no key left")
	require.Contains(t, log.String(), `policy rule 1 names keys that are not there: \"`+p256)
	require.Contains(t, log.String(), `limits.keys names keys that are not there: \"`+p384)
	removed := 0
	for _, r := range s.trail.all() {
		if r.Event == EventKeyRemoved {
			removed++
		}
	}
	require.Equal(t, len(keys.byName), removed)
	require.Empty(t, s.policy.Load().Rights())
	require.EqualError(t, s.Health(), "there is no private key")

	require.NoError(t, s.SetKeys(keys))
	require.Len(t, s.policy.Load().Rights(), 1)
	require.NoError(t, s.Health())
	resp, _ = s.ask(edgePeer, grantedRequest(keys))
	require.Empty(t, resp.Error)
	require.Equal(t, 2, strings.Count(log.String(), "msg=keys "))
}

// Two stores have the same key, or two keys of one name: what was there stays,
// and what has come is named.
func TestStoresAreJoinedAgain(t *testing.T) {
	one, two := only(t, p256, p384), only(t, p521)
	before, err := JoinKeyStores(one, two)
	require.NoError(t, err)
	refuse := func(id ski.KeyID) error {
		if id == testKeys().id(ed) {
			return errNotInStore
		}
		return nil
	}
	// p521 now is in the first, too, which comes first.
	all, faults := JoinAgain(before, refuse, only(t, p256, p384, p521, ed), two)
	require.Len(t, faults, 2)
	require.Len(t, all.IDs(), 3)
	_, _, ok := all.Lookup(testKeys().id(ed))
	require.False(t, ok)
	all, faults = JoinAgain(before, nil, only(t, p256))
	require.Empty(t, faults)
	require.Len(t, all.IDs(), 1)
}
