package keyserver

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/tlsski/tlsski/ski"
)

func TestAuditLogLinesDoNotInterleave(t *testing.T) {
	file := filepath.Join(t.TempDir(), "audit.log")
	log, err := OpenAuditLog(file)
	require.NoError(t, err)
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

	data, err := os.ReadFile(file)
	require.NoError(t, err)
	seen := make(map[string]bool)
	for line := range bytes.Lines(data) {
		var r struct{ Edge string }
		require.NoError(t, json.Unmarshal(line, &r), "%s", line)
		seen[r.Edge] = true
	}
	require.Len(t, seen, 1000)
}

func TestOpenAuditLog(t *testing.T) {
	file := filepath.Join(t.TempDir(), "audit.log")
	require.NoError(t, CheckAuditLog(file))
	require.NoFileExists(t, file)
	for range 2 { // the second time it is appended to
		log, err := OpenAuditLog(file)
		require.NoError(t, err)
		require.NoError(t, log.Audit(t.Context(), &Record{Time: time.Now()}))
		require.NoError(t, log.Close())
		require.NoError(t, CheckAuditLog(file))
	}
	data, err := os.ReadFile(file)
	require.NoError(t, err)
	require.Equal(t, 2, bytes.Count(data, []byte{'\n'}))
	info, err := os.Stat(file)
	require.NoError(t, err)
	require.Equal(t, os.FileMode(0o600), info.Mode())

	missing := filepath.Join(t.TempDir(), "no", "audit.log")
	require.Error(t, CheckAuditLog(missing))
	_, err = OpenAuditLog(missing)
	require.Error(t, err)

	require.NoError(t, CheckAuditLog("-"))
	log, err := OpenAuditLog("-")
	require.NoError(t, err)
	require.NoError(t, log.Close())
}

// A record that the disk had no room for does not spoil the next.
func TestAuditLogAfterTornLine(t *testing.T) {
	w := &fullWriter{room: 20}
	log := NewAuditLog(w)
	require.Error(t, log.Audit(t.Context(), &Record{Time: time.Now(), Edge: "torn"}))
	require.Error(t, log.Audit(t.Context(), &Record{Time: time.Now(), Edge: "lost"}))
	w.room = 1000
	require.NoError(t, log.Audit(t.Context(), &Record{Time: time.Now(), Edge: "whole"}))
	lines := strings.Split(strings.TrimSpace(w.String()), "\n")
	require.Len(t, lines, 2)
	require.False(t, json.Valid([]byte(lines[0])))
	require.True(t, json.Valid([]byte(lines[1])))
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
		require.NotContains(t, out.String(), fmt.Sprintf("%x", input[:8]))
		require.NotContains(t, out.String(), fmt.Sprintf("%x", resp.Output[2:10]))
		lengths = append(lengths, out.Len())
	}
	for _, l := range lengths {
		require.Equal(t, lengths[0], l)
	}
}
