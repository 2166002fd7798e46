package edgeserver

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/goccy/go-yaml"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/tlsski/tlsski/internal/logqueue"
	"github.com/tlsski/tlsski/ski"
)

// value returns a counter or a gauge, or how many a histogram has counted: of the
// series with these labels, which are names and values in turn, 0 where there is
// none.
func (e *edge) value(t *testing.T, name string, labels ...string) float64 {
	t.Helper()
	registry := prometheus.NewPedanticRegistry()
	require.NoError(t, registry.Register(e.Metrics()))
	families, err := registry.Gather()
	require.NoError(t, err)
	want := map[string]string{}
	for i := 0; i < len(labels); i += 2 {
		want[labels[i]] = labels[i+1]
	}
	var sum float64
	for _, f := range families {
		if f.GetName() != metricsPrefix+name {
			continue
		}
		for _, one := range f.Metric {
			fits := 0
			for _, pair := range one.Label {
				if value, ok := want[pair.GetName()]; ok && value == pair.GetValue() {
					fits++
				}
			}
			if fits == len(want) {
				sum += one.GetCounter().GetValue() + one.GetGauge().GetValue() + float64(one.GetHistogram().GetSampleCount())
			}
		}
	}
	return sum
}

// site returns the site that the log calls label.
func (s *Server) site(label string) *site {
	for _, one := range s.current().sites.all {
		if one.label == label {
			return one
		}
	}
	return nil
}

// until waits for a value: what a client has seen is counted a moment later.
func (e *edge) until(t *testing.T, want float64, name string, labels ...string) {
	t.Helper()
	require.Eventually(t, func() bool { return e.value(t, name, labels...) == want }, time.Minute, time.Millisecond,
		"%s%v is %v, not %v", name, labels, e.value(t, name, labels...), want)
}

func TestMetricsOfHandshakes(t *testing.T) {
	p := newPKI(t)
	for _, engine := range []string{EngineStandard, EngineSplit} {
		t.Run(engine, func(t *testing.T) {
			e := start(t, Config{Sites: []Site{{
				Names: []string{"a.test"}, Certificates: []string{p.ecdsa(t, "a.test")}, Static: p.dir, Engine: engine, Versions: []string{"TLS 1.2"},
			}, {
				Names: []string{"b.test"}, Certificates: []string{p.ecdsa(t, "b.test")}, Static: p.dir, Engine: engine, Versions: []string{"TLS 1.2"},
			}}}, p.transport())
			p.keys.Remove(ski.CertificateKeyID(e.Sites()[1].Leaves[0]))

			cache := tls.NewLRUClientSessionCache(1)
			for range 3 {
				c, err := e.dial(p, &tls.Config{ServerName: "a.test", ClientSessionCache: cache, CipherSuites: []uint16{tls.TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256}})
				require.NoError(t, err)
				e.until(t, 1, "connections")
				e.until(t, 0, "handshakes_in_flight")
				c.Close()
				e.until(t, 0, "connections")
			}
			of := func(site, outcome, resumed string) []string {
				return []string{"site", site, "outcome", outcome, "resumed", resumed}
			}
			negotiated := []string{"version", "TLS 1.2", "cipher_suite", "TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256"}
			e.until(t, 1, "handshakes_total", append(of("a.test", "ok", "false"), negotiated...)...)
			e.until(t, 2, "handshakes_total", append(of("a.test", "ok", "true"), negotiated...)...)
			e.until(t, 2, "handshake_seconds", "resumed", "true")

			_, err := e.dial(p, &tls.Config{ServerName: "b.test"})
			require.Error(t, err)
			e.until(t, 1, "handshakes_total", of("b.test", "keyserver", "false")...)
			_, err = e.dial(p, &tls.Config{ServerName: "unknown.test"})
			require.Error(t, err)
			e.until(t, 1, "handshakes_total", of("(other)", "unknown_name", "false")...)
			_, err = e.dial(p, &tls.Config{ServerName: "a.test", MinVersion: tls.VersionTLS13})
			require.Error(t, err)
			e.until(t, 1, "handshakes_total", "outcome", "failed")

			// It says nothing, and then the edge server ends.
			raw, err := net.Dial("tcp", e.addr)
			require.NoError(t, err)
			defer raw.Close()
			e.until(t, 1, "connections")
			e.until(t, 0, "handshakes_in_flight")
			require.NoError(t, e.Close())
			e.until(t, 1, "handshakes_total", of("(other)", "stopped", "false")...)
			e.until(t, 0, "connections")
		})
	}
}

