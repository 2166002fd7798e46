package main

import (
	"maps"
	"os"
	"reflect"
	"regexp"
	"slices"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/tlsski/tlsski/keyserver"
)

// settings counts in how many places of a configuration file there is a setting
// of each name.
func settings(t reflect.Type, names map[string]int) map[string]int {
	for t.Kind() == reflect.Pointer || t.Kind() == reflect.Slice {
		t = t.Elem()
	}
	if t.Kind() != reflect.Struct {
		return names
	}
	for i := range t.NumField() {
		field := t.Field(i)
		if name := field.Tag.Get("yaml"); name != "" && name != "-" {
			names[name]++
			settings(field.Type, names)
		}
	}
	return names
}

func TestEachSettingIsDescribed(t *testing.T) {
	names := settings(reflect.TypeFor[keyserver.Config](), map[string]int{})
	require.Contains(t, names, "reserve_mib")
	require.Contains(t, names, "require_generated")
	var documents []byte
	for _, file := range []string{"operations.md", "hsm.md", "audit.md"} {
		text, err := os.ReadFile("../../docs/" + file)
		require.NoError(t, err)
		documents = append(documents, text...)
	}
	var missing []string
	for _, name := range slices.Sorted(maps.Keys(names)) {
		if len(regexp.MustCompile(`(^|[^a-z_])`+name+`:`).FindAllString(usage, -1)) < names[name] {
			missing = append(missing, "-h: "+name)
		}
		if !regexp.MustCompile("(^|[^a-z_])" + name + "(:|`)").Match(documents) {
			missing = append(missing, "docs: "+name)
		}
	}
	assert.Empty(t, missing)
}
