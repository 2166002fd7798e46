// Package watch notices when files change.
package watch

import (
	"context"
	"crypto/sha256"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/fsnotify/fsnotify"
)

// settles is how long files must have been left alone: half of one, written
// where the old one was, could look whole. Tests have less patience.
var settles = 200 * time.Millisecond

// maxLinks bounds the symbolic links that are followed, as Linux does
// (path_resolution(7)).
const maxLinks = 40

// again is how often files are looked at that nothing is heard of: a file system
// that is mounted over them, or on another machine, makes no events.
const again = time.Minute

// Files calls changed whenever one of the files has something else in it, another
// mode or another owner, until ctx ends. It calls names, for what to look at, again after each change. It
// looks at the folders of the files and of the links on the way to them, so that
// it sees what is put in the place of any. A name with a slash at its end is a
// folder: it changes when files come and go in it. The error says why it cannot.
func Files(ctx context.Context, names func() []string, changed func(), log *slog.Logger) error {
	return files(ctx, names, changed, false, log)
}

// Eagerly is Files for a caller that looks by itself at what has changed, and can
// tell a file that is half written: no file is read here, and changed is also
// called while files change, so that one that takes long does not hold up the
// others, and where nothing has.
func Eagerly(ctx context.Context, names func() []string, changed func(), log *slog.Logger) error {
	return files(ctx, names, changed, true, log)
}

func files(ctx context.Context, names func() []string, changed func(), eager bool, log *slog.Logger) error {
	w, err := fsnotify.NewWatcher()
	if err != nil {
		return fmt.Errorf("watching files: %w", err)
	}
	defer w.Close()
	var told, last [sha256.Size]byte
	if !eager {
		told = look(w, names())
		last = told
	}
	timer := time.NewTimer(settles) // It may have changed before it was watched.
	defer timer.Stop()
	pending := true
	poll := time.NewTicker(again)
	defer poll.Stop()
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
		case <-poll.C:
			wake()
		case <-timer.C:
			if eager {
				watchAll(w, names())
				pending = false
				changed()
				continue
			}
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
				wake() // There may be other files to look at now, in other directories.
			}
		}
	}
}

// watchAll watches the folders of the files.
func watchAll(w *fsnotify.Watcher, names []string) {
	seen := map[string]bool{}
	for _, name := range names {
		if abs, err := filepath.Abs(name); err == nil {
			if strings.HasSuffix(name, "/") {
				abs += "/*" // any of the files in it
			}
			watchFolders(w, abs, seen, 0)
		}
	}
}

// look watches the folders of the files and returns a digest of what is in
// those. The folders come first: what changes afterwards is seen.
func look(w *fsnotify.Watcher, names []string) (digest [sha256.Size]byte) {
	watchAll(w, names)
	all := sha256.New()
	names = slices.Clone(names)
	slices.Sort(names)
	for _, name := range slices.Compact(names) {
		info, err := os.Stat(name)
		if err != nil || !info.Mode().IsRegular() || info.Size() > maxRead { // Opening a pipe would wait for its other end.
			fmt.Fprintf(all, "%q %v\n", name, err)
			if err == nil {
				fmt.Fprintln(all, info.Mode(), info.Size(), info.ModTime().UnixNano())
			}
			continue
		}
		data, err := os.ReadFile(name)
		fmt.Fprintf(all, "%q %x %v %v %d\n", name, sha256.Sum256(data), err, info.Mode(), info.Sys().(*syscall.Stat_t).Uid)
		clear(data)
	}
	return [sha256.Size]byte(all.Sum(nil))
}

// maxRead bounds the files that are read to see whether they have changed. Of a
// longer one, its length and its time tell.
const maxRead = 64 << 20

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
