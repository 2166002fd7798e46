package cmd_test

import (
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// Every test that docs/security.md names for a claim exists, and each claim of
// the first table names one.
func TestTheTestsThatTheSecurityDocumentNamesExist(t *testing.T) {
	exists := map[string]bool{}
	declaration := regexp.MustCompile(`(?m)^func (Test\w+|Fuzz\w+)\(\w+ \*testing\.[TF]\)`)
	require.NoError(t, filepath.WalkDir("..", func(path string, _ fs.DirEntry, err error) error {
		if err != nil || !strings.HasSuffix(path, "_test.go") {
			return err
		}
		source, err := os.ReadFile(path)
		for _, m := range declaration.FindAllSubmatch(source, -1) {
			exists[string(m[1])] = true
		}
		return err
	}))
	document, err := os.ReadFile("../docs/security.md")
	require.NoError(t, err)
	named := regexp.MustCompile("`(Test\\w+|Fuzz\\w+)`").FindAllSubmatch(document, -1)
	require.NotEmpty(t, named)
	for _, m := range named {
		assert.True(t, exists[string(m[1])], "there is no %s", m[1])
	}

	_, claims, found := strings.Cut(string(document), "\n## Who can do what\n")
	require.True(t, found)
	claims, _, found = strings.Cut(claims, "\n## ")
	require.True(t, found)
	rows := 0
	for row := range strings.Lines(claims) {
		if cells := strings.Split(row, " | "); len(cells) == 4 && !strings.HasPrefix(row, "| who |") {
			rows++
			assert.Contains(t, cells[3], "`Test", row)
		} else {
			assert.Less(t, len(cells), 5, row)
		}
	}
	assert.Greater(t, rows, 50)
}
