package fs

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/sregfs/sregfs/backends"
)

const (
	userSpace = "user."
	ourSpace  = "user.sregistry."
	// maxListed keeps the listed names with their values below what cp -a and
	// rsync -X can put into a file on ext4.
	maxListed = 2000
	// maxListedValue is the longest value whose name is listed.
	maxListedValue = 256
)

// unknownXattr is the answer for an attribute that a node does not have. The
// kernel asks for security labels and ACLs of every file that ls -l shows;
// they are answered from memory and cost nothing.
func unknownXattr(attr string) syscall.Errno {
	if !strings.HasPrefix(attr, userSpace) {
		return syscall.ENOTSUP
	}
	return syscall.ENODATA
}

// noXattrs is for nodes without attributes. Without it go-fuse answers ENODATA
// when one is set, which mv and cp, who try to copy an ACL, call an error.
type noXattrs struct{}

func (noXattrs) Getxattr(ctx context.Context, attr string, dest []byte) (uint32, syscall.Errno) {
	return 0, unknownXattr(attr)
}

func (noXattrs) Setxattr(ctx context.Context, attr string, data []byte, flags uint32) syscall.Errno {
	return syscall.ENOTSUP
}

func (noXattrs) Removexattr(ctx context.Context, attr string) syscall.Errno {
	return unknownXattr(attr)
}

// put answers a getxattr or listxattr: the size when dest is too small for it.
func put(dest, value []byte) (uint32, syscall.Errno) {
	if len(dest) < len(value) {
		return uint32(len(value)), syscall.ERANGE
	}
	return uint32(copy(dest, value)), 0
}

// known are the attributes that need no network, in the order in which they
// are listed.
func (n *fileNode) known(ctx context.Context, img backends.Image) ([]string, map[string]string) {
	img = n.cl.WithVersion(img)
	cached, complete := n.cl.Cached(img)
	location := "remote"
	if complete {
		location = "local"
	}
	values := map[string]string{
		"uri": n.cl.URI(img), "url": img.URL, "client": n.cl.Name, "collection": img.Ref.Collection,
		"name": img.Ref.Name, "tag": img.Ref.Tag, "version": img.Version,
		"size": strconv.FormatInt(n.cl.Size(img), 10), "location": location,
		"cached": strconv.FormatInt(cached, 10), "id": img.ID,
	}
	if t := n.cl.CreatedAt(ctx, img); !t.IsZero() {
		values["created_at"] = t.UTC().Format("2006-01-02 15:04:05")
	}
	names := []string{"uri", "url", "client", "collection", "name", "tag", "version", "size", "created_at", "location", "cached", "id"}
	if c := n.tree.cat.Cache(); c != nil && c.Pinned(n.cl.CacheKey(img)) {
		values["pin"] = "1"
		names = append(names, "pin")
	}
	labels := img.Labels
	if data, ok, err := n.tree.cat.Index().Attributes(ctx, img.ContentKey(n.cl.Name)); err == nil && ok {
		var attrs map[string]any
		if json.Unmarshal(data, &attrs) == nil {
			for k, v := range scripts(attrs) {
				values[k] = v
				names = append(names, k)
			}
			if l := labelsOf(attrs); l != nil {
				labels = l
			}
		}
	}
	keys := make([]string, 0, len(labels))
	for k, v := range labels {
		values["label."+k] = v
		keys = append(keys, "label."+k)
	}
	slices.Sort(keys)
	names = append(names, keys...)
	return slices.DeleteFunc(names, func(k string) bool { return values[k] == "" }), values
}

// scripts are the texts among an image's attributes.
func scripts(attrs map[string]any) map[string]string {
	m := map[string]string{}
	for _, k := range []string{"deffile", "environment", "help", "runscript", "startscript", "test"} {
		if s, ok := attrs[k].(string); ok {
			m[k] = s
		}
	}
	return m
}

func labelsOf(attrs map[string]any) map[string]string {
	in, ok := attrs["labels"].(map[string]any)
	if !ok {
		return nil
	}
	m := make(map[string]string, len(in))
	for k, v := range in {
		if s, ok := v.(string); ok {
			m[k] = s
		}
	}
	return m
}

