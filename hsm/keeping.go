//go:build cgo

package hsm

import (
	"fmt"
	"slices"
	"strings"

	"github.com/miekg/pkcs11"
)

// keeping reads what a private key may be used for, and how well the token keeps
// it (PKCS #11, "Common attributes", "Private key objects"). What the token does
// not tell is taken at its worst.
func (s *session) keeping(handle pkcs11.ObjectHandle, i *KeyInfo) error {
	for _, f := range []struct {
		to        *bool
		attribute uint
		name      string
		otherwise bool
	}{
		{&i.Signs, pkcs11.CKA_SIGN, "CKA_SIGN", false},
		{&i.Decrypts, pkcs11.CKA_DECRYPT, "CKA_DECRYPT", false},
		{&i.Sensitive, pkcs11.CKA_SENSITIVE, sensitive, false},
		{&i.AlwaysSensitive, pkcs11.CKA_ALWAYS_SENSITIVE, alwaysSensitive, false},
		{&i.Extractable, pkcs11.CKA_EXTRACTABLE, extractable, true},
		{&i.NeverExtractable, pkcs11.CKA_NEVER_EXTRACTABLE, neverExtractable, false},
		{&i.Local, pkcs11.CKA_LOCAL, local, false},
		{&i.Modifiable, pkcs11.CKA_MODIFIABLE, "CKA_MODIFIABLE", true},
		{&i.Copyable, pkcs11.CKA_COPYABLE, "CKA_COPYABLE", true},
	} {
		v, err := s.attribute(handle, f.attribute)
		switch {
		case err != nil:
			return err
		case len(v) == 1: // a CK_BBOOL
			*f.to = v[0] != 0
		default:
			*f.to = f.otherwise
			i.Untold = append(i.Untold, f.name)
		}
	}
	allowed, err := s.attribute(handle, pkcs11.CKA_ALLOWED_MECHANISMS)
	i.Mechanisms = mechanismNames(allowed)
	return err
}

const (
	sensitive        = "CKA_SENSITIVE"
	alwaysSensitive  = "CKA_ALWAYS_SENSITIVE"
	extractable      = "CKA_EXTRACTABLE"
	neverExtractable = "CKA_NEVER_EXTRACTABLE"
	local            = "CKA_LOCAL"
)

// mechanismName names a mechanism that this package uses, and gives the number of
// any other.
func mechanismName(mechanism uint) string {
	switch mechanism {
	case pkcs11.CKM_ECDSA:
		return "CKM_ECDSA"
	case ckmEdDSA:
		return "CKM_EDDSA"
	case pkcs11.CKM_RSA_PKCS:
		return "CKM_RSA_PKCS"
	case pkcs11.CKM_RSA_PKCS_PSS:
		return "CKM_RSA_PKCS_PSS"
	case pkcs11.CKM_RSA_X_509:
		return "CKM_RSA_X_509"
	}
	return fmt.Sprintf("0x%08X", mechanism)
}

// mechanismNames reads CKA_ALLOWED_MECHANISMS, an array of CK_MECHANISM_TYPE. It
// is nil for an array that is empty or is none, which limits nothing.
func mechanismNames(array []byte) (names []string) {
	size := len(pkcs11.NewAttribute(pkcs11.CKA_ALLOWED_MECHANISMS, uint(0)).Value)
	if len(array)%size != 0 {
		return nil
	}
	for one := range slices.Chunk(array, size) {
		mechanism := uint(0)
		for i, b := range one { // in the byte order of the machine
			if shift := 8 * i; littleEndian {
				mechanism |= uint(b) << shift
			} else {
				mechanism = mechanism<<8 | uint(b)
			}
		}
		names = append(names, mechanismName(mechanism))
	}
	return names
}

var littleEndian = pkcs11.NewAttribute(0, uint(1)).Value[0] == 1

// demands are what the configuration asks of how a token keeps its keys.
type demands struct {
	nonExtractable bool // require_non_extractable
	generated      bool // require_generated
}

// of returns why a key does not meet the demands, or nil.
func (d demands) of(i *KeyInfo) error {
	fault, setting := d.fault(i)
	if fault == "" {
		return nil
	}
	return fmt.Errorf("%s, which %s forbids: make another with skictl key generate", fault, setting)
}

// fault returns what is wrong with a key and the setting that asks for better;
// "" if nothing is.
func (d demands) fault(i *KeyInfo) (fault, setting string) {
	if d.nonExtractable {
		setting = "require_non_extractable"
		switch {
		case i.untold(extractable, sensitive) != "":
			return "the token does not tell " + i.untold(extractable, sensitive) + ": perhaps the key can be taken off it", setting
		case i.Extractable || !i.Sensitive:
			return "it can be taken off the token (CKA_EXTRACTABLE is true or CKA_SENSITIVE false)", setting
		case i.untold(neverExtractable, alwaysSensitive) != "":
			return "the token does not tell " + i.untold(neverExtractable, alwaysSensitive) + ": perhaps the key could be taken off it before", setting
		case !i.NeverExtractable || !i.AlwaysSensitive:
			return "it was not always on the token alone, or could be taken off it before (CKA_NEVER_EXTRACTABLE or CKA_ALWAYS_SENSITIVE is false)", setting
		}
	}
	if d.generated {
		setting = "require_generated"
		switch {
		case i.untold(local) != "":
			return "the token does not tell CKA_LOCAL: perhaps the key was not made on it", setting
		case !i.Local:
			return "it was not made on the token (CKA_LOCAL is false): there may be copies of it", setting
		}
	}
	return "", ""
}

// untold returns those of the attributes that the token does not tell.
func (i *KeyInfo) untold(attributes ...string) string {
	return strings.Join(slices.DeleteFunc(attributes, func(a string) bool { return !slices.Contains(i.Untold, a) }), " and ")
}
