package edgeserver

import (
	"fmt"
	"net/http"
	"net/netip"
	"strings"

	"golang.org/x/net/http/httpguts"
)

// malformed names what is wrong with a request that net/http lets pass: what its
// origin could take for another request than the edge server does. It returns
// nothing where the request is a good one. A request need not have a Host.
func malformed(r *http.Request) string {
	_, known := hostName(r.Host)
	switch {
	case !httpguts.ValidHeaderFieldName(r.Method): // both are tokens; in HTTP/2 nobody has looked
		return "method"
	case r.URL.Opaque != "", // x:http://other.test/, of which the origin would get what is after x:
		isAsterisk(r) && r.Method != http.MethodOptions: // RFC 9112, Section 3.2.4
		return "target"
	case r.Host != "" && !known:
		return "Host"
	case strings.ContainsFunc(r.Header.Get("Upgrade"), func(c rune) bool { return c < ' ' || c > '~' }):
		return "Upgrade"
	}
	return ""
}

// isAsterisk reports whether the request is about the server as a whole.
func isAsterisk(r *http.Request) bool { return r.URL.Path == "*" }

// hostName returns the name or the IP address in the value of a Host field or
// an :authority, which may have a port (RFC 3986, Section 3.2). ok is false for
// everything else: some origins end a name at a character that is part of it for others, and
// find another site than was looked for here.
func hostName(host string) (name string, ok bool) {
	name = host
	if i := strings.LastIndexByte(host, ':'); i >= 0 && !strings.HasSuffix(host, "]") {
		if strings.Trim(host[i:], ":0123456789") != "" {
			return "", false
		}
		name = host[:i]
	}
	if literal, ok := strings.CutPrefix(name, "["); ok {
		literal, ok = strings.CutSuffix(literal, "]")
		address, err := netip.ParseAddr(literal)
		return literal, ok && err == nil && address.Is6() && address.Zone() == ""
	}
	return name, isName(canonicalName(name))
}

// climbs reports whether a path has a segment "..", with which an origin that
// resolves it (RFC 3986, Section 5.2.4) leaves the folder that it is appended to. Some
// separate with a backslash too, and leave out what is after a semicolon.
func climbs(path string) bool {
	for segment := range strings.FieldsFuncSeq(path, func(c rune) bool { return c == '/' || c == '\\' }) {
		if before, _, _ := strings.Cut(segment, ";"); before == ".." {
			return true
		}
	}
	return false
}

// provesConnection reports whether an origin can take what a client proves with a request
// for true of all that come on the same connection (RFC 4559, Section 6).
func provesConnection(h http.Header) bool {
	for _, value := range h["Authorization"] {
		scheme, _, _ := strings.Cut(value, " ")
		if strings.EqualFold(scheme, "NTLM") || strings.EqualFold(scheme, "Negotiate") {
			return true
		}
	}
	return false
}

// escapedQuery returns a query as it can stand in a request line: url.URL leaves
// it as the client has sent it, and HTTP/2 has it with spaces, at which a request
// line of HTTP/1.1 is split.
func escapedQuery(query string) string {
	var b strings.Builder
	for i := range len(query) {
		if c := query[i]; c <= ' ' || c > '~' || c == '#' {
			fmt.Fprintf(&b, "%%%02X", c)
		} else {
			b.WriteByte(c)
		}
	}
	return b.String()
}
