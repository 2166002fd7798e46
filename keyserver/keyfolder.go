package keyserver

import (
	"cmp"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/tlsski/tlsski/internal/guarded"
	"github.com/tlsski/tlsski/ski"
)

// KeyFolder has the private keys of a directory and can read it again. Its
// methods can be called by many goroutines at once.
type KeyFolder struct {
	dir string
	now atomic.Pointer[MemoryStore]

	reading sync.Mutex
	device  uint64               // the file system of the directory as it was last read
	files   map[string]*keyFile  // with a key, by name
	faulty  map[string]time.Time // since when files have been found so
}

// keyFile is a file with the key that it had when it was last whole.
type keyFile struct {
	state  fileState
	digest [sha256.Size]byte // of what is in it
	key    *memoryKey
}

// fileState tells whether a file may have changed, without reading it.
type fileState struct {
	stat    syscall.Stat_t // zero for what always has to be read
	since   time.Time      // when it was first found so
	settled bool           // it has been read long after that
}

// statSettles is how long a file must have been found the same, before what is in
// it is taken to be so: file systems count times in up to two seconds, and of two
// writes at one time the second is not seen.
const statSettles = 5 * time.Second

// stateOf returns the state of a file that is read from now on, after the one that
// it had. A link has none: what it points at counts, and the directory of that.
func stateOf(file string, before fileState) fileState {
	info, err := os.Lstat(file)
	if err != nil || !info.Mode().IsRegular() || info.ModTime().Unix() == 0 {
		return fileState{}
	}
	now := fileState{stat: *info.Sys().(*syscall.Stat_t), since: time.Now()}
	if now.stat == before.stat {
		now.since, now.settled = before.since, now.since.Sub(before.since) >= statSettles
	}
	return now
}

// keySettles is how long a file may be found faulty before it is said to be:
// it may be written at the moment.
const keySettles = time.Second

// OpenKeyFolder reads the private keys of a directory as LoadFolder does.
func OpenKeyFolder(dir string) (*KeyFolder, error) {
	f := &KeyFolder{dir: dir, faulty: make(map[string]time.Time)}
	names, device, err := f.list()
	if err != nil {
		return nil, err
	}
	f.files = make(map[string]*keyFile)
	for _, name := range names {
		one, err := f.read(name, nil, true)
		if err != nil {
			return nil, err
		}
		f.files[name] = one
	}
	store, faults := f.assemble(f.files, nil)
	switch {
	case len(faults) > 0:
		return nil, faults[0]
	case len(store.keys) == 0:
		return nil, fmt.Errorf("%s: no file with a key, *.pem or *.key", dir)
	}
	f.device = device
	f.now.Store(store)
	return f, nil
}

// Store returns the keys as they were last read. It does not change.
func (f *KeyFolder) Store() *MemoryStore { return f.now.Load() }

// Watched returns what to watch for changes: the directory, with a slash at its
// end, and the links in it, which have their keys elsewhere.
func (f *KeyFolder) Watched() []string {
	all := []string{filepath.Clean(f.dir) + "/"}
	entries, _ := os.ReadDir(f.dir)
	for _, e := range entries {
		if _, ok := keyFileName(e.Name()); ok && e.Type()&fs.ModeSymlink != 0 {
			all = append(all, filepath.Join(f.dir, e.Name()))
		}
	}
	return all
}

// FolderReload is what came of reading a directory again.
type FolderReload struct {
	// Faults say of each file why it cannot be used. The key that it had before,
	// if it had one, is still in the Store.
	Faults []error
	// Unsettled says that there are others, which may only be half written: it is
	// read again soon.
	Unsettled bool
}

