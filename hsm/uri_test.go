package hsm

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// The examples of RFC 7512, Section 3, that name no module by its name, and
// what they come out as.
var goodURIs = []struct{ uri, normal string }{
	{"pkcs11:", "pkcs11:"},
	{"pkcs11:object=my-pubkey;type=public", "pkcs11:object=my-pubkey;type=public"},
	{"pkcs11:object=my-key;type=private?pin-source=file:/etc/token", "pkcs11:object=my-key;type=private?pin-source=file:/etc/token"},
	{"pkcs11:token=The%20Software%20PKCS%2311%20Softtoken;manufacturer=Snake%20Oil,%20Inc.;model=1.0;object=my-certificate;type=cert;" +
		"id=%69%95%3E%5C%F4%BD%EC%91;serial=?pin-source=file:/etc/token_pin",
		"pkcs11:token=The%20Software%20PKCS%2311%20Softtoken;manufacturer=Snake%20Oil,%20Inc.;serial=;model=1.0;object=my-certificate;type=cert;" +
			"id=%69%95%3E%5C%F4%BD%EC%91?pin-source=file:/etc/token_pin"},
	{"pkcs11:slot-description=Sun%20Metaslot", "pkcs11:slot-description=Sun%20Metaslot"},
	{"pkcs11:library-manufacturer=Snake%20Oil,%20Inc.;library-description=Soft%20Token%20Library;library-version=1.23",
		"pkcs11:library-manufacturer=Snake%20Oil,%20Inc.;library-version=1.23;library-description=Soft%20Token%20Library"},
	{"pkcs11:library-version=3", "pkcs11:library-version=3.0"},
	{"pkcs11:token=Software%20PKCS%2311%20softtoken;manufacturer=Snake%20Oil,%20Inc.?pin-value=the-pin",
		"pkcs11:token=Software%20PKCS%2311%20softtoken;manufacturer=Snake%20Oil,%20Inc."},
	{"pkcs11:token=%c5%a1kola", "pkcs11:token=%C5%A1kola"},
	{"PKCS11:slot-id=327;slot-manufacturer=x", "pkcs11:slot-manufacturer=x;slot-id=327"},
	{"pkcs11:id=ab%00?module-path=/usr/lib/x.so&pin-source=credential:pin", "pkcs11:id=%61%62%00?pin-source=credential:pin&module-path=/usr/lib/x.so"},
	{"pkcs11:object=a/b:[c]@!$'()*+,=&d", "pkcs11:object=a/b:[c]@!$'()*+,=&d"},
}

func TestURIsAreRead(t *testing.T) {
	for _, tc := range goodURIs {
		u, err := ParseURI(tc.uri)
		if assert.NoError(t, err, tc.uri) {
			assert.Equal(t, tc.normal, u.String())
		}
	}
	u, err := ParseURI("pkcs11:token=A%20%3b;object=;slot-id=0;id=%00%ff?module-path=/lib/a%26b.so&pin-value=%31%26")
	require.NoError(t, err)
	assert.Equal(t, "A ;", *u.Token)
	assert.Equal(t, "", *u.Object)
	assert.Equal(t, uint(0), *u.SlotID)
	assert.Equal(t, []byte{0, 0xff}, u.ID)
	assert.Nil(t, u.Serial)
	assert.Equal(t, "/lib/a&b.so", u.ModulePath)
	assert.True(t, u.HasPINValue())
	assert.Equal(t, "1&", *u.pinValue)
}

func TestWrongURIsAreRefused(t *testing.T) {
	for uri, want := range map[string]string{
		"":                                            `does not begin with "pkcs11:"`,
		"https://x":                                   `does not begin with "pkcs11:"`,
		"pkcs11:token":                                "token has no value",
		"pkcs11:token=a;token=b":                      "token twice",
		"pkcs11:token=a;":                             "empty attribute",
		"pkcs11:;token=a":                             "empty attribute",
		"pkcs11:=a":                                   "without a proper name",
		"pkcs11:to%6ben=a":                            "without a proper name",
		"pkcs11:token=a%2":                            "two hexadecimal digits",
		"pkcs11:token=a%zz":                           "two hexadecimal digits",
		"pkcs11:token=a%+1":                           "two hexadecimal digits",
		"pkcs11:token=a b":                            `the character ' ' must be percent-encoded: %20`,
		"pkcs11:token=a#b":                            "%23",
		"pkcs11:token=\xff":                           "%FF",
		"pkcs11:token=%ff":                            "not UTF-8",
		"pkcs11:token=%00":                            "not UTF-8",
		"pkcs11:x-vendor=1":                           "x-vendor is not known",
		"pkcs11:vendor=1":                             "vendor is not known",
		"pkcs11:slot-id=":                             "not a decimal number",
		"pkcs11:slot-id=-1":                           "not a decimal number",
		"pkcs11:slot-id=0x1":                          "not a decimal number",
		"pkcs11:slot-id=99999999999999999999":         "not a decimal number",
		"pkcs11:library-version=1.2.3":                "library-version",
		"pkcs11:library-version=256":                  "library-version",
		"pkcs11:type=key":                             "type is none of",
		"pkcs11:id=":                                  "id is empty",
		"pkcs11:module-path=/a":                       `belongs after the "?"`,
		"pkcs11:pin-value=1":                          `belongs after the "?"`,
		"pkcs11:?module-path=a.so":                    "absolute path",
		"pkcs11:?module-name=softhsm":                 "module-name is not supported",
		"pkcs11:?pin-source=":                         "pin-source is empty",
		"pkcs11:?pin-source=a&pin-value=b":            "both",
		"pkcs11:?pin-value=a&pin-value=b":             "twice",
		"pkcs11:?token=a":                             "token is not known",
		"pkcs11:?x-vendor=a":                          "x-vendor is not known",
		"pkcs11:?" + strings.Repeat("a", 64) + "=1":   "is not known",
		"pkcs11:?":                                    "",
		"pkcs11:token=" + strings.Repeat("a", maxURI): "bytes",
	} {
		_, err := ParseURI(uri)
		if want == "" {
			assert.NoError(t, err, uri)
			continue
		}
		assert.ErrorContains(t, err, want, uri)
	}
}

