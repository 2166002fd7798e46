package edgeserver

import (
	"bytes"
	"crypto/tls"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

const proxySignature = "\r\n\r\n\x00\r\nQUIT\n"

// proxyHeader makes a header of version 2: command and version, family and
// protocol, and what follows the length.
func proxyHeader(command, family byte, rest string) string {
	return proxySignature + string(binary.BigEndian.AppendUint16([]byte{command, family}, uint16(len(rest)))) + rest
}

const (
	overIPv4 = "\xc0\x00\x02\x07\xcb\x00\x71\x01\x04\xd2\x01\xbb" // 192.0.2.7:1234 to 203.0.113.1:443
	overIPv6 = "\x20\x01\x0d\xb8\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x01" +
		"\x20\x01\x0d\xb8\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x02\x04\xd2\x01\xbb"
	fields = "\x02\x00\x06a.test\xe0\x00\x00" // the authority, and a field of someone's own
)

var proxyHeaders = map[string]struct {
	header        string
	remote, local string // "": its own
	err           string // "": none
}{
	"IPv4":                    {proxyHeader(0x21, 0x11, overIPv4), "192.0.2.7:1234", "203.0.113.1:443", ""},
	"IPv6":                    {proxyHeader(0x21, 0x21, overIPv6), "[2001:db8::1]:1234", "[2001:db8::2]:443", ""},
	"fields":                  {proxyHeader(0x21, 0x11, overIPv4+fields), "192.0.2.7:1234", "203.0.113.1:443", ""},
	"many fields":             {proxyHeader(0x21, 0x11, overIPv4+"\xe0\x0f\xf1"+strings.Repeat("x", maxProxyHeader-len(overIPv4)-3)), "192.0.2.7:1234", "203.0.113.1:443", ""},
	"LOCAL":                   {proxyHeader(0x20, 0x00, ""), "", "", ""},
	"LOCAL with addresses":    {proxyHeader(0x20, 0x11, overIPv4), "", "", ""},
	"nothing":                 {"", "", "", "EOF"},
	"version 1":               {"PROXY TCP4 192.0.2.7 203.0.113.1 1234 443\r\n", "", "", "version 1"},
	"a ClientHello":           {"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + strings.Repeat("r", 32), "", "", "there is no PROXY header"},
	"one byte of another":     {"G", "", "", "there is no PROXY header"},
	"too many fields":         {proxyHeader(0x21, 0x11, overIPv4+strings.Repeat("x", maxProxyHeader)), "", "", "4108 bytes, which is more than 4096"},
	"version 3":               {proxyHeader(0x31, 0x11, overIPv4), "", "", "malformed"},
	"no known command":        {proxyHeader(0x22, 0x11, overIPv4), "", "", "malformed"},
	"no known family":         {proxyHeader(0x21, 0x41, overIPv4), "", "", "malformed"},
	"no family":               {proxyHeader(0x21, 0x00, ""), "", "", "malformed"},
	"UDP":                     {proxyHeader(0x21, 0x12, overIPv4), "", "", "not about a TCP connection"},
	"a socket of Unix":        {proxyHeader(0x21, 0x31, strings.Repeat("\x00", 216)), "", "", "not about a TCP connection"},
	"addresses too short":     {proxyHeader(0x21, 0x11, overIPv4[:11]), "", "", "malformed"},
	"IPv6 as long as IPv4":    {proxyHeader(0x21, 0x21, overIPv4), "", "", "malformed"},
	"an end in the signature": {proxySignature[:5], "", "", "cut short"},
	"an end in the addresses": {proxyHeader(0x21, 0x11, overIPv4)[:20], "", "", "cut short"},
}

func TestReadProxyHeader(t *testing.T) {
	for name, tt := range proxyHeaders {
		t.Run(name, func(t *testing.T) {
			r := strings.NewReader(tt.header + "the client's")
			if tt.err != "" {
				r = strings.NewReader(tt.header)
			}
			remote, local, err := readProxyHeader(r)
			if tt.err != "" {
				assert.ErrorContains(t, err, tt.err)
				return
			}
			require.NoError(t, err)
			if tt.remote == "" {
				assert.Nil(t, remote)
				assert.Nil(t, local)
			} else {
				assert.Equal(t, tt.remote, remote.String())
				assert.Equal(t, tt.local, local.String())
			}
			rest, err := io.ReadAll(r)
			require.NoError(t, err)
			assert.Equal(t, "the client's", string(rest), "what follows the header is not touched")
		})
	}
}

// FuzzProxyHeader: a header is taken whole or refused, and what is taken can be
// sent on.
func FuzzProxyHeader(f *testing.F) {
	for _, tt := range proxyHeaders {
		f.Add([]byte(tt.header))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		r := bytes.NewReader(data)
		remote, local, err := readProxyHeader(r)
		if err != nil {
			assert.LessOrEqual(t, len(data)-r.Len(), proxyHeaderLen+maxProxyHeader)
			return
		}
		assert.Equal(t, proxyHeaderLen+int(binary.BigEndian.Uint16(data[14:])), len(data)-r.Len())
		assert.Equal(t, remote == nil, local == nil)
		if remote == nil {
			return
		}
		var sent bytes.Buffer
		require.NoError(t, sendProxyHeader(&sent, remote, local))
		again, to, err := readProxyHeader(&sent)
		require.NoError(t, err)
		assert.Equal(t, remote.String(), again.String())
		assert.Equal(t, local.String(), to.String())
	})
}

// TestProxyProtocol: the origin learns the client's address from the balancer's
// header, and from nobody else's.
func TestProxyProtocol(t *testing.T) {
	addr := origin(t, func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, r.Header.Get("X-Forwarded-For")) })
	for _, tt := range []struct {
		name, from, header string
		client             string // as the origin sees it; "": refused
		log                string
	}{
		{"a header", "127.0.0.0/8", proxyHeader(0x21, 0x11, overIPv4), "192.0.2.7", `msg=handshake remote=192.0.2.7:1234 .*via=127\.0\.0\.1:`},
		{"a header about IPv6", "127.0.0.1", proxyHeader(0x21, 0x21, overIPv6+fields), "2001:db8::1", `msg=handshake remote=\[2001:db8::1\]:1234`},
		{"a health check", "127.0.0.0/8", proxyHeader(0x20, 0x00, ""), "127.0.0.1", `msg=handshake remote=127\.0\.0\.1:`},
		{"no header", "127.0.0.0/8", "", "", `level=WARN msg="connection refused: it is from an address in proxy_protocol.from" remote=127\.0\.0\.1:.* error="there is no PROXY header"`},
		{"version 1", "127.0.0.0/8", "PROXY TCP4 192.0.2.7 203.0.113.1 1234 443\r\n", "", `level=WARN msg="connection refused.* error="the PROXY header is one of version 1: version 2 is needed"`},
		{"a header from elsewhere", "192.0.2.0/24", proxyHeader(0x21, 0x11, overIPv4), "", `level=DEBUG msg="handshake failed" remote=127\.0\.0\.1:.* error="a PROXY header that proxy_protocol.from does not allow"`},
		{"version 1 from elsewhere", "192.0.2.0/24", "PROXY TCP4 192.0.2.7 203.0.113.1 1234 443\r\n", "", `error="a PROXY header that proxy_protocol.from does not allow"`},
		{"none from elsewhere", "192.0.2.0/24", "", "127.0.0.1", `msg=handshake remote=127\.0\.0\.1:`},
		{"two headers", "127.0.0.0/8", strings.Repeat(proxyHeader(0x21, 0x11, overIPv4), 2), "", `error="a PROXY header that proxy_protocol.from does not allow"`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			for _, engine := range []string{EngineStandard, EngineSplit} {
				p := newPKI(t)
				e := start(t, Config{ProxyProtocol: ProxyProtocol{From: []string{tt.from}}, Sites: []Site{
					{Names: []string{"a.test"}, Certificates: []string{p.ecdsa(t, "a.test")}, Proxy: "http://" + addr, Engine: engine},
				}}, p.transport())
				tcp, err := net.Dial("tcp", e.addr)
				require.NoError(t, err)
				tcp.SetDeadline(time.Now().Add(time.Minute))
				io.WriteString(tcp, tt.header)
				c := tls.Client(tcp, &tls.Config{RootCAs: p.roots, ServerName: "a.test"})
				err = c.Handshake()
				if tt.client == "" {
					assert.Error(t, err)
				} else {
					require.NoError(t, err)
					io.WriteString(c, "GET / HTTP/1.0\r\nHost: a.test\r\nX-Forwarded-For: 198.51.100.1\r\n\r\n")
					answer, err := io.ReadAll(c)
					require.NoError(t, err)
					assert.True(t, strings.HasSuffix(string(answer), "\r\n\r\n"+tt.client), string(answer))
				}
				tcp.Close()
				require.Eventually(t, func() bool { return strings.Contains(e.log.String(), "remote=") }, time.Minute, time.Millisecond)
				assert.Regexp(t, tt.log, e.log.String())
			}
		})
	}
}

