package edgeserver

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/tlsski/tlsski/ski"
)

const keyserverYAML = `keyserver:
  url: coaps://127.0.0.1:5684/ski
  certificate: edge.pem
  key: edge.key
  ca: ca.pem
`

const siteYAML = `sites:
  - names: [a.test]
    certificates: [a.pem]
    proxy: http://127.0.0.1:8080
`

func load(t *testing.T, text string) (Config, string, error) {
	file := filepath.Join(t.TempDir(), "edge.yaml")
	require.NoError(t, os.WriteFile(file, []byte(text), 0o600))
	cfg, err := Load(file)
	return cfg, file, err
}

func TestLoadDefaults(t *testing.T) {
	cfg, file, err := load(t, keyserverYAML+siteYAML)
	require.NoError(t, err)
	dir := filepath.Dir(file)
	assert.Equal(t, []string{":8443"}, cfg.Listen)
	assert.Equal(t, 5*time.Second, cfg.KeyServer.Timeout)
	assert.Equal(t, 10*time.Second, cfg.ShutdownTimeout)
	assert.Equal(t, Log{Level: "info", Format: "text"}, cfg.Log)
	assert.Equal(t, filepath.Join(dir, "edge.key"), cfg.KeyServer.Key)
	assert.Equal(t, []string{filepath.Join(dir, "a.pem")}, cfg.Sites[0].Certificates)
}

func TestLoadEmbedded(t *testing.T) {
	cfg, file, err := load(t, "keyserver: embedded\nembedded: ks/keyserver.yaml\n"+siteYAML)
	require.NoError(t, err)
	assert.Equal(t, KeyServer{Embedded: true, Timeout: 5 * time.Second, Balance: ski.Failover}, cfg.KeyServer)
	assert.Equal(t, []string{"embedded"}, cfg.KeyServer.Endpoints())
	assert.Equal(t, filepath.Join(filepath.Dir(file), "ks/keyserver.yaml"), cfg.Embedded)
}

func TestLoadAll(t *testing.T) {
	cfg, _, err := load(t, `listen: ["127.0.0.1:0", "[::1]:0"]
keyserver:
  url: coaps://ski.test/ski
  certificate: /etc/edge.pem
  key: /etc/edge.key
  ca: /etc/ca.pem
  server_name: keys.test
  timeout: 750ms
  draft_only: true
  balance: least-latency
  hedge: {max_extra: 0.05}
keyservers:
  near: {url: "https://near.test", timeout: 2s, balance: round-robin}
  other:
    urls: [coaps://other.test]
    psk: /etc/psk
    hedge: {max_extra: 0.01}
sites:
  - names: [a.test, "*.a.test"]
    certificates: [/etc/a.pem, /etc/b.pem]
    keyserver: near
    static_rsa: true
    static: /srv/a
  - default: true
    certificates: [/etc/c.pem]
    proxy: https://origin.test/base
shutdown_timeout: 1m
log: {level: debug, format: json}
`)
	require.NoError(t, err)
	cfg.source = nil
	assert.Equal(t, Config{
		Listen: []string{"127.0.0.1:0", "[::1]:0"},
		KeyServer: KeyServer{URL: "coaps://ski.test/ski", Certificate: "/etc/edge.pem", Key: "/etc/edge.key", CA: "/etc/ca.pem",
			ServerName: "keys.test", Timeout: 750 * time.Millisecond, DraftOnly: true, Balance: ski.LeastLatency, Hedge: Hedge{0.05}},
		KeyServers: map[string]KeyServer{
			"near": {URL: "https://near.test", Certificate: "/etc/edge.pem", Key: "/etc/edge.key", CA: "/etc/ca.pem",
				Timeout: 2 * time.Second, Balance: ski.RoundRobin, Hedge: Hedge{0.05}},
			"other": {URLs: []string{"coaps://other.test"}, PSK: "/etc/psk",
				Timeout: 750 * time.Millisecond, Balance: ski.LeastLatency, Hedge: Hedge{0.01}},
		},
		Sites: []Site{
			{Names: []string{"a.test", "*.a.test"}, Certificates: []string{"/etc/a.pem", "/etc/b.pem"}, KeyServer: "near", StaticRSA: true, Static: "/srv/a"},
			{Certificates: []string{"/etc/c.pem"}, Proxy: "https://origin.test/base", Default: true},
		},
		ShutdownTimeout: time.Minute, Limits: Limits{}.withDefaults(),
		Log: Log{Level: "debug", Format: "json"},
	}, cfg)
}