func (n *fileNode) Listxattr(ctx context.Context, dest []byte) (uint32, syscall.Errno) {
	var list []byte
	room := maxListed
	add := func(name string, value int) {
		if cost := len(name) + 1 + value; value <= maxListedValue && cost <= room {
			list = append(append(list, name...), 0)
			room -= cost
		}
	}
	img, err := n.image(ctx)
	switch {
	case err == nil:
		names, values := n.known(ctx, img)
		for _, k := range names {
			add(ourSpace+k, len(values[k]))
		}
	case !errors.Is(err, syscall.ENODATA):
		return 0, n.tree.fail("list attributes of", n.path(), err)
	}
	own, err := n.userXattrs(ctx)
	if err != nil {
		return 0, n.tree.fail("list attributes of", n.path(), err)
	}
	for _, k := range sortedKeys(own) {
		add(k, len(own[k]))
	}
	return put(dest, list)
}

func sortedKeys[V any](m map[string]V) []string {
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}

// userXattrs are the attributes that users set.
func (n *fileNode) userXattrs(ctx context.Context) (map[string][]byte, error) {
	n.mu.Lock()
	pf, dir, file := n.pf, n.dir, n.file
	n.mu.Unlock()
	if pf != nil {
		if m := pf.userXattrs(); m != nil {
			return m, nil
		}
	}
	return n.tree.cat.Index().Xattrs(ctx, n.cl.Name, dir, file)
}

func (n *fileNode) Getxattr(ctx context.Context, attr string, dest []byte) (uint32, syscall.Errno) {
	if !strings.HasPrefix(attr, userSpace) {
		return 0, syscall.ENOTSUP
	}
	key, ours := strings.CutPrefix(attr, ourSpace)
	if !ours {
		own, err := n.userXattrs(ctx)
		if err != nil {
			return 0, n.tree.fail("read attribute of", n.path(), err)
		}
		value, ok := own[attr]
		if !ok {
			return 0, syscall.ENODATA
		}
		return put(dest, value)
	}
	img, err := n.image(ctx)
	if err != nil {
		return 0, n.tree.fail("read attribute "+key+" of", n.path(), err)
	}
	value, err := n.ask(ctx, img, key)
	if errors.Is(err, syscall.ENODATA) {
		return 0, syscall.ENODATA
	}
	if err != nil {
		return 0, n.tree.fail("read attribute "+key+" of", n.path(), err)
	}
	return put(dest, value)
}

// ask is the value of one of our attributes. Asked for by name, it may be
// read from inside the image or from the remote.
func (n *fileNode) ask(ctx context.Context, img backends.Image, key string) ([]byte, error) {
	switch key {
	case "json":
		return n.cl.Record(ctx, img)
	case "manifest":
		return n.cl.Manifest(ctx, img)
	case "versions":
		return n.versions(ctx, img)
	}
	_, values := n.known(ctx, img)
	if v := values[key]; v != "" {
		return []byte(v), nil
	}
	if inside := slices.Contains(insideNames, key) || strings.HasPrefix(key, "label."); !inside {
		return nil, syscall.ENODATA
	}
	data, err := n.cl.Attributes(ctx, img)
	if err != nil {
		return nil, err
	}
	var attrs map[string]any
	if err := json.Unmarshal(data, &attrs); err != nil {
		return nil, err
	}
	if label, ok := strings.CutPrefix(key, "label."); ok {
		if v, ok := labelsOf(attrs)[label]; ok {
			return []byte(v), nil
		}
	}
	if key == "labels" {
		if l := labelsOf(attrs); l != nil {
			return json.Marshal(l)
		}
	}
	if v, ok := scripts(attrs)[key]; ok {
		return []byte(v), nil
	}
	return nil, syscall.ENODATA
}

// versions are the names that older contents can be opened by, newest first, a
// line each: what to write behind the "@" and the time.
func (n *fileNode) versions(ctx context.Context, img backends.Image) ([]byte, error) {
	list, err := n.cl.Versions(ctx, img.Ref.Latest())
	if errors.Is(err, errors.ErrUnsupported) {
		return nil, syscall.ENODATA
	}
	var b []byte
	for _, v := range list {
		v = n.cl.WithVersion(v)
		name := v.Version
		if name == "" {
			name = v.Ref.Version
		}
		b = fmt.Appendf(b, "%s %s\n", name, v.Modified.UTC().Format(time.RFC3339))
	}
	return b, err
}

