package index

import (
	"slices"
	"strings"
	"testing"

	"github.com/sregfs/sregfs/backends"
)

// uris are the found images' names.
func uris(found []Found) []string {
	var all []string
	for _, f := range found {
		all = append(all, f.Client+"://"+f.Image.Ref.String())
	}
	return all
}

func TestSearch(t *testing.T) {
	x, ctx := openTest(t), t.Context()
	labelled := image("vsoch/hello-world:pancakes", "1aBcD", "r")
	labelled.Labels = map[string]string{"org.label-schema.Build": "Größe 100%_\"x\"", "k": "v"}
	learnt := image("expfactory/expfactory:v2.0", "2", "r")
	learnt.Sum = backends.Checksum{Algorithm: backends.MD5, Hex: "03c1ab08e58c6a5101bc790cd9836d25"}
	replace(t, x, []backends.Image{
		labelled, learnt, image("pusheen/asaurus:green", "3", "r"), image("/top:Latest", "4", "r"),
		at(image("a/dup:1", "60", "older"), 1), at(image("a/dup:1", "61", "newer"), 2),
	})
	if _, err := x.PutImage(ctx, "gdrive", image("pusheen/asaurus:red", "5", "r")); err != nil {
		t.Fatal(err)
	}
	if err := x.SetAttributes(ctx, learnt.ContentKey("dropbox"), []byte(`{}`), map[string]string{"Maintainer": "Vanessa Sochat"}); err != nil {
		t.Fatal(err)
	}
	const (
		hello = "dropbox://vsoch/hello-world:pancakes"
		exp   = "dropbox://expfactory/expfactory:v2.0"
		green = "dropbox://pusheen/asaurus:green"
		top   = "dropbox:///top:Latest"
		red   = "gdrive://pusheen/asaurus:red"
		dup   = "dropbox://a/dup:1"
	)
	for _, stage := range []string{"before indexing", "after indexing"} {
		for _, c := range []struct {
			client, word string
			want         []string
		}{
			{"", "asaurus", []string{green, red}},
			{"dropbox", "asaurus", []string{green}},
			{"", "ASAURUS:RED", []string{red}},
			{"", "sh", []string{green, red}},
			{"", "n/a", []string{green, red}},
			{"", "h", []string{exp, green, hello, red}},
			{"", "abcd", []string{hello}},
			{"", "1a", []string{hello}},
			{"", "label-schema.build", []string{hello}},
			{"", "grÖße", []string{hello}},
			{"", `100%_"x"`, []string{hello}},
			{"", `%_"`, []string{hello}},
			{"", "%", []string{hello}},
			{"", "_", []string{hello}},
			{"", "vanessa", []string{exp}},
			{"", "maintainervanessa", nil}, // key and value are two things
			{"", "top:latest", []string{top}},
			{"", "dup", []string{dup}},
			{"", "hello-world:pancakesabcd", nil},
			{"", "nothing", nil},
			{"", "asaurus*", nil},
			{"", "asaurus OR hello", nil},
			{"", "NOT x", nil},
			{"", "text:asaurus", nil},
			{"", `" OR "`, nil},
			{"", "pusheen/asaurus:green and much more that does not fit", nil},
			{"", "expfactory/expfactory:v2.0", []string{exp}},
			{"", "", []string{top, dup, exp, green, hello, red}},
			{"gdrive", "", []string{red}},
			{"nobody", "", nil},
		} {
			found, err := x.Search(ctx, c.client, c.word, 0)
			if err != nil || !slices.Equal(uris(found), c.want) {
				t.Errorf("%s: Search(%q, %q) = %q, %v; want %q", stage, c.client, c.word, uris(found), err, c.want)
			}
			if len(found) == 1 && found[0].Image.Ref.Name == "dup" && found[0].Image.Revision != "newer" {
				t.Errorf("%s: found the older one", stage)
			}
		}
		for limit := 1; limit < 8; limit++ {
			if found, err := x.Search(ctx, "", "", limit); err != nil || len(found) != min(limit, 6) {
				t.Errorf("%s: %d of at most %d, %v", stage, len(found), limit, err)
			}
		}
		drain(t, x)
	}

	// Changes and removals are found, and not found, at once.
	renamed := labelled
	renamed.Ref.Name = "bye"
	if _, err := x.PutImage(ctx, "dropbox", renamed); err != nil {
		t.Fatal(err)
	}
	if _, err := x.RemoveImage(ctx, "dropbox", learnt); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		for word, want := range map[string]int{"hello": 0, "bye:pancakes": 1, "vanessa": 0, "größe": 1} {
			if found, err := x.Search(ctx, "", word, 0); err != nil || len(found) != want {
				t.Errorf("then Search(%q) = %q, %v; want %d", word, uris(found), err, want)
			}
		}
		drain(t, x)
	}
	// Labels that change once an image is indexed.
	if err := x.SetAttributes(ctx, renamed.ContentKey("dropbox"), []byte(`{"a":1}`), map[string]string{"late": "arrival"}); err != nil {
		t.Fatal(err)
	}
	if found, err := x.Search(ctx, "", "arrival", 0); err != nil || len(found) != 1 {
		t.Errorf("Search for a label that came late = %q, %v", uris(found), err)
	}
}

