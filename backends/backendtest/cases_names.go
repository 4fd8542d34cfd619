package backendtest

import (
	"strings"

	"github.com/sregfs/sregfs/backends"
)

// oddNames are names that careless quoting breaks, in URLs, queries, JSON,
// shells and paths.
var oddNames = []struct{ name, text string }{
	{"Space", "two words"},
	{"Percent", "100%"},
	{"PercentEncoded", "a%2Fb%20c%25"},
	{"Hash", "a#b"},
	{"Question", "a?b=c"},
	{"Plus", "c++"},
	{"Ampersand", "a&b;c"},
	{"SingleQuote", "it's"},
	{"DoubleQuote", `say "hi"`},
	{"Backslash", `a\b`},
	{"Brackets", "[a]{b}(c)*"},
	{"Angle", "a<b>|c"},
	{"Dots", "v1.0..rc_1-x"},
	{"TrailingDot", "end."},
	{"LeadingDash", "-rf"},
	{"At", "user@host"},
	{"Dollar", "$HOME `id` ~!"},
	{"NFC", "caf\u00e9"},
	{"NFD", "cafe\u0301"},
	{"CJK", "画像"},
	{"Emoji", "octo\U0001F419pus"},
	{"Case", "MixedCase"},
	{"Long", strings.Repeat("long-", 40)},
}

// nameCases push, find, list, read and remove an image of each odd name.
func nameCases() (cases []testCase) {
	check := func(e *env, r backends.Ref) {
		e.Helper()
		data := []byte(r.String())
		img := e.push(r, data)
		if img.Ref != r {
			e.Errorf("the push returns the name %q, want %q", img.Ref, r)
		}
		e.wantOne(r)
		now := e.stat(r)
		if now.Ref != r {
			e.Errorf("Stat(%q) returns the name %q", r, now.Ref)
		}
		e.wantContent(now, data)
		if rm, ok := backends.As[backends.Remover](e.store); ok {
			e.must(rm.Remove(e.ctx, now), "Remove(%q)", r)
			e.wantNone(r)
		}
	}
	for _, n := range oddNames {
		cases = append(cases, testCase{"Names/" + n.name, nil, func(e *env) {
			check(e, ref("pusheen", n.text, "red"))
		}})
	}
	return append(cases,
		testCase{"Names/Refused", canPush, func(e *env) {
			// A store need not take these; but who asks is told before the bytes
			// are copied, not afterwards.
			for _, r := range []backends.Ref{
				ref("pusheen", "fine", "red"), ref("pusheen", "Upper_", "-x"), ref("pusheen", `a\b`, "red"), ref("pusheen ", "i", "x"),
				ref("a//b", "i", "x"), ref("..", "i", "x"), ref(".hidden", "i", "x"), ref("c", ".hidden", "x"), ref("c", "del\x7f", "x"),
				ref("c", "bad\xff", "x"), ref("c", "i", "x:y"), ref("c", strings.Repeat("n", 250), "red"), ref("c", strings.Repeat("画", 90), "x"),
			} {
				var told error
				if n, ok := backends.As[backends.Namer](e.store); ok {
					told = n.CheckName(r)
				}
				if told != nil {
					e.wantErr(told, backends.ErrInvalidName, "CheckName(%q)", r)
				}
				_, err := capability[backends.Pusher](e).Begin(e.ctx, r, "")
				if told != nil || err != nil {
					e.wantErr(err, backends.ErrInvalidName, "Begin(%q)", r)
				}
				if (told == nil) != (err == nil) {
					e.Errorf("CheckName(%q) says %v, but Begin %v", r, told, err)
				}
			}
		}},
		testCase{"Names/OddTag", nil, func(e *env) { check(e, ref("c", "i", "v1.0 +x'y%41")) }},
		testCase{"Names/OddCollection", nil, func(e *env) { check(e, ref("my café & co/it's 100%", "i", "x")) }},
		testCase{"Names/Nested", nil, func(e *env) { check(e, ref("nvidia/clara/deploy", "i", "x")) }},
		testCase{"Names/SameNameAsCollection", nil, func(e *env) {
			check(e, ref("a", "b", "x"))
			e.push(ref("a/b", "c", "x"), []byte("below"))
			e.push(ref("a", "b", "x"), []byte("beside"))
			e.wantContent(e.stat(ref("a/b", "c", "x")), []byte("below"))
			e.wantContent(e.stat(ref("a", "b", "x")), []byte("beside"))
		}},
		testCase{"Names/CaseMatters", func(o Opts) bool { return !o.FoldsCase }, func(e *env) {
			upper, lower := ref("c", "Image", "x"), ref("c", "image", "x")
			e.push(upper, []byte("upper"))
			e.wantNone(lower)
			e.push(lower, []byte("lower"))
			e.wantContent(e.stat(upper), []byte("upper"))
			e.wantContent(e.stat(lower), []byte("lower"))
		}},
		testCase{"Names/CaseFolds", func(o Opts) bool { return o.FoldsCase }, func(e *env) {
			e.push(ref("Coll", "Image", "x"), []byte("first"))
			img := e.stat(ref("coll", "iMAGE", "x"))
			if img.Ref != ref("Coll", "Image", "x") {
				e.Errorf("found under another case it is named %s, want the name as it was kept", img.Ref)
			}
			e.push(ref("coll", "image", "x"), []byte("second"))
			if n := len(e.list().images); n != 1 {
				e.Errorf("%d images are listed, want one", n)
			}
			e.wantContent(e.stat(ref("Coll", "Image", "x")), []byte("second"))
		}},
		testCase{"Names/NormalizationMatters", nil, func(e *env) {
			e.push(ref("c", "caf\u00e9", "x"), []byte("composed"))
			e.wantNone(ref("c", "cafe\u0301", "x"))
		}},
	)
}
