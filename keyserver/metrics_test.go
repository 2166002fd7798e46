package keyserver

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/goccy/go-yaml"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/stretchr/testify/require"

	"github.com/tlsski/tlsski/internal/logqueue"
	"github.com/tlsski/tlsski/ski"
)

func TestMetricsOfRequests(t *testing.T) {
	keys := testKeys()
	m := NewMetrics("v1")
	s := newTestServer(t, keys, func(o *Options) { o.Metrics, o.AuditRequired = m, true })
	s.ask(edgePeer, grantedRequest(keys))
	s.ask(edgePeer, grantedRequest(keys))
	s.ask(ski.Peer{}, grantedRequest(keys))
	unknownKey := grantedRequest(keys)
	unknownKey.SPKI = ski.KeyID{1}
	s.ask(edgePeer, unknownKey)
	s.ServeMalformed(t.Context(), edgePeer, errors.New("no CBOR"))
	s.trail.err = errors.New("disk full")
	require.NoError(t, s.Health())
	s.ask(edgePeer, grantedRequest(keys))
	require.Error(t, s.Health(), "nothing is answered")
	s.trail.err = nil
	s.ask(edgePeer, grantedRequest(keys))
	require.NoError(t, s.Health())

	require.NoError(t, testutil.CollectAndCompare(m, strings.NewReader(`
# HELP ski_keyserver_audit_failures_total Audit records that could not be written.
# TYPE ski_keyserver_audit_failures_total counter
ski_keyserver_audit_failures_total 1
# HELP ski_keyserver_in_flight Requests that are worked on.
# TYPE ski_keyserver_in_flight gauge
ski_keyserver_in_flight 0
# HELP ski_keyserver_requests_total Requests by edge, name of the key, method and what the edge was told.
# TYPE ski_keyserver_requests_total counter
ski_keyserver_requests_total{edge="(other)",key="test-only-ecdsa-p256",method="ECDHE",outcome="request denied"} 1
ski_keyserver_requests_total{edge="edge",key="(other)",method="(other)",outcome="malformed request"} 1
ski_keyserver_requests_total{edge="edge",key="(other)",method="ECDHE",outcome="spki not found"} 1
ski_keyserver_requests_total{edge="edge",key="test-only-ecdsa-p256",method="ECDHE",outcome="output"} 3
ski_keyserver_requests_total{edge="edge",key="test-only-ecdsa-p256",method="ECDHE",outcome="unspecified error"} 1
`), "ski_keyserver_audit_failures_total", "ski_keyserver_in_flight", "ski_keyserver_requests_total"))

	registry := prometheus.NewPedanticRegistry()
	require.NoError(t, registry.Register(m))
	families, err := registry.Gather()
	require.NoError(t, err)
	counts := make(map[string]uint64)
	for _, f := range families {
		for _, one := range f.Metric {
			if h := one.GetHistogram(); h != nil {
				counts[f.GetName()] += h.GetSampleCount()
			}
		}
	}
	require.Equal(t, map[string]uint64{"ski_keyserver_operation_seconds": 4, "ski_keyserver_answer_seconds": 7}, counts)
}

// No peer can make labels by what it sends.
func TestMetricLabelsAreBounded(t *testing.T) {
	keys := testKeys()
	m := NewMetrics("v1")
	s := newTestServer(t, keys, func(o *Options) { o.Metrics = m })
	for i := range 100 {
		req := grantedRequest(keys)
		req.SPKI = ski.KeyID{byte(i), 1}
		s.ask(ski.Peer{SPKI: ski.KeyID{byte(i)}}, req)
		req.Method = ski.Method(strings.Repeat("x", i+1))
		s.ask(ski.Peer{SPKI: ski.KeyID{byte(i)}}, req)
	}
	require.LessOrEqual(t, testutil.CollectAndCount(m, "ski_keyserver_requests_total"), 3)
}

func TestMetricsOfLimits(t *testing.T) {
	keys := testKeys()
	m := NewMetrics("v1")
	entered, release := make(chan bool), make(chan bool)
	store := hookStore{KeyStore: keys, sign: func(context.Context) ([]byte, error) {
		entered <- true
		<-release
		return []byte("signature"), nil
	}}
	s := newTestServer(t, store, func(o *Options) { o.Metrics, o.MaxInFlight = m, 1 })
	done := make(chan bool)
	go func() {
		s.ServeSKI(t.Context(), edgePeer, grantedRequest(keys))
		close(done)
	}()
	<-entered
	s.ServeSKI(t.Context(), edgePeer, grantedRequest(keys))
	require.NoError(t, testutil.CollectAndCompare(m, strings.NewReader(`
# HELP ski_keyserver_in_flight Requests that are worked on.
# TYPE ski_keyserver_in_flight gauge
ski_keyserver_in_flight 1
# HELP ski_keyserver_limited_total Requests refused by a limit.
# TYPE ski_keyserver_limited_total counter
ski_keyserver_limited_total{limit="edge_in_flight"} 0
ski_keyserver_limited_total{limit="edge_rate"} 0
ski_keyserver_limited_total{limit="key_rate"} 0
ski_keyserver_limited_total{limit="server"} 1
`), "ski_keyserver_in_flight", "ski_keyserver_limited_total"))
	close(release)
	<-done
}

