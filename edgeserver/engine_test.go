package edgeserver

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/tlsski/tlsski/edgeserver/internal/split"
	"github.com/tlsski/tlsski/ski"
	"github.com/tlsski/tlsski/ski/skitest"
)

// splitSites are bothSites with the split engine.
func splitSites(t *testing.T, p *testPKI, staticRSA bool) Config {
	cfg := bothSites(t, p, staticRSA)
	for i := range cfg.Sites {
		cfg.Sites[i].Engine = EngineSplit
	}
	return cfg
}

func TestSplitEngineHandshakes(t *testing.T) {
	p := newPKI(t)
	e := start(t, splitSites(t, p, true), p.transport())
	tests := []struct {
		name   string
		site   string
		client *tls.Config
		suite  uint16
		want   ski.Request // but SPKI and Input
	}{
		{"ECDHE_ECDSA, which goes first", "both.test", only(tls.TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256, tls.TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256),
			tls.TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256, ski.Request{Protocol: ski.TLS12, Hash: ski.SHA256}},
		{"ECDHE_RSA", "both.test", only(tls.TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384),
			tls.TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384, ski.Request{Protocol: ski.TLS12, Scheme: tls.PSSWithSHA256}},
		{"RSA", "both.test", only(tls.TLS_RSA_WITH_AES_128_GCM_SHA256),
			tls.TLS_RSA_WITH_AES_128_GCM_SHA256, ski.Request{Protocol: ski.TLS12, Method: ski.MethodRSA, ClientVersion: tls.VersionTLS12}},
		{"ECDHE goes before RSA", "rsa.test", only(tls.TLS_RSA_WITH_AES_256_GCM_SHA384, tls.TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256),
			tls.TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256, ski.Request{Protocol: ski.TLS12, Scheme: tls.PSSWithSHA256}},
		{"a client that can do TLS 1.3", "ecdsa.test", &tls.Config{},
			tls.TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256, ski.Request{Protocol: ski.TLS12, Hash: ski.SHA256}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			tt.client.ServerName = tt.site
			tt.client.NextProtos = []string{"h2", "http/1.1"}
			c, err := e.dial(p, tt.client)
			require.NoError(t, err)
			defer c.Close()
			assert.Equal(t, tls.CipherSuiteName(tt.suite), tls.CipherSuiteName(c.ConnectionState().CipherSuite))
			asked := p.keys.Forget()
			require.Len(t, asked, 1)
			assert.Equal(t, tt.site, asked[0].ServerName)
			got := ski.Request{Protocol: asked[0].Protocol, Hash: asked[0].Hash, Scheme: asked[0].Scheme, ClientVersion: asked[0].ClientVersion}
			if asked[0].KeyExchange() != ski.MethodECDHE {
				got.Method = asked[0].Method
			}
			assert.Equal(t, tt.want, got)
		})
	}
	require.Eventually(t, func() bool { return strings.Count(e.log.String(), "engine=split") == len(tests) }, time.Minute, time.Millisecond)
}