func TestSeveralKeyServers(t *testing.T) {
	cfg, _, err := load(t, strings.Replace(keyserverYAML, "url: coaps://127.0.0.1:5684/ski", "urls: [coaps://a.test, https://b.test]", 1)+siteYAML)
	require.NoError(t, err)
	assert.Equal(t, []string{"coaps://a.test", "https://b.test"}, cfg.KeyServer.Endpoints())
}

// What all key servers have in common stands in keyserver, which needs no URL
// where every site names another.
func TestEachSiteNamesItsKeyServer(t *testing.T) {
	cfg, _, err := load(t, strings.Replace(keyserverYAML, "  url: coaps://127.0.0.1:5684/ski\n", "", 1)+
		"keyservers: {near: {url: 'coaps://a.test'}}\n"+strings.Replace(siteYAML, "- names", "- keyserver: near\n    names", 1))
	require.NoError(t, err)
	used := cfg.UsedKeyServers()
	require.Len(t, used, 1)
	assert.Equal(t, []string{"coaps://a.test"}, used["near"].Endpoints())
	assert.Equal(t, cfg.KeyServer.Key, used["near"].Key)
}

func TestSitesWithKeyServersOfTheirOwn(t *testing.T) {
	p, other := newPKI(t), newPKI(t)
	cfg := Config{
		KeyServers: map[string]KeyServer{"other": {DraftOnly: true}},
		Sites: []Site{
			{Names: []string{"a.test"}, Certificates: []string{p.ecdsa(t, "a.test")}, Static: p.dir},
			{Names: []string{"b.test"}, Certificates: []string{other.ecdsa(t, "b.test")}, Static: p.dir, KeyServer: "other"},
		},
	}
	_, err := NewWithKeyServers(cfg, map[string]ski.Transport{"": p.transport()}, slog.New(slog.DiscardHandler))
	assert.EqualError(t, err, "edgeserver: sites[1].keyserver: there is no Transport for it")

	e := startWith(t, cfg, map[string]ski.Transport{"": p.transport(), "other": other.transport()})
	e.Probe(t.Context())
	assert.Equal(t, 2, strings.Count(e.log.String(), `msg="the key server has the key"`))
	p.keys.Forget()
	other.keys.Forget()
	c, err := e.dial(p, &tls.Config{ServerName: "a.test"})
	require.NoError(t, err)
	c.Close()
	assert.EqualValues(t, tls.VersionTLS13, c.ConnectionState().Version)
	assert.Len(t, p.keys.Forget(), 1)
	c, err = e.dial(other, &tls.Config{ServerName: "b.test"})
	require.NoError(t, err)
	c.Close()
	assert.EqualValues(t, tls.VersionTLS12, c.ConnectionState().Version, "this key server is draft_only")
	assert.Len(t, other.keys.Forget(), 1)
	assert.Empty(t, p.keys.Forget())
}

