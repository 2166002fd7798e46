package keyserver

import (
	"bytes"
	"context"
	"crypto"
	"crypto/rand"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/tlsski/tlsski/ski"
)

// syncBuffer is a log that can be read while it is written.
type syncBuffer struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (b *syncBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.text.Write(p)
}

func (b *syncBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.text.String()
}

// reloading is a Server whose policy is in a file.
type reloading struct {
	testServer
	*PolicyReloader
	log *syncBuffer
}

func newReloading(t *testing.T, file string) reloading {
	t.Helper()
	keys := testKeys()
	p, err := LoadPolicy(file, keys)
	require.NoError(t, err)
	log := new(syncBuffer)
	s := newTestServer(t, keys, func(o *Options) {
		o.Policy, o.Logger = p, slog.New(slog.NewTextHandler(log, nil))
	})
	return reloading{s, NewPolicyReloader(file, s.Server), log}
}

// watch lets the file be watched for the rest of the test.
func (r reloading) watch(t *testing.T) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error)
	go func() { ended <- r.Watch(ctx) }()
	t.Cleanup(func() {
		cancel()
		require.NoError(t, <-ended)
	})
}

func (r reloading) granted() bool {
	return r.ServeSKI(context.Background(), edgePeer, validRequest(testKeys())).Error == ""
}

func (r reloading) eventually(t *testing.T, granted bool) {
	t.Helper()
	require.Eventually(t, func() bool { return r.granted() == granted }, time.Minute, 10*time.Millisecond)
}

var (
	grants = []byte(oneRule("ECDHE"))
	denies = []byte(oneRule("RSA"))
)

// replace puts a file in the place of another, as a program should.
func replace(t *testing.T, file string, data []byte) {
	t.Helper()
	require.NoError(t, os.WriteFile(file+".new", data, 0o600))
	require.NoError(t, os.Rename(file+".new", file))
}

func TestPolicyReload(t *testing.T) {
	file := filepath.Join(folder(t, map[string][]byte{"policy.yaml": grants}), "policy.yaml")
	r := newReloading(t, file)
	require.True(t, r.granted())
	start := r.Status()
	require.Equal(t, PolicyStatus{Loads: 1, LoadedAt: start.LoadedAt}, start)
	require.WithinDuration(t, time.Now(), start.LoadedAt, 10*time.Second)

	replace(t, file, denies)
	require.NoError(t, r.Reload())
	require.False(t, r.granted())
	second := r.Status()
	require.EqualValues(t, 2, second.Loads)
	require.True(t, second.LoadedAt.After(start.LoadedAt))
	require.Contains(t, r.log.String(), `level=INFO msg="policy loaded"`)
	require.Contains(t, r.log.String(), "edges=1 rules=1")

	// Whatever is wrong with the file, nothing changes but the count.
	for i, bad := range []string{"edges: [\n", "", "edges: []\nrules:\n  - edges: [nobody]\n    keys: ['*']\n    methods: [ECDHE]\n"} {
		replace(t, file, []byte(bad))
		err := r.Reload()
		require.ErrorContains(t, err, "policy.yaml:")
		require.False(t, r.granted())
		now := r.Status()
		require.Equal(t, PolicyStatus{Loads: 2, Failures: uint64(i + 1), LoadedAt: second.LoadedAt, Err: err}, now)
	}
	require.Contains(t, r.log.String(), `level=ERROR msg="policy refused, the one before stays"`)
	require.Contains(t, r.log.String(), "policy.yaml:3:13: there is no edge called")

	replace(t, file, grants)
	require.NoError(t, os.Chmod(file, 0o666))
	require.ErrorContains(t, r.Reload(), "group or others can write it")
	require.NoError(t, os.Chmod(file, 0o600))
	require.NoError(t, r.Reload())
	require.True(t, r.granted())
	require.NoError(t, r.Status().Err)

	replace(t, file, []byte(oneRule("ECDHE", "legacy: [sha-1]")))
	require.NoError(t, r.Reload())
	require.Contains(t, r.log.String(), `level=WARN msg="unsafe choice" what="policy rule 1 allows legacy sha-1"`)
}

