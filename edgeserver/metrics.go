package edgeserver

import (
	"crypto/tls"
	"runtime"
	"runtime/debug"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/tlsski/tlsski/edgeserver/internal/split"
	"github.com/tlsski/tlsski/ski"
)

// metricsPrefix begins the name of every metric here.
const metricsPrefix = "ski_edgeserver_"

// otherLabel stands for everything that is none of the configuration's or of a
// fixed few, so that no client can make labels. No site has this name.
const otherLabel = "(other)"

// Metrics counts what a Server does, through all of its Reloads. It is a
// prometheus.Collector, which the program registers: Server.Metrics.
type Metrics struct {
	server *Server

	handshakes     *prometheus.CounterVec
	handshakeTimes *prometheus.HistogramVec
	attempts       *prometheus.CounterVec
	attemptTimes   *prometheus.HistogramVec
	answers        *prometheus.GaugeVec
	requests       *prometheus.CounterVec
	requestTimes   *prometheus.HistogramVec
	origins        *prometheus.CounterVec
	reloads        *prometheus.CounterVec
	loaded         prometheus.Gauge
	lostLines      prometheus.Counter
	lostKeyLines   prometheus.Counter
	identityEnd    prometheus.Gauge
	buildInfo      prometheus.Gauge

	// Read when they are asked for.
	connections, inHandshake, limited, certificateEnd, sharedTickets, pending, pendingSince *prometheus.Desc

	mu         sync.Mutex
	keyServers []string // those there are; nil: any
}

// Metrics returns what the Server counts.
func (s *Server) Metrics() *Metrics { return s.metrics }

// Outcomes of a handshake.
const (
	handshakeOK          = "ok"
	handshakeNoAnswer    = "keyserver"          // no answer to go on with
	handshakeUnknown     = "unknown_name"       // no site has the server name
	handshakeCertificate = "client_certificate" // which the site does not accept
	handshakeProxyHeader = "proxy_header"       // which a balancer has not sent
	handshakeLimited     = "limited"            // there are too many
	handshakeTimeout     = "timeout"            // of the client, mostly
	handshakeStopped     = "stopped"            // the edge server stops
	handshakeFailed      = "failed"             // all else: most often the client
	handshakePanic       = "panic"
)

// Reasons for which an origin has not done its part.
const (
	originUnreachable = "unreachable"
	originTimeout     = "timeout"
	originBadAnswer   = "bad answer" // none, half of one, or not HTTP
)

func newMetrics() *Metrics {
	counter := func(name, help string, labels ...string) *prometheus.CounterVec {
		return prometheus.NewCounterVec(prometheus.CounterOpts{Name: metricsPrefix + name, Help: help}, labels)
	}
	histogram := func(name, help string, from float64, label string) *prometheus.HistogramVec {
		return prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: metricsPrefix + name, Help: help, Buckets: prometheus.ExponentialBuckets(from, 2, 17),
		}, []string{label})
	}
	desc := func(name, help string, labels ...string) *prometheus.Desc {
		return prometheus.NewDesc(metricsPrefix+name, help, labels, nil)
	}
	m := &Metrics{
		handshakes: counter("handshakes_total", "TLS handshakes by site, what was negotiated, and what came of them.",
			"site", "version", "cipher_suite", "resumed", "outcome"),
		handshakeTimes: histogram("handshake_seconds", "Time of the handshakes that succeeded, the client's part included.", 250e-6, "resumed"),
		attempts: counter("ski_attempts_total", "Questions to key servers by why they were asked and what came of them.",
			"keyserver", "kind", "outcome"),
		attemptTimes: histogram("ski_attempt_seconds", "Time from a question to a key server to its answer, or until that was not waited for any more.", 50e-6, "keyserver"),
		answers: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: metricsPrefix + "ski_answers", Help: "1 if the last question to the key server that was waited for was answered, 0 if not.",
		}, []string{"keyserver"}),
		requests:     counter("requests_total", "HTTP requests by site, method and class of the answer's status.", "site", "method", "code"),
		requestTimes: histogram("request_seconds", "Time from a request to the header of its answer.", 250e-6, "site"),
		origins:      counter("origin_failures_total", "Requests that the site's origin server did not answer whole.", "site", "reason"),
		reloads:      counter("reloads_total", "Attempts to load the configuration after the start; a failed one leaves the old one.", "result"),
		loaded: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: metricsPrefix + "config_loaded_timestamp_seconds", Help: "When the configuration in force was loaded.",
		}),
		lostLines: prometheus.NewCounter(prometheus.CounterOpts{
			Name: metricsPrefix + "access_log_lost_total", Help: "Lines of access logs that could not be written.",
		}),
		lostKeyLines: prometheus.NewCounter(prometheus.CounterOpts{
			Name: metricsPrefix + "key_log_lost_total", Help: "Lines of key_log that could not be written.",
		}),
		identityEnd: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: metricsPrefix + "identity_expiry_timestamp_seconds", Help: "When the first of the certificates ends that key servers know the edge server by; 0 if there is none.",
		}),
		buildInfo: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: metricsPrefix + "build_info", Help: "1, with what runs as labels.",
			ConstLabels: prometheus.Labels{"version": buildVersion(), "goversion": runtime.Version()},
		}),
		connections:    desc("connections", "Connections of clients that are open."),
		inHandshake:    desc("handshakes_in_flight", "TLS handshakes that are under way, from the ClientHello on."),
		limited:        desc("limited_total", "Connections that a limit has delayed or refused.", "limit"),
		sharedTickets:  desc("shared_ticket_key", "1 if the site has a key of the key server that makes session tickets, 0 if not; of sites that share tickets.", "site"),
		certificateEnd: desc("certificate_expiry_timestamp_seconds", "When the first of the certificates ends that the site's clients get.", "site"),
		pending:        desc("certificates_pending", "The site's certificate files that are not served: no key server is known to have the key, or they cannot be used now.", "site"),
		pendingSince:   desc("certificate_pending_timestamp_seconds", "Since when the first of them is not; 0 if all are.", "site"),
	}
	m.buildInfo.Set(1)
	m.loaded.SetToCurrentTime()
	m.handshakes.WithLabelValues(otherLabel, "", "", "false", handshakePanic) // A rate needs its zero; see serve.
	for _, result := range []string{"ok", "failed"} {
		m.reloads.WithLabelValues(result)
	}
	return m
}

