package main

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/rsa"
	"fmt"
	"io"
	"log/slog"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/tlsski/tlsski/keyserver"
	"github.com/tlsski/tlsski/ski"
)

// tryOut finds what only putting the parts together shows: it makes the
// server, on free loopback ports, and closes it without having served.
func (p *parts) tryOut() error {
	if err := keyserver.CheckAuditLog(p.cfg.Audit.File); err != nil {
		return err
	}
	log := slog.New(slog.DiscardHandler)
	server, err := p.newServer(keyserver.NewAuditLog(io.Discard), log)
	if err != nil {
		return err
	}
	https, coapTCP := "", ""
	if p.cfg.HTTPS != "" {
		https = freePort
	}
	if p.cfg.CoAPSTCP != "" {
		coapTCP = freePort
	}
	all, err := p.listen(freePort, coapTCP, https, server, log)
	if err != nil {
		return err
	}
	return all.Close()
}

const freePort = "127.0.0.1:0"

// summary prints what -check has found. The error is that of the writing.
func (p *parts) summary(out io.Writer, file string) error {
	w := new(bytes.Buffer)
	fmt.Fprintf(w, "%s is valid\n", file)
	table := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	row := func(cells ...string) { fmt.Fprintln(table, strings.Join(cells, "\t")) }
	row("listen", fmt.Sprintf("%s, path %s", p.cfg.Listen, p.cfg.Path))
	if p.cfg.CoAPSTCP != "" {
		row("coaps_tcp", fmt.Sprintf("%s, path %s", p.cfg.CoAPSTCP, p.cfg.Path))
	}
	if p.cfg.HTTPS != "" {
		row("https", fmt.Sprintf("%s, path %s", p.cfg.HTTPS, p.cfg.Path))
	}
	row("certificate", fmt.Sprintf("%s, valid until %s", p.cfg.Certificate, p.certificate.Leaf.NotAfter.Format(time.DateOnly)))
	if p.psks != nil {
		row("psk", fmt.Sprintf("%s, %d keys", p.cfg.PSK, p.psks.Len()))
	}
	for _, t := range p.keys.Tokens() {
		row("token", fmt.Sprintf("%s, serial %s, %d sessions, %s", t.Token, t.Serial, t.Sessions, t.Module))
	}
	row("audit", p.cfg.Audit.File)
	for _, one := range p.suspensions.All() {
		row("suspended", fmt.Sprintf("%s, %s", one.Edge, one))
	}
	for _, warning := range p.warnings() {
		row("warning", warning)
	}
	table.Flush()

	fmt.Fprintln(w)
	row("EDGE", "KEY", "TYPE", "METHODS", "PROTOCOLS", "ALGORITHMS", "SERVER NAMES", "NETWORKS", "VALID", "LEGACY")
	rights := p.policy.Rights()
	for _, r := range rights {
		_, pub, _ := p.keys.Store.Lookup(r.Key)
		row(r.Edge, r.KeyName, keyType(pub), list(r.Methods, ""), list(r.Protocols, ""), algorithms(r),
			list(r.ServerNames, "any"), list(texts(r.Networks), "any"), validity(r), list(r.Legacy, "-"))
	}
	table.Flush()
	if len(rights) == 0 {
		fmt.Fprintln(w, "the policy grants nothing")
	}
	_, err := out.Write(w.Bytes())
	return err
}

func list[T ~string](values []T, none string) string {
	if len(values) == 0 {
		return none
	}
	texts := make([]string, len(values))
	for i, v := range values {
		texts[i] = string(v)
	}
	return strings.Join(texts, ", ")
}

func texts[T fmt.Stringer](values []T) []string {
	all := make([]string, len(values))
	for i, v := range values {
		all[i] = v.String()
	}
	return all
}

func algorithms(r keyserver.Right) string {
	if slices.Equal(r.Methods, []ski.Method{ski.MethodRSA}) {
		return "-" // Nothing is signed.
	}
	return list(r.Algorithms, "any")
}

func validity(r keyserver.Right) string {
	from, until := "", ""
	if !r.NotBefore.IsZero() {
		from = "from " + r.NotBefore.Format(time.RFC3339)
	}
	if !r.NotAfter.IsZero() {
		until = "until " + r.NotAfter.Format(time.RFC3339)
	}
	if from == "" && until == "" {
		return "always"
	}
	return strings.TrimSpace(from + " " + until)
}

func keyType(pub crypto.PublicKey) string {
	switch pub := pub.(type) {
	case *ecdsa.PublicKey:
		return "ECDSA " + pub.Params().Name
	case *rsa.PublicKey:
		return fmt.Sprintf("RSA %d", pub.N.BitLen())
	}
	return "Ed25519"
}