// Every line of the log about a handshake says of which site it was.
func TestPanicInAHandshake(t *testing.T) {
	assert.Equal(t, 1, testutil.CollectAndCount(newMetrics().handshakes), "one before the site is known increases nothing without its zero")
	p := newPKI(t)
	asked := ski.TransportFunc(func(context.Context, *ski.Request) (*ski.Response, error) { panic("nobody has thought of this") })
	e := start(t, Config{Sites: []Site{
		{Names: []string{"a.test"}, Certificates: []string{p.ecdsa(t, "a.test")}, Static: p.dir},
	}}, asked)
	_, err := e.dial(p, &tls.Config{ServerName: "a.test"})
	require.Error(t, err)
	e.until(t, 1, "handshakes_total", "site", "a.test", "outcome", "panic")
	assert.Regexp(t, `level=ERROR msg="panic in a handshake" site=a\.test remote=127\.0\.0\.1:\d+ panic="nobody has thought of this"`, e.log.String())
	e.until(t, 0, "connections")
}

// No client can make labels by what it sends.
func TestMetricLabelsAreBounded(t *testing.T) {
	p := newPKI(t)
	e := start(t, Config{Sites: []Site{
		{Default: true, Names: []string{"*.test"}, Certificates: []string{p.ecdsa(t, "*.test")}, Static: p.dir},
	}}, p.transport())
	for i := range 20 {
		c, err := e.dial(p, &tls.Config{ServerName: fmt.Sprintf("n%d.test", i)})
		require.NoError(t, err)
		fmt.Fprintf(c, "M%d /%d HTTP/1.1\r\nHost: n%d.test\r\nConnection: close\r\n\r\n", i, i, i)
		_, err = io.Copy(io.Discard, c)
		require.NoError(t, err)
		c.Close()
		e.Metrics().Attempted("coaps://ks.test", ski.Attempt{Endpoint: fmt.Sprintf("coaps://192.0.2.%d", i)})
	}
	e.until(t, 20, "requests_total")
	assert.Equal(t, 1, testutil.CollectAndCount(e.Metrics(), "ski_edgeserver_requests_total"))
	assert.LessOrEqual(t, testutil.CollectAndCount(e.Metrics(), "ski_edgeserver_handshakes_total"), 4)
	assert.Equal(t, 1, testutil.CollectAndCount(e.Metrics(), "ski_edgeserver_ski_attempts_total"))
}

