//! A check value for each encryption key.

/// Expands: a table that earlier versions do not use.
pub(crate) const STEP: crate::Step =
    crate::Step { name: "m0009_encryption_key", mysql: MYSQL, sqlite: SQLITE };

// A known text sealed with each encryption key, by the first gateway that had it. Another key under the same id
// cannot open it, and is rejected before it seals anything.
const MYSQL: &[&str] = &["CREATE TABLE IF NOT EXISTS encryption_key (
        id BIGINT NOT NULL PRIMARY KEY,
        sealed VARBINARY(64) NOT NULL
    ) ENGINE=InnoDB DEFAULT CHARSET=utf8mb4"];

const SQLITE: &[&str] = &["CREATE TABLE IF NOT EXISTS encryption_key (
        id INTEGER NOT NULL PRIMARY KEY,
        sealed BLOB NOT NULL
    )"];
