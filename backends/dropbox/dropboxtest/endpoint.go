package dropboxtest

import (
	"encoding/json"
	"io"
	"mime"
	"net/http"
)

// style is how a route takes its argument and gives its result (HTTP
// documentation, "Request and response formats").
type style int

const (
	rpc style = iota
	upload
	download
	notify // rpc without authentication, on a host of its own
)

type endpoint struct {
	style  style
	handle func(*Server, http.ResponseWriter, *http.Request) *apiError
}

func (e endpoint) host() string {
	switch e.style {
	case upload, download:
		return "content.dropboxapi.com"
	case notify:
		return "notify.dropboxapi.com"
	}
	return "api.dropboxapi.com"
}

// endpoints are the routes that there are.
var endpoints = map[string]endpoint{
	"files/list_folder":                        rpcOf("files/list_folder", (*Server).listFolder),
	"files/list_folder/continue":               rpcOf("files/list_folder/continue", (*Server).listContinue),
	"files/list_folder/get_latest_cursor":      rpcOf("files/list_folder/get_latest_cursor", (*Server).latestCursor),
	"files/get_metadata":                       rpcOf("files/get_metadata", (*Server).getMetadata),
	"files/delete_v2":                          rpcOf("files/delete_v2", (*Server).delete),
	"files/move_v2":                            rpcOf("files/move_v2", (*Server).move),
	"files/copy_v2":                            rpcOf("files/copy_v2", (*Server).copy),
	"files/create_folder_v2":                   rpcOf("files/create_folder_v2", (*Server).createFolder),
	"files/list_revisions":                     rpcOf("files/list_revisions", (*Server).listRevisions),
	"files/restore":                            rpcOf("files/restore", (*Server).restore),
	"files/search_v2":                          rpcOf("files/search_v2", (*Server).search),
	"files/search/continue_v2":                 rpcOf("files/search/continue_v2", (*Server).searchContinue),
	"files/upload_session/finish_batch_v2":     rpcOf("files/upload_session/finish_batch_v2", (*Server).sessionFinishBatch),
	"users/get_current_account":                rpcOf("users/get_current_account", (*Server).currentAccount),
	"users/get_space_usage":                    rpcOf("users/get_space_usage", (*Server).spaceUsage),
	"sharing/create_shared_link_with_settings": rpcOf("sharing/create_shared_link_with_settings", (*Server).createLink),
	"sharing/list_shared_links":                rpcOf("sharing/list_shared_links", (*Server).listLinks),

	"files/list_folder/longpoll": {notify, rpcOf("files/list_folder/longpoll", (*Server).longpoll).handle},

	"files/download": {download, (*Server).download},

	"files/upload":                      uploadOf("files/upload", (*Server).upload),
	"files/upload_session/start":        uploadOf("files/upload_session/start", (*Server).sessionStart),
	"files/upload_session/append_v2":    uploadOf("files/upload_session/append_v2", (*Server).sessionAppend),
	"files/upload_session/append_batch": uploadOf("files/upload_session/append_batch", (*Server).sessionAppendBatch),
	"files/upload_session/finish":       uploadOf("files/upload_session/finish", (*Server).sessionFinish),
}

// rpcOf makes an endpoint whose argument is the JSON body. "null" or nothing
// stands for no argument.
func rpcOf[A any](route string, f func(*Server, *http.Request, A) (any, *apiError)) endpoint {
	return endpoint{rpc, func(s *Server, w http.ResponseWriter, r *http.Request) *apiError {
		body, err := io.ReadAll(io.LimitReader(r.Body, 1<<20))
		if err != nil {
			return badRequest(route, "could not read the request body")
		}
		ct, _, _ := mime.ParseMediaType(r.Header.Get("Content-Type"))
		if len(body) > 0 && ct != "application/json" {
			return badRequest(route, `Bad HTTP "Content-Type" header: %q. Expecting "application/json".`, ct)
		}
		var a A
		if len(body) > 0 {
			if err := json.Unmarshal(body, &a); err != nil {
				return badRequest(route, "request body: could not decode input as JSON")
			}
		}
		res, aerr := f(s, r, a)
		if aerr != nil {
			return aerr
		}
		writeJSON(w, http.StatusOK, res)
		return nil
	}}
}

// uploadOf makes an endpoint whose argument is in a header and whose body is
// content.
func uploadOf[A any](route string, f func(*Server, *http.Request, A) (any, *apiError)) endpoint {
	return endpoint{upload, func(s *Server, w http.ResponseWriter, r *http.Request) *apiError {
		ct, params, _ := mime.ParseMediaType(r.Header.Get("Content-Type"))
		if ct != "application/octet-stream" && (ct != "text/plain" || params["charset"] != "dropbox-cors-hack") {
			return badRequest(route, `Bad HTTP "Content-Type" header: %q. Expecting "application/octet-stream".`, ct)
		}
		var a A
		if err := headerArg(route, r, &a); err != nil {
			return err
		}
		res, aerr := f(s, r, a)
		if aerr != nil {
			return aerr
		}
		writeJSON(w, http.StatusOK, res)
		return nil
	}}
}

// headerArg reads the argument of a content route. Everything beyond ASCII
// should be escaped in it
// (https://www.dropbox.com/developers/reference/json-encoding), but the Go SDK
// and what is built upon it send UTF-8 as it is, and the service takes that.
func headerArg(route string, r *http.Request, to any) *apiError {
	arg := r.Header.Get("Dropbox-API-Arg")
	if arg == "" {
		arg = r.URL.Query().Get("arg")
	}
	if arg == "" {
		return badRequest(route, `Must provide HTTP header "Dropbox-API-Arg" or URL parameter "arg".`)
	}
	if err := json.Unmarshal([]byte(arg), to); err != nil {
		return badRequest(route, `HTTP header "Dropbox-API-Arg": could not decode input as JSON`)
	}
	return nil
}

func writeJSON(w http.ResponseWriter, status int, v any) {
	b, err := json.Marshal(v)
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	w.Write(b)
}

// tagged is a union's value: an object with .tag, or just the tag's string for
// members without a value.
type tagged struct {
	Tag string
	raw map[string]json.RawMessage
}

func (t *tagged) UnmarshalJSON(b []byte) error {
	if len(b) > 0 && b[0] == '"' {
		return json.Unmarshal(b, &t.Tag)
	}
	if err := json.Unmarshal(b, &t.raw); err != nil {
		return err
	}
	if tag, ok := t.raw[".tag"]; ok {
		return json.Unmarshal(tag, &t.Tag)
	}
	return nil
}

// field is a string member of the union's value.
func (t tagged) field(name string) string {
	var s string
	if raw, ok := t.raw[name]; ok && json.Unmarshal(raw, &s) != nil {
		return ""
	}
	return s
}
