package main

import (
	"crypto/ed25519"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/spf13/cobra"

	"github.com/tlsski/tlsski/keyserver"
	"github.com/tlsski/tlsski/ski"
)

func newAuditCommand() *cobra.Command {
	audit := &cobra.Command{
		Use:   "audit",
		Short: "Check a key server's audit log",
		Long: `The lines of an audit log are chained by their hashes, and the key server signs
the chain from time to time: 'audit keygen' makes the key for that, 'audit
verify' finds lines that were removed, changed, moved or repeated. A key server
that does not find its log as it left it says so, and may not start: 'audit
accept' says that somebody has seen that. 'audit witness' keeps elsewhere what
proves how far the log went.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	audit.AddCommand(newAuditKeygenCommand(), newAuditVerifyCommand(), newAuditAcceptCommand(), newAuditWitnessCommand())
	return audit
}

func newAuditKeygenCommand() *cobra.Command {
	var force bool
	cmd := &cobra.Command{
		Use:   "keygen PREFIX",
		Short: "Make the key that signs an audit log",
		Long: `Writes PREFIX.key, an Ed25519 private key for the key server's audit.key, and
PREFIX.pub, its public key for 'audit verify --key'. Keep PREFIX.pub away from the
key server: who could replace it could replace the log.`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return makeAuditKey(cmd.OutOrStdout(), args[0], force)
		},
	}
	cmd.Flags().BoolVar(&force, "force", false, "replace the files if they exist")
	return cmd
}

func makeAuditKey(out io.Writer, prefix string, force bool) error {
	for _, file := range []string{prefix + ".key", prefix + ".pub"} {
		if _, err := os.Lstat(file); err == nil && !force {
			return fmt.Errorf("%s exists (use --force to replace it)", file)
		}
	}
	public, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return err
	}
	der, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		return err
	}
	keyPEM := pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})
	defer clear(keyPEM)
	if err := replaceFile(prefix+".key", keyPEM, 0o600); err != nil {
		return err
	}
	if der, err = x509.MarshalPKIXPublicKey(public); err != nil {
		return err
	}
	if err := replaceFile(prefix+".pub", pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der}), 0o644); err != nil {
		return err
	}
	id, err := ski.PublicKeyID(public)
	if err != nil {
		return err
	}
	fmt.Fprintf(out, "%s.pub: Ed25519\nspki: %s\n", prefix, id)
	return nil
}

func newAuditVerifyCommand() *cobra.Command {
	var o auditVerify
	cmd := &cobra.Command{
		Use:   "verify FILE...",
		Short: "Find lines of an audit log that were removed, changed or moved",
		Long: `Checks the files of one audit log, the oldest first; "-" is standard input. Each
fault is a line on standard output that begins with FILE:LINE. The exit status is
1 if there is one, or if a file cannot be read.

Without --key only the chain is checked, which anyone who can write to the file
can make anew. With it, all that is above the last signed checkpoint is as the
key server wrote it.

A start of the key server that did not find its log as it was left is a fault, and a
note once somebody has accepted it ('audit accept'). What was written before the
log had a key, lines that a kill has left unsigned, and a clock that was set back
are notes.

With --witness, the log is compared with what 'audit witness' or the key server's
audit.witness has kept elsewhere: that finds a log that was replaced together with
all else on the key server's machine, or made anew with its key.

The last line of the output names the end of the log. Keep it: with --expect, a
later check finds out whether that line is still there.`,
		Example: `  skictl audit verify --key audit.pub audit.log.* audit.log
  skictl audit verify --key audit.pub --running audit.log
  skictl audit verify --key audit.pub --witness ks-1.witness audit.log.* audit.log`,
		Args: cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, files []string) error { return o.run(cmd, files) },
	}
	f := cmd.Flags()
	f.StringArrayVar(&o.keys, "key", nil, "`FILE` with the public key of the checkpoints, PEM; repeat it for a log that has had several")
	f.BoolVar(&o.running, "running", false, "the key server still writes to the log, or was killed: it has no proper end")
	f.StringVar(&o.expect, "expect", "", "`SEQUENCE:CHAIN` that an earlier check printed and that must be in the log")
	f.StringVar(&o.witness, "witness", "", "`FILE` of a witness that the log is compared with; it needs --key")
	return cmd
}

type auditVerify struct {
	keys    []string
	witness string
	running bool
	expect  string
}

func (o *auditVerify) run(cmd *cobra.Command, files []string) error {
	v := keyserver.AuditVerifier{Expect: o.expect}
	for _, file := range o.keys {
		key, err := readAuditPublicKey(file)
		if err != nil {
			return err
		}
		v.Keys = append(v.Keys, key)
	}
	if o.witness != "" {
		if len(v.Keys) == 0 {
			return errors.New("--witness needs --key: what is not signed proves nothing")
		}
		f, err := os.Open(o.witness)
		if err != nil {
			return err
		}
		defer f.Close()
		v.Witness(o.witness, f)
	}
	for _, file := range files {
		if err := verifyFile(&v, file, cmd.InOrStdin()); err != nil {
			return err
		}
	}
	v.End(o.running)
	out := cmd.OutOrStdout()
	for _, f := range v.Faults {
		fmt.Fprintln(out, f)
	}
	for _, n := range v.Notes {
		fmt.Fprintf(out, "note: %s\n", n)
	}
	if len(v.Faults) > 0 {
		return exitStatus(1)
	}
	fmt.Fprintf(out, "%d lines, %d of them requests: nothing is missing or changed\nend: %s\n", v.Lines, v.Requests, v.Tip())
	return nil
}

func verifyFile(v *keyserver.AuditVerifier, file string, stdin io.Reader) error {
	if file == "-" {
		return v.File("standard input", stdin)
	}
	f, err := os.Open(file)
	if err != nil {
		return err
	}
	defer f.Close()
	return v.File(file, f)
}

func readAuditPublicKey(file string) (ed25519.PublicKey, error) {
	data, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	block, _ := pem.Decode(data)
	if block == nil || block.Type != "PUBLIC KEY" {
		return nil, fmt.Errorf("%s has no public key in PEM form", file)
	}
	public, err := x509.ParsePKIXPublicKey(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	key, ok := public.(ed25519.PublicKey)
	if !ok {
		return nil, errors.New(file + ": it is not an Ed25519 key")
	}
	return key, nil
}
