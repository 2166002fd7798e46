package keyserver

import (
	"bytes"
	"crypto/hkdf"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/hex"
	"errors"
	"fmt"
	"time"
)

// ratchet is a value for each minute of Unix time, from which whoever has it
// computes those of all later minutes and of no earlier one. The keys of tickets
// that expire in a minute are derived from the minute's value: when the ratchet
// has gone on, nothing yields them any more. It turns by the clock alone, so
// that key servers with one seed agree whatever their policies have been.
//
// There is a chain of values for the hours, and within each hour a chain for
// its minutes, so that a year is 8,760 turns:
//
//	hour[0]        = HKDF-Extract(salt "tlsski ticket keys 2", seed)
//	hour[h+1]      = SHA-256("hour" || hour[h])
//	minute[h][0]   = SHA-256("minute" || hour[h])
//	minute[h][m+1] = SHA-256("minute" || minute[h][m])
//
// hour[0] is the hour of ratchetOrigin.
type ratchet struct {
	minute   int64    // since 1970
	value    [32]byte // of the minute
	nextHour [32]byte
}

// ratchetOrigin is the first minute that there is a value for, the same at all
// key servers: 2026-01-01T00:00:00Z.
const ratchetOrigin = 1767225600 / 60

// ratchetEnd is where a ratchet stops, a hundred years after its origin: a clock
// beyond it is wrong, and turning up to it takes half a second.
const ratchetEnd = ratchetOrigin + 100*365*24*60

// ratchetMinute returns the minute that a time is in.
func ratchetMinute(t time.Time) int64 {
	return min(max(t.Unix()/60, ratchetOrigin), ratchetEnd)
}

// newRatchet returns the ratchet of a seed at its origin.
func newRatchet(seed []byte) ratchet {
	hour, err := hkdf.Extract(sha256.New, seed, []byte("tlsski ticket keys 2"))
	if err != nil {
		panic(err) // FIPS 140 mode refuses short seeds alone.
	}
	defer clear(hour)
	r := ratchet{minute: ratchetOrigin}
	copy(r.nextHour[:], hour)
	r.beginHour()
	return r
}

func (r *ratchet) beginHour() {
	r.value = r.nextHour
	hashRatchet(&r.value, "minute")
	hashRatchet(&r.nextHour, "hour")
}

// forward turns the ratchet until a minute. One that is further stays.
func (r *ratchet) forward(minute int64) {
	if hours := minute/60 - r.minute/60; hours > 0 {
		for range hours - 1 {
			hashRatchet(&r.nextHour, "hour")
		}
		r.beginHour()
		r.minute = minute / 60 * 60
	}
	for ; r.minute < minute; r.minute++ {
		hashRatchet(&r.value, "minute")
	}
}

// hashRatchet allocates nothing: the way from the origin is thousands of steps.
func hashRatchet(value *[32]byte, label string) {
	var in [40]byte
	*value = sha256.Sum256(append(append(in[:0], label...), value[:]...))
	clear(in[:])
}

func (r *ratchet) clear() { *r = ratchet{} }

// time returns when the ratchet's minute begins.
func (r *ratchet) time() time.Time { return time.Unix(r.minute*60, 0).UTC() }

// sameAs reports whether two ratchets have one seed.
func (r ratchet) sameAs(o ratchet) bool {
	defer r.clear()
	defer o.clear()
	r.forward(o.minute)
	o.forward(r.minute)
	return subtle.ConstantTimeCompare(r.value[:], o.value[:])&subtle.ConstantTimeCompare(r.nextHour[:], o.nextHour[:]) == 1
}

// ratchetHeader is the first line of a ratchet's text form, which goes on with
// the lines 'minute TIME', 'value HEX' and 'next-hour HEX'.
const ratchetHeader = "tlsski ticket ratchet 1"

// encode returns the text form, which the caller clears.
func (r *ratchet) encode() []byte {
	text := make([]byte, 0, 256) // It does not grow: nobody would clear what it leaves behind.
	text = fmt.Appendf(text, "%s\nminute %s\nvalue ", ratchetHeader, r.time().Format(time.RFC3339))
	text = append(hex.AppendEncode(text, r.value[:]), "\nnext-hour "...)
	return append(hex.AppendEncode(text, r.nextHour[:]), '\n')
}

// parseRatchet reads what encode has written, and nothing else.
func parseRatchet(text []byte) (r ratchet, err error) {
	field := func(label string) (value []byte) {
		line, rest, found := bytes.Cut(text, []byte("\n"))
		value, ok := bytes.CutPrefix(line, []byte(label))
		if err == nil && (!found || !ok) {
			err = fmt.Errorf("there is no line %q", label)
		}
		text = rest
		return value
	}
	secret := func(label string, to *[32]byte) {
		value := field(label)
		if n, failed := hex.Decode(to[:min(len(to), len(value)/2)], value[:min(len(value), 2*len(to))]); err == nil && (failed != nil || n != len(to) || len(value) != 2*n) {
			err = fmt.Errorf("%q has not 64 hexadecimal digits", label)
		}
	}
	if rest := field(ratchetHeader); err == nil && len(rest) > 0 {
		err = errors.New("it is of another version")
	}
	at, failed := time.Parse(time.RFC3339, string(field("minute ")))
	secret("value ", &r.value)
	secret("next-hour ", &r.nextHour)
	switch {
	case err != nil:
	case failed != nil:
		err = errors.New(`"minute" is not a time`)
	case ratchetMinute(at)*60 != at.Unix():
		err = errors.New(`"minute" is not a minute from 2026 to 2125`)
	case len(text) > 0:
		err = errors.New("there is something behind the last line")
	}
	if err != nil {
		r.clear()
		return r, err
	}
	r.minute = ratchetMinute(at)
	return r, nil
}