// insideNames are attributes that stand inside an image.
var insideNames = []string{"deffile", "environment", "help", "labels", "runscript", "startscript", "test"}

func (n *fileNode) Setxattr(ctx context.Context, attr string, data []byte, flags uint32) syscall.Errno {
	if !strings.HasPrefix(attr, userSpace) {
		return syscall.ENOTSUP
	}
	if key, ours := strings.CutPrefix(attr, ourSpace); ours {
		if key == "pin" {
			on, err := pinned(string(data))
			if err != nil {
				return n.tree.fail("pin", n.path(), err)
			}
			return n.pin(ctx, on)
		}
		// cp -a of an image from this tree brings its attributes along; they
		// describe the source and are this image's own business here.
		return 0
	}
	if flags&(xattrCreate|xattrReplace) != 0 {
		own, err := n.userXattrs(ctx)
		if err != nil {
			return n.tree.fail("set attribute of", n.path(), err)
		}
		switch _, there := own[attr]; {
		case there && flags&xattrCreate != 0:
			return syscall.EEXIST
		case !there && flags&xattrReplace != 0:
			return syscall.ENODATA
		}
	}
	return n.setUserXattr(ctx, attr, slices.Clone(data))
}

// Flags of setxattr(2).
const (
	xattrCreate  = 1 // XATTR_CREATE
	xattrReplace = 2 // XATTR_REPLACE
)

// pinned reads the value of the attribute pin; EINVAL for one that is neither yes
// nor no.
func pinned(value string) (bool, error) {
	value = strings.TrimSpace(value)
	switch strings.ToLower(value) {
	case "", "0", "no", "n", "false", "f", "off":
		return false, nil
	}
	if !backends.IsYes(value) {
		return false, fmt.Errorf("%q is neither 1 nor 0: %w", value, syscall.EINVAL)
	}
	return true, nil
}

func (n *fileNode) Removexattr(ctx context.Context, attr string) syscall.Errno {
	if !strings.HasPrefix(attr, userSpace) {
		return syscall.ENOTSUP
	}
	if attr == ourSpace+"pin" {
		return n.pin(ctx, false)
	}
	own, err := n.userXattrs(ctx)
	if err != nil {
		return n.tree.fail("remove attribute of", n.path(), err)
	}
	if _, ok := own[attr]; !ok {
		return syscall.ENODATA
	}
	return n.setUserXattr(ctx, attr, nil)
}

func (n *fileNode) setUserXattr(ctx context.Context, attr string, value []byte) syscall.Errno {
	n.mu.Lock()
	pf, dir, file := n.pf, n.dir, n.file
	n.mu.Unlock()
	if pf != nil && pf.setXattr(attr, value) {
		return 0
	}
	err := n.tree.cat.Index().SetXattr(ctx, n.cl.Name, dir, file, attr, value)
	return n.tree.fail("set attribute of", n.path(), err)
}

// pin keeps the image's bytes in the cache, or lets them go.
func (n *fileNode) pin(ctx context.Context, on bool) syscall.Errno {
	c := n.tree.cat.Cache()
	if c == nil || n.cl.Local() {
		return 0
	}
	img, err := n.image(ctx)
	if err != nil {
		return n.tree.fail("pin", n.path(), err)
	}
	return n.tree.fail("pin", n.path(), c.Pin(n.cl.CacheKey(img), on))
}

// userXattrs are those of a file that is being written, nil when it is an
// image's next content and keeps the image's.
func (pf *pendingFile) userXattrs() map[string][]byte {
	pf.mu.Lock()
	defer pf.mu.Unlock()
	if pf.base != nil || pf.pushed != nil {
		return nil
	}
	m := map[string][]byte{}
	for k, v := range pf.xattrs {
		m[k] = v
	}
	return m
}

// setXattr keeps an attribute until the push, false where the image is there
// to have it.
func (pf *pendingFile) setXattr(attr string, value []byte) bool {
	pf.mu.Lock()
	defer pf.mu.Unlock()
	if pf.base != nil || pf.pushed != nil {
		return false
	}
	if pf.xattrs == nil {
		pf.xattrs = map[string][]byte{}
	}
	if value == nil {
		delete(pf.xattrs, attr)
	} else {
		pf.xattrs[attr] = value
	}
	return true
}
