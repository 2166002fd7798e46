package skicoap

import (
	"bytes"
	"strings"
	"testing"

	"github.com/plgd-dev/go-coap/v3/message"
	"github.com/plgd-dev/go-coap/v3/message/codes"
	"github.com/stretchr/testify/require"
)

// frames are messages in each form that the length can have.
func frames(t testing.TB) (all []message.Message) {
	for _, n := range []int{0, 1, 11, 12, 13, 267, 268, 269, 4096, maxFrame - 8} {
		all = append(all, message.Message{Code: codes.POST, Token: []byte{1, 2}, Payload: bytes.Repeat([]byte{'x'}, n)})
	}
	return append(all, message.Message{Code: codes.Pong, Token: []byte{}}, message.Message{Code: codes.CSM},
		message.Message{Code: codes.CSM, Options: message.Options{{ID: message.TCPMaxMessageSize, Value: uintValue(maxFrame)}}},
		message.Message{Code: codes.POST, Token: bytes.Repeat([]byte{7}, 8), Options: with(), Payload: []byte("body")})
}

func TestMessagesOfAStreamAreReadAsTheyWereWritten(t *testing.T) {
	var stream bytes.Buffer
	all := frames(t)
	for _, m := range all {
		frame, err := encodeFrame(m)
		require.NoError(t, err)
		stream.Write(frame)
	}
	r := newFrameReader(&stream)
	for _, want := range all {
		got, err := r.read(func() {})
		require.NoError(t, err)
		require.Equal(t, want.Code, got.Code)
		require.Equal(t, string(want.Token), string(got.Token))
		require.Equal(t, string(want.Payload), string(got.Payload))
		require.Len(t, got.Options, len(want.Options))
	}
}

func TestABrokenMessageIsSaidToBe(t *testing.T) {
	for data, want := range map[string]string{
		"\x09\x02":                    "malformed header", // a token of 9 bytes
		"\xf0\xff\xff\xff\xff\x02":    "a message of 4295033107 bytes",
		"\xf0\x00\x00\x00\x00\x02":    "a message of 65811 bytes",
		"\xe0\xff\xff\x02":            "a message of 65808 bytes",
		"\x10\x02\xf0":                "malformed options",
		"\x30\x02\x10\x10":            "unexpected EOF",
		"\x10\x02":                    "unexpected EOF",
		"":                            "EOF",
		"\xf0\x00\x00":                "unexpected EOF",
		strings.Repeat("\x00\x00", 3): "EOF",
		"\xd0\x1c\x02" + strings.Repeat("\x10", 41): "malformed options", // more than maxOptions
	} {
		r := newFrameReader(strings.NewReader(data))
		var err error
		for err == nil {
			_, err = r.read(func() {})
		}
		if strings.Contains(want, "4295033107") {
			want = "malformed header" // it does not fit into 32 bits
		}
		require.Contains(t, err.Error(), want, "%q", data)
	}
}

func FuzzFrames(f *testing.F) {
	for _, m := range frames(f) {
		frame, err := encodeFrame(m)
		require.NoError(f, err)
		f.Add(frame)
	}
	f.Add([]byte("\xf0\xff\xff\xff\xff\x02"))
	f.Fuzz(func(t *testing.T, data []byte) {
		r := newFrameReader(bytes.NewReader(data))
		for {
			m, err := r.read(func() {})
			if err != nil {
				return
			}
			require.LessOrEqual(t, len(m.Options), maxOptions)
			frame, err := encodeFrame(m)
			require.NoError(t, err)
			again, err := newFrameReader(bytes.NewReader(frame)).read(func() {})
			require.NoError(t, err)
			require.Equal(t, m.Code, again.Code)
			require.Equal(t, string(m.Payload), string(again.Payload))
		}
	})
}
