package logqueue

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"

	"log/slog"
	"os"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func text(w io.Writer) slog.Handler {
	return slog.NewTextHandler(w, &slog.HandlerOptions{Level: slog.LevelDebug})
}

// newQueue returns a Queue whose log nobody reads, a logger for it, and what
// reads the log to its end.
func newQueue(t *testing.T) (*Queue, *slog.Logger, func() []string) {
	r, w, err := os.Pipe()
	require.NoError(t, err)
	t.Cleanup(func() { r.Close(); w.Close() })
	q := New(w, text)
	q.patience = time.Minute // as long as a slow machine takes
	return q, slog.New(q.Handler()), func() []string {
		read := make(chan string)
		go func() {
			all, _ := io.ReadAll(r)
			read <- string(all)
		}()
		assert.NoError(t, q.Close())
		w.Close()
		all := <-read
		assert.True(t, strings.HasSuffix(all, "\n"), "the last line is whole")
		return strings.Split(strings.TrimSuffix(all, "\n"), "\n")
	}
}

// fill logs until a line is dropped.
func fill(t *testing.T, q *Queue, log *slog.Logger) {
	before := q.Dropped()
	for i := 0; q.Dropped() == before; i++ {
		require.Less(t, i, 1<<20, "the queue has no bound")
		log.Debug("filling", "i", i, "with", strings.Repeat("x", 100))
	}
}

func matching(lines []string, pattern string) (all []string) {
	for _, line := range lines {
		if regexp.MustCompile(pattern).MatchString(line) {
			all = append(all, line)
		}
	}
	return all
}

func TestALogThatNobodyReadsLosesLinesAndKeepsNobodyWaiting(t *testing.T) {
	q, log, read := newQueue(t)
	log.Info("first")
	fill(t, q, log)
	require.Eventually(t, func() bool { return q.Waits() > 0 }, time.Minute, time.Millisecond)
	before := time.Now()
	log.With("a", 1).WithGroup("g").Warn("edge suspended", "edge", "edge-1")
	after := time.Now()
	for range 1000 {
		log.Debug("nobody needs it")
		log.Error("the same again")
	}
	log.Error("the last")
	assert.LessOrEqual(t, q.size, maxWaiting)
	dropped := q.Dropped()
	assert.EqualValues(t, 1+1+2000+1, dropped)

	lines := read()
	assert.Contains(t, lines[0], "msg=first")
	said := matching(lines, `msg="log lines were dropped`)
	require.Len(t, said, 1)
	assert.Regexp(t, fmt.Sprintf(`level=WARN .* lines=%d first=\S+ last=\S+ repeated=3$`, dropped), said[0])
	assert.Empty(t, matching(lines, "nobody needs it"))
	assert.Len(t, matching(lines, "the same again"), 1, "once, however often it was logged")
	require.Len(t, matching(lines, `level=WARN msg="edge suspended" a=1 g\.edge=edge-1$`), 1)
	assert.Contains(t, lines[len(lines)-1], "the last", "in the order of their times")
	at := strings.TrimPrefix(strings.Fields(matching(lines, "edge suspended")[0])[0], "time=")
	logged, err := time.Parse(time.RFC3339, at)
	require.NoError(t, err)
	assert.WithinRange(t, logged, before.Truncate(time.Millisecond), after, "the time is when it was logged")
	assert.Zero(t, q.Waits())
}

// Who reads the log again gets new lines, too, and later gaps are said as the first.
func TestALogThatIsReadAgainGoesOn(t *testing.T) {
	r, w := io.Pipe()
	defer r.Close()
	q := New(w, text)
	log := slog.New(q.Handler())
	lines := make(chan string)
	until := func(text string) {
		for line := range lines {
			if strings.Contains(line, text) {
				return
			}
		}
	}
	reading, stop := make(chan bool), make(chan bool)
	go func() {
		for <-reading {
			buffer := make([]byte, maxPiece)
			for on := true; on; {
				n, _ := r.Read(buffer)
				for line := range strings.Lines(string(buffer[:n])) {
					select {
					case lines <- line:
					case <-stop:
						on = false
					}
				}
			}
		}
	}()
	for i := range 3 {
		fill(t, q, log)
		log.Warn("alarm", "number", i)
		reading <- true
		until("log lines were dropped")
		until(fmt.Sprint("msg=alarm number=", i))
		log.Info("new")
		until("msg=new")
		// What there is to read is read by nobody from here on.
		log.Info("more")
		stop <- true
	}
	close(reading)
}

