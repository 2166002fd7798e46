package main

import (
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"

	"github.com/HdrHistogram/hdrhistogram-go"
)

// benchReport is what --json prints. Times are in microseconds.
type benchReport struct {
	Endpoint            string           `json:"endpoint"`
	Protocol            string           `json:"protocol"`
	Method              string           `json:"method"`
	Key                 string           `json:"key"`
	Format              string           `json:"format"`
	Connections         int              `json:"connections"`
	InFlight            int              `json:"in_flight"` // on each connection
	Rate                float64          `json:"rate,omitempty"`
	Seconds             float64          `json:"seconds"`
	Interrupted         bool             `json:"interrupted,omitempty"` // before the time was up
	Operations          int64            `json:"operations"`
	OperationsPerSecond float64          `json:"operations_per_second"`
	Latency             benchLatency     `json:"latency_us"`
	Histogram           []benchBucket    `json:"histogram"`
	Errors              map[string]int64 `json:"errors"`
	Traffic             *benchTraffic    `json:"traffic_per_operation"`
	Server              *benchServer     `json:"server,omitempty"`
}

type benchLatency struct {
	Min  int64   `json:"min"`
	Mean float64 `json:"mean"`
	P50  int64   `json:"p50"`
	P90  int64   `json:"p90"`
	P99  int64   `json:"p99"`
	P999 int64   `json:"p99.9"`
	Max  int64   `json:"max"`
}

// benchBucket counts latencies up to To and above that of the bucket before.
type benchBucket struct {
	To    int64 `json:"to_us"`
	Count int64 `json:"count"`
}

// benchTraffic is what goes over the network for an operation.
type benchTraffic struct {
	BytesSent         float64 `json:"bytes_sent"`
	BytesReceived     float64 `json:"bytes_received"`
	DatagramsSent     float64 `json:"datagrams_sent,omitempty"` // UDP alone
	DatagramsReceived float64 `json:"datagrams_received,omitempty"`
}

// benchServer is what the server process spends.
type benchServer struct {
	CPU            float64 `json:"cpu_us_per_operation"`
	ResidentBefore int64   `json:"resident_kib_before"`
	ResidentAfter  int64   `json:"resident_kib_after"`
}

// report fills in what was measured.
func (l *load) report(r *benchReport) {
	all := hdrhistogram.New(1, maxLatency.Microseconds(), 3)
	r.Errors = map[string]int64{}
	for _, n := range l.histograms {
		all.Merge(n.hist)
		for kind, count := range n.errors {
			r.Errors[kind] += count
		}
	}
	r.Seconds, r.Operations, r.Server = l.took.Seconds(), l.counted, l.server
	r.OperationsPerSecond = float64(l.counted) / l.took.Seconds()
	r.Latency = benchLatency{
		Min: all.Min(), Mean: all.Mean(), P50: all.ValueAtQuantile(50), P90: all.ValueAtQuantile(90),
		P99: all.ValueAtQuantile(99), P999: all.ValueAtQuantile(99.9), Max: all.Max(),
	}
	r.Histogram = buckets(all)
}

// buckets are four to each doubling.
func buckets(h *hdrhistogram.Histogram) []benchBucket {
	var b []benchBucket
	for _, bar := range h.Distribution() {
		if bar.Count == 0 {
			continue
		}
		to := int64(1)
		for to < bar.To {
			to = max(to+1, to*1189/1000) // the fourth root of 2
		}
		if n := len(b); n > 0 && b[n-1].To == to {
			b[n-1].Count += bar.Count
			continue
		}
		b = append(b, benchBucket{to, bar.Count})
	}
	return b
}

func (r *benchReport) print(w io.Writer) error {
	var b strings.Builder
	pace := "flat out"
	if r.Rate > 0 {
		pace = fmt.Sprintf("%g/s", r.Rate)
	}
	fmt.Fprintf(&b, "%s\n%s, %s, %s, %s; %d connections x %d in flight, %s\n\n",
		r.Endpoint, r.Protocol, r.Method, r.Key, strings.ToUpper(r.Format), r.Connections, r.InFlight, pace)
	fmt.Fprintf(&b, "operations   %d in %.1f s: %.0f/s\n", r.Operations, r.Seconds, r.OperationsPerSecond)
	l := r.Latency
	fmt.Fprintf(&b, "latency (us) min %d  mean %.0f  p50 %d  p90 %d  p99 %d  p99.9 %d  max %d\n", l.Min, l.Mean, l.P50, l.P90, l.P99, l.P999, l.Max)
	t := r.Traffic
	fmt.Fprintf(&b, "network      %.0f bytes to the key server and %.0f back an operation", t.BytesSent, t.BytesReceived)
	if t.DatagramsSent > 0 {
		fmt.Fprintf(&b, ", in %.1f and %.1f datagrams", t.DatagramsSent, t.DatagramsReceived)
	}
	b.WriteString("\n")
	if s := r.Server; s != nil {
		fmt.Fprintf(&b, "server       %.1f us of CPU an operation; resident %.1f MiB before, %.1f MiB after\n",
			s.CPU, float64(s.ResidentBefore)/1024, float64(s.ResidentAfter)/1024)
	}
	for _, kind := range slices.Sorted(maps.Keys(r.Errors)) {
		fmt.Fprintf(&b, "error        %s: %d\n", kind, r.Errors[kind])
	}
	most := int64(1)
	for _, bucket := range r.Histogram {
		most = max(most, bucket.Count)
	}
	b.WriteString("\n")
	for _, bucket := range r.Histogram {
		fmt.Fprintf(&b, "%9d us %9d %s\n", bucket.To, bucket.Count, strings.Repeat("#", int(50*bucket.Count/most)))
	}
	_, err := io.WriteString(w, b.String())
	return err
}
