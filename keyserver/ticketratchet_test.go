package keyserver

import (
	"bytes"
	"context"
	"crypto/hkdf"
	"crypto/sha256"
	"encoding/hex"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/tlsski/tlsski/ski"
)

// ratchetFile returns the name of a ratchet's file in a new state folder.
func ratchetFile(t *testing.T) string {
	return TicketRatchetFile(filepath.Join(stateFolder(t), "state"))
}

// wwwKeys returns the keys that a ratchet makes for a site at a time.
func wwwKeys(r *TicketRatchet, now time.Time) []ski.TicketKey {
	t, _ := newTicketMaker(r).keys(wwwSite, make([]byte, 32), now)
	return t.Keys
}

var wwwSite = &ticketSite{name: "www.example.com", rotate: 8 * time.Hour, lifetime: 24 * time.Hour}

// turnTo does what a running key server has done by a time.
func turnTo(t *testing.T, r *TicketRatchet, from, to time.Time) {
	t.Helper()
	for now := from; !now.After(to); now = now.Add(time.Hour) {
		r.at(now)
		require.NoError(t, r.save())
	}
}

// yields reports whether a file has anything that a ticket key can be derived
// from: any 32 bytes in it, as a ratchet's value of a minute, are tried for all
// that the key's derivation is made of.
func yields(t *testing.T, file string, site *ticketSite, key ski.TicketKey) bool {
	t.Helper()
	text, err := os.ReadFile(file)
	require.NoError(t, err)
	values := [][]byte{text}
	for _, m := range regexp.MustCompile(`[0-9a-f]{64}`).FindAll(text, -1) {
		value, err := hex.DecodeString(string(m))
		require.NoError(t, err)
		values = append(values, value)
	}
	epoch := key.From.Unix() / int64(site.rotate/time.Second)
	info := ticketKeyInfo(site, epoch, make([]byte, 32))
	try := func(prk []byte) bool {
		out, err := hkdf.Expand(sha256.New, prk, string(info), 32)
		require.NoError(t, err)
		return bytes.Equal(out, key.Secret[:])
	}
	for _, v := range values {
		if try(v) {
			return true
		}
		seed := newRatchet(v)
		seed.forward(key.Until.Unix() / 60)
		if try(seed.value[:]) {
			return true
		}
		if len(v) != 32 {
			continue
		}
		// As the value of any minute, or the next hour's, before the one that the key needs.
		minute, hour := [32]byte(v), [32]byte(v)
		for range 3 * 24 * 60 {
			hashRatchet(&minute, "minute")
			if try(minute[:]) {
				return true
			}
		}
		for range 14 * 24 {
			begun := hour
			for range 60 {
				hashRatchet(&begun, "minute")
				if try(begun[:]) {
					return true
				}
			}
			hashRatchet(&hour, "hour")
		}
	}
	return false
}

// What is on the disk and in the configuration of a key server, once the secret
// is removed, yields the keys of tickets that are alive, and of none that have
// expired.
func TestTicketKeysOfThePastCannotBeDerived(t *testing.T) {
	file := ratchetFile(t)
	secret := filepath.Join(filepath.Dir(file), "secret")
	require.NoError(t, os.WriteFile(secret, ticketSecret, 0o600))
	r := openRatchet(t, file, ticketSecret, noon)
	keys := wwwKeys(r, noon)
	require.NoError(t, r.save())
	for _, k := range keys {
		require.True(t, yields(t, secret, wwwSite, k), "the secret yields everything")
		require.True(t, yields(t, file, wwwSite, k), "the file yields what is alive: the search works")
	}
	require.NoError(t, os.Remove(secret))

	// A day, over a kill in the middle of a write and a restart without the secret.
	left := filepath.Join(filepath.Dir(file), "."+filepath.Base(file)+"123456")
	_, err := writeRatchet(left, &r.kept)
	require.NoError(t, err)
	turnTo(t, r, noon, noon.Add(12*time.Hour))
	r = openRatchet(t, file, nil, noon.Add(12*time.Hour))
	turnTo(t, r, noon.Add(12*time.Hour), noon.Add(24*time.Hour))
	now := noon.Add(24 * time.Hour)
	alive := wwwKeys(r, now)
	require.Equal(t, keys[3].Secret, alive[0].Secret, "it goes on")
	entries, err := os.ReadDir(filepath.Dir(file))
	require.NoError(t, err)
	require.Len(t, entries, 1, "it is all that there is")
	for i, k := range keys {
		assert.Equal(t, k.Until.After(now), yields(t, file, wwwSite, k), i)
	}

	// Neither does a clock that is set back, or another policy.
	for _, k := range wwwKeys(openRatchet(t, file, nil, noon), noon) {
		assert.True(t, k.Until.After(now))
	}
	longer := &ticketSite{name: wwwSite.name, rotate: wwwSite.rotate, lifetime: 48 * time.Hour}
	again, _ := newTicketMaker(openRatchet(t, file, nil, now)).keys(longer, make([]byte, 32), now)
	for _, k := range again.Keys {
		for _, old := range keys {
			assert.NotEqual(t, old.Secret, k.Secret)
		}
	}
}

