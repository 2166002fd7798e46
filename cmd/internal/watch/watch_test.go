package watch

import (
	"context"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func TestMain(m *testing.M) {
	settles = 100 * time.Millisecond // in which a busy machine does what a test does at once
	os.Exit(m.Run())
}

// watched is a folder, with files that are watched in it.
type watched struct {
	*testing.T
	dir     string
	mu      sync.Mutex
	names   []string
	changed chan struct{}
}

func start(t *testing.T, prepare func(*watched), names ...string) *watched {
	w := &watched{T: t, dir: t.TempDir(), changed: make(chan struct{}, 10)}
	prepare(w)
	w.look(names...)
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() {
		ended <- Files(ctx, func() []string {
			w.mu.Lock()
			defer w.mu.Unlock()
			return w.names
		}, func() { w.changed <- struct{}{} }, slog.New(slog.DiscardHandler))
	}()
	t.Cleanup(func() {
		cancel()
		assert.NoError(t, <-ended)
	})
	// It is watched once a change of what is watched is seen.
	for i := 0; ; i++ {
		w.write(names[0], "start "+time.Duration(i).String())
		select {
		case <-w.changed:
			w.quiet()
			return w
		case <-time.After(4 * settles):
			require.Less(t, i, 150)
		}
	}
}

func (w *watched) look(names ...string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.names = nil
	for _, name := range names {
		w.names = append(w.names, filepath.Join(w.dir, name))
	}
}

func (w *watched) write(name, text string) {
	require.NoError(w, os.WriteFile(filepath.Join(w.dir, name), []byte(text), 0o600))
}

// rename puts one thing in the place of another, whole.
func (w *watched) rename(from, to string) {
	require.NoError(w, os.Rename(filepath.Join(w.dir, from), filepath.Join(w.dir, to)))
}

func (w *watched) link(target, name string) {
	require.NoError(w, os.Symlink(target, filepath.Join(w.dir, name)))
}

func (w *watched) mkdir(name string) { require.NoError(w, os.Mkdir(filepath.Join(w.dir, name), 0o700)) }

func (w *watched) seen() {
	w.Helper()
	select {
	case <-w.changed:
	case <-time.After(time.Minute):
		require.Fail(w, "the change is not seen")
	}
}

// quiet drops what has been seen twice, since the watching began meanwhile.
func (w *watched) quiet() {
	for {
		select {
		case <-w.changed:
		case <-time.After(3 * settles):
			return
		}
	}
}

func TestFiles(t *testing.T) {
	w := start(t, func(w *watched) { w.write("a", "1") }, "a", "b")
	w.write("a", "2")
	w.seen()
	w.write("b", "1") // which was not there
	w.seen()
	w.write("new", "3")
	w.rename("new", "a")
	w.seen()
	require.NoError(t, os.Remove(filepath.Join(w.dir, "b")))
	w.seen()
	w.look("a", "c") // another configuration
	w.write("a", "4")
	w.seen()
	w.write("c", "1")
	w.seen()

	// What is written all the time beside them neither counts nor is in the way.
	ctx, cancel := context.WithCancel(t.Context())
	var busy sync.WaitGroup
	busy.Go(func() {
		for i := 0; ctx.Err() == nil; i++ {
			_ = os.WriteFile(filepath.Join(w.dir, "log"), []byte{byte(i)}, 0o600)
			time.Sleep(time.Millisecond)
		}
	})
	w.write("new", "5")
	w.rename("new", "a")
	w.seen()
	cancel()
	busy.Wait()
	assert.Empty(t, w.changed)
}

// As certbot and Kubernetes do: a link to a file, and a link to a folder, are
// replaced.
func TestLinks(t *testing.T) {
	w := start(t, func(w *watched) {
		for _, dir := range []string{"one", "two"} {
			w.mkdir(dir)
			w.write(dir+"/cert", dir)
		}
		w.link("one", "data")
		w.link("data/cert", "cert")
	}, "cert")
	w.link("two", "new")
	w.rename("new", "data")
	w.seen()
	w.write("two/cert", "renewed")
	w.seen()
	w.link(filepath.Join(w.dir, "one/cert"), "new")
	w.rename("new", "cert")
	w.seen()
}

// A change of the configuration can name files in other directories: they are watched
// from then on, not only once something else changes.
func TestFilesThatAChangeNamesAreWatchedAtOnce(t *testing.T) {
	w := &watched{T: t, dir: t.TempDir()}
	require.NoError(t, os.Mkdir(filepath.Join(w.dir, "live"), 0o700))
	w.write("live/chain", "1")
	w.write("config", "1")
	w.look("config")
	changed := make(chan struct{}, 100)
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	defer func() {
		cancel()
		assert.NoError(t, <-ended)
	}()
	go func() {
		ended <- Files(ctx, func() []string {
			w.mu.Lock()
			defer w.mu.Unlock()
			return w.names
		}, func() {
			w.look("config", "live/chain")
			changed <- struct{}{}
		}, slog.New(slog.DiscardHandler))
	}()
	seen := func(name string) {
		t.Helper()
		for i := 0; ; i++ {
			w.write(name, time.Duration(i).String())
			select {
			case <-changed:
				for range 2 { // What is new to the watcher is a change, too.
					select {
					case <-changed:
					case <-time.After(4 * settles):
					}
				}
				return
			case <-time.After(4 * settles):
				require.Less(t, i, 150)
			}
		}
	}
	seen("config")
	seen("live/chain")
}
