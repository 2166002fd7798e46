package main

import (
	"crypto/tls"
	"errors"
	"fmt"

	"github.com/spf13/pflag"
)

// channelFlags are those that say who one is on the SKI channel.
type channelFlags struct{ cert, key, ca, serverName, pskFile, pskIdentity string }

func (c *channelFlags) add(f *pflag.FlagSet) {
	f.StringVar(&c.cert, "cert", "", "one's certificate on the channel: a PEM `FILE`")
	f.StringVar(&c.key, "key", "", "the certificate's private key: a PEM `FILE`")
	f.StringVar(&c.ca, "ca", "", "the authority of the peer's certificate: a PEM `FILE`")
	f.StringVar(&c.pskFile, "psk-file", "", "with coaps, a pre-shared key in place of the three: a `FILE` with a line IDENTITY:HEX")
	f.StringVar(&c.pskIdentity, "psk-identity", "", "the `IDENTITY` among those of --psk-file (default: the only one)")
	f.StringVar(&c.serverName, "server-name", "", "the `NAME` in the key server's certificate (default: the URL's host)")
}

func (c *channelFlags) party() (party, error) {
	if c.pskFile != "" {
		if c.cert+c.key+c.ca != "" {
			return party{}, errors.New("--psk-file is in place of --cert, --key and --ca")
		}
		psk, err := loadPSK(c.pskFile, c.pskIdentity)
		return party{psk: psk, serverName: c.serverName}, err
	}
	for _, f := range []struct{ name, value string }{{"cert", c.cert}, {"key", c.key}, {"ca", c.ca}} {
		if f.value == "" {
			return party{}, fmt.Errorf("--%s is missing", f.name)
		}
	}
	cert, err := tls.LoadX509KeyPair(c.cert, c.key)
	if err != nil {
		return party{}, fmt.Errorf("--cert and --key: %w", err)
	}
	pool, err := loadPool(c.ca)
	if err != nil {
		return party{}, err
	}
	return party{certificate: &cert, authorities: pool, serverName: c.serverName}, nil
}