// A site may rotate as often as once a minute.
func TestATicketKeyIsGoneAMinuteAfterItsTickets(t *testing.T) {
	file := ratchetFile(t)
	site := &ticketSite{name: "www.example.com", rotate: time.Minute, lifetime: 90 * time.Second}
	r := openRatchet(t, file, ticketSecret, noon)
	keys, _ := newTicketMaker(r).keys(site, make([]byte, 32), noon)
	first := keys.Keys[0]
	require.NoError(t, r.save())
	require.True(t, yields(t, file, site, first))
	r.at(first.Until.Add(time.Minute))
	require.NoError(t, r.save())
	require.False(t, yields(t, file, site, first))
	require.True(t, yields(t, file, site, keys.Keys[2]))
}

func TestKeyServersOfAFleetHaveTheSameTicketKeysWheneverTheyWereStarted(t *testing.T) {
	year := noon.AddDate(1, 0, 0)
	old := ratchetFile(t)
	r := openRatchet(t, old, ticketSecret, noon)
	for now := noon; !now.After(year); now = now.Add(12 * time.Hour) {
		r.at(now)
	}
	require.NoError(t, r.save())
	want := wwwKeys(r, year)
	require.Len(t, want, 5)

	assert.Equal(t, want, wwwKeys(openRatchet(t, "", ticketSecret, year), year), "of the secret alone, a year later")
	assert.Equal(t, want, wwwKeys(openRatchet(t, old, nil, year), year), "after a restart")
	stopped := ratchetFile(t)
	require.NoError(t, openRatchet(t, stopped, ticketSecret, noon).save())
	assert.Equal(t, want, wwwKeys(openRatchet(t, stopped, nil, year), year), "after a year without power")
	late := openRatchet(t, ratchetFile(t), ticketSecret, year)
	for _, at := range []time.Duration{time.Minute, 8 * time.Hour, 9 * time.Hour} {
		assert.Equal(t, wwwKeys(late, year.Add(at)), wwwKeys(r, year.Add(at)), at)
	}
}

// Sites come and go, and change their times: all key servers with the policy have
// the same keys for it at once, among them one to make tickets with.
func TestAChangedPolicyHasItsTicketKeysAtOnce(t *testing.T) {
	file := ratchetFile(t)
	r := openRatchet(t, file, ticketSecret, noon)
	turnTo(t, r, noon, noon.Add(99*time.Hour))
	now := noon.Add(99 * time.Hour)
	fresh := openRatchet(t, "", ticketSecret, now)
	seen := map[[32]byte]bool{}
	for _, site := range []ticketSite{
		{name: "a", rotate: time.Hour, lifetime: time.Hour}, {name: "b", rotate: 168 * time.Hour, lifetime: 168 * time.Hour},
		{name: "b", rotate: 168 * time.Hour, lifetime: 167 * time.Hour}, {name: "b", rotate: 167 * time.Hour, lifetime: 167 * time.Hour},
		{name: "b", rotate: time.Minute, lifetime: time.Second}, {name: "b", rotate: time.Minute, lifetime: 2 * time.Second},
	} {
		one, _ := newTicketMaker(r).keys(&site, make([]byte, 32), now)
		two, _ := newTicketMaker(fresh).keys(&site, make([]byte, 32), now)
		assert.Equal(t, one, two)
		require.NoError(t, one.Validate())
		making := 0
		for _, k := range one.Keys {
			assert.False(t, seen[k.Secret])
			seen[k.Secret] = true
			if !k.From.After(now) && k.To.After(now) {
				making++
			}
		}
		assert.Equal(t, 1, making, site)
	}
}

