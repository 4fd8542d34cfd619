package index

import (
	"database/sql"
	"fmt"
	"strings"
)

// compare finds out what a client must be given and deprived of to hold what
// was staged, and when that was true. Of an object that was staged twice, the
// last one counts. What was learnt since the listing began is left out.
func (r *replacement) compare() error {
	if err := r.conn.QueryRowContext(r.ctx, `SELECT now FROM clock`).Scan(&r.compared); err != nil {
		return err
	}
	// Collections that are still to be made have no number, which makes their
	// images differ, as they do.
	for _, s := range []struct {
		changed *int64
		query   string
		args    []any
	}{
		{new(int64), `DELETE FROM temp.put_image`, nil},
		{new(int64), `DELETE FROM temp.gone_image`, nil},
		{new(int64), numberCollections, []any{r.id}},
		{&r.put, `INSERT INTO temp.put_image
			SELECT max(n.rowid), i.id FROM temp.new_image n
			JOIN temp.new_collection c ON c.id = n.collection
			LEFT JOIN image i ON i.client = ?1 AND i.object = n.object
			WHERE CASE WHEN i.id IS NULL
				THEN NOT EXISTS (SELECT 1 FROM removed d WHERE d.client = ?1 AND d.object = n.object AND d.seq > ?2)
				ELSE i.seq <= ?2 END
			GROUP BY n.object
			HAVING i.id IS NULL OR (i.collection, i.path, i.file, i.data) IS NOT (c.real, n.path, n.file, n.data)`,
			[]any{r.id, r.since}},
		{&r.gone, `INSERT INTO temp.gone_image SELECT i.id FROM image i WHERE i.client = ?1 AND i.seq <= ?2
			AND NOT EXISTS (SELECT 1 FROM temp.new_image n WHERE n.object = i.object)`, []any{r.id, r.since}},
	} {
		res, err := r.conn.ExecContext(r.ctx, s.query, s.args...)
		if err != nil {
			return fmt.Errorf("compare: %w", err)
		}
		if *s.changed, err = res.RowsAffected(); err != nil {
			return err
		}
	}
	return nil
}

// numberCollections fills in the numbers that staged collections really have.
const numberCollections = `UPDATE temp.new_collection AS n SET real = c.id FROM collection c
	WHERE c.client = ?1 AND c.dir = n.dir AND c.name = n.name`

// commit makes the client hold what was staged.
func (r *replacement) commit(t *txn) (Diff, error) {
	var now int64
	if err := t.tx.QueryRowContext(t.ctx, `SELECT now FROM clock`).Scan(&now); err != nil {
		return Diff{}, err
	}
	if now != r.compared {
		if err := r.compare(); err != nil {
			return Diff{}, err
		}
	}
	now, err := t.tick()
	if err != nil {
		return Diff{}, err
	}
	places := places{max: r.x.maxPlaces}
	if err := r.newCollections(t, now, &places); err != nil {
		return Diff{}, err
	}
	if r.put+r.gone > int64(r.x.maxPlaces) {
		places.full, places.seen = true, nil
	} else if err := r.tell(t, &places); err != nil {
		return Diff{}, err
	}
	if r.gone > 0 {
		for _, query := range []string{
			`DELETE FROM trigram WHERE rowid IN (SELECT w.id FROM temp.gone_image g JOIN words w ON w.id = g.id)`,
			`DELETE FROM words WHERE id IN (SELECT id FROM temp.gone_image)`,
			`DELETE FROM search_queue WHERE id IN (SELECT id FROM temp.gone_image)`,
			`DELETE FROM image WHERE id IN (SELECT id FROM temp.gone_image)`,
		} {
			if _, err := t.tx.ExecContext(t.ctx, query); err != nil {
				return Diff{}, fmt.Errorf("take out: %w", err)
			}
		}
	}
	if r.put > 0 {
		if err := r.putImages(t, now); err != nil {
			return Diff{}, fmt.Errorf("put in: %w", err)
		}
	}
	if _, err := t.exec(`DELETE FROM removed WHERE client = ? AND seq <= ?`, r.id, r.since); err != nil {
		return Diff{}, err
	}
	if err := r.dropCollections(t, &places); err != nil {
		return Diff{}, err
	}
	return places.diff(), nil
}

