// Package watch notices when files change.
package watch

import (
	"context"
	"crypto/sha256"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/fsnotify/fsnotify"
)

// settles is how long files must have been left alone: half of one, written
// where the old one was, could look whole. Tests have less patience.
var settles = 200 * time.Millisecond

// maxLinks bounds the symbolic links that are followed, as Linux does
// (path_resolution(7)).
const maxLinks = 40

// Files calls changed whenever one of the files has something else in it, until
// ctx ends. It calls names, for what to look at, again after each change. It
// looks at the folders of the files and of the links on the way to them, so that
// it sees what is put in the place of any. The error says why it cannot.
func Files(ctx context.Context, names func() []string, changed func(), log *slog.Logger) error {
	w, err := fsnotify.NewWatcher()
	if err != nil {
		return fmt.Errorf("watching files: %w", err)
	}
	defer w.Close()
	told := look(w, names())
	last := told
	timer := time.NewTimer(settles) // It may have changed before it was watched.
	defer timer.Stop()
	pending := true
	wake := func() {
		if !pending { // Others of the folders may be written all the time.
			pending = true
			timer.Reset(settles)
		}
	}
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-w.Events:
			wake()
		case err := <-w.Errors: // Events are lost: look.
			log.Warn("watching files", "error", err)
			wake()
		case <-timer.C:
			now := look(w, names())
			if now != last {
				last = now
				timer.Reset(settles)
				continue
			}
			pending = false
			if now != told {
				told = now
				changed()
			}
		}
	}
}

// look watches the folders of the files and returns a digest of what is in
// those. The folders come first: what changes afterwards is seen.
func look(w *fsnotify.Watcher, names []string) (digest [sha256.Size]byte) {
	seen := map[string]bool{}
	for _, name := range names {
		if abs, err := filepath.Abs(name); err == nil {
			watchFolders(w, abs, seen, 0)
		}
	}
	all := sha256.New()
	for _, name := range names {
		data, err := os.ReadFile(name)
		fmt.Fprintf(all, "%q %x %v\n", name, sha256.Sum256(data), err)
		clear(data)
	}
	return [sha256.Size]byte(all.Sum(nil))
}

// watchFolders watches the folder of a file, and of each link on the way to it.
// A folder that is not there cannot be watched, until it is.
func watchFolders(w *fsnotify.Watcher, file string, seen map[string]bool, links int) {
	if seen[file] {
		return
	}
	seen[file] = true
	_ = w.Add(filepath.Dir(file))
	for at := file; at != filepath.Dir(at); at = filepath.Dir(at) {
		target, err := os.Readlink(at)
		if err != nil || links == maxLinks {
			continue
		}
		_ = w.Add(filepath.Dir(at))
		if !filepath.IsAbs(target) {
			target = filepath.Join(filepath.Dir(at), target)
		}
		watchFolders(w, target+strings.TrimPrefix(file, at), seen, links+1)
	}
}
