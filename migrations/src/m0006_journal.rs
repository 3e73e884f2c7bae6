//! Entries that have not been written to the journal yet.

/// Expands: new tables, which an earlier version does not need. A row is written in the transaction of its upload,
/// batch or withdrawal, and deleted when that is in the journal. With `hold`, the upload is not put into a batch,
/// and nothing is served, before that.
pub(crate) const STEP: crate::Step = crate::Step { name: "m0006_journal", mysql: MYSQL, sqlite: SQLITE };

const MYSQL: &[&str] = &[
    "CREATE TABLE IF NOT EXISTS journal_pending_upload (
        upload_id BIGINT NOT NULL PRIMARY KEY,
        hold BOOLEAN NOT NULL
    ) ENGINE=InnoDB DEFAULT CHARSET=utf8mb4",
    "CREATE TABLE IF NOT EXISTS journal_pending_batch (
        batch_id BINARY(12) NOT NULL PRIMARY KEY,
        hold BOOLEAN NOT NULL
    ) ENGINE=InnoDB DEFAULT CHARSET=utf8mb4",
    "CREATE TABLE IF NOT EXISTS journal_pending_withdrawal (
        upload_id BIGINT NOT NULL PRIMARY KEY
    ) ENGINE=InnoDB DEFAULT CHARSET=utf8mb4",
    "INSERT INTO job (name, owner, token, expires_at, due_at) VALUES ('journal', NULL, 0, 0, 0)
     ON DUPLICATE KEY UPDATE name = VALUES(name)",
];

const SQLITE: &[&str] = &[
    "CREATE TABLE IF NOT EXISTS journal_pending_upload (upload_id INTEGER NOT NULL PRIMARY KEY, hold BOOLEAN NOT NULL)",
    "CREATE TABLE IF NOT EXISTS journal_pending_batch (batch_id BLOB NOT NULL PRIMARY KEY, hold BOOLEAN NOT NULL)",
    "CREATE TABLE IF NOT EXISTS journal_pending_withdrawal (upload_id INTEGER NOT NULL PRIMARY KEY)",
    "INSERT OR IGNORE INTO job (name, owner, token, expires_at, due_at) VALUES ('journal', NULL, 0, 0, 0)",
];
