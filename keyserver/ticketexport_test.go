package keyserver

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// handOver exports what a key server of ticketSecret has at a time, for a new
// request of the state file.
func handOver(t *testing.T, to string, now time.Time) (sealed, code string) {
	t.Helper()
	from := filepath.Join(stateFolder(t), "state")
	require.NoError(t, openRatchet(t, TicketRatchetFile(from), ticketSecret, noon).save())
	request, err := RequestTicketKeys(to)
	require.NoError(t, err)
	sealed, code, err = ExportTicketKeys(from, request, now)
	require.NoError(t, err)
	assert.Regexp(t, `^[a-z2-7]{4}(-[a-z2-7]{4}){3}$`, code)
	assert.LessOrEqual(t, len(sealed), MaxTicketSealed)
	return sealed, code
}

func TestANewKeyServerGetsTheTicketKeysOfAnother(t *testing.T) {
	state := filepath.Join(stateFolder(t), "state")
	now := noon.Add(10 * time.Hour)
	sealed, code := handOver(t, state, now)
	info, err := os.Stat(state + ticketRequestSuffix)
	require.NoError(t, err)
	assert.Equal(t, os.FileMode(0o600), info.Mode())
	require.NoError(t, ImportTicketKeys(state, sealed+"\n", strings.ToUpper(code), false, now))
	assert.NoFileExists(t, state+ticketRequestSuffix, "what opens the sealed keys is gone")

	file := TicketRatchetFile(state)
	there := openRatchet(t, file, nil, now)
	assert.Equal(t, now, there.Saved(), "nothing of before the export")
	assert.Equal(t, wwwKeys(openRatchet(t, "", ticketSecret, now), now), wwwKeys(there, now))
	for _, k := range wwwKeys(openRatchet(t, "", ticketSecret, noon), noon)[:2] {
		assert.Equal(t, k.Until.After(now), yields(t, file, wwwSite, k))
	}
}

// The file of a key server that was off has the keys of then for another hour.
func TestAnExportHasNoKeysOfThePastWhateverTheFileHas(t *testing.T) {
	state := filepath.Join(stateFolder(t), "state")
	now := noon.AddDate(0, 1, 0)
	sealed, code := handOver(t, state, now) // of a file of noon
	require.Len(t, openRatchet(t, TicketRatchetFile(state), ticketSecret, now).Warnings(), 2)
	assert.Contains(t, openRatchet(t, TicketRatchetFile(state), nil, now).Warnings()[0], "state.tickets-request opens ticket keys that were sealed to it")
	require.NoError(t, ImportTicketKeys(state, sealed, code, false, now))
	assert.Equal(t, now, openRatchet(t, TicketRatchetFile(state), nil, now).Saved())
	assert.Empty(t, openRatchet(t, TicketRatchetFile(state), nil, now).Warnings())
	for _, k := range wwwKeys(openRatchet(t, "", ticketSecret, noon), noon) {
		assert.False(t, yields(t, TicketRatchetFile(state), wwwSite, k))
	}
}

func TestSealedTicketKeysAreForOneRequest(t *testing.T) {
	state, other := filepath.Join(stateFolder(t), "state"), filepath.Join(stateFolder(t), "state")
	sealed, code := handOver(t, state, noon)
	refused := func(want, state, sealed, code string, now time.Time) {
		t.Helper()
		assert.ErrorContains(t, ImportTicketKeys(state, sealed, code, false, now), want)
		assert.NoFileExists(t, TicketRatchetFile(state))
	}
	refused("'skictl tickets request' comes first", other, sealed, code, noon)
	request, err := RequestTicketKeys(other)
	require.NoError(t, err)
	refused("the check code is another", other, sealed, code, noon)
	refused("the check code is another", state, sealed, "abcd-efgh-ijkl-mnop", noon)
	refused("the check code is another", state, sealed, "", noon)
	changed := sealed[:100] + string("AB"[strings.Count(sealed[100:101], "A")]) + sealed[101:]
	refused("the check code is another", state, changed, code, noon)
	refused("sealed ticket keys", state, sealed[:len(sealed)-4], code, noon)
	refused("sealed to be imported until 2026-03-05T12:00:00Z: export them again", state, sealed, code, noon.Add(25*time.Hour))
	refused("ahead of this machine's clock", state, sealed, code, noon.AddDate(0, -1, 0))
	refused("sealed ticket keys, as 'skictl tickets export' prints them", state, request, code, noon)
	refused("sealed ticket keys", state, ticketSealedPrefix+strings.Repeat("A", MaxTicketSealed), code, noon)
	refused("sealed ticket keys", state, "", code, noon)

	// Where even the code is right, it opens with the one key alone.
	key, err := readTicketRequest(other + ticketRequestSuffix)
	require.NoError(t, err)
	box, err := parseTicketText(sealed, ticketSealedPrefix, "")
	require.NoError(t, err)
	refused("not sealed for the last request here", other, sealed, ticketCode(key.PublicKey(), box), noon)

	_, _, err = ExportTicketKeys(other, sealed, noon)
	assert.ErrorContains(t, err, "it is not a request, as 'skictl tickets request' prints it")
	_, _, err = ExportTicketKeys(other, request[:len(request)-4], noon)
	assert.ErrorContains(t, err, "it is not a request")
	_, _, err = ExportTicketKeys(other, request, noon)
	assert.ErrorContains(t, err, "a key server with this 'state' and 'ticket_secret_file' makes it at its start")
	require.NoError(t, ImportTicketKeys(state, sealed, code, false, noon), "nothing of this has lost the request")
}