// TestABalancerThatIsSilentIsNotWaitedForForever.
func TestABalancerThatIsSilentIsNotWaitedForForever(t *testing.T) {
	p := newPKI(t)
	cfg := bothSites(t, p, false)
	cfg.ProxyProtocol.From = []string{"127.0.0.1"}
	e := start(t, cfg, p.transport())
	c, err := net.Dial("tcp", e.addr)
	require.NoError(t, err)
	defer c.Close()
	io.WriteString(c, proxySignature)
	require.NoError(t, e.Shutdown(t.Context()))
	c.SetReadDeadline(time.Now().Add(time.Minute))
	_, err = c.Read(make([]byte, 1))
	require.Error(t, err)
	assert.NotErrorIs(t, err, os.ErrDeadlineExceeded)
}

// TestCurlSpeaksOnlyVersion1OfTheProxyProtocol, which is refused.
func TestCurlSpeaksOnlyVersion1OfTheProxyProtocol(t *testing.T) {
	p := newPKI(t)
	e := start(t, Config{ProxyProtocol: ProxyProtocol{From: []string{"127.0.0.1"}}, Sites: []Site{
		{Names: []string{"a.test"}, Certificates: []string{p.ecdsa(t, "a.test")}, Static: htdocs(t, "this is a")},
	}}, p.transport())
	err := exec.Command("curl", "--silent", "--max-time", "60", "--haproxy-protocol", "--cacert", e.Sites()[0].Certificates[0],
		"--resolve", "a.test:"+e.port(t)+":127.0.0.1", "https://a.test:"+e.port(t)+"/").Run()
	assert.Error(t, err)
	assert.Contains(t, e.log.String(), "the PROXY header is one of version 1")
}

