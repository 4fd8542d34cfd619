package gdrivetest

import (
	"fmt"
	"reflect"
	"strings"

	"google.golang.org/api/drive/v3"
)

// selector is a parsed fields parameter (guide "fields-parameter"): the
// members that are wanted, each with what is wanted of it; nil means all.
type selector map[string]selector

// parseFields parses s, "files(id,name),nextPageToken" or "user/displayName",
// and checks it against the resource type that the method answers with. An
// unknown field is an error, as it is on Drive.
func parseFields(s string, resource reflect.Type) (selector, error) {
	p := fieldsParser{rest: s}
	sel, err := p.list(resource, 0)
	if err == nil && p.rest != "" {
		err = fmt.Errorf("unexpected %q", p.rest)
	}
	return sel, err
}

type fieldsParser struct{ rest string }

func (p *fieldsParser) list(t reflect.Type, depth int) (selector, error) {
	if depth > 10 {
		return nil, fmt.Errorf("nested too deep")
	}
	sel := selector{}
	for {
		if err := p.path(t, sel, depth); err != nil {
			return nil, err
		}
		if !strings.HasPrefix(p.rest, ",") {
			return sel, nil
		}
		p.rest = p.rest[1:]
	}
}

// path parses NAME, NAME/PATH or NAME(LIST) into sel.
func (p *fieldsParser) path(t reflect.Type, sel selector, depth int) error {
	p.rest = strings.TrimLeft(p.rest, " ")
	n := strings.IndexAny(p.rest, ",/() ")
	if n < 0 {
		n = len(p.rest)
	}
	name := p.rest[:n]
	p.rest = strings.TrimLeft(p.rest[n:], " ")
	if name == "" {
		return fmt.Errorf("a name is missing")
	}
	member, ok := fieldType(t, name)
	if !ok {
		return fmt.Errorf("invalid field selection %s", name)
	}
	var below selector
	switch {
	case strings.HasPrefix(p.rest, "/"):
		p.rest = p.rest[1:]
		below = selector{}
		if err := p.path(member, below, depth+1); err != nil {
			return err
		}
	case strings.HasPrefix(p.rest, "("):
		p.rest = p.rest[1:]
		var err error
		if below, err = p.list(member, depth+1); err != nil {
			return err
		}
		if !strings.HasPrefix(p.rest, ")") {
			return fmt.Errorf("\")\" is missing")
		}
		p.rest = strings.TrimLeft(p.rest[1:], " ")
	}
	if old, ok := sel[name]; ok && old != nil && below != nil {
		for k, v := range below {
			old[k] = v
		}
	} else if !ok || old != nil {
		sel[name] = below
	}
	return nil
}

// fieldType is the type of t's member that JSON calls name; "*" is any.
func fieldType(t reflect.Type, name string) (reflect.Type, bool) {
	for t != nil && (t.Kind() == reflect.Pointer || t.Kind() == reflect.Slice) {
		t = t.Elem()
	}
	if t == nil {
		return nil, false
	}
	if name == "*" {
		return nil, true
	}
	switch t.Kind() {
	case reflect.Map:
		return t.Elem(), true
	case reflect.Struct:
		for i := range t.NumField() {
			f := t.Field(i)
			tag, _, _ := strings.Cut(f.Tag.Get("json"), ",")
			if tag == name && tag != "-" {
				return f.Type, true
			}
		}
	}
	return nil, false
}

// apply cuts v down to what is selected.
func (sel selector) apply(v any) any {
	if sel == nil {
		return v
	}
	switch v := v.(type) {
	case map[string]any:
		out := make(map[string]any, len(sel))
		all, any := sel["*"]
		for k, member := range v {
			if below, ok := sel[k]; ok {
				out[k] = below.apply(member)
			} else if any {
				out[k] = all.apply(member)
			}
		}
		return out
	case map[string]string:
		if _, ok := sel["*"]; ok {
			return v
		}
		out := map[string]string{}
		for k := range sel {
			if s, ok := v[k]; ok {
				out[k] = s
			}
		}
		return out
	case []any:
		out := make([]any, len(v))
		for i := range v {
			out[i] = sel.apply(v[i])
		}
		return out
	}
	return v
}

// The resources that methods answer with, which say what fields there are, and
// what comes when none are asked for.
type resource struct {
	t        reflect.Type
	defaults string
}

var (
	fileResource           = resource{reflect.TypeFor[drive.File](), "kind,id,name,mimeType"}
	fileListResource       = resource{reflect.TypeFor[drive.FileList](), "kind,nextPageToken,incompleteSearch,files(kind,id,name,mimeType)"}
	aboutResource          = resource{reflect.TypeFor[drive.About](), ""}
	changeListResource     = resource{reflect.TypeFor[drive.ChangeList](), "kind,nextPageToken,newStartPageToken,changes(kind,type,changeType,time,removed,fileId,file(kind,id,name,mimeType))"}
	startTokenResource     = resource{reflect.TypeFor[drive.StartPageToken](), "*"}
	permissionResource     = resource{reflect.TypeFor[drive.Permission](), "kind,id,type,role"}
	permissionListResource = resource{reflect.TypeFor[drive.PermissionList](), "kind,nextPageToken,permissions(kind,id,type,role)"}
	revisionResource       = resource{reflect.TypeFor[drive.Revision](), "kind,id,mimeType,modifiedTime"}
	revisionListResource   = resource{reflect.TypeFor[drive.RevisionList](), "kind,nextPageToken,revisions(kind,id,mimeType,modifiedTime)"}
	idsResource            = resource{reflect.TypeFor[drive.GeneratedIds](), "*"}
	drivesResource         = resource{reflect.TypeFor[drive.DriveList](), "*"}
)

// selection parses a request's fields parameter, or the defaults.
func (r resource) selection(fields string) (selector, *apiError) {
	if fields == "" {
		fields = r.defaults
	}
	sel, err := parseFields(fields, r.t)
	if err != nil {
		return nil, badRequest("invalidParameter", "fields", "Invalid field selection "+fields+": "+err.Error())
	}
	return sel, nil
}
