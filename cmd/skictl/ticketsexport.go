package main

import (
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"

	"github.com/tlsski/tlsski/keyserver"
)

// ticketsHandOver is what the three commands have in common to say.
const ticketsHandOver = `
A key server that is new in a site gets the ticket keys of the others in three
steps. FILE is the 'state' of each key server's configuration; run skictl as the
user that the key server runs as.

  1. new key server:  skictl tickets request --state FILE
     prints a line that begins with ski-tickets-request:
  2. one that runs:   skictl tickets export --state FILE --to REQUEST
     prints a line that begins with ski-tickets-sealed: and, apart from it, a
     check code
  3. new key server:  skictl tickets import --state FILE --code CODE SEALED
     then start it, without ticket_secret_file

Be sure that REQUEST is the new key server's: whoever made it can open SEALED. And take
the code along yourself, not by the way that SEALED takes: whoever sees REQUEST could
make another SEALED.`

func newTicketsRequestCommand() *cobra.Command {
	var state string
	cmd := &cobra.Command{
		Use:   "request --state FILE",
		Short: "Ask another key server for its ticket keys",
		Long: `Makes a key pair that another key server seals its ticket keys to. The private key
stays in FILE.tickets-request until the import; the public key is printed. A new
request takes the place of the one before.
` + ticketsHandOver,
		Example: `  skictl tickets request --state /var/lib/ski-keyserver/state.json`,
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			request, err := keyserver.RequestTicketKeys(state)
			if err != nil {
				return err
			}
			fmt.Fprintln(cmd.OutOrStdout(), request)
			return nil
		},
	}
	addStateFlag(cmd, &state)
	return cmd
}

func newTicketsExportCommand() *cobra.Command {
	var state, to string
	cmd := &cobra.Command{
		Use:   "export --state FILE --to REQUEST",
		Short: "Seal a key server's ticket keys for another key server",
		Long: `Seals what the ticket keys of this key server are derived from, as it is now, for
the key server whose request is given: no key of tickets that have expired is in it.
The key server may run meanwhile. What is sealed can be imported for 24 hours.

The sealed keys go to standard output, the check code to standard error.
` + ticketsHandOver,
		Example: `  skictl tickets export --state /var/lib/ski-keyserver/state.json --to ski-tickets-request:... > sealed`,
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			sealed, code, err := keyserver.ExportTicketKeys(state, to, time.Now())
			if err != nil {
				return err
			}
			if _, err := fmt.Fprintln(cmd.OutOrStdout(), sealed); err != nil {
				return err
			}
			fmt.Fprintln(cmd.ErrOrStderr(), "check code:", code)
			return nil
		},
	}
	addStateFlag(cmd, &state)
	cmd.Flags().StringVar(&to, "to", "", "what 'tickets request' has printed on the new key server (`REQUEST`)")
	requireFlag(cmd, "to")
	return cmd
}

func newTicketsImportCommand() *cobra.Command {
	var state, code string
	var replace bool
	cmd := &cobra.Command{
		Use:   "import --state FILE --code CODE [SEALED]",
		Short: "Take over the ticket keys that another key server has sealed",
		Long: `Opens what 'tickets export' has sealed for the last 'tickets request' here, and
writes it to FILE.tickets, from which the key server goes on with its next start.
Without SEALED, or with "-", it is read from standard input.

Ticket keys of another secret are only replaced with --replace, which also brings
back older ones, after a clock that was far ahead. Stop the key server before.
` + ticketsHandOver,
		Example: `  skictl tickets import --state /var/lib/ski-keyserver/state.json --code abcd-efgh-ijkl-mnop < sealed`,
		Args:    cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			sealed := "-"
			if len(args) > 0 {
				sealed = args[0]
			}
			if sealed == "-" {
				text, err := io.ReadAll(io.LimitReader(cmd.InOrStdin(), keyserver.MaxTicketSealed+1))
				if err != nil {
					return err
				}
				sealed = string(text)
			}
			if err := keyserver.ImportTicketKeys(state, sealed, code, replace, time.Now()); err != nil {
				return err
			}
			fmt.Fprintf(cmd.OutOrStdout(), "%s: start the key server, without ticket_secret_file\n", keyserver.TicketRatchetFile(state))
			return nil
		},
	}
	addStateFlag(cmd, &state)
	f := cmd.Flags()
	f.StringVar(&code, "code", "", "the check code that 'tickets export' has printed (`CODE`)")
	f.BoolVar(&replace, "replace", false, "replace the ticket keys of another secret, or newer ones")
	requireFlag(cmd, "code")
	return cmd
}

func addStateFlag(cmd *cobra.Command, state *string) {
	cmd.Flags().StringVar(state, "state", "", "the `FILE` that is 'state' in the key server's configuration")
	requireFlag(cmd, "state")
}

func requireFlag(cmd *cobra.Command, flag string) {
	if err := cmd.MarkFlagRequired(flag); err != nil {
		panic(err)
	}
}
