package edgeserver

import (
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/netip"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func TestWhatTheOriginIsToldOfTheClient(t *testing.T) {
	const forged = "X-Forwarded-For: 198.51.100.9\nX-Forwarded-Host: forged.test\nX-Forwarded-Proto: gopher\nForwarded: for=198.51.100.9\n" +
		"X-Forwarded-Port: 1\nX-Real-IP: 198.51.100.9"
	for name, tt := range map[string]struct{ remote, host, sent, want string }{
		"a client": {"192.0.2.1:1024", "a.test", "", "X-Forwarded-For: 192.0.2.1\nX-Forwarded-Host: a.test\nX-Forwarded-Proto: https\n" +
			"Forwarded: for=192.0.2.1;host=a.test;proto=https"},
		"IPv6 and a port": {"[2001:db8::1]:1024", "a.test:8443", "", "X-Forwarded-For: 2001:db8::1\nX-Forwarded-Host: a.test:8443\nX-Forwarded-Proto: https\n" +
			`Forwarded: for="[2001:db8::1]";host="a.test:8443";proto=https`},
		"a link's address": {"[fe80::1%eth0]:1024", "a.test", "", "X-Forwarded-For: fe80::1\nX-Forwarded-Host: a.test\nX-Forwarded-Proto: https\n" +
			`Forwarded: for="[fe80::1]";host=a.test;proto=https`},
		"IPv4 in IPv6": {"[::ffff:192.0.2.1]:1024", "", "", "X-Forwarded-For: 192.0.2.1\nX-Forwarded-Proto: https\nForwarded: for=192.0.2.1;proto=https"},
		"a host of signs": {"192.0.2.1:1024", `a";for=x`, "", "X-Forwarded-For: 192.0.2.1\nX-Forwarded-Host: a\";for=x\nX-Forwarded-Proto: https\n" +
			`Forwarded: for=192.0.2.1;host="a\";for=x";proto=https`},
		"a client that forges": {"192.0.2.1:1024", "a.test", forged, "X-Forwarded-For: 192.0.2.1\nX-Forwarded-Host: a.test\nX-Forwarded-Proto: https\n" +
			"Forwarded: for=192.0.2.1;host=a.test;proto=https"},
		"a trusted proxy": {"10.0.0.1:1024", "a.test", "X-Forwarded-For: 198.51.100.9\nX-Forwarded-For: 192.0.2.7\nX-Forwarded-Host: front.test\nX-Forwarded-Proto: http\n" +
			"X-Forwarded-Port: 80\nForwarded: for=198.51.100.9, for=192.0.2.7;proto=http\nX_Forwarded_For: forged",
			"X-Forwarded-For: 198.51.100.9, 192.0.2.7, 10.0.0.1\nX-Forwarded-Host: front.test\nX-Forwarded-Proto: http\nX-Forwarded-Port: 80\n" +
				"Forwarded: for=198.51.100.9, for=192.0.2.7;proto=http, for=10.0.0.1;host=a.test;proto=https"},
		"a trusted proxy that says nothing": {"10.0.0.1:1024", "a.test", "", "X-Forwarded-For: 10.0.0.1\nX-Forwarded-Host: a.test\nX-Forwarded-Proto: https\n" +
			"Forwarded: for=10.0.0.1;host=a.test;proto=https"},
		"no address": {"@", "a.test", forged, "X-Forwarded-Host: a.test\nX-Forwarded-Proto: https"},
	} {
		t.Run(name, func(t *testing.T) {
			var got http.Header
			forward := &forwarding{trusted: networks{netip.MustParsePrefix("10.0.0.0/8")}}
			proxy := &httputil.ReverseProxy{
				Rewrite:   forward.set,
				Transport: roundTripper(func(r *http.Request) (*http.Response, error) { got = r.Header; return nil, http.ErrAbortHandler }),
			}
			in := httptest.NewRequest("GET", "/", nil)
			in.Host, in.RemoteAddr = tt.host, tt.remote
			for line := range strings.SplitSeq(tt.sent, "\n") {
				if field, value, ok := strings.Cut(line, ": "); ok {
					in.Header.Add(field, value)
				}
			}
			proxy.ErrorHandler = func(http.ResponseWriter, *http.Request, error) {}
			proxy.ServeHTTP(httptest.NewRecorder(), in)
			want := http.Header{"User-Agent": {""}}
			for line := range strings.SplitSeq(tt.want, "\n") {
				field, value, _ := strings.Cut(line, ": ")
				want.Add(field, value)
			}
			assert.Equal(t, want, got)
		})
	}
}

type roundTripper func(*http.Request) (*http.Response, error)

func (f roundTripper) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

func TestTrustedProxies(t *testing.T) {
	p := newPKI(t)
	cfg := Config{Sites: []Site{{Names: []string{"a.test"}, Certificates: []string{p.ecdsa(t, "a.test")}, Static: p.dir}}}
	for text, want := range map[string]string{
		"10.0.0.0/33": "trusted_proxies[1]: '10.0.0.0/33' is neither a network such as 192.0.2.0/24",
		"proxy.test":  "trusted_proxies[1]: 'proxy.test' is neither a network",
		"10.0.0.1/8":  "trusted_proxies[1]: '10.0.0.1/8' has bits beyond its prefix: the network is 10.0.0.0/8",
	} {
		cfg.TrustedProxies = []string{"192.0.2.1", text}
		_, err := New(cfg, p.transport(), nil)
		assert.ErrorContains(t, err, want)
	}
	cfg.TrustedProxies = []string{"::/0"}
	e := start(t, cfg, p.transport())
	assert.Contains(t, e.log.String(), `level=WARN msg="trusted_proxies has everyone in it`)

	some, err := cfg.parseNetworks("trusted_proxies", []string{"192.0.2.1", "10.0.0.0/8", "2001:db8::/32"})
	require.NoError(t, err)
	for address, want := range map[string]bool{
		"192.0.2.1": true, "192.0.2.2": false, "::ffff:10.1.2.3": true, "2001:db8::1": true, "2001:db9::1": false,
	} {
		assert.Equal(t, want, some.has(netip.MustParseAddr(address)), address)
	}
	assert.False(t, some.hasEveryone())
}
