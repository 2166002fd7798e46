package main

import (
	"crypto"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"os"

	"github.com/spf13/cobra"

	"github.com/tlsski/tlsski/ski"
)

func newSPKICommand() *cobra.Command {
	return &cobra.Command{
		Use:   "spki FILE...",
		Short: "Print the SPKI fingerprints of certificates and keys",
		Long: `Prints the SHA-256 fingerprint of the public key (RFC 7469, Section 2.4) of each
certificate, public key and private key in the PEM files. It is the name by which
the key is asked for, and by which a policy can name an edge server.`,
		Args: cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, files []string) error {
			for _, file := range files {
				all, err := fingerprints(file)
				if err != nil {
					return err
				}
				for _, f := range all {
					fmt.Fprintf(cmd.OutOrStdout(), "%s  %s  %s\n", f.id, file, f.what)
				}
			}
			return nil
		},
	}
}

type fingerprint struct {
	id   ski.KeyID
	what string // "certificate CN=www.example.com"
}

// fingerprints returns those of everything in a PEM file that has a public key,
// at least one.
func fingerprints(file string) ([]fingerprint, error) {
	data, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	var all []fingerprint
	for block, rest := pem.Decode(data); block != nil; block, rest = pem.Decode(rest) {
		f, err := blockFingerprint(block)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", file, err)
		}
		if f != nil {
			all = append(all, *f)
		}
	}
	if len(all) == 0 {
		return nil, fmt.Errorf("%s has no certificate and no key in PEM form", file)
	}
	return all, nil
}

// blockFingerprint returns nil for a block without a public key.
func blockFingerprint(block *pem.Block) (*fingerprint, error) {
	public, what, err := blockPublicKey(block)
	if public == nil || err != nil {
		return nil, err
	}
	id, err := ski.PublicKeyID(public)
	if err != nil {
		return nil, err
	}
	return &fingerprint{id, what}, nil
}

// publicKeys returns the public key of everything in a PEM file that has one,
// at least one.
func publicKeys(file string) ([]crypto.PublicKey, error) {
	data, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	var all []crypto.PublicKey
	for block, rest := pem.Decode(data); block != nil; block, rest = pem.Decode(rest) {
		public, _, err := blockPublicKey(block)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", file, err)
		}
		if public != nil {
			all = append(all, public)
		}
	}
	if len(all) == 0 {
		return nil, fmt.Errorf("%s has no certificate and no key in PEM form", file)
	}
	return all, nil
}

// blockPublicKey returns the public key of a block and what the block is. It is
// nil for a block without one.
func blockPublicKey(block *pem.Block) (public crypto.PublicKey, what string, err error) {
	var private any
	what = "public key"
	switch block.Type {
	case "CERTIFICATE":
		cert, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, "", err
		}
		return cert.PublicKey, "certificate " + cert.Subject.String(), nil
	case "PUBLIC KEY":
		public, err = x509.ParsePKIXPublicKey(block.Bytes)
	case "RSA PUBLIC KEY":
		public, err = x509.ParsePKCS1PublicKey(block.Bytes)
	case "PRIVATE KEY":
		private, err = x509.ParsePKCS8PrivateKey(block.Bytes)
	case "RSA PRIVATE KEY":
		private, err = x509.ParsePKCS1PrivateKey(block.Bytes)
	case "EC PRIVATE KEY":
		private, err = x509.ParseECPrivateKey(block.Bytes)
	case "ENCRYPTED PRIVATE KEY":
		return nil, "", errors.New("the private key is encrypted")
	default: // EC PARAMETERS, DH PARAMETERS
		return nil, "", nil
	}
	if err != nil {
		return nil, "", err
	}
	if private != nil {
		holder, ok := private.(interface{ Public() crypto.PublicKey })
		if !ok {
			return nil, "", fmt.Errorf("a private key of type %T has no public one", private)
		}
		what, public = "private key", holder.Public()
	}
	return public, what, nil
}
