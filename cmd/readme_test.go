package cmd_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestTheProgramInTheReadmeCompiles(t *testing.T) {
	readme, err := os.ReadFile("../README.md")
	require.NoError(t, err)
	block := regexp.MustCompile("(?s)```go\n(.*?)```").FindSubmatch(readme)
	require.NotNil(t, block, "README.md has no Go program")
	dir := filepath.Join(t.TempDir(), "readme")
	require.NoError(t, os.MkdirAll(dir, 0o755))
	file := filepath.Join(dir, "main.go")
	require.NoError(t, os.WriteFile(file, append(block[1], "\nfunc main() { _ = serve }\n"...), 0o644))
	out, err := exec.Command("go", "vet", file).CombinedOutput()
	require.NoError(t, err, string(out))
}
