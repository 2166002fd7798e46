package monitor

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func TestMetricsAndChecks(t *testing.T) {
	var wrong error
	var details []string
	count := prometheus.NewCounter(prometheus.CounterOpts{Name: "things_total", Help: "Things."})
	count.Inc()
	server, err := Serve("127.0.0.1:0", map[string]Check{
		"/healthz": func(context.Context) ([]string, error) { return nil, nil },
		"/readyz":  func(context.Context) ([]string, error) { return details, wrong },
	}, slog.New(slog.DiscardHandler), count)
	require.NoError(t, err)
	defer server.Close()
	assert.NotZero(t, server.IdleTimeout, "connections that nobody uses are kept for ever")
	get := func(path string) (int, string) {
		resp, err := http.Get("http://" + server.Addr + path)
		require.NoError(t, err)
		defer resp.Body.Close()
		body, err := io.ReadAll(resp.Body)
		require.NoError(t, err)
		return resp.StatusCode, string(body)
	}
	status, body := get("/metrics")
	assert.Equal(t, http.StatusOK, status)
	assert.Contains(t, body, "things_total 1\n")
	status, body = get("/readyz")
	assert.Equal(t, http.StatusOK, status)
	assert.Equal(t, "ok\n", body)
	details = []string{"a certificate waits", "another, too"}
	status, body = get("/readyz")
	assert.Equal(t, http.StatusOK, status)
	assert.Equal(t, "ok\na certificate waits\nanother, too\n", body)
	wrong = errors.New("no key server answers")
	status, body = get("/readyz")
	assert.Equal(t, http.StatusServiceUnavailable, status)
	assert.Equal(t, "no key server answers\n", body)
	status, _ = get("/healthz")
	assert.Equal(t, http.StatusOK, status)
	status, _ = get("/")
	assert.Equal(t, http.StatusNotFound, status)

	_, err = Serve(server.Addr, nil, slog.New(slog.DiscardHandler))
	assert.ErrorContains(t, err, "metrics: ")
	_, err = Serve("127.0.0.1:0", nil, slog.New(slog.DiscardHandler), count, count)
	assert.Error(t, err, "the same twice")
}