// What docs/protocol.md, section 7, says, computed in Python.
func TestDerivationOfTicketKeys(t *testing.T) {
	// h = lambda key, data: hmac.new(key, data, 'sha256').digest()
	// s = lambda label, value: hashlib.sha256(label + value).digest()
	// v = h(b'tlsski ticket keys 2', b'1' * 32)
	// for _ in range((until - 1767225600) // 3600): v = s(b'hour', v)
	// v = s(b'minute', v)
	// for _ in range(until % 3600 // 60): v = s(b'minute', v)
	// info = b'ticket key' + bytes([3]) + b'www' + struct.pack('>QQQ', 1260, 5400, epoch) + bytes(32)
	// key = h(v, info + b'\1'); id = h(v, key + info + b'\2')[:8]
	site := &ticketSite{name: "www", rotate: 21 * time.Minute, lifetime: 90 * time.Minute}
	keys, _ := newTicketMaker(openRatchet(t, "", ticketSecret, noon)).keys(site, make([]byte, 32), noon)
	k := keys.Keys[len(keys.Keys)-1]
	assert.Equal(t, "2026-03-04 13:57:00", k.Until.UTC().Format(time.DateTime))
	assert.Equal(t, "0d6df39b4fd24bd32194c6801ba78c7edd1d021cc49d79cb1179a7a2bde571fc", hex.EncodeToString(k.Secret[:]))
	assert.Equal(t, "b71da8febb764262", k.ID.String())
}

func TestAnotherTicketSecretBeginsAnew(t *testing.T) {
	file := ratchetFile(t)
	r := openRatchet(t, file, ticketSecret, noon)
	require.NoError(t, r.save())
	other := bytes.Repeat([]byte{1}, MinTicketSecret)
	now := noon.Add(time.Hour)
	rotated := openRatchet(t, file, other, now)
	assert.Contains(t, strings.Join(rotated.Warnings(), "\n"), "is not the secret that the ticket keys in "+file+" come from")
	assert.Equal(t, wwwKeys(openRatchet(t, "", other, now), now), wwwKeys(rotated, now))
	require.NoError(t, rotated.save())
	assert.Equal(t, wwwKeys(rotated, now), wwwKeys(openRatchet(t, file, nil, now), now))
	assert.Equal(t, wwwKeys(rotated, now), wwwKeys(openRatchet(t, file, other, now), now))

	// The process that has the former secret leaves the file alone.
	r.at(now.Add(time.Hour))
	require.ErrorIs(t, r.save(), errOtherRatchet)
	assert.Equal(t, wwwKeys(rotated, now), wwwKeys(openRatchet(t, file, nil, now), now))
}

func TestTwoProcessesKeepOneFileOfTicketKeys(t *testing.T) {
	file := ratchetFile(t)
	one, two := openRatchet(t, file, ticketSecret, noon), openRatchet(t, file, ticketSecret, noon)
	require.NoError(t, one.save())
	require.NoError(t, two.save())
	one.at(noon.Add(2 * time.Hour))
	require.NoError(t, one.save())
	two.at(noon.Add(time.Hour))
	require.NoError(t, two.save())
	assert.Equal(t, noon.Add(2*time.Hour), openRatchet(t, file, nil, noon).Saved(), "it never goes back")
}

// A clock that was ahead for some minutes takes nothing along that is needed
// when it is right again.
func TestAClockThatJumpsIsNotBelievedForAnHour(t *testing.T) {
	file := ratchetFile(t)
	r := openRatchet(t, file, ticketSecret, noon)
	want := wwwKeys(r, noon.Add(time.Minute))
	wrong := noon.AddDate(4, 0, 0)
	for _, at := range []time.Duration{0, time.Minute, 59 * time.Minute} {
		require.Len(t, wwwKeys(r, wrong.Add(at)), 5, "it serves meanwhile")
		require.NoError(t, r.save())
	}
	assert.Equal(t, noon.Add(time.Minute), r.Saved(), "nothing is forgotten")
	assert.Equal(t, want, wwwKeys(r, noon.Add(time.Minute)), "the clock is right again")
	assert.Equal(t, want, wwwKeys(openRatchet(t, file, nil, noon), noon.Add(time.Minute)), "and after a restart")

	// A clock that stays there, after a year without power, is right.
	r = openRatchet(t, file, nil, wrong)
	require.Len(t, wwwKeys(r, wrong), 5)
	require.NoError(t, r.save())
	assert.Equal(t, noon.Add(time.Minute), r.Saved())
	r.at(wrong.Add(time.Hour))
	require.NoError(t, r.save())
	assert.Equal(t, wrong.Add(time.Hour), r.Saved())
	assert.Empty(t, wwwKeys(r, noon), "there is no way back")
}