// What detectors find and what they raise alarms for is counted, from zero on:
// Prometheus sees no increase in a series that begins with 1.
func TestMetricsOfDetectors(t *testing.T) {
	keys := testKeys()
	m := NewMetrics("v1")
	s := newTestServer(t, keys, func(o *Options) { o.Metrics = m },
		withPolicy(t, keys, "detectors:\n  repeat: {action: alarm, threshold: 2}\n"))
	value := func(metric string, d detector) float64 {
		registry := prometheus.NewPedanticRegistry()
		require.NoError(t, registry.Register(m))
		families, err := registry.Gather()
		require.NoError(t, err)
		for _, f := range families {
			for _, one := range f.Metric {
				if f.GetName() == metric && one.Label[0].GetValue() == d.String() {
					return one.Counter.GetValue()
				}
			}
		}
		return -1
	}
	for d := range detectors {
		if d == detectRSAFailures { // The number of wrong PreMasterSecrets is a padding oracle.
			require.Equal(t, -1., value("ski_keyserver_detections_total", d))
		} else {
			require.Zero(t, value("ski_keyserver_detections_total", d), d)
		}
		require.Zero(t, value("ski_keyserver_alarms_total", d), d)
	}
	req := freshRequest(keys)
	s.ServeSKI(t.Context(), edgePeer, req)
	s.ServeSKI(t.Context(), edgePeer, req)
	require.Equal(t, 1., value("ski_keyserver_detections_total", detectRepeat))
	require.Zero(t, value("ski_keyserver_alarms_total", detectRepeat), "below the threshold")
	s.ServeSKI(t.Context(), edgePeer, req)
	require.Equal(t, 2., value("ski_keyserver_detections_total", detectRepeat))
	require.Eventually(t, func() bool { return value("ski_keyserver_alarms_total", detectRepeat) == 1 }, time.Minute, time.Millisecond)
}

// handshakes is a binding without sessions.
type handshakes struct {
	*liveSessions
	cookies, givenUp uint64
}

func (h handshakes) Handshakes() (cookies, givenUp uint64) { return h.cookies, h.givenUp }

func TestHandshakesOfAllBindingsAreCounted(t *testing.T) {
	m := NewMetrics("v1")
	s := newTestServer(t, testKeys(), func(o *Options) { o.Metrics = m })
	s.SetSessions(handshakes{&liveSessions{}, 5, 1}, &liveSessions{}, handshakes{&liveSessions{}, 0, 2})
	require.NoError(t, testutil.CollectAndCompare(m, strings.NewReader(`
# HELP ski_keyserver_handshakes_given_up_total Handshakes that were given up, or not begun, because there were too many.
# TYPE ski_keyserver_handshakes_given_up_total counter
ski_keyserver_handshakes_given_up_total 3
# HELP ski_keyserver_hello_cookies_total ClientHellos of DTLS that were answered with a cookie alone. Whoever sends them may not be at their address.
# TYPE ski_keyserver_hello_cookies_total counter
ski_keyserver_hello_cookies_total 5
`), "ski_keyserver_handshakes_given_up_total", "ski_keyserver_hello_cookies_total"))
}

func TestMetricsOfThePolicy(t *testing.T) {
	m := NewMetrics("v1")
	m.PolicyLoaded(nil)
	m.PolicyLoaded(errors.New("line 7"))
	m.PolicyLoaded(errors.New("line 7"))
	m.SetPolicyExpiry(time.Unix(2000000000, 0))
	m.SetCertificateExpiry(time.Unix(2000000001, 0))
	require.NoError(t, testutil.CollectAndCompare(m, strings.NewReader(`
# HELP ski_keyserver_certificate_expiry_timestamp_seconds When the key server's own certificate ends.
# TYPE ski_keyserver_certificate_expiry_timestamp_seconds gauge
ski_keyserver_certificate_expiry_timestamp_seconds 2.000000001e+09
# HELP ski_keyserver_policy_expiry_timestamp_seconds When the first rule of the policy that is in force ends; 0 if none does.
# TYPE ski_keyserver_policy_expiry_timestamp_seconds gauge
ski_keyserver_policy_expiry_timestamp_seconds 2e+09
# HELP ski_keyserver_policy_loads_total Attempts to load the policy after the start; a failed one leaves the old policy.
# TYPE ski_keyserver_policy_loads_total counter
ski_keyserver_policy_loads_total{result="failed"} 2
ski_keyserver_policy_loads_total{result="ok"} 1
`), "ski_keyserver_certificate_expiry_timestamp_seconds", "ski_keyserver_policy_expiry_timestamp_seconds", "ski_keyserver_policy_loads_total"))
}

