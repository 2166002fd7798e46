package ski

import (
	"bytes"
	"encoding/hex"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func TestPreSharedKeysAreReadLineByLine(t *testing.T) {
	key := strings.Repeat("0a", 16)
	all, err := ParsePSKs("edges.psk", []byte("# ours\n\nedge-1:"+key+"\r\nurn:dev:ops:2: "+strings.ToUpper(key)+"0b"))
	require.NoError(t, err)
	assert.Equal(t, []PSK{
		{Identity: "edge-1", Key: bytes.Repeat([]byte{10}, 16)},
		{Identity: "urn:dev:ops:2", Key: append(bytes.Repeat([]byte{10}, 16), 11)},
	}, all)

	for text, want := range map[string]string{
		"":                                     "edges.psk: it has no line",
		"# only this":                          "edges.psk: it has no line",
		"\nedge-1":                             "edges.psk:2: it is not IDENTITY:KEY",
		":" + key:                              "edges.psk:1: a PSK identity has 1 to 128",
		strings.Repeat("x", 129) + ":" + key:   "edges.psk:1: a PSK identity has 1 to 128",
		"a b:" + key:                           "no spaces",
		"\u00e9:" + key:                        "printable ASCII",
		"edge-1:xy":                            "edges.psk:1: the key is not",
		"edge-1:" + key[1:]:                    "edges.psk:1: the key is not",
		"edge-1:" + key[2:]:                    "the key has 15 bytes and not 16 to 64",
		"edge-1:" + strings.Repeat("00", 65):   "the key has 65 bytes",
		"edge-1:" + key + "\n\nedge-1:" + key:  "edges.psk:3: line 1 has the identity \"edge-1\" too",
		"edge-1:" + key + "\nedge-2:" + "zz00": "edges.psk:2:",
	} {
		_, err := ParsePSKs("edges.psk", []byte(text))
		require.ErrorContains(t, err, want, text)
		assert.NotContains(t, err.Error(), key[1:], "no key in an error")
	}
}

func TestAPeersNameIsReadAsItIsWritten(t *testing.T) {
	for _, id := range []PeerID{{SPKI: KeyID{1}}, {PSK: "edge-1"}, {PSK: "psk:edge"}} {
		got, err := ParsePeerID(id.String())
		require.NoError(t, err)
		assert.Equal(t, id, got)
	}
	assert.Empty(t, PeerID{}.String())
	for _, text := range []string{"", "edge-1", "psk:", "psk:a b", KeyID{}.String()} {
		_, err := ParsePeerID(text)
		require.Error(t, err, text)
	}
}

func FuzzParsePSKs(f *testing.F) {
	f.Add([]byte("edge-1:" + strings.Repeat("0a", 16)))
	f.Add([]byte("# \n\na:b:" + strings.Repeat("0a", 64) + "\r\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		all, err := ParsePSKs("f", data)
		if err != nil {
			return
		}
		var text []byte
		for _, one := range all {
			require.NoError(t, CheckPSKIdentity(one.Identity))
			require.True(t, len(one.Key) >= MinPSKLen && len(one.Key) <= MaxPSKLen)
			text = append(text, one.Identity+":"+hex.EncodeToString(one.Key)+"\n"...)
		}
		again, err := ParsePSKs("f", text)
		if strings.HasPrefix(string(text), "#") || strings.Contains(string(text), "\n#") {
			return
		}
		require.NoError(t, err)
		require.Equal(t, all, again)
	})
}
