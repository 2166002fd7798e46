package edgeserver

import (
	"bufio"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// newLogFiles returns logFiles, what they have lost, and their log.
func newLogFiles() (*logFiles, *atomic.Int64, *logBuffer) {
	lost, log := new(atomic.Int64), new(logBuffer)
	return &logFiles{kind: "access log", file: openLogFile, log: slog.New(slog.NewTextHandler(log, nil)), lost: func(n int) { lost.Add(int64(n)) }, patience: time.Minute}, lost, log
}

func linesOf(t *testing.T, file string) []string {
	data, err := os.ReadFile(file)
	require.NoError(t, err)
	if len(data) > 0 {
		require.True(t, strings.HasSuffix(string(data), "\n"), "the last line is whole")
	}
	return strings.Split(strings.TrimSuffix(string(data), "\n"), "\n")
}

func TestAccessLogLinesOfManyRequestsAreAllThere(t *testing.T) {
	files, lost, _ := newLogFiles()
	name := filepath.Join(t.TempDir(), "access.log")
	var all sync.WaitGroup
	want := []string{}
	for i := range 8 {
		for j := range 100 {
			want = append(want, fmt.Sprintf("%d: line %d", i, j))
		}
		f, err := files.use(name)
		require.NoError(t, err)
		all.Go(func() {
			for j := range 100 {
				f.write(fmt.Appendf(nil, "%d: line %d\n", i, j))
			}
			files.release(f)
		})
	}
	all.Wait()
	assert.ElementsMatch(t, want, linesOf(t, name))
	assert.Zero(t, lost.Load())
	assert.Empty(t, files.open)
}

// logrotate moves the file and sends SIGHUP.
func TestAccessLogIsReopened(t *testing.T) {
	files, _, log := newLogFiles()
	dir := t.TempDir()
	name, moved := filepath.Join(dir, "access.log"), filepath.Join(dir, "access.log.1")
	f, err := files.use(name)
	require.NoError(t, err)
	f.write([]byte("before\n"))
	exists := func(file string) func() bool {
		return func() bool { _, err := os.Stat(file); return err == nil }
	}
	require.Eventually(t, exists(name), time.Minute, time.Millisecond)
	require.NoError(t, os.Rename(name, moved))
	files.reopen()
	require.Eventually(t, exists(name), time.Minute, time.Millisecond)
	f.write([]byte("after\n"))
	files.release(f)
	assert.Equal(t, []string{"before"}, linesOf(t, moved))
	assert.Equal(t, []string{"after"}, linesOf(t, name))
	assert.Empty(t, log.String())

	f, err = files.use(name)
	require.NoError(t, err)
	f.write([]byte("again\n"))
	files.release(f)
	assert.Equal(t, []string{"after", "again"}, linesOf(t, name), "it is appended to")
}

func TestAccessLogWithoutItsFolderKeepsTheFileItHas(t *testing.T) {
	files, lost, log := newLogFiles()
	dir := filepath.Join(t.TempDir(), "log")
	require.NoError(t, os.Mkdir(dir, 0o700))
	name := filepath.Join(dir, "access.log")
	require.NoError(t, os.WriteFile(name, nil, 0o600))
	f, err := files.use(name)
	require.NoError(t, err)
	require.NoError(t, os.Rename(dir, dir+".old"))
	files.reopen()
	require.Eventually(t, func() bool { return strings.Contains(log.String(), "is not opened anew") }, time.Minute, time.Millisecond)
	f.write([]byte("line\n"))
	files.release(f)
	assert.Equal(t, []string{"line"}, linesOf(t, filepath.Join(dir+".old", "access.log")))
	assert.Zero(t, lost.Load())
}

func TestAccessLogThatCannotBeWrittenIsCounted(t *testing.T) {
	files, lost, log := newLogFiles()
	f, err := files.use("/dev/full")
	require.NoError(t, err)
	for range 3 {
		f.write([]byte("line\n"))
	}
	files.release(f)
	assert.EqualValues(t, 3, lost.Load())
	assert.Equal(t, 1, strings.Count(log.String(), "\n"), "one line of the log for all")
	assert.Contains(t, log.String(), `level=ERROR msg="access log: lines are lost" access_log=/dev/full error="write /dev/full: no space left on device"`)
	f.write([]byte("line\n"))
	assert.EqualValues(t, 4, lost.Load(), "after the end")
}

// Who reads standard output does not read. No request waits for it.
func TestAccessLogThatHangsLosesLinesAndKeepsNobodyWaiting(t *testing.T) {
	r, w, err := os.Pipe()
	require.NoError(t, err)
	files, lost, log := newLogFiles()
	files.patience = lastLines
	f, err := files.use("/dev/null")
	require.NoError(t, err)
	f.mu.Lock() // run has not been woken up
	f.out = w
	f.mu.Unlock()
	const lines = 3 * maxWaiting / 100
	line := []byte(strings.Repeat("x", 99) + "\n")
	for range lines {
		f.write(line)
	}
	assert.Positive(t, lost.Load())
	files.release(f)
	assert.Contains(t, log.String(), "too many lines wait")
	beforeEnd := lost.Load()
	assert.Greater(t, beforeEnd, int64(lines/2))

	read := make(chan int)
	go func() {
		data, _ := io.ReadAll(r)
		read <- len(data) / len(line)
	}()
	n := <-read
	assert.LessOrEqual(t, int64(lines), int64(n)+lost.Load(), "each line was written or counted")
}

// Under systemd standard output and standard error are one socket, in many containers
// one pipe.
func TestAccessLogLinesDoNotMixWithOthersOfTheSamePipe(t *testing.T) {
	r, w, err := os.Pipe()
	require.NoError(t, err)
	defer r.Close()
	fd, err := syscall.Dup(int(w.Fd()))
	require.NoError(t, err)
	other := os.NewFile(uintptr(fd), "other")
	all, _, _ := newLogFiles()
	all.file = func(string, bool) (*os.File, error) { return w, nil }
	f, err := all.use("pipe")
	require.NoError(t, err)
	for range 1000 {
		f.write([]byte("access " + strings.Repeat("x", 300) + "\n"))
	}
	var writers sync.WaitGroup
	writers.Go(func() {
		defer other.Close()
		for range 1000 {
			_, err := other.WriteString("log " + strings.Repeat("y", 100) + "\n")
			assert.NoError(t, err)
		}
	})
	writers.Go(func() { all.release(f) })
	lines := bufio.NewScanner(r)
	for lines.Scan() {
		require.Regexp(t, `^(access x{300}|log y{100})$`, lines.Text())
	}
	writers.Wait()
}

func TestAccessLogsThatAreNoFiles(t *testing.T) {
	files, _, _ := newLogFiles()
	dir := t.TempDir()
	pipe := filepath.Join(dir, "pipe")
	require.NoError(t, syscall.Mkfifo(pipe, 0o600))
	for name, want := range map[string]string{
		pipe:                               "is neither a file nor a character device",
		dir:                                "is neither a file nor a character device",
		filepath.Join(dir, "none", "file"): "no such file or directory",
		filepath.Join(pipe, "file"):        "not a directory",
	} {
		_, err := files.use(name)
		assert.ErrorContains(t, err, want, name)
	}
	file := filepath.Join(dir, "file")
	f, err := files.use(file)
	require.NoError(t, err)
	files.release(f)
	assert.NoFileExists(t, file, "nothing was written")
}
