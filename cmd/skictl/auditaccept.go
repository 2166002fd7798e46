package main

import (
	"fmt"
	"os"
	"os/user"

	"github.com/spf13/cobra"

	"github.com/tlsski/tlsski/keyserver"
)

func newAuditAcceptCommand() *cobra.Command {
	var config, by, reason string
	cmd := &cobra.Command{
		Use:   "accept --config FILE --reason TEXT",
		Short: "Say that you have seen why an audit log is not as it was left",
		Long: `A key server compares its audit log, at the start, with the tip that it keeps
apart from it, and with which edges are suspended. What differs is a discontinuity:
with 'audit.required' the key server does not start, otherwise it records it. Before
you accept one, look for the cause: a backup, a disk that is not mounted, or somebody
who hides something.

accept prints the discontinuities that are there and writes, signed by the audit log's
key, who has seen them, when and why, into the state directory. The key server puts
that into the log: at the next start, or within a second if it runs. 'audit verify'
then reports them as notes. Edges that the log says are suspended stay suspended:
'edge resume' lets them in again.

Run it as the key server's user, on its machine.`,
		Example: `  sudo -u ski-keyserver skictl audit accept --config /etc/ski-keyserver/keyserver.yaml \
      --reason 'the log was on the disk that broke'`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			o, err := auditOptions(config)
			if err != nil {
				return err
			}
			found, err := keyserver.AcceptAudit(o, by, reason)
			if err != nil {
				return err
			}
			for _, one := range found {
				fmt.Fprintln(cmd.OutOrStdout(), one)
			}
			fmt.Fprintf(cmd.OutOrStdout(), "accepted by %s\n", by)
			return nil
		},
	}
	f := cmd.Flags()
	f.StringVar(&config, "config", "", "the key server's configuration (`FILE`)")
	f.StringVar(&by, "by", operator(), "who accepts it (`NAME`)")
	f.StringVar(&reason, "reason", "", "what the cause was (`TEXT`)")
	_ = cmd.MarkFlagRequired("config")
	_ = cmd.MarkFlagRequired("reason")
	return cmd
}

// auditOptions reads what a configuration says of the audit log, that of a key
// server or of one that is embedded.
func auditOptions(file string) (keyserver.AuditOptions, error) {
	cfg, err := keyserver.LoadConfig(file)
	if err != nil {
		embedded, errEmbedded := keyserver.LoadEmbeddedConfig(file)
		if errEmbedded != nil {
			return keyserver.AuditOptions{}, err
		}
		cfg = embedded
	}
	o, err := cfg.AuditOptions()
	if err != nil {
		return o, err
	}
	if cfg.Certificate != "" { // An embedded key server keeps no suspensions.
		o.Suspensions, err = keyserver.OpenSuspensions(cfg.State)
	}
	return o, err
}

// operator returns the name of who runs the command, through sudo too.
func operator() string {
	if name := os.Getenv("SUDO_USER"); name != "" {
		return name
	}
	if u, err := user.Current(); err == nil {
		return u.Username
	}
	return ""
}
