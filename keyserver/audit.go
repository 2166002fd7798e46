package keyserver

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"time"

	"github.com/tlsski/tlsski/ski"
)

// Event says what a Record is of.
type Event string

// The events.
const (
	EventRequest Event = "request" // a request was answered; the zero value stands for it
	EventAlarm   Event = "alarm"   // a detector has found something; see Record.Detector
	EventSuspend Event = "suspend" // an edge was cut off
	EventResume  Event = "resume"  // an edge may ask again
)

// Record is what the audit log keeps of one request, or of another event. It
// never holds an input, an output or a secret. Fields that are not known,
// because the message could not be parsed, are zero.
type Record struct {
	// Time is when the request was there.
	Time time.Time
	// Event is what happened. The zero value means EventRequest.
	Event Event
	// Edge is the peer's name in the policy. Where the peer is several of the
	// policy's edges, their names are joined by commas; where it is none, the
	// field is empty.
	Edge string
	// Peer is the fingerprint of the peer's public key.
	Peer ski.KeyID
	// Address is where the request came from.
	Address netip.AddrPort
	// Key is the fingerprint of the key that was asked for, and KeyName its
	// name in the key store if it is there.
	Key     ski.KeyID
	KeyName string
	// Protocol and Method are the request's.
	Protocol ski.Protocol
	Method   ski.Method
	// Hash or Scheme is the algorithm of a signature: the one that a request
	// without 'hash' implies is named too.
	Hash   string
	Scheme string
	// ServerName is the name that the client asked for.
	ServerName string
	// Outcome is "output" or the error that the peer was told.
	Outcome string
	// PreMasterSecret says what was found in an EncryptedPreMasterSecret:
	// "correct", "padding" (wrong, or the length) or "version". The peer is not
	// told.
	PreMasterSecret string
	// Reason is why there was no output. The peer is not told.
	Reason string
	// Detector is the name of the detector that spoke up: in an EventAlarm, and
	// in the EventRequest that it had denied.
	Detector string
	// Duration is how long the answer took, without the writing of this.
	Duration time.Duration
}

// outcomeOutput is the Outcome of a request that got its output.
const outcomeOutput = "output"

// Auditor keeps Records. It is called by many goroutines at once, each time
// before the answer goes out: an answer that was given has been recorded.
type Auditor interface {
	Audit(ctx context.Context, r *Record) error
}

// AuditLog is an Auditor that writes each Record as one line of JSON:
//
//	time, event, edge, peer, address, key, key_name, protocol, method, hash,
//	scheme, server_name, outcome, premaster_secret, reason, detector, duration_us
//
// in this order, where the time is in UTC, the duration in microseconds, and
// what is not known is left out. Lines never interleave.
type AuditLog struct {
	handler slog.Handler
	closer  io.Closer
}

// NewAuditLog returns an AuditLog on w, which gets every line in one Write and
// never two at once.
func NewAuditLog(w io.Writer) *AuditLog {
	return &AuditLog{handler: slog.NewJSONHandler(&lineWriter{w: w}, &slog.HandlerOptions{
		ReplaceAttr: func(groups []string, a slog.Attr) slog.Attr {
			if a.Key == slog.LevelKey || a.Key == slog.MessageKey {
				return slog.Attr{} // They say nothing here.
			}
			return a
		},
	})}
}

// OpenAuditLog returns an AuditLog that appends to a file, which it creates
// with mode 0600 if need be. The name "-" stands for standard output.
func OpenAuditLog(file string) (*AuditLog, error) {
	if file == "-" {
		return NewAuditLog(os.Stdout), nil
	}
	f, err := os.OpenFile(file, os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("audit log: %w", err)
	}
	l := NewAuditLog(f)
	l.closer = f
	return l, nil
}

// CheckAuditLog reports whether OpenAuditLog would succeed, as far as that can
// be told without creating the file.
func CheckAuditLog(file string) error {
	if file == "-" {
		return nil
	}
	f, err := os.OpenFile(file, os.O_WRONLY|os.O_APPEND, 0)
	if err == nil {
		return f.Close()
	}
	if errors.Is(err, fs.ErrNotExist) {
		_, err = os.Stat(filepath.Dir(file))
	}
	if err != nil {
		return fmt.Errorf("audit log: %w", err)
	}
	return nil
}

// Audit implements Auditor. The error is that of the write.
func (l *AuditLog) Audit(ctx context.Context, r *Record) error {
	line := slog.NewRecord(r.Time.UTC(), slog.LevelInfo, "", 0)
	line.AddAttrs(r.attrs()...)
	return l.handler.Handle(ctx, line)
}

// Close closes the file that OpenAuditLog opened.
func (l *AuditLog) Close() error {
	if l.closer == nil {
		return nil
	}
	return l.closer.Close()
}

func (r *Record) attrs() []slog.Attr {
	attrs := make([]slog.Attr, 0, 16)
	text := func(key, value string) {
		if value != "" {
			attrs = append(attrs, slog.String(key, value))
		}
	}
	id := func(key string, value ski.KeyID) {
		if !value.IsZero() {
			attrs = append(attrs, slog.String(key, value.String()))
		}
	}
	text("event", string(cmp.Or(r.Event, EventRequest)))
	text("edge", r.Edge)
	id("peer", r.Peer)
	if r.Address.IsValid() {
		text("address", r.Address.String())
	}
	id("key", r.Key)
	text("key_name", r.KeyName)
	text("protocol", string(r.Protocol))
	text("method", string(r.Method))
	text("hash", r.Hash)
	text("scheme", r.Scheme)
	text("server_name", r.ServerName)
	text("outcome", r.Outcome)
	text("premaster_secret", r.PreMasterSecret)
	text("reason", r.Reason)
	text("detector", r.Detector)
	return append(attrs, slog.Int64("duration_us", r.Duration.Microseconds()))
}

// lineWriter begins a new line after a write that was cut short, as on a full
// disk, so that one torn record does not spoil the next. slog's handler calls
// it for one line at a time.
type lineWriter struct {
	w    io.Writer
	torn bool
}

func (l *lineWriter) Write(line []byte) (int, error) {
	if l.torn {
		if _, err := l.w.Write([]byte{'\n'}); err != nil {
			return 0, err
		}
		l.torn = false
	}
	n, err := l.w.Write(line)
	l.torn = n > 0 && n < len(line)
	return n, err
}