func TestMetricsOfKeyServers(t *testing.T) {
	p := newPKI(t)
	end := time.Now().Add(time.Hour)
	e := start(t, Config{Sites: []Site{
		{Names: []string{"a.test"}, Certificates: []string{p.ecdsa(t, "a.test")}, Static: p.dir},
	}}, p.transport())
	const ks = "coaps://ks.test"
	answers := func() float64 { return e.value(t, "ski_answers", "keyserver", ks) }
	for _, test := range []struct {
		attempt ski.Attempt
		outcome string
		answers float64
	}{
		{ski.Attempt{Kind: ski.FirstAttempt}, "output", 1},
		{ski.Attempt{Kind: ski.FirstAttempt, Err: &ski.TransportError{Err: errors.New("refused")}}, "unreachable", 0},
		{ski.Attempt{Kind: ski.HedgeAttempt, Err: context.Canceled}, "canceled", 0},
		{ski.Attempt{Kind: ski.TrialAttempt, Answer: ski.RequestDenied}, "request denied", 1},
		{ski.Attempt{Kind: ski.FailoverAttempt, Answer: ski.UnspecifiedError}, "unspecified error", 0},
		{ski.Attempt{Kind: ski.RetryAttempt, Answer: ski.UnspecifiedError, Overloaded: true}, "overloaded", 1},
	} {
		e.Metrics().Attempted(ks, test.attempt)
		assert.EqualValues(t, 1, e.value(t, "ski_attempts_total", "keyserver", ks, "kind", string(test.attempt.Kind), "outcome", test.outcome))
		assert.Equal(t, test.answers, answers(), test.outcome)
	}
	assert.EqualValues(t, 6, e.value(t, "ski_attempt_seconds", "keyserver", ks))
	// Of static RSA, whoever reads the metrics and connects must not learn the answer.
	for _, a := range []ski.Attempt{{}, {Answer: ski.UnspecifiedError}, {Answer: ski.UnspecifiedError, Overloaded: true}, {Err: &ski.TransportError{Op: "answer", Err: errors.New("500")}}} {
		a.Kind, a.Method = ski.FirstAttempt, ski.MethodRSA
		before := e.value(t, "ski_attempts_total", "keyserver", ks, "kind", "first", "outcome", "answered")
		e.Metrics().Attempted(ks, a)
		assert.Equal(t, before+1, e.value(t, "ski_attempts_total", "keyserver", ks, "kind", "first", "outcome", "answered"))
		assert.EqualValues(t, 1, answers())
	}
	e.Metrics().SetIdentityExpiry(end)
	assert.EqualValues(t, end.Unix(), e.value(t, "identity_expiry_timestamp_seconds"))
	assert.InDelta(t, end.Unix(), e.value(t, "certificate_expiry_timestamp_seconds", "site", "a.test"), 60)
}

func TestMetricsOutliveAReload(t *testing.T) {
	p := newPKI(t)
	cfg := Config{Sites: []Site{
		{Names: []string{"a.test"}, Certificates: []string{p.ecdsa(t, "a.test")}, Static: htdocs(t, "this is a")},
	}}
	e := start(t, cfg, p.transport())
	get(t, e.client(t, p), "https://a.test/")
	cfg.Sites[0].Certificates[0] = p.issue(t, sharedRSA(), 48*time.Hour, "a.test")
	_, err := e.Reload(cfg, map[string]ski.Transport{"": p.transport()})
	require.NoError(t, err)
	get(t, e.client(t, p), "https://a.test/")
	e.until(t, 2, "requests_total", "site", "a.test")
	e.until(t, 2, "handshakes_total", "site", "a.test")
	assert.InDelta(t, time.Now().Add(48*time.Hour).Unix(), e.value(t, "certificate_expiry_timestamp_seconds", "site", "a.test"), 60)
	loaded := e.value(t, "config_loaded_timestamp_seconds")
	e.Metrics().Reloaded(errors.New("line 7"))
	assert.Equal(t, loaded, e.value(t, "config_loaded_timestamp_seconds"))
	e.Metrics().Reloaded(nil)
	assert.Equal(t, []float64{1, 1}, []float64{e.value(t, "reloads_total", "result", "ok"), e.value(t, "reloads_total", "result", "failed")})
}

