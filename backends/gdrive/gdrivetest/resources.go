package gdrivetest

import (
	"cmp"
	"hash/fnv"
	"slices"
	"strconv"
	"strings"
	"time"
)

const timeFormat = "2006-01-02T15:04:05.000Z"

// json is f as the API tells it, with all its fields. The caller holds mu.
func (d *Drive) json(f *file) map[string]any {
	m := map[string]any{
		"kind": "drive#file", "id": f.id, "name": f.name, "mimeType": f.mime,
		"starred": f.starred, "trashed": d.trashed(f), "explicitlyTrashed": f.explicitlyTrashed,
		"version": strconv.FormatInt(f.version, 10), "spaces": []any{"drive"},
		"createdTime": f.created.Format(timeFormat), "modifiedTime": f.modified.Format(timeFormat),
		"ownedByMe": f.owned, "shared": len(f.perms) > 1 || !f.owned, "hasThumbnail": len(f.thumbnail) > 0,
		"webViewLink": "https://drive.google.com/file/d/" + f.id + "/view?usp=drivesdk",
		"capabilities": map[string]any{
			"canEdit": !f.readOnly, "canModifyContent": !f.readOnly, "canRename": !f.readOnly, "canTrash": f.owned,
			"canDelete": f.owned, "canShare": f.owned, "canDownload": true, "canReadRevisions": !f.readOnly, "canCopy": true,
		},
		"quotaBytesUsed": "0",
	}
	if f.description != "" {
		m["description"] = f.description
	}
	if len(f.parents) > 0 && !f.lost {
		m["parents"] = anySlice(f.parents)
	}
	if len(f.props) > 0 {
		m["properties"] = f.props
	}
	if len(f.appProps) > 0 {
		m["appProperties"] = f.appProps
	}
	var owners, perms, ids []any
	for _, p := range f.perms {
		if p.role == "owner" {
			owners = append(owners, map[string]any{"kind": "drive#user", "displayName": p.name, "emailAddress": p.email, "permissionId": p.id, "me": f.owned})
		}
		perms = append(perms, p.json())
		ids = append(ids, p.id)
	}
	m["owners"] = owners
	if f.owned {
		m["permissions"], m["permissionIds"] = perms, ids
	}
	if h := f.head(); h != nil {
		var used int64
		for _, r := range f.revs {
			if r.keep || r == h {
				used += r.size
			}
		}
		m["quotaBytesUsed"] = strconv.FormatInt(used, 10)
		m["size"] = strconv.FormatInt(h.size, 10)
		m["md5Checksum"], m["headRevisionId"] = h.md5, h.id
		if !d.opts.NoSHA256 {
			m["sha256Checksum"] = h.sha256
		}
		m["originalFilename"] = f.name
		if i := strings.LastIndexByte(f.name, '.'); i >= 0 {
			m["fileExtension"], m["fullFileExtension"] = f.name[i+1:], f.name[i+1:]
		}
		m["webContentLink"] = "https://drive.google.com/uc?id=" + f.id + "&export=download"
	}
	if len(f.thumbnail) > 0 {
		m["thumbnailLink"] = "https://lh3.googleusercontent.com/drive-storage/" + f.id
		m["thumbnailVersion"] = "1"
	}
	return m
}

func (p *permission) json() map[string]any {
	m := map[string]any{"kind": "drive#permission", "id": p.id, "type": p.kind, "role": p.role}
	if p.email != "" {
		m["emailAddress"], m["displayName"], m["deleted"] = p.email, p.name, false
	}
	if p.kind == "anyone" {
		m["allowFileDiscovery"] = false
	}
	return m
}

func (r *revision) json() map[string]any {
	return map[string]any{
		"kind": "drive#revision", "id": r.id, "mimeType": r.mime, "modifiedTime": r.modified.Format(timeFormat),
		"keepForever": r.keep, "published": false, "size": strconv.FormatInt(r.size, 10), "md5Checksum": r.md5,
	}
}

// permissionID is the same number for the same address, always.
func permissionID(email string) string {
	h := fnv.New64a()
	h.Write([]byte(strings.ToLower(email)))
	return "0" + strconv.FormatUint(h.Sum64(), 10)
}

func anySlice[T any](list []T) []any {
	out := make([]any, len(list))
	for i, v := range list {
		out[i] = v
	}
	return out
}

// orders are the keys of orderBy (reference of files.list).
var orders = map[string]func(a, b *file) int{
	"createdTime":      func(a, b *file) int { return a.created.Compare(b.created) },
	"modifiedTime":     func(a, b *file) int { return a.modified.Compare(b.modified) },
	"modifiedByMeTime": func(a, b *file) int { return a.modified.Compare(b.modified) },
	"viewedByMeTime":   func(a, b *file) int { return 0 },
	"sharedWithMeTime": func(a, b *file) int { return 0 },
	"recency":          func(a, b *file) int { return a.modified.Compare(b.modified) },
	"name":             func(a, b *file) int { return cmp.Compare(strings.ToLower(a.name), strings.ToLower(b.name)) },
	"name_natural":     func(a, b *file) int { return cmp.Compare(strings.ToLower(a.name), strings.ToLower(b.name)) },
	"folder":           func(a, b *file) int { return cmp.Compare(rank(a.mime != FolderType), rank(b.mime != FolderType)) },
	"starred":          func(a, b *file) int { return cmp.Compare(rank(!a.starred), rank(!b.starred)) },
	"quotaBytesUsed":   func(a, b *file) int { return cmp.Compare(size(a), size(b)) },
}

func rank(last bool) int {
	if last {
		return 1
	}
	return 0
}

func size(f *file) int64 {
	if h := f.head(); h != nil {
		return h.size
	}
	return 0
}

// sortFiles orders files by orderBy, newest creation first where it says
// nothing, which is how Drive answers.
func sortFiles(files []*file, orderBy string) *apiError {
	var keys []func(a, b *file) int
	if orderBy != "" {
		for key := range strings.SplitSeq(orderBy, ",") {
			key, desc := strings.CutSuffix(strings.TrimSpace(key), " desc")
			by, ok := orders[strings.TrimSpace(key)]
			if !ok {
				return invalidParameter("orderBy")
			}
			if desc {
				up := by
				by = func(a, b *file) int { return -up(a, b) }
			}
			keys = append(keys, by)
		}
	}
	slices.SortFunc(files, func(a, b *file) int {
		for _, by := range keys {
			if c := by(a, b); c != 0 {
				return c
			}
		}
		return cmp.Compare(b.seq, a.seq)
	})
	return nil
}

func parseTime(s string) (time.Time, bool) {
	t, err := time.Parse(time.RFC3339Nano, s)
	return t.UTC().Truncate(time.Millisecond), err == nil
}
