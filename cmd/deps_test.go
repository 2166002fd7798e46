package cmd_test

import (
	"debug/buildinfo"
	"debug/elf"
	"go/parser"
	"go/token"
	"os"
	"os/exec"
	"path/filepath"
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
	"ski/tlsprf":           {},
	"ski":                  {"github.com/fxamacker/cbor/v2"},
	"ski/internal/pace":    {},
	"ski/internal/turn":    {},
	"ski/internal/source":  {},
	"ski/internal/backoff": {"ski", "github.com/fxamacker/cbor/v2"},
	"ski/skicoap":          {"ski", "ski/internal/pace", "ski/internal/backoff", "ski/internal/source", "ski/internal/turn", "github.com/fxamacker/cbor/v2", "github.com/plgd-dev/go-coap/v3", "github.com/pion/"},
	"ski/skihttp":          {"ski", "ski/internal/pace", "ski/internal/backoff", "ski/internal/source", "ski/internal/turn", "github.com/fxamacker/cbor/v2"},
	"ski/skitest":          {"ski", "github.com/fxamacker/cbor/v2"},
	"keyserver": {"ski", "ski/tlsprf", "internal/guarded", "internal/certuse", "github.com/fxamacker/cbor/v2", "github.com/goccy/go-yaml", "github.com/prometheus/",
		"github.com/fsnotify/fsnotify", "github.com/google/renameio/v2"},
	"hsm": {"ski", "internal/guarded", "github.com/fxamacker/cbor/v2", "github.com/miekg/pkcs11"},
	"edgeserver": {"ski", "ski/tlsprf", "edgeserver/internal/split", "internal/certuse", "internal/logqueue", "github.com/fxamacker/cbor/v2", "github.com/goccy/go-yaml",
		"github.com/pion/dtls/v3/pkg/crypto/ccm", "github.com/pires/go-proxyproto", "github.com/prometheus/"},
	"internal/guarded":          {},
	"internal/certuse":          {},
	"internal/netlab":           {},
	"internal/logqueue":         {"github.com/prometheus/"},
	"edgeserver/internal/split": {"ski", "ski/tlsprf", "github.com/fxamacker/cbor/v2", "github.com/pion/dtls/v3/pkg/crypto/ccm"},
}

// support is what the libraries themselves need.
var support = []string{"golang.org/x/", "go.uber.org/atomic", "github.com/x448/float16", "github.com/dsnet/golib",
	"github.com/beorn7/perks", "github.com/cespare/xxhash", "github.com/munnerz/goautoneg", "google.golang.org/protobuf"}

func TestEachPackageImportsOnlyWhatItMay(t *testing.T) {
	for pkg, allowed := range mayImport {
		out, err := exec.Command("go", "list", "-deps", "-f", "{{if not .Standard}}{{.ImportPath}}{{end}}", module+pkg).Output()
		require.NoError(t, err)
		for dep := range strings.FieldsSeq(string(out)) {
			assert.True(t, isAllowed(pkg, dep, allowed), "%s must not import %s", pkg, dep)
		}
	}
}

// An edge server that asks over a network has nothing in it that private keys
// need: no key server, no PKCS #11, no C.
func TestTheEdgeServerHasAKeyServerInItOnlyWhenBuiltSo(t *testing.T) {
	needed := []string{module + "keyserver", module + "hsm", module + "cmd/internal/keyparts", "github.com/miekg/pkcs11"}
	deps := func(flags ...string) []string {
		args := append([]string{"list", "-deps", "-f", "{{if not .Standard}}{{.ImportPath}}{{if .CgoFiles}} C{{end}}{{end}}"}, flags...)
		cmd := exec.Command("go", append(args, module+"cmd/ski-edgeserver")...)
		cmd.Env = append(os.Environ(), "CGO_ENABLED=1")
		out, err := cmd.Output()
		require.NoError(t, err)
		return strings.Fields(string(out))
	}
	without, with := deps(), deps("-tags", "embedded")
	for _, pkg := range needed {
		assert.NotContains(t, without, pkg)
		assert.Contains(t, with, pkg)
	}
	assert.NotContains(t, without, "C")
	assert.Contains(t, with, "C")
}

// The program itself, as it goes to small machines.
func TestTheEdgeServersProgramHasNothingOfAKeyServerInIt(t *testing.T) {
	contents := func(program string) (symbols, modules string) {
		f, err := elf.Open(filepath.Join(bin, program))
		require.NoError(t, err)
		defer f.Close()
		all, err := f.Symbols()
		require.NoError(t, err)
		for _, s := range all {
			symbols += s.Name + "\n"
		}
		info, err := buildinfo.ReadFile(filepath.Join(bin, program))
		require.NoError(t, err)
		for _, m := range info.Deps {
			modules += m.Path + "\n"
		}
		return symbols, modules
	}
	symbols, modules := contents("ski-edgeserver")
	withSymbols, withModules := contents("ski-edgeserver-embedded")
	for _, of := range []string{module + "keyserver.", module + "hsm.", module + "cmd/internal/keyparts.", "github.com/miekg/pkcs11."} {
		assert.False(t, strings.Contains(symbols, of), of)
		assert.True(t, strings.Contains(withSymbols, of), of)
	}
	assert.NotContains(t, modules, "github.com/miekg/pkcs11")
	assert.Contains(t, withModules, "github.com/miekg/pkcs11")
}

// The rest of a server does not depend on who counts.
func TestOnlyMetricsImportPrometheus(t *testing.T) {
	for _, dir := range []string{"keyserver", "edgeserver"} {
		files, err := filepath.Glob("../" + dir + "/*.go")
		require.NoError(t, err)
		require.NotEmpty(t, files)
		for _, file := range files {
			f, err := parser.ParseFile(token.NewFileSet(), file, nil, parser.ImportsOnly)
			require.NoError(t, err)
			for _, i := range f.Imports {
				if strings.Contains(i.Path.Value, "prometheus") {
					assert.Contains(t, []string{"metrics.go", "metrics_token.go", "metrics_test.go", "metrics_token_test.go"}, filepath.Base(file))
				}
			}
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