// TestSplitEngineSpeaksHTTP has the proxy work as it does with crypto/tls.
func TestSplitEngineSpeaksHTTP(t *testing.T) {
	origin := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body) // all of it: net/http reads no more once it writes
		assert.NoError(t, err)
		io.WriteString(w, r.Header.Get("X-Forwarded-Proto")+" "+string(body))
	}))
	defer origin.Close()
	p := newPKI(t)
	e := start(t, Config{Sites: []Site{
		{Names: []string{"a.test"}, Certificates: []string{p.ecdsa(t, "a.test")}, Proxy: origin.URL, Engine: EngineSplit},
		{Names: []string{"b.test"}, Certificates: []string{p.ecdsa(t, "b.test")}, Static: htdocs(t, "this is b"), Engine: EngineSplit},
	}}, p.transport())
	for _, version := range []int{1, 2} {
		c := e.client(t, p)
		c.Transport.(*http.Transport).ForceAttemptHTTP2 = version == 2
		large := strings.Repeat("0123456789", 100_000)
		for range 2 {
			resp, err := c.Post("https://a.test/", "text/plain", strings.NewReader(large))
			require.NoError(t, err)
			body, err := io.ReadAll(resp.Body)
			require.NoError(t, err)
			resp.Body.Close()
			assert.Equal(t, version, resp.ProtoMajor)
			assert.Equal(t, "https "+large, string(body))
			assert.EqualValues(t, tls.VersionTLS12, resp.TLS.Version)
		}
		_, body := get(t, c, "https://b.test/")
		assert.Equal(t, "this is b", body)

		req, err := http.NewRequest("GET", "https://a.test/", nil)
		require.NoError(t, err)
		req.Host = "b.test"
		resp, err := c.Do(req)
		require.NoError(t, err)
		resp.Body.Close()
		assert.Equal(t, http.StatusMisdirectedRequest, resp.StatusCode)
	}
	resp, body := get(t, http.DefaultClient, "http://"+e.addr)
	assert.Equal(t, 400, resp.StatusCode)
	assert.Contains(t, body, "HTTPS")
}

func TestSplitEngineWithCurl(t *testing.T) {
	p := newPKI(t)
	cert := p.ecdsa(t, "a.test")
	rsa := p.rsa(t, "a.test")
	e := start(t, Config{Sites: []Site{
		{Names: []string{"a.test"}, Certificates: []string{cert, rsa}, Static: htdocs(t, "hello"), Engine: EngineSplit, StaticRSA: true},
	}}, p.transport())
	ca := filepath.Join(t.TempDir(), "ca.pem")
	both, err := os.ReadFile(cert)
	require.NoError(t, err)
	more, err := os.ReadFile(rsa)
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(ca, append(both, more...), 0o600))
	_, port, err := net.SplitHostPort(e.addr)
	require.NoError(t, err)
	for _, args := range [][]string{
		{"--http1.1"},
		{"--http2"},
		{"--http2", "--ciphers", "ECDHE-RSA-CHACHA20-POLY1305"},
		{"--http1.1", "--ciphers", "AES256-GCM-SHA384"},
		{"--http1.1", "--ciphers", "ECDHE-ECDSA-AES128-CCM", "--curves", "P-256"},
	} {
		args = append(args, "--silent", "--show-error", "--fail", "--cacert", ca, "--max-time", "60",
			"--resolve", "a.test:"+port+":127.0.0.1", "--write-out", " %{http_version}", "https://a.test:"+port+"/")
		out, err := exec.Command("curl", args...).CombinedOutput()
		require.NoError(t, err, "curl %v: %s", args, out)
		want := "hello 1.1"
		if args[0] == "--http2" {
			want = "hello 2"
		}
		assert.Equal(t, want, string(out))
	}
}

