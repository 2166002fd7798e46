package keyserver

import (
	"strings"

	"github.com/tlsski/tlsski/ski"
)

// isDNSName reports whether the text is a host name: labels of letters, digits
// and hyphens (RFC 1123, Section 2.1), without a dot at the end. It takes an
// underscore too, which some networks have in theirs.
func isDNSName(text string) bool {
	if len(text) > ski.MaxServerNameLen {
		return false
	}
	for label := range strings.SplitSeq(text, ".") {
		if !isDNSLabel(label) {
			return false
		}
	}
	return true
}

// maxDNSLabel is the longest label, in bytes (RFC 1035, Section 2.3.4).
const maxDNSLabel = 63

func isDNSLabel(label string) bool {
	if label == "" || len(label) > maxDNSLabel || label[0] == '-' || label[len(label)-1] == '-' {
		return false
	}
	return strings.IndexFunc(label, func(c rune) bool {
		return (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') && (c < '0' || c > '9') && c != '-' && c != '_'
	}) < 0
}
