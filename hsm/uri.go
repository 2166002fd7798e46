package hsm

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
	"unicode/utf8"
)

// maxURI bounds what is parsed, in bytes: a path of 4096 bytes with every byte
// percent-encoded, and the rest.
const maxURI = 16 << 10

// URI is a PKCS #11 URI (RFC 7512), which names keys on a token and says how to
// get at them. An attribute that the URI does not have matches everything, one
// that is there and empty matches only what is empty.
type URI struct {
	// Token, Manufacturer, Serial and Model are those of CK_TOKEN_INFO.
	Token, Manufacturer, Serial, Model *string
	// LibraryManufacturer, LibraryDescription and LibraryVersion ("2.6") are
	// those of CK_INFO.
	LibraryManufacturer, LibraryDescription, LibraryVersion *string
	// SlotManufacturer and SlotDescription are those of CK_SLOT_INFO.
	SlotManufacturer, SlotDescription *string
	// SlotID is the slot's number. Many modules number slots anew with each
	// start: Serial is what stays.
	SlotID *uint
	// Object is CKA_LABEL, ID is CKA_ID, nil where the URI has none.
	Object *string
	ID     []byte
	// Type is empty, "private", "public", "cert", "secret-key" or "data".
	Type string

	// ModulePath is the file of the PKCS #11 module.
	ModulePath string
	// PINSource says where the PIN is; see the package comment. Empty where
	// the URI does not say.
	PINSource string

	pinValue *string // kept out of String and of what others print
}

// ParseURI reads a PKCS #11 URI. Attributes that RFC 7512 does not define are
// refused, also those that begin with "x-" (Section 2.3 lets vendors define
// some): ignoring one could make the URI name more keys than it says. So is
// module-name, since what it stands for depends on the machine. The error does
// not contain the values of the URI.
func ParseURI(s string) (*URI, error) {
	const scheme = "pkcs11:" // Section 2.3; schemes have no case (RFC 3986, Section 3.1)
	if len(s) > maxURI {
		return nil, fmt.Errorf("the URI has more than %d bytes", maxURI)
	}
	if len(s) < len(scheme) || !strings.EqualFold(s[:len(scheme)], scheme) {
		return nil, errors.New(`it does not begin with "pkcs11:"`)
	}
	path, query, hasQuery := strings.Cut(s[len(scheme):], "?")
	u := new(URI)
	seen := make(map[string]bool)
	if err := eachAttribute(path, ";", pathReserved, seen, u.setPath); err != nil {
		return nil, err
	}
	clear(seen) // "pin-source" in the path is none of Section 2.3's path attributes.
	if hasQuery {
		if err := eachAttribute(query, "&", queryReserved, seen, u.setQuery); err != nil {
			return nil, err
		}
	}
	if u.PINSource != "" && u.pinValue != nil {
		return nil, errors.New("it has both pin-source and pin-value (RFC 7512, Section 2.4)")
	}
	return u, nil
}

// What may stand in a value as it is, besides letters, digits and "-._~": RFC
// 7512, Section 2.3, pk11-path-res-avail and pk11-query-res-avail with "&"
// taken out of the latter's, where it separates. The slash, which the query may
// have, is let through in the path too: softhsm2-util and p11tool users write it.
const (
	pathReserved  = ":[]@!$'()*+,=&/"
	queryReserved = ":[]@!$'()*+,=/?|"
)

func eachAttribute(s, separator, reserved string, seen map[string]bool, set func(name, value string) error) error {
	if s == "" {
		return nil
	}
	for part := range strings.SplitSeq(s, separator) {
		name, raw, ok := strings.Cut(part, "=")
		switch {
		case part == "":
			return fmt.Errorf("it has an empty attribute (two %q, or one at the end)", separator)
		case !isAttributeName(name):
			return errors.New("it has an attribute without a proper name: each is NAME=VALUE")
		case !ok:
			return fmt.Errorf("the attribute %s has no value: each is NAME=VALUE", name)
		case seen[name]:
			return fmt.Errorf("it has the attribute %s twice", name)
		}
		seen[name] = true
		value, err := unescape(raw, reserved)
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		if err := set(name, value); err != nil {
			return err
		}
	}
	return nil
}

func isAttributeName(s string) bool {
	for _, c := range []byte(s) {
		if !isAlphanumeric(c) && c != '-' && c != '_' {
			return false
		}
	}
	return s != "" && len(s) <= 64
}

func isAlphanumeric(c byte) bool {
	return 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9'
}

// unescape undoes percent-encoding (RFC 3986, Section 2.1).
func unescape(s, reserved string) (string, error) {
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		c := s[i]
		switch {
		case c == '%':
			if len(s)-i < 3 {
				return "", errors.New("a % without two hexadecimal digits after it")
			}
			v, err := strconv.ParseUint(s[i+1:i+3], 16, 8)
			if err != nil {
				return "", errors.New("a % without two hexadecimal digits after it")
			}
			b.WriteByte(byte(v))
			i += 2
		case isAlphanumeric(c), strings.IndexByte("-._~", c) >= 0, strings.IndexByte(reserved, c) >= 0:
			b.WriteByte(c)
		default:
			return "", fmt.Errorf("the character %q must be percent-encoded: %%%02X", rune(c), c)
		}
	}
	return b.String(), nil
}

