package keyserver

import (
	"runtime"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/tlsski/tlsski/ski"
)

// metricsPrefix begins the name of every metric here.
const metricsPrefix = "ski_keyserver_"

// otherLabel stands for all edges, keys and methods that are none of the
// configuration's, so that nobody can make labels. No edge can have this name
// by mistake.
const otherLabel = "(other)"

// Metrics counts what a Server does. It is a prometheus.Collector, which the
// program registers, and belongs to one Server (Options.Metrics). Its methods
// do nothing on nil.
type Metrics struct {
	server *Server // nil until New

	requests       *prometheus.CounterVec
	operations     *prometheus.HistogramVec
	answers        *prometheus.HistogramVec
	limited        *prometheus.CounterVec
	alarms         *prometheus.CounterVec
	ticketKeys     *prometheus.CounterVec
	policyLoads    *prometheus.CounterVec
	policyLoaded   prometheus.Gauge
	policyExpiry   prometheus.Gauge
	certificateEnd prometheus.Gauge
	reloadFaults   *prometheus.GaugeVec
	auditFailures  prometheus.Counter
	auditCounted   *prometheus.CounterVec
	buildInfo      prometheus.Gauge

	// Read when they are asked for.
	keys, inFlight, rsaWaiting, sessions, cookies, givenUp, detections, auditReserve *prometheus.Desc
	auditWitness                                                                     *prometheus.Desc
	crlNextUpdate                                                                    *prometheus.Desc
	ticketFile                                                                       *prometheus.Desc
	auditBroken, auditLost, auditTipWaits, auditWaits                                *prometheus.Desc
}

// latencyBuckets are in seconds: from a signature on a curve to the longest
// that a client may wait.
var latencyBuckets = prometheus.ExponentialBuckets(50e-6, 2, 17)

// NewMetrics returns Metrics for a program of this version.
func NewMetrics(version string) *Metrics {
	counter := func(name, help string, labels ...string) *prometheus.CounterVec {
		return prometheus.NewCounterVec(prometheus.CounterOpts{Name: metricsPrefix + name, Help: help}, labels)
	}
	histogram := func(name, help string) *prometheus.HistogramVec {
		return prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: metricsPrefix + name, Help: help, Buckets: latencyBuckets,
		}, []string{"method"})
	}
	gauge := func(name, help string) prometheus.Gauge {
		return prometheus.NewGauge(prometheus.GaugeOpts{Name: metricsPrefix + name, Help: help})
	}
	desc := func(name, help string, labels ...string) *prometheus.Desc {
		return prometheus.NewDesc(metricsPrefix+name, help, labels, nil)
	}
	m := &Metrics{
		requests: counter("requests_total", "Requests by edge, name of the key, method and what the edge was told.",
			"edge", "key", "method", "outcome"),
		operations: histogram("operation_seconds", "Time of the operation with the private key, its wait for a processor included."),
		answers:    histogram("answer_seconds", "Time from the request to its answer, the audit record not included."),
		limited:    counter("limited_total", "Requests refused by a limit.", "limit"),
		alarms:     counter("alarms_total", "Alarms: a detector has found as much as its threshold says.", "detector"),
		ticketKeys: counter("ticket_keys_total", "Times that ticket keys were asked for, by site and what the edge was told; same: that it has them.",
			"site", "outcome"),
		policyLoads: counter("policy_loads_total", "Attempts to load the policy after the start; a failed one leaves the old policy.",
			"result"),
		policyLoaded:   gauge("policy_loaded_timestamp_seconds", "When the policy in force was loaded."),
		policyExpiry:   gauge("policy_expiry_timestamp_seconds", "When the first rule of the policy that is in force ends; 0 if none does."),
		certificateEnd: gauge("certificate_expiry_timestamp_seconds", "When the key server's own certificate ends."),
		reloadFaults: prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: metricsPrefix + "reload_faults",
			Help: "Files and tokens that could not be read again, so that what was read of them before is still in use; by keys, tokens or certificate."}, []string{"of"}),
		auditFailures: prometheus.NewCounter(prometheus.CounterOpts{
			Name: metricsPrefix + "audit_failures_total", Help: "Audit records that could not be written.",
		}),
		auditCounted: counter("audit_counted_total", "Refused requests that the audit log has a count of rather than a record each.",
			"reason"),
		buildInfo: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: metricsPrefix + "build_info", Help: "1, with what runs as labels.",
			ConstLabels: prometheus.Labels{"version": version, "goversion": runtime.Version()},
		}),
		keys:          desc("keys", "Private keys that are served."),
		inFlight:      desc("in_flight", "Requests that are worked on."),
		rsaWaiting:    desc("rsa_waiting", "Operations with RSA, P-384 and P-521 that wait for a processor."),
		sessions:      desc("sessions", "Live sessions of edge servers."),
		cookies:       desc("hello_cookies_total", "ClientHellos of DTLS that were answered with a cookie alone. Whoever sends them may not be at their address."),
		givenUp:       desc("handshakes_given_up_total", "Handshakes that were given up, or not begun, because there were too many."),
		detections:    desc("detections_total", "What the detectors have found, below their thresholds too.", "detector"),
		crlNextUpdate: desc("crl_next_update_timestamp_seconds", "When the CRL of an authority is to be replaced at the latest.", "authority"),
		ticketFile:    desc("ticket_file_timestamp_seconds", "What the file of the ticket keys has got to: it has no key of tickets that expired before."),
		auditReserve:  desc("audit_reserve_in_use", "1 while the audit log's disk has no more than the log's reserve."),
		auditBroken:   desc("audit_discontinuities", "Times that the audit log was not found as it was left and no operator has accepted it; the newest 32."),
		auditLost:     desc("audit_file_lost", "1 if the audit log's file was removed, truncated, written to by others or moved away without a SIGHUP."),
		auditTipWaits: desc("audit_tip_waits_seconds", "How long the tip of the audit log could not be written; 0 if it is as it should be."),
		auditWaits:    desc("audit_waits_seconds", "For how long the audit log has taken nothing of the record that is being written."),
		auditWitness:  desc("audit_witness_timestamp_seconds", "When a witness last took or confirmed how far the audit log goes; 0 if there never was a witness."),
	}
	m.buildInfo.Set(1)
	m.policyLoaded.SetToCurrentTime()
	// A rate needs its zero: a series that begins with 1 has not increased.
	for _, result := range []string{"ok", "failed"} {
		m.policyLoads.WithLabelValues(result)
	}
	for _, of := range []string{ReloadKeys, ReloadTokens, ReloadCertificate} {
		m.reloadFaults.WithLabelValues(of)
	}
	for _, limit := range limitNames {
		m.limited.WithLabelValues(limit)
	}
	for _, reason := range countedReasons {
		m.auditCounted.WithLabelValues(reason)
	}
	for _, detector := range detectorNames {
		m.alarms.WithLabelValues(detector)
	}
	return m
}

