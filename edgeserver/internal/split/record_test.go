package split

import (
	"bytes"
	"crypto/tls"
	"io"
	"net"
	"testing"
	"testing/iotest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/tlsski/tlsski/ski/tlsprf"
)

// discard is a net.Conn that takes everything and gives again and again what it
// has.
type discard struct {
	net.Conn
	records *bytes.Reader
}

func (discard) Write(b []byte) (int, error)      { return len(b), nil }
func (d discard) Read(b []byte) (int, error)     { return d.records.Read(b) }
func (discard) SetWriteDeadline(time.Time) error { return nil }

// TestARecordNeedsNoAllocation is for the suites whose library needs none; that
// of CCM does.
func TestARecordNeedsNoAllocation(t *testing.T) {
	for _, s := range suites {
		if s.id == tlsprf.TLS_ECDHE_ECDSA_WITH_AES_128_CCM || s.id == tlsprf.TLS_ECDHE_ECDSA_WITH_AES_128_CCM_8 {
			continue
		}
		schedule := must(tlsprf.New(tls.VersionTLS12, s.id))
		keys := must(schedule.Keys(make([]byte, 48), make([]byte, 32), make([]byte, 32)))
		protection := func() *Protection { return must(newProtection(s, keys.ServerKey, keys.ServerIV)) }

		const runs = 50
		in := new(bytes.Buffer)
		client := recordWriter{conn: discard{}, limit: maxPlaintext, protection: protection()}
		for range runs + 2 {
			require.NoError(t, client.add(recordApplicationData, make([]byte, maxPlaintext)))
			in.Write(client.buf)
			client.buf = client.buf[:0]
		}
		conn := discard{records: bytes.NewReader(in.Bytes())}
		c := Server(conn, nil)
		c.connected.Store(true)
		c.in.protection, c.out.protection = protection(), protection()
		c.in.first = false
		buf := make([]byte, maxPlaintext)
		read, written := 0, 0
		transfer := func() {
			n, err := c.Read(buf)
			read += n
			if err == nil {
				n, err = c.Write(buf[:n])
				written += n
			}
			if err != nil {
				panic(err)
			}
		}
		transfer() // makes the buffers
		assert.Zero(t, testing.AllocsPerRun(runs, transfer), s.name)
		assert.Equal(t, (runs+2)*maxPlaintext, read)
		assert.Equal(t, read, written)
	}
}

// TestRecordLimits: each direction ends before its keys are used up.
func TestRecordLimits(t *testing.T) {
	for _, s := range suites {
		if s.maxRecords > 1<<32 {
			continue // out of reach
		}
		schedule := must(tlsprf.New(tls.VersionTLS12, s.id))
		keys := must(schedule.Keys(make([]byte, 48), make([]byte, 32), make([]byte, 32)))
		protection := func() *Protection { return must(newProtection(s, keys.ServerKey, keys.ServerIV)) }

		peer := &onePeer{Reader: new(bytes.Buffer)}
		c := Server(peer, nil)
		c.connected.Store(true)
		c.out.protection, c.out.seq = protection(), s.maxRecords-2
		_, err := c.Write([]byte("one more"))
		require.NoError(t, err)
		_, err = c.Write([]byte("too many"))
		assert.ErrorIs(t, err, errRecordLimit)
		sent := peer.out.Len()
		require.NoError(t, c.Close())
		assert.Greater(t, peer.out.Len(), sent, "close_notify has its place")

		var in bytes.Buffer
		for i := range uint64(2) {
			sealed := protection().Seal(nil, s.maxRecords-1+i, recordApplicationData, 0x0303, []byte("a"))
			in.Write([]byte{recordApplicationData, 3, 3, 0, byte(len(sealed))})
			in.Write(sealed)
		}
		peer = &onePeer{Reader: &in}
		c = Server(peer, nil)
		c.connected.Store(true)
		c.in.first = false
		c.in.protection, c.in.seq = protection(), s.maxRecords-1
		buf := make([]byte, 10)
		n, err := c.Read(buf)
		require.NoError(t, err)
		assert.Equal(t, "a", string(buf[:n]))
		_, err = c.Read(buf)
		assert.ErrorIs(t, err, errRecordLimit)
		assert.Equal(t, []byte{recordAlert, 3, 3, 0, 2, alertWarning, byte(CloseNotify)}, peer.out.Bytes())
	}
}

// TestRecordSizes: no record is longer than the client takes them.
func TestRecordSizes(t *testing.T) {
	for _, tt := range []struct {
		id      uint16
		content []byte
		want    int
	}{
		{extMaxFragmentLength, []byte{1}, 512},
		{extMaxFragmentLength, []byte{4}, 4096},
		{extRecordSizeLimit, []byte{0, 64}, 64},
		{extRecordSizeLimit, []byte{0xFF, 0xFF}, maxPlaintext},
	} {
		h := newHostile(t, hostileConfig())
		r := h.rogue()
		r.hello = r.hello.with(tt.id, tt.content)
		require.NoError(t, r.handshake())
		const size = 4096 // what the server reads, and so writes, at once
		message := make([]byte, min(size, tt.want))
		for range size / len(message) {
			r.record(recordApplicationData, message)
		}
		longest, got := 0, 0
		for got < size {
			_, payload, err := r.readRecord()
			require.NoError(t, err)
			longest, got = max(longest, len(payload)), got+len(payload)
		}
		assert.LessOrEqual(t, longest, tt.want)
		if tt.id == extMaxFragmentLength {
			r.record(recordApplicationData, make([]byte, tt.want+1))
			h.endsWith(r, RecordOverflow)
		}
		r.conn.Close()
	}
}

// endsWith is refused for a connection that has been of use before.
func (h *hostile) endsWith(r *rogue, want Alert) {
	h.t.Helper()
	assert.Equal(h.t, &alertError{alertFatal, want}, r.answer())
	r.conn.Close()
	assert.Error(h.t, h.outcome(h.t).err)
}

// Of a thousand idle connections each has a buffer.
func TestTheBufferIsAsLongAsTheRecordsHaveNeeded(t *testing.T) {
	stream := new(bytes.Buffer)
	client := recordWriter{conn: discard{}, limit: maxPlaintext}
	lengths := []int{1, 700, minRecordBuf, 5, 3 * minRecordBuf, maxPlaintext, 2}
	for i, n := range lengths {
		require.NoError(t, client.add(recordApplicationData, bytes.Repeat([]byte{byte(i)}, n)))
	}
	stream.Write(client.buf)
	for name, read := range map[string]func(io.Reader) io.Reader{
		"all at once": func(r io.Reader) io.Reader { return r }, "by the byte": iotest.OneByteReader,
	} {
		r := recordReader{conn: readerConn{Reader: read(bytes.NewReader(stream.Bytes()))}, limit: maxPlaintext}
		for i, n := range lengths {
			_, payload, err := r.next()
			require.NoError(t, err, name)
			assert.Equal(t, bytes.Repeat([]byte{byte(i)}, n), payload, name)
			if i == 1 {
				assert.Len(t, r.buf, minRecordBuf, name)
			}
		}
		assert.Len(t, r.buf, maxRecordLen, name)
		_, _, err := r.next()
		assert.Equal(t, io.EOF, err, name)
	}
}

// readerConn is a net.Conn that can only be read from.
type readerConn struct {
	net.Conn
	io.Reader
}

func (c readerConn) Read(b []byte) (int, error) { return c.Reader.Read(b) }
