package keyserver

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
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

// writeState replaces a state file. Whatever happens meanwhile, a power failure
// included, the file is the old one or the new one.
func writeState(file string, all []Suspension) error {
	data, err := json.MarshalIndent(state{Suspended: all}, "", "  ")
	if err != nil {
		return err
	}
	dir := filepath.Dir(file)
	f, err := os.CreateTemp(dir, "."+filepath.Base(file)+"-*") // mode 0600
	if err != nil {
		return err
	}
	_, err = f.Write(append(data, '\n'))
	err = errors.Join(err, f.Sync(), f.Close())
	if err == nil {
		err = os.Rename(f.Name(), file)
	}
	if err != nil {
		return errors.Join(err, os.Remove(f.Name()))
	}
	return syncFolder(dir)
}

// syncFolder makes a rename in the folder last.
func syncFolder(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