// Limited counts a request that a limit refused. The limit's name is one of a
// fixed few.
func (m *Metrics) Limited(limit string) {
	if m != nil {
		m.limited.WithLabelValues(limit).Inc()
	}
}

// Alarmed counts an alarm of a detector. Its name is one of a fixed few.
func (m *Metrics) Alarmed(detector string) {
	if m != nil {
		m.alarms.WithLabelValues(detector).Inc()
	}
}

// PolicyLoaded counts an attempt to load the policy anew; err is what became of
// it.
func (m *Metrics) PolicyLoaded(err error) {
	switch {
	case m == nil:
	case err != nil:
		m.policyLoads.WithLabelValues("failed").Inc()
	default:
		m.policyLoads.WithLabelValues("ok").Inc()
		m.policyLoaded.SetToCurrentTime()
	}
}

// SetPolicyExpiry says when the first of the policy's rules ends. The zero time
// means that none does.
func (m *Metrics) SetPolicyExpiry(t time.Time) {
	if m != nil {
		m.policyExpiry.Set(unixSeconds(t))
	}
}

// SetCertificateExpiry says when the key server's own certificate ends.
func (m *Metrics) SetCertificateExpiry(t time.Time) {
	if m != nil {
		m.certificateEnd.Set(unixSeconds(t))
	}
}

// What ReloadFaults are of.
const (
	ReloadKeys        = "keys"        // files in the directory of keys
	ReloadTokens      = "tokens"      // tokens
	ReloadCertificate = "certificate" // the key server's own certificate with its key
)

// SetReloadFaults says how many files or tokens could not be read again.
func (m *Metrics) SetReloadFaults(of string, n int) {
	if m != nil {
		m.reloadFaults.WithLabelValues(of).Set(float64(n))
	}
}

func unixSeconds(t time.Time) float64 {
	if t.IsZero() {
		return 0
	}
	return float64(t.Unix())
}

// answered counts a request by its record.
func (m *Metrics) answered(r *Record) {
	if m == nil {
		return
	}
	method := methodLabel(r.Method)
	m.requests.WithLabelValues(label(r.Edge), label(r.KeyName), method, r.Outcome).Inc()
	m.answers.WithLabelValues(method).Observe(r.Duration.Seconds())
}

// operated counts the time of an operation.
func (m *Metrics) operated(method ski.Method, d time.Duration) {
	if m != nil {
		m.operations.WithLabelValues(methodLabel(method)).Observe(d.Seconds())
	}
}