// What fails is written when it can be, from the byte on where it failed.
func TestALogThatCannotBeWrittenIsWrittenLater(t *testing.T) {
	full := &fullDisk{}
	q := New(full, text)
	log := slog.New(q.Handler())
	log.Info("one")
	require.Eventually(t, func() bool { return q.Waits() > 0 }, time.Minute, time.Millisecond)
	log.Info("two")
	full.free()
	require.Eventually(t, func() bool { return q.Waits() == 0 }, time.Minute, time.Millisecond)
	require.NoError(t, q.Close())
	assert.Regexp(t, `^time=\S+ level=INFO msg=one\ntime=\S+ level=INFO msg=two\n$`, full.String())
	assert.Zero(t, q.Dropped())
}

// fullDisk takes three bytes, and no more until it is free.
type fullDisk struct {
	mu sync.Mutex
	strings.Builder
	room bool
}

func (f *fullDisk) free() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.room = true
}

func (f *fullDisk) Write(b []byte) (int, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.room {
		return f.Builder.Write(b)
	}
	n, _ := f.Builder.Write(b[:max(0, 3-f.Len())])
	return n, errors.New("no space left on device")
}

func TestCloseWritesTheLastLinesAndWaitsForNoReader(t *testing.T) {
	_, log, read := newQueue(t)
	for i := range 100 {
		log.Info("line", "i", i)
	}
	lines := read()
	assert.Len(t, lines, 100)
	log.Info("too late")

	q, log, _ := newQueue(t)
	q.patience = lastLines
	fill(t, q, log)
	assert.ErrorContains(t, q.Close(), "cannot be written in time")
	broken := New(&fullDisk{}, text)
	fmt.Fprintln(broken, "ski-keyserver: something is wrong")
	assert.NoError(t, broken.Close(), "there is nothing to wait for")
}

// No flood of one message, or of messages that come through the standard library's
// log, takes the place of others.
func TestAFloodOfOneMessageKeepsOutNoOther(t *testing.T) {
	q, logger, read := newQueue(t)
	fill(t, q, logger)
	for i := range 20 {
		logger.Warn("edge suspended", "edge", fmt.Sprint("edge-", i), "reason", strings.Repeat("x", 300))
	}
	std := slog.NewLogLogger(q.Handler(), slog.LevelWarn)
	nowhere := func(message string) { // as what comes after slog.SetDefault through package log
		require.ErrorIs(t, q.Handler().Handle(t.Context(), slog.NewRecord(time.Now(), slog.LevelInfo, message, 0)), errDropped)
	}
	for i := range 3000 {
		logger.Error("panic", "remote", i, "stack", strings.Repeat("y", 100))
		logger.Info("refused", "remote", i)
		std.Printf("http: TLS handshake error from %d", i)
		nowhere(fmt.Sprintf("unsolicited response starting with %d", i))
	}
	assert.LessOrEqual(t, q.kept.size, maxKept)
	lines := read()
	assert.Len(t, matching(lines, "edge suspended"), 20)
	for _, flood := range []string{"panic", "refused", "http: TLS handshake error from", "unsolicited response starting with"} {
		kept := matching(lines, flood)
		assert.NotEmpty(t, kept, flood)
		assert.Less(t, len(kept), 3000, flood)
		assert.Contains(t, kept[len(kept)-1], "2999", "the latest")
	}
}

func TestHundredsOfSuspensionsAreRepeatedWhateverElseIsLogged(t *testing.T) {
	q, log, read := newQueue(t)
	fill(t, q, log)
	for i := range 400 {
		log.Warn("alarm", "detector", "premaster-replay", "edge", fmt.Sprint("edge-", i), "address", "192.0.2.1:40213", "reason", strings.Repeat("x", 60))
		log.Warn("edge suspended", "edge", fmt.Sprint("edge-", i), "by", "the detector premaster-replay", "reason", strings.Repeat("x", 60))
		for j := range 10 {
			log.Info("session begins", "edge", i, "peer", j, "id", strings.Repeat("y", 64))
			log.Info("session ends", "edge", i, "peer", j, "id", strings.Repeat("y", 64))
		}
	}
	lines := read()
	assert.Len(t, matching(lines, "msg=alarm"), 400)
	assert.Len(t, matching(lines, "edge suspended"), 400)
}

