package main

import (
	"bytes"
	"fmt"
	"io"
	"log/slog"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/tlsski/tlsski/cmd/internal/keyparts"
	"github.com/tlsski/tlsski/keyserver"
)

// tryOut finds what only putting the parts together shows: it makes the
// server, on free loopback ports, and closes it without having served.
func (p *parts) tryOut() error {
	var err error
	if p.auditDiffers, err = keyserver.CheckAuditLog(p.audit); err != nil {
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
	all, err := p.listen(freePort, coapTCP, https, nil, server, log)
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
	p.keys.Describe(row)
	row("audit", p.cfg.Audit.File)
	if p.cfg.Audit.Witness != "" {
		row("witness", p.cfg.Audit.Witness)
	}
	if len(p.policy.TicketRights()) > 0 {
		row("tickets", p.tickets.String())
	}
	row("limit", fmt.Sprintf("all requests: %d in flight, %v for their turn", p.cfg.MaxInFlight, time.Duration(p.cfg.MaxWait)))
	for _, limit := range p.policy.Limits() {
		row("limit", limit)
	}
	for _, one := range p.suspensions.All() {
		row("suspended", fmt.Sprintf("%s, %s", one.Edge, one))
	}
	for _, differs := range p.auditDiffers {
		row("warning", "audit: "+differs+": the start records it as a discontinuity")
	}
	for _, warning := range p.warnings() {
		row("warning", warning)
	}
	table.Flush()

	fmt.Fprintln(w)
	keyparts.PrintRights(w, p.policy.Rights(), p.keys.Store)
	keyparts.PrintTicketRights(w, p.policy.TicketRights())
	_, err := out.Write(w.Bytes())
	return err
}
