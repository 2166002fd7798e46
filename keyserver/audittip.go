package keyserver

import (
	"crypto/ed25519"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/tlsski/tlsski/internal/guarded"
	"github.com/tlsski/tlsski/ski"
)

// auditTip is how far an audit log is known to go. It is kept apart from the
// log, is written when that is on the disk, and so has to be in it at the next
// start, whatever comes between.
type auditTip struct {
	// Seq and Chain are of the last line, 0 and zeros where there is none.
	Seq   uint64 `json:"seq"`
	Chain string `json:"chain"`
	Time  string `json:"time"`
	// Closed says that nothing was written after this line.
	Closed bool `json:"closed,omitempty"`
	// Unsigned says that no line up to this one is signed: the key is new.
	Unsigned bool `json:"unsigned,omitempty"`
	// Unaccepted names the newest discontinuities of the log, SEQUENCE:CHAIN, that
	// no operator has accepted.
	Unaccepted []string `json:"unaccepted,omitempty"`
	// Signer is the SPKI fingerprint of the key.
	Signer string `json:"signer,omitempty"`

	text signedText
	link link
}

const (
	tipContext = "tlsski audit tip\x00"
	// maxTip bounds the file, in bytes.
	maxTip = 1 << 14
	// maxTipSeq is far more lines than a log ever has; the next fit a uint64 and a
	// number of JSON.
	maxTipSeq = 1 << 52
	// maxLineSeq is the highest number that a log goes on after. Lines have room up
	// to maxTipSeq.
	maxLineSeq = maxTipSeq / 2
	// maxUnaccepted is how many discontinuities are remembered.
	maxUnaccepted = 32
)

// encode returns the file of the tip.
func (t *auditTip) encode(key ed25519.PrivateKey) ([]byte, error) {
	t.Signer = ""
	if key != nil {
		id, err := ski.PublicKeyID(key.Public())
		if err != nil {
			return nil, err
		}
		t.Signer = id.String()
	}
	return encodeSigned(tipContext, t, key)
}

// parseTip reads the file of a tip, and does not check the signature.
func parseTip(data []byte) (*auditTip, error) {
	t := new(auditTip)
	var err error
	if t.text, err = decodeSigned(tipContext, data, t); err != nil {
		return nil, err
	}
	if t.link, err = newLink(t.Seq, t.Chain); err != nil {
		return nil, err
	}
	if _, err := time.Parse(time.RFC3339Nano, t.Time); err != nil {
		return nil, errors.New("its time is not RFC 3339")
	}
	if len(t.Unaccepted) > maxUnaccepted {
		return nil, fmt.Errorf("it has more than %d discontinuities", maxUnaccepted)
	}
	for _, name := range t.Unaccepted {
		if _, err := parseTipName(name); err != nil {
			return nil, err
		}
	}
	if (t.Signer == "") != (t.text.signature == nil) {
		return nil, errors.New("a signer without a signature, or a signature without a signer")
	}
	return t, nil
}

func newLink(seq uint64, chain string) (link, error) {
	digest, err := parseChain(chain)
	switch {
	case err != nil:
		return link{}, fmt.Errorf("its chain: %w", err)
	case seq > maxTipSeq:
		return link{}, errors.New("its sequence number is too high")
	case seq == 0 && digest != link{}.chain:
		return link{}, errors.New("it has a chain before the first line")
	}
	return link{seq: seq, chain: digest}, nil
}

// parseTipName reads what tipName has written.
func parseTipName(name string) (link, error) {
	number, chain, ok := strings.Cut(name, ":")
	seq, err := strconv.ParseUint(number, 10, 64)
	if !ok || err != nil || number != strconv.FormatUint(seq, 10) {
		return link{}, errors.New("it is not SEQUENCE:CHAIN")
	}
	return newLink(seq, chain)
}

// readTip reads the tip of a log; nil if there is no file. The error says that
// it is not as the key server wrote it. key is nil where the log has none.
func readTip(file string, key ed25519.PublicKey) (*auditTip, error) {
	data, err := guarded.Read(file, guarded.Secret, maxTip)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	t, err := parseTip(data)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	if key != nil && t.Signer != "" && !t.text.by(key) {
		return nil, fmt.Errorf("%s: it is not signed by the key of the log, but says it is by %s", file, t.Signer)
	}
	return t, nil
}

// addUnaccepted appends the name of a discontinuity, and forgets the oldest of
// too many.
func addUnaccepted(all []string, name string) []string {
	if slices.Contains(all, name) {
		return all
	}
	all = append(slices.Clone(all), name)
	return all[max(0, len(all)-maxUnaccepted):]
}
