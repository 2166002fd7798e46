package edgeserver

import (
	"crypto/x509"
	"encoding/base64"
	"net/http"
	"net/http/httputil"
	"net/netip"
	"strings"

	"golang.org/x/net/http/httpguts"
)

// forwarding is what the origin of a site is told of the client, in header
// fields that only the edge server sets.
type forwarding struct {
	trusted networks // proxies whose own fields of that kind are believed
	certs   bool     // Client-Cert
	chain   bool     // Client-Cert-Chain
}

// trustedProxies returns TrustedProxies in the form that is used.
func (c *Config) trustedProxies() (networks, error) {
	return c.parseNetworks("trusted_proxies", c.TrustedProxies)
}

// trusts reports whether a request comes from a trusted proxy.
func (f *forwarding) trusts(r *http.Request) bool {
	peer, err := netip.ParseAddrPort(r.RemoteAddr)
	return err == nil && f.trusted.has(peer.Addr())
}

// set replaces in r.Out what the client has sent, by what is known here. From a
// trusted proxy it keeps the fields about who is before that, but never those
// about the client's certificate, which are about this connection alone.
func (f *forwarding) set(r *httputil.ProxyRequest) {
	trusted := f.trusts(r.In)
	for name := range r.Out.Header {
		if f.strips(name, trusted) {
			delete(r.Out.Header, name)
		}
	}
	for name := range r.Out.Trailer {
		if f.strips(name, false) || !httpguts.ValidHeaderFieldName(name) || !httpguts.ValidTrailerHeader(name) {
			delete(r.Out.Trailer, name)
		}
	}
	h := r.Out.Header
	if trusted {
		// httputil.ReverseProxy has taken these from r.Out.
		for _, name := range []string{"Forwarded", "X-Forwarded-For", "X-Forwarded-Host", "X-Forwarded-Proto"} {
			if values := r.In.Header.Values(name); len(values) > 0 {
				h.Set(name, strings.Join(values, ", "))
			}
		}
	}
	if peer, err := netip.ParseAddrPort(r.In.RemoteAddr); err == nil {
		address := peer.Addr().Unmap().WithZone("")
		extend(h, "X-Forwarded-For", address.String())
		extend(h, "Forwarded", forwardedElement(address, r.In.Host))
	}
	if h.Get("X-Forwarded-Host") == "" && r.In.Host != "" {
		h.Set("X-Forwarded-Host", r.In.Host)
	}
	if h.Get("X-Forwarded-Proto") == "" {
		h.Set("X-Forwarded-Proto", "https")
	}
	if c := connFrom(r.In.Context()); f.certs && c != nil {
		setClientCert(h, c.clientChain(), f.chain)
	}
}

// strips reports whether a client's field goes no further. Origins that make
// environment variables of field names (RFC 3875, Section 4.1.18) take Client_Cert,
// some Client.Cert too, for Client-Cert, and find a proxy of theirs in Proxy.
func (f *forwarding) strips(name string, trusted bool) bool {
	lower := strings.ToLower(name)
	plain := strings.Map(func(c rune) rune {
		if 'a' <= c && c <= 'z' || '0' <= c && c <= '9' {
			return c
		}
		return '-'
	}, lower)
	switch {
	case plain == "client-cert" || plain == "client-cert-chain" || plain == "proxy" || plain == "x-request-id": // newProxy sets the last
		return true
	case plain == "forwarded" || plain == "x-real-ip" || strings.HasPrefix(plain, "x-forwarded-"):
		return !trusted || plain != lower
	}
	return false
}

// extend adds to a field that is a list.
func extend(h http.Header, name, value string) {
	if before := h.Get(name); before != "" {
		value = before + ", " + value
	}
	h.Set(name, value)
}

// forwardedElement returns the element of Forwarded for a request that has come
// here (RFC 7239, Section 4).
func forwardedElement(client netip.Addr, host string) string {
	node := client.String()
	if client.Is6() {
		node = "[" + node + "]" // RFC 7239, Section 6
	}
	element := "for=" + tokenOrQuoted(node)
	if host != "" {
		element += ";host=" + tokenOrQuoted(host)
	}
	return element + ";proto=https"
}

// tokenOrQuoted returns value as RFC 9110, Sections 5.6.2 and 5.6.4 have it.
func tokenOrQuoted(value string) string {
	if httpguts.ValidHeaderFieldName(value) { // It is a token.
		return value
	}
	return `"` + strings.NewReplacer(`\`, `\\`, `"`, `\"`).Replace(value) + `"`
}

// setClientCert sets the fields of RFC 9440 for a client whose certificate has
// been verified over chain, the authority's own at its end. Of a chain Section 2.3
// wants what is between the two, in the order of TLS; the authority's is known
// to who trusts it (RFC 8446, Section 4.4.2).
func setClientCert(h http.Header, chain []*x509.Certificate, forwardChain bool) {
	if len(chain) == 0 {
		return
	}
	h.Set("Client-Cert", byteSequence(chain[0].Raw))
	if !forwardChain || len(chain) < 3 {
		return // An empty list is a field that is not there (RFC 8941, Section 3.1).
	}
	var between []string
	for _, cert := range chain[1 : len(chain)-1] {
		between = append(between, byteSequence(cert.Raw))
	}
	h.Set("Client-Cert-Chain", strings.Join(between, ", "))
}

// byteSequence returns a Byte Sequence (RFC 8941, Section 3.3.5).
func byteSequence(b []byte) string { return ":" + base64.StdEncoding.EncodeToString(b) + ":" }

// keepFromOthers has a client keep no answer that depends on its certificate,
// for somebody else to find it (RFC 9440, Section 2.4).
func keepFromOthers(resp *http.Response) error {
	for _, value := range resp.Header.Values("Vary") {
		for name := range strings.SplitSeq(value, ",") {
			if name = strings.ToLower(strings.TrimSpace(name)); name == "client-cert" || name == "client-cert-chain" {
				resp.Header.Set("Vary", "*")
				return nil
			}
		}
	}
	return nil
}