// The dashboard and the alerts name no metric that does not exist, and leave
// none out; the names are as Prometheus wants them.
func TestDashboardAndAlerts(t *testing.T) {
	p := newPKI(t)
	e := start(t, Config{Sites: []Site{
		{Names: []string{"a.test"}, Certificates: []string{p.ecdsa(t, "a.test")}, Static: p.dir},
	}}, p.transport())
	problems, err := testutil.CollectAndLint(e.Metrics())
	require.NoError(t, err)
	assert.Empty(t, problems)

	descs := make(chan *prometheus.Desc, 100)
	e.Metrics().Describe(descs)
	for _, c := range new(logqueue.Queue).Metrics(metricsPrefix) {
		c.Describe(descs)
	}
	close(descs)
	exist := map[string]bool{}
	for d := range descs {
		exist[regexp.MustCompile(`fqName: "(\w+)"`).FindStringSubmatch(d.String())[1]] = true
	}
	named := map[string]bool{}
	for _, file := range []string{"../docs/grafana-dashboard.json", "../docs/alerts.yaml"} {
		data, err := os.ReadFile(file)
		require.NoError(t, err)
		for _, name := range regexp.MustCompile(metricsPrefix+`\w+`).FindAllString(string(data), -1) {
			name = strings.TrimSuffix(name, "_bucket")
			assert.True(t, exist[name], "%s names %s", file, name)
			named[name] = true
		}
	}
	assert.Equal(t, exist, named)
	manual, err := os.ReadFile("../docs/operations.md")
	require.NoError(t, err)
	for name := range exist {
		assert.Contains(t, string(manual), "`"+name)
	}

	data, err := os.ReadFile("../docs/alerts.yaml")
	require.NoError(t, err)
	var alerts struct {
		Groups []struct {
			Name  string
			Rules []struct {
				Alert, Expr, For    string
				Labels, Annotations map[string]string
			}
		}
	}
	require.NoError(t, yaml.UnmarshalWithOptions(data, &alerts, yaml.Strict()))
	require.Len(t, alerts.Groups, 2)
	for _, rule := range alerts.Groups[1].Rules {
		assert.True(t, strings.HasPrefix(rule.Alert, "EdgeServer"), rule.Alert)
		assert.NotEmpty(t, rule.Expr)
		assert.NotEmpty(t, rule.Annotations["summary"])
	}
}

func TestMetricsOfLimits(t *testing.T) {
	p := newPKI(t)
	e := start(t, Config{Limits: Limits{ConnectionsPerAddress: 1}, Sites: []Site{
		{Names: []string{"a.test"}, Certificates: []string{p.ecdsa(t, "a.test")}, Static: p.dir},
	}}, p.transport())
	for _, limit := range []string{"connections", "connections_per_address", "handshakes"} {
		assert.Zero(t, e.value(t, "limited_total", "limit", limit))
	}
	c, err := e.dial(p, &tls.Config{ServerName: "a.test"})
	require.NoError(t, err)
	defer c.Close()
	_, err = e.dial(p, &tls.Config{ServerName: "a.test"})
	require.Error(t, err)
	e.until(t, 1, "limited_total", "limit", "connections_per_address")
	e.until(t, 1, "connections")
}

// A key server that is not in the configuration any more is not said to be down
// for ever.
func TestMetricsOfAKeyServerThatIsGone(t *testing.T) {
	m := newMetrics()
	down := ski.Attempt{Kind: ski.FirstAttempt, Err: &ski.TransportError{Err: errors.New("refused")}}
	count := func() int { return testutil.CollectAndCount(m.answers) }
	m.SetKeyServers([]string{"coaps://a.test", "coaps://b.test"})
	m.Attempted("coaps://a.test", down)
	m.Attempted("coaps://b.test", down)
	assert.Equal(t, 2, count())
	m.SetKeyServers([]string{"coaps://b.test"})
	assert.Equal(t, 1, count())
	m.Attempted("coaps://a.test", down) // of a connection of before
	assert.Equal(t, 1, count())
	assert.Zero(t, testutil.ToFloat64(m.answers.WithLabelValues("coaps://b.test")))
}

// requestsCounted returns how many requests the metrics have of a kind.
func (e *edge) requestsCounted(site, method, code string) float64 {
	return testutil.ToFloat64(e.metrics.requests.WithLabelValues(site, method, code))
}