func (r *replacement) putImages(t *txn, now int64) error {
	var last sql.NullInt64
	if err := t.tx.QueryRowContext(t.ctx, `SELECT max(id) FROM image`).Scan(&last); err != nil {
		return err
	}
	for _, s := range []struct {
		query string
		args  []any
	}{
		{`UPDATE image AS i SET (collection, seq, ` + imageColumns + `) = (c.real, ?1, ` + prefixed("n.") + `)
			FROM temp.put_image p
			CROSS JOIN temp.new_image n ON n.rowid = p.new CROSS JOIN temp.new_collection c ON c.id = n.collection
			WHERE i.id = p.old`, []any{now}},
		{`INSERT INTO image (client, collection, seq, ` + imageColumns + `)
			SELECT ?1, c.real, ?2, ` + prefixed("n.") + ` FROM temp.put_image p
			JOIN temp.new_image n ON n.rowid = p.new JOIN temp.new_collection c ON c.id = n.collection
			WHERE p.old IS NULL ORDER BY p.new`, []any{r.id, now}},
		{`INSERT INTO search_queue SELECT old FROM temp.put_image WHERE old IS NOT NULL ON CONFLICT DO NOTHING`, nil},
		{`INSERT INTO search_queue SELECT id FROM image WHERE id > ? ON CONFLICT DO NOTHING`, []any{last.Int64}},
	} {
		if _, err := t.tx.ExecContext(t.ctx, s.query, s.args...); err != nil {
			return err
		}
	}
	return nil
}

func prefixed(prefix string) string {
	return prefix + strings.ReplaceAll(imageColumns, ", ", ", "+prefix)
}

// newCollections makes the collections that are not there yet and fills in
// the real numbers of all.
func (r *replacement) newCollections(t *txn, now int64, places *places) error {
	rows, err := t.tx.QueryContext(t.ctx, `INSERT INTO collection (client, dir, fold, parent, name, own, object, path, seq)
		SELECT ?1, dir, fold, parent, name, own AND NOT EXISTS (
				SELECT 1 FROM removed d WHERE d.client = ?1 AND d.object = ?4 || n.dir AND d.seq > ?3),
			object, path, ?2 FROM temp.new_collection n WHERE true
		ON CONFLICT DO NOTHING RETURNING dir`, r.id, now, r.since, objectCollection)
	dirs, err := list[string](rows, err)
	if err != nil {
		return err
	}
	for _, dir := range dirs {
		places.add(dir, "")
	}
	if _, err := t.tx.ExecContext(t.ctx, numberCollections, r.id); err != nil {
		return err
	}
	for _, query := range []string{
		`UPDATE collection AS c SET own = 1, object = n.object, path = n.path, seq = ?2 FROM temp.new_collection n
			WHERE n.real = c.id AND n.own AND c.client = ?1 AND c.seq <= ?3
			AND (c.own, c.object, c.path) IS NOT (1, n.object, n.path)`,
		`UPDATE collection AS c SET own = 0, seq = ?2 WHERE c.client = ?1 AND c.own = 1 AND c.seq <= ?3
			AND NOT EXISTS (SELECT 1 FROM temp.new_collection n WHERE n.own AND n.dir = c.dir AND n.name = c.name)`,
	} {
		if _, err := t.tx.ExecContext(t.ctx, query, r.id, now, r.since); err != nil {
			return err
		}
	}
	return nil
}

// tell gathers the places that put_image and gone_image touch.
func (r *replacement) tell(t *txn, places *places) error {
	rows, err := t.tx.QueryContext(t.ctx, `
		SELECT c.dir, i.file FROM temp.gone_image g JOIN image i ON i.id = g.id JOIN collection c ON c.id = i.collection
		UNION SELECT c.dir, i.file FROM temp.put_image p JOIN image i ON i.id = p.old JOIN collection c ON c.id = i.collection
		UNION SELECT c.dir, n.file FROM temp.put_image p JOIN temp.new_image n ON n.rowid = p.new
			JOIN temp.new_collection c ON c.id = n.collection`)
	if err != nil {
		return err
	}
	defer rows.Close()
	for rows.Next() {
		var dir, file string
		if err := rows.Scan(&dir, &file); err != nil {
			return err
		}
		places.add(dir, file)
	}
	return rows.Err()
}

// dropCollections deletes the collections that are there for nothing any more,
// from the leaves up.
func (r *replacement) dropCollections(t *txn, places *places) error {
	for {
		rows, err := t.tx.QueryContext(t.ctx, `DELETE FROM collection AS k WHERE k.client = ?1 AND k.own = 0
			AND NOT EXISTS (SELECT 1 FROM image i WHERE i.collection = k.id)
			AND NOT EXISTS (SELECT 1 FROM collection b WHERE b.client = k.client AND b.parent = k.dir)
			RETURNING dir`, r.id)
		dirs, err := list[string](rows, err)
		if err != nil || len(dirs) == 0 {
			return err
		}
		for _, dir := range dirs {
			places.add(dir, "")
		}
	}
}