// TestBothEngines has one listener with sites of either, and of both.
func TestBothEngines(t *testing.T) {
	p := newPKI(t)
	site := func(name, engine string, versions ...string) Site {
		return Site{Names: []string{name}, Certificates: []string{p.ecdsa(t, name)}, Static: htdocs(t, name), Engine: engine, Versions: versions}
	}
	e := start(t, Config{Sites: []Site{
		site("standard.test", "standard"),
		site("standard12.test", "", "TLS 1.2"),
		site("standard13.test", "", "TLS 1.3"),
		site("split.test", "split"),
		site("both.test", "split", "TLS 1.2", "TLS 1.3"),
	}}, p.transport())
	for _, tt := range []struct {
		site            string
		most, version   uint16
		engine, refused string
	}{
		{"standard.test", tls.VersionTLS13, tls.VersionTLS13, "standard", ""},
		{"standard.test", tls.VersionTLS12, tls.VersionTLS12, "standard", ""},
		{"standard12.test", tls.VersionTLS13, tls.VersionTLS12, "standard", ""},
		{"standard13.test", tls.VersionTLS13, tls.VersionTLS13, "standard", ""},
		{"standard13.test", tls.VersionTLS12, 0, "", "protocol version not supported"},
		{"split.test", tls.VersionTLS13, tls.VersionTLS12, "split", ""},
		{"split.test", tls.VersionTLS12, tls.VersionTLS12, "split", ""},
		{"both.test", tls.VersionTLS13, tls.VersionTLS13, "standard", ""},
		{"both.test", tls.VersionTLS12, tls.VersionTLS12, "split", ""},
		{"unknown.test", tls.VersionTLS12, 0, "", "unrecognized name"},
	} {
		before := strings.Count(e.log.String(), "engine=split")
		c, err := e.dial(p, &tls.Config{ServerName: tt.site, MaxVersion: tt.most})
		if tt.refused != "" {
			assert.ErrorContains(t, err, tt.refused, tt.site)
			continue
		}
		require.NoError(t, err, tt.site)
		io.WriteString(c, "GET / HTTP/1.1\r\nHost: "+tt.site+"\r\nConnection: close\r\n\r\n")
		answer, err := io.ReadAll(c)
		require.NoError(t, err)
		assert.Contains(t, string(answer), tt.site)
		assert.Equal(t, tt.version, c.ConnectionState().Version, tt.site)
		c.Close()
		after := strings.Count(e.log.String(), "engine=split")
		assert.Equal(t, tt.engine == "split", after > before, tt.site)
	}
	resp, _ := get(t, http.DefaultClient, "http://"+e.addr)
	assert.Equal(t, 400, resp.StatusCode)
}

// TestASilentClientIsNotWaitedForForever is one that makes the server look at a
// ClientHello that does not come.
func TestASilentClientIsNotWaitedForForever(t *testing.T) {
	p := newPKI(t)
	cfg := bothSites(t, p, false)
	cfg.Sites[0].Engine = EngineSplit
	e := start(t, cfg, p.transport())
	c, err := net.Dial("tcp", e.addr)
	require.NoError(t, err)
	defer c.Close()
	_, err = c.Write([]byte{22, 3, 1, 1, 0, 1, 0})
	require.NoError(t, err)
	require.NoError(t, e.Shutdown(t.Context()))
	c.SetReadDeadline(time.Now().Add(time.Minute))
	_, err = c.Read(make([]byte, 1))
	require.Error(t, err)
	assert.NotErrorIs(t, err, os.ErrDeadlineExceeded)
}

func TestSplitEngineWhenTheKeyServerFails(t *testing.T) {
	p := newPKI(t)
	cfg := splitSites(t, p, true)
	cfg.KeyServer.Timeout = 300 * time.Millisecond
	denying := skitest.NewKeyServer()
	denying.Refuse(ski.RequestDenied)
	hanging := ski.TransportFunc(func(ctx context.Context, _ *ski.Request) (*ski.Response, error) {
		<-ctx.Done()
		return nil, ctx.Err()
	})
	unreachable := ski.TransportFunc(func(context.Context, *ski.Request) (*ski.Response, error) {
		return nil, &ski.TransportError{Endpoint: "coaps://gone", Op: "dial", Err: errors.New("connection refused")}
	})
	for reason, transport := range map[string]ski.Transport{
		"denied": ski.Direct(denying, ski.Peer{}), "timeout": hanging, "unreachable": unreachable,
	} {
		for _, suite := range []uint16{tls.TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256, tls.TLS_RSA_WITH_AES_128_GCM_SHA256} {
			if reason == "denied" && suite == tls.TLS_RSA_WITH_AES_128_GCM_SHA256 {
				continue // an answer, see TestTheEdgeIsNoPaddingOracleWhateverTheKeyServerAnswers
			}
			e := start(t, cfg, transport)
			client := only(suite)
			client.ServerName = "rsa.test"
			_, err := e.dial(p, client)
			assertAlert(t, internalError, err)
			require.Eventually(t, func() bool { return strings.Contains(e.log.String(), "reason="+reason) }, time.Minute, time.Millisecond)
			assert.Regexp(t, "level=WARN .*site=rsa.test .*reason="+reason, e.log.String())
		}
	}
	e := start(t, cfg, p.transport())
	p.keys.Refuse(ski.MalformedRequest)
	client := only(tls.TLS_RSA_WITH_AES_128_GCM_SHA256)
	client.ServerName = "rsa.test"
	_, err := e.dial(p, client)
	assertAlert(t, 20, err) // bad_record_mac, of the client's Finished
	assert.NotContains(t, e.log.String(), "level=WARN msg=\"handshake")
}

