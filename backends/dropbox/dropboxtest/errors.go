package dropboxtest

import (
	"encoding/json"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"time"
)

// apiError is an answer other than 200, in the documentation's forms ("Errors
// by status code"): plain text for 400 and 5xx, JSON with error_summary and a
// tagged union for the others.
type apiError struct {
	status int
	text   string // plain text when union is nil
	path   []string
	union  any
	header http.Header
}

func (e *apiError) write(w http.ResponseWriter) {
	for k, v := range e.header {
		w.Header()[k] = v
	}
	if e.union == nil {
		w.Header().Set("Content-Type", "text/plain; charset=utf-8")
		w.WriteHeader(e.status)
		fmt.Fprint(w, e.text)
		return
	}
	writeJSON(w, e.status, map[string]any{
		"error_summary": strings.Join(e.path, "/") + "/...",
		"error":         e.union,
	})
}

func badRequest(route, format string, args ...any) *apiError {
	return &apiError{status: http.StatusBadRequest,
		text: fmt.Sprintf("Error in call to API function %q: ", route) + fmt.Sprintf(format, args...)}
}

// refuse is an endpoint's own error, status 409: nested unions, outermost tag
// first.
func refuse(tags ...string) *apiError {
	return &apiError{status: http.StatusConflict, path: tags, union: nest(tags)}
}

func nest(tags []string) map[string]any {
	m := map[string]any{".tag": tags[0]}
	if len(tags) > 1 {
		m[tags[0]] = nest(tags[1:])
	}
	return m
}

// under puts the error into an outer union, as the tag outer.
func (e *apiError) under(outer string) *apiError {
	if e.union == nil {
		return e
	}
	return &apiError{status: e.status, path: append([]string{outer}, e.path...),
		union: map[string]any{".tag": outer, outer: e.union}}
}

func refuseAuth(tag string) *apiError {
	return &apiError{status: http.StatusUnauthorized, path: []string{tag}, union: nest([]string{tag})}
}

func refuseRate(reason string, wait time.Duration) *apiError {
	secs := int64((wait + time.Second - 1) / time.Second)
	return &apiError{
		status: http.StatusTooManyRequests,
		path:   []string{reason},
		union:  map[string]any{"reason": map[string]any{".tag": reason}, "retry_after": secs},
		header: http.Header{"Retry-After": {strconv.FormatInt(secs, 10)}},
	}
}

// checkPathRoot accepts the roots that lead to the one namespace there is
// (https://www.dropbox.com/developers/reference/path-root-header-modes).
func checkPathRoot(route, header string) *apiError {
	var t tagged
	if json.Unmarshal([]byte(header), &t) != nil {
		return badRequest(route, `HTTP header "Dropbox-API-Path-Root": could not decode input as JSON`)
	}
	ns := namespace
	switch t.Tag {
	case "root", "namespace_id":
		ns = t.field(t.Tag)
	case "home":
	default:
		return badRequest(route, `HTTP header "Dropbox-API-Path-Root": unknown tag %q`, t.Tag)
	}
	if ns != namespace {
		return &apiError{status: http.StatusUnprocessableEntity, path: []string{"no_permission"}, union: nest([]string{"no_permission"})}
	}
	return nil
}
