package ski

import (
	"errors"
	"strings"
)

// PeerID is what one peer has and no other: the key of its certificate or,
// where that is zero, the identity of its pre-shared key.
type PeerID struct {
	SPKI KeyID
	PSK  string
}

const pskPrefix = "psk:"

// ParsePeerID reads what String writes, of all but the zero value.
func ParsePeerID(s string) (PeerID, error) {
	if psk, ok := strings.CutPrefix(s, pskPrefix); ok {
		return PeerID{PSK: psk}, CheckPSKIdentity(psk)
	}
	spki, err := ParseKeyID(s)
	if err == nil && spki.IsZero() {
		err = errors.New("ski: the SPKI fingerprint is zero, which is nobody's")
	}
	return PeerID{SPKI: spki}, err
}

// String returns the SPKI fingerprint in hexadecimal, or psk: and the identity.
// It is empty for the zero value.
func (id PeerID) String() string {
	switch {
	case id.PSK != "":
		return pskPrefix + id.PSK
	case id.SPKI.IsZero():
		return ""
	}
	return id.SPKI.String()
}
