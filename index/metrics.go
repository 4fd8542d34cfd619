package index

import (
	"bytes"
	"encoding/json"
	"errors"
	"strings"
	"time"
)

// createdLayout is how SQLAlchemy and SQLite's CURRENT_TIMESTAMP write times,
// which are in UTC; a fraction of a second has six digits or is not there.
const createdLayout = "2006-01-02 15:04:05"

func formatCreated(t time.Time) string {
	if t.Nanosecond() == 0 {
		return t.UTC().Format(createdLayout)
	}
	return t.UTC().Format(createdLayout + ".000000")
}

// parseCreated reads a time of the database; one that cannot be read is the
// zero time.
func parseCreated(s string) time.Time {
	for _, layout := range []string{createdLayout, "2006-01-02T15:04:05", time.RFC3339, "2006-01-02"} {
		// Parse takes a fraction of a second after any layout's seconds.
		if t, err := time.Parse(layout, strings.TrimSpace(s)); err == nil {
			return t.UTC()
		}
	}
	return time.Time{}
}

var errMetrics = errors.New("its metrics are not a JSON object")

// mergeMetrics is old, a JSON object, with the members of changes in place of
// its own, as the Python client's dict.update does it. But what is blank in
// changes leaves old as it is, and "data", which holds what was found inside of
// the image, is merged member by member. An old value that is no object is
// dropped.
func mergeMetrics(old, changes json.RawMessage) (json.RawMessage, error) {
	if len(changes) == 0 {
		return old, nil
	}
	is, ok := object(changes)
	if !ok {
		return nil, errMetrics
	}
	was, ok := object(old)
	if !ok {
		return changes, nil
	}
	wasData, ok1 := object(was["data"])
	isData, ok2 := object(is["data"])
	if ok1 && ok2 {
		update(wasData, isData)
		data, err := encode(wasData)
		if err != nil {
			return nil, err
		}
		is["data"] = data
	}
	update(was, is)
	merged, err := encode(was)
	if err != nil || bytes.Equal(canonical(merged), canonical(old)) {
		return old, err
	}
	return merged, nil
}

// canonical is v with its members in order and no space between.
func canonical(v json.RawMessage) []byte {
	var all any
	d := json.NewDecoder(bytes.NewReader(v))
	d.UseNumber()
	if d.Decode(&all) != nil {
		return nil
	}
	b, err := json.Marshal(all)
	if err != nil {
		return nil
	}
	return b
}

func update(was, is map[string]json.RawMessage) {
	for k, v := range is {
		if _, had := was[k]; !had || !blank(v) {
			was[k] = v
		}
	}
}

// object is a JSON object's members; false for anything else.
func object(v json.RawMessage) (map[string]json.RawMessage, bool) {
	var m map[string]json.RawMessage
	return m, json.Unmarshal(v, &m) == nil && m != nil
}

// blank reports whether v tells nothing: null, or an object of nothing but
// such members.
func blank(v json.RawMessage) bool {
	if string(bytes.TrimSpace(v)) == "null" {
		return true
	}
	m, ok := object(v)
	if !ok {
		return false
	}
	for _, member := range m {
		if !blank(member) {
			return false
		}
	}
	return true
}

func encode(v any) (json.RawMessage, error) {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	if err := e.Encode(v); err != nil {
		return nil, err
	}
	return bytes.TrimSpace(b.Bytes()), nil
}
