//! The running instances of the gateway.

/// Expands: a table that earlier versions do not use.
pub(crate) const STEP: crate::Step = crate::Step { name: "m0008_instance", mysql: MYSQL, sqlite: SQLITE };

// Times are milliseconds since 1970 by the clock of the database, as in `job`. A row lives as long as its instance; one
// that was killed leaves it, and it is deleted a day after the last sign of life.
const MYSQL: &[&str] = &["CREATE TABLE IF NOT EXISTS instance (
        id CHAR(16) CHARACTER SET ascii COLLATE ascii_bin NOT NULL PRIMARY KEY,
        host VARCHAR(64) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
        version VARCHAR(32) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
        started_at BIGINT NOT NULL,
        seen_at BIGINT NOT NULL
    ) ENGINE=InnoDB DEFAULT CHARSET=utf8mb4"];

const SQLITE: &[&str] = &["CREATE TABLE IF NOT EXISTS instance (
        id TEXT NOT NULL PRIMARY KEY,
        host TEXT NOT NULL,
        version TEXT NOT NULL,
        started_at INTEGER NOT NULL,
        seen_at INTEGER NOT NULL
    ) WITHOUT ROWID"];
