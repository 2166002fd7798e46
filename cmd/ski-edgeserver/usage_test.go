package main

import (
	"maps"
	"os"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/tlsski/tlsski/edgeserver"
)

// settings counts in how many places of a configuration file there is a setting
// of each name.
func settings(t reflect.Type, seen map[reflect.Type]bool, names map[string]int) map[string]int {
	for t.Kind() == reflect.Pointer || t.Kind() == reflect.Slice || t.Kind() == reflect.Map {
		t = t.Elem()
	}
	if t.Kind() != reflect.Struct || seen[t] {
		return names
	}
	seen[t] = true
	for i := range t.NumField() {
		field := t.Field(i)
		if name := field.Tag.Get("yaml"); name != "" && name != "-" {
			names[name]++
			settings(field.Type, seen, names)
		}
	}
	return names
}

func TestEachSettingIsDescribed(t *testing.T) {
	operations, err := os.ReadFile("../../docs/operations.md")
	require.NoError(t, err)
	_, edge, found := strings.Cut(string(operations), "\n## The edge server\n")
	require.True(t, found)
	names := settings(reflect.TypeFor[edgeserver.Config](), map[reflect.Type]bool{}, map[string]int{})
	require.Contains(t, names, "forward_chain")
	var missing []string
	for _, name := range slices.Sorted(maps.Keys(names)) {
		key := regexp.MustCompile(`(^|[^a-z_])` + name + `(:|['\x60])`)
		if len(key.FindAllString(usage, -1)) < names[name] {
			missing = append(missing, "-h: "+name)
		}
		if len(key.FindAllString(edge, -1)) < names[name] {
			missing = append(missing, "docs/operations.md: "+name)
		}
	}
	assert.Empty(t, missing)
}
