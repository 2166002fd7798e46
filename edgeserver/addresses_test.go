package edgeserver

import (
	"crypto/tls"
	"fmt"
	"net"
	"net/http"
	"os/exec"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// also has e serve on another address, which it returns.
func (e *edge) also(t *testing.T, addr string) string {
	l, err := net.Listen("tcp", addr)
	require.NoError(t, err)
	ended := make(chan error, 1)
	go func() { ended <- e.Serve(l) }()
	t.Cleanup(func() {
		e.Close()
		assert.NoError(t, <-ended)
	})
	return l.Addr().String()
}

// on is e as it is met on another address.
func (e *edge) on(addr string) *edge { return &edge{Server: e.Server, addr: addr, log: e.log} }

// triples has a site for one name on each of two addresses, one for another name
// on all, and a default site on one.
func triples(t *testing.T, p *testPKI, engine string) Config {
	cert := p.ecdsa(t, "a.test", "b.test", "*.c.test")
	return Config{Sites: []Site{
		{Names: []string{"a.test"}, Addresses: []string{"127.0.0.2"}, Certificates: []string{cert}, Static: htdocs(t, "a on 2"), Engine: engine},
		{Names: []string{"a.test"}, Addresses: []string{"127.0.0.3"}, Certificates: []string{cert}, Static: htdocs(t, "a on 3"), Engine: engine},
		{Names: []string{"b.test"}, Certificates: []string{cert}, Static: htdocs(t, "b everywhere"), Engine: engine},
		{Names: []string{"*.c.test"}, Addresses: []string{"127.0.0.3"}, Default: true, Certificates: []string{cert}, Static: htdocs(t, "the default on 3"), Engine: engine},
	}}
}

func TestSitesByAddress(t *testing.T) {
	for _, engine := range []string{EngineStandard, EngineSplit} {
		p := newPKI(t)
		e := start(t, triples(t, p, engine), p.transport())
		two, three := e.on(e.also(t, "127.0.0.2:0")), e.on(e.also(t, "127.0.0.3:0"))
		for _, tt := range []struct {
			edge       *edge
			name, want string // empty: unrecognized_name
		}{
			{e, "a.test", ""}, {e, "b.test", "b everywhere"}, {e, "x.c.test", ""}, {e, "unknown.test", ""},
			{two, "a.test", "a on 2"}, {two, "b.test", "b everywhere"}, {two, "x.c.test", ""}, {two, "unknown.test", ""},
			{three, "a.test", "a on 3"}, {three, "b.test", "b everywhere"}, {three, "x.c.test", "the default on 3"}, {three, "unknown.test", "the default on 3"},
		} {
			c := tt.edge.client(t, p)
			c.Transport.(*http.Transport).TLSClientConfig.InsecureSkipVerify = true
			if tt.want != "" {
				_, body := get(t, c, "https://"+tt.name+"/")
				assert.Equal(t, tt.want, body, "%s on %s", tt.name, tt.edge.addr)
				continue
			}
			_, err := tt.edge.dial(p, &tls.Config{ServerName: tt.name})
			assertAlert(t, 112, err) // unrecognized_name
		}
		assert.Contains(t, e.log.String(), "site=a.test@127.0.0.3")
		assert.Contains(t, e.log.String(), "addr="+e.addr+" url=https://b.test:")
		assert.Contains(t, e.log.String(), "addr="+two.addr+" url=https://a.test:")
	}
}

// TestARequestForAnotherTriple: one certificate is good for all the names, and a
// client takes a connection that it has for another of them, as HTTP/2 lets it
// (RFC 9113, Section 9.1.1).
func TestARequestForAnotherTriple(t *testing.T) {
	for _, engine := range []string{EngineStandard, EngineSplit} {
		p := newPKI(t)
		e := start(t, triples(t, p, engine), p.transport())
		two, three := e.on(e.also(t, "127.0.0.2:0")), e.on(e.also(t, "127.0.0.3:0"))
		for _, tt := range []struct {
			edge       *edge
			name, host string
			status     int
		}{
			{e, "b.test", "b.test:8443", 200}, {e, "b.test", "a.test", 421}, {e, "b.test", "unknown.test", 421},
			{two, "a.test", "b.test", 421}, {two, "b.test", "a.test", 421}, {two, "a.test", "127.0.0.2", 421},
			{three, "a.test", "x.c.test", 421}, {three, "x.c.test", "y.c.test", 200}, {three, "x.c.test", "unknown.test", 200}, {three, "x.c.test", "a.test", 421},
		} {
			for _, http2 := range []bool{false, true} {
				c := tt.edge.client(t, p)
				c.Transport.(*http.Transport).ForceAttemptHTTP2 = http2
				req, err := http.NewRequest("GET", "https://"+tt.name, nil)
				require.NoError(t, err)
				req.Host = tt.host
				resp, err := c.Do(req)
				require.NoError(t, err)
				resp.Body.Close()
				assert.Equal(t, tt.status, resp.StatusCode, "%s for %s on %s", tt.name, tt.host, tt.edge.addr)
				assert.Equal(t, http2, resp.ProtoMajor == 2)
			}
		}
	}
}

// TestATicketIsOfOneAddress: sites with one name are two sites.
func TestATicketIsOfOneAddress(t *testing.T) {
	for _, way := range ways {
		p := newPKI(t)
		e := start(t, triples(t, p, way.engine), p.transport())
		two, three := e.on(e.also(t, "127.0.0.2:0")), e.on(e.also(t, "127.0.0.3:0"))
		cache := new(oneSession)
		visit := func(e *edge) bool {
			state, err := e.dialAndRead(p, &tls.Config{ServerName: "a.test", MaxVersion: way.version, ClientSessionCache: cache})
			require.NoError(t, err)
			return state.DidResume
		}
		assert.False(t, visit(two))
		assert.True(t, visit(two))
		assert.False(t, visit(three), way.name)
	}
}

// TestSitesByPort: an address with a port is for that alone, and a site with the
// address alone is on its other ports too.
func TestSitesByPort(t *testing.T) {
	p := newPKI(t)
	l, err := net.Listen("tcp", "[::1]:0")
	require.NoError(t, err)
	first := l.Addr().String()
	cert := p.ecdsa(t, "a.test", "b.test")
	e := start(t, Config{Sites: []Site{
		{Names: []string{"a.test"}, Addresses: []string{first}, Certificates: []string{cert}, Static: htdocs(t, "one port")},
		{Names: []string{"b.test"}, Addresses: []string{"::1"}, Certificates: []string{cert}, Static: htdocs(t, "all ports")},
	}}, p.transport())
	go e.Serve(l)
	second := e.also(t, "[::1]:0")
	_, body := get(t, e.on(first).client(t, p), "https://a.test")
	assert.Equal(t, "one port", body)
	for _, addr := range []string{first, second} {
		_, body = get(t, e.on(addr).client(t, p), "https://b.test")
		assert.Equal(t, "all ports", body)
	}
	_, err = e.on(second).dial(p, &tls.Config{ServerName: "a.test"})
	assertAlert(t, 112, err)
	_, err = e.dial(p, &tls.Config{ServerName: "b.test"})
	assertAlert(t, 112, err)
}

func TestSitesByAddressWithCurl(t *testing.T) {
	p := newPKI(t)
	cfg := triples(t, p, EngineStandard)
	e := start(t, cfg, p.transport())
	ca := cfg.Sites[0].Certificates[0]
	for _, i := range []int{2, 3} {
		_, port, err := net.SplitHostPort(e.also(t, fmt.Sprintf("127.0.0.%d:0", i)))
		require.NoError(t, err)
		out, err := exec.Command("curl", "--silent", "--show-error", "--fail", "--cacert", ca, "--max-time", "60",
			"--resolve", fmt.Sprintf("a.test:%s:127.0.0.%d", port, i), "https://a.test:"+port).CombinedOutput()
		require.NoError(t, err, string(out))
		assert.Equal(t, fmt.Sprintf("a on %d", i), string(out))
	}
}

func TestAddressesAreListenedOn(t *testing.T) {
	for name, tt := range map[string]struct {
		sites [][]string // the addresses of each
		want  []string
	}{
		"no addresses":          {[][]string{nil}, []string{":8443"}},
		"a port":                {[][]string{{"127.0.0.2:443"}}, []string{"127.0.0.2:443"}},
		"without a port":        {[][]string{{"127.0.0.2", "::1"}}, []string{"127.0.0.2:8443", "[::1]:8443"}},
		"the port of another":   {[][]string{{"127.0.0.2"}, {"127.0.0.2:443"}}, []string{"127.0.0.2:443"}},
		"twice the same":        {[][]string{{"127.0.0.2:443"}, {"127.0.0.2:443"}}, []string{"127.0.0.2:443"}},
		"one with, one without": {[][]string{{"127.0.0.2:443", "127.0.0.3:8443", "127.0.0.4"}, nil}, []string{":8443", "127.0.0.2:443"}},
	} {
		var cfg Config
		for _, addresses := range tt.sites {
			cfg.Sites = append(cfg.Sites, Site{Addresses: addresses})
		}
		assert.Equal(t, tt.want, cfg.withDefaults().Listen, name)
	}
}

func TestAddressErrors(t *testing.T) {
	p := newPKI(t)
	cert := p.ecdsa(t, "a.test")
	for name, tt := range map[string]struct {
		listen       []string
		first, other []string // addresses of a site with the name a.test, the default, and of another such
		want         string
	}{
		"a name":        {nil, []string{"localhost"}, nil, "sites[0].addresses[0]: 'localhost' is not a local address such as"},
		"a port alone":  {nil, []string{":443"}, nil, "sites[0].addresses[0]: ':443' is not a local address"},
		"port 0":        {nil, []string{"127.0.0.2:0"}, nil, "sites[0].addresses[0]: '127.0.0.2:0' has the port 0"},
		"all":           {nil, []string{"0.0.0.0:443"}, nil, "sites[0].addresses[0]: '0.0.0.0:443' is not the local address of any connection"},
		"twice":         {nil, []string{"127.0.0.2", "::ffff:127.0.0.2"}, nil, "sites[0].addresses[1]: '::ffff:127.0.0.2' is there already"},
		"twice, a port": {nil, []string{"127.0.0.2", "127.0.0.2:443"}, nil, "sites[0].addresses[1]: '127.0.0.2:443' is there already"},
		"not listened on": {[]string{"127.0.0.1:443", "127.0.0.2:444"}, []string{"127.0.0.2:444", "127.0.0.2:443"}, nil,
			"sites[0].addresses[1]: '127.0.0.2:443' is on none of the addresses in listen"},
		"not of IPv4":         {[]string{"0.0.0.0:443"}, []string{"::1"}, nil, "sites[0].addresses[0]: '::1' is on none"},
		"the same name":       {nil, []string{"127.0.0.2"}, []string{"127.0.0.3", "127.0.0.2:443"}, "sites[1].names[0]: 'a.test' is already the name at sites[0].names[0], on one of the same addresses"},
		"the same everywhere": {nil, []string{"127.0.0.2"}, []string{}, "sites[1].names[0]: 'a.test' is already the name at sites[0].names[0]"},
		"two ports":           {nil, []string{"127.0.0.2:443"}, []string{"127.0.0.2:444"}, ""},
		"all listened on":     {[]string{":https", "[::1]:444"}, []string{"127.0.0.2:443", "::1", "127.0.0.4:443"}, []string{"127.0.0.3"}, ""},
		"a name listened on":  {[]string{"localhost:443"}, []string{"127.0.0.1:443"}, nil, ""},
	} {
		site := Site{Names: []string{"a.test"}, Default: true, Addresses: tt.first, Certificates: []string{cert}, Static: p.dir}
		cfg := Config{Listen: tt.listen, Sites: []Site{site}}
		if tt.other != nil {
			site.Addresses = tt.other
			cfg.Sites = append(cfg.Sites, site)
		}
		srv, err := New(cfg, p.transport(), nil)
		if tt.want == "" {
			if assert.NoError(t, err, name) {
				srv.Close()
			}
			continue
		}
		assert.ErrorContains(t, err, "edgeserver: "+tt.want, name)
	}
	twoDefaults := Config{Sites: []Site{
		{Default: true, Certificates: []string{cert}, Static: p.dir},
		{Default: true, Addresses: []string{"127.0.0.2"}, Certificates: []string{cert}, Static: p.dir},
	}}
	_, err := New(twoDefaults, p.transport(), nil)
	assert.EqualError(t, err, "edgeserver: sites[1].default: sites[0] is the default site already, on one of the same addresses")
}

// Metrics and logs tell all sites of a configuration apart.
func TestLabelsOfSites(t *testing.T) {
	cfg := Config{Sites: []Site{
		{Names: []string{"a.test"}, Addresses: []string{"192.0.2.1"}}, {Names: []string{"A.test"}, Addresses: []string{"192.0.2.2:443", "192.0.2.3"}},
		{Names: []string{"default"}}, {Default: true},
	}}
	var labels []string
	for i := range cfg.Sites {
		labels = append(labels, cfg.label(i))
	}
	assert.Equal(t, []string{"a.test@192.0.2.1", "A.test@192.0.2.2:443", "default", "(default)"}, labels)
}
