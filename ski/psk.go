package ski

import (
	"bytes"
	"encoding/hex"
	"errors"
	"fmt"
)

// Bounds on a pre-shared key and its identity.
const (
	// MinPSKLen and MaxPSKLen are the lengths of keys, in bytes. Below the
	// first a key could be guessed from one recorded handshake; the second is
	// what RFC 4279, Section 5.3, has every implementation support.
	MinPSKLen = 16
	MaxPSKLen = 64
	// MaxPSKIdentityLen is the length of an identity (RFC 4279, Section 5.3).
	MaxPSKIdentityLen = 128
)

// PSK is a pre-shared key of the SKI channel (RFC 4279).
type PSK struct {
	// Identity names the key, and the peer that has it.
	Identity string
	// Key is the secret, MinPSKLen to MaxPSKLen random bytes.
	Key []byte
}

// ParsePSKs reads keys, one a line, as GnuTLS's psktool writes them: the
// identity, a colon, and the key in hexadecimal. Empty lines and those that
// begin with # do not count. The name is for errors, which name the line and
// never hold a key.
func ParsePSKs(name string, data []byte) ([]PSK, error) {
	var all []PSK
	seen := make(map[string]int)
	number := 0
	for line := range bytes.SplitSeq(data, []byte("\n")) {
		number++
		if line = bytes.TrimSpace(line); len(line) == 0 || line[0] == '#' {
			continue
		}
		psk, err := parsePSK(line)
		if err != nil {
			return nil, fmt.Errorf("%s:%d: %w", name, number, err)
		}
		if former := seen[psk.Identity]; former != 0 {
			return nil, fmt.Errorf("%s:%d: line %d has the identity %q too", name, number, former, psk.Identity)
		}
		seen[psk.Identity] = number
		all = append(all, psk)
	}
	if len(all) == 0 {
		return nil, fmt.Errorf("%s: it has no line IDENTITY:KEY", name)
	}
	return all, nil
}

func parsePSK(line []byte) (PSK, error) {
	// The last colon: identities such as urn:dev:ops:1 have others.
	colon := bytes.LastIndexByte(line, ':')
	if colon < 0 {
		return PSK{}, errors.New("it is not IDENTITY:KEY")
	}
	identity := string(bytes.TrimSpace(line[:colon]))
	if err := CheckPSKIdentity(identity); err != nil {
		return PSK{}, err
	}
	digits := bytes.TrimSpace(line[colon+1:])
	key := make([]byte, hex.DecodedLen(len(digits)))
	if _, err := hex.Decode(key, digits); err != nil {
		return PSK{}, errors.New("the key is not an even number of hexadecimal digits")
	}
	if len(key) < MinPSKLen || len(key) > MaxPSKLen {
		return PSK{}, fmt.Errorf("the key has %d bytes and not %d to %d", len(key), MinPSKLen, MaxPSKLen)
	}
	return PSK{Identity: identity, Key: key}, nil
}

// CheckPSKIdentity accepts 1 to MaxPSKIdentityLen characters of printable
// ASCII without spaces, so that an identity is the same in every log and
// configuration.
func CheckPSKIdentity(identity string) error {
	if identity == "" || len(identity) > MaxPSKIdentityLen {
		return fmt.Errorf("a PSK identity has 1 to %d characters", MaxPSKIdentityLen)
	}
	for _, c := range []byte(identity) {
		if c <= ' ' || c > '~' {
			return errors.New("a PSK identity has printable ASCII characters only, and no spaces")
		}
	}
	return nil
}