// requireMetrics compares the metrics of some names with their text form.
func requireMetrics(t *testing.T, m *Metrics, text string, names ...string) {
	t.Helper()
	require.NoError(t, testutil.CollectAndCompare(m, strings.NewReader(text), names...))
}

func TestMetricsOfCRLsAndTicketKeys(t *testing.T) {
	ca := newAuthority(t, "CA")
	until := time.Now().Add(9 * time.Hour)
	r, _ := refusing(t, ca.crlUntil(1, until), ca, newAuthority(t, "without"))
	m := NewMetrics("v1")
	ratchet := openRatchet(t, ratchetFile(t), ticketSecret, noon)
	newTestServer(t, testKeys(), func(o *Options) { o.Revocations, o.Metrics, o.TicketRatchet = r, m, ratchet })
	crl := fmt.Sprintf(`
# HELP ski_keyserver_crl_next_update_timestamp_seconds When the CRL of an authority is to be replaced at the latest.
# TYPE ski_keyserver_crl_next_update_timestamp_seconds gauge
ski_keyserver_crl_next_update_timestamp_seconds{authority="CN=CA"} %d
`, until.Unix())
	names := []string{"ski_keyserver_crl_next_update_timestamp_seconds", "ski_keyserver_ticket_file_timestamp_seconds"}
	requireMetrics(t, m, crl, names...) // There is no file yet.
	require.NoError(t, ratchet.save())
	requireMetrics(t, m, crl+fmt.Sprintf(`
# HELP ski_keyserver_ticket_file_timestamp_seconds What the file of the ticket keys has got to: it has no key of tickets that expired before.
# TYPE ski_keyserver_ticket_file_timestamp_seconds gauge
ski_keyserver_ticket_file_timestamp_seconds %d
`, noon.Unix()), names...)
}

// The dashboard and the alerts name no metric that does not exist, and leave
// none out.
func TestDashboardAndAlerts(t *testing.T) {
	descs := make(chan *prometheus.Desc, 100)
	NewMetrics("v1").Describe(descs)
	TokenMetrics(nil).Describe(descs)
	for _, c := range new(logqueue.Queue).Metrics(metricsPrefix) {
		c.Describe(descs)
	}
	close(descs)
	exist := make(map[string]bool)
	for d := range descs {
		exist[regexp.MustCompile(`fqName: "(\w+)"`).FindStringSubmatch(d.String())[1]] = true
	}
	named := make(map[string]bool)
	for _, file := range []string{"../docs/grafana-dashboard.json", "../docs/alerts.yaml"} {
		data, err := os.ReadFile(file)
		require.NoError(t, err)
		for _, name := range regexp.MustCompile(`ski_keyserver_\w+`).FindAllString(string(data), -1) {
			name = strings.TrimSuffix(name, "_bucket")
			require.True(t, exist[name], "%s names %s", file, name)
			named[name] = true
		}
	}
	require.Equal(t, exist, named)

	data, err := os.ReadFile("../docs/grafana-dashboard.json")
	require.NoError(t, err)
	require.True(t, json.Valid(data))
	data, err = os.ReadFile("../docs/alerts.yaml")
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
	for _, rule := range alerts.Groups[0].Rules {
		require.NotEmpty(t, rule.Alert)
		require.NotEmpty(t, rule.Expr)
		require.NotEmpty(t, rule.Annotations["summary"])
	}
}

func TestTicketKeysAreCounted(t *testing.T) {
	metrics := NewMetrics("test")
	s := newTicketServer(t, func(o *Options) { o.Metrics = metrics })
	keys := s.keysFor(edgePeer, "www.example.com")
	s.ServeTickets(t.Context(), edgePeer, "www.example.com", keys.Tag())
	s.ServeTickets(t.Context(), edgePeer, "whatever the peer likes", ski.TicketTag{})
	for _, labels := range [][2]string{{"www.example.com", "output"}, {"www.example.com", "same"}, {otherLabel, "request denied"}} {
		require.EqualValues(t, 1, testutil.ToFloat64(metrics.ticketKeys.WithLabelValues(labels[0], labels[1])), labels)
	}
}
