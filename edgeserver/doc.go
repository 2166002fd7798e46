// Package edgeserver terminates TLS for one or more web sites without holding
// their private keys: every operation on a private key is asked of a key server
// through a ski.Transport.
//
// Each site has names, the addresses on which it is served, certificate chains
// that hold only public keys, and one of: an origin server that requests are
// forwarded to, a folder of static files, and the address of a server of another
// protocol than HTTP, to which connections are carried as they are. A connection
// is bound to its site by its local address and the server name in its
// ClientHello; requests for another site are answered 421 (Misdirected Request).
// Clients speak TLS 1.2 or 1.3, HTTP/1.1 or HTTP/2, and show certificates where a
// site wants them.
//
// An embedding program makes a Server from a Config and any ski.Transport, also
// ski.Direct, which puts the key server into the same process:
//
//	srv, err := edgeserver.New(edgeserver.Config{
//		Sites: []edgeserver.Site{{
//			Names:        []string{"www.example.com"},
//			Certificates: []string{"www.example.com.pem"},
//			Proxy:        "http://127.0.0.1:8080",
//		}},
//	}, transport, slog.Default())
//	if err != nil {
//		return err
//	}
//	return srv.ListenAndServe()
//
// Reload gives a running Server another Config: connections that there are go on
// with what they began with.
//
// Load reads a Config from the YAML file that the ski-edgeserver command uses.
package edgeserver
