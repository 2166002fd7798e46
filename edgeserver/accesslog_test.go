package edgeserver

import (
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io"
	"path/filepath"
	"strings"
	"testing"
	"time"
	"unicode"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/tlsski/tlsski/ski"
)

func TestPrintable(t *testing.T) {
	for text, want := range map[string]string{
		"":                         "",
		"curl/8.5":                 "curl/8.5",
		"Schlüssel €":              "Schlüssel €",
		"a\nb\r\tc\x00\x7f":        "a\uFFFDb\uFFFD\uFFFDc\uFFFD\uFFFD",
		"\u009b31m":                "\uFFFD31m", // CSI, without the escape character
		"\x9b31m":                  "\uFFFD31m",
		"\u202egnp.exe":            "\uFFFDgnp.exe", // turns the rest around
		"a\u2028b":                 "a\uFFFDb",
		strings.Repeat("x", 100):   strings.Repeat("x", 100),
		strings.Repeat("x", 101):   strings.Repeat("x", 97) + "...",
		strings.Repeat("x", 1<<20): strings.Repeat("x", 97) + "...",
	} {
		assert.Equal(t, want, printable(text, 100))
	}
}

func TestReferer(t *testing.T) {
	for _, test := range []struct {
		value string
		query bool
		want  string
	}{
		{"https://a.test/path?token=secret#here", false, "https://a.test/path"},
		{"https://a.test/path?token=secret#here", true, "https://a.test/path?token=secret#here"},
		{"https://user:secret@a.test/", true, "https://a.test/"},
		{"https://a.test/?", false, "https://a.test/"},
		{"https://a.test:port/?token=secret", false, "https://a.test:port/"},
		{"", false, ""},
	} {
		assert.Equal(t, test.want, referer(test.value, test.query), test.value)
	}
}

// Whatever a client sends, it is one line, with nothing in it that is not to be
// seen, and the fields are where they belong.
func FuzzAccessRecord(f *testing.F) {
	f.Add("GET", "/", "curl/8.5")
	f.Add("GET", "/\" 200 0 \"-", "a\" \"b\"\n192.0.2.1 - - [forged] \"GET / HTTP/1.1\"")
	f.Add("M\x00", "/\x1b[2J\u009b", "\\\" \\")
	f.Fuzz(func(t *testing.T, method, target, agent string) {
		r := accessRecord{
			Remote: "192.0.2.1:4711", Site: "a.test", RequestID: "ID", Protocol: "HTTP/1.1", Status: 200, start: time.Unix(0, 0).UTC(),
			Method: printable(method, maxLoggedMethod), URL: printable(target, maxLoggedURL), UserAgent: printable(agent, maxLoggedAgent),
		}
		for _, line := range []string{string(r.json()), string(r.combined())} {
			require.LessOrEqual(t, len(line), 12*(maxLoggedURL+maxLoggedAgent+maxLoggedMethod)+500)
			text, ok := strings.CutSuffix(line, "\n")
			require.True(t, ok)
			require.False(t, strings.ContainsFunc(text, func(r rune) bool { return !unicode.IsPrint(r) }), "%q", text)
		}
		var back accessRecord
		require.NoError(t, json.Unmarshal(r.json(), &back))
		back.start = r.start
		require.Equal(t, r, back)

		quoted := quotes(t, string(r.combined()))
		require.Len(t, quoted, 5)
		require.Equal(t, "a.test", quoted[3])
		require.Equal(t, "ID", quoted[4])
		if r.UserAgent != "" {
			require.Equal(t, r.UserAgent, quoted[2])
		}
	})
}

// quotes returns the texts in quotes.
func quotes(t *testing.T, line string) (texts []string) {
	var text strings.Builder
	in, escaped := false, false
	for _, r := range line {
		switch {
		case escaped:
			text.WriteRune(r)
			escaped = false
		case in && r == '\\':
			escaped = true
		case r == '"':
			if in = !in; !in {
				texts = append(texts, text.String())
				text.Reset()
			}
		case in:
			text.WriteRune(r)
		}
	}
	require.False(t, in)
	return texts
}

// A connection keeps to the access log that was there when it was made; a new
// configuration that is refused leaves no file open.
func TestAccessLogOverAReload(t *testing.T) {
	p := newPKI(t)
	dir := t.TempDir()
	cfg := Config{AccessLog: AccessLog{File: filepath.Join(dir, "1.log")}, Sites: []Site{
		{Names: []string{"a.test"}, Certificates: []string{p.ecdsa(t, "a.test")}, Static: htdocs(t, "this is a")},
		{Names: []string{"b.test"}, Certificates: []string{p.ecdsa(t, "b.test")}, Static: htdocs(t, "this is b")},
	}}
	e := start(t, cfg, p.transport())
	before, err := e.dial(p, &tls.Config{ServerName: "a.test"})
	require.NoError(t, err)
	defer before.Close()
	e.until(t, 1, "handshakes_total", "outcome", "ok")

	transports := map[string]ski.Transport{"": p.transport()}
	wrong := cfg
	wrong.AccessLog.File = filepath.Join(dir, "2.log")
	wrong.Sites = append(wrong.Sites[:1:1], wrong.Sites[1])
	wrong.Sites[1].AccessLog = &AccessLog{File: filepath.Join(dir, "none/2.log")}
	_, err = e.Reload(wrong, transports)
	require.Error(t, err)
	assert.Len(t, e.logs.open, 1)

	cfg.AccessLog.File = filepath.Join(dir, "2.log")
	_, err = e.Reload(cfg, transports)
	require.NoError(t, err)
	get(t, e.client(t, p), "https://a.test/")
	fmt.Fprint(before, "GET / HTTP/1.1\r\nHost: a.test\r\n\r\n")
	_, err = io.ReadAll(before)
	require.NoError(t, err)
	recordsOf(t, filepath.Join(dir, "1.log"), 1)
	recordsOf(t, filepath.Join(dir, "2.log"), 1)
	require.Eventually(t, func() bool {
		e.logs.mu.Lock()
		defer e.logs.mu.Unlock()
		return len(e.logs.open) == 1
	}, time.Minute, time.Millisecond, "the old one is closed with its last connection")
}
