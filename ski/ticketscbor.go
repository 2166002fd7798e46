package ski

import (
	"time"

	"github.com/fxamacker/cbor/v2"
)

// ticketsMap and ticketKeyMap give ticket keys their names in CBOR.
type ticketsMap struct {
	Site string         `cbor:"site"`
	Keys []ticketKeyMap `cbor:"keys"`
}

type ticketKeyMap struct {
	ID    []byte `cbor:"id"`
	Key   []byte `cbor:"key"`
	From  int64  `cbor:"from"`
	To    int64  `cbor:"to"`
	Until int64  `cbor:"until"`
}

// EncodeTicketKeys returns the CBOR of t (docs/protocol.md, Section 7), to be
// cleared by the caller.
func EncodeTicketKeys(t *TicketKeys) ([]byte, error) {
	if err := t.Validate(); err != nil {
		return nil, err
	}
	m := ticketsMap{Site: t.Site}
	for i := range t.Keys {
		k := &t.Keys[i]
		m.Keys = append(m.Keys, ticketKeyMap{k.ID[:], k.Secret[:], k.From.Unix(), k.To.Unix(), k.Until.Unix()})
	}
	return cborEnc.Marshal(m)
}

// DecodeTicketKeys reads what EncodeTicketKeys has written. The error is a
// *MalformedError.
func DecodeTicketKeys(data []byte) (*TicketKeys, error) {
	if len(data) > MaxTicketsLen {
		return nil, malformed("", "it is too long")
	}
	m, err := decodeCBORMap(data)
	if err != nil {
		return nil, err
	}
	t := new(TicketKeys)
	if t.Site, _, err = m.textValue("site"); err != nil {
		return nil, malformed("site", err.Error())
	}
	var keys []cbor.RawMessage
	if err := m.value("keys", majorArray, errNotArray, &keys); err != nil {
		return nil, malformed("keys", err.Error())
	}
	if len(keys) > MaxTicketKeys {
		return nil, malformed("keys", "are none or too many")
	}
	for _, raw := range keys {
		k, err := decodeTicketKey(raw)
		if err != nil {
			t.Clear()
			return nil, err
		}
		t.Keys = append(t.Keys, k)
	}
	if err := t.Validate(); err != nil {
		t.Clear()
		return nil, err
	}
	return t, nil
}

func decodeTicketKey(raw []byte) (k TicketKey, err error) {
	m, err := decodeCBORMap(raw)
	if err != nil {
		return k, err
	}
	for _, f := range []struct {
		name string
		to   []byte
	}{{"id", k.ID[:]}, {"key", k.Secret[:]}} {
		value, _, err := m.bytesValue(f.name)
		if err != nil || len(value) != len(f.to) {
			return k, malformed(f.name, "is missing, or not as long as it must be")
		}
		copy(f.to, value)
		clear(value)
	}
	for _, f := range []struct {
		name string
		to   *time.Time
	}{{"from", &k.From}, {"to", &k.To}, {"until", &k.Until}} {
		value, ok, err := m.uintValue(f.name)
		if err != nil || !ok || value > maxTicketTime {
			return k, malformed(f.name, "is not a time in seconds")
		}
		*f.to = time.Unix(int64(value), 0)
	}
	return k, nil
}
