package keyserver

import (
	"fmt"
	"net/netip"
	"strings"
)

// ReadAddresses reads a file that WriteAddresses has written. It refuses one
// that others can read or write.
func ReadAddresses(file string) ([]netip.Addr, error) {
	data, err := readPrivateFile(file)
	if err != nil {
		return nil, err
	}
	var all []netip.Addr
	for line := range strings.Lines(string(data)) {
		addr, err := netip.ParseAddr(strings.TrimSuffix(line, "\n"))
		if err != nil {
			return nil, fmt.Errorf("%s: line %d: %w", file, len(all)+1, err)
		}
		all = append(all, addr)
	}
	return all, nil
}

// WriteAddresses keeps addresses of authenticated peers in a file of the state
// directory, one a line. They say where edge servers are, so that others do not
// get to read them.
func WriteAddresses(file string, all []netip.Addr) error {
	var text []byte
	for _, addr := range all {
		text = append(addr.AppendTo(text), '\n')
	}
	return replaceFile(file, text)
}
