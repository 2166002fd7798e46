package main

import (
	"encoding/json"
	"fmt"
	"io"
	"net/netip"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/tlsski/tlsski/keyserver"
)

// defaultAdminSocket is where docs/operations.md puts the socket.
const defaultAdminSocket = "/run/ski-keyserver/admin.sock"

func newEdgeCommand() *cobra.Command {
	var socket string
	cmd := &cobra.Command{
		Use:   "edge",
		Short: "Cut an edge server off, let it in again, list all",
		Long: `Cuts edge servers off from a running key server and lets them in again, through
the socket that the key server's option 'admin' names. Only the user that the key
server runs as, and root, can use it.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.PersistentFlags().StringVar(&socket, "socket", defaultAdminSocket, "the key server's admin socket (`PATH`)")
	cmd.AddCommand(newEdgeListCommand(&socket), newEdgeSuspendCommand(&socket), newEdgeResumeCommand(&socket))
	return cmd
}

func newEdgeListCommand(socket *string) *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "list",
		Short: "List the edge servers that the key server knows",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			var edges []keyserver.EdgeStatus
			if err := newAdminClient(*socket).get(cmd.Context(), keyserver.AdminEdges, &edges); err != nil {
				return err
			}
			if asJSON {
				return json.NewEncoder(cmd.OutOrStdout()).Encode(edges)
			}
			return printEdges(cmd.OutOrStdout(), edges)
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

func newEdgeSuspendCommand(socket *string) *cobra.Command {
	var reason string
	cmd := &cobra.Command{
		Use:   "suspend NAME|SPKI|psk:IDENTITY",
		Short: "Cut an edge server off at once",
		Long: `Closes the sessions of an edge server and denies all that it asks, until it is
resumed. NAME is that of the policy; an SPKI fingerprint (skictl spki) stands for
the one certificate, or its renewals with the same key, and psk: with an identity
for the one pre-shared key.`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			var result keyserver.AdminResult
			order := keyserver.AdminOrder{Edge: args[0], Reason: reason}
			if err := newAdminClient(*socket).post(cmd.Context(), keyserver.AdminSuspend, order, &result); err != nil {
				return err
			}
			fmt.Fprintf(cmd.OutOrStdout(), "%s is suspended, %d sessions closed\n", args[0], result.Closed)
			if result.Warning != "" {
				fmt.Fprintln(cmd.ErrOrStderr(), "skictl: warning:", result.Warning)
			}
			return nil
		},
	}
	cmd.Flags().StringVar(&reason, "reason", "", "for the logs and the list (`TEXT`)")
	return cmd
}

func newEdgeResumeCommand(socket *string) *cobra.Command {
	return &cobra.Command{
		Use:   "resume NAME|SPKI|psk:IDENTITY",
		Short: "Let an edge server in again",
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			order := keyserver.AdminOrder{Edge: args[0]}
			if err := newAdminClient(*socket).post(cmd.Context(), keyserver.AdminResume, order, new(keyserver.AdminResult)); err != nil {
				return err
			}
			fmt.Fprintln(cmd.OutOrStdout(), args[0], "is resumed")
			return nil
		},
	}
}

func printEdges(w io.Writer, edges []keyserver.EdgeStatus) error {
	table := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(table, "EDGE\tSESSIONS\tADDRESSES\tREQUESTS\tREFUSED\tLAST REQUEST\tSUSPENDED")
	for _, e := range edges {
		suspended, last := "-", "-"
		if e.Suspended != nil {
			suspended = strings.TrimPrefix(e.Suspended.String(), "suspended ")
		}
		if !e.LastRequest.IsZero() {
			last = e.LastRequest.Format(time.RFC3339)
		}
		fmt.Fprintf(table, "%s\t%d\t%s\t%d\t%d\t%s\t%s\n", e.Name, e.Sessions, addresses(e.Addresses), e.Requests, e.Refused, last, suspended)
	}
	return table.Flush()
}

func addresses(all []netip.Addr) string {
	if len(all) == 0 {
		return "-"
	}
	texts := make([]string, len(all))
	for i, a := range all {
		texts[i] = a.String()
	}
	return strings.Join(texts, ",")
}
