package edgeserver

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"

	"github.com/pires/go-proxyproto"
)

// ProxyProtocol says which peers are load balancers that begin a connection with
// the addresses of the client they have it from, in the header of the PROXY
// protocol, version 2.
type ProxyProtocol struct {
	// From are their addresses and networks (192.0.2.0/24). A connection from
	// there has to begin with such a header, and none from elsewhere may. None:
	// nobody is believed.
	From []string `yaml:"from"`
}

// balancers returns ProxyProtocol.From in the form that is used.
func (c *Config) balancers() (networks, error) {
	return c.parseNetworks("proxy_protocol.from", c.ProxyProtocol.From)
}

const (
	proxyHeaderLen = 16 // of the part before the addresses
	// maxProxyHeader bounds what comes after that: 36 bytes of addresses, and
	// fields of type, length and value, among which a client certificate can be.
	maxProxyHeader = 4096
)

// proxyHeaderError is the error of a connection from a load balancer that does
// not begin as it should.
type proxyHeaderError struct{ error }

func (e proxyHeaderError) Unwrap() error { return e.error }

// receiveFrom reads the header if c is from one of the balancers. From then on
// c's addresses are those of the client's connection to the balancer; they stay
// as they are for a connection of the balancer's own, a health check.
func (c *conn) receiveFrom(ctx context.Context, balancers networks) error {
	if !balancers.has(addrPort(c.Conn.RemoteAddr()).Addr()) {
		return nil
	}
	stop := context.AfterFunc(ctx, func() { c.Conn.Close() })
	defer stop()
	remote, local, err := readProxyHeader(c.Conn)
	if err == nil && remote != nil {
		c.remote, c.local = remote, local
	}
	return err
}

// readProxyHeader reads a header and nothing that follows it. The addresses are
// nil if the sender speaks for itself (command LOCAL).
func readProxyHeader(r io.Reader) (remote, local net.Addr, err error) {
	header := make([]byte, proxyHeaderLen)
	n, err := io.ReadFull(r, header)
	switch got := header[:n]; {
	case n == 0 && err != nil: // a health check that only connects
		return nil, nil, err
	case bytes.HasPrefix(got, proxyproto.SIGV1):
		return nil, nil, proxyHeaderError{errors.New("the PROXY header is one of version 1: version 2 is needed")}
	case !bytes.HasPrefix(proxyproto.SIGV2, got[:min(n, len(proxyproto.SIGV2))]):
		return nil, nil, proxyHeaderError{errors.New("there is no PROXY header")}
	case err != nil:
		return nil, nil, fmt.Errorf("the PROXY header is cut short: %w", err)
	}
	length := int(binary.BigEndian.Uint16(header[proxyHeaderLen-2:]))
	if length > maxProxyHeader {
		return nil, nil, proxyHeaderError{fmt.Errorf("the PROXY header has %d bytes, which is more than %d", length, maxProxyHeader)}
	}
	header = append(header, make([]byte, length)...)
	if _, err := io.ReadFull(r, header[proxyHeaderLen:]); err != nil {
		return nil, nil, fmt.Errorf("the PROXY header is cut short: %w", err)
	}
	h, err := proxyproto.Read(bufio.NewReader(bytes.NewReader(header)))
	if err != nil {
		return nil, nil, proxyHeaderError{fmt.Errorf("malformed PROXY header: %w", err)}
	}
	if h.Command.IsLocal() {
		return nil, nil, nil
	}
	from, to, ok := h.TCPAddrs()
	if !ok {
		return nil, nil, proxyHeaderError{errors.New("the PROXY header is not about a TCP connection")}
	}
	return from, to, nil
}

// hasProxyHeader reports whether a handshake has failed since there was a PROXY
// header where a ClientHello belongs.
func hasProxyHeader(err error) bool {
	record := tls.RecordHeaderError{}
	if !errors.As(err, &record) {
		return false
	}
	begin := string(record.RecordHeader[:])
	return begin == string(proxyproto.SIGV1) || strings.HasPrefix(string(proxyproto.SIGV2), begin)
}

// sendProxyHeader tells an origin the addresses of the client's connection.
func sendProxyHeader(w io.Writer, remote, local net.Addr) error {
	_, err := proxyproto.HeaderProxyFromAddrs(2, remote, local).WriteTo(w)
	return err
}
