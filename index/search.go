package index

import (
	"cmp"
	"context"
	"database/sql"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/sregfs/sregfs/backends"
)

// Found is one image that a search found.
type Found struct {
	Client string
	Image  backends.Image
}

// separator keeps what can be found of an image apart, so that no word matches
// across two of them.
const separator = "\x1f"

// searchable is text in the form that is searched: in lower case, valid UTF-8,
// and without the zero byte, at which FTS5 stops reading.
func searchable(text string) string {
	return strings.ToLower(strings.ReplaceAll(strings.ToValidUTF8(text, "\ufffd"), "\x00", "\ufffd"))
}

// Search finds the images of a client, or of all with "", that word is a part
// of: of COLLECTION/NAME:TAG, of the ID, or of a label's key or value, whatever
// the case. The empty word finds all. It returns at most limit of them, without
// a limit if that is 0, by client, directory and file name; of several objects
// with one name, the newest that matches.
func (x *Index) Search(ctx context.Context, client, word string, limit int) ([]Found, error) {
	found, err := x.search(ctx, client, word, limit)
	return found, x.state.failed("search", err)
}

func (x *Index) search(ctx context.Context, client, word string, limit int) ([]Found, error) {
	var id int64
	if client != "" {
		var err error
		if id, err = x.client(ctx, client); err != nil || id == 0 {
			return nil, err
		}
	}
	word = searchable(word)
	if strings.Contains(word, separator) {
		return nil, nil
	}
	type name struct {
		client string
		place  Place
	}
	best := map[name]stored{}
	full := func() bool { return limit > 0 && len(best) >= limit }
	// The words that are indexed may be older than the image, so its own decide.
	keep := func(s stored) {
		if !strings.Contains(s.words(), word) {
			return
		}
		n := name{s.client, s.place}
		if old, ok := best[n]; !ok && full() || ok && newer(old, s) <= 0 {
			return
		}
		best[n] = s
	}
	// What waits to be indexed is read one by one. First, as the indexer may
	// move it from here to there meanwhile.
	waiting := false
	for after := int64(0); !full(); {
		all, err := x.found(ctx, foundSelect+`JOIN search_queue q ON q.id = i.id
			WHERE q.id > ?1 AND (?2 = 0 OR i.client = ?2) ORDER BY q.id LIMIT ?3`, after, id, x.page)
		if err != nil {
			return nil, err
		}
		for _, s := range all {
			waiting = true
			keep(s)
			after = s.id
		}
		if len(all) < x.page {
			break
		}
	}
	if waiting {
		x.wakeIndexer()
	}
	query, match := searchAll, ""
	if utf8.RuneCountInString(word) >= 3 {
		query, match = searchTrigram, trigrams(word)
	}
	for after := int64(0); !full(); {
		all, err := x.found(ctx, query, after, id, x.page, word, match)
		if err != nil {
			return nil, err
		}
		for _, s := range all {
			keep(s)
			after = s.id
		}
		if len(all) < x.page {
			break
		}
	}
	found := make([]Found, 0, len(best))
	names := make([]name, 0, len(best))
	for n := range best {
		names = append(names, n)
	}
	slices.SortFunc(names, func(a, b name) int {
		return cmp.Or(cmp.Compare(a.client, b.client), cmp.Compare(a.place.Dir, b.place.Dir), cmp.Compare(a.place.File, b.place.File))
	})
	for _, n := range names {
		found = append(found, Found{Client: n.client, Image: best[n].image})
	}
	return found, nil
}

// found runs a query that begins with foundSelect.
func (x *Index) found(ctx context.Context, query string, args ...any) ([]stored, error) {
	rows, err := x.state.read.rows(ctx, query, args...)
	return scanAllFound(rows, err)
}

func scanAllFound(rows *sql.Rows, err error) ([]stored, error) {
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	var all []stored
	scanner := foundScanner()
	for rows.Next() {
		s, err := scanner.scan(rows)
		if err != nil {
			return nil, err
		}
		all = append(all, s)
	}
	return all, rows.Err()
}

// Both queries test for the word itself; the trigrams only spare reading all.
const (
	searchAll = foundSelect + `WHERE i.id IN (
		SELECT w.id FROM words w JOIN image j ON j.id = w.id
		WHERE w.id > ?1 AND (?2 = 0 OR j.client = ?2) AND instr(w.text, ?4) > 0 AND ?5 = ''
		ORDER BY w.id LIMIT ?3) ORDER BY i.id`
	searchTrigram = foundSelect + `WHERE i.id IN (
		SELECT w.id FROM trigram JOIN words w ON w.id = trigram.rowid JOIN image j ON j.id = w.id
		WHERE trigram MATCH ?5 AND trigram.rowid > ?1 AND (?2 = 0 OR j.client = ?2) AND instr(w.text, ?4) > 0
		ORDER BY trigram.rowid LIMIT ?3) ORDER BY i.id`
)

// maxTrigrams is how many trigrams of a long word narrow a search down.
const maxTrigrams = 16

// trigrams is the FTS5 expression for texts that have all three-letter parts of
// word in them. Each is a quoted string, in which only the quote is special
// (https://www.sqlite.org/fts5.html#fts5_strings).
func trigrams(word string) string {
	runes := []rune(word)
	n := min(len(runes)-2, maxTrigrams)
	parts := make([]string, n)
	for i := range n {
		parts[i] = `"` + strings.ReplaceAll(string(runes[i:i+3]), `"`, `""`) + `"`
	}
	return strings.Join(parts, " AND ")
}

// indexBatch is how many images are indexed while other writers wait.
const indexBatch = 1000

// wakeIndexer has the queue worked off soon.
func (x *Index) wakeIndexer() {
	select {
	case x.indexing <- struct{}{}:
	default:
	}
}

// followQueue keeps the search index up with the images until ctx ends.
func (x *Index) followQueue(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-x.indexing:
		}
		for more := true; more && ctx.Err() == nil; {
			var err error
			if more, err = x.indexSome(ctx); err != nil && ctx.Err() == nil {
				// Searches still find all, by reading what waits.
				x.log.Warn("the search index is behind", "error", err)
				select {
				case <-ctx.Done():
				case <-time.After(time.Minute):
				}
			}
		}
	}
}

// indexSome takes a batch from the queue; more says that there may be others.
func (x *Index) indexSome(ctx context.Context) (more bool, err error) {
	err = x.write(ctx, "index for search", func(t *txn) error {
		rows, err := t.rows(foundSelect+`JOIN search_queue q ON q.id = i.id ORDER BY q.id LIMIT ?`, indexBatch)
		all, err := scanAllFound(rows, err)
		if err != nil {
			return err
		}
		for _, s := range all {
			if err := t.index(s.id, s.words()); err != nil {
				return err
			}
		}
		more = len(all) == indexBatch
		return nil
	})
	return more, err
}

func (t *txn) index(id int64, words string) error {
	var old string
	had, err := t.row([]any{&old}, `SELECT text FROM words WHERE id = ?`, id)
	if err != nil {
		return err
	}
	if _, err := t.exec(`DELETE FROM search_queue WHERE id = ?`, id); err != nil || had && old == words {
		return err
	}
	if had {
		if _, err := t.exec(`DELETE FROM trigram WHERE rowid = ?`, id); err != nil {
			return err
		}
	}
	if _, err := t.exec(`INSERT INTO trigram (rowid, text) VALUES (?, ?)`, id, words); err != nil {
		return err
	}
	_, err = t.exec(`INSERT OR REPLACE INTO words VALUES (?, ?)`, id, words)
	return err
}
