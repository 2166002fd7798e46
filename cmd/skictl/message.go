package main

import (
	"crypto/tls"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"

	"github.com/fxamacker/cbor/v2"
	"github.com/spf13/cobra"

	"github.com/tlsski/tlsski/ski"
)

// An attributeFlag is a flag for an attribute of the request. What it says goes
// into a map and not into a ski.Request, which could not hold anything wrong.
type attributeFlag struct {
	flag, key, usage string
	parse            func(cmd *cobra.Command, s string) (any, error)
}

var attributeFlags = []attributeFlag{
	{"protocol", "protocol", "the `PROTOCOL` between client and edge: 'TLS 1.2', 'TLS 1.3', ...", parseText},
	{"method", "method", "the key exchange `METHOD`: ECDHE (what it is when not sent), RSA, DHE, ECDHE-PMS", parseText},
	{"hash", "hash", "the `HASH` of the signature: SHA-224, SHA-256, SHA-384 or SHA-512", parseText},
	{"scheme", "scheme", "the signature `SCHEME`, in place of the hash: a number such as 0x0403, or ECDSAWithP256AndSHA256", parseScheme},
	{"client-version", "client_version", "the `VERSION` in the ClientHello: a number such as 0x0303", parseNumber},
	{"sni", "server_name", "the server `NAME` that the client asked for", parseText},
	{"group", "group", "the `GROUP` of ECDHE-PMS: a number such as 29, or secp256r1, secp384r1, secp521r1, x25519", parseGroup},
	{"state", "state", "the state that the first exchange of ECDHE-PMS answered, `HEX` or @FILE", parseInput},
	{"spki", "spki", "the key's fingerprint, `HEX` or @FILE, a PEM file whose first certificate or key it is of", parseSPKI},
	{"input", "input", "the input of the operation, `HEX`, @FILE or - for standard input", parseInput},
}

const rawFlag = "raw"

func addMessageFlags(cmd *cobra.Command) {
	cmd.Flags().String(rawFlag, "", "send this in place of all attributes, `HEX`, @FILE or - for standard input")
	for _, a := range attributeFlags {
		cmd.Flags().String(a.flag, "", a.usage)
		cmd.MarkFlagsMutuallyExclusive(rawFlag, a.flag)
	}
}

// encodeMessage returns the message that the flags ask for.
func encodeMessage(cmd *cobra.Command, format ski.Format) ([]byte, error) {
	if raw := cmd.Flag(rawFlag); raw.Changed {
		message, err := readBytes(cmd, raw.Value.String())
		if err != nil {
			return nil, fmt.Errorf("--%s: %w", rawFlag, err)
		}
		return message, nil
	}
	message := map[string]any{}
	for _, a := range attributeFlags {
		flag := cmd.Flag(a.flag)
		if !flag.Changed {
			continue
		}
		v, err := a.parse(cmd, flag.Value.String())
		if err != nil {
			return nil, fmt.Errorf("--%s: %w", a.flag, err)
		}
		message[a.key] = v
	}
	if format == ski.JSON {
		return json.Marshal(message)
	}
	mode, err := cbor.CoreDetEncOptions().EncMode()
	if err != nil {
		return nil, err
	}
	return mode.Marshal(message)
}

func parseText(_ *cobra.Command, s string) (any, error) { return s, nil }

func parseNumber(_ *cobra.Command, s string) (any, error) {
	n, err := strconv.ParseInt(s, 0, 64)
	if err != nil {
		return nil, fmt.Errorf("%q is not a number", s)
	}
	return n, nil
}

func parseScheme(cmd *cobra.Command, s string) (any, error) {
	n, err := parseNumber(cmd, s)
	if err == nil {
		return n, nil
	}
	for scheme := range 1 << 16 {
		if tls.SignatureScheme(scheme).String() == s {
			return int64(scheme), nil
		}
	}
	return nil, fmt.Errorf("%q is neither a number nor a scheme's name", s)
}

// groups are the names of RFC 8422, Section 5.1.1.
var groups = map[string]tls.CurveID{
	"secp256r1": tls.CurveP256, "secp384r1": tls.CurveP384, "secp521r1": tls.CurveP521, "x25519": tls.X25519,
}

func parseGroup(cmd *cobra.Command, s string) (any, error) {
	if g, ok := groups[s]; ok {
		return int64(g), nil
	}
	n, err := parseNumber(cmd, s)
	if err != nil {
		return nil, fmt.Errorf("%q is neither a number nor a group's name", s)
	}
	return n, nil
}

func parseSPKI(_ *cobra.Command, s string) (any, error) {
	if file, ok := strings.CutPrefix(s, "@"); ok {
		all, err := fingerprints(file)
		if err != nil {
			return nil, err
		}
		return all[0].id[:], nil
	}
	return readHex(s)
}

func parseInput(cmd *cobra.Command, s string) (any, error) { return readBytes(cmd, s) }

// readBytes reads HEX, @FILE or - for standard input; files have the bytes as
// they are.
func readBytes(cmd *cobra.Command, s string) ([]byte, error) {
	if s == "-" {
		return io.ReadAll(cmd.InOrStdin())
	}
	if file, ok := strings.CutPrefix(s, "@"); ok {
		return os.ReadFile(file)
	}
	return readHex(s)
}

// readHex reads hexadecimal digits, which colons and white space may divide.
func readHex(s string) ([]byte, error) {
	digits := strings.NewReplacer(":", "", " ", "", "\t", "", "\n", "").Replace(s)
	b, err := hex.DecodeString(digits)
	if err != nil {
		return nil, errors.New("an even number of hexadecimal digits, or @FILE, is expected")
	}
	return b, nil
}
