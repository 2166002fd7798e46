package main

import (
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"strings"
)

// parseSubject reads a subject as in "CN=www.example.com,O=Example\, Inc.". A
// backslash takes the meaning from the character after it (RFC 4514, Section
// 2.4).
func parseSubject(s string) (pkix.Name, error) {
	var name pkix.Name
	if s == "" {
		return name, nil
	}
	parts, err := splitSubject(s)
	if err != nil {
		return name, err
	}
	lists := map[string]*[]string{
		"O": &name.Organization, "OU": &name.OrganizationalUnit, "C": &name.Country, "L": &name.Locality,
		"ST": &name.Province, "STREET": &name.StreetAddress,
	}
	for _, part := range parts {
		attribute, value, ok := strings.Cut(part, "=")
		attribute = strings.ToUpper(strings.TrimSpace(attribute))
		list, known := lists[attribute]
		switch {
		case !ok || value == "":
			return name, fmt.Errorf("--subject: %q is not NAME=VALUE", part)
		case attribute == "CN" && name.CommonName != "":
			return name, errors.New("--subject has two CN")
		case attribute == "CN":
			name.CommonName = value
		case known:
			*list = append(*list, value)
		default:
			return name, fmt.Errorf("--subject: %q is none of CN, O, OU, C, L, ST and STREET", attribute)
		}
	}
	return name, nil
}

func splitSubject(s string) (parts []string, err error) {
	var b strings.Builder
	escaped := false
	for _, r := range s {
		switch {
		case escaped:
			b.WriteRune(r)
			escaped = false
		case r == '\\':
			escaped = true
		case r == ',':
			parts = append(parts, b.String())
			b.Reset()
		default:
			b.WriteRune(r)
		}
	}
	if escaped {
		return nil, errors.New("--subject ends in a backslash")
	}
	return append(parts, b.String()), nil
}
