//go:build integration

package integration

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
)

// TestOddFeeds: a change feed that tells things twice, tells old news once more
// before the new, or tells a page backwards, leads to the same tree as one that
// does not.
func TestOddFeeds(t *testing.T) {
	type events = []json.RawMessage
	for name, alter := range map[string]func(old, now events) events{
		"twice":          func(_, now events) events { return append(slices.Clone(now), now...) },
		"backwards":      func(_, now events) events { now = slices.Clone(now); slices.Reverse(now); return now },
		"old news first": func(old, now events) events { return append(slices.Clone(old), now...) },
	} {
		t.Run(name, func(t *testing.T) {
			eachService(t, func(t *testing.T, s service) {
				if s.forget == nil {
					t.Log("has no change feed")
					return
				}
				p := s.through(t, nil)
				var mu sync.Mutex
				var told events
				p.change(func(r *http.Response) {
					list := ""
					switch path := r.Request.URL.Path; {
					case strings.HasSuffix(path, "/list_folder/continue"):
						list = "entries"
					case strings.HasSuffix(path, "/changes"):
						list = "changes"
					}
					if list == "" || r.StatusCode != http.StatusOK {
						return
					}
					data, err := io.ReadAll(r.Body)
					if err != nil {
						t.Error(err)
						return
					}
					_ = r.Body.Close()
					var page map[string]json.RawMessage
					var now events
					if json.Unmarshal(data, &page) == nil {
						_ = json.Unmarshal(page[list], &now) // what is no list stays as it is
					}
					if len(now) > 0 {
						mu.Lock()
						page[list], _ = json.Marshal(alter(told, now)) // it was JSON before
						told = append(told, now...)
						mu.Unlock()
						data, _ = json.Marshal(page)
					}
					r.Body = io.NopCloser(bytes.NewReader(data))
					r.ContentLength = int64(len(data))
					r.Header.Set("Content-Length", fmt.Sprint(len(data)))
				})
				red, green := smallImage(t, 1), smallImage(t, 2)
				s.put(t, "pusheen/a:0", red)
				d := newMachine(t, s.env...).mount("--client=" + s.client)
				d.run("ls %s/pusheen", s.client)
				// content is what each image is to be, "" for nothing.
				content := map[string]string{"0": red}
				check := func() {
					t.Helper()
					var names []string
					line := ""
					for tag, image := range content {
						if image == "" {
							line += fmt.Sprintf("test ! -e %s/pusheen/a:%s.simg && ", s.client, tag)
							continue
						}
						names = append(names, "a:"+tag+".simg")
						line += fmt.Sprintf("cmp %s %s/pusheen/a:%s.simg && ", image, s.client, tag)
					}
					slices.Sort(names)
					d.soon(`%s test "$(echo $(ls %s/pusheen))" = "%s"`, line, s.client, strings.Join(names, " "))
				}
				put := func(tag, image string) { s.put(t, "pusheen/a:"+tag, image); content[tag] = image }
				put("1", red)
				put("2", red)
				check()
				s.remove("pusheen/a:0")
				s.remove("pusheen/a:1")
				put("3", red)
				content["0"], content["1"] = "", ""
				check()
				put("1", green)
				put("0", green)
				s.remove("pusheen/a:3")
				content["3"] = ""
				check()
				// Mine, and theirs.
				d.run("cp %s %s/pusheen/a:4.simg && rm %[2]s/pusheen/a:2.simg", green, s.client)
				content["4"], content["2"] = green, ""
				put("5", red)
				check()
				put("2", green)
				check()
			})
		})
	}
}
