package keyserver

import (
	"bytes"
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"strconv"
	"strings"
	"time"

	"github.com/tlsski/tlsski/ski"
)

// Events of the log itself; docs/audit.md describes their lines.
const (
	eventOpen       Event = "open"       // the first line after a start, and of a file
	eventCheckpoint Event = "checkpoint" // a signature on all that is above
	eventTorn       Event = "torn"       // what is above could only be written in part
	eventAccept     Event = "accept"     // an operator has seen discontinuities
)

// Why there is an 'open' or a 'checkpoint'.
const (
	causeStart    = "start"         // open: nothing is known of an earlier log
	causeRestart  = "restart"       // open: the file goes on
	causeRotation = "rotation"      // both: what follows is in another file
	causeBroken   = "discontinuity" // open: the log was not found as it was left; 'reason' says how
	causeInterval = "interval"      // checkpoint: enough records or time
	causeStop     = "stop"          // checkpoint: the key server ends
)

// auditLine is a line of an audit log but for 'seq' at its beginning and
// 'chain' at its end. Its fields and docs/audit.schema.json say the same.
type auditLine struct {
	Time            string `json:"time"`
	Event           Event  `json:"event"`
	Edge            string `json:"edge,omitempty"`
	Peer            string `json:"peer,omitempty"`
	Address         string `json:"address,omitempty"`
	Key             string `json:"key,omitempty"`
	KeyName         string `json:"key_name,omitempty"`
	Protocol        string `json:"protocol,omitempty"`
	Method          string `json:"method,omitempty"`
	Exchange        int    `json:"exchange,omitempty"`
	Hash            string `json:"hash,omitempty"`
	Scheme          string `json:"scheme,omitempty"`
	Group           string `json:"group,omitempty"`
	ClaimedName     string `json:"claimed_server_name,omitempty"`
	Outcome         string `json:"outcome,omitempty"`
	PreMasterSecret string `json:"premaster_secret,omitempty"`
	Reason          string `json:"reason,omitempty"`
	Detector        string `json:"detector,omitempty"`
	TicketSite      string `json:"ticket_site,omitempty"`
	TicketKeys      string `json:"ticket_keys,omitempty"`
	DurationUS      *int64 `json:"duration_us,omitempty"`
	First           string `json:"first,omitempty"`
	Last            string `json:"last,omitempty"`
	Count           uint64 `json:"count,omitempty"`
	// Refused has the parts of Count.
	Refused    map[string]uint64 `json:"refused,omitempty"`
	Cause      string            `json:"cause,omitempty"`
	Previous   string            `json:"previous,omitempty"`
	TornBytes  int64             `json:"torn_bytes,omitempty"`
	TornSHA256 string            `json:"torn_sha256,omitempty"`

	// Of 'open' and 'checkpoint', where a tip is kept: the number of the line that
	// the last tip names, and the edges that are suspended.
	Tip           *uint64  `json:"tip,omitempty"`
	NewFile       bool     `json:"new_file,omitempty"`       // 'open' of a discontinuity: it is the first line of its file
	Witnessed     uint64   `json:"witnessed,omitempty"`      // 'open' of a discontinuity: the number of the line that a witness had
	Unsigned      uint64   `json:"unsigned_lines,omitempty"` // 'open': lines above that neither a signature nor a tip covers
	Suspended     []string `json:"suspended,omitempty"`
	MoreSuspended int      `json:"more_suspended,omitempty"` // beyond maxSuspendedNames

	// Of 'accept'.
	By      string   `json:"by,omitempty"`
	Accepts []string `json:"accepts,omitempty"` // the lines, SEQUENCE:CHAIN

	Signer string `json:"signer,omitempty"`
}