func TestSplitEngineDraftOnly(t *testing.T) {
	p := newPKI(t)
	cfg := splitSites(t, p, false)
	cfg.KeyServer.DraftOnly = true
	e := start(t, cfg, p.transport())
	for _, site := range []string{"ecdsa.test", "rsa.test"} {
		c, err := e.dial(p, &tls.Config{ServerName: site})
		require.NoError(t, err)
		c.Close()
		asked := p.keys.Forget()
		require.Len(t, asked, 1)
		assert.Zero(t, asked[0].Scheme)
		assert.Equal(t, ski.SHA256, asked[0].Hash)
	}
}

func TestSplitEngineResumption(t *testing.T) {
	p := newPKI(t)
	file := p.ecdsa(t, "a.test", "b.test")
	e := start(t, Config{Sites: []Site{
		{Names: []string{"a.test"}, Certificates: []string{file}, Static: p.dir, Engine: EngineSplit},
		{Names: []string{"b.test"}, Certificates: []string{file}, Static: p.dir, Engine: EngineSplit},
	}}, p.transport())
	cache := new(oneSession)
	visit := func(name string) bool {
		c, err := e.dial(p, &tls.Config{ServerName: name, ClientSessionCache: cache})
		require.NoError(t, err)
		defer c.Close()
		return c.ConnectionState().DidResume
	}
	assert.False(t, visit("a.test"))
	assert.True(t, visit("a.test"))
	assert.Len(t, p.keys.Forget(), 1)
	assert.False(t, visit("b.test"), "a ticket of site a is good at site b")
	assert.True(t, visit("b.test"))
}

func TestTicketKeysRotate(t *testing.T) {
	now := time.Unix(1e9, 0)
	k := &ticketKeys{now: func() time.Time { return now }}
	first := k.current()
	require.Len(t, first, 1)
	now = now.Add(ticketKeyLife - time.Second)
	assert.Equal(t, first, k.current())
	now = now.Add(time.Second)
	second := k.current()
	require.Len(t, second, 2)
	assert.NotEqual(t, first[0], second[0])
	assert.Equal(t, first[0], second[1])
	now = now.Add(split.TicketLifetime)
	third := k.current()
	require.Len(t, third, 2, "the first has made no ticket that is still good")
	assert.Equal(t, second[0], third[1])
}

