package edgeserver

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/tlsski/tlsski/internal/logqueue"
)

const (
	// maxWaiting is how many bytes of lines may wait to be written, while a disk
	// is slow or a reader of standard output does not read. What comes on top is
	// lost, and counted: requests do not wait for it.
	maxWaiting = 1 << 20
	// lastLines is how long a stop waits for the lines to be written, but in tests.
	lastLines = time.Second
)

// The names of an access log that is no file.
const (
	logOff    = "off"
	logStdout = "-" // as that of a key server's audit log
	logStderr = "stderr"
)

// logFiles are the files of one kind of log that are open, each once, whoever writes
// to it. A file is there until it is not used any more.
type logFiles struct {
	kind string // "access log"; with an underscore, the key in log
	file func(name string, create bool) (*os.File, error)
	lost func(lines int) // counts
	log  *slog.Logger

	patience time.Duration // of a stop; 0: lastLines

	mu   sync.Mutex
	open map[string]*logFile
}

// use returns the file of this name, which the caller releases. It makes none
// until there is a line to write: a check of the configuration leaves nothing behind.
func (all *logFiles) use(name string) (*logFile, error) {
	all.mu.Lock()
	defer all.mu.Unlock()
	if f, ok := all.open[name]; ok {
		f.users++
		return f, nil
	}
	out, err := all.file(name, false)
	if errors.Is(err, fs.ErrNotExist) {
		out, err = nil, checkFolder(name)
	}
	if err != nil {
		return nil, err
	}
	f := &logFile{
		name: name, users: 1, all: all, log: all.log.With(strings.ReplaceAll(all.kind, " ", "_"), name), out: out,
		wake: make(chan struct{}, 1), done: make(chan struct{}),
	}
	if all.open == nil {
		all.open = map[string]*logFile{}
	}
	all.open[name] = f
	go f.run()
	return f, nil
}

// release is for each file that use has returned. The last closes it, once its
// lines are written.
func (all *logFiles) release(f *logFile) {
	all.mu.Lock()
	f.users--
	last := f.users == 0
	if last {
		delete(all.open, f.name)
	}
	all.mu.Unlock()
	if last {
		f.close()
	}
}

// reopen has the files opened anew, since they may have been moved away.
func (all *logFiles) reopen() {
	all.mu.Lock()
	defer all.mu.Unlock()
	for _, f := range all.open {
		f.mu.Lock()
		f.anew = true
		f.wakeUp()
		f.mu.Unlock()
	}
}

// logFile is a file, or standard output or error, that lines are appended to by a
// goroutine of its own.
type logFile struct {
	name  string
	users int // guarded by that of logFiles
	all   *logFiles
	log   *slog.Logger

	mu      sync.Mutex
	waiting []byte
	anew    bool // the file is to be opened anew
	closed  bool
	missing int // lines lost since the last one that was written
	wake    chan struct{}
	done    chan struct{} // closed when run has ended

	out  *os.File // nil before the first line; run's own
	torn bool     // the last line in it is not whole; run's own
}

// write appends a line, its newline included. It does not wait for the disk.
func (f *logFile) write(line []byte) {
	if err := f.push(line); err != nil {
		f.lose(1, err)
	}
}

// push returns why the line is lost, or nil.
func (f *logFile) push(line []byte) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	switch {
	case f.closed:
		return errors.New("the request has ended too late")
	case len(f.waiting)+len(line) > maxWaiting:
		return errors.New("too many lines wait to be written")
	}
	f.waiting = append(f.waiting, line...)
	f.wakeUp()
	return nil
}

// wakeUp is called with mu held, and never after closed.
func (f *logFile) wakeUp() {
	if f.closed {
		return
	}
	select {
	case f.wake <- struct{}{}:
	default:
	}
}

// lose counts lines, and says so of the first. It is called without mu: who logs
// may wait.
func (f *logFile) lose(lines int, err error) {
	f.all.lost(lines)
	f.mu.Lock()
	first := f.missing == 0
	f.missing += lines
	f.mu.Unlock()
	if first {
		f.log.Error(f.all.kind+": lines are lost", "error", err)
	}
}

