package edgeserver

import (
	"bytes"
	"cmp"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"strings"
	"time"
	"unicode"

	"github.com/tlsski/tlsski/edgeserver/internal/split"
)

// AccessLog says where the access log goes: a line for each request, once its
// answer is done.
type AccessLog struct {
	// File is the file that lines are appended to; "-" is standard output, stderr
	// standard error, and off nowhere. Default: off.
	File string `yaml:"file"`
	// Format is json, one object a line, or combined, the format of Apache's that
	// has this name, with the site and the request's identifier behind it. Default:
	// json.
	Format string `yaml:"format"`
	// Query has the queries of URLs, those in Referer too, written with the rest:
	// they often have secrets in them. Default: false.
	Query bool `yaml:"query"`
}

// AccessLogOf returns what a site has, with the defaults filled in: its own
// AccessLog or, without one, that of all.
func (c *Config) AccessLogOf(s Site) AccessLog {
	a := c.AccessLog
	if s.AccessLog != nil {
		a = *s.AccessLog
	}
	if a.File == "" {
		a.File = logOff
	}
	if a.Format == "" {
		a.Format = "json"
	}
	return a
}

// validateAccessLogs checks the fields of all, which open no file.
func (c *Config) validateAccessLogs() error {
	check := func(field string, a *AccessLog, required bool) error {
		switch {
		case required && a.File == "":
			return c.errorf(field+".file", "is missing: it is a file, - for standard output, %s or %s", logStderr, logOff)
		case a.Format != "" && a.Format != "json" && a.Format != "combined":
			return c.errorf(field+".format", "'%s' is not json or combined", a.Format)
		}
		return nil
	}
	if err := check("access_log", &c.AccessLog, c.AccessLog != AccessLog{}); err != nil {
		return err
	}
	for i := range c.Sites {
		if a := c.Sites[i].AccessLog; a != nil {
			if err := check(fmt.Sprintf("sites[%d].access_log", i), a, true); err != nil {
				return err
			}
		}
	}
	return nil
}

// isFile reports whether the lines go to a file of that name.
func (a *AccessLog) isFile() bool {
	switch a.File {
	case "", logOff, logStdout, logStderr:
		return false
	}
	return true
}

// The longest that a client's words are in a line, in bytes.
const (
	maxLoggedMethod = 32
	maxLoggedHost   = 255
	maxLoggedURL    = 2048
	maxLoggedAgent  = 512
	maxLoggedError  = 300 // which can quote what an origin has sent instead of an answer, or a client's certificate
)

// accessRecord is a line of an access log.
type accessRecord struct {
	Time        string `json:"time"`
	Site        string `json:"site"`
	Remote      string `json:"remote"`
	Forwarded   string `json:"forwarded_for,omitempty"`
	ServerName  string `json:"server_name"`
	Version     string `json:"version"`
	CipherSuite string `json:"cipher_suite"`
	Resumed     bool   `json:"resumed"`
	Subject     string `json:"client_subject,omitempty"`
	Fingerprint string `json:"client_sha256,omitempty"`
	RequestID   string `json:"request_id,omitempty"`
	Protocol    string `json:"protocol"`
	Method      string `json:"method,omitempty"`
	Host        string `json:"host,omitempty"`
	URL         string `json:"url,omitempty"`
	Status      int    `json:"status,omitempty"`
	Bytes       int64  `json:"bytes"`
	Received    int64  `json:"received,omitempty"`
	DurationUS  int64  `json:"duration_us"`
	CutShort    bool   `json:"cut_short,omitempty"`
	Origin      string `json:"origin,omitempty"`
	Referer     string `json:"referer,omitempty"`
	UserAgent   string `json:"user_agent,omitempty"`

	start time.Time
}

// accessLog is a site's. A nil one writes nothing.
type accessLog struct {
	AccessLog
	file  *logFile
	files *logFiles
}

// openAccessLogs gives the sites of cfg their access logs.
func (files *logFiles) openAccessLogs(cfg *Config, table *sites) error {
	for i, s := range table.all {
		a := cfg.AccessLogOf(s.Site)
		if a.File == logOff {
			continue
		}
		file, err := files.use(a.File)
		if err != nil {
			field := "access_log.file"
			if s.AccessLog != nil {
				field = fmt.Sprintf("sites[%d].access_log.file", i)
			}
			return cfg.errorAt(field, err)
		}
		s.access = &accessLog{a, file, files}
	}
	return nil
}

// Close lets the file go.
func (l *accessLog) Close() {
	if l != nil {
		l.files.release(l.file)
	}
}

