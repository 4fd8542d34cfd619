package index

import (
	"context"
	"database/sql"
	"embed"
	"errors"
	"fmt"
	iofs "io/fs"
	"log/slog"
	"net/url"
	"os"
	"path"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
	"modernc.org/sqlite"
	sqlite3 "modernc.org/sqlite/lib"

	"github.com/sregfs/sregfs/backends"
)

//go:embed sql/*.sql
var migrations embed.FS

// applicationID marks our state file (PRAGMA application_id): "sreg".
const applicationID = 0x73726567

// Waits for other processes that use the same file.
const (
	stateWait   = 30 * time.Second
	recordsWait = 5 * time.Second
)

// state is the state file, open.
type state struct {
	path string
	log  *slog.Logger
	// write holds connections that may write; who uses one for that has the
	// token of Index.writing. read holds those of readers.
	write, read *pool
}

// openState opens the state file and brings its schema up to date.
func openState(ctx context.Context, file string, log *slog.Logger) (*state, error) {
	file, err := filepath.Abs(file)
	if err != nil {
		return nil, err
	}
	if err := os.MkdirAll(filepath.Dir(file), 0o700); err != nil {
		return nil, err
	}
	unlock, err := lock(ctx, file+".lock")
	if err != nil {
		return nil, err
	}
	defer unlock()
	if _, err := os.Lstat(file + marked); err == nil {
		if err := putAside(file, errors.New("it was found damaged while in use"), log); err != nil {
			return nil, err
		}
	}
	st, err := openStateFile(ctx, file, log)
	if damaged(err) {
		if err := putAside(file, err, log); err != nil {
			return nil, err
		}
		st, err = openStateFile(ctx, file, log)
	}
	if err != nil {
		return nil, &backends.Error{Op: "state file " + file, Err: err, Hint: hintFor(err, "set another cache folder with --cache-dir")}
	}
	return st, nil
}

// hintFor says what a user can do about a file that SQLite cannot use, "" where the
// kind of the error tells nothing; elsewhere is how to have it in another place.
func hintFor(err error, elsewhere string) string {
	switch code(err) {
	case sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED:
		return "another program holds it locked; end that, or try again"
	case sqlite3.SQLITE_READONLY, sqlite3.SQLITE_PERM:
		return "make the file and its folder writable, or " + elsewhere
	case sqlite3.SQLITE_CANTOPEN:
		return "check that the folder exists and may be written to, or " + elsewhere
	case sqlite3.SQLITE_FULL:
		return "free some space on its disk, or " + elsewhere
	case sqlite3.SQLITE_IOERR:
		return "its disk fails, or is full: free some space, or " + elsewhere
	}
	return ""
}