func TestLoadErrors(t *testing.T) {
	site := func(lines ...string) string {
		return keyserverYAML + "sites:\n  - " + strings.Join(lines, "\n    ") + "\n"
	}
	const certs, proxy = "certificates: [a.pem]", "proxy: http://127.0.0.1:8080"
	tests := map[string]struct{ yaml, want string }{
		"empty":                   {"", ":1:1: the file is empty"},
		"syntax":                  {"listen: [a\nsites: []\n", ":2:"},
		"two documents":           {siteYAML + "---\n" + siteYAML, ":5:1: the file has more than one document"},
		"listen":                  {"listen: [':8443', nope]\n" + keyserverYAML + siteYAML, ":1:19: listen[1]: 'nope' is not an address such as"},
		"listen port":             {"listen: ['127.0.0.1:99999']\n" + keyserverYAML + siteYAML, ":1:10: listen[0]: '127.0.0.1:99999' is not an address"},
		"a list":                  {"- a\n", ":1:1: "},
		"unknown key":             {keyserverYAML + siteYAML + "sitse: []\n", `:10:1: unknown field "sitse"`},
		"unknown site key":        {site("names: [a.test]", "port: 1", certs, proxy), `:8:5: unknown field "port"`},
		"duplicate key":           {"listen: []\nlisten: []\n", `:2:1: mapping key "listen" already defined`},
		"wrong type":              {site("names: [a.test]", "default: maybe", certs, proxy), ":8:14: found a text where true or false belongs"},
		"not a list":              {site("names: a.test", certs, proxy), ":7:12: "},
		"wrong time":              {keyserverYAML + "  timeout: 5\n" + siteYAML, ":6:12: keyserver.timeout: '5' is not a time"},
		"negative time":           {keyserverYAML + siteYAML + "shutdown_timeout: -1s\n", ":10:19: shutdown_timeout: '-1s' is not a time"},
		"no key server":           {siteYAML, ":1:1: keyserver.url: is missing"},
		"both urls":               {keyserverYAML + "  urls: [coaps://b.test]\n" + siteYAML, ":6:9: keyserver.urls: there is either url or urls, not both"},
		"wrong in urls":           {strings.Replace(keyserverYAML, "url: coaps://127.0.0.1:5684/ski", "urls: [coaps://a.test, b.test]", 1) + siteYAML, ":2:26: keyserver.urls[1]: 'b.test' is not a URL"},
		"url twice":               {strings.Replace(keyserverYAML, "url: coaps://127.0.0.1:5684/ski", "urls: [coaps://a.test, coaps://a.test]", 1) + siteYAML, ":2:26: keyserver.urls[1]: 'coaps://a.test' is there already"},
		"balance":                 {keyserverYAML + "  balance: random\n" + siteYAML, ":6:12: keyserver.balance: 'random' is not failover, round-robin or least-latency"},
		"hedge":                   {keyserverYAML + "  hedge: {max_extra: 5}\n" + siteYAML, ":6:22: keyserver.hedge.max_extra: is not a share from 0 to 1"},
		"mtu":                     {keyserverYAML + "  mtu: 399\n" + siteYAML, ":6:8: keyserver.mtu: 399 is not 0 or 400 to 65535 bytes"},
		"mtu, too large":          {keyserverYAML + "  mtu: 65536\n" + siteYAML, ":6:8: keyserver.mtu: 65536 is not"},
		"hedge nan":               {keyserverYAML + "  hedge: {max_extra: .nan}\n" + siteYAML, ":6:22: keyserver.hedge.max_extra: is not a share"},
		"which key server":        {site("names: [a.test]", "keyserver: far", certs, proxy), ":8:16: sites[0].keyserver: there is no 'far' in keyservers"},
		"named, no url":           {keyserverYAML + "keyservers:\n  near: {timeout: 1s}\n" + siteYAML, "keyservers.near.url: is missing"},
		"named, wrong url":        {keyserverYAML + "keyservers: {near: {urls: [coaps://a.test, b.test]}}\n" + siteYAML, ":6:44: keyservers.near.urls[1]: 'b.test' is not a URL"},
		"named, wrong time":       {keyserverYAML + "keyservers:\n  near:\n    url: coaps://a.test\n    timeout: 7\n" + siteYAML, ":9:14: keyservers.near.timeout: '7' is not a time"},
		"named, half an identity": {keyserverYAML + "keyservers:\n  near: {url: coaps://a.test, ca: other.pem}\n" + siteYAML, "keyservers.near.certificate: is missing"},
		"a name of dots":          {keyserverYAML + "keyservers: {a.b: {url: coaps://a.test}}\n" + siteYAML, ":6:13: keyservers: the name 'a.b' is not of letters"},
		"no ca":                   {strings.Replace(keyserverYAML, "  ca: ca.pem\n", "", 1) + siteYAML, ":2:3: keyserver.ca: is missing"},
		"wrong url":               {strings.Replace(keyserverYAML, "coaps://", "", 1) + siteYAML, ":2:8: keyserver.url: '127.0.0.1:5684/ski' is not a URL"},
		"no sites":                {keyserverYAML, ":1:1: sites: there must be at least one site"},
		"no name":                 {site(certs, proxy), ":7:5: sites[0].names: a site that is not the default needs a name"},
		"name twice":              {site("names: [a.test, A.test.]", certs, proxy), ":7:21: sites[0].names[1]: 'A.test.' is already the name at sites[0].names[0]"},
		"not a name":              {site("names: [münchen.test]", certs, proxy), ":7:13: sites[0].names[0]: 'münchen.test' is not a DNS name in its ASCII form"},
		"inner wildcard":          {site(`names: ["a.*.test"]`, certs, proxy), "is not a DNS name"},
		"bare wildcard":           {site(`names: ["*."]`, certs, proxy), "is not a DNS name"},
		"address":                 {site("names: [192.0.2.1]", certs, proxy), "'192.0.2.1' is an IP address"},
		"long label":              {site("names: ["+strings.Repeat("a", 64)+".test]", certs, proxy), "is not a DNS name"},
		"long name":               {site("names: ["+strings.Repeat("a.", 127)+"test]", certs, proxy), "is longer than a DNS name can be"},
		"no certificate":          {site("names: [a.test]", proxy), ":7:5: sites[0].certificates: there must be at least one"},
		"no content":              {site("names: [a.test]", certs), ":7:5: sites[0]: a site needs proxy, static or tcp"},
		"both contents":           {site("names: [a.test]", certs, proxy, "static: ."), ":10:13: sites[0].static: a site has one of proxy, static and tcp"},
		"wrong proxy":             {site("names: [a.test]", certs, "proxy: ftp://a.test"), ":9:12: sites[0].proxy: 'ftp://a.test' is not a URL such as"},
		"another word":            {"keyserver: embeded\n" + siteYAML, ":1:12: keyserver: it is neither a map with the url of a key server nor the word embedded"},
		"a list of them":          {"keyserver: [embedded]\n" + siteYAML, ":1:12: keyserver: it is neither a map"},
		"nothing there":           {"keyserver:\n" + siteYAML, ":1:11: keyserver.url: is missing"},
		"embedded alone":          {"keyserver: embedded\n" + siteYAML, ":1:1: embedded: is missing: it is the embedded key server's configuration file"},
		"embedded beside":         {keyserverYAML + siteYAML + "embedded: ks.yaml\n", ":10:11: embedded: has no place beside the key server of keyserver"},
		"unknown field":           {keyserverYAML + "  tiemout: 5s\n" + siteYAML, `:6:3: unknown field "tiemout"`},
		"embedded and named":      {"keyserver: embedded\nembedded: ks.yaml\nkeyservers: {near: {url: coaps://a.test}}\n" + siteYAML, "keyservers: has no place beside keyserver: embedded"},
		"named, embedded":         {keyserverYAML + "keyservers: {near: embedded}\n" + siteYAML, ":6:20: keyservers.near: the word embedded is for keyserver alone"},
		"named, java":             {keyserverYAML + "keyservers: {near: {url: https://a.test, java_names: md5}}\n" + siteYAML, "keyservers.near.java_names: 'md5' is not sha256 or sha1"},
		"java and static RSA": {"keyserver: {url: https://a.test, certificate: c, key: k, ca: a, java_names: sha1}\n" +
			"sites: [{names: [a.test], certificates: [a.pem], static: ., static_rsa: true}]\n", "sites[0].static_rsa: the key server in Java tells TLS clients by its time"},
		"named, java and static RSA": {keyserverYAML + "keyservers: {near: {url: https://a.test, java_names: sha1}}\n" +
			"sites: [{names: [a.test], certificates: [a.pem], static: ., static_rsa: true, keyserver: near}]\n", "or say keyservers.near.unsafe_java_static_rsa: true"},
		"unsafe without java": {keyserverYAML + "  unsafe_java_static_rsa: true\n" + siteYAML, ":6:27: keyserver.unsafe_java_static_rsa: has no place without java_names"},
		"two defaults": {site("default: true", certs, proxy) + "  - {default: true, certificates: [b.pem], static: .}\n",
			":10:15: sites[1].default: sites[0] is the default site already"},
		"level":  {keyserverYAML + siteYAML + "log: {level: loud}\n", ":10:14: log.level: 'loud' is not debug, info, warn or error"},
		"format": {keyserverYAML + siteYAML + "log: {format: xml}\n", ":10:15: log.format: 'xml' is not text or json"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			_, file, err := load(t, tt.yaml)
			require.Error(t, err)
			assert.True(t, strings.HasPrefix(err.Error(), file+":"), err.Error())
			assert.Contains(t, err.Error(), tt.want)
			assert.NotContains(t, err.Error(), "\n")
		})
	}
}