// request writes a line about a request that has been answered.
func (l *accessLog) request(c *conn, r *http.Request, a *answer, took time.Duration) {
	if l == nil {
		return
	}
	target := cmp.Or(r.URL.EscapedPath(), "/")
	switch {
	case r.RequestURI == "*" || r.Method == http.MethodConnect:
		target = r.RequestURI // of the server, or a host
	case l.Query && r.URL.RawQuery != "":
		target += "?" + r.URL.RawQuery
	}
	forwarded := ""
	if c.site.forward.trusts(r) {
		forwarded = strings.Join(r.Header.Values("X-Forwarded-For"), ", ")
		forwarded = forwarded[max(0, len(forwarded)-maxLoggedHost):] // Its end is the proxy's, its beginning whoever's.
	}
	record := newAccessRecord(c, a.start, took)
	record.Remote = r.RemoteAddr
	record.Forwarded = printable(forwarded, maxLoggedHost)
	record.RequestID = a.id
	record.Protocol = r.Proto
	record.Method = printable(r.Method, maxLoggedMethod)
	record.Host = printable(r.Host, maxLoggedHost)
	record.URL = printable(target, maxLoggedURL)
	record.Status = a.status
	record.Bytes = a.bytes
	record.CutShort = a.cutShort
	record.Origin = a.origin
	record.Referer = printable(referer(r.Referer(), l.Query), maxLoggedURL)
	record.UserAgent = printable(r.UserAgent(), maxLoggedAgent)
	l.write(&record)
}

// connection writes a line about a connection of a tcp site, which has ended.
func (l *accessLog) connection(c *conn, start time.Time, done relayed) {
	if l == nil {
		return
	}
	record := newAccessRecord(c, start, time.Since(start))
	record.Protocol = "TCP"
	record.Bytes, record.Received = done.sent, done.received
	record.CutShort = done.cutShort
	record.Origin = done.origin
	l.write(&record)
}

// newAccessRecord returns what a line has of its connection.
func newAccessRecord(c *conn, start time.Time, took time.Duration) accessRecord {
	subject, fingerprint := c.clientCertificate()
	return accessRecord{
		start:       start,
		Time:        start.UTC().Format("2006-01-02T15:04:05.000000Z"),
		DurationUS:  took.Microseconds(),
		Site:        siteLabel(c.site),
		Remote:      c.RemoteAddr().String(),
		ServerName:  printable(c.serverName, maxLoggedHost),
		Version:     tls.VersionName(c.state.Version),
		CipherSuite: split.SuiteName(c.state.CipherSuite),
		Resumed:     c.state.DidResume,
		Subject:     printable(subject, maxLoggedAgent),
		Fingerprint: fingerprint,
	}
}

// write hands the record over in the format of the log.
func (l *accessLog) write(r *accessRecord) {
	if l.Format == "combined" {
		l.file.write(r.combined())
	} else {
		l.file.write(r.json())
	}
}

// json returns the record as an object in one line.
func (r *accessRecord) json() []byte {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false) // & is nothing special here
	_ = e.Encode(r)        // texts and numbers: it cannot fail
	return b.Bytes()
}

// combined returns the record in the format that Apache's manual calls combined,
// with two texts more.
func (r *accessRecord) combined() []byte {
	host, _, err := net.SplitHostPort(r.Remote)
	if err != nil {
		host = r.Remote
	}
	// What a trusted proxy has added is the last.
	last := r.Forwarded[strings.LastIndexByte(r.Forwarded, ',')+1:]
	if client, err := netip.ParseAddr(strings.TrimSpace(last)); err == nil {
		host = client.String()
	}
	dash := func(text string) string {
		if text == "" {
			return "-"
		}
		return strings.NewReplacer(`\`, `\\`, `"`, `\"`).Replace(text)
	}
	return fmt.Appendf(nil, "%s - - [%s] \"%s %s %s\" %d %d \"%s\" \"%s\" \"%s\" \"%s\"\n",
		host, r.start.Format("02/Jan/2006:15:04:05 -0700"), dash(r.Method), dash(r.URL), r.Protocol, r.Status, r.Bytes,
		dash(r.Referer), dash(r.UserAgent), r.Site, dash(r.RequestID))
}

// referer returns a Referer without what may be a secret in it.
func referer(value string, query bool) string {
	u, err := url.Parse(value)
	if err != nil {
		value, _, _ = strings.Cut(value, "?")
		return value
	}
	u.User = nil
	if !query {
		u.RawQuery, u.ForceQuery, u.Fragment, u.RawFragment = "", false, "", ""
	}
	return u.String()
}

// printable returns text without what could make a line look like another, on a
// terminal too: control characters, marks that turn the direction of writing, and
// what is not UTF-8 become U+FFFD. Of a text that has more bytes than longest, the
// rest is three dots.
func printable(text string, longest int) string {
	const dots = "..."
	long := len(text) > longest
	if long {
		text = text[:longest-len(dots)]
	}
	text = strings.Map(func(r rune) rune {
		if unicode.IsPrint(r) {
			return r
		}
		return unicode.ReplacementChar
	}, text)
	if long {
		text += dots
	}
	return text
}