func TestPolicyWatch(t *testing.T) {
	t.Run("replaced by rename", func(t *testing.T) {
		file := filepath.Join(folder(t, map[string][]byte{"policy.yaml": grants}), "policy.yaml")
		r := newReloading(t, file)
		r.watch(t)
		for range 2 { // The second time it is another file that was watched.
			replace(t, file, denies)
			r.eventually(t, false)
			replace(t, file, grants)
			r.eventually(t, true)
		}
	})
	t.Run("written in place", func(t *testing.T) {
		file := filepath.Join(folder(t, map[string][]byte{"policy.yaml": grants}), "policy.yaml")
		r := newReloading(t, file)
		r.watch(t)
		require.NoError(t, os.WriteFile(file, denies, 0o600))
		r.eventually(t, false)
	})
	t.Run("before it was watched", func(t *testing.T) {
		file := filepath.Join(folder(t, map[string][]byte{"policy.yaml": grants}), "policy.yaml")
		r := newReloading(t, file)
		replace(t, file, denies)
		r.watch(t)
		r.eventually(t, false)
	})
	t.Run("removed and put back", func(t *testing.T) {
		file := filepath.Join(folder(t, map[string][]byte{"policy.yaml": grants}), "policy.yaml")
		r := newReloading(t, file)
		r.watch(t)
		require.NoError(t, os.Remove(file))
		require.Eventually(t, func() bool { return r.Status().Failures == 1 }, time.Minute, 10*time.Millisecond)
		require.True(t, r.granted(), "the one before stays")
		replace(t, file, denies)
		r.eventually(t, false)
	})
	// As Kubernetes does it: policy.yaml -> ..data/policy.yaml, and ..data, a
	// link to a folder, is replaced.
	t.Run("a link on the way", func(t *testing.T) {
		dir := folder(t, nil)
		version := func(name string, data []byte) {
			require.NoError(t, os.Mkdir(filepath.Join(dir, name), 0o700))
			require.NoError(t, os.WriteFile(filepath.Join(dir, name, "policy.yaml"), data, 0o600))
			require.NoError(t, os.Symlink(name, filepath.Join(dir, "..tmp")))
			require.NoError(t, os.Rename(filepath.Join(dir, "..tmp"), filepath.Join(dir, "..data")))
		}
		version("..1", grants)
		file := filepath.Join(dir, "policy.yaml")
		require.NoError(t, os.Symlink("..data/policy.yaml", file))
		r := newReloading(t, file)
		r.watch(t)
		version("..2", denies)
		r.eventually(t, false)
		// Now the target of another folder is what is written to.
		require.NoError(t, os.WriteFile(filepath.Join(dir, "..2", "policy.yaml"), grants, 0o600))
		r.eventually(t, true)
	})
	// As releases are switched: the folder of the file is a link.
	t.Run("the folder is a link", func(t *testing.T) {
		dir := folder(t, nil)
		current := filepath.Join(dir, "current")
		for name, data := range map[string][]byte{"1": grants, "2": denies} {
			require.NoError(t, os.Mkdir(filepath.Join(dir, name), 0o700))
			require.NoError(t, os.WriteFile(filepath.Join(dir, name, "policy.yaml"), data, 0o600))
		}
		release := func(name string) {
			require.NoError(t, os.Symlink(name, current+".new"))
			require.NoError(t, os.Rename(current+".new", current))
		}
		release("1")
		r := newReloading(t, filepath.Join(current, "policy.yaml"))
		r.watch(t)
		for range 2 {
			release("2")
			r.eventually(t, false)
			release("1")
			r.eventually(t, true)
		}
		require.NoError(t, os.WriteFile(filepath.Join(dir, "1", "policy.yaml"), denies, 0o600))
		r.eventually(t, false)
	})
	// Other files of the folder neither put the reload off nor make it happen.
	t.Run("a busy folder", func(t *testing.T) {
		dir := folder(t, map[string][]byte{"policy.yaml": grants})
		file := filepath.Join(dir, "policy.yaml")
		r := newReloading(t, file)
		r.watch(t)
		ctx, cancel := context.WithCancel(t.Context())
		var writing sync.WaitGroup
		writing.Go(func() {
			for ctx.Err() == nil {
				_ = os.WriteFile(filepath.Join(dir, "audit.log"), []byte("line\n"), 0o600)
				time.Sleep(time.Millisecond)
			}
		})
		defer writing.Wait()
		defer cancel()
		replace(t, file, denies)
		r.eventually(t, false)
		require.EqualValues(t, 2, r.Status().Loads)
		replace(t, file, []byte("edges: [\n"))
		require.Eventually(t, func() bool { return r.Status().Failures == 1 }, time.Minute, 10*time.Millisecond)
		time.Sleep(3 * policySettles)
		require.EqualValues(t, 1, r.Status().Failures, "one fault, one line in the log")
		require.Equal(t, 1, strings.Count(r.log.String(), "policy refused"))
	})
	t.Run("half a file", func(t *testing.T) {
		for !halfAFile(t) {
			t.Log("again: the machine stood still for longer than a writer may")
		}
	})
}

