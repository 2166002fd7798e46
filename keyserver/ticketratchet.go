package keyserver

import (
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/tlsski/tlsski/internal/guarded"
)

// TicketRatchet is what the keys of session tickets are derived from. It goes on
// with the clock and forgets: what a ticket that has expired was made with
// cannot be derived any more, from it or from its file. Key servers with the
// same secret have the same keys, whenever they were started.
type TicketRatchet struct {
	file    string // "" for none
	secret  string // the file that the secret is from, for messages
	random  bool   // the secret is this process's own
	removed bool   // the file of the secret is, and its setting is not
	asked   string // the file of a request (RequestTicketKeys); "" for none
	source  ratchetSource
	ahead   time.Time // what the file said at the start, where the clock was far behind it

	mu      sync.Mutex
	kept    ratchet // what the file has, or is to have
	current ratchet // kept, or further
	last    int64   // the minute of the last look at the clock
	jump    int64   // the minute that the clock has jumped to; 0 where it has not

	saving sync.Mutex // held while the file is read and written
	seen   [sha256.Size]byte
	clean  bool         // no former process has left anything behind
	rewind bool         // the file is ahead and is to be written all the same
	saved  atomic.Int64 // the minute of what the file has; 0 for no file
}

// ratchetSource says what a TicketRatchet began with.
type ratchetSource int

const (
	fromRandom    ratchetSource = iota // this process's own secret
	fromFile                           // the file; there is no secret
	fromSecret                         // the secret; there was no file
	fromBoth                           // the file, which comes from the secret
	fromNewSecret                      // the secret, which the file does not come from
)

const (
	ticketRatchetSuffix = ".tickets"
	// maxTicketRatchetFile bounds what is read of the file, in bytes. It has 200.
	maxTicketRatchetFile = 1024
)

// TicketRatchetFile returns the name of the file that keeps the ratchet of a key
// server with this state file. "" has none.
func TicketRatchetFile(state string) string {
	if state == "" {
		return ""
	}
	return state + ticketRatchetSuffix
}

// OpenTicketRatchet returns the ratchet that a file keeps, or begins the one of
// a secret of MinTicketSecret bytes or more. Where there are both and the file
// comes from another secret, the one given counts. A file that cannot be read
// is an error. Without a file's name the ratchet is in memory alone; with
// neither file nor secret it begins with a random one and ends with the process.
// It writes nothing: a Server's Watch does.
func OpenTicketRatchet(file string, secret []byte, now time.Time) (*TicketRatchet, error) {
	if secret != nil && len(secret) < MinTicketSecret {
		return nil, fmt.Errorf("keyserver: the ticket secret has less than %d bytes", MinTicketSecret)
	}
	t := &TicketRatchet{file: file}
	found := false
	if file != "" {
		if asked := file + strings.TrimPrefix(ticketRequestSuffix, ticketRatchetSuffix); exists(asked) {
			t.asked = asked
		}
		kept, digest, err := readRatchet(file)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, err
		}
		if found = err == nil; found {
			t.kept, t.seen = kept, digest
			t.saved.Store(kept.minute)
		}
	}
	t.begin(secret, found, ratchetMinute(now))
	t.current, t.last = t.kept, t.kept.minute
	return t, nil
}

// begin chooses what the ratchet goes on from.
func (t *TicketRatchet) begin(secret []byte, found bool, minute int64) {
	ahead := found && t.kept.minute > minute+clockJump
	if secret == nil {
		if found {
			t.source = fromFile
			if ahead {
				t.ahead = t.kept.time()
			}
			return
		}
		t.random, t.file = true, ""
		secret = make([]byte, MinTicketSecret)
		rand.Read(secret)
		defer clear(secret)
	}
	seeded := newRatchet(secret)
	defer seeded.clear()
	switch {
	case t.random:
	case !found:
		t.source = fromSecret
	case seeded.sameAs(t.kept):
		t.source = fromBoth
		if !ahead {
			return
		}
		// A clock that was ahead once has taken the file along. The secret is
		// there, so that nothing is lost by going back.
		t.ahead, t.rewind = t.kept.time(), true
	default:
		t.source = fromNewSecret
	}
	seeded.forward(minute)
	t.kept = seeded
}

// at returns the ratchet as it is at a time, which the caller clears. Where the
// clock is behind what is kept, it is what is kept.
func (t *TicketRatchet) at(now time.Time) ratchet {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.advance(ratchetMinute(now))
	return t.current
}

// A clock that is more than clockJump minutes ahead of the ratchet is only
// believed, and the ratchet that is kept turned, when it has gone on from there
// for clockSettles: what it would forget could not be brought back when the
// clock is put right.
const (
	clockJump    = 24 * 60
	clockSettles = 60
)