// TestKeyLog: the session keys at the edge are those at the client.
func TestKeyLog(t *testing.T) {
	p := newPKI(t)
	for _, engine := range []string{EngineStandard, EngineSplit} {
		cfg := bothSites(t, p, true)
		for i := range cfg.Sites {
			cfg.Sites[i].Engine = engine
		}
		cfg.KeyLog = filepath.Join(t.TempDir(), "keys.txt")
		e := start(t, cfg, p.transport())
		var atClient bytes.Buffer
		for _, suite := range []uint16{tls.TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256, tls.TLS_RSA_WITH_AES_256_GCM_SHA384} {
			client := only(suite)
			client.ServerName, client.KeyLogWriter = "rsa.test", &atClient
			c, err := e.dial(p, client)
			require.NoError(t, err)
			c.Close()
		}
		assert.Contains(t, atClient.String(), "CLIENT_RANDOM ")
		assert.Eventually(t, func() bool { // No handshake waits for it.
			atEdge, _ := os.ReadFile(cfg.KeyLog)
			return atClient.String() == string(atEdge)
		}, time.Minute, time.Millisecond)
		assert.Contains(t, e.log.String(), "level=WARN msg=\"key_log writes down the secrets of every connection")
		info, err := os.Stat(cfg.KeyLog)
		require.NoError(t, err)
		assert.Equal(t, os.FileMode(0o600), info.Mode().Perm())
	}
	open := filepath.Join(t.TempDir(), "open.txt")
	require.NoError(t, os.WriteFile(open, nil, 0o644))
	cfg := bothSites(t, p, false)
	cfg.KeyLog = open
	_, err := New(cfg, p.transport(), nil)
	assert.ErrorContains(t, err, "key_log: "+open+" can be used by others")
	// Nobody reads it: to open it would be to wait for ever, a reload too.
	pipe := filepath.Join(t.TempDir(), "pipe")
	require.NoError(t, syscall.Mkfifo(pipe, 0o600))
	cfg.KeyLog = pipe
	_, err = New(cfg, p.transport(), nil)
	assert.ErrorContains(t, err, "key_log: "+pipe+" is neither a file nor a character device")
	// A check makes none.
	cfg.KeyLog = filepath.Join(t.TempDir(), "none.txt")
	srv, err := New(cfg, p.transport(), nil)
	require.NoError(t, err)
	require.NoError(t, srv.Close())
	assert.NoFileExists(t, cfg.KeyLog)
}

func TestTheKeyLogIsOpenedAnew(t *testing.T) {
	p := newPKI(t)
	cfg := bothSites(t, p, false)
	cfg.KeyLog = filepath.Join(t.TempDir(), "keys.txt")
	e := start(t, cfg, p.transport())
	handshake := func() {
		c, err := e.dial(p, &tls.Config{ServerName: "rsa.test"})
		require.NoError(t, err)
		c.Close()
	}
	has := func() bool {
		data, _ := os.ReadFile(cfg.KeyLog)
		return len(data) > 0
	}
	handshake()
	require.Eventually(t, has, time.Minute, time.Millisecond)
	require.NoError(t, os.Rename(cfg.KeyLog, cfg.KeyLog+".old"))
	e.ReopenLogs()
	handshake()
	require.Eventually(t, has, time.Minute, time.Millisecond)
}

// A disk that takes nothing, or a write that does not return, is no handshake's
// concern.
func TestNoHandshakeWaitsForTheKeyLog(t *testing.T) {
	p := newPKI(t)
	for _, engine := range []string{EngineStandard, EngineSplit} {
		cfg := bothSites(t, p, true)
		for i := range cfg.Sites {
			cfg.Sites[i].Engine = engine
		}
		cfg.KeyLog = filepath.Join(t.TempDir(), "keys.txt")
		require.NoError(t, os.WriteFile(cfg.KeyLog, nil, 0o600))
		e := start(t, cfg, p.transport())
		r, w, err := os.Pipe() // takes 64 KiB, and nobody reads it
		require.NoError(t, err)
		defer r.Close()
		f := e.current().keys.file
		f.mu.Lock() // run has not been woken up
		f.out = w
		f.mu.Unlock()
		f.write(bytes.Repeat([]byte("stuck\n"), 1<<14))
		for e.value(t, "key_log_lost_total") == 0 {
			client := only(tls.TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256)
			client.ServerName = "rsa.test"
			c, err := e.dial(p, client)
			require.NoError(t, err)
			c.Close()
			f.write(bytes.Repeat([]byte("more\n"), 1<<14))
		}
		e.untilLogged(t, `level=ERROR msg="key log: lines are lost" key_log=`+cfg.KeyLog)
	}
}

