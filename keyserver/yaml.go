package keyserver

import (
	"bytes"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strings"

	"github.com/goccy/go-yaml"
	"github.com/goccy/go-yaml/ast"
	"github.com/goccy/go-yaml/parser"
	"github.com/goccy/go-yaml/token"
)

// document is a YAML file that has been decoded, kept to say where in it a
// problem is.
type document struct {
	name string
	file *ast.File
}

// decodeYAML decodes the one document of a file. Errors are keys that v does
// not have, duplicate keys, and keys without a value. All errors are of one
// line, "FILE:LINE:COLUMN: problem".
func decodeYAML(name string, data []byte, v any) (*document, error) {
	data = bytes.TrimPrefix(data, []byte("\ufeff")) // the byte order mark some editors write
	d := &document{name: name}
	file, err := parser.ParseBytes(data, 0)
	if err != nil {
		return nil, d.explain(err)
	}
	d.file = file
	switch {
	case len(file.Docs) > 1:
		return nil, fmt.Errorf("%s: there is more than one document", d.at(file.Docs[1].Start))
	case d.body() == nil:
		return nil, fmt.Errorf("%s:1:1: the file is empty", name)
	}
	if err := d.checkNodes(d.body()); err != nil {
		return nil, err
	}
	if err := yaml.NewDecoder(bytes.NewReader(data), yaml.Strict()).Decode(v); err != nil {
		return nil, d.explain(err)
	}
	return d, nil
}

func (d *document) body() ast.Node {
	if len(d.file.Docs) == 0 {
		return nil
	}
	return d.file.Docs[0].Body
}

// checkNodes refuses what the decoder would take for a key that is not there:
// one that has no value, because the lines below it are commented out, say, or
// because the value is an alias of such a one. Where a key limits a right, its
// default is that there is no limit. A whole section, at the top, can be an
// empty list.
func (d *document) checkNodes(root ast.Node) error {
	var problem error
	top, _ := root.(*ast.MappingNode)
	section := func(n *ast.MappingValueNode) bool {
		_, list := n.Value.(*ast.SequenceNode)
		return list && top != nil && slices.Contains(top.Values, n)
	}
	ast.Walk(visitor(func(n ast.Node) bool {
		if problem != nil {
			return false
		}
		switch n := n.(type) {
		case *ast.AnchorNode, *ast.AliasNode, *ast.MergeKeyNode:
			problem = fmt.Errorf("%s: anchors and aliases have no place here", d.at(n.GetToken()))
		case *ast.MappingValueNode:
			if isEmpty(n.Value) && !section(n) {
				problem = fmt.Errorf("%s: %q has no value: write one, or leave the key out", d.at(firstToken(n)), n.Key.GetToken().Value)
			}
		case *ast.SequenceNode:
			for _, v := range n.Values {
				if isEmpty(v) {
					problem = fmt.Errorf("%s: an entry of the list has no value", d.at(firstToken(n)))
				}
			}
		}
		return problem == nil
	}), root)
	return problem
}

type visitor func(ast.Node) bool

func (v visitor) Visit(n ast.Node) ast.Visitor {
	if v(n) {
		return v
	}
	return nil
}

func isEmpty(n ast.Node) bool {
	switch n := n.(type) {
	case nil, *ast.NullNode:
		return true
	case *ast.SequenceNode:
		return len(n.Values) == 0
	case *ast.MappingNode:
		return len(n.Values) == 0
	case *ast.TagNode:
		return isEmpty(n.Value)
	}
	return false
}

// checkWhole refuses a fraction in fields that take a whole number: the decoder
// would cut it off.
func (d *document) checkWhole(paths ...string) error {
	for _, path := range paths {
		if _, fraction := d.find(path).(*ast.FloatNode); fraction {
			return d.errorAt(path, "it is not a whole number")
		}
	}
	return nil
}

// errorAt returns an error at a place given as a YAML path, "$.a.b[0]", or at
// the nearest around it where the file does not have it.
func (d *document) errorAt(path, format string, args ...any) error {
	node := d.find(path)
	for node == nil && strings.ContainsAny(path, ".[") {
		path = path[:strings.LastIndexAny(path, ".[")]
		node = d.find(path)
	}
	if node == nil {
		node = d.body()
	}
	return fmt.Errorf("%s: %s", d.at(firstToken(node)), fmt.Sprintf(format, args...))
}

// find returns the node at a path, or nil.
func (d *document) find(path string) ast.Node {
	p, err := yaml.PathString(path)
	if err != nil {
		return nil
	}
	node, err := p.FilterFile(d.file)
	if err != nil {
		return nil
	}
	return node
}

// at returns FILE:LINE:COLUMN.
func (d *document) at(t *token.Token) string {
	if t == nil || t.Position == nil {
		return d.name + ":1:1"
	}
	return fmt.Sprintf("%s:%d:%d", d.name, t.Position.Line, t.Position.Column)
}

// firstToken returns where a node begins. Of a map the library gives the first
// colon, and of a list the first dash or bracket.
func firstToken(node ast.Node) *token.Token {
	switch n := node.(type) {
	case *ast.MappingValueNode:
		return n.Key.GetToken()
	case *ast.MappingNode:
		if !n.IsFlowStyle && len(n.Values) > 0 {
			return n.Values[0].Key.GetToken()
		}
	}
	return node.GetToken()
}

// explain puts the library's error, which shows a part of the file on further
// lines, into one.
func (d *document) explain(err error) error {
	var positioned yaml.Error
	if !errors.As(err, &positioned) {
		return fmt.Errorf("%s: %w", d.name, err)
	}
	problem := positioned.GetMessage()
	var wrongType *yaml.TypeError
	if errors.As(err, &wrongType) {
		problem = fmt.Sprintf("found %s where %s belongs", kindName(wrongType.SrcType), kindName(wrongType.DstType))
	}
	problem, _, _ = strings.Cut(problem, "\n")
	return fmt.Errorf("%s: %s", d.at(positioned.GetToken()), problem)
}

// kindName says in YAML's terms what Go holds in a type.
func kindName(t reflect.Type) string {
	switch t.Kind() {
	case reflect.Slice, reflect.Array:
		return "a list"
	case reflect.Map, reflect.Struct:
		return "a map"
	case reflect.String:
		return "a text"
	case reflect.Bool:
		return "true or false"
	case reflect.Float32, reflect.Float64:
		return "a number"
	case reflect.Int, reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64,
		reflect.Uint, reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64:
		return "a whole number"
	}
	return "another value"
}