func TestAnImportReplacesOtherTicketKeysOnlyIfToldTo(t *testing.T) {
	state := filepath.Join(stateFolder(t), "state")
	file := TicketRatchetFile(state)
	require.NoError(t, openRatchet(t, file, []byte(strings.Repeat("2", MinTicketSecret)), noon).save())
	before, err := os.ReadFile(file)
	require.NoError(t, err)
	sealed, code := handOver(t, state, noon)
	require.ErrorContains(t, ImportTicketKeys(state, sealed, code, false, noon), "has the ticket keys of another secret (use --replace")
	after, err := os.ReadFile(file)
	require.NoError(t, err)
	require.Equal(t, before, after)
	require.NoError(t, ImportTicketKeys(state, sealed, code, true, noon))
	assert.Equal(t, wwwKeys(openRatchet(t, "", ticketSecret, noon), noon), wwwKeys(openRatchet(t, file, nil, noon), noon))

	// What the file has forgotten does not come back with an older export.
	r := openRatchet(t, file, nil, noon)
	turnTo(t, r, noon, noon.Add(3*time.Hour))
	sealed, code = handOver(t, state, noon)
	require.NoError(t, ImportTicketKeys(state, sealed, code, false, noon))
	assert.Equal(t, noon.Add(3*time.Hour), openRatchet(t, file, nil, noon).Saved())

	// It does if the operator says so, against a clock that was ahead; the process
	// that still runs leaves it.
	turnTo(t, r, noon.AddDate(4, 0, 0), noon.AddDate(4, 0, 0).Add(time.Hour))
	require.ErrorIs(t, func() error {
		sealed, code = handOver(t, state, noon)
		require.NoError(t, ImportTicketKeys(state, sealed, code, true, noon))
		return r.save()
	}(), errOtherRatchet)
	assert.Equal(t, noon, openRatchet(t, file, nil, noon).Saved())
}

func TestTicketKeysInAFolderOfOthersAreNotTouched(t *testing.T) {
	dir := t.TempDir()
	require.NoError(t, os.Chmod(dir, 0o777))
	_, err := RequestTicketKeys(filepath.Join(dir, "state"))
	assert.ErrorContains(t, err, "can write the folder")
	assert.ErrorContains(t, ImportTicketKeys(filepath.Join(dir, "state"), "", "", true, noon), "can write the folder")
}

func FuzzImportTicketKeys(f *testing.F) {
	dir, err := os.MkdirTemp("", "tlsski-fuzz-")
	require.NoError(f, err)
	f.Cleanup(func() { _ = os.RemoveAll(dir) })
	state := filepath.Join(dir, "state")
	request, err := RequestTicketKeys(state)
	require.NoError(f, err)
	from := filepath.Join(dir, "other")
	r, err := OpenTicketRatchet(TicketRatchetFile(from), ticketSecret, noon)
	require.NoError(f, err)
	require.NoError(f, r.save())
	sealed, code, err := ExportTicketKeys(from, request, noon)
	require.NoError(f, err)
	f.Add(sealed, request)
	f.Add(ticketSealedPrefix, ticketRequestPrefix)
	f.Fuzz(func(t *testing.T, text, request string) {
		if got, err := openTicketKeys(state, text, code, noon); err == nil {
			require.Equal(t, strings.TrimSpace(sealed), strings.TrimSpace(text))
			require.Equal(t, ratchetMinute(noon), got.minute)
		}
		if key, err := parseTicketRequest(request); err == nil {
			require.Len(t, key.Bytes(), 32)
		}
	})
}
