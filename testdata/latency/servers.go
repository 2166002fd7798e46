package main

import (
	"os"
	"strings"

	"github.com/tlsski/tlsski/testdata/internal/lab"
)

// adapt gives an edge server's configuration its port, and where it is to have
// its own private keys, the key server within it.
func (x *experiment) adapt(config, port string, own bool) error {
	data, err := os.ReadFile(config)
	if err != nil {
		return err
	}
	text := strings.Replace(string(data), `":443"`, `":`+port+`"`, 1)
	if own {
		_, sites, _ := strings.Cut(text, "sites:\n")
		text = `listen: [":` + port + "\"]\nkeyserver: embedded\nembedded: " + x.site.At("www/keyserver/embedded.yaml") + "\nsites:\n" + sites
		for name, text := range map[string]string{
			"embedded.yaml":        "keys: keys\npolicy: embedded-policy.yaml\n",
			"embedded-policy.yaml": embeddedPolicy,
		} {
			if err := os.WriteFile(x.site.At("www/keyserver/"+name), []byte(text), 0o644); err != nil {
				return err
			}
		}
	}
	return os.WriteFile(config, []byte(text), 0o644)
}

const embeddedPolicy = `edges: [{name: edge, uri: ["tlsski:embedded"]}]
rules: [{edges: [edge], keys: [` + lab.SiteName + `-ecdsa, ` + lab.SiteName + `-rsa], methods: [ECDHE, RSA]}]
`
