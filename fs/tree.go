// Package fs shows a catalog of images as a directory tree: clients,
// collections and images as FUSE nodes, with what opening, copying, renaming
// and inspecting them means.
//
// It knows the catalog and the interfaces of backends, and no client by name.
// One kind of node has one file: root.go, dir.go (a client or a collection),
// file.go (an image), sidecar.go, search.go. What is being written stands in
// pending.go; errno.go is the only place where an error becomes an errno.
//
// Lock order: fileNode.mu, then pending.mu, then pendingFile.mu. None of them is
// held over a call into the catalog that may wait for the network.
package fs

import (
	"context"
	"log/slog"
	"os"
	"path"
	"sync"
	"sync/atomic"
	"time"

	fusefs "github.com/hanwen/go-fuse/v2/fs"
	"github.com/hanwen/go-fuse/v2/fuse"

	"github.com/sregfs/sregfs/fs/catalog"
)

// Options are how a tree is shown.
type Options struct {
	// AllowOther lets other users in, with the kernel checking permissions.
	AllowOther bool
	// ReadOnly mounts read-only.
	ReadOnly bool
	// Flags are further options of the mount, as fusermount3 names them: "noexec".
	Flags []string
	// Aliases are further names of clients: alias → client.
	Aliases map[string]string
	// StackedCache says that the cache's file system is itself stacked
	// (overlayfs), which passthrough must be told.
	StackedCache bool
	// Debug logs every FUSE message.
	Debug bool
	Log   *slog.Logger
}

// Tree is a mounted catalog.
type Tree struct {
	cat     *catalog.Catalog
	opts    Options
	log     *slog.Logger
	uid     uint32
	gid     uint32
	born    time.Time
	dev     uint64 // the mount's device number
	pending pending
	usage   usageCache
	// Opens for reading since the mount, by who serves them.
	passed, served atomic.Int64
	records        recordCache
	nodes          nodes

	server *fuse.Server
	pass   *passthrough
	root   *rootNode
	notify chan notice
	quit   chan struct{}
	work   sync.WaitGroup
}

// Mount shows the catalog at dir, which must be an existing directory, and
// returns when the tree answers. Unmount or Serve's end closes it.
func Mount(dir string, cat *catalog.Catalog, o Options) (*Tree, error) {
	t := &Tree{
		cat: cat, opts: o, log: o.Log,
		uid: uint32(os.Getuid()), gid: uint32(os.Getgid()), born: time.Now(),
		notify: make(chan notice, 256), quit: make(chan struct{}),
	}
	t.pending.init()
	t.records.init()
	t.nodes.init()
	t.root = &rootNode{tree: t}
	second := time.Second
	opts := &fusefs.Options{
		EntryTimeout: &second,
		AttrTimeout:  &second,
		MountOptions: fuse.MountOptions{
			AllowOther: o.AllowOther,
			FsName:     "sregfs",
			Name:       "sregfs",
			MaxWrite:   1 << 20,
			// A full read of 1 MiB does not fit through a pipe, and splicing
			// gains nothing here.
			DisableSplice: true,
			MaxBackground: 64,
			// One look at security.capability for an open file, not one for
			// each write (FUSE_HANDLE_KILLPRIV_V2, Linux 5.12).
			ExtraCapabilities: 1 << 28,
			Debug:             o.Debug,
			MaxStackDepth:     1,
		},
	}
	if o.StackedCache {
		opts.MaxStackDepth = 2
	}
	if o.ReadOnly {
		opts.Options = append(opts.Options, "ro")
	}
	opts.Options = append(opts.Options, o.Flags...)
	if o.AllowOther {
		opts.Options = append(opts.Options, "default_permissions")
	}
	t.pass = newPassthrough(fusefs.NewNodeFS(t.root, opts), t.log)
	server, err := fuse.NewServer(t.pass, dir, &opts.MountOptions)
	if err != nil {
		return nil, err
	}
	t.server = server
	go server.Serve()
	if err := server.WaitMount(); err != nil {
		return nil, err
	}
	var ok bool
	if t.dev, _, ok = known(dir); !ok {
		t.log.Warn("cannot tell the mount's device: a file that several programs write in turn may be pushed before the last of them is done", "mount", dir)
	}
	t.work.Go(t.sendNotices)
	t.work.Go(t.forgetListed)
	for _, cl := range cat.Clients() {
		cl.OnChange(t.changed(cl))
	}
	return t, nil
}

// Wait returns when the tree is unmounted, by whomever.
func (t *Tree) Wait() {
	t.server.Wait()
	close(t.quit)
	t.work.Wait()
	t.pending.finish()
}

// Opens is how many images were opened for reading: those that the kernel reads
// itself, and those that it asks the daemon for.
func (t *Tree) Opens() (kernel, daemon int64) { return t.passed.Load(), t.served.Load() }

// Device is the device number of the tree's files (st_dev of stat(2)), 0 where it
// could not be told.
func (t *Tree) Device() uint64 { return t.dev }

// Unmount takes the tree down. It fails while a file in it is open.
func (t *Tree) Unmount() error { return t.server.Unmount() }

// ino is the inode number of a name in the tree: the same on every mount.
func ino(parts ...string) uint64 {
	h := hash(offset64)
	for _, p := range parts {
		h = h.add(p).end()
	}
	return h.number()
}

// inoIn is ino(cl.Name, path.Join(dir, name)), for listings of very many names:
// it leaves nothing to be collected.
func inoIn(cl *catalog.Client, dir, name string) uint64 {
	if dir == "" || name == "." || name == ".." {
		return ino(cl.Name, path.Join(dir, name))
	}
	return hash(offset64).add(cl.Name).end().add(dir).add("/").add(name).end().number()
}

// hash is an FNV-1a hash under way.
type hash uint64

const (
	offset64 = 14695981039346656037
	prime64  = 1099511628211
)

func (h hash) add(s string) hash {
	for i := range len(s) {
		h = (h ^ hash(s[i])) * prime64
	}
	return h
}

// end keeps parts apart.
func (h hash) end() hash { return h * prime64 }

// number is an inode number. Small ones are the kernel's, the highest are
// go-fuse's.
func (h hash) number() uint64 { return uint64(h)>>2 | 1<<32 }

// attr fills in what every node has.
func (t *Tree) attr(a *fuse.Attr, ino uint64, mode uint32, mtime time.Time) {
	a.Ino, a.Mode, a.Nlink = ino, mode, 1
	a.Uid, a.Gid = t.uid, t.gid
	a.Blksize = 128 << 10
	if mtime.IsZero() {
		mtime = t.born
	}
	a.SetTimes(&mtime, &mtime, &mtime)
}

func setSize(a *fuse.Attr, size int64) {
	a.Size = uint64(max(size, 0))
	a.Blocks = (a.Size + 511) / 512
}

// timeout is how long the kernel may keep what it was told of an image. With a
// live change feed it is told of changes; otherwise it asks again soon.
func (t *Tree) timeout(cl *catalog.Client) time.Duration {
	if cl.Listing().Live && !cl.Local() {
		return time.Hour
	}
	return time.Second
}

func (t *Tree) dirMode(cl *catalog.Client) uint32 {
	if cl.Writable() {
		return fuse.S_IFDIR | 0o755
	}
	return fuse.S_IFDIR | 0o555
}

// caller names the process behind a request for log lines.
func caller(ctx context.Context) uint32 {
	if c, ok := fuse.FromContext(ctx); ok {
		return c.Pid
	}
	return 0
}