// halfAFile writes a policy bit by bit, each of which is valid, and checks that
// none comes into effect before the end. It returns false where the pauses
// between them were too long to tell.
func halfAFile(t *testing.T) bool {
	file := filepath.Join(folder(t, map[string][]byte{"policy.yaml": denies}), "policy.yaml")
	r := newReloading(t, file)
	r.watch(t)
	f, err := os.OpenFile(file, os.O_WRONLY|os.O_TRUNC, 0)
	require.NoError(t, err)
	defer f.Close()
	_, err = f.Write(grants)
	require.NoError(t, err)
	last := time.Now()
	for end := last.Add(2 * policySettles); time.Now().Before(end); time.Sleep(policySettles / 20) {
		granted := r.granted()
		if time.Since(last) > policySettles/2 {
			return false
		}
		require.False(t, granted)
		last = time.Now()
		_, err = f.WriteString("# to be limited\n")
		require.NoError(t, err)
	}
	_, err = f.WriteString("    networks: [198.51.100.0/24]\n")
	require.NoError(t, err)
	require.Eventually(t, func() bool { return r.Status().Loads == 2 }, time.Minute, 10*time.Millisecond)
	require.False(t, r.granted())
	return true
}

func TestPolicyWatchNeedsAFolder(t *testing.T) {
	dir := folder(t, map[string][]byte{"policy.yaml": grants})
	r := newReloading(t, filepath.Join(dir, "policy.yaml"))
	require.NoError(t, os.RemoveAll(dir))
	require.ErrorContains(t, r.Watch(t.Context()), "watching "+dir)
}

// A request is answered by one policy or the other, and never by parts of both:
// one grants the peer its name and a key, the other another name and key.
func TestPolicyIsReplacedAsAWhole(t *testing.T) {
	keys := testKeys()
	one := parsePolicy(t, "edges: [{name: one, dns: [edge.example.net]}]\nrules: [{edges: [one], keys: ["+p256+"], methods: [ECDHE]}]\n")
	two := parsePolicy(t, "edges: [{name: two, dns: [edge.example.net]}]\nrules: [{edges: [two], keys: ["+p384+"], methods: [ECDHE]}]\n")
	s := newTestServer(t, keys, func(o *Options) { o.Policy = one })
	ctx, cancel := context.WithCancel(t.Context())
	var swapping sync.WaitGroup
	swapping.Go(func() {
		for ctx.Err() == nil {
			s.SetPolicy(two)
			s.SetPolicy(one)
		}
	})
	defer swapping.Wait()
	defer cancel()
	for range 500 {
		req := validRequest(keys)
		rand.Read(req.Input[1 : 2*ski.RandomLen]) // Two edges never ask the same; what begins like BER is refused.
		resp, rec := s.ask(edgePeer, req)
		if rec.Edge == "one" {
			require.Empty(t, resp.Error, rec.Reason)
		} else {
			require.Equal(t, "two", rec.Edge)
			require.Equal(t, ski.RequestDenied, resp.Error)
		}
	}
}

// lookupStore tells when a request looks for its key.
type lookupStore struct {
	KeyStore
	looked func()
}

func (s lookupStore) Lookup(id ski.KeyID) (string, crypto.PublicKey, bool) {
	s.looked()
	return s.KeyStore.Lookup(id)
}

// The limits of a policy that comes in the middle of a request are not its.
func TestARequestEndsWithThePolicyItBegan(t *testing.T) {
	keys := testKeys()
	store := &lookupStore{KeyStore: keys, looked: func() {}}
	s := newTestServer(t, store)
	before := s.policy.Load()
	after := parsePolicy(t, testPolicy+"limits:\n  key: {rate: 0.001, burst: 1}\n")
	store.looked = func() { s.SetPolicy(after) }
	for range 3 {
		s.SetPolicy(before)
		resp, _ := s.ask(edgePeer, grantedRequest(keys))
		require.NoError(t, resp.Err())
	}
}