func (u *URI) setPath(name, value string) error {
	if name == "id" {
		u.ID = []byte(value)
		if len(u.ID) == 0 {
			return errors.New("id is empty")
		}
		return nil
	}
	if !utf8.ValidString(value) || strings.ContainsRune(value, 0) { // Section 2.3: text in UTF-8
		return fmt.Errorf("%s is not UTF-8 text", name)
	}
	text := map[string]**string{
		"token": &u.Token, "manufacturer": &u.Manufacturer, "serial": &u.Serial, "model": &u.Model,
		"library-manufacturer": &u.LibraryManufacturer, "library-description": &u.LibraryDescription,
		"slot-manufacturer": &u.SlotManufacturer, "slot-description": &u.SlotDescription, "object": &u.Object,
	}
	switch name {
	case "library-version":
		version, ok := normalizeVersion(value)
		if !ok {
			return errors.New("library-version is not MAJOR or MAJOR.MINOR")
		}
		u.LibraryVersion = &version
	case "slot-id":
		v, err := strconv.ParseUint(value, 10, strconv.IntSize)
		if err != nil || !isDigits(value) {
			return errors.New("slot-id is not a decimal number")
		}
		slot := uint(v)
		u.SlotID = &slot
	case "type":
		switch value {
		case "private", "public", "cert", "secret-key", "data":
			u.Type = value
		default:
			return errors.New("type is none of private, public, cert, secret-key and data")
		}
	case "pin-source", "pin-value", "module-path", "module-name":
		return fmt.Errorf(`%s belongs after the "?"`, name)
	default:
		field, ok := text[name]
		if !ok {
			return fmt.Errorf("the attribute %s is not known", name)
		}
		*field = &value
	}
	return nil
}

// normalizeVersion makes the "2" of RFC 7512, Section 2.3, the "2.0" it stands
// for.
func normalizeVersion(s string) (string, bool) {
	major, minor, ok := strings.Cut(s, ".")
	if !ok {
		minor = "0"
	}
	a, errA := strconv.ParseUint(major, 10, 8)
	b, errB := strconv.ParseUint(minor, 10, 8)
	if errA != nil || errB != nil || !isDigits(major) || !isDigits(minor) {
		return "", false
	}
	return fmt.Sprintf("%d.%d", a, b), true
}

func isDigits(s string) bool {
	return s != "" && strings.Trim(s, "0123456789") == ""
}

func (u *URI) setQuery(name, value string) error {
	if !utf8.ValidString(value) || strings.ContainsRune(value, 0) {
		return fmt.Errorf("%s is not UTF-8 text", name)
	}
	switch name {
	case "module-path":
		if !strings.HasPrefix(value, "/") { // The loader would look elsewhere than the operator does.
			return errors.New("module-path is not an absolute path")
		}
		u.ModulePath = value
	case "module-name":
		return errors.New("module-name is not supported: give the module's file with module-path")
	case "pin-source":
		if value == "" {
			return errors.New("pin-source is empty")
		}
		u.PINSource = value
	case "pin-value":
		u.pinValue = &value
	default:
		return fmt.Errorf("the attribute %s is not known", name)
	}
	return nil
}

// HasPINValue reports whether the URI itself has the PIN (pin-value), where it
// is seen by whoever sees the URI.
func (u *URI) HasPINValue() bool { return u.pinValue != nil }

// String returns the URI in a normal form that ParseURI reads, without the
// value of a pin-value, so that it can be shown and logged. The attributes come
// in the order of RFC 7512, Section 2.3.
func (u *URI) String() string {
	var b strings.Builder
	b.WriteString("pkcs11:")
	separator := ""
	add := func(name, value string) {
		b.WriteString(separator + name + "=" + value)
		separator = ";"
	}
	text := func(name string, value *string) {
		if value != nil {
			add(name, escape(*value, pathReserved))
		}
	}
	text("token", u.Token)
	text("manufacturer", u.Manufacturer)
	text("serial", u.Serial)
	text("model", u.Model)
	text("library-manufacturer", u.LibraryManufacturer)
	text("library-version", u.LibraryVersion)
	text("library-description", u.LibraryDescription)
	text("object", u.Object)
	if u.Type != "" {
		add("type", u.Type)
	}
	if u.ID != nil {
		add("id", escapeID(u.ID))
	}
	text("slot-manufacturer", u.SlotManufacturer)
	text("slot-description", u.SlotDescription)
	if u.SlotID != nil {
		add("slot-id", strconv.FormatUint(uint64(*u.SlotID), 10))
	}
	separator = "?"
	query := func(name, value string) {
		b.WriteString(separator + name + "=" + value)
		separator = "&"
	}
	if u.PINSource != "" {
		query("pin-source", escape(u.PINSource, queryReserved))
	}
	if u.ModulePath != "" {
		query("module-path", escape(u.ModulePath, queryReserved))
	}
	return b.String()
}

func escape(s, reserved string) string {
	var b strings.Builder
	for _, c := range []byte(s) {
		if isAlphanumeric(c) || strings.IndexByte("-._~", c) >= 0 || strings.IndexByte(reserved, c) >= 0 {
			b.WriteByte(c)
		} else {
			fmt.Fprintf(&b, "%%%02X", c)
		}
	}
	return b.String()
}

// escapeID encodes every byte, as RFC 7512, Section 2.3, recommends for id.
func escapeID(id []byte) string {
	var b strings.Builder
	for _, c := range id {
		fmt.Fprintf(&b, "%%%02X", c)
	}
	return b.String()
}
