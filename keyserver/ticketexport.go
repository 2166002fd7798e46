package keyserver

import (
	"crypto/ecdh"
	"crypto/hpke"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base32"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/tlsski/tlsski/internal/guarded"
)

// A key server that is new in a site gets the ratchet of another, sealed with
// HPKE (RFC 9180: DHKEM(X25519, HKDF-SHA256), HKDF-SHA256, AES-256-GCM) to a
// public key of its own. HPKE says nothing of who has sealed: whoever has read
// the request could answer it with ticket keys that it knows. The check code,
// which the operator takes from the one machine to the other, is against that.

const (
	ticketRequestSuffix = ticketRatchetSuffix + "-request" // behind the name of the state file
	ticketRequestPrefix = "ski-tickets-request:"
	ticketSealedPrefix  = "ski-tickets-sealed:"
	ticketSealInfo      = "tlsski ticket keys export 1"
	// MaxTicketSealed bounds the text of sealed ticket keys, in bytes. It has some 400.
	MaxTicketSealed = 1024
	// ticketSealedFor is how long sealed ticket keys can be imported.
	ticketSealedFor = 24 * time.Hour
)

func ticketKEM() hpke.KEM { return hpke.DHKEM(ecdh.X25519()) }

// RequestTicketKeys makes a key pair that another key server seals its ticket
// keys to. It keeps the private key beside the state file, in the place of a
// former one, and returns the public key as one line of text.
func RequestTicketKeys(state string) (request string, err error) {
	if err := checkStateFolder(state); err != nil {
		return "", err
	}
	key, err := ticketKEM().GenerateKey()
	if err != nil {
		return "", err
	}
	private, err := key.Bytes()
	if err != nil {
		return "", err
	}
	defer clear(private)
	text := append(hex.AppendEncode(make([]byte, 0, 2*len(private)+1), private), '\n')
	defer clear(text)
	file := state + ticketRequestSuffix
	if err := errors.Join(removeUnfinished(file), replaceFile(file, text)); err != nil {
		return "", err
	}
	return ticketRequestPrefix + base64.RawURLEncoding.EncodeToString(key.PublicKey().Bytes()), nil
}

// ExportTicketKeys seals what the ticket keys of a key server are derived from
// now, and no earlier ones, for the key server that has made the request. The
// key server may run. The code goes to ImportTicketKeys by another way than the
// sealed text.
func ExportTicketKeys(state, request string, now time.Time) (sealed, code string, err error) {
	to, err := parseTicketRequest(request)
	if err != nil {
		return "", "", err
	}
	file := TicketRatchetFile(state)
	r, _, err := readRatchet(file)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return "", "", fmt.Errorf("%w: a key server with this 'state' and 'ticket_secret_file' makes it at its start", err)
	case err != nil:
		return "", "", asOwner(err)
	}
	defer r.clear()
	// Of a clock that is wrong nothing is lost: the file stays, and the import
	// refuses what is ahead of its own clock.
	r.forward(ratchetMinute(now))
	encoded := r.encode()
	defer clear(encoded)
	plain := make([]byte, 0, 8+len(encoded))
	plain = append(binary.BigEndian.AppendUint64(plain, uint64(now.Add(ticketSealedFor).Unix())), encoded...)
	defer clear(plain)
	box, err := hpke.Seal(to, hpke.HKDFSHA256(), hpke.AES256GCM(), []byte(ticketSealInfo), plain)
	if err != nil {
		return "", "", err
	}
	return ticketSealedPrefix + base64.RawURLEncoding.EncodeToString(box), ticketCode(to, box), nil
}

// ImportTicketKeys opens what ExportTicketKeys has sealed for the request of
// this state file, and makes it what the key server derives its ticket keys
// from with its next start. It does not take the place of other ticket keys
// unless told to replace them.
func ImportTicketKeys(state, sealed, code string, replace bool, now time.Time) error {
	r, err := openTicketKeys(state, sealed, code, now)
	if err != nil {
		return err
	}
	defer r.clear()
	file := TicketRatchetFile(state)
	there, _, err := readRatchet(file)
	defer there.clear()
	switch {
	case replace || errors.Is(err, fs.ErrNotExist):
	case err != nil:
		return err
	case !there.sameAs(r):
		return fmt.Errorf("%s has the ticket keys of another secret (use --replace to replace them)", file)
	case there.minute > r.minute:
		r.forward(there.minute) // It does not bring back what is forgotten.
	}
	if _, err := writeRatchet(file, &r); err != nil {
		return err
	}
	return os.Remove(state + ticketRequestSuffix)
}

