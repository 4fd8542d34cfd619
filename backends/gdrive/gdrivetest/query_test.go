package gdrivetest

import (
	"slices"
	"testing"
	"time"
)

func TestQuery(t *testing.T) {
	d, err := New(Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	must := func(s Seed) string {
		t.Helper()
		id, err := d.Add(s)
		if err != nil {
			t.Fatal(err)
		}
		return id
	}
	folder := must(Seed{Name: "sregistry", MimeType: FolderType, Modified: time.Unix(1000, 0)})
	must(Seed{Name: "HelloWorld it's.simg", Parent: folder, Modified: time.Unix(2000, 0), Properties: map[string]string{"type": "container", "o'k": `b\s`}})
	must(Seed{Name: "other", Modified: time.Unix(3000, 0)})
	bin := must(Seed{Name: "bin", MimeType: FolderType, Modified: time.Unix(1000, 0)})
	must(Seed{Name: "binned", Parent: bin, Modified: time.Unix(1000, 0)})
	if err := d.Trash(bin); err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		q    string
		want []string // names; nil for an error
	}{
		{"", []string{"HelloWorld it's.simg", "bin", "binned", "other", "sregistry"}},
		{"trashed = false", []string{"HelloWorld it's.simg", "other", "sregistry"}},
		{"trashed=true", []string{"bin", "binned"}},
		{"trashed!=true and not name = 'other'", []string{"HelloWorld it's.simg", "sregistry"}},
		{"name = 'OTHER'", []string{"other"}},
		{`name = 'helloworld it\'s.simg'`, []string{"HelloWorld it's.simg"}},
		{"name contains 'hello'", []string{"HelloWorld it's.simg"}},
		{"name contains 'World'", []string{}},
		{"name contains 'simg'", []string{"HelloWorld it's.simg"}},
		{"fullText contains 'helloworld'", []string{"HelloWorld it's.simg"}},
		{"fullText contains 'hello'", []string{}},
		{"'" + folder + "' in parents", []string{"HelloWorld it's.simg"}},
		{"'root' in parents and trashed = false", []string{"other", "sregistry"}},
		{"'nobody' in parents", []string{}},
		{"mimeType = 'application/vnd.google-apps.folder' and (name = 'bin' or name = 'sregistry')", []string{"bin", "sregistry"}},
		{"mimeType contains 'application/vnd'", []string{"bin", "sregistry"}},
		{"properties has { key='type' and value='container' }", []string{"HelloWorld it's.simg"}},
		{`properties has { key='o\'k' and value='b\\s' }`, []string{"HelloWorld it's.simg"}},
		{"appProperties has { key='type' and value='container' }", []string{}},
		{"modifiedTime > '1970-01-01T00:30:00'", []string{"HelloWorld it's.simg", "other"}},
		{"modifiedTime <= '1970-01-01T00:33:20Z' and trashed = false", []string{"HelloWorld it's.simg", "sregistry"}},
		{"'me' in owners and name = 'other'", []string{"other"}},
		{"sharedWithMe = true", []string{}},
		{"name = 'bin' or name = 'other' and name = 'sregistry'", []string{}},
		{"name = 'bin' or (name = 'other' and name = 'sregistry')", []string{"bin"}},
		{"name = 'bin' and name = 'other' or name = 'sregistry'", []string{"sregistry"}},
		{"name = 'a", nil},
		{"name == 'a'", nil},
		{"name = other", nil},
		{"name > 'a'", nil},
		{"size > 3", nil},
		{"trashed = 'true'", nil},
		{"(name = 'a'", nil},
		{"name = 'a' name = 'b'", nil},
		{"name = 'a' AND name = 'b'", nil},
		{`name = 'a\b'`, nil},
		{"'a' in name", nil},
		{"modifiedTime > 'yesterday'", nil},
		{"properties has { key='type' }", nil},
		{"id = 'x'", nil},
	} {
		q, _, err := parseQuery(tc.q)
		if (err != nil) != (tc.want == nil) {
			t.Errorf("parseQuery(%q): %v", tc.q, err)
			continue
		}
		if err != nil {
			continue
		}
		got := []string{}
		for _, f := range d.candidates(q) {
			if f != d.root && q.match(d, f) {
				got = append(got, f.name)
			}
		}
		slices.Sort(got)
		if !slices.Equal(got, tc.want) {
			t.Errorf("%q: got %q, want %q", tc.q, got, tc.want)
		}
	}
}

