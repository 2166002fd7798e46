package split

import "net"

// Peek reads from conn until a ClientHello is there and returns it, with all
// that has been read: the handshake begins with that. Where what comes is not
// a ClientHello, hello is nil. The error is the connection's.
func Peek(conn net.Conn) (hello *ClientHello, read []byte, err error) {
	tap := &tapped{Conn: conn}
	in := recordReader{conn: tap, limit: maxPlaintext, first: true}
	var messages collector
	machine := NewMachine()
	for {
		contentType, payload, err := in.next()
		if tap.err != nil {
			return nil, tap.read, tap.err
		}
		if err != nil || contentType != recordHandshake {
			return nil, tap.read, nil
		}
		messages.add(payload)
		_, whole, err := messages.next(machine.Admit)
		switch {
		case err != nil:
			return nil, tap.read, nil
		case whole == nil:
			continue
		}
		hello, problem := parseClientHello(whole[messageHeaderLen:])
		if problem != nil {
			return nil, tap.read, nil
		}
		return hello, tap.read, nil
	}
}

// tapped keeps what is read.
type tapped struct {
	net.Conn
	read []byte
	err  error
}

func (t *tapped) Read(b []byte) (int, error) {
	n, err := t.Conn.Read(b)
	t.read = append(t.read, b[:n]...)
	t.err = err
	return n, err
}