// foreign is a file of another user.
type foreign struct{ fs.FileInfo }

func (foreign) Sys() any { return &syscall.Stat_t{Uid: uint32(os.Geteuid()) + 1} }

// TestAKeyLogOfAnotherUserIsRefused: who has put it there could read it.
func TestAKeyLogOfAnotherUserIsRefused(t *testing.T) {
	file := filepath.Join(t.TempDir(), "keys.txt")
	require.NoError(t, os.WriteFile(file, nil, 0o600))
	info, err := os.Stat(file)
	require.NoError(t, err)
	require.NoError(t, checkKeyLog(file, info))
	assert.ErrorContains(t, checkKeyLog(file, foreign{info}), "belongs to another user")
}

func TestSplitEngineShutdownFinishesRequests(t *testing.T) {
	for _, http2 := range []bool{false, true} {
		entered, proceed := make(chan struct{}), make(chan struct{})
		var once sync.Once
		origin := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			once.Do(func() { close(entered) })
			<-proceed
			io.WriteString(w, "finished")
		}))
		p := newPKI(t)
		e := start(t, Config{Sites: []Site{
			{Names: []string{"a.test"}, Certificates: []string{p.ecdsa(t, "a.test")}, Proxy: origin.URL, Engine: EngineSplit},
		}}, p.transport())
		client := e.client(t, p)
		client.Transport.(*http.Transport).ForceAttemptHTTP2 = http2
		answer := make(chan string, 1)
		go func() {
			resp, err := client.Get("https://a.test/")
			if err != nil {
				answer <- err.Error()
				return
			}
			defer resp.Body.Close()
			body, _ := io.ReadAll(resp.Body)
			answer <- string(body)
		}()
		<-entered
		stopped := make(chan error, 1)
		go func() { stopped <- e.Shutdown(t.Context()) }()
		require.Eventually(t, func() bool {
			_, err := net.DialTimeout("tcp", e.addr, time.Second)
			return err != nil
		}, time.Minute, 5*time.Millisecond)
		close(proceed)
		assert.Equal(t, "finished", <-answer)
		assert.NoError(t, <-stopped)
		origin.Close()
	}
}

func TestEngineConfiguration(t *testing.T) {
	p := newPKI(t)
	good := Site{Names: []string{"a.test"}, Certificates: []string{p.ecdsa(t, "a.test")}, Static: p.dir}
	for name, tt := range map[string]struct {
		change func(*Config)
		want   string
	}{
		"engine":      {func(c *Config) { c.Sites[0].Engine = "boring" }, "sites[0].engine: 'boring' is not standard or split"},
		"version":     {func(c *Config) { c.Sites[0].Versions = []string{"TLS 1.1"} }, "sites[0].versions[0]: 'TLS 1.1' is not 'TLS 1.2' or 'TLS 1.3'"},
		"group":       {func(c *Config) { c.Sites[0].Groups = []string{"x25519", "P-521"} }, `sites[0].groups[1]: "P-521" is not one of x25519, secp256r1, secp384r1, secp521r1`},
		"group twice": {func(c *Config) { c.Sites[0].Groups = []string{"x25519", "x25519"} }, `sites[0].groups[1]: "x25519" is there already`},
		"group, Java": {func(c *Config) {
			c.KeyServer.JavaNames, c.Sites[0].Groups = "sha256", []string{"secp256r1", "x25519"}
		}, "sites[0].groups[1]: the key server in Java has secp256r1 alone"},
		"version twice":    {func(c *Config) { c.Sites[0].Versions = []string{"TLS 1.2", "TLS 1.2"} }, "sites[0].versions[1]: 'TLS 1.2' is there already"},
		"split, only 1.3":  {func(c *Config) { c.Sites[0].Engine, c.Sites[0].Versions = "split", []string{"TLS 1.3"} }, "sites[0].versions: engine: split is for TLS 1.2"},
		"1.3, draft only":  {func(c *Config) { c.KeyServer.DraftOnly, c.Sites[0].Versions = true, []string{"TLS 1.3"} }, "sites[0].versions[0]: a key server that is draft_only has no TLS 1.3"},
		"method":           {func(c *Config) { c.Sites[0].Method = "RSA" }, "sites[0].method: 'RSA' is not ECDHE or ECDHE-PMS"},
		"method, standard": {func(c *Config) { c.Sites[0].Method = "ECDHE-PMS" }, "sites[0].method: ECDHE-PMS is for engine: split"},
		"method, draft only": {func(c *Config) {
			c.KeyServer.DraftOnly, c.Sites[0].Engine, c.Sites[0].Method = true, "split", "ECDHE-PMS"
		}, "sites[0].method: a key server that is draft_only has no ECDHE-PMS"},
		"legacy": {func(c *Config) { c.Sites[0].LegacyMasterSecret = true }, "sites[0].legacy_master_secret: is for engine: split"},
	} {
		cfg := Config{Sites: []Site{good}}
		tt.change(&cfg)
		_, err := New(cfg, p.transport(), nil)
		assert.EqualError(t, err, "edgeserver: "+tt.want, name)
	}
}