func FuzzQuery(f *testing.F) {
	f.Add(`name = 'a\'b' and not ('x' in parents or properties has {key='k' and value='v'})`)
	f.Add("((((((((")
	d, err := New(Options{})
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(func() { d.Close() })
	if _, err := d.Add(Seed{Name: "a'b"}); err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, s string) {
		q, _, err := parseQuery(s)
		if err != nil {
			return
		}
		// The indexes must never hide what the query matches.
		indexed := d.candidates(q)
		for id, file := range d.files {
			if file != d.root && q.match(d, file) && indexed[id] == nil {
				t.Fatalf("%q: the index leaves %q out", s, file.name)
			}
		}
	})
}

func TestFields(t *testing.T) {
	v := map[string]any{
		"kind":          "drive#fileList",
		"nextPageToken": "n",
		"files": []any{map[string]any{
			"id": "1", "name": "a", "properties": map[string]string{"k": "v", "l": "w"}, "capabilities": map[string]any{"canEdit": true, "canCopy": true},
		}},
	}
	for fields, want := range map[string]string{
		"*":                              `{"files":[{"capabilities":{"canCopy":true,"canEdit":true},"id":"1","name":"a","properties":{"k":"v","l":"w"}}],"kind":"drive#fileList","nextPageToken":"n"}`,
		"nextPageToken, files(id,name)":  `{"files":[{"id":"1","name":"a"}],"nextPageToken":"n"}`,
		"files/id,files/name":            `{"files":[{"id":"1","name":"a"}]}`,
		"files(properties/k)":            `{"files":[{"properties":{"k":"v"}}]}`,
		"files/capabilities(canEdit)":    `{"files":[{"capabilities":{"canEdit":true}}]}`,
		"files(id,capabilities/canEdit)": `{"files":[{"capabilities":{"canEdit":true},"id":"1"}]}`,
		"kind,files(*)":                  `{"files":[{"capabilities":{"canCopy":true,"canEdit":true},"id":"1","name":"a","properties":{"k":"v","l":"w"}}],"kind":"drive#fileList"}`,
		"files":                          `{"files":[{"capabilities":{"canCopy":true,"canEdit":true},"id":"1","name":"a","properties":{"k":"v","l":"w"}}]}`,
		"files(id),files":                `{"files":[{"capabilities":{"canCopy":true,"canEdit":true},"id":"1","name":"a","properties":{"k":"v","l":"w"}}]}`,
	} {
		sel, err := fileListResource.selection(fields)
		if err != nil {
			t.Errorf("%s: %v", fields, err)
			continue
		}
		if got := jsonText(t, sel.apply(v)); got != want {
			t.Errorf("%s:\n got %s\nwant %s", fields, got, want)
		}
	}
	for _, fields := range []string{"id", "files(nothing)", "files(id", "files(id))", "files//id", ",", "files(id/x)", "a,b"} {
		if _, err := fileListResource.selection(fields); err == nil {
			t.Errorf("%q was accepted", fields)
		}
	}
}

func FuzzFields(f *testing.F) {
	f.Add("files(id,capabilities/canEdit),nextPageToken")
	f.Fuzz(func(t *testing.T, s string) {
		if sel, err := fileListResource.selection(s); err == nil && sel == nil {
			t.Fatal("neither a selection nor an error")
		}
	})
}
