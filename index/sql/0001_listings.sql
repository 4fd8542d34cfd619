-- Times are nanoseconds since 1970, NULL for none. Texts are empty, not NULL,
-- where there is nothing.

-- Clients are never deleted, so that processes may remember their numbers.
CREATE TABLE client (
	id     INTEGER PRIMARY KEY,
	name   TEXT NOT NULL UNIQUE,
	known  INTEGER NOT NULL DEFAULT 0, -- a complete listing is held
	cursor TEXT NOT NULL DEFAULT '',   -- the change feed's position
	at     INTEGER                     -- when the listing was last known to be right
);

-- The clock ticks with every change, so that a listing that took minutes can
-- tell what was learnt since it began.
CREATE TABLE clock (now INTEGER NOT NULL);
INSERT INTO clock VALUES (0);

-- Collections and all that lie above them; '' is the client's own directory.
CREATE TABLE collection (
	id     INTEGER PRIMARY KEY,
	client INTEGER NOT NULL REFERENCES client (id),
	dir    TEXT NOT NULL,              -- its path in the tree
	fold   TEXT NOT NULL,              -- dir in lower case where that differs
	parent TEXT,                       -- the directory above; NULL for ''
	name   TEXT NOT NULL,              -- the store's name for it
	own    INTEGER NOT NULL DEFAULT 0, -- it was told of by itself; else implied
	object TEXT NOT NULL DEFAULT '',   -- the store's permanent name
	path   TEXT NOT NULL DEFAULT '',   -- the store's path
	seq    INTEGER NOT NULL,           -- the clock when own last changed
	UNIQUE (client, dir, name)
);
CREATE INDEX collection_fold ON collection (client, fold) WHERE fold <> '';
CREATE INDEX collection_parent ON collection (client, parent, dir);

CREATE TABLE image (
	id         INTEGER PRIMARY KEY,
	client     INTEGER NOT NULL REFERENCES client (id),
	collection INTEGER NOT NULL REFERENCES collection (id),
	seq        INTEGER NOT NULL,       -- the clock when the row last changed
	object     TEXT NOT NULL,          -- what makes it one: i+ID, k+Key or r+Ref
	path       TEXT NOT NULL,          -- Image.Key
	file       TEXT NOT NULL,          -- its name in the tree, without version
	fold       TEXT NOT NULL,          -- file in lower case where that differs
	content    INTEGER NOT NULL,       -- content.id of its content key
	data       BLOB NOT NULL           -- everything else, packed
);
CREATE UNIQUE INDEX image_object ON image (client, object);
CREATE INDEX image_file ON image (collection, file);
CREATE INDEX image_fold ON image (collection, fold) WHERE fold <> '';
CREATE INDEX image_path ON image (client, path) WHERE path <> '';
CREATE INDEX image_content ON image (content);

-- Objects that were removed lately: a listing that began before that and still
-- shows one does not bring it back.
CREATE TABLE removed (
	client INTEGER NOT NULL,
	object TEXT NOT NULL,
	seq    INTEGER NOT NULL,
	at     INTEGER NOT NULL,
	PRIMARY KEY (client, object)
) WITHOUT ROWID;
CREATE INDEX removed_at ON removed (at);

-- What was learnt of a content, whichever images have it. id is the beginning
-- of the SHA-256 of key.
CREATE TABLE content (
	id         INTEGER PRIMARY KEY,
	key        TEXT NOT NULL,
	md5        TEXT NOT NULL DEFAULT '',
	attributes TEXT,                   -- NULL while unknown
	labels     TEXT NOT NULL DEFAULT ''
);

-- The search index follows the images by way of a queue. words holds what can
-- be found, in lower case; trigram narrows the search down and is never
-- trusted alone.
CREATE TABLE search_queue (id INTEGER PRIMARY KEY);
CREATE TABLE words (id INTEGER PRIMARY KEY, text TEXT NOT NULL);
CREATE VIRTUAL TABLE trigram USING fts5 (
	text, content = '', contentless_delete = 1, detail = none,
	tokenize = 'trigram case_sensitive 1'
);

CREATE TABLE xattr (
	client INTEGER NOT NULL,
	dir    TEXT NOT NULL,
	file   TEXT NOT NULL,
	name   TEXT NOT NULL,
	value  BLOB NOT NULL,
	PRIMARY KEY (client, dir, file, name)
) WITHOUT ROWID;

CREATE TABLE note (
	kind TEXT NOT NULL,
	key  TEXT NOT NULL,
	data BLOB NOT NULL,
	PRIMARY KEY (kind, key)
) WITHOUT ROWID;