func (t *TicketRatchet) advance(minute int64) {
	if minute < t.current.minute {
		t.current = t.kept
	}
	t.current.forward(minute)
	switch {
	case minute <= t.kept.minute+clockJump:
		t.jump = 0
	case t.jump == 0 || minute < t.jump || minute > t.last+clockJump:
		t.jump = minute
	}
	t.last = minute
	if t.jump == 0 || minute >= t.jump+clockSettles {
		t.jump = 0
		if t.kept.minute < minute {
			t.kept = t.current
		}
	}
}

// Why save leaves the file alone.
var errOtherRatchet = errors.New("another process has put other ticket keys there, or older ones: restart the key server to use them")

// held returns what the ratchet stays at while the clock is not believed; the
// zero time while it is.
func (t *TicketRatchet) held() time.Time {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.jump == 0 {
		return time.Time{}
	}
	return t.kept.time()
}

// save writes the ratchet to its file, if it has one that is older. It is
// written by several processes, if they have one secret.
func (t *TicketRatchet) save() error {
	if t.file == "" {
		return nil
	}
	t.saving.Lock()
	defer t.saving.Unlock()
	t.mu.Lock()
	kept := t.kept
	t.mu.Unlock()
	defer kept.clear()
	if !t.clean {
		if err := removeUnfinished(t.file); err != nil {
			return err
		}
		t.clean = true
	}
	there, digest, err := readRatchet(t.file)
	defer there.clear()
	switch {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		return err
	case digest != t.seen && (there.minute < t.saved.Load() || !there.sameAs(kept)):
		return fmt.Errorf("%s: %w", t.file, errOtherRatchet)
	case !t.rewind && there.minute >= kept.minute && there.sameAs(kept):
		t.seen = digest
		t.saved.Store(there.minute)
		return nil
	}
	if t.seen, err = writeRatchet(t.file, &kept); err != nil {
		return err
	}
	t.rewind = false
	t.saved.Store(kept.minute)
	return nil
}

// Saved returns the minute that the file has got to: what it yields are keys of
// tickets that expire then or later. The zero time is that of no file.
func (t *TicketRatchet) Saved() time.Time {
	minute := t.saved.Load()
	if minute == 0 {
		return time.Time{}
	}
	return time.Unix(minute*60, 0).UTC()
}

// String says where the ratchet is from.
func (t *TicketRatchet) String() string {
	switch {
	case t.random:
		return "a random secret of this process: other key servers, and the next start, have other keys"
	case t.source == fromFile || t.source == fromBoth:
		return fmt.Sprintf("%s, which has no key of tickets that expired before %s", t.file, t.Saved().Format(time.RFC3339))
	case t.file == "":
		return t.secret
	}
	return t.secret + ", then " + t.file
}

// Warnings returns a line for each thing that the operator should do.
func (t *TicketRatchet) Warnings() (warnings []string) {
	secret := "ticket_secret_file: " + t.secret
	switch {
	case t.source == fromRandom || t.source == fromFile:
	case t.file == "":
		warnings = append(warnings, secret+" yields all ticket keys of the past: with 'state' the key server goes on without it")
	case t.source == fromBoth:
		warnings = append(warnings, secret+" still yields all ticket keys of the past: the key server goes on from "+t.file+
			" without it, so remove the setting, the file and its copies")
	default:
		warnings = append(warnings, secret+" yields all ticket keys of the past: the start makes "+t.file+
			", with which the key server goes on; then remove the setting, the file and its copies")
	}
	if t.removed {
		warnings = append(warnings, secret+" is not there, and "+t.file+" does without it: remove the setting")
	}
	if t.source == fromNewSecret {
		warnings = append(warnings, secret+" is not the secret that the ticket keys in "+t.file+" come from: all are other ones from the start on")
	}
	if t.asked != "" {
		warnings = append(warnings, t.asked+" opens ticket keys that were sealed to it: stop the key server and import them (skictl tickets import), or remove the file")
	}
	if !t.ahead.IsZero() {
		text := fmt.Sprintf("%s: it has no ticket keys for tickets that expire before %s, since a clock was ahead once, or is behind now: ",
			t.file, t.ahead.Format(time.RFC3339))
		if t.source == fromBoth {
			text += "it is made anew from " + t.secret
		} else {
			text += "import those of another key server (skictl tickets import --replace), or give all key servers of the site a new ticket_secret_file"
		}
		warnings = append(warnings, text)
	}
	return warnings
}

func exists(file string) bool {
	_, err := os.Lstat(file)
	return err == nil
}

func readRatchet(file string) (r ratchet, digest [sha256.Size]byte, err error) {
	text, err := guarded.Read(file, guarded.Secret, maxTicketRatchetFile)
	if err != nil {
		return r, digest, err
	}
	defer clear(text)
	if r, err = parseRatchet(text); err != nil {
		return r, digest, fmt.Errorf("%s: %w", file, err)
	}
	return r, sha256.Sum256(text), nil
}

func writeRatchet(file string, r *ratchet) (digest [sha256.Size]byte, err error) {
	text := r.encode()
	defer clear(text)
	if err := replaceFile(file, text); err != nil {
		return digest, err
	}
	return sha256.Sum256(text), nil
}