// Reload reads the directory again. A key whose file is gone is not in the Store
// any more. A file that cannot be used, because it is half written, say, or
// others can read it, leaves the key in the Store that it had before. Where the
// directory cannot be read, or another file system is there that has no keys, all
// keys stay, and the error says so. Unless it is told to be impatient, it leaves
// out of the Faults what may be put right within a second, and does not read files
// again that have had the same inode, size, times, mode and owner for a while.
func (f *KeyFolder) Reload(impatient bool) (r FolderReload, err error) {
	f.reading.Lock()
	defer f.reading.Unlock()
	if err := guarded.CheckDir(f.dir); err != nil {
		return r, fmt.Errorf("all keys stay as they were: %w", err)
	}
	names, device, err := f.list()
	if err != nil {
		return r, fmt.Errorf("all keys stay as they were: %w", err)
	}
	if len(names) == 0 && device != f.device {
		return r, fmt.Errorf("all keys stay as they were: %s: another file system is there, without keys", f.dir)
	}
	files := make(map[string]*keyFile)
	faults := make(map[string]error)
	for _, name := range names {
		before := f.files[name]
		one, err := f.read(name, before, impatient)
		switch {
		case err == nil:
			files[name] = one
		case errors.Is(err, fs.ErrNotExist): // since it was listed, or it is a link to nothing
		default:
			faults[name] = err
			if before != nil {
				files[name] = before
			}
		}
	}
	if !maps.EqualFunc(files, f.files, func(a, b *keyFile) bool { return a.key == b.key }) {
		var store *MemoryStore
		store, r.Faults = f.assemble(files, f.files)
		f.now.Store(store)
	}
	f.device, f.files = device, files
	r.Unsettled = f.settle(faults, impatient)
	for _, name := range slices.Sorted(maps.Keys(faults)) {
		r.Faults = append(r.Faults, faults[name])
	}
	return r, nil
}

// settle takes those from the faults that have not been there for long.
func (f *KeyFolder) settle(faults map[string]error, impatient bool) (unsettled bool) {
	now := time.Now()
	since := make(map[string]time.Time)
	for name := range faults {
		began, ok := f.faulty[name]
		if !ok {
			began = now
		}
		since[name] = began
		if now.Sub(began) < keySettles && !impatient {
			unsettled = true
			delete(faults, name)
		}
	}
	f.faulty = since
	return unsettled
}

// list returns the names of the files that are for keys, and which file system
// the directory is on.
func (f *KeyFolder) list() (names []string, device uint64, err error) {
	info, err := os.Stat(f.dir)
	if err != nil {
		return nil, 0, err
	}
	entries, err := os.ReadDir(f.dir)
	if err != nil {
		return nil, 0, err
	}
	for _, e := range entries {
		if _, ok := keyFileName(e.Name()); !ok {
			continue
		}
		if e.IsDir() {
			continue
		}
		if !e.Type().IsRegular() { // It may be a link to a directory.
			if info, err := os.Stat(filepath.Join(f.dir, e.Name())); err == nil && info.IsDir() {
				continue
			}
		}
		names = append(names, e.Name())
	}
	return names, uint64(info.Sys().(*syscall.Stat_t).Dev), nil
}

// read reads one file. Where it is as it was before, so is its key. One that is
// seen to be so is read only if always is set.
func (f *KeyFolder) read(name string, before *keyFile, always bool) (*keyFile, error) {
	file := filepath.Join(f.dir, name)
	if before == nil {
		before = new(keyFile)
	}
	state := stateOf(file, before.state)
	if before.state.settled && state.settled && !always {
		return before, nil
	}
	data, err := readPrivateFile(file)
	if err != nil {
		return nil, err
	}
	defer clear(data)
	digest := sha256.Sum256(data)
	if before.key != nil && before.digest == digest {
		return &keyFile{state, digest, before.key}, nil
	}
	private, leaf, err := parseKey(data)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	called, _ := keyFileName(name)
	k, err := newMemoryKey(called, private, leaf)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	k.clearWhenUnused()
	return &keyFile{state, digest, k}, nil
}

// assemble makes the store of files. Of two that cannot both be in it, that stays
// whose file had the key before.
func (f *KeyFolder) assemble(files, before map[string]*keyFile) (store *MemoryStore, faults []error) {
	isNew := func(name string) int {
		if b := before[name]; b != nil && b.key.id == files[name].key.id {
			return 0
		}
		return 1
	}
	names := slices.SortedFunc(maps.Keys(files), func(a, b string) int {
		return cmp.Or(cmp.Compare(isNew(a), isNew(b)), strings.Compare(a, b))
	})
	store = &MemoryStore{keys: make(map[ski.KeyID]*memoryKey, len(files))}
	byName := make(map[string]*memoryKey, len(files))
	for _, name := range names {
		k := files[name].key
		for _, other := range []*memoryKey{store.keys[k.id], byName[k.name]} {
			if other == nil {
				continue
			}
			faults = append(faults, fmt.Errorf("%s: %w", filepath.Join(f.dir, name), k.conflict(other)))
			delete(files, name)
			break
		}
		if files[name] != nil {
			store.keys[k.id], byName[k.name] = k, k
		}
	}
	return store, faults
}
