package edgeserver

import (
	"log/slog"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func TestLoadOfWhatIsWrittenDown(t *testing.T) {
	cfg, file, err := load(t, keyserverYAML+`access_log: {file: access.log}
metrics: 127.0.0.1:9685
sites:
  - {names: [a.test], certificates: [a.pem], proxy: "http://127.0.0.1:8080", origin_timeout: 90s}
  - {names: [b.test], certificates: [a.pem], static: ., access_log: {file: log/b.log, format: combined, query: true}}
  - {names: [c.test], certificates: [a.pem], static: ., access_log: {file: "-"}}
  - {names: [d.test], certificates: [a.pem], static: ., access_log: {file: off}}
`)
	require.NoError(t, err)
	dir := filepath.Dir(file)
	assert.Equal(t, 90*time.Second, cfg.Sites[0].OriginTimeout)
	for i, want := range []AccessLog{
		{filepath.Join(dir, "access.log"), "json", false},
		{filepath.Join(dir, "log/b.log"), "combined", true},
		{"-", "json", false},
		{"off", "json", false},
	} {
		assert.Equal(t, want, cfg.AccessLogOf(cfg.Sites[i]))
	}
	cfg, _, err = load(t, keyserverYAML+siteYAML)
	require.NoError(t, err)
	assert.Equal(t, "off", cfg.AccessLogOf(cfg.Sites[0]).File)
	for _, public := range []string{"127.0.0.2:0", "'[::1]:9685'", "'[::ffff:127.0.0.1]:9685'", "':9685'\nmetrics_public: true", "metrics.test:9685\nmetrics_public: true"} {
		_, _, err = load(t, keyserverYAML+siteYAML+"metrics: "+public+"\n")
		assert.NoError(t, err, public)
	}
}

func TestMistakesInWhatIsWrittenDown(t *testing.T) {
	site := func(line string) string {
		return keyserverYAML + "sites:\n  - names: [a.test]\n    certificates: [a.pem]\n    " + line + "\n"
	}
	for yaml, want := range map[string]string{
		keyserverYAML + siteYAML + "access_log: {file: a.log, format: common}\n": ":10:35: access_log.format: 'common' is not json or combined",
		keyserverYAML + siteYAML + "access_log: {format: json}\n":                ":10:13: access_log.file: is missing",
		keyserverYAML + siteYAML + "access_log: off\n":                           ":10:13: string was used where mapping is expected",
		site("static: .\n    access_log: {query: true}"):                         ":10:17: sites[0].access_log.file: is missing",
		site("static: .\n    access_log: {file: a.log, format: clf}"):            ":10:39: sites[0].access_log.format: 'clf' is not json or combined",
		site("static: .\n    origin_timeout: 1s"):                                ":10:21: sites[0].origin_timeout: is for a site with proxy",
		site("proxy: http://127.0.0.1\n    origin_timeout: 0s"):                  ":10:21: sites[0].origin_timeout: '0s' is not a time",
		keyserverYAML + siteYAML + "metrics: 9685\n":                             ":10:10: metrics: '9685' is not an address",
		keyserverYAML + siteYAML + "metrics: ':9685'\n":                          ":10:10: metrics: ':9685' is not a loopback address",
		keyserverYAML + siteYAML + "metrics: localhost:9685\n":                   ":10:10: metrics: 'localhost:9685' is not a loopback address",
	} {
		_, _, err := load(t, yaml)
		if assert.Error(t, err, yaml) {
			assert.Contains(t, err.Error(), want)
			assert.NotContains(t, err.Error(), "\n")
		}
	}

	p := newPKI(t)
	for field, cfg := range map[string]Config{
		"access_log.file":          {AccessLog: AccessLog{File: "/none/access.log"}, Sites: []Site{{Names: []string{"a.test"}}}},
		"sites[0].access_log.file": {Sites: []Site{{Names: []string{"a.test"}, AccessLog: &AccessLog{File: "/none/access.log"}}}},
	} {
		cfg.Sites[0].Certificates, cfg.Sites[0].Static = []string{p.ecdsa(t, "a.test")}, p.dir
		_, err := New(cfg, p.transport(), slog.New(slog.DiscardHandler))
		require.Error(t, err)
		assert.True(t, strings.HasPrefix(err.Error(), "edgeserver: "+field+": "), err.Error())
	}
}
