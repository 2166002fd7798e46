package keyserver

import "github.com/tlsski/tlsski/ski"

// EmbeddedURI is the name of the one peer that an embedded key server has, the
// edge server of its own process. Policies know it by 'uri'.
const EmbeddedURI = "tlsski:embedded"

// EmbeddedPeer returns that peer. It has no address, and neither a certificate
// nor a pre-shared key: there is no channel that it could show them on.
func EmbeddedPeer() ski.Peer { return ski.Peer{URIs: []string{EmbeddedURI}} }

// LoadEmbeddedConfig is LoadConfig for a key server that nobody reaches over a
// network, since it is in the process of its edge server. What has no meaning
// then is an error.
func LoadEmbeddedConfig(file string) (*Config, error) {
	return readConfig(file, (*Config).checkEmbedded)
}

// notEmbedded is what an embedded key server does not have, and why.
var notEmbedded = []struct {
	why   string
	names []string
}{
	{"nobody reaches it over a network", []string{"listen", "coaps_tcp", "https", "mtu", "path", "certificate", "key", "client_ca", "crl", "crl_expired",
		"psk", "psk_without_forward_secrecy", "metrics", "metrics_public"}},
	{"it is cut off by stopping the edge server", []string{"admin"}},
	{"it stands in the edge server's configuration", []string{"log", "shutdown_timeout"}},
	{"it always closes the memory of its process, and the edge server needs the rest", []string{"sandbox", "hsm.folders", "hsm.network"}},
}

// checkEmbedded refuses what stands in the file and has no meaning.
func (c *Config) checkEmbedded(doc *document) error {
	for _, not := range notEmbedded {
		for _, name := range not.names {
			if path := "$." + name; doc.find(path) != nil {
				return doc.errorAt(path, "an embedded key server has no %q: %s", name, not.why)
			}
		}
	}
	return nil
}