// It is the ratchet of the secret at the later of the clock and the file, and the
// file never goes back.
func TestTicketKeysWhateverTheClockDoes(t *testing.T) {
	for seed := range uint64(5) {
		rnd := rand.New(rand.NewPCG(seed, 0))
		file := ratchetFile(t)
		r := openRatchet(t, file, ticketSecret, noon)
		require.NoError(t, r.save())
		now := noon
		for range 100 {
			before := r.Saved()
			switch rnd.IntN(8) {
			case 0:
				now = now.Add(time.Duration(rnd.IntN(72*60)-36*60) * time.Minute)
			case 1:
				now = now.AddDate(0, 0, rnd.IntN(120)-40)
			case 2:
				r = openRatchet(t, file, nil, now)
			default:
				now = now.Add(time.Duration(rnd.IntN(30)) * time.Minute)
			}
			want := newRatchet(ticketSecret)
			got := r.at(now)
			want.forward(max(ratchetMinute(now), r.kept.minute))
			require.Equal(t, want, got, "seed %d", seed)
			require.NoError(t, r.save())
			require.False(t, r.Saved().Before(before), "seed %d", seed)
		}
	}
}

func TestAFileOfTicketKeysFromTheFuture(t *testing.T) {
	file := ratchetFile(t)
	future := noon.AddDate(4, 0, 0)
	require.NoError(t, openRatchet(t, file, ticketSecret, future).save())

	// Without the secret there is nothing to do but to say so.
	r := openRatchet(t, file, nil, noon)
	require.Len(t, r.Warnings(), 1)
	assert.Contains(t, r.Warnings()[0], "no ticket keys for tickets that expire before 2030-03-04T12:00:00Z")
	assert.Contains(t, r.Warnings()[0], "skictl tickets import --replace")
	s := newTicketServer(t, func(o *Options) { o.TicketRatchet = r }).at(noon)
	a := s.ServeTickets(t.Context(), edgePeer, "www.example.com", ski.TicketTag{})
	assert.Equal(t, ski.UnspecifiedError, a.Error, "nothing is taken back")
	assert.Contains(t, s.trail.last().Reason, "no ticket keys for what the clock says")

	// With it, nothing is lost.
	r = openRatchet(t, file, ticketSecret, noon)
	assert.Contains(t, strings.Join(r.Warnings(), "\n"), "it is made anew from")
	require.NoError(t, r.save())
	assert.Equal(t, wwwKeys(openRatchet(t, "", ticketSecret, noon), noon), wwwKeys(openRatchet(t, file, nil, noon), noon))
}

func TestTicketKeysGoOnWhereTheirFileCannotBeWritten(t *testing.T) {
	file := ratchetFile(t)
	dir := filepath.Dir(file)
	var log bytes.Buffer
	s := newTicketServer(t, func(o *Options) {
		o.TicketRatchet = openRatchet(t, file, ticketSecret, noon)
		o.Logger = slog.New(slog.NewTextHandler(&log, nil))
	})
	require.NoError(t, os.Remove(dir))
	for range 3 {
		s.noteTicketFile(s.tickets.save())
	}
	assert.Equal(t, 1, strings.Count(log.String(), "cannot be kept up"))
	s.at(noon).keysFor(edgePeer, "www.example.com")
	require.NoError(t, os.Mkdir(dir, 0o700))
	s.noteTicketFile(s.tickets.save())
	assert.Equal(t, 1, strings.Count(log.String(), "is kept up again"))
	require.FileExists(t, file)
}

// A Server that watches keeps the file, without being asked for a key.
func TestWatchKeepsTheFileOfTicketKeys(t *testing.T) {
	file := ratchetFile(t)
	var log bytes.Buffer
	s := newTicketServer(t, func(o *Options) {
		o.TicketRatchet = openRatchet(t, file, ticketSecret, noon)
		o.Logger = slog.New(slog.NewTextHandler(&log, nil))
	})
	clock := make(chan time.Time)
	s.tickets.now = func() time.Time { return <-clock }
	ended := make(chan struct{})
	ctx, cancel := context.WithCancel(t.Context())
	ticks := make(chan time.Time)
	go func() {
		defer close(ended)
		s.keepTickets(ctx, ticks)
	}()
	for _, at := range []time.Time{noon, noon.Add(30 * time.Second), noon.Add(time.Minute), noon.Add(2 * time.Hour)} {
		clock <- at
		ticks <- at // when the file is written
	}
	assert.Equal(t, noon.Add(2*time.Hour), openRatchet(t, file, nil, noon).Saved())
	info, err := os.Stat(file)
	require.NoError(t, err)
	assert.Equal(t, os.FileMode(0o600), info.Mode())
	for _, at := range []time.Time{noon.AddDate(1, 0, 0), noon.AddDate(1, 0, 0).Add(time.Minute)} {
		clock <- at
		ticks <- at
	}
	clock <- noon.AddDate(1, 0, 0)
	cancel()
	<-ended
	assert.Equal(t, 1, strings.Count(log.String(), "the clock is more than a day ahead of the ticket keys"), log.String())
}