func TestNewErrors(t *testing.T) {
	p := newPKI(t)
	good := p.ecdsa(t, "a.test")
	data, err := os.ReadFile(good)
	require.NoError(t, err)
	write := func(name string, data []byte) string {
		file := filepath.Join(p.dir, name)
		require.NoError(t, os.WriteFile(file, data, 0o600))
		return file
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	der, err := x509.MarshalPKCS8PrivateKey(key)
	require.NoError(t, err)
	withKey := write("with-key.pem", append(data, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})...))
	withParams := write("with-parameters.pem", append(data, pem.EncodeToMemory(&pem.Block{Type: "EC PARAMETERS", Bytes: []byte{5, 0}})...))
	other, err := os.ReadFile(p.ecdsa(t, "other.test"))
	require.NoError(t, err)
	reversed := write("reversed.pem", append(other, data...))
	broken := write("broken.pem", pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: []byte("no")}))

	for name, tt := range map[string]struct {
		site Site
		want string
	}{
		"private key":    {Site{Names: []string{"a.test"}, Certificates: []string{good, withKey}, Static: p.dir}, "edgeserver: sites[0].certificates[1]: " + withKey + " contains a private key"},
		"parameters":     {Site{Names: []string{"a.test"}, Certificates: []string{withParams}, Static: p.dir}, "has a PEM block of type EC PARAMETERS"},
		"no certificate": {Site{Names: []string{"a.test"}, Certificates: []string{write("empty.pem", nil)}, Static: p.dir}, "has no PEM block of type CERTIFICATE"},
		"broken":         {Site{Names: []string{"a.test"}, Certificates: []string{broken}, Static: p.dir}, broken + ": x509: "},
		"missing file":   {Site{Names: []string{"a.test"}, Certificates: []string{p.dir + "/none"}, Static: p.dir}, "no such file"},
		"missing folder": {Site{Names: []string{"a.test"}, Certificates: []string{good}, Static: p.dir + "/none"}, "sites[0].static: "},
		"not covered":    {Site{Names: []string{"a.test", "b.test"}, Certificates: []string{good}, Static: p.dir}, "whose names are 'a.test', does not cover 'b.test'"},
		"order":          {Site{Names: []string{"a.test"}, Certificates: []string{reversed}, Static: p.dir}, reversed + " does not begin with the server's own certificate, which covers 'a.test'"},
		"wildcard":       {Site{Names: []string{"*.test"}, Certificates: []string{good}, Static: p.dir}, "does not cover '*.test'"},
		"static RSA":     {Site{Names: []string{"a.test"}, Certificates: []string{good}, StaticRSA: true, Static: p.dir}, "sites[0].static_rsa: needs an RSA certificate"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := New(Config{Sites: []Site{tt.site}}, p.transport(), slog.New(slog.DiscardHandler))
			assert.ErrorContains(t, err, tt.want)
		})
	}

	t.Run("position", func(t *testing.T) {
		cfg, file, err := load(t, keyserverYAML+"sites:\n  - names: [a.test]\n    certificates:\n      - "+withKey+"\n    static: .\n")
		require.NoError(t, err)
		_, err = New(cfg, p.transport(), slog.New(slog.DiscardHandler))
		assert.ErrorContains(t, err, file+":9:9: sites[0].certificates[0]: ")
	})
}

