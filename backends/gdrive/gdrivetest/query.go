package gdrivetest

import (
	"fmt"
	"strings"
	"time"
	"unicode"
)

// A query is a parsed q parameter of files.list (guide "ref-search-terms").
//
//	query = not { ( "and" | "or" ) not }
//	not   = "not" not | "(" query ")" | term
//	term  = NAME OP VALUE | VALUE "in" NAME | NAME "has" "{" "key" "=" S "and" "value" "=" S "}"
type query interface {
	match(d *Drive, f *file) bool
}

type (
	andQuery []query
	orQuery  []query
	notQuery struct{ query }
	// term compares one field.
	term struct{ field, op, value string }
	// inTerm is VALUE in FIELD.
	inTerm struct{ value, field string }
	// hasTerm is FIELD has {key and value}.
	hasTerm struct{ field, key, value string }
	// timeTerm compares a time.
	timeTerm struct {
		field, op string
		at        time.Time
	}
	allQuery struct{}
)

func (allQuery) match(*Drive, *file) bool { return true }

func (q andQuery) match(d *Drive, f *file) bool {
	for _, t := range q {
		if !t.match(d, f) {
			return false
		}
	}
	return true
}

func (q orQuery) match(d *Drive, f *file) bool {
	for _, t := range q {
		if t.match(d, f) {
			return true
		}
	}
	return false
}

func (q notQuery) match(d *Drive, f *file) bool { return !q.query.match(d, f) }

func (t term) match(d *Drive, f *file) bool {
	var ok bool
	switch t.field {
	case "name":
		if t.op == "contains" {
			return containsPrefix(f.name, t.value)
		}
		ok = strings.EqualFold(f.name, t.value)
	case "fullText":
		return containsWord(f.fullText(), t.value)
	case "mimeType":
		if t.op == "contains" {
			return strings.HasPrefix(f.mime, t.value)
		}
		ok = f.mime == t.value
	case "trashed":
		ok = fmt.Sprint(d.trashed(f)) == t.value
	case "starred":
		ok = fmt.Sprint(f.starred) == t.value
	case "sharedWithMe":
		ok = fmt.Sprint(!f.owned) == t.value
	case "visibility":
		v := "limited"
		if f.perm("anyoneWithLink") != nil {
			v = "anyoneWithLink"
		}
		ok = v == t.value
	}
	return ok == (t.op == "=")
}

func (t inTerm) match(d *Drive, f *file) bool {
	switch t.field {
	case "parents":
		id := d.alias(t.value)
		for _, p := range f.parents {
			if p == id {
				return true
			}
		}
		return false
	}
	for _, p := range f.perms {
		if !strings.EqualFold(p.email, t.value) && !(t.value == "me" && p.role == "owner" && f.owned) {
			continue
		}
		switch t.field {
		case "owners":
			if p.role == "owner" {
				return true
			}
		case "writers":
			if p.role == "owner" || p.role == "writer" {
				return true
			}
		default:
			return true
		}
	}
	return false
}

func (t hasTerm) match(_ *Drive, f *file) bool {
	props := f.props
	if t.field == "appProperties" {
		props = f.appProps
	}
	v, ok := props[t.key]
	return ok && v == t.value
}

func (t timeTerm) match(_ *Drive, f *file) bool {
	at := f.modified
	if t.field == "createdTime" {
		at = f.created
	}
	c := at.Compare(t.at)
	switch t.op {
	case "=":
		return c == 0
	case "!=":
		return c != 0
	case "<":
		return c < 0
	case "<=":
		return c <= 0
	case ">":
		return c > 0
	}
	return c >= 0
}

func words(s string) []string {
	return strings.FieldsFunc(strings.ToLower(s), func(r rune) bool { return !unicode.IsLetter(r) && !unicode.IsDigit(r) })
}

