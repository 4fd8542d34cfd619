package gdrivetest

import (
	"encoding/json"
	"io"
	"net/http"
	"net/mail"
	"slices"
	"strconv"
)

func itoa(n int64) string { return strconv.FormatInt(n, 10) }

func (d *Drive) permissionsList(w http.ResponseWriter, r *http.Request) (any, *apiError) {
	sel, err := permissionListResource.selection(r.URL.Query().Get("fields"))
	if err != nil {
		return nil, err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	f, err := d.find(r.PathValue("id"))
	if err != nil {
		return nil, err
	}
	list := []any{}
	for _, p := range f.perms {
		list = append(list, p.json())
	}
	return sel.apply(map[string]any{"kind": "drive#permissionList", "permissions": list}), nil
}

func (d *Drive) permissionsCreate(w http.ResponseWriter, r *http.Request) (any, *apiError) {
	sel, err := permissionResource.selection(r.URL.Query().Get("fields"))
	if err != nil {
		return nil, err
	}
	var in struct{ Type, Role, EmailAddress string }
	body, rerr := io.ReadAll(io.LimitReader(r.Body, 1<<20))
	if rerr != nil || json.Unmarshal(body, &in) != nil {
		return nil, &apiError{code: 400, reason: "parseError", message: "Parse Error"}
	}
	if !slices.Contains([]string{"reader", "commenter", "writer"}, in.Role) {
		return nil, badRequest("required", "permission.role", "The permission role field is required.")
	}
	p := &permission{kind: in.Type, role: in.Role}
	switch in.Type {
	case "user", "group":
		if a, err := mail.ParseAddress(in.EmailAddress); err != nil || a.Address != in.EmailAddress {
			return nil, badRequest("invalidSharingRequest", "permission.emailAddress", "The specified emailAddress is invalid or not applicable for the given permission type.")
		}
		p.email, p.name, p.id = in.EmailAddress, in.EmailAddress, permissionID(in.EmailAddress)
	case "anyone":
		p.id = "anyoneWithLink"
	default:
		return nil, badRequest("required", "permission.type", "The permission type field is required.")
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	f, err := d.find(r.PathValue("id"))
	if err != nil {
		return nil, err
	}
	if !f.owned {
		return nil, &apiError{code: 403, reason: "insufficientFilePermissions", message: "The user does not have sufficient permissions for this file."}
	}
	if old := f.perm(p.id); old != nil {
		if old.role != "owner" {
			old.role = p.role
		}
		p = old
	} else {
		f.perms = append(f.perms, p)
	}
	if q := r.URL.Query(); p.email != "" && q.Get("sendNotificationEmail") != "false" {
		d.mails = append(d.mails, Mail{To: p.email, FileID: f.id, Message: q.Get("emailMessage")})
	}
	d.touch(f, false)
	return sel.apply(p.json()), nil
}

func (d *Drive) permissionsDelete(w http.ResponseWriter, r *http.Request) (any, *apiError) {
	d.mu.Lock()
	defer d.mu.Unlock()
	f, err := d.find(r.PathValue("id"))
	if err != nil {
		return nil, err
	}
	i := slices.IndexFunc(f.perms, func(p *permission) bool { return p.id == r.PathValue("perm") })
	if i < 0 {
		return nil, notFound("Permission", r.PathValue("perm"))
	}
	f.perms = slices.Delete(f.perms, i, i+1)
	d.touch(f, false)
	w.WriteHeader(http.StatusNoContent)
	return nil, nil
}
