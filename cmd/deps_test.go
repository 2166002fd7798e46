package cmd_test

import (
	"os/exec"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

const module = "github.com/tlsski/tlsski/"

// mayImport says which of the module's packages and which other modules each
// package may reach, directly or through others. Only the commands join
// bindings, key stores and servers.
var mayImport = map[string][]string{
	"ski/tlsprf":  {},
	"ski":         {"github.com/fxamacker/cbor/v2"},
	"ski/skicoap": {"ski", "github.com/fxamacker/cbor/v2", "github.com/plgd-dev/go-coap/v3", "github.com/pion/"},
	"keyserver":   {"ski", "ski/tlsprf", "github.com/fxamacker/cbor/v2", "github.com/goccy/go-yaml"},
	"edgeserver":  {"ski", "github.com/fxamacker/cbor/v2", "github.com/goccy/go-yaml"},
}

// support is what the libraries themselves need.
var support = []string{"golang.org/x/", "go.uber.org/atomic", "github.com/x448/float16", "github.com/dsnet/golib"}

func TestEachPackageImportsOnlyWhatItMay(t *testing.T) {
	for pkg, allowed := range mayImport {
		out, err := exec.Command("go", "list", "-deps", "-f", "{{if not .Standard}}{{.ImportPath}}{{end}}", module+pkg).Output()
		require.NoError(t, err)
		for dep := range strings.FieldsSeq(string(out)) {
			assert.True(t, isAllowed(pkg, dep, allowed), "%s must not import %s", pkg, dep)
		}
	}
}

func isAllowed(pkg, dep string, allowed []string) bool {
	if local, ok := strings.CutPrefix(dep, module); ok {
		if local == pkg {
			return true
		}
		for _, a := range allowed {
			if local == a {
				return true
			}
		}
		return false
	}
	if pkg == "ski/tlsprf" {
		return false // the standard library only
	}
	for _, a := range append(support, allowed...) {
		if strings.HasPrefix(dep, a) {
			return true
		}
	}
	return false
}