// TestSearchPages finds more than one page of them.
func TestSearchPages(t *testing.T) {
	x, ctx := openTest(t), t.Context()
	x.page = 50
	n := 2*x.page + 10
	if _, err := x.ReplaceListing(ctx, "dropbox", synthetic(n, 0), ""); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		for _, word := range []string{"im", "image"} {
			if found, err := x.Search(ctx, "", word, 0); err != nil || len(found) != n {
				t.Errorf("Search(%q) finds %d, %v", word, len(found), err)
			}
		}
		drain(t, x)
	}
}

// FuzzSearch compares with strings.Contains, for any word.
func FuzzSearch(f *testing.F) {
	for _, word := range []string{"asaurus", "", "00\x00", `"`, `a" OR "b`, "%", "' OR 1=1 --", "\x00", "\xff\xfe\xfd", "ÄÖÜ", "İstanbul", "a\x1fb", "*", "text : x", "^x", "NEAR(a b)", "{a}:b"} {
		f.Add(word)
	}
	x, err := Open(f.Context(), Options{State: f.TempDir() + "/state.db"})
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(func() { x.Close() })
	f.Fuzz(func(t *testing.T, word string) {
		// An image with the word in it, and one without.
		with, without := image("a/b:1", "1", "r"), image("a/c:1", "2", "r")
		with.Labels = map[string]string{"key": "before" + word + "behind"}
		all := []backends.Image{with, without}
		for n := range all {
			if _, err := x.PutImage(t.Context(), "dropbox", all[n]); err != nil {
				t.Fatal(err)
			}
		}
		for indexed := range 2 {
			found, err := x.Search(t.Context(), "", word, 0)
			if err != nil {
				t.Fatalf("Search(%q): %v", word, err)
			}
			var want []string
			for _, img := range all {
				s := stored{image: img}
				if strings.Contains(s.words(), searchable(word)) && !strings.Contains(word, separator) {
					want = append(want, "dropbox://"+img.Ref.String())
				}
			}
			if !slices.Equal(uris(found), want) {
				t.Fatalf("Search(%q), indexed %v, = %q, want %q", word, indexed, uris(found), want)
			}
			drain(t, x)
		}
	})
}

func TestTrigrams(t *testing.T) {
	for word, want := range map[string]string{
		"abc":  `"abc"`,
		"abcd": `"abc" AND "bcd"`,
		`a"b`:  `"a""b"`,
		"äöü":  `"äöü"`,
	} {
		if got := trigrams(word); got != want {
			t.Errorf("trigrams(%q) = %s, want %s", word, got, want)
		}
	}
	long := trigrams(strings.Repeat("x", 1000))
	if n := strings.Count(long, " AND ") + 1; n != maxTrigrams {
		t.Errorf("a long word has %d trigrams", n)
	}
}