func TestListener(t *testing.T) {
	p := newPKI(t)
	cfg := bothSites(t, p, false)
	cfg.Sites[1].Engine = EngineSplit
	e := start(t, cfg, p.transport())
	tcp, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	l := e.Listener(tcp)
	for i, site := range []string{"rsa.test", "ecdsa.test"} {
		served := make(chan tls.ConnectionState, 1)
		go func() {
			c, err := l.Accept()
			if err != nil {
				return
			}
			defer c.Close()
			io.WriteString(c, "hello")
			served <- c.(interface{ ConnectionState() tls.ConnectionState }).ConnectionState()
		}()
		c, err := tls.Dial("tcp", tcp.Addr().String(), &tls.Config{RootCAs: p.roots, ServerName: site, MaxVersion: tls.VersionTLS12})
		require.NoError(t, err)
		greeting, err := io.ReadAll(c)
		require.NoError(t, err)
		assert.Equal(t, "hello", string(greeting))
		c.Close()
		state := <-served
		assert.Equal(t, site, state.ServerName)
		assert.True(t, state.HandshakeComplete)
		assert.Equal(t, c.ConnectionState().CipherSuite, state.CipherSuite, "site %d", i)
	}
	e.Close()
	_, err = l.Accept()
	assert.Error(t, err)
}

// TestTheProtocolThatWasNegotiatedIsSpoken: a request in HTTP/1.1 on a
// connection for HTTP/2 is no request of a site.
func TestTheProtocolThatWasNegotiatedIsSpoken(t *testing.T) {
	p := newPKI(t)
	e := start(t, Config{Sites: []Site{
		{Names: []string{"a.test"}, Certificates: []string{p.ecdsa(t, "a.test")}, Static: htdocs(t, "this is a"), Engine: EngineSplit},
	}}, p.transport())
	for protocol, status := range map[string]string{"h2": "HTTP/1.1 505 ", "http/1.1": "HTTP/1.1 200 ", "": "HTTP/1.1 200 "} {
		client := &tls.Config{ServerName: "a.test"}
		if protocol != "" {
			client.NextProtos = []string{protocol}
		}
		c, err := e.dial(p, client)
		require.NoError(t, err)
		assert.Equal(t, protocol, c.ConnectionState().NegotiatedProtocol)
		_, err = io.WriteString(c, "GET / HTTP/1.1\r\nHost: a.test\r\nConnection: close\r\n\r\n")
		require.NoError(t, err)
		answer, err := io.ReadAll(c)
		require.NoError(t, err)
		assert.Equal(t, status, string(answer[:min(len(answer), len(status))]), protocol)
		c.Close()
	}
}
