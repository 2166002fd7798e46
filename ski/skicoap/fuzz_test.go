package skicoap

import (
	"testing"

	"github.com/plgd-dev/go-coap/v3/message"
	"github.com/plgd-dev/go-coap/v3/message/codes"
	"github.com/plgd-dev/go-coap/v3/udp/coder"
	"github.com/stretchr/testify/require"
)

// FuzzMessage puts any datagram through what the server decides of a request
// and the client of an answer, before SKI sees it.
func FuzzMessage(f *testing.F) {
	for _, m := range []message.Message{
		{Type: message.Confirmable, Code: codes.POST, Token: []byte{1}, Options: skiOptions, Payload: []byte("\xa0")},
		{Type: message.Confirmable, Code: codes.GET, Options: message.Options{
			{ID: message.URIPath, Value: []byte(".well-known")}, {ID: message.URIPath, Value: []byte("core")}}},
		{Type: message.Confirmable, Code: codes.PUT, Token: []byte{1, 2}, Options: with(
			message.Option{ID: message.Accept, Value: []byte{50}}, message.Option{ID: message.Block1, Value: []byte{6}}), Payload: []byte("{}")},
		{Type: message.Acknowledgement, Code: codes.Changed, Options: contentFormat(60), Payload: []byte("\xa1\x66output\x41\x01")},
		{Type: message.Acknowledgement, Code: codes.TooManyRequests, Options: append(contentFormat(50),
			message.Option{ID: message.MaxAge, Value: []byte{9}}), Payload: []byte(`{"error":"request denied"}`)},
		{Type: message.Acknowledgement, Code: codes.Empty, MessageID: 1},
	} {
		datagram, err := encode(m)
		require.NoError(f, err)
		f.Add(datagram)
	}
	links := newResource("/ski", true)
	f.Fuzz(func(t *testing.T, datagram []byte) {
		m := message.Message{Options: make(message.Options, 0, 16)}
		if _, err := coder.DefaultCoder.Decode(datagram, &m); err != nil {
			return
		}
		if _, _, refused := links.check(&m); refused == nil {
			require.Contains(t, []codes.Code{codes.POST, codes.PUT}, m.Code)
			path, err := m.Options.Path()
			require.NoError(t, err)
			require.Equal(t, "/ski", path)
		}
		a, err := newAnswer(&m)
		if err != nil {
			return
		}
		resp, err := a.response()
		if err != nil {
			require.Nil(t, resp)
			return
		}
		require.NoError(t, resp.Validate())
	})
}