func TestWhatTheOperatorIsToldOfTicketKeys(t *testing.T) {
	file := ratchetFile(t)
	require.Empty(t, openRatchet(t, file, nil, noon).Warnings())
	require.Contains(t, openRatchet(t, file, nil, noon).String(), "a random secret of this process")
	require.NoFileExists(t, file)
	warning := func(file string, secret []byte) string {
		r := openRatchet(t, file, secret, noon)
		r.secret = "/etc/ticket.secret"
		require.NotContains(t, r.String(), hex.EncodeToString(ticketSecret))
		return strings.Join(r.Warnings(), "\n")
	}
	assert.Equal(t, "ticket_secret_file: /etc/ticket.secret yields all ticket keys of the past: with 'state' the key server goes on without it",
		warning("", ticketSecret))
	assert.Contains(t, warning(file, ticketSecret), "the start makes "+file)
	require.NoError(t, openRatchet(t, file, ticketSecret, noon).save())
	assert.Contains(t, warning(file, ticketSecret), "still yields all ticket keys of the past: the key server goes on from "+file+
		" without it, so remove the setting, the file and its copies")
	assert.Empty(t, warning(file, nil))
	assert.Equal(t, file+", which has no key of tickets that expired before 2026-03-04T12:00:00Z", openRatchet(t, file, nil, noon).String())
}

// The operator has removed the secret, and not its setting: the next start is
// long after.
func TestAKeyServerStartsWhenItsTicketSecretWasRemoved(t *testing.T) {
	c, dir, err := loadConfig(t, leastConfig+"state: state.json\nticket_secret_file: ticket.secret\n")
	require.NoError(t, err)
	_, err = c.TicketRatchet(noon)
	require.ErrorIs(t, err, os.ErrNotExist, "it has never been there")
	require.NoError(t, os.WriteFile(filepath.Join(dir, "ticket.secret"), ticketSecret, 0o600))
	r, err := c.TicketRatchet(noon)
	require.NoError(t, err)
	require.NoError(t, r.save())
	require.NoError(t, os.Remove(filepath.Join(dir, "ticket.secret")))
	later, err := c.TicketRatchet(noon)
	require.NoError(t, err)
	assert.Equal(t, wwwKeys(r, noon), wwwKeys(later, noon))
	require.Len(t, later.Warnings(), 1)
	assert.Contains(t, later.Warnings()[0], "ticket.secret is not there, and "+dir+"/state.json.tickets does without it: remove the setting")
}

func TestAFileOfTicketKeysThatIsNotWhole(t *testing.T) {
	file := ratchetFile(t)
	require.NoError(t, openRatchet(t, file, ticketSecret, noon).save())
	good, err := os.ReadFile(file)
	require.NoError(t, err)
	for name, text := range map[string]string{
		"empty": "", "cut short": string(good[:len(good)-1]), "more": string(good) + "\n",
		"version": strings.Replace(string(good), "ratchet 1", "ratchet 12", 1),
		"order":   strings.Replace(strings.Replace(string(good), "value", "next-hour", 1), "\nnext-hour", "\nvalue", 2),
		"seconds": strings.Replace(string(good), ":00Z", ":01Z", 1), "year": strings.Replace(string(good), "2026", "2025", 1),
		"time": strings.Replace(string(good), "2026", "soon", 1), "digits": strings.Replace(string(good), "value ", "value 0", 1),
		"no digits": strings.Replace(string(good), "value ", "value zz", 1), "long": strings.Repeat(" ", maxTicketRatchetFile+1),
	} {
		require.NoError(t, os.WriteFile(file, []byte(text), 0o600))
		_, err := OpenTicketRatchet(file, ticketSecret, noon)
		assert.ErrorContains(t, err, file, name)
	}
	require.NoError(t, os.WriteFile(file, good, 0o640))
	require.NoError(t, os.Chmod(file, 0o640))
	_, err = OpenTicketRatchet(file, nil, noon)
	assert.ErrorContains(t, err, "group or others have rights to it")
}

func FuzzParseRatchet(f *testing.F) {
	r := newRatchet(ticketSecret)
	r.forward(ratchetMinute(noon))
	f.Add(r.encode())
	f.Add([]byte(ratchetHeader + "\nminute 2026-01-01T00:00:00Z\nvalue \nnext-hour \n"))
	f.Fuzz(func(t *testing.T, text []byte) {
		r, err := parseRatchet(text)
		if err != nil {
			require.Zero(t, r)
			return
		}
		again, err := parseRatchet(r.encode())
		require.NoError(t, err)
		require.Equal(t, r, again)
	})
}