func buildVersion() string {
	if info, ok := debug.ReadBuildInfo(); ok && info.Main.Version != "" {
		return info.Main.Version
	}
	return "(devel)"
}

// serve takes in what there is to serve from now on. A rate needs its zero: a
// series that begins with 1 has not increased.
func (m *Metrics) serve(table *sites) {
	for _, s := range table.all {
		for _, outcome := range []string{handshakeNoAnswer, handshakePanic} {
			m.handshakes.WithLabelValues(s.label, "", "", "false", outcome)
		}
		for _, reason := range []string{originUnreachable, originTimeout, originBadAnswer} {
			if s.Static == "" {
				m.origins.WithLabelValues(s.label, reason)
			}
		}
	}
}

// Attempted counts a question to a key server; it is for ski.Client.OnAttempt.
// keyServer, the label, is one of the configuration's: a name that is looked up
// has other addresses over time.
func (m *Metrics) Attempted(keyServer string, a ski.Attempt) {
	outcome := a.Outcome()
	m.attempts.WithLabelValues(keyServer, string(a.Kind), outcome).Inc()
	m.attemptTimes.WithLabelValues(keyServer).Observe(a.Took.Seconds())
	m.mu.Lock()
	defer m.mu.Unlock()
	switch {
	case m.keyServers != nil && !slices.Contains(m.keyServers, keyServer): // SetKeyServers has taken it away.
	case outcome == "canceled" || outcome == "failed": // says nothing of it
	case outcome == "answered" || a.Err == nil && (a.Answer != ski.UnspecifiedError || a.Overloaded):
		m.answers.WithLabelValues(keyServer).Set(1)
	default:
		m.answers.WithLabelValues(keyServer).Set(0)
	}
}

// SetKeyServers says which key servers there are, by the labels of Attempted: of
// those that are gone nobody is to be told for ever that they do not answer.
func (m *Metrics) SetKeyServers(labels []string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, label := range m.keyServers {
		if !slices.Contains(labels, label) {
			m.answers.DeleteLabelValues(label)
		}
	}
	m.keyServers = labels
}

// SetIdentityExpiry says when the first of the certificates ends that the edge
// server has on the SKI channel. The zero time means that it has none.
func (m *Metrics) SetIdentityExpiry(t time.Time) {
	if t.IsZero() {
		m.identityEnd.Set(0)
	} else {
		m.identityEnd.Set(float64(t.Unix()))
	}
}