// containsPrefix is "name contains": only beginnings of words match.
func containsPrefix(name, value string) bool {
	name, value = strings.ToLower(name), strings.ToLower(value)
	for i := 0; ; {
		j := strings.Index(name[i:], value)
		if j < 0 {
			return false
		}
		i += j
		if i == 0 || value == "" {
			return true
		}
		before := []rune(name[:i])
		if r := before[len(before)-1]; !unicode.IsLetter(r) && !unicode.IsDigit(r) {
			return true
		}
		i++
	}
}

// containsWord is "fullText contains": whole words, in any order unless they
// are in double quotes.
func containsWord(text, value string) bool {
	have := words(text)
	if strings.HasPrefix(value, `"`) && strings.HasSuffix(value, `"`) && len(value) > 1 {
		return strings.Contains(" "+strings.Join(have, " ")+" ", " "+strings.Join(words(value), " ")+" ")
	}
	set := make(map[string]bool, len(have))
	for _, w := range have {
		set[w] = true
	}
	for _, w := range words(value) {
		if !set[w] {
			return false
		}
	}
	return true
}

// operators are those that a field knows.
var operators = map[string]string{
	"name": "= != contains", "fullText": "contains", "mimeType": "= != contains",
	"modifiedTime": "= != < <= > >=", "createdTime": "= != < <= > >=", "viewedByMeTime": "= != < <= > >=",
	"trashed": "= !=", "starred": "= !=", "sharedWithMe": "= !=", "visibility": "= !=",
	"parents": "in", "owners": "in", "writers": "in", "readers": "in",
	"properties": "has", "appProperties": "has",
}

type queryParser struct {
	tokens   []token
	fullText bool
}

type token struct {
	text   string
	quoted bool
}

// parseQuery parses q; fullText says that it has a fullText term.
func parseQuery(q string) (_ query, fullText bool, err error) {
	if strings.TrimSpace(q) == "" {
		return allQuery{}, false, nil
	}
	tokens, err := lexQuery(q)
	if err != nil {
		return nil, false, err
	}
	p := &queryParser{tokens: tokens}
	parsed, err := p.query(0)
	if err == nil && len(p.tokens) > 0 {
		err = fmt.Errorf("unexpected %q", p.tokens[0].text)
	}
	return parsed, p.fullText, err
}

func lexQuery(q string) ([]token, error) {
	var tokens []token
	for i := 0; i < len(q); {
		c := q[i]
		switch {
		case c == ' ' || c == '\t' || c == '\n':
			i++
		case c == '\'':
			var b strings.Builder
			for i++; ; i++ {
				if i >= len(q) {
					return nil, fmt.Errorf("string without an end")
				}
				if q[i] == '\'' {
					i++
					break
				}
				if q[i] == '\\' {
					if i++; i >= len(q) || (q[i] != '\'' && q[i] != '\\') {
						return nil, fmt.Errorf("bad escape")
					}
				}
				b.WriteByte(q[i])
			}
			tokens = append(tokens, token{b.String(), true})
		case strings.IndexByte("(){}=", c) >= 0:
			tokens = append(tokens, token{string(c), false})
			i++
		case c == '!' || c == '<' || c == '>':
			n := 1
			if i+1 < len(q) && q[i+1] == '=' {
				n = 2
			}
			tokens = append(tokens, token{q[i : i+n], false})
			i += n
		default:
			j := i
			for j < len(q) && (q[j] >= 'a' && q[j] <= 'z' || q[j] >= 'A' && q[j] <= 'Z') {
				j++
			}
			if j == i {
				return nil, fmt.Errorf("unexpected %q", c)
			}
			tokens = append(tokens, token{q[i:j], false})
			i = j
		}
	}
	return tokens, nil
}

func (p *queryParser) peek(text string) bool {
	return len(p.tokens) > 0 && !p.tokens[0].quoted && p.tokens[0].text == text
}

func (p *queryParser) next() (token, error) {
	if len(p.tokens) == 0 {
		return token{}, fmt.Errorf("unexpected end")
	}
	t := p.tokens[0]
	p.tokens = p.tokens[1:]
	return t, nil
}

func (p *queryParser) expect(texts ...string) error {
	for _, text := range texts {
		if !p.peek(text) {
			return fmt.Errorf("expected %q", text)
		}
		p.tokens = p.tokens[1:]
	}
	return nil
}

