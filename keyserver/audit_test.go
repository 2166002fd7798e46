package keyserver

import (
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/tlsski/tlsski/ski"
)

func TestAuditLogLinesDoNotInterleave(t *testing.T) {
	file := filepath.Join(t.TempDir(), "audit.log")
	log := openAudit(t, AuditOptions{File: file})
	var wg sync.WaitGroup
	for i := range 20 {
		wg.Go(func() {
			for j := range 50 {
				r := &Record{Time: time.Now(), Edge: fmt.Sprintf("%d-%d", i, j), Reason: strings.Repeat("x", 50*i)}
				if err := log.Audit(t.Context(), r); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	require.NoError(t, log.Close())

	seen := make(map[string]bool)
	for _, line := range auditLines(t, file) {
		var r struct{ Edge, Event string }
		require.NoError(t, json.Unmarshal([]byte(line), &r), "%s", line)
		if r.Event == "request" {
			seen[r.Edge] = true
		}
	}
	require.Len(t, seen, 1000)
	v := verifyFiles(t, nil, file)
	require.Empty(t, v.Faults)
	require.Equal(t, 1000, v.Requests)
}

func checkAudit(file string) error {
	_, err := CheckAuditLog(AuditOptions{File: file})
	return err
}

func openAudit(t *testing.T, o AuditOptions) *AuditLog {
	t.Helper()
	o.Logger = slog.New(slog.DiscardHandler)
	log, err := OpenAuditLog(o)
	require.NoError(t, err)
	t.Cleanup(func() { _ = log.Close() })
	return log
}

// write audits requests of edges with these names.
func write(t *testing.T, log *AuditLog, edges ...string) {
	t.Helper()
	for _, edge := range edges {
		require.NoError(t, log.Audit(t.Context(), &Record{Time: time.Now(), Edge: edge, Outcome: outcomeOutput}))
	}
}

func auditLines(t *testing.T, file string) []string {
	t.Helper()
	data, err := os.ReadFile(file)
	require.NoError(t, err)
	return strings.Split(strings.TrimSuffix(string(data), "\n"), "\n")
}

func TestOpenAuditLog(t *testing.T) {
	file := filepath.Join(t.TempDir(), "audit.log")
	require.NoError(t, checkAudit(file))
	require.NoFileExists(t, file)
	for range 2 { // the second time it is appended to
		log := openAudit(t, AuditOptions{File: file})
		write(t, log, "edge")
		_, err := OpenAuditLog(AuditOptions{File: file})
		require.ErrorContains(t, err, "another process writes to it")
		require.NoError(t, checkAudit(file), "a check disturbs nobody")
		require.NoError(t, log.Close())
		require.ErrorIs(t, log.Audit(t.Context(), &Record{}), os.ErrClosed)
	}
	lines := auditLines(t, file)
	require.Len(t, lines, 6)
	require.Contains(t, lines[0], `"event":"open","cause":"start"`)
	require.Contains(t, lines[2], `"event":"checkpoint","cause":"stop"`)
	require.Contains(t, lines[3], `"event":"open","cause":"restart"`)
	info, err := os.Stat(file)
	require.NoError(t, err)
	require.Equal(t, os.FileMode(0o600), info.Mode())

	require.NoError(t, checkAudit("-"))
	log, err := OpenAuditLog(AuditOptions{File: "-"})
	require.NoError(t, err)
	require.NoError(t, log.Close())
}

// Each of these is refused, by OpenAuditLog and beforehand by CheckAuditLog.
func TestAuditFileThatIsNone(t *testing.T) {
	dir := t.TempDir()
	pipe := filepath.Join(dir, "pipe")
	require.NoError(t, syscall.Mkfifo(pipe, 0o600)) // To open it would wait for ever.
	other := filepath.Join(dir, "other")
	require.NoError(t, os.WriteFile(other, []byte("{}\n"), 0o600))
	for file, want := range map[string]string{
		filepath.Join(dir, "no", "audit.log"): "no such file",
		pipe:                                  "neither a regular file nor a character device",
		dir:                                   "neither a regular file nor a character device",
		other:                                 "it is not an audit log: move it away",
	} {
		require.ErrorContains(t, checkAudit(file), want)
		_, err := OpenAuditLog(AuditOptions{File: file})
		require.ErrorContains(t, err, want)
	}
}

func TestAuditFileThatOthersCanRead(t *testing.T) {
	file := filepath.Join(t.TempDir(), "audit.log")
	c := Config{Audit: AuditConfig{File: file}}
	require.Empty(t, c.Warnings())
	require.NoError(t, os.WriteFile(file, nil, 0o600))
	require.Empty(t, c.Warnings())
	require.NoError(t, os.Chmod(file, 0o640))
	require.Len(t, c.Warnings(), 1)
	require.Contains(t, c.Warnings()[0], "(mode 0640)")
}

// A record that the disk had no room for does not spoil the next, and the log
// says that there was one.
func TestAuditLogAfterTornLine(t *testing.T) {
	for room := range 300 {
		w := &fullWriter{room: 10000}
		log := NewAuditLog(w)
		write(t, log, "before")
		w.room = room
		var failed int
		for range 3 { // What says that a line was torn can be torn too.
			if log.Audit(t.Context(), &Record{Time: time.Now(), Edge: strings.Repeat("torn", 50)}) != nil {
				failed++
			}
			w.room += 7
		}
		require.Positive(t, failed)
		w.room = 10000
		write(t, log, "whole")
		require.NoError(t, log.Close())
		var v AuditVerifier
		require.NoError(t, v.File("log", strings.NewReader(w.String())))
		v.End(false)
		require.Empty(t, v.Faults, "room for %d:\n%s", room, w.String())
		require.Equal(t, 2+3-failed, v.Requests)
	}
}

// A crash can leave the beginning of a line, at any byte.
func TestAuditLogAfterCrash(t *testing.T) {
	whole := filepath.Join(t.TempDir(), "audit.log")
	log := openAudit(t, AuditOptions{File: whole})
	write(t, log, "first", "last")
	require.NoError(t, log.Close())
	data, err := os.ReadFile(whole)
	require.NoError(t, err)
	for n := range len(data) + 1 {
		file := filepath.Join(t.TempDir(), "audit.log")
		require.NoError(t, os.WriteFile(file, data[:n], 0o600))
		log := openAudit(t, AuditOptions{File: file})
		write(t, log, "after")
		require.NoError(t, log.Close())
		v := verifyFiles(t, nil, file)
		require.Empty(t, v.Faults, "the first %d bytes", n)
	}
}

// fullWriter has room for some bytes more.
type fullWriter struct {
	bytes.Buffer
	room int
}

func (w *fullWriter) Write(p []byte) (int, error) {
	n := min(w.room, len(p))
	w.room -= n
	w.Buffer.Write(p[:n])
	if n < len(p) {
		return n, errors.New("no space left on device")
	}
	return n, nil
}

// The lines of a right and a wrong PreMasterSecret have one length, and none
// holds input or output.
func TestAuditLinesOfRSA(t *testing.T) {
	keys := testKeys()
	var out bytes.Buffer
	s := newTestServer(t, keys, func(o *Options) { o.Audit = fixedTime{NewAuditLog(&out)} })
	var lengths []int
	pub := rsaPublic(keys)
	for _, p := range plaintexts(pub) {
		out.Reset()
		input := rawEncrypt(pub, p.em)
		resp := s.ServeSKI(t.Context(), edgePeer, &ski.Request{Protocol: ski.TLS12, SPKI: keys.id(rsa2048), Method: ski.MethodRSA, Input: input})
		require.Empty(t, resp.Error)
		require.Contains(t, out.String(), `"premaster_secret":"`+p.found+`"`)
		for _, secret := range [][]byte{input, resp.Output} {
			requireNoTrace(t, out.String(), secret)
		}
		_, line, _ := strings.Cut(out.String(), `"event":"request"`) // what is before it grows
		lengths = append(lengths, len(line))
	}
	for _, l := range lengths {
		require.Equal(t, lengths[0], l)
	}
}

// requireNoTrace fails where eight bytes of a secret, after the first two, are
// in text: as they are, in hex or, whatever comes before them, in base64.
func requireNoTrace(t *testing.T, text string, secret []byte) {
	t.Helper()
	for at := 2; at+8 <= len(secret); at++ {
		part := secret[at : at+8]
		require.NotContains(t, text, string(part))
		require.NotContains(t, strings.ToLower(text), hex.EncodeToString(part))
		// The first characters and the last depend on what is around.
		require.NotContains(t, text, base64.RawStdEncoding.EncodeToString(part)[:10])
		require.NotContains(t, text, base64.RawURLEncoding.EncodeToString(part)[:10])
	}
}
