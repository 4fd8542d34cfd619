package index

import (
	"context"
	"database/sql"
	"sync"
)

// pool is a database with the statements that it has been asked so far, kept
// prepared. The texts of statements are constants of this package.
type pool struct {
	*sql.DB

	mu         sync.RWMutex
	statements map[string]*sql.Stmt
}

func openPool(source string) (*pool, error) {
	db, err := sql.Open("sqlite", source)
	if err != nil {
		return nil, err
	}
	return &pool{DB: db, statements: map[string]*sql.Stmt{}}, nil
}

// statement returns query, prepared. It must not depend on temporary tables.
func (p *pool) statement(ctx context.Context, query string) (*sql.Stmt, error) {
	p.mu.RLock()
	s := p.statements[query]
	p.mu.RUnlock()
	if s != nil {
		return s, nil
	}
	s, err := p.PrepareContext(ctx, query)
	if err != nil {
		return nil, err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if other := p.statements[query]; other != nil {
		return other, s.Close()
	}
	p.statements[query] = s
	return s, nil
}

// rows runs a query.
func (p *pool) rows(ctx context.Context, query string, args ...any) (*sql.Rows, error) {
	s, err := p.statement(ctx, query)
	if err != nil {
		return nil, err
	}
	return s.QueryContext(ctx, args...)
}

// row runs a query for the first row of its answer. It is false when there is
// none.
func (p *pool) row(ctx context.Context, dest []any, query string, args ...any) (bool, error) {
	rows, err := p.rows(ctx, query, args...)
	if err != nil {
		return false, err
	}
	return first(rows, dest)
}

func first(rows *sql.Rows, dest []any) (bool, error) {
	defer rows.Close()
	if !rows.Next() {
		return false, rows.Err()
	}
	if err := rows.Scan(dest...); err != nil {
		return false, err
	}
	return true, rows.Close()
}

// Close closes the statements and the database.
func (p *pool) Close() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, s := range p.statements {
		s.Close()
	}
	clear(p.statements)
	return p.DB.Close()
}

// txn is a transaction that writes.
type txn struct {
	ctx  context.Context
	tx   *sql.Tx
	pool *pool
}

func (t *txn) statement(query string) (*sql.Stmt, error) {
	s, err := t.pool.statement(t.ctx, query)
	if err != nil {
		return nil, err
	}
	return t.tx.StmtContext(t.ctx, s), nil
}

// exec runs a statement and returns how many rows it changed.
func (t *txn) exec(query string, args ...any) (int64, error) {
	s, err := t.statement(query)
	if err != nil {
		return 0, err
	}
	r, err := s.ExecContext(t.ctx, args...)
	if err != nil {
		return 0, err
	}
	return r.RowsAffected()
}

func (t *txn) rows(query string, args ...any) (*sql.Rows, error) {
	s, err := t.statement(query)
	if err != nil {
		return nil, err
	}
	return s.QueryContext(t.ctx, args...)
}

func (t *txn) row(dest []any, query string, args ...any) (bool, error) {
	rows, err := t.rows(query, args...)
	if err != nil {
		return false, err
	}
	return first(rows, dest)
}

// list runs a query of one column and returns all of it.
func list[T any](rows *sql.Rows, err error) ([]T, error) {
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	var all []T
	for rows.Next() {
		var v T
		if err := rows.Scan(&v); err != nil {
			return nil, err
		}
		all = append(all, v)
	}
	return all, rows.Err()
}