// A line may be formatted while the gap that it was dropped in ends, and others fill
// the queue.
func TestALineThatIsKeptAfterItsGapIsWrittenWithoutAnother(t *testing.T) {
	q, log, read := newQueue(t)
	room := func() int {
		q.mu.Lock()
		defer q.mu.Unlock()
		return maxWaiting - q.size
	}
	for room() > 400 {
		log.Debug("filling", "with", strings.Repeat("x", 100))
	}
	require.Zero(t, q.Dropped())
	q.keep(&keptLine{line: []byte("late " + strings.Repeat("x", 400) + "\n"), when: time.Now()})
	assert.NotEmpty(t, matching(read(), "^late x"))
}

func TestLinesOfManyGoroutinesAreAllThereOrCounted(t *testing.T) {
	q, log, read := newQueue(t)
	var all sync.WaitGroup
	for i := range 8 {
		all.Go(func() {
			for j := range 2000 {
				log.Debug("line", "i", i, "j", j, "with", strings.Repeat("z", 60))
			}
		})
	}
	all.Wait()
	lines := read()
	written := len(matching(lines, `^time=\S+ level=DEBUG msg=line i=\d j=\d+ with=z{60}$`))
	assert.Positive(t, q.Dropped())
	assert.EqualValues(t, 16000, written+int(q.Dropped()))
	assert.Len(t, lines, written+1, "but for these there is one that says how many were dropped")
}

func TestALineLongerThanTheQueueIsDroppedAndSaid(t *testing.T) {
	_, log, read := newQueue(t)
	log.Info("long", "text", strings.Repeat("x", 2*maxWaiting))
	log.Info("after")
	lines := read()
	assert.NotEmpty(t, matching(lines, "log lines were dropped"))
	assert.NotEmpty(t, matching(lines, "msg=after"))
	assert.Zero(t, len(matching(lines, "msg=long")))
}

// A line that is kept apart costs more than others, while nobody reads the log.
func BenchmarkHandlerWhileNobodyReads(b *testing.B) {
	r, w, err := os.Pipe()
	require.NoError(b, err)
	defer r.Close()
	defer w.Close()
	q := New(w, text)
	log := slog.New(q.Handler()).With("site", "www.example.com")
	for q.Dropped() == 0 {
		log.Debug("filling", "with", strings.Repeat("x", 100))
	}
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		log.Info("handshake", "remote", "192.0.2.1:1234", "number", i)
	}
}

func TestLinesInJSONAreObjectsEach(t *testing.T) {
	r, w, err := os.Pipe()
	require.NoError(t, err)
	defer r.Close()
	q := New(w, func(w io.Writer) slog.Handler {
		return slog.NewJSONHandler(w, &slog.HandlerOptions{Level: slog.LevelDebug})
	})
	q.patience = time.Minute
	log := slog.New(q.Handler()).With("a", 1)
	fill(t, q, log)
	for range 3 {
		log.WithGroup("g").Error("policy refused", "error", "line 1\nline 2")
	}
	go func() {
		assert.NoError(t, q.Close())
		w.Close()
	}()
	messages := map[any]int{}
	for lines := bufio.NewScanner(r); lines.Scan(); {
		var object map[string]any
		require.NoError(t, json.Unmarshal(lines.Bytes(), &object), lines.Text())
		require.NotEmpty(t, object["time"])
		messages[object["msg"]]++
	}
	assert.Equal(t, 1, messages["policy refused"])
	assert.Equal(t, 1, messages["log lines were dropped, since the log was not read or could not be written"])
}

func BenchmarkHandler(b *testing.B) {
	q := New(io.Discard, text)
	for name, h := range map[string]slog.Handler{"queue": q.Handler(), "without": text(io.Discard)} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			log := slog.New(h).With("site", "www.example.com")
			for b.Loop() {
				log.Info("handshake", "remote", "192.0.2.1:1234", "version", "TLS 1.3")
			}
		})
	}
}
