//! Which uploads were withdrawn, by whom and why (spec §5.4.2 names it as a purpose of upload tags).

/// A table of its own, not a column of the upload: it outlives the upload as a record, and making a table can
/// be repeated on every database.
pub(crate) const STEP: crate::Step = crate::Step { name: "m0003_withdrawal", mysql: MYSQL, sqlite: SQLITE };

const MYSQL: &[&str] = &["CREATE TABLE IF NOT EXISTS withdrawal (
        upload_id BIGINT NOT NULL PRIMARY KEY,
        country CHAR(2) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
        upload_tag VARBINARY(64) NOT NULL,
        amount INT NOT NULL,
        withdrawn_at DATETIME(6) NOT NULL,
        withdrawn_by VARCHAR(16) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
        reason TEXT NOT NULL
    ) ENGINE=InnoDB DEFAULT CHARSET=utf8mb4"];

const SQLITE: &[&str] = &["CREATE TABLE IF NOT EXISTS withdrawal (
        upload_id INTEGER NOT NULL PRIMARY KEY,
        country TEXT NOT NULL,
        upload_tag BLOB NOT NULL,
        amount INTEGER NOT NULL,
        withdrawn_at TEXT NOT NULL,
        withdrawn_by TEXT NOT NULL,
        reason TEXT NOT NULL
    )"];