func openTicketKeys(state, sealed, code string, now time.Time) (r ratchet, err error) {
	if err := checkStateFolder(state); err != nil {
		return r, err
	}
	box, err := parseTicketText(sealed, ticketSealedPrefix, "sealed ticket keys, as 'skictl tickets export' prints them")
	if err != nil {
		return r, err
	}
	key, err := readTicketRequest(state + ticketRequestSuffix)
	if err != nil {
		return r, err
	}
	if want := ticketCode(key.PublicKey(), box); subtle.ConstantTimeCompare([]byte(want), []byte(strings.ToLower(strings.TrimSpace(code)))) != 1 {
		return r, errors.New("the check code is another: the sealed ticket keys are not for the last request here, or were changed or exchanged on the way")
	}
	plain, err := hpke.Open(key, hpke.HKDFSHA256(), hpke.AES256GCM(), []byte(ticketSealInfo), box)
	if err != nil || len(plain) < 8 {
		return r, errors.New("the ticket keys are not sealed for the last request here")
	}
	defer clear(plain)
	expiry := time.Unix(int64(min(binary.BigEndian.Uint64(plain), 1<<40)), 0).UTC()
	if now.After(expiry) {
		return r, fmt.Errorf("the ticket keys were sealed to be imported until %s: export them again", expiry.Format(time.RFC3339))
	}
	if r, err = parseRatchet(plain[8:]); err != nil {
		return r, fmt.Errorf("sealed ticket keys: %w", err)
	}
	if r.minute > ratchetMinute(now)+clockJump {
		defer r.clear()
		return ratchet{}, fmt.Errorf("the ticket keys begin at %s, which is ahead of this machine's clock", r.time().Format(time.RFC3339))
	}
	return r, nil
}

func parseTicketRequest(request string) (hpke.PublicKey, error) {
	const what = "a request, as 'skictl tickets request' prints it"
	raw, err := parseTicketText(request, ticketRequestPrefix, what)
	if err != nil {
		return nil, err
	}
	key, err := ticketKEM().NewPublicKey(raw)
	if err != nil {
		return nil, fmt.Errorf("it is not %s", what)
	}
	return key, nil
}

func readTicketRequest(file string) (hpke.PrivateKey, error) {
	text, err := readPrivateFile(file)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%w: 'skictl tickets request' comes first, with the same --state", err)
	}
	if err != nil {
		return nil, err
	}
	defer clear(text)
	raw := make([]byte, 32)
	defer clear(raw)
	if len(text) == 2*len(raw)+1 {
		if _, err := hex.Decode(raw, text[:2*len(raw)]); err == nil {
			return ticketKEM().NewPrivateKey(raw)
		}
	}
	return nil, fmt.Errorf("%s: it is not what 'skictl tickets request' has written", file)
}

// parseTicketText reads what stands behind a prefix in base64.
func parseTicketText(text, prefix, what string) ([]byte, error) {
	text = strings.TrimSpace(text)
	encoded, found := strings.CutPrefix(text, prefix)
	raw, err := base64.RawURLEncoding.Strict().DecodeString(encoded)
	if !found || err != nil || len(text) > MaxTicketSealed {
		return nil, fmt.Errorf("it is not %s: that is one line and begins with %q", what, prefix)
	}
	return raw, nil
}

// ticketCode returns 80 bits of a digest of the sealed text and of whom it is
// for, in words that can be read out.
func ticketCode(to interface{ Bytes() []byte }, box []byte) string {
	h := sha256.New()
	writePart(h, []byte("tlsski ticket keys check code"))
	writePart(h, to.Bytes())
	writePart(h, box)
	text := strings.ToLower(base32.StdEncoding.EncodeToString(h.Sum(nil)[:10]))
	return strings.Join([]string{text[:4], text[4:8], text[8:12], text[12:]}, "-")
}

// checkStateFolder refuses a state file in whose folder the key server would
// not read one.
func checkStateFolder(state string) error { return asOwner(guarded.CheckDir(filepath.Dir(state))) }

// asOwner adds what helps where a folder is another user's.
func asOwner(err error) error {
	if err == nil || errors.Is(err, fs.ErrNotExist) || os.Geteuid() != 0 {
		return err
	}
	return fmt.Errorf("%w; or run skictl as that user (sudo -u)", err)
}