func FuzzURI(f *testing.F) {
	for _, tc := range goodURIs {
		f.Add(tc.uri)
	}
	f.Add("pkcs11:token=%C5%A1;id=%00;slot-id=3?module-path=/a&pin-source=|x?y")
	f.Fuzz(func(t *testing.T, s string) {
		u, err := ParseURI(s)
		if err != nil {
			return
		}
		normal := u.String()
		again, err := ParseURI(normal)
		require.NoError(t, err, normal)
		again.pinValue = u.pinValue
		assert.Equal(t, u, again)
		assert.Equal(t, normal, again.String())
	})
}

func TestWhereThePINComesFrom(t *testing.T) {
	dir := t.TempDir()
	file := func(name, content string, mode os.FileMode) string {
		path := filepath.Join(dir, name)
		require.NoError(t, os.WriteFile(path, []byte(content), 0o600))
		require.NoError(t, os.Chmod(path, mode))
		return path
	}
	file("pin", "12 34\n", 0o600)
	file("crlf", "1234\r\n", 0o400)
	file("bare", "1234", 0o600)
	file("open", "1234\n", 0o640)
	file("world", "1234\n", 0o604)
	file("empty", "\n", 0o600)
	file("lines", "1234\n5678\n", 0o600)
	file("long", strings.Repeat("1", 256), 0o600)
	file("longest", strings.Repeat("1", 255), 0o600)
	file("credential", "1234\n", 0o440)
	env := map[string]string{"PIN": "from-env", "CREDENTIALS_DIRECTORY": dir}
	cfg := &Config{Dir: dir, Getenv: func(name string) string { return env[name] }}
	for _, tc := range []struct{ query, want, err string }{
		{"", "", ""},
		{"?pin-value=%31234", "1234", ""},
		{"?pin-source=file:pin", "12 34", ""},
		{"?pin-source=file:" + dir + "/crlf", "1234", ""},
		{"?pin-source=file://" + dir + "/bare", "1234", ""},
		{"?pin-source=" + dir + "/bare", "1234", ""},
		{"?pin-source=file:longest", strings.Repeat("1", 255), ""},
		{"?pin-source=env:PIN", "from-env", ""},
		{"?pin-source=credential:credential", "1234", ""},
		{"?pin-source=file:open", "", "group or others have rights to it (mode 0640): chmod 600"},
		{"?pin-source=file:world", "", "mode 0604"},
		{"?pin-source=credential:world", "", "mode 0604"},
		{"?pin-source=file:empty", "", "the PIN is empty"},
		{"?pin-source=file:lines", "", "more than one line"},
		{"?pin-source=file:long", "", "at most 255 bytes"},
		{"?pin-source=file:none", "", "no such file"},
		{"?pin-source=file:.", "", "not a regular file"},
		{"?pin-source=env:NONE", "", "the environment variable NONE is not set"},
		{"?pin-source=env:", "", "is not set"},
		{"?pin-source=credential:../pin", "", "has no slash"},
		{"?pin-source=credential:none", "", "no such file"},
		{"?pin-source=|/bin/cat", "", "is none of"},
		{"?pin-source=relative", "", "is none of"},
		{"?pin-value=", "", ""},
	} {
		u, err := ParseURI("pkcs11:" + tc.query)
		require.NoError(t, err, tc.query)
		pin, ok, err := cfg.pin(u)
		if tc.err != "" {
			assert.ErrorContains(t, err, tc.err, tc.query)
			continue
		}
		assert.NoError(t, err, tc.query)
		assert.Equal(t, tc.want, pin, tc.query)
		assert.Equal(t, tc.query != "", ok, tc.query)
	}
	cfg = new(Config)
	for _, source := range []string{"env:PIN", "credential:x"} {
		_, err := cfg.pinFrom(source)
		assert.Error(t, err, source)
	}
}

func ExampleURI_String() {
	u, err := ParseURI("pkcs11:object=www.example.com;token=site-keys?pin-value=1234&module-path=/usr/lib/softhsm/libsofthsm2.so")
	if err != nil {
		panic(err)
	}
	fmt.Println(u)
	// Output: pkcs11:token=site-keys;object=www.example.com?module-path=/usr/lib/softhsm/libsofthsm2.so
}
