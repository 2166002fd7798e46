package edgeserver

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"time"
)

const (
	// maxWaiting is how many bytes of lines may wait to be written, while a disk
	// is slow or a reader of standard output does not read. What comes on top is
	// lost, and counted: requests do not wait for it.
	maxWaiting = 1 << 20
	// lastLines is how long a stop waits for the lines to be written.
	lastLines = time.Second
)

// The names of an access log that is no file.
const (
	logOff    = "off"
	logStdout = "-" // as that of a key server's audit log
	logStderr = "stderr"
)

// logFiles are the files of access logs that are open, each once, whoever writes
// to it. A file is there until it is not used any more.
type logFiles struct {
	lost func(lines int) // counts
	log  *slog.Logger

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
	out, err := openLogFile(name, false)
	if errors.Is(err, fs.ErrNotExist) {
		out, err = nil, checkFolder(name)
	}
	if err != nil {
		return nil, err
	}
	f := &logFile{
		name: name, users: 1, lost: all.lost, log: all.log.With("access_log", name), out: out,
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
	lost  func(lines int)
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
	f.mu.Lock()
	defer f.mu.Unlock()
	switch {
	case f.closed:
		f.lose(1, errors.New("the request has ended too late"))
		return
	case len(f.waiting)+len(line) > maxWaiting:
		f.lose(1, errors.New("too many lines wait to be written"))
		return
	}
	f.waiting = append(f.waiting, line...)
	f.wakeUp()
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

// lose counts lines. It is called with mu held.
func (f *logFile) lose(lines int, err error) {
	f.lost(lines)
	if f.missing == 0 {
		f.log.Error("access log: lines are lost", "error", err)
	}
	f.missing += lines
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
		f.out, err = openLogFile(f.name, true)
	}
	if err == nil && f.torn {
		_, err = f.out.Write([]byte{'\n'})
		f.torn = err != nil
	}
	n := 0
	if err == nil {
		n, err = f.out.Write(lines)
		f.torn = n > 0 && lines[n-1] != '\n'
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if err != nil {
		f.lose(bytes.Count(lines[n:], []byte{'\n'}), err)
	} else if f.missing > 0 {
		f.log.Warn("access log: lines are written again", "lost", f.missing)
		f.missing = 0
	}
}

// openAnew goes over to the file that has the name now. Without one, it makes it.
func (f *logFile) openAnew() {
	if f.out == nil || f.out == os.Stdout || f.out == os.Stderr {
		return
	}
	out, err := openLogFile(f.name, true)
	if err != nil {
		f.log.Error("access log: the file is not opened anew, lines go to the old one", "error", err)
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
	case <-time.After(lastLines):
		f.mu.Lock()
		defer f.mu.Unlock()
		f.lose(bytes.Count(f.waiting, []byte{'\n'}), errors.New("the last lines cannot be written in time"))
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
	// To open a pipe would mean to wait for its other end.
	if info, err := os.Stat(name); err == nil && !info.Mode().IsRegular() && info.Mode()&fs.ModeCharDevice == 0 {
		return nil, fmt.Errorf(`%s is neither a file nor a character device ("-" is standard output)`, name)
	}
	flags := os.O_APPEND | os.O_WRONLY
	if create {
		flags |= os.O_CREATE
	}
	return os.OpenFile(name, flags, 0o640)
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
