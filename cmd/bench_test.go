package cmd_test

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// identity are the arguments with the edge's certificate.
func (d *devSetup) identity() []string {
	return []string{"--cert", d.endpoints.EdgeCert, "--key", d.endpoints.EdgeKey, "--ca", d.endpoints.KeyServerCA}
}

// The figures of a bench are there, over every binding and with every method.
func TestBenchMeasures(t *testing.T) {
	d := startDev(t)
	ecdsa, rsa := d.endpoints.Sites[0].Cert, d.endpoints.Sites[1].Cert
	udp, tcp, https := d.endpoints.KeyServer.CoAPS, d.endpoints.KeyServer.CoAPSTCP, d.endpoints.KeyServer.HTTPS
	certificate, psk := d.identity(), []string{"--psk-file", d.endpoints.EdgePSK}
	for _, tc := range []struct {
		name, url string
		identity  []string
		args      []string
		datagrams float64 // of a request, 0 where there are none
	}{
		{"ECDHE", udp, certificate, []string{"--site", ecdsa}, 1},
		{"ECDHE in JSON", udp, certificate, []string{"--site", ecdsa, "--format", "json"}, 1},
		{"TLS 1.3", udp, certificate, []string{"--site", rsa, "--protocol", "TLS 1.3"}, 1},
		{"RSA", udp, certificate, []string{"--site", rsa, "--method", "RSA"}, 1},
		{"DHE", udp, certificate, []string{"--site", rsa, "--method", "DHE"}, 1},
		{"ECDHE-PMS", udp, certificate, []string{"--site", ecdsa, "--method", "ECDHE-PMS"}, 2},
		{"pre-shared key", udp, psk, []string{"--site", ecdsa}, 1},
		{"CoAP over TLS", tcp, certificate, []string{"--site", ecdsa}, 0},
		{"CoAP over TLS in JSON", tcp, certificate, []string{"--site", ecdsa, "--format", "json", "--method", "ECDHE-PMS"}, 0},
		{"HTTPS", https, certificate, []string{"--site", ecdsa}, 0},
		{"HTTPS in JSON", https, certificate, []string{"--site", rsa, "--format", "json", "--method", "DHE"}, 0},
	} {
		t.Run(tc.name, func(t *testing.T) {
			args := append([]string{"bench", "--json", "--endpoint", tc.url, "--connections", "2", "--in-flight", "4", "--warm-up", "50ms", "--timeout", "1m",
				"--server-pid", fmt.Sprint(d.endpoints.PIDs.KeyServer)}, tc.identity...)
			args = append(args, tc.args...)
			out, all, status := "", "", 1
			for took := 300 * time.Millisecond; took < time.Minute && status != 0; took *= 2 { // longer where a busy machine has answered none
				out, all, status = d.skictl(append(args, "--duration", took.String())...)
				if !strings.Contains(all, "no request was answered") {
					break
				}
			}
			require.Zero(t, status, all)
			var r struct {
				Operations int64
				Errors     map[string]int64
				Latency    struct{ Min, P50, P99, Max int64 } `json:"latency_us"`
				Traffic    map[string]float64                 `json:"traffic_per_operation"`
				Server     map[string]float64
			}
			require.NoError(t, json.Unmarshal([]byte(out), &r))
			assert.Positive(t, r.Operations)
			assert.Empty(t, r.Errors)
			assert.True(t, 0 < r.Latency.Min && r.Latency.Min <= r.Latency.P50 && r.Latency.P50 <= r.Latency.P99 && r.Latency.P99 <= r.Latency.Max, out)
			assert.InDelta(t, tc.datagrams, r.Traffic["datagrams_sent"], 0.5)
			assert.Greater(t, r.Traffic["bytes_sent"], 128.0)
			assert.Contains(t, r.Server, "cpu_us_per_operation")
		})
	}
	for want, args := range map[string][]string{
		"spki not found":               append(d.identity(), "--endpoint", udp, "--site", d.endpoints.EdgeCert),
		"--method DHE is for an RSA":   append(d.identity(), "--endpoint", udp, "--site", ecdsa, "--method", "DHE"),
		"--method DHE is for TLS 1.2":  append(d.identity(), "--endpoint", udp, "--site", rsa, "--method", "DHE", "--protocol", "TLS 1.3"),
		"only coaps:// has pre-shared": {"--psk-file", d.endpoints.EdgePSK, "--endpoint", tcp, "--site", ecdsa},
	} {
		t.Run(want, func(t *testing.T) {
			out, all, status := d.skictl(append([]string{"bench"}, args...)...)
			assert.Equal(t, 1, status)
			assert.Empty(t, out)
			assert.Contains(t, all, want)
		})
	}
}

// On a terminal there is a progress bar, and Ctrl-C ends the load with what was
// measured until then.
func TestBenchOnATerminalIsInterrupted(t *testing.T) {
	d := startDev(t)
	skictl := append([]string{filepath.Join(bin, "skictl"), "bench", "--endpoint", d.endpoints.KeyServer.CoAPS, "--site", d.endpoints.Sites[0].Cert,
		"--duration", "60s", "--warm-up", "100ms"}, d.identity()...)
	// script gives it a pseudo-terminal, on which what is typed has its effect;
	// exec, since a shell in between may answer Ctrl-C with a status of its own.
	terminal := exec.CommandContext(t.Context(), "script", "--quiet", "--return", "--flush", "--command", "exec "+strings.Join(skictl, " "), "/dev/null")
	terminal.Env = append(terminal.Environ(), "TERM=xterm")
	keyboard, err := terminal.StdinPipe()
	require.NoError(t, err)
	screen, err := terminal.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, terminal.Start())
	r := bufio.NewReader(screen)
	shown, err := r.ReadString(']')
	require.NoError(t, err)
	assert.Regexp(t, `^\r\[=* *\]$`, shown)
	_, err = keyboard.Write([]byte{3})
	require.NoError(t, err)
	var rest bytes.Buffer
	_, err = rest.ReadFrom(r)
	require.NoError(t, err)
	exit := (*exec.ExitError)(nil)
	require.ErrorAs(t, terminal.Wait(), &exit)
	assert.Equal(t, 1, exit.ExitCode())
	assert.Contains(t, rest.String(), "\r\x1b[Kcoaps://", "the bar is cleared before the result")
	assert.Regexp(t, `operations +[1-9]\d* in \d+\.\d s`, rest.String())
	assert.Contains(t, rest.String(), "skictl: interrupted: the figures are those until then")
}
