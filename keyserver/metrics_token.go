package keyserver

import (
	"strings"

	"github.com/prometheus/client_golang/prometheus"
)

// TokenState is the state of a token with keys.
type TokenState struct {
	// Module is the PKCS #11 module, Token and Serial are the token's label and
	// serial number.
	Module, Token, Serial string
	// Sessions is how many there can be, Open how many there are, Busy how many
	// of them are in a call, and Stuck how many of the busy ones are in one that
	// nobody waits for any more. Waiting is how many operations wait for one.
	Sessions, Open, Busy, Stuck, Waiting int
	// WrongSignatures is how many signatures did not fit the public half of their
	// key, and were kept back.
	WrongSignatures uint64
	// Err is why the token cannot be used now, or nil.
	Err error
}

// TokenMetrics returns a collector of the states that the function returns,
// which it calls whenever the metrics are asked for.
func TokenMetrics(states func() []TokenState) prometheus.Collector {
	desc := func(name, help string, labels ...string) *prometheus.Desc {
		return prometheus.NewDesc(metricsPrefix+"token_"+name, help, append([]string{"module", "token", "serial"}, labels...), nil)
	}
	return &tokenMetrics{
		states:   states,
		up:       desc("up", "1 if the token can be used, 0 if not."),
		limit:    desc("sessions_limit", "Sessions that there can be with the token."),
		sessions: desc("sessions", "Sessions with the token: idle, busy in a call that somebody waits for, or stuck in one that nobody does.", "state"),
		waiting:  desc("waiting", "Operations that wait for a session with the token."),
		wrong:    desc("wrong_signatures_total", "Signatures of the token that did not fit the public half of their key, and were kept back."),
	}
}

type tokenMetrics struct {
	states                              func() []TokenState
	up, limit, sessions, waiting, wrong *prometheus.Desc
}

// Describe implements prometheus.Collector.
func (m *tokenMetrics) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{m.up, m.limit, m.sessions, m.waiting, m.wrong} {
		ch <- d
	}
}

// Collect implements prometheus.Collector.
func (m *tokenMetrics) Collect(ch chan<- prometheus.Metric) {
	for _, s := range m.states() {
		// What a token is called may be no UTF-8, which would be the end of the
		// process here.
		for _, name := range []*string{&s.Module, &s.Token, &s.Serial} {
			*name = strings.ToValidUTF8(*name, "\uFFFD")
		}
		gauge := func(d *prometheus.Desc, v int, labels ...string) {
			ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, float64(v), append([]string{s.Module, s.Token, s.Serial}, labels...)...)
		}
		up := 1
		if s.Err != nil {
			up = 0
		}
		gauge(m.up, up)
		gauge(m.limit, s.Sessions)
		gauge(m.sessions, max(0, s.Open-s.Busy), "idle")
		gauge(m.sessions, max(0, s.Busy-s.Stuck), "busy")
		gauge(m.sessions, s.Stuck, "stuck")
		gauge(m.waiting, s.Waiting)
		ch <- prometheus.MustNewConstMetric(m.wrong, prometheus.CounterValue, float64(s.WrongSignatures), s.Module, s.Token, s.Serial)
	}
}
