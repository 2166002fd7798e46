package edgeserver

import (
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/goccy/go-yaml"
	"github.com/goccy/go-yaml/ast"
	"github.com/goccy/go-yaml/parser"
	"github.com/goccy/go-yaml/token"
)

// source is a parsed configuration file. It is kept with what was read from
// it, so that an error found later still points at its line.
type source struct {
	name string
	file *ast.File
}

// parseSource parses data, which must be one YAML document.
func parseSource(name string, data []byte) (*source, error) {
	s := &source{name: name}
	file, err := parser.ParseBytes(data, 0)
	if err != nil {
		return nil, s.explain(err)
	}
	s.file = file
	switch {
	case len(file.Docs) == 0 || file.Docs[0].Body == nil:
		return nil, fmt.Errorf("%s:1:1: the file is empty", name)
	case len(file.Docs) > 1:
		return nil, fmt.Errorf("%s: the file has more than one document", s.at(file.Docs[1].Start))
	}
	return s, nil
}

func (s *source) body() ast.Node { return s.file.Docs[0].Body }

// at returns FILE:LINE:COLUMN.
func (s *source) at(t *token.Token) string {
	if t == nil || t.Position == nil {
		return s.name + ":1:1"
	}
	return fmt.Sprintf("%s:%d:%d", s.name, t.Position.Line, t.Position.Column)
}

// explain turns an error of the YAML library, which spans several lines, into
// one line with a position.
func (s *source) explain(err error) error {
	var positioned yaml.Error
	if !errors.As(err, &positioned) {
		return fmt.Errorf("%s: %w", s.name, err)
	}
	message := positioned.GetMessage()
	if mismatch := (*yaml.TypeError)(nil); errors.As(err, &mismatch) {
		message = fmt.Sprintf("found %s where %s belongs", kindName(mismatch.SrcType), kindName(mismatch.DstType))
	}
	message, _, _ = strings.Cut(message, "\n")
	return fmt.Errorf("%s: %s", s.at(positioned.GetToken()), message)
}

// find returns the node of a field such as "sites[0].names[1]", or nil.
func (s *source) find(field string) ast.Node {
	path, err := yaml.PathString("$." + field)
	if err != nil {
		return nil
	}
	node, err := path.FilterFile(s.file)
	if err != nil {
		return nil
	}
	return node
}

// keys returns the keys of a field that is a map.
func (s *source) keys(field string) (keys []string) {
	if m, ok := s.find(field).(ast.MapNode); ok {
		for i := m.MapRange(); i.Next(); {
			keys = append(keys, i.Key().GetToken().Value)
		}
	}
	return keys
}

// length returns the number of a list's elements, 0 of what is none.
func (s *source) length(field string) int {
	if list, ok := s.find(field).(*ast.SequenceNode); ok {
		return len(list.Values)
	}
	return 0
}

// position returns FILE:LINE:COLUMN of a field, or of the nearest one around it
// where the file does not have it.
func (s *source) position(field string) string {
	for field != "" {
		if node := s.find(field); node != nil {
			return s.at(firstToken(node))
		}
		field = field[:max(0, strings.LastIndexAny(field, ".["))]
	}
	return s.at(firstToken(s.body()))
}

// firstToken returns where a node begins. For a map the library gives the
// first colon, and for a list the first dash or bracket.
func firstToken(node ast.Node) *token.Token {
	if m, ok := node.(*ast.MappingNode); ok && !m.IsFlowStyle && len(m.Values) > 0 {
		return m.Values[0].Key.GetToken()
	}
	return node.GetToken()
}

// checkDurations checks the fields that hold a time.Duration: the library
// reports those without their position.
func (s *source) checkDurations(fields ...string) error {
	for _, field := range fields {
		node := s.find(field)
		if node == nil {
			continue
		}
		if d, err := time.ParseDuration(node.GetToken().Value); err != nil || d <= 0 {
			return fmt.Errorf("%s: %s: '%s' is not a time such as 5s or 500ms",
				s.position(field), field, node.GetToken().Value)
		}
	}
	return nil
}
