//! The access log, its heads, and daily totals per country (spec §8).

/// Access log and statistics.
pub(crate) const STEP: crate::Step = crate::Step { name: "m0004_access_log", mysql: MYSQL, sqlite: SQLITE };

// Times are microseconds since 1970, UTC: what is hashed has one form only.
const MYSQL: &[&str] = &[
    // One row per request to the national side. `instance` is one start of a gateway, `sequence` counts its
    // requests from 1, `hash` covers `previous` and all other columns. `origins` is JSON. Neither addresses nor
    // key data.
    "CREATE TABLE IF NOT EXISTS access_log (
        instance CHAR(16) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
        sequence BIGINT NOT NULL,
        at BIGINT NOT NULL,
        request_id CHAR(16) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
        country CHAR(2) CHARACTER SET ascii COLLATE ascii_bin NULL,
        thumbprint BINARY(32) NULL,
        operation VARCHAR(16) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
        method VARCHAR(16) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
        path VARCHAR(64) CHARACTER SET ascii COLLATE ascii_bin NULL,
        tag VARBINARY(256) NULL,
        asked_date CHAR(10) CHARACTER SET ascii COLLATE ascii_bin NULL,
        status SMALLINT NOT NULL,
        error VARCHAR(32) CHARACTER SET ascii COLLATE ascii_bin NULL,
        key_count INT NULL,
        origins VARCHAR(8192) CHARACTER SET ascii COLLATE ascii_bin NULL,
        request_bytes BIGINT NOT NULL,
        response_bytes BIGINT NOT NULL,
        duration_us BIGINT NOT NULL,
        previous BINARY(32) NOT NULL,
        hash BINARY(32) NOT NULL,
        PRIMARY KEY (instance, sequence),
        KEY access_log_at (at)
    ) ENGINE=InnoDB DEFAULT CHARSET=utf8mb4",
    // Signed statements about the log, of all instances in one list without gaps: where a chain of records
    // stands, where it was cut because of its age. Each statement has the hash of the one before it.
    "CREATE TABLE IF NOT EXISTS access_log_head (
        number BIGINT NOT NULL PRIMARY KEY,
        instance CHAR(16) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
        sequence BIGINT NOT NULL,
        kind VARCHAR(8) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
        at BIGINT NOT NULL,
        statement TEXT CHARACTER SET utf8mb4 COLLATE utf8mb4_bin NOT NULL,
        key_id CHAR(64) CHARACTER SET ascii COLLATE ascii_bin NULL,
        signature VARCHAR(255) CHARACTER SET ascii COLLATE ascii_bin NULL,
        KEY access_log_head_instance (instance, sequence)
    ) ENGINE=InnoDB DEFAULT CHARSET=utf8mb4",
    // Totals of a day (UTC). Each instance has rows of its own, and so has the batching, which one instance does
    // at a time, so that no instance waits for another's locks. A report adds them up. The country '--' stands for rejected
    // callers.
    "CREATE TABLE IF NOT EXISTS statistic (
        day DATE NOT NULL,
        country CHAR(2) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
        instance CHAR(16) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
        requests BIGINT NOT NULL DEFAULT 0,
        uploads BIGINT NOT NULL DEFAULT 0,
        upload_keys BIGINT NOT NULL DEFAULT 0,
        upload_bytes BIGINT NOT NULL DEFAULT 0,
        withdrawals BIGINT NOT NULL DEFAULT 0,
        withdrawn_keys BIGINT NOT NULL DEFAULT 0,
        batches BIGINT NOT NULL DEFAULT 0,
        downloads BIGINT NOT NULL DEFAULT 0,
        unchanged BIGINT NOT NULL DEFAULT 0,
        download_keys BIGINT NOT NULL DEFAULT 0,
        download_bytes BIGINT NOT NULL DEFAULT 0,
        audits BIGINT NOT NULL DEFAULT 0,
        callbacks_delivered BIGINT NOT NULL DEFAULT 0,
        callbacks_failed BIGINT NOT NULL DEFAULT 0,
        client_errors BIGINT NOT NULL DEFAULT 0,
        server_errors BIGINT NOT NULL DEFAULT 0,
        last_upload_at BIGINT NULL,
        last_download_at BIGINT NULL,
        PRIMARY KEY (day, country, instance)
    ) ENGINE=InnoDB DEFAULT CHARSET=utf8mb4",
    "INSERT INTO job (name, owner, token, expires_at, due_at) VALUES ('access-log', NULL, 0, 0, 0)
     ON DUPLICATE KEY UPDATE name = VALUES(name)",
];

const SQLITE: &[&str] = &[
    "CREATE TABLE IF NOT EXISTS access_log (
        instance TEXT NOT NULL,
        sequence INTEGER NOT NULL,
        at INTEGER NOT NULL,
        request_id TEXT NOT NULL,
        country TEXT NULL,
        thumbprint BLOB NULL,
        operation TEXT NOT NULL,
        method TEXT NOT NULL,
        path TEXT NULL,
        tag BLOB NULL,
        asked_date TEXT NULL,
        status INTEGER NOT NULL,
        error TEXT NULL,
        key_count INTEGER NULL,
        origins TEXT NULL,
        request_bytes INTEGER NOT NULL,
        response_bytes INTEGER NOT NULL,
        duration_us INTEGER NOT NULL,
        previous BLOB NOT NULL,
        hash BLOB NOT NULL,
        PRIMARY KEY (instance, sequence)
    ) WITHOUT ROWID",
    "CREATE INDEX IF NOT EXISTS access_log_at ON access_log (at)",
    "CREATE TABLE IF NOT EXISTS access_log_head (
        number INTEGER NOT NULL PRIMARY KEY,
        instance TEXT NOT NULL,
        sequence INTEGER NOT NULL,
        kind TEXT NOT NULL,
        at INTEGER NOT NULL,
        statement TEXT NOT NULL,
        key_id TEXT NULL,
        signature TEXT NULL
    )",
    "CREATE INDEX IF NOT EXISTS access_log_head_instance ON access_log_head (instance, sequence)",
    "CREATE TABLE IF NOT EXISTS statistic (
        day TEXT NOT NULL,
        country TEXT NOT NULL,
        instance TEXT NOT NULL,
        requests INTEGER NOT NULL DEFAULT 0,
        uploads INTEGER NOT NULL DEFAULT 0,
        upload_keys INTEGER NOT NULL DEFAULT 0,
        upload_bytes INTEGER NOT NULL DEFAULT 0,
        withdrawals INTEGER NOT NULL DEFAULT 0,
        withdrawn_keys INTEGER NOT NULL DEFAULT 0,
        batches INTEGER NOT NULL DEFAULT 0,
        downloads INTEGER NOT NULL DEFAULT 0,
        unchanged INTEGER NOT NULL DEFAULT 0,
        download_keys INTEGER NOT NULL DEFAULT 0,
        download_bytes INTEGER NOT NULL DEFAULT 0,
        audits INTEGER NOT NULL DEFAULT 0,
        callbacks_delivered INTEGER NOT NULL DEFAULT 0,
        callbacks_failed INTEGER NOT NULL DEFAULT 0,
        client_errors INTEGER NOT NULL DEFAULT 0,
        server_errors INTEGER NOT NULL DEFAULT 0,
        last_upload_at INTEGER NULL,
        last_download_at INTEGER NULL,
        PRIMARY KEY (day, country, instance)
    ) WITHOUT ROWID",
    "INSERT OR IGNORE INTO job (name, owner, token, expires_at, due_at) VALUES ('access-log', NULL, 0, 0, 0)",
];
