package logqueue

import "github.com/prometheus/client_golang/prometheus"

// Metrics returns what there is to count of the Queue: how many lines were dropped,
// and for how long the log has taken nothing of what waits to be written.
func (q *Queue) Metrics(prefix string) []prometheus.Collector {
	return []prometheus.Collector{
		prometheus.NewCounterFunc(prometheus.CounterOpts{
			Name: prefix + "log_lines_dropped_total",
			Help: "Lines of the log that found no room, since the log was not read or could not be written.",
		}, func() float64 { return float64(q.Dropped()) }),
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: prefix + "log_waits_seconds",
			Help: "For how long the log has taken nothing of what waits to be written.",
		}, func() float64 { return q.Waits().Seconds() }),
	}
}
