//go:build integration

package integration

import (
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
)

// TestPages: a registry whose catalogue has more repositories than it gives at
// once, and a repository with more tags than that.
func TestPages(t *testing.T) {
	const page, repositories, tags = 5, 23, 17
	r := startRegistry(t, registryOptions{page: page})
	img := imageOf(t, v1.Config{Cmd: []string{"/bin/true"}}, layerOf(t, regular("file", 0o644, "text")))
	for i := range repositories {
		r.push(fmt.Sprintf("many/image%02d:1", i), img)
	}
	for i := range tags {
		r.push(fmt.Sprintf("many/image00:tag%02d", i), img)
	}
	t.Run("catalogue", func(t *testing.T) {
		d := r.mount(t)
		d.want(fmt.Sprint(repositories), "ls -d lab/many/*:1.simg | wc -l")
		d.want(fmt.Sprint(tags+1), "ls lab/many/image00/ | wc -l")
	})
	// The real registry gives all tags at once; others give pages of them.
	t.Run("tags", func(t *testing.T) {
		f := behind(t, r)
		f.troubled(func(req *http.Request) *fault {
			if kindOf(req) != tagLists {
				return nil
			}
			return &fault{rewrite: func(body []byte, h http.Header) []byte {
				var list struct {
					Name string   `json:"name"`
					Tags []string `json:"tags"`
				}
				if err := json.Unmarshal(body, &list); err != nil {
					return body
				}
				slices.Sort(list.Tags)
				at, _ := slices.BinarySearch(list.Tags, req.URL.Query().Get("last")+"\x00")
				list.Tags = list.Tags[at:]
				if len(list.Tags) > page {
					list.Tags = list.Tags[:page]
					h.Set("Link", fmt.Sprintf(`</v2/%s/tags/list?last=%s&n=%d>; rel="next"`, list.Name, list.Tags[page-1], page))
				}
				b, _ := json.Marshal(list)
				h.Set("Content-Length", strconv.Itoa(len(b)))
				return b
			}}
		})
		d := f.mount(t)
		d.want(fmt.Sprint(tags+1), "ls lab/many/image00/ | wc -l")
		if n := f.requests(tagLists); n < (tags+1)/page+1 {
			t.Errorf("%d requests for tags", n)
		}
	})
	// A page that breaks the listing off makes it no shorter one.
	t.Run("cut", func(t *testing.T) {
		f := behind(t, r)
		f.troubled(func(req *http.Request) *fault {
			if req.URL.Path == "/v2/_catalog" && req.URL.Query().Get("last") != "" {
				return &fault{status: http.StatusBadRequest}
			}
			return nil
		})
		d := f.mount(t)
		d.fails("Input/output error", "ls lab/many")
		f.troubled(nil)
		d.eventually("the listing", func() error {
			_, _, err := d.try("test $(ls -d lab/many/*:1.simg | wc -l) = %d", repositories)
			return err
		})
	})
}

// TestNewCollection: an image is found as soon as it is pushed, also below a name
// that the last listing had not.
func TestNewCollection(t *testing.T) {
	r := startRegistry(t, registryOptions{})
	img := imageOf(t, v1.Config{Cmd: []string{"/bin/true"}}, layerOf(t, regular("file", 0o644, "text")))
	r.push("old/tool:1", img)
	f := behind(t, r)
	d := f.mount(t)
	d.want("old", "ls lab")
	d.fails("No such file", "stat lab/new")
	r.push("new/deep/tool:1", img)
	d.run("head -c 4096 lab/new/deep/tool:1.simg | wc -c")
	d.want("tool:1.simg", "ls lab/new/deep")
	d.want("new\nold", "ls lab")
	before := f.requests("/v2/_catalog")
	d.fails("No such file", "stat lab/nothing")
	if n := f.requests("/v2/_catalog") - before; n > 1 {
		t.Errorf("a name that leads nowhere costs %d requests for the catalogue", n)
	}
}
