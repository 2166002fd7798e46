package keyserver

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/google/renameio/v2"
)

// state is what the state file holds, in JSON.
type state struct {
	Suspended []Suspension `json:"suspended"`
}

// readState reads a state file. It refuses one that others can write: they
// could resume an edge.
func readState(file string) ([]Suspension, error) {
	data, err := readPrivateFile(file)
	if err != nil {
		return nil, err
	}
	var s state
	d := json.NewDecoder(bytes.NewReader(data))
	d.DisallowUnknownFields()
	if err := d.Decode(&s); err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	if d.More() {
		return nil, fmt.Errorf("%s: it has more than one document", file)
	}
	for i, one := range s.Suspended {
		if one.Edge == "" {
			return nil, fmt.Errorf("%s: suspension %d names no edge", file, i+1)
		}
	}
	return s.Suspended, nil
}

func writeState(file string, all []Suspension) error {
	data, err := json.MarshalIndent(state{Suspended: all}, "", "  ")
	if err != nil {
		return err
	}
	return replaceFile(file, append(data, '\n'))
}

// replaceFile replaces a file of the state directory, which is the directory of
// the state file, with mode 0600. Whatever happens meanwhile, a power failure
// included, the file is the old one or the new one, and when replaceFile has
// returned nil it is the new one.
func replaceFile(file string, data []byte) error {
	if err := renameio.WriteFile(file, data, 0o600, renameio.WithStaticPermissions(0o600), renameio.WithTempDir(filepath.Dir(file))); err != nil {
		return err
	}
	return syncFolder(filepath.Dir(file))
}

// removeUnfinished removes what a process that was killed in replaceFile has left
// behind: another version of the file, with a dot before its name and a number
// behind it.
func removeUnfinished(file string) error {
	entries, err := os.ReadDir(filepath.Dir(file))
	if err != nil {
		return err
	}
	var errs []error
	for _, e := range entries {
		number, found := strings.CutPrefix(e.Name(), "."+filepath.Base(file))
		if found && number != "" && strings.Trim(number, "0123456789") == "" && e.Type().IsRegular() {
			errs = append(errs, os.Remove(filepath.Join(filepath.Dir(file), e.Name())))
		}
	}
	return errors.Join(errs...)
}

// syncFolder makes a rename in the folder last.
func syncFolder(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
