package skihttp

import (
	"mime"
	"strconv"
	"strings"

	"github.com/tlsski/tlsski/ski"
)

// formatOf returns the Format of a Content-Type. Parameters of it, such as a
// charset, mean nothing to either.
func formatOf(contentType string) (ski.Format, bool) {
	mediaType, _, err := mime.ParseMediaType(contentType)
	switch {
	case err != nil:
		return 0, false
	case mediaType == ski.CBOR.MediaType():
		return ski.CBOR, true
	case mediaType == ski.JSON.MediaType():
		return ski.JSON, true
	}
	return 0, false
}

// negotiate returns the Format of the answer to a request in the Format in: the
// one that Accept prefers (RFC 9110, Section 12.5.1), and of two that are
// equally welcome that of the request. ok is false if Accept takes neither.
func negotiate(accept []string, in ski.Format) (out ski.Format, ok bool) {
	ranges := strings.Join(accept, ",")
	if strings.TrimSpace(ranges) == "" {
		return in, true
	}
	other := ski.CBOR + ski.JSON - in
	mine, its := quality(ranges, in), quality(ranges, other)
	if its > mine {
		return other, true
	}
	return in, mine > 0
}

// quality returns how welcome a Format is, from 0, not at all, to 1. The most
// specific media range that it is in decides. One that cannot be read counts as
// not there.
func quality(ranges string, f ski.Format) float64 {
	best, q := 0, 0.0
	for text := range strings.SplitSeq(ranges, ",") {
		mediaRange, params, err := mime.ParseMediaType(text)
		if err != nil {
			continue
		}
		specific := 0
		switch mediaRange {
		case f.MediaType():
			specific = 3
		case "application/*":
			specific = 2
		case "*/*":
			specific = 1
		}
		if specific <= best {
			continue
		}
		weight := 1.0
		if s, ok := params["q"]; ok {
			if weight, err = strconv.ParseFloat(s, 64); err != nil || !(weight >= 0 && weight <= 1) {
				continue
			}
		}
		best, q = specific, weight
	}
	return q
}
