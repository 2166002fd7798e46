package skicoap

import (
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/tlsski/tlsski/ski"
)

func TestTheSessionsHaveABound(t *testing.T) {
	ca := newTestCA(t)
	var log logBuffer
	s := serve(t, "127.0.0.1:0", ServerConfig{
		Certificate: ca.keyServer(), ClientCAs: ca.pool, Handler: ski.HandlerFunc(echo), MaxSessions: 2,
		Logger: slog.New(slog.NewTextHandler(&log, nil)),
	})
	for range 2 {
		require.NoError(t, ask(t.Context(), dialTo(t, s, ca), 1))
	}
	_, err := dialTo(t, s, ca).RoundTrip(t.Context(), request(1))
	require.Error(t, err)
	require.Eventually(t, func() bool { return strings.Contains(log.String(), errSessions.Error()) }, time.Minute, time.Millisecond)
	require.Len(t, s.Peers(), 2, "those there are stay")
}

func TestAnIdleSessionEnds(t *testing.T) {
	ca := newTestCA(t)
	s := serve(t, "127.0.0.1:0", ServerConfig{
		Certificate: ca.keyServer(), ClientCAs: ca.pool, Handler: ski.HandlerFunc(echo), IdleTimeout: time.Hour,
	})
	require.NoError(t, ask(t.Context(), dialTo(t, s, ca), 1))
	s.tidy(time.Now().Add(59 * time.Minute))
	require.Len(t, s.Peers(), 1)
	s.tidy(time.Now().Add(61 * time.Minute))
	require.Eventually(t, func() bool { return len(s.Peers()) == 0 }, time.Minute, time.Millisecond)
}
