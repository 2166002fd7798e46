package edgeserver

import (
	"log/slog"
	"net"
	"net/http"
	"strconv"
	"time"
)

// http1Conn is a connection for HTTP/1.1. What net/http cannot read as a request it
// answers itself, and tells nobody: what it writes while there is no request is
// such an answer.
type http1Conn struct {
	secureConn
	below  *conn
	server *Server
}

// Write writes.
func (c *http1Conn) Write(b []byte) (int, error) {
	if !c.below.answering.Load() {
		if status := statusOf(b); status != 0 {
			c.server.refused(c.below, status)
		}
	}
	return c.secureConn.Write(b)
}

// statusOf returns the status of an answer (RFC 9112, Section 4) that begins with
// b, or 0.
func statusOf(b []byte) int {
	const version, line = len("HTTP/1.1 "), len("HTTP/1.1 400")
	if len(b) < line {
		return 0
	}
	status, err := strconv.Atoi(string(b[version:line]))
	if err != nil || string(b[:len("HTTP/1.")]) != "HTTP/1." {
		return 0
	}
	return status
}

// follow is for http.Server.ConnState: a connection that is idle has no request.
func follow(c net.Conn, state http.ConnState) {
	if c, ok := c.(*http1Conn); ok && state == http.StateIdle {
		c.below.answering.Store(false)
	}
}

// refused writes down that c has sent what is no request of HTTP/1.1.
func (s *Server) refused(c *conn, status int) {
	s.log.Debug("refused: not a request of HTTP", "site", siteLabel(c.site), "remote", c.RemoteAddr(), "status", status)
	s.metrics.refused(c.site, status)
	c.site.access.refused(c, status)
}

// refusedHTTP2 returns a function for http.HTTP2Config.CountError.
func (s *Server) refusedHTTP2(site *site) func(string) {
	return func(what string) {
		s.log.Debug("an error in HTTP/2", slog.String("site", site.label), slog.String("error", what))
	}
}

// refused writes a line about what was no request.
func (l *accessLog) refused(c *conn, status int) {
	if l == nil {
		return
	}
	record := newAccessRecord(c, time.Now(), 0)
	record.Protocol, record.Status = "HTTP/1.1", status // those of the answer
	l.write(&record)
}