// Reloaded counts an attempt to load the configuration anew; err is what became
// of it.
func (m *Metrics) Reloaded(err error) {
	if err != nil {
		m.reloads.WithLabelValues("failed").Inc()
		return
	}
	m.reloads.WithLabelValues("ok").Inc()
	m.loaded.SetToCurrentTime()
}

// shookHands counts a handshake. state is of one that succeeded.
func (m *Metrics) shookHands(s *site, state tls.ConnectionState, outcome string, took time.Duration) {
	version, suite := "", ""
	if outcome == handshakeOK {
		version, suite = tls.VersionName(state.Version), split.SuiteName(state.CipherSuite)
		m.handshakeTimes.WithLabelValues(strconv.FormatBool(state.DidResume)).Observe(took.Seconds())
	}
	m.handshakes.WithLabelValues(siteLabel(s), version, suite, strconv.FormatBool(state.DidResume), outcome).Inc()
}

// answered counts a request. took is the time until its answer began.
func (m *Metrics) answered(s *site, method string, status int, took time.Duration) {
	m.requests.WithLabelValues(siteLabel(s), methodLabel(method), statusClass(status)).Inc()
	m.requestTimes.WithLabelValues(siteLabel(s)).Observe(took.Seconds())
}

// refused counts what was no request, of which no method and no time is known.
func (m *Metrics) refused(s *site, status int) {
	m.requests.WithLabelValues(siteLabel(s), otherLabel, statusClass(status)).Inc()
}

func (m *Metrics) originFailed(s *site, reason string) {
	m.origins.WithLabelValues(siteLabel(s), reason).Inc()
}

// siteLabel returns what a site is called in metrics and logs.
func siteLabel(s *site) string {
	if s == nil {
		return otherLabel
	}
	return s.label
}

// methodLabel returns the method where it is one of RFC 9110, Section 9.3 or
// RFC 5789.
func methodLabel(method string) string {
	switch method {
	case "GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH":
		return method
	}
	return otherLabel
}

func statusClass(status int) string {
	if status < 100 || status > 599 {
		return otherLabel
	}
	return strconv.Itoa(status/100) + "xx"
}

func (m *Metrics) collectors() []prometheus.Collector {
	return []prometheus.Collector{
		m.handshakes, m.handshakeTimes, m.attempts, m.attemptTimes, m.answers, m.requests, m.requestTimes, m.origins,
		m.reloads, m.loaded, m.lostLines, m.lostKeyLines, m.identityEnd, m.buildInfo,
	}
}

// Describe implements prometheus.Collector.
func (m *Metrics) Describe(ch chan<- *prometheus.Desc) {
	for _, c := range m.collectors() {
		c.Describe(ch)
	}
	ch <- m.connections
	ch <- m.inHandshake
	ch <- m.limited
	ch <- m.certificateEnd
	ch <- m.sharedTickets
	ch <- m.pending
	ch <- m.pendingSince
}

// Collect implements prometheus.Collector.
func (m *Metrics) Collect(ch chan<- prometheus.Metric) {
	for _, c := range m.collectors() {
		c.Collect(ch)
	}
	now := func(desc *prometheus.Desc, v float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(desc, prometheus.GaugeValue, v, labels...)
	}
	usage := m.server.Usage()
	now(m.connections, float64(usage.Connections))
	now(m.inHandshake, float64(usage.Handshakes))
	for limit, n := range map[string]uint64{
		"connections":             usage.ConnectionsDelayed,
		"connections_per_address": usage.ConnectionsRefused,
		"handshakes":              usage.HandshakesRefused,
	} {
		ch <- prometheus.MustNewConstMetric(m.limited, prometheus.CounterValue, float64(n), limit)
	}
	for _, s := range m.server.current().sites.all {
		if s.Tickets == TicketsShared {
			has := 0.
			if s.tickets.shared.current().makes {
				has = 1
			}
			now(m.sharedTickets, has, s.label)
		}
		chains := s.chains()
		end := chains[0].Leaf.NotAfter
		for _, chain := range chains[1:] {
			if chain.Leaf.NotAfter.Before(end) {
				end = chain.Leaf.NotAfter
			}
		}
		now(m.certificateEnd, float64(end.Unix()), s.label)
		pending, since := s.pending(), 0.
		for _, p := range pending {
			if at := float64(p.Since.Unix()); since == 0 || at < since {
				since = at
			}
		}
		now(m.pending, float64(len(pending)), s.label)
		now(m.pendingSince, since, s.label)
	}
}