func TestExpiredCertificate(t *testing.T) {
	p := newPKI(t)
	e := start(t, Config{Sites: []Site{
		{Names: []string{"a.test"}, Certificates: []string{p.issue(t, sharedRSA(), -time.Hour, "a.test")}, StaticRSA: true, Static: p.dir},
	}}, p.transport())
	assert.Contains(t, e.log.String(), `level=WARN msg="the certificate is not valid now" site=a.test`)
	assert.Contains(t, e.log.String(), `level=WARN msg="static_rsa offers cipher suites without forward secrecy" site=a.test`)
}

func TestCredentials(t *testing.T) {
	p := newPKI(t)
	key := sharedRSA()
	cert := p.issue(t, key, time.Hour, "edge.test")
	der, err := x509.MarshalPKCS8PrivateKey(key)
	require.NoError(t, err)
	k := KeyServer{Certificate: cert, Key: filepath.Join(p.dir, "edge.key"), CA: cert}
	require.NoError(t, os.WriteFile(k.Key, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), 0o600))
	identity, roots, err := k.Credentials()
	require.NoError(t, err)
	assert.Equal(t, []string{"edge.test"}, identity.Leaf.DNSNames)
	assert.NotNil(t, roots)

	for _, mode := range []os.FileMode{0o640, 0o604, 0o620} {
		require.NoError(t, os.Chmod(k.Key, mode))
		_, _, err = k.Credentials()
		assert.ErrorContains(t, err, "edge.key can be used by others than its owner")
	}
	require.NoError(t, os.Chmod(k.Key, 0o400))
	k.CA = k.Key
	_, _, err = k.Credentials()
	assert.ErrorContains(t, err, "has no certificate")
}