// handedOutTickets counts a question for ticket keys. The site is one of the
// policy's, or empty.
func (m *Metrics) handedOutTickets(site, outcome string) {
	if m != nil {
		m.ticketKeys.WithLabelValues(label(site), outcome).Inc()
	}
}

func (m *Metrics) auditFailed() {
	if m != nil {
		m.auditFailures.Inc()
	}
}

// counted counts a refusal that has no record of its own.
func (m *Metrics) counted(reason string) {
	if m != nil {
		m.auditCounted.WithLabelValues(reason).Inc()
	}
}

func label(name string) string {
	if name == "" {
		return otherLabel
	}
	return name
}

func methodLabel(m ski.Method) string {
	if m.Valid() {
		return string(m)
	}
	return otherLabel
}

func (m *Metrics) collectors() []prometheus.Collector {
	return []prometheus.Collector{
		m.requests, m.operations, m.answers, m.limited, m.alarms, m.ticketKeys, m.policyLoads,
		m.policyLoaded, m.policyExpiry, m.certificateEnd, m.reloadFaults, m.auditFailures, m.auditCounted, m.buildInfo,
	}
}

// Describe implements prometheus.Collector.
func (m *Metrics) Describe(ch chan<- *prometheus.Desc) {
	for _, c := range m.collectors() {
		c.Describe(ch)
	}
	ch <- m.auditBroken
	ch <- m.auditLost
	ch <- m.auditTipWaits
	ch <- m.auditWaits
	ch <- m.keys
	ch <- m.inFlight
	ch <- m.rsaWaiting
	ch <- m.sessions
	ch <- m.cookies
	ch <- m.givenUp
	ch <- m.detections
	ch <- m.auditReserve
	ch <- m.ticketFile
	ch <- m.auditWitness
	ch <- m.crlNextUpdate
}

// Collect implements prometheus.Collector.
func (m *Metrics) Collect(ch chan<- prometheus.Metric) {
	for _, c := range m.collectors() {
		c.Collect(ch)
	}
	if m.server == nil {
		return
	}
	now := func(desc *prometheus.Desc, v int64) {
		ch <- prometheus.MustNewConstMetric(desc, prometheus.GaugeValue, float64(v))
	}
	if log, ok := m.server.audit.(lastingAudit); ok {
		var lost int64
		if log.Fault() != nil {
			lost = 1
		}
		now(m.auditLost, lost)
		now(m.auditBroken, int64(log.Discontinuities()))
		ch <- prometheus.MustNewConstMetric(m.auditTipWaits, prometheus.GaugeValue, log.TipWaits().Seconds())
		ch <- prometheus.MustNewConstMetric(m.auditWaits, prometheus.GaugeValue, log.Waits().Seconds())
	}
	now(m.keys, int64(len(m.server.policy.Load().keys.byID)))
	now(m.inFlight, m.server.schedule.inFlight.Load())
	reserve := int64(0)
	if m.server.inReserve() {
		reserve = 1
	}
	now(m.auditReserve, reserve)
	witnessed := time.Time{}
	if a, ok := m.server.audit.(WitnessedAuditor); ok {
		witnessed = a.Witnessed()
	}
	ch <- prometheus.MustNewConstMetric(m.auditWitness, prometheus.GaugeValue, unixSeconds(witnessed))
	now(m.rsaWaiting, int64(m.server.schedule.rsa.waits()))
	if bindings := m.server.sessions; len(bindings) > 0 {
		n := 0
		for _, b := range bindings {
			n += len(b.Peers())
		}
		now(m.sessions, int64(n))
		m.collectHandshakes(ch)
	}
	if r := m.server.revocations; r != nil {
		for authority, at := range r.NextUpdates() {
			ch <- prometheus.MustNewConstMetric(m.crlNextUpdate, prometheus.GaugeValue, float64(at.Unix()), strings.ToValidUTF8(authority, "?"))
		}
	}
	if at := m.server.tickets.Saved(); !at.IsZero() {
		now(m.ticketFile, at.Unix())
	}
	for name, n := range m.server.Detections() {
		if name == detectRSAFailures.String() {
			continue // Who could read it after each question would have a padding oracle.
		}
		ch <- prometheus.MustNewConstMetric(m.detections, prometheus.CounterValue, float64(n), name)
	}
}

// collectHandshakes counts those of all bindings.
func (m *Metrics) collectHandshakes(ch chan<- prometheus.Metric) {
	var cookies, givenUp uint64
	for _, b := range m.server.sessions {
		if h, ok := b.(Handshakes); ok {
			c, g := h.Handshakes()
			cookies, givenUp = cookies+c, givenUp+g
		}
	}
	ch <- prometheus.MustNewConstMetric(m.cookies, prometheus.CounterValue, float64(cookies))
	ch <- prometheus.MustNewConstMetric(m.givenUp, prometheus.CounterValue, float64(givenUp))
}
