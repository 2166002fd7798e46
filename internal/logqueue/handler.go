package logqueue

import (
	"bytes"
	"context"
	"errors"
	"hash/maphash"
	"io"
	"log/slog"
	"time"
)

// Handler returns a handler whose records go to the Queue. Of records that are
// dropped, of the level info or above, the latest of each message are kept apart
// and written when the log is read again.
func (q *Queue) Handler() slog.Handler { return &handler{q.format(q), q, q.format} }

type handler struct {
	slog.Handler // format(queue)
	queue        *Queue
	format       func(io.Writer) slog.Handler
}

// Handle implements slog.Handler.
func (h *handler) Handle(ctx context.Context, r slog.Record) error {
	err := h.Handler.Handle(ctx, r)
	if errors.Is(err, errDropped) && r.Level >= slog.LevelInfo {
		h.keep(ctx, r)
	}
	return err
}

// keep keeps a record that was dropped. It is formatted anew, outside of any
// lock, and without its time, by which two that say the same are found.
func (h *handler) keep(ctx context.Context, r slog.Record) {
	kept := &keptLine{origin: r.PC, when: r.Time}
	var line bytes.Buffer
	_ = h.format(&line).Handle(ctx, r)
	kept.line = line.Bytes()
	r.Time = time.Time{}
	says := maphash.Hash{}
	says.SetSeed(seed)
	_ = h.format(&says).Handle(ctx, r)
	kept.says = says.Sum64()
	h.queue.keep(kept)
}

var seed = maphash.MakeSeed()

// WithAttrs implements slog.Handler.
func (h *handler) WithAttrs(attrs []slog.Attr) slog.Handler {
	return &handler{h.Handler.WithAttrs(attrs), h.queue, func(w io.Writer) slog.Handler { return h.format(w).WithAttrs(attrs) }}
}

// WithGroup implements slog.Handler.
func (h *handler) WithGroup(name string) slog.Handler {
	return &handler{h.Handler.WithGroup(name), h.queue, func(w io.Writer) slog.Handler { return h.format(w).WithGroup(name) }}
}
