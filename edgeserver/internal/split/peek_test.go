package split

import (
	"bytes"
	"crypto/tls"
	"io"
	"testing"
	"testing/iotest"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func TestPeek(t *testing.T) {
	message := frame(TypeClientHello, goodHello(gcm(), tls.X25519).body())
	record := append([]byte{22, 3, 1, 0, byte(len(message))}, message...)
	two := append([]byte{22, 3, 1, 0, 3}, message[:3]...)
	two = append(append(two, 22, 3, 1, 0, byte(len(message)-3)), message[3:]...)
	for what, data := range map[string][]byte{
		"one record": record, "two records": two, "with more behind": append(bytes.Clone(record), 1, 2, 3),
	} {
		hello, read, err := Peek(&onePeer{Reader: iotest.OneByteReader(bytes.NewReader(data))})
		require.NoError(t, err, what)
		assert.Equal(t, serverName, hello.ServerName)
		assert.True(t, bytes.HasPrefix(data, read), what)

		hello, read, err = Peek(&onePeer{Reader: bytes.NewReader(data)})
		require.NoError(t, err, what)
		assert.Equal(t, serverName, hello.ServerName)
		assert.Equal(t, data, read, what)
	}
	for what, data := range map[string]string{
		"HTTP": "GET / HTTP/1.1\r\n\r\n", "SSL 2.0": "\x80\x2e\x01\x03\x01\x00\x15", "alert": "\x15\x03\x01\x00\x02\x02\x28",
		"another message": "\x16\x03\x01\x00\x04\x02\x00\x00\x00", "malformed": "\x16\x03\x01\x00\x05\x01\x00\x00\x01\x00",
	} {
		hello, read, err := Peek(&onePeer{Reader: bytes.NewReader([]byte(data))})
		require.NoError(t, err, what)
		assert.Nil(t, hello, what)
		assert.Equal(t, data, string(read), what)
	}
	_, read, err := Peek(&onePeer{Reader: bytes.NewReader(record[:20])})
	assert.ErrorIs(t, err, io.EOF)
	assert.Equal(t, record[:20], read)
}