// line returns what stands in the log for a Record.
func (r *Record) line() *auditLine {
	l := &auditLine{
		Time:            auditTime(r.Time),
		Event:           cmp.Or(r.Event, EventRequest),
		Edge:            r.Edge,
		Peer:            r.Peer.String(),
		Key:             idText(r.Key),
		KeyName:         r.KeyName,
		Protocol:        string(r.Protocol),
		Method:          string(r.Method),
		Exchange:        r.Exchange,
		Hash:            r.Hash,
		Scheme:          r.Scheme,
		Group:           r.Group,
		ClaimedName:     r.ClaimedServerName,
		Outcome:         r.Outcome,
		PreMasterSecret: r.PreMasterSecret,
		Reason:          r.Reason,
		Detector:        r.Detector,
		TicketSite:      r.TicketSite,
		TicketKeys:      r.TicketKeys,
	}
	if r.Address.IsValid() {
		l.Address = r.Address.String()
	}
	if l.Event == EventRefusals {
		l.First, l.Last, l.Refused = auditTime(r.First), auditTime(r.Last), r.Refused
		for _, n := range r.Refused {
			l.Count += n
		}
	}
	if l.Event == EventRequest {
		us := r.Duration.Microseconds()
		l.DurationUS = &us
	}
	return l
}

// name is what a suspension of the edge or of the peer is called.
func (r *Record) name() string { return cmp.Or(r.Edge, r.Peer.String()) }

func idText(id ski.KeyID) string {
	if id.IsZero() {
		return ""
	}
	return id.String()
}

func auditTime(t time.Time) string { return t.UTC().Format(time.RFC3339Nano) }

// encode returns the line as a JSON object.
func (l *auditLine) encode() []byte {
	data, err := json.Marshal(l)
	if err != nil {
		panic(err) // It has nothing that JSON does not have.
	}
	return data
}

// The chain. A line is
//
//	{"seq":N, FIELDS ,"chain":"HEX"}
//
// where HEX is the SHA-256 of the 32 bytes of the line above's chain and of the
// bytes of this line that are before ,"chain". Nothing has to be parsed, and
// no form of JSON be agreed on, to check it.
const (
	seqPrefix   = `{"seq":`
	chainPrefix = `,"chain":"`
	chainSuffix = `"}`
	chainEnd    = len(chainPrefix) + 2*sha256.Size + len(chainSuffix)
)

// A line that is signed has, as the last of its fields, the base64 of a signature on
// signatureContext and the bytes of the line that are before ,"signature".
// Among them are 'seq', 'time' and, in 'previous', the chain of the line above.
const (
	signatureContext = "tlsski audit checkpoint\x00"
	signaturePrefix  = `,"signature":"`
	signatureSuffix  = `"`
)

// link is a place in the chain: behind the line with this number.
type link struct {
	seq   uint64
	chain [sha256.Size]byte
}

func (l link) hex() string { return hex.EncodeToString(l.chain[:]) }

// next returns the link behind a line with this content.
func (l link) next(content []byte) link {
	h := sha256.New()
	h.Write(l.chain[:])
	h.Write(content)
	n := link{seq: l.seq + 1}
	h.Sum(n.chain[:0])
	return n
}

// splitLine returns what is before the chain of a line, without its newline,
// and the link that the line says is behind it. ok is false where it does not
// have the form of a line.
func splitLine(line []byte) (content []byte, stated link, ok bool) {
	at := len(line) - chainEnd
	if at < len(seqPrefix) || !bytes.HasPrefix(line, []byte(seqPrefix)) || !json.Valid(line) {
		return nil, link{}, false
	}
	content, end := line[:at], line[at:]
	digits, isPrefix := bytes.CutPrefix(end, []byte(chainPrefix))
	digits, isSuffix := bytes.CutSuffix(digits, []byte(chainSuffix))
	number, _, isNumber := bytes.Cut(content[len(seqPrefix):], []byte(","))
	if !isPrefix || !isSuffix || !isNumber {
		return nil, link{}, false
	}
	var err error
	if stated.seq, err = strconv.ParseUint(string(number), 10, 64); err != nil {
		return nil, link{}, false
	}
	if stated.chain, err = parseChain(string(digits)); err != nil {
		return nil, link{}, false
	}
	return content, stated, true
}

// parseChain reads what link.hex has written.
func parseChain(text string) (chain [sha256.Size]byte, err error) {
	data, err := hex.DecodeString(text)
	if err != nil || len(data) != len(chain) || strings.ToLower(text) != text {
		return chain, errors.New("it is not 64 hexadecimal digits")
	}
	return [sha256.Size]byte(data), nil
}