// TestHAProxy has a real load balancer before the edge, which sends headers and
// checks the edge's health, and one behind a tcp site, which reads them.
func TestHAProxy(t *testing.T) {
	var sockets []*os.File
	listen := func() (port string) {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		require.NoError(t, err)
		defer l.Close()
		file, err := l.(*net.TCPListener).File()
		require.NoError(t, err)
		sockets = append(sockets, file)
		_, port, err = net.SplitHostPort(l.Addr().String())
		require.NoError(t, err)
		return port
	}
	before, behind := listen(), listen()
	for _, engine := range []string{EngineStandard, EngineSplit} {
		t.Run(engine, func(t *testing.T) {
			addr := origin(t, func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, r.Header.Get("X-Forwarded-For")) })
			p := newPKI(t)
			e := start(t, Config{ProxyProtocol: ProxyProtocol{From: []string{"127.0.0.1"}}, Sites: []Site{
				{Names: []string{"a.test"}, Certificates: []string{p.ecdsa(t, "a.test")}, Proxy: "http://" + addr, Engine: engine},
				{Names: []string{"t.test"}, Certificates: []string{p.ecdsa(t, "t.test")}, TCP: "127.0.0.1:" + behind, ProxyProtocol: true, Engine: engine},
			}}, p.transport())
			conf := filepath.Join(t.TempDir(), "haproxy.cfg")
			require.NoError(t, os.WriteFile(conf, fmt.Appendf(nil, `
defaults
  timeout connect 60s
  timeout client 60s
  timeout server 60s
frontend before
  mode tcp
  bind fd@3
  default_backend edge
backend edge
  mode tcp
  server edge %s send-proxy-v2 proxy-v2-options authority,unique-id check inter 20ms
frontend behind
  mode http
  bind fd@4 accept-proxy
  http-request return status 200 content-type text/plain lf-string "%%[src]:%%[src_port] %%[dst]:%%[dst_port]"
`, e.addr), 0o600))
			haproxy := exec.Command("/usr/sbin/haproxy", "-db", "-q", "-f", conf)
			haproxy.ExtraFiles = sockets
			said := new(logBuffer)
			haproxy.Stderr = said
			require.NoError(t, haproxy.Start())
			defer haproxy.Wait()
			defer haproxy.Process.Kill()

			ask := func(site string) (answer string, self net.Addr) {
				c, err := tls.Dial("tcp", "127.0.0.1:"+before, &tls.Config{RootCAs: p.roots, ServerName: site})
				require.NoError(t, err, said.String())
				defer c.Close()
				c.SetDeadline(time.Now().Add(time.Minute))
				fmt.Fprintf(c, "GET / HTTP/1.1\r\nHost: %s\r\nConnection: close\r\n\r\n", site)
				all, err := io.ReadAll(c)
				require.NoError(t, err)
				_, answer, _ = strings.Cut(string(all), "\r\n\r\n")
				return answer, c.LocalAddr()
			}
			answer, _ := ask("a.test")
			assert.Equal(t, "127.0.0.1", answer)
			answer, self := ask("t.test")
			assert.Equal(t, self.String()+" 127.0.0.1:"+before, answer)
			require.Eventually(t, func() bool { return strings.Count(e.log.String(), `msg="handshake failed"`) > 2 }, time.Minute, time.Millisecond, "health checks")
			assert.NotContains(t, e.log.String(), "level=WARN")
		})
	}
	for _, file := range sockets {
		file.Close()
	}
}