func TestIdentityThatNoKeyServerAccepts(t *testing.T) {
	now := time.Now()
	for name, tt := range map[string]struct {
		leaf x509.Certificate
		want string
	}{
		"expired":       {x509.Certificate{NotAfter: now.Add(-time.Minute)}, "expired at "},
		"not yet valid": {x509.Certificate{NotBefore: now.Add(time.Minute), NotAfter: now.Add(time.Hour)}, "not valid before "},
		"for nothing":   {x509.Certificate{NotAfter: now.Add(time.Hour)}, "clientAuth"},
		"for servers": {x509.Certificate{NotAfter: now.Add(time.Hour), ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}},
			"clientAuth"},
	} {
		assert.ErrorContains(t, checkIdentity(&tt.leaf, now), tt.want, name)
	}
	p := newPKI(t)
	key := sharedRSA()
	expired := p.issue(t, key, -time.Minute, "edge.test")
	der, err := x509.MarshalPKCS8PrivateKey(key)
	require.NoError(t, err)
	k := KeyServer{Certificate: expired, Key: filepath.Join(p.dir, "edge.key"), CA: expired}
	require.NoError(t, os.WriteFile(k.Key, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), 0o600))
	_, _, err = k.Credentials()
	assert.ErrorContains(t, err, expired+": the certificate expired at ")
}