func (p *queryParser) str() (string, error) {
	t, err := p.next()
	if err == nil && !t.quoted {
		err = fmt.Errorf("expected a string, got %q", t.text)
	}
	return t.text, err
}

const maxQueryDepth = 100

// query goes from left to right: neither "and" nor "or" binds stronger, as the
// guide "search-files" warns.
func (p *queryParser) query(depth int) (query, error) {
	q, err := p.not(depth)
	for err == nil && (p.peek("and") || p.peek("or")) {
		op := p.tokens[0].text
		p.tokens = p.tokens[1:]
		var next query
		next, err = p.not(depth)
		ands, isAnd := q.(andQuery)
		ors, isOr := q.(orQuery)
		switch {
		case op == "and" && isAnd:
			q = append(ands, next)
		case op == "and":
			q = andQuery{q, next}
		case isOr:
			q = append(ors, next)
		default:
			q = orQuery{q, next}
		}
	}
	return q, err
}

func (p *queryParser) not(depth int) (query, error) {
	if depth > maxQueryDepth {
		return nil, fmt.Errorf("nested too deep")
	}
	switch {
	case p.peek("not"):
		p.tokens = p.tokens[1:]
		q, err := p.not(depth + 1)
		return notQuery{q}, err
	case p.peek("("):
		p.tokens = p.tokens[1:]
		q, err := p.query(depth + 1)
		if err != nil {
			return nil, err
		}
		return q, p.expect(")")
	}
	return p.term()
}

func (p *queryParser) term() (query, error) {
	left, err := p.next()
	if err != nil {
		return nil, err
	}
	if left.quoted {
		if err := p.expect("in"); err != nil {
			return nil, err
		}
		field, err := p.next()
		if err == nil && operators[field.text] != "in" {
			err = fmt.Errorf("no collection %q", field.text)
		}
		return inTerm{left.text, field.text}, err
	}
	op, err := p.next()
	if err != nil {
		return nil, err
	}
	field := left.text
	known := false
	for o := range strings.FieldsSeq(operators[field]) {
		known = known || o == op.text && !op.quoted
	}
	if !known || op.text == "in" {
		return nil, fmt.Errorf("no term %s %s", field, op.text)
	}
	switch field {
	case "properties", "appProperties":
		return p.has(field)
	case "trashed", "starred", "sharedWithMe":
		v, err := p.next()
		if err == nil && (v.quoted || v.text != "true" && v.text != "false") {
			err = fmt.Errorf("%s is true or false", field)
		}
		return term{field, op.text, v.text}, err
	}
	v, err := p.str()
	if err != nil {
		return nil, err
	}
	if strings.HasSuffix(field, "Time") {
		for _, layout := range []string{time.RFC3339Nano, "2006-01-02T15:04:05", "2006-01-02"} {
			if at, err := time.Parse(layout, v); err == nil {
				return timeTerm{field, op.text, at}, nil
			}
		}
		return nil, fmt.Errorf("%q is no time", v)
	}
	p.fullText = p.fullText || field == "fullText"
	return term{field, op.text, v}, nil
}

// has parses what follows "properties has".
func (p *queryParser) has(field string) (query, error) {
	t := hasTerm{field: field}
	err := p.expect("{", "key", "=")
	if err == nil {
		t.key, err = p.str()
	}
	if err == nil {
		err = p.expect("and", "value", "=")
	}
	if err == nil {
		t.value, err = p.str()
	}
	if err == nil {
		err = p.expect("}")
	}
	return t, err
}

// required returns the value that every match of q has in its name or among
// its parents, for the indexes.
func required(q query) (name, parent string) {
	switch q := q.(type) {
	case andQuery:
		for _, t := range q {
			n, p := required(t)
			if n != "" {
				name = n
			}
			if p != "" {
				parent = p
			}
		}
	case term:
		if q.field == "name" && q.op == "=" {
			name = q.value
		}
	case inTerm:
		if q.field == "parents" {
			parent = q.value
		}
	}
	return name, parent
}
