package keyserver

import (
	"bytes"
	"errors"
	"fmt"
	"io"

	"github.com/goccy/go-yaml"
	"github.com/goccy/go-yaml/ast"
	"github.com/goccy/go-yaml/parser"
)

// document is a YAML file that has been decoded, kept to say where in it a
// problem is.
type document struct {
	name string
	file *ast.File
}

// decodeYAML decodes the one document of a file. Keys that v does not have and
// duplicate keys are errors. All errors are of one line, "FILE:LINE:COLUMN:
// problem".
func decodeYAML(name string, data []byte, v any) (*document, error) {
	file, err := parser.ParseBytes(data, 0)
	if err != nil {
		return nil, yamlError(name, err)
	}
	if len(file.Docs) > 1 {
		return nil, fmt.Errorf("%s: it has more than one document", name)
	}
	err = yaml.NewDecoder(bytes.NewReader(data), yaml.Strict()).Decode(v)
	if err != nil && !errors.Is(err, io.EOF) { // which an empty file gives
		return nil, yamlError(name, err)
	}
	return &document{name: name, file: file}, nil
}

// errorAt returns an error at a place given as a YAML path, "$.a.b[0]".
func (d *document) errorAt(path, format string, args ...any) error {
	problem := fmt.Sprintf(format, args...)
	p, err := yaml.PathString(path)
	if err != nil {
		return fmt.Errorf("%s: %s", d.name, problem)
	}
	node, err := p.FilterFile(d.file)
	if err != nil || node.GetToken() == nil {
		return fmt.Errorf("%s: %s", d.name, problem)
	}
	at := node.GetToken().Position
	return fmt.Errorf("%s:%d:%d: %s", d.name, at.Line, at.Column, problem)
}

// yamlError puts the library's error, which shows a part of the file on
// further lines, into one.
func yamlError(name string, err error) error {
	var at yaml.Error
	if !errors.As(err, &at) || at.GetToken() == nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	problem := at.GetMessage()
	var wrongType *yaml.TypeError
	if errors.As(err, &wrongType) {
		problem = fmt.Sprintf("a value of type %s cannot stand here, which takes %s", wrongType.SrcType, wrongType.DstType)
	}
	p := at.GetToken().Position
	return fmt.Errorf("%s:%d:%d: %s", name, p.Line, p.Column, problem)
}
