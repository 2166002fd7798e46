// The skictl command makes the certificates of the SKI channel, asks key servers
// by hand, and runs the whole for development.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"runtime/debug"
	"syscall"

	"github.com/spf13/cobra"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	status := run(ctx, os.Args[1:], os.Stdin, os.Stdout, os.Stderr)
	stop()
	os.Exit(status)
}

// run is main with its surroundings as arguments. It returns the exit status.
func run(ctx context.Context, args []string, stdin io.Reader, stdout, stderr io.Writer) int {
	root := newRootCommand()
	root.SetArgs(args)
	root.SetIn(stdin)
	root.SetOut(stdout)
	root.SetErr(stderr)
	err := root.ExecuteContext(ctx)
	var status exitStatus
	switch {
	case err == nil:
		return 0
	case errors.As(err, &status):
		return int(status)
	}
	fmt.Fprintf(stderr, "skictl: %v\n", err)
	return 1
}

// exitStatus is an error that has been reported already: it only ends the
// program with a status other than 1.
type exitStatus int

func (s exitStatus) Error() string { return fmt.Sprintf("exit status %d", int(s)) }

func newRootCommand() *cobra.Command {
	root := &cobra.Command{
		Use:   "skictl",
		Short: "Makes certificates for the SKI channel and asks key servers",
		Long: `skictl makes the certificates by which key servers and edge servers know each
other, sets both up for a site, asks key servers by hand, and runs both servers
for development.`,
		SilenceUsage:       true,
		SilenceErrors:      true,
		DisableSuggestions: true, // They would make an error more than one line.
		CompletionOptions:  cobra.CompletionOptions{DisableDefaultCmd: true},
	}
	root.AddCommand(
		newAuditCommand(),
		newBenchCommand(),
		newConformanceCommand(),
		newDemoCommand(),
		newDevCommand(),
		newEdgeCommand(),
		newKeyCommand(),
		newPKICommand(),
		newPSKCommand(),
		newRequestCommand(),
		newSetupCommand(),
		newSPKICommand(),
		newTicketsCommand(),
		newVersionCommand(),
	)
	return root
}

func newVersionCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "version",
		Short: "Print the version",
		Args:  cobra.NoArgs,
		Run: func(cmd *cobra.Command, _ []string) {
			fmt.Fprintln(cmd.OutOrStdout(), "skictl", buildVersion())
		},
	}
}

func buildVersion() string {
	if info, ok := debug.ReadBuildInfo(); ok && info.Main.Version != "" {
		return info.Main.Version
	}
	return "(devel)"
}
