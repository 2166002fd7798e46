package backoff_test

import (
	"bytes"
	"errors"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"

	"github.com/tlsski/tlsski/ski/internal/backoff"
)

func TestAKeyServerThatStaysAwayIsALineAMinute(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var log bytes.Buffer
		a := backoff.Absence{Log: slog.New(slog.NewTextHandler(&log, nil))}
		lines := func() int { return strings.Count(log.String(), "\n") }
		failing := func(lasting time.Duration) {
			for began := time.Now(); time.Since(began) < lasting; time.Sleep(500 * time.Millisecond) {
				a.Failed(slog.LevelWarn, errors.New("nobody listens"), 500*time.Millisecond)
			}
		}
		failing(time.Second)
		assert.Equal(t, 1, lines(), "at once")
		assert.Contains(t, log.String(), `level=WARN msg="no session" error="nobody listens" attempts=1 again_in=500ms`)
		failing(time.Hour)
		assert.Equal(t, 61, lines())
		assert.Contains(t, log.String(), "attempts=120")
		a.Over()
		failing(time.Second)
		assert.Equal(t, 62, lines(), "another time is another line")
	})
}
