package main

import (
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"os"

	"github.com/spf13/cobra"

	"github.com/tlsski/tlsski/ski"
)

func newPSKCommand() *cobra.Command {
	psk := &cobra.Command{
		Use:   "psk",
		Short: "Make pre-shared keys for the SKI channel",
		Long: `Edge servers that can have no certificate can have a pre-shared key: 'psk generate'
makes one.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	psk.AddCommand(newPSKGenerateCommand())
	return psk
}

func newPSKGenerateCommand() *cobra.Command {
	var out string
	var length int
	cmd := &cobra.Command{
		Use:   "generate IDENTITY",
		Short: "Make a pre-shared key",
		Long: `Makes a random key for an identity and prints it as the line IDENTITY:HEX that the
key server's and the edge server's 'psk' files are made of. An identity is 1 to 128
characters of printable ASCII without spaces.

With --out it adds the line to a file instead, which it makes readable by its owner
alone. A file that has a key for the identity is left as it is.`,
		Example: `  skictl psk generate edge-2 --out edge.psk      # then the same line into the key server's file:
  cat edge.psk >> /etc/ski-keyserver/edges.psk`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := ski.CheckPSKIdentity(args[0]); err != nil {
				return err
			}
			if length < ski.MinPSKLen || length > ski.MaxPSKLen {
				return fmt.Errorf("--length is between %d and %d", ski.MinPSKLen, ski.MaxPSKLen)
			}
			key := make([]byte, length)
			defer clear(key)
			rand.Read(key)
			line := fmt.Appendf(nil, "%s:%s\n", args[0], hex.EncodeToString(key))
			defer clear(line)
			if out == "" {
				_, err := cmd.OutOrStdout().Write(line)
				return err
			}
			return addPSK(out, line)
		},
	}
	cmd.Flags().StringVar(&out, "out", "", "add the line to a `FILE` (default: print it)")
	cmd.Flags().IntVar(&length, "length", 32, "the key's length in bytes (`N`), 16 to 64")
	return cmd
}

// addPSK replaces the file by one with the line at its end: a key server that
// reads it meanwhile finds the one or the other, whole.
func addPSK(file string, line []byte) error {
	before, err := os.ReadFile(file)
	switch {
	case os.IsNotExist(err):
	case err != nil:
		return err
	default:
		defer clear(before)
		if err := checkPrivate(file); err != nil {
			return err
		}
		if len(before) > 0 && before[len(before)-1] != '\n' {
			before = append(before, '\n')
		}
	}
	all := append(before, line...)
	defer clear(all)
	if _, err := ski.ParsePSKs(file, all); err != nil {
		return err
	}
	return replaceFile(file, all, 0o600)
}
