package keyparts

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/rsa"
	"fmt"
	"io"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/tlsski/tlsski/keyserver"
	"github.com/tlsski/tlsski/ski"
)

// Describe gives a row for each token.
func (k *Keys) Describe(row func(cells ...string)) {
	for _, t := range k.Tokens() {
		row("token", fmt.Sprintf("%s, serial %s, %d sessions, %s", t.Token, t.Serial, t.Sessions, t.Module))
	}
}

// PrintRights prints a table of who may use which key, and how.
func PrintRights(w io.Writer, rights []keyserver.Right, keys keyserver.KeyStore) {
	table := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	row := func(cells ...string) { fmt.Fprintln(table, strings.Join(cells, "\t")) }
	row("EDGE", "KEY", "TYPE", "METHODS", "PROTOCOLS", "ALGORITHMS", "GROUPS", "SERVER NAMES", "NETWORKS", "VALID", "LEGACY")
	for _, r := range rights {
		_, pub, _ := keys.Lookup(r.Key)
		row(r.Edge, r.KeyName, keyType(pub), list(r.Methods, ""), list(r.Protocols, ""), algorithms(r), list(r.Groups, "-"),
			list(r.ServerNames, "any"), list(texts(r.Networks), "any"), validity(r), list(r.Legacy, "-"))
	}
	table.Flush()
	if len(rights) == 0 {
		fmt.Fprintln(w, "the policy grants nothing")
	}
}

// PrintTicketRights prints a table of who gets which ticket keys; nothing if
// nobody does.
func PrintTicketRights(w io.Writer, rights []keyserver.TicketRight) {
	if len(rights) == 0 {
		return
	}
	fmt.Fprintln(w)
	table := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(table, "EDGE\tTICKET SITE\tROTATE\tLIFETIME")
	for _, r := range rights {
		fmt.Fprintf(table, "%s\t%s\t%v\t%v\n", r.Edge, r.Site, r.Rotate, r.Lifetime)
	}
	table.Flush()
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
