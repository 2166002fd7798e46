package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"sync"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/tlsski/tlsski/cmd/internal/skiurl"
	"github.com/tlsski/tlsski/ski"
)

func newTicketsCommand() *cobra.Command {
	var (
		id       channelFlags
		endpoint string
		timeout  time.Duration
		follow   bool
		asJSON   bool
	)
	cmd := &cobra.Command{
		Use:   "tickets --endpoint URL (--cert FILE --key FILE --ca FILE | --psk-file FILE) SITE...",
		Short: "Show which ticket keys a key server has for an edge server; hand them to another key server",
		Long: `Asks a key server for the keys of the session tickets of one or more sites, as an
edge server with 'tickets: shared' does, and shows their ids and times; never the
keys. It is the edge server whose certificate is given, and what it is handed goes
into the audit log as what that edge server was. SITE is the name in the policy.

With --follow it goes on, and shows the keys again whenever they change.

The exit status is 3 if the key server denies them.

'tickets request', 'export' and 'import' give a new key server of a site what the
others derive the keys from.`,
		Example: `  skictl tickets --endpoint coaps://ks-1.example.net:5684/ski \
    --cert edge-1.pem --key edge-1.key --ca ca.pem www.example.com`,
		Args: cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, sites []string) error {
			p, err := id.party()
			if err != nil {
				return err
			}
			cfg := skiurl.Config{ServerName: id.serverName, PSK: p.psk, RootCAs: p.authorities, Logger: slog.New(slog.DiscardHandler)}
			if p.certificate != nil {
				cfg.Certificate = *p.certificate
			}
			client, err := skiurl.NewClient(endpoint, cfg)
			if err != nil {
				return err
			}
			defer client.Close()
			source, ok := client.(ski.TicketSource)
			if !ok {
				return fmt.Errorf("%s: only coaps:// and coaps+tcp:// have ticket keys", endpoint)
			}
			w := &ticketPrinter{out: cmd.OutOrStdout(), json: asJSON}
			if follow {
				timeout = 0
			}
			err = watchTickets(cmd.Context(), source, sites, timeout, w)
			if errors.Is(err, ski.RequestDenied) {
				fmt.Fprintf(cmd.ErrOrStderr(), "skictl: %v\n", err)
				return statusRefused
			}
			return err
		},
	}
	f := cmd.Flags()
	f.StringVar(&endpoint, "endpoint", "", "the key server's `URL`: coaps://HOST[:PORT][/PATH] or coaps+tcp://")
	f.DurationVar(&timeout, "timeout", ski.DefaultTimeout, "how long to wait for each answer (`TIME`)")
	f.BoolVar(&follow, "follow", false, "go on, and show each change")
	f.BoolVar(&asJSON, "json", false, "print JSON, a line for each site")
	id.add(f)
	if err := cmd.MarkFlagRequired("endpoint"); err != nil {
		panic(err)
	}
	cmd.AddCommand(newTicketsRequestCommand(), newTicketsExportCommand(), newTicketsImportCommand())
	return cmd
}

// watchTickets shows the keys of the sites one after the other or, with a timeout
// of 0, all at once and for ever.
func watchTickets(ctx context.Context, source ski.TicketSource, sites []string, timeout time.Duration, w *ticketPrinter) error {
	if timeout == 0 {
		errs := make([]error, len(sites))
		ctx, cancel := context.WithCancel(ctx)
		defer cancel()
		var all sync.WaitGroup
		for i, site := range sites {
			all.Go(func() {
				defer cancel() // One that has ended ends the command.
				errs[i] = source.WatchTickets(ctx, site, w.print)
				if errors.Is(errs[i], context.Canceled) {
					errs[i] = nil
				}
			})
		}
		all.Wait()
		return errors.Join(append(errs, w.err)...)
	}
	for _, site := range sites {
		one, cancel := context.WithTimeout(ctx, timeout)
		shown := false
		err := source.WatchTickets(one, site, func(t *ski.TicketKeys) {
			w.print(t)
			shown = true
			cancel()
		})
		cancel()
		if !shown {
			return err
		}
	}
	return w.err
}

// ticketPrinter prints ticket keys, without the keys.
type ticketPrinter struct {
	mu   sync.Mutex
	out  io.Writer
	json bool
	err  error
}

type ticketLine struct {
	Site string          `json:"site"`
	Keys []ticketKeyLine `json:"keys"`
}

type ticketKeyLine struct {
	ID    string    `json:"id"`
	From  time.Time `json:"from"`
	To    time.Time `json:"to"`
	Until time.Time `json:"until"`
	State string    `json:"state"`
}

func (p *ticketPrinter) print(t *ski.TicketKeys) {
	t.Clear()
	p.mu.Lock()
	defer p.mu.Unlock()
	line := ticketLine{Site: t.Site}
	now := time.Now()
	for _, k := range t.Keys {
		state := "opens tickets"
		switch {
		case now.Before(k.From):
			state = "next"
		case now.Before(k.To):
			state = "makes tickets"
		case !now.Before(k.Until):
			state = "over"
		}
		line.Keys = append(line.Keys, ticketKeyLine{k.ID.String(), k.From.UTC(), k.To.UTC(), k.Until.UTC(), state})
	}
	if p.json {
		p.err = errors.Join(p.err, json.NewEncoder(p.out).Encode(line))
		return
	}
	table := tabwriter.NewWriter(p.out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(table, "SITE\tID\tFROM\tTO\tUNTIL\tSTATE")
	for _, k := range line.Keys {
		fmt.Fprintf(table, "%s\t%s\t%s\t%s\t%s\t%s\n", line.Site, k.ID,
			k.From.Format(time.RFC3339), k.To.Format(time.RFC3339), k.Until.Format(time.RFC3339), k.State)
	}
	p.err = errors.Join(p.err, table.Flush())
}