func openStateFile(ctx context.Context, file string, log *slog.Logger) (st *state, err error) {
	// A file of its own mode, as the names in it are nobody else's business.
	f, err := os.OpenFile(file, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err == nil {
		err = f.Close()
	}
	if err != nil && !errors.Is(err, iofs.ErrExist) {
		return nil, err
	}
	journal := "WAL"
	if networked(filepath.Dir(file)) {
		// WAL needs memory that all users of the file share: one machine.
		journal = "DELETE"
	}
	dsn := func(extra ...string) string {
		return source(file, append(extra,
			"_pragma=busy_timeout("+strconv.FormatInt(stateWait.Milliseconds(), 10)+")",
			"_pragma=synchronous(NORMAL)",
			"_pragma=journal_size_limit(16777216)",
		)...)
	}
	st = &state{path: file, log: log}
	defer func() {
		if err != nil {
			err = errors.Join(err, st.close())
			st = nil
		}
	}()
	if st.write, err = openPool(dsn("_txlock=immediate", "_pragma=journal_mode("+journal+")",
		"_pragma=cache_size(-4096)")); err != nil {
		return st, err
	}
	if err := migrate(ctx, st.write.DB); err != nil {
		return st, err
	}
	if st.read, err = openPool(dsn("_pragma=query_only(1)", "_pragma=cache_size(-512)")); err != nil {
		return st, err
	}
	st.read.SetMaxOpenConns(readers)
	st.read.SetMaxIdleConns(readers)
	for _, p := range []*pool{st.write, st.read} {
		p.SetConnMaxIdleTime(idle)
	}
	return st, nil
}

// readers is how many questions are answered at once. Each has a connection
// with a page cache of its own, which takes twice the memory that SQLite counts
// (the allocator rounds a page with its header up to two). Small ones do: what
// they lack lies in the system's page cache.
const readers = 8

// idle is how long a connection is kept that nobody uses, with its memory.
const idle = 10 * time.Second

func (st *state) close() error {
	var err error
	for _, p := range []*pool{st.read, st.write} {
		if p != nil {
			err = errors.Join(err, p.Close())
		}
	}
	return err
}

// source is a data source name for a file, whatever its name.
func source(file string, parameters ...string) string {
	u := url.URL{Scheme: "file", Path: file, RawQuery: strings.Join(parameters, "&")}
	return u.String()
}

// migrate applies the numbered migrations that the file lacks, each whole or
// not at all.
func migrate(ctx context.Context, db *sql.DB) error {
	entries, err := migrations.ReadDir("sql")
	if err != nil {
		return err
	}
	for i, e := range entries {
		if err := migrateTo(ctx, db, i+1, len(entries), e.Name()); err != nil {
			return err
		}
	}
	return nil
}

func migrateTo(ctx context.Context, db *sql.DB, version, newest int, name string) error {
	if n, err := strconv.Atoi(strings.SplitN(name, "_", 2)[0]); err != nil || n != version {
		return fmt.Errorf("migration %s is not number %d", name, version)
	}
	var has, app, tables int
	read := func(q interface {
		QueryRowContext(context.Context, string, ...any) *sql.Row
	}) error {
		return q.QueryRowContext(ctx, `SELECT v.user_version, a.application_id, (SELECT count(*) FROM sqlite_schema)
			FROM pragma_user_version v, pragma_application_id a`).Scan(&has, &app, &tables)
	}
	if err := read(db); err != nil {
		return fmt.Errorf("read its schema version: %w", err)
	}
	switch {
	case tables > 0 && app != applicationID:
		return errors.New("this is another program's database; name another file for the state")
	case has > newest:
		return fmt.Errorf("its schema version %d is newer than this program's %d; run the newer program, or remove the file to begin anew", has, newest)
	case has >= version:
		return nil
	}
	tx, err := db.BeginTx(ctx, nil)
	if err != nil {
		return err
	}
	defer tx.Rollback()
	// Another process may have come first.
	if err := read(tx); err != nil || has >= version {
		return err
	}
	text, err := migrations.ReadFile(path.Join("sql", name))
	if err != nil {
		return err
	}
	for _, s := range []string{
		string(text),
		fmt.Sprintf("PRAGMA user_version = %d", version),
		fmt.Sprintf("PRAGMA application_id = %d", applicationID),
	} {
		if _, err := tx.ExecContext(ctx, s); err != nil {
			return fmt.Errorf("migration %s: %w", name, err)
		}
	}
	return tx.Commit()
}

// code is the SQLite result code in err's chain, without its extension; 0 for
// none.
func code(err error) int {
	var e *sqlite.Error
	if errors.As(err, &e) {
		return e.Code() & 0xff
	}
	return 0
}

// damaged reports whether err says that the file itself is no good.
func damaged(err error) bool {
	switch code(err) {
	case sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB:
		return true
	}
	return false
}

// marked is the ending of a file that says that the state is damaged: the next
// Open puts it aside.
const marked = ".damaged"

// failed wraps an error of the state file with what was being done. Damage
// that shows up only now is noted for the next start, as other processes and
// open transactions may be in the middle of things.
func (st *state) failed(doing string, err error) error {
	if err == nil {
		return nil
	}
	if damaged(err) {
		if e := os.WriteFile(st.path+marked, []byte(err.Error()+"\n"), 0o600); e == nil {
			st.log.Error("the index is damaged and will be begun anew with the next start", "file", st.path, "error", err)
		}
	}
	return fmt.Errorf("index: %s: %w", doing, err)
}

// putAside renames a state file that is no good, with what belongs to it.
func putAside(file string, cause error, log *slog.Logger) error {
	aside := file + ".aside-" + time.Now().UTC().Format("20060102T150405.000000000")
	for _, end := range []string{"-wal", "-shm", "-journal"} {
		if err := os.Rename(file+end, aside+end); err != nil && !errors.Is(err, iofs.ErrNotExist) {
			return err
		}
	}
	if err := os.Rename(file, aside); err != nil && !errors.Is(err, iofs.ErrNotExist) {
		return err
	}
	if err := os.Remove(file + marked); err != nil && !errors.Is(err, iofs.ErrNotExist) {
		return err
	}
	log.Warn("the index was damaged and is begun anew; it fills itself from the stores",
		"file", file, "kept_as", aside, "error", cause)
	return nil
}

// lock takes an exclusive lock on a file, so that one process at a time opens
// and repairs the state. Where the file system has no locks, it takes none.
func lock(ctx context.Context, file string) (unlock func(), err error) {
	f, err := os.OpenFile(file, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if !errors.Is(err, unix.EWOULDBLOCK) && !errors.Is(err, unix.EINTR) {
			return func() { f.Close() }, nil
		}
		select {
		case <-ctx.Done():
			f.Close()
			return nil, fmt.Errorf("wait for another process that opens the index: %w", ctx.Err())
		case <-tick.C:
		}
	}
}

// File systems that several machines may use at once (statfs(2), and the
// file systems' own headers for the ones that it leaves out).
var networkedTypes = map[int64]bool{
	unix.NFS_SUPER_MAGIC:  true,
	unix.SMB_SUPER_MAGIC:  true,
	unix.CIFS_SUPER_MAGIC: true,
	unix.SMB2_SUPER_MAGIC: true,
	unix.CEPH_SUPER_MAGIC: true,
	unix.AFS_SUPER_MAGIC:  true,
	unix.CODA_SUPER_MAGIC: true,
	unix.V9FS_MAGIC:       true,
	unix.FUSE_SUPER_MAGIC: true,
	0x0bd00bd0:            true, // Lustre
	0x47504653:            true, // GPFS
	0x19830326:            true, // BeeGFS
	0xaad7aaea:            true, // PanFS
}

func networked(dir string) bool {
	var s unix.Statfs_t
	return unix.Statfs(dir, &s) == nil && networkedTypes[int64(uint32(s.Type))]
}
