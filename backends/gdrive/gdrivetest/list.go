package gdrivetest

import (
	"maps"
	"net/http"
	"strings"
)

// cursor is where a listing goes on. A page token names one; what comes is
// asked again of each file, so that one that was deleted meanwhile is left out.
type cursor struct {
	q, orderBy string
	rest       []*file
}

// maxCursors bounds how many page tokens are kept.
const maxCursors = 10000

func (d *Drive) filesList(w http.ResponseWriter, r *http.Request) (any, *apiError) {
	p := r.URL.Query()
	sel, aerr := fileListResource.selection(p.Get("fields"))
	if aerr != nil {
		return nil, aerr
	}
	n, ok := atoi(p.Get("pageSize"), 100, 1, 1000)
	if !ok {
		return nil, badRequest("invalidParameter", "pageSize", "Invalid value '"+p.Get("pageSize")+"'. Values must be within the range: [1, 1000]")
	}
	switch p.Get("corpora") {
	case "", "user", "allDrives", "domain":
	case "drive":
		return nil, notFound("Shared drive", p.Get("driveId"))
	default:
		return nil, invalidParameter("corpora")
	}
	for space := range strings.SplitSeq(p.Get("spaces"), ",") {
		if space != "" && space != "drive" && space != "appDataFolder" && space != "photos" {
			return nil, invalidParameter("spaces")
		}
	}
	q, fullText, err := parseQuery(p.Get("q"))
	if err != nil {
		return nil, &apiError{code: 400, reason: "invalid", message: "Invalid Value", locationType: "parameter", location: "q"}
	}
	if fullText && p.Get("orderBy") != "" {
		return nil, badRequest("badRequest", "orderBy", "Sorting is not supported for queries with fullText terms. Results are always in descending relevance order.")
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	var found []*file
	if token := p.Get("pageToken"); token != "" {
		c, ok := d.cursors[token]
		if !ok || c.q != p.Get("q") || c.orderBy != p.Get("orderBy") {
			return nil, invalidParameter("pageToken")
		}
		found = c.rest
	} else {
		if p.Get("spaces") == "" || strings.Contains(p.Get("spaces"), "drive") {
			for _, f := range d.candidates(q) {
				if f != d.root && q.match(d, f) {
					found = append(found, f)
				}
			}
		}
		if err := sortFiles(found, p.Get("orderBy")); err != nil {
			return nil, err
		}
	}
	files := make([]any, 0, min(n, len(found)))
	for len(found) > 0 && len(files) < n {
		if f := found[0]; d.files[f.id] == f && q.match(d, f) {
			files = append(files, d.json(f))
		}
		found = found[1:]
	}
	out := map[string]any{"kind": "drive#fileList", "incompleteSearch": false, "files": files}
	if len(found) > 0 {
		if len(d.cursors) >= maxCursors {
			clear(d.cursors)
		}
		token := "~!!~" + newID(40)
		d.cursors[token] = cursor{p.Get("q"), p.Get("orderBy"), found}
		out["nextPageToken"] = token
	}
	return sel.apply(out), nil
}

// candidates are the files that q may match, by the narrowest index.
func (d *Drive) candidates(q query) map[string]*file {
	name, parent := required(q)
	switch {
	case name != "":
		return d.byName[strings.ToLower(name)]
	case parent != "":
		return d.byParent[d.alias(parent)]
	}
	return d.files
}

func (d *Drive) drivesList(w http.ResponseWriter, r *http.Request) (any, *apiError) {
	sel, err := drivesResource.selection(r.URL.Query().Get("fields"))
	if err != nil {
		return nil, err
	}
	return sel.apply(map[string]any{"kind": "drive#driveList", "drives": []any{}}), nil
}

func (d *Drive) aboutGet(w http.ResponseWriter, r *http.Request) (any, *apiError) {
	fields := r.URL.Query().Get("fields")
	if fields == "" {
		return nil, badRequest("required", "fields", "The 'fields' parameter is required for this method.")
	}
	sel, err := aboutResource.selection(fields)
	if err != nil {
		return nil, err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	var binned int64
	for _, f := range d.files {
		if d.trashed(f) {
			binned += size(f)
		}
	}
	quota := map[string]any{"usage": itoa(d.used), "usageInDrive": itoa(d.used), "usageInDriveTrash": itoa(binned)}
	if d.opts.Quota >= 0 {
		quota["limit"] = itoa(d.opts.Quota)
	}
	return sel.apply(map[string]any{
		"kind": "drive#about", "maxUploadSize": "5242880000000", "appInstalled": true, "canCreateDrives": false,
		"user":          map[string]any{"kind": "drive#user", "displayName": d.opts.User, "emailAddress": d.opts.Email, "me": true, "permissionId": permissionID(d.opts.Email)},
		"storageQuota":  quota,
		"importFormats": map[string]any{}, "exportFormats": map[string]any{},
	}), nil
}

func (d *Drive) changesStart(w http.ResponseWriter, r *http.Request) (any, *apiError) {
	sel, err := startTokenResource.selection(r.URL.Query().Get("fields"))
	if err != nil {
		return nil, err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	return sel.apply(map[string]any{"kind": "drive#startPageToken", "startPageToken": itoa(d.end())}), nil
}

// end is the position after the last change.
func (d *Drive) end() int64 { return d.firstLog + int64(len(d.log)) }

func (d *Drive) changesList(w http.ResponseWriter, r *http.Request) (any, *apiError) {
	p := r.URL.Query()
	sel, err := changeListResource.selection(p.Get("fields"))
	if err != nil {
		return nil, err
	}
	n, ok := atoi(p.Get("pageSize"), 100, 1, 1000)
	if !ok {
		return nil, invalidParameter("pageSize")
	}
	if p.Get("pageToken") == "" {
		return nil, badRequest("required", "pageToken", "Required parameter: pageToken")
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	at, ok := atoi(p.Get("pageToken"), 0, int(d.firstLog), int(d.end()))
	if !ok {
		return nil, invalidParameter("pageToken")
	}
	rest := d.log[int64(at)-d.firstLog:]
	changes := []any{}
	for len(rest) > 0 && len(changes) < n {
		c := rest[0]
		rest = rest[1:]
		f := d.files[c.id]
		if f != nil && f.changed != c.seq || f == nil && !c.removed {
			continue // a later entry tells of that file
		}
		if c.removed && p.Get("includeRemoved") == "false" || f != nil && f.lost && p.Get("restrictToMyDrive") == "true" {
			continue
		}
		m := map[string]any{
			"kind": "drive#change", "type": "file", "changeType": "file", "fileId": c.id,
			"removed": c.removed, "time": c.at.Format(timeFormat),
		}
		if f != nil {
			m["file"] = d.json(f)
		}
		changes = append(changes, m)
	}
	out := map[string]any{"kind": "drive#changeList", "changes": changes}
	if next := itoa(d.end() - int64(len(rest))); len(rest) > 0 {
		out["nextPageToken"] = next
	} else {
		out["newStartPageToken"] = next
	}
	return sel.apply(out), nil
}

// forget drops the log up to now, so that older positions are invalid.
func (d *Drive) forget() {
	d.firstLog = d.end()
	d.log = nil
	for f := range maps.Values(d.files) {
		f.changed = 0
	}
}