// found ends what lose has begun.
func (f *logFile) found() {
	f.mu.Lock()
	missing := f.missing
	f.missing = 0
	f.mu.Unlock()
	if missing > 0 {
		f.log.Warn(f.all.kind+": lines are written again", "lost", missing)
	}
}

// run writes what waits, as long as there may be something.
func (f *logFile) run() {
	defer close(f.done)
	var spare []byte
	for range f.wake {
		f.mu.Lock()
		lines, anew := f.waiting, f.anew
		f.waiting, f.anew = spare[:0], false
		f.mu.Unlock()
		f.append(lines)
		if anew {
			f.openAnew()
		}
		if spare = lines; cap(spare) > maxWaiting/16 {
			spare = nil // or the memory of a burst would stay
		}
	}
	if f.out != nil && f.out != os.Stdout && f.out != os.Stderr {
		f.out.Close()
	}
}

// append writes lines, and counts those that it cannot write.
func (f *logFile) append(lines []byte) {
	if len(lines) == 0 {
		return
	}
	err := error(nil)
	if f.out == nil {
		f.out, err = f.all.file(f.name, true)
	}
	if err == nil && f.torn {
		_, err = f.out.Write([]byte{'\n'})
		f.torn = err != nil
	}
	for err == nil && len(lines) > 0 {
		// Standard output may be the same pipe or socket as standard error.
		piece := logqueue.Piece(lines)
		n := 0
		n, err = f.out.Write(piece)
		f.torn = n > 0 && piece[n-1] != '\n'
		lines = lines[n:]
	}
	if err != nil {
		f.lose(bytes.Count(lines, []byte{'\n'}), err)
	} else {
		f.found()
	}
}

// openAnew goes over to the file that has the name now. Without one, it makes it.
func (f *logFile) openAnew() {
	if f.out == nil || f.out == os.Stdout || f.out == os.Stderr {
		return
	}
	out, err := f.all.file(f.name, true)
	if err != nil {
		f.log.Error(f.all.kind+": the file is not opened anew, lines go to the old one", "error", err)
		return
	}
	f.out.Close()
	f.out, f.torn = out, false
}

// close waits for the last lines to be written.
func (f *logFile) close() {
	f.mu.Lock()
	f.wakeUp()
	f.closed = true
	close(f.wake)
	f.mu.Unlock()
	select {
	case <-f.done:
	case <-time.After(cmp.Or(f.all.patience, lastLines)):
		f.mu.Lock()
		lines := bytes.Count(f.waiting, []byte{'\n'})
		f.mu.Unlock()
		f.lose(lines, errors.New("the last lines cannot be written in time"))
	}
}

// openLogFile opens a file to append to. What group may do with a new one is the
// umask's to say.
func openLogFile(name string, create bool) (*os.File, error) {
	switch name {
	case logStdout:
		return os.Stdout, nil
	case logStderr:
		return os.Stderr, nil
	}
	if err := checkKind(name); err != nil {
		return nil, err
	}
	return openToAppend(name, create, 0o640)
}

// checkKind refuses what is neither a file nor a character device, if it is there:
// to open a pipe would mean to wait for its other end.
func checkKind(name string) error {
	if info, err := os.Stat(name); err == nil && !info.Mode().IsRegular() && info.Mode()&fs.ModeCharDevice == 0 {
		return fmt.Errorf(`%s is neither a file nor a character device ("-" is standard output)`, name)
	}
	return nil
}

func openToAppend(name string, create bool, mode fs.FileMode) (*os.File, error) {
	flags := os.O_APPEND | os.O_WRONLY
	if create {
		flags |= os.O_CREATE
	}
	return os.OpenFile(name, flags, mode)
}

// checkFolder checks that a file could be made.
func checkFolder(file string) error {
	dir := filepath.Dir(file)
	info, err := os.Stat(dir)
	if err == nil && !info.IsDir() {
		err = fmt.Errorf("%s is not a folder", dir)
	}
	return err
}