// TestSitesByTheAddressInTheHeader: it is the one that the client has connected
// to.
func TestSitesByTheAddressInTheHeader(t *testing.T) {
	p := newPKI(t)
	file := p.ecdsa(t, "a.test")
	for _, engine := range []string{EngineStandard, EngineSplit} {
		e := start(t, Config{ProxyProtocol: ProxyProtocol{From: []string{"127.0.0.1"}}, Sites: []Site{
			{Names: []string{"a.test"}, Certificates: []string{file}, Static: htdocs(t, "the one"), Engine: engine, Addresses: []string{"203.0.113.1:443"}},
			{Names: []string{"a.test"}, Certificates: []string{file}, Static: htdocs(t, "the other"), Engine: engine, Addresses: []string{"2001:db8::2"}},
		}}, p.transport())
		assert.Equal(t, []string{":8443"}, e.current().cfg.Listen)
		for header, want := range map[string]string{
			proxyHeader(0x21, 0x11, overIPv4): "the one", proxyHeader(0x21, 0x21, overIPv6): "the other", proxyHeader(0x20, 0x00, ""): "",
		} {
			tcp, err := net.Dial("tcp", e.addr)
			require.NoError(t, err)
			tcp.SetDeadline(time.Now().Add(time.Minute))
			io.WriteString(tcp, header)
			c := tls.Client(tcp, &tls.Config{RootCAs: p.roots, ServerName: "a.test"})
			if want == "" {
				assertAlert(t, 112, c.Handshake()) // unrecognized_name
				tcp.Close()
				continue
			}
			io.WriteString(c, "GET / HTTP/1.0\r\nHost: a.test\r\n\r\n")
			answer, err := io.ReadAll(c)
			require.NoError(t, err)
			assert.True(t, strings.HasSuffix(string(answer), want), string(answer))
			tcp.Close()
		}
	}
}
