//! Certificates, uploads, diagnosis keys, batches and the leases of jobs (spec §4.2).

/// The first schema.
pub(crate) const STEP: crate::Step = crate::Step { name: "m0001_initial", mysql: MYSQL, sqlite: SQLITE };

// Times are UTC with microseconds. Texts that are compared are binary (`ascii_bin`, VARBINARY), because
// MySQL's default collations take `a` for `A` and ignore trailing spaces.
const MYSQL: &[&str] = &[
    // Who may call and sign. A row counts only with both signatures of the trust anchor (spec §6.1.3).
    "CREATE TABLE IF NOT EXISTS certificate (
        id BIGINT NOT NULL AUTO_INCREMENT PRIMARY KEY,
        thumbprint BINARY(32) NOT NULL,
        type VARCHAR(16) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
        country CHAR(2) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
        pem MEDIUMTEXT CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
        operator_signature TEXT CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
        registration_signature TEXT CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
        waived VARCHAR(255) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
        waived_by VARCHAR(255) NOT NULL,
        waived_because TEXT NOT NULL,
        imported_at DATETIME(6) NOT NULL,
        revoked_at DATETIME(6) NULL,
        UNIQUE KEY certificate_thumbprint_type (thumbprint, type)
    ) ENGINE=InnoDB DEFAULT CHARSET=utf8mb4",
    // What a national backend sent in one request. `content_hash` is SHA-256 of the signed bytes and tells a
    // repeated request from a different one. The certificate ids are of the registered certificates, which may
    // be CAs; the thumbprints are of those that were used. `batch_id` is NULL until a batch takes the upload in.
    "CREATE TABLE IF NOT EXISTS upload (
        id BIGINT NOT NULL AUTO_INCREMENT PRIMARY KEY,
        country CHAR(2) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
        upload_tag VARBINARY(64) NOT NULL,
        format VARCHAR(16) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
        format_major SMALLINT NOT NULL,
        format_minor SMALLINT NOT NULL,
        amount INT NOT NULL,
        payload_bytes BIGINT NOT NULL,
        content_hash BINARY(32) NOT NULL,
        batch_signature MEDIUMTEXT CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
        uploader_certificate_id BIGINT NOT NULL,
        uploader_thumbprint BINARY(32) NOT NULL,
        signing_certificate_id BIGINT NOT NULL,
        signing_thumbprint BINARY(32) NOT NULL,
        uploaded_at DATETIME(6) NOT NULL,
        batch_id BINARY(12) NULL,
        UNIQUE KEY upload_country_tag (country, upload_tag),
        KEY upload_batch (batch_id)
    ) ENGINE=InnoDB DEFAULT CHARSET=utf8mb4",
    // One row per diagnosis key (spec §4.2.5). The primary key keeps the rows of an upload together and in
    // the order of the request, so that reading, expiring and auditing an upload are range scans and no
    // further index is needed. `payload` is encrypted and as large as the visited countries make it.
    "CREATE TABLE IF NOT EXISTS diagnosis_key (
        upload_id BIGINT NOT NULL,
        position INT NOT NULL,
        payload_hash BINARY(32) NOT NULL,
        report_type SMALLINT NOT NULL,
        payload MEDIUMBLOB NOT NULL,
        PRIMARY KEY (upload_id, position),
        UNIQUE KEY diagnosis_key_payload_hash (payload_hash)
    ) ENGINE=InnoDB DEFAULT CHARSET=utf8mb4",
    // What is downloaded. The id is the ObjectId (spec §4.2.9), strictly increasing in the order of the chain.
    "CREATE TABLE IF NOT EXISTS batch (
        id BINARY(12) NOT NULL PRIMARY KEY,
        day DATE NOT NULL,
        sequence INT NOT NULL,
        format_major SMALLINT NOT NULL,
        amount INT NOT NULL,
        formed_at DATETIME(6) NOT NULL,
        UNIQUE KEY batch_day_sequence (day, sequence)
    ) ENGINE=InnoDB DEFAULT CHARSET=utf8mb4",
    // Which instance does a job. Times are milliseconds since 1970 by the clock of the database, so that
    // instances with different clocks agree. `token` grows with each holder and fences off earlier ones.
    "CREATE TABLE IF NOT EXISTS job (
        name VARCHAR(32) CHARACTER SET ascii COLLATE ascii_bin NOT NULL PRIMARY KEY,
        owner VARCHAR(64) CHARACTER SET ascii COLLATE ascii_bin NULL,
        token BIGINT NOT NULL,
        expires_at BIGINT NOT NULL,
        due_at BIGINT NOT NULL
    ) ENGINE=InnoDB DEFAULT CHARSET=utf8mb4",
    "INSERT INTO job (name, owner, token, expires_at, due_at) VALUES ('batching', NULL, 0, 0, 0), ('expiry', NULL, 0, 0, 0)
     ON DUPLICATE KEY UPDATE name = VALUES(name)",
    // The document as the specification draws it (spec §4.2.4), for people with a database client.
    "CREATE OR REPLACE VIEW document AS
     SELECT k.payload AS payload, HEX(k.payload_hash) AS payload_hash, k.report_type AS diagnosis_type,
            CONCAT(u.format, '; version=', u.format_major, '.', u.format_minor) AS format,
            u.country AS uploader_country, HEX(u.uploader_thumbprint) AS uploader_thumbprint,
            HEX(u.signing_thumbprint) AS uploader_signing_thumbprint, u.batch_signature AS uploader_batch_signature,
            CAST(u.upload_tag AS CHAR) AS uploader_batch_tag, u.uploaded_at AS uploaded_at,
            k.position AS position, LOWER(HEX(b.id)) AS batch_tag, b.day AS batch_day, b.sequence AS batch_sequence
     FROM diagnosis_key k
     JOIN upload u ON u.id = k.upload_id
     LEFT JOIN batch b ON b.id = u.batch_id",
];

const SQLITE: &[&str] = &[
    "CREATE TABLE IF NOT EXISTS certificate (
        id INTEGER PRIMARY KEY AUTOINCREMENT,
        thumbprint BLOB NOT NULL,
        type TEXT NOT NULL,
        country TEXT NOT NULL,
        pem TEXT NOT NULL,
        operator_signature TEXT NOT NULL,
        registration_signature TEXT NOT NULL,
        waived TEXT NOT NULL,
        waived_by TEXT NOT NULL,
        waived_because TEXT NOT NULL,
        imported_at TEXT NOT NULL,
        revoked_at TEXT NULL,
        UNIQUE (thumbprint, type)
    )",
    "CREATE TABLE IF NOT EXISTS upload (
        id INTEGER PRIMARY KEY AUTOINCREMENT,
        country TEXT NOT NULL,
        upload_tag BLOB NOT NULL,
        format TEXT NOT NULL,
        format_major INTEGER NOT NULL,
        format_minor INTEGER NOT NULL,
        amount INTEGER NOT NULL,
        payload_bytes INTEGER NOT NULL,
        content_hash BLOB NOT NULL,
        batch_signature TEXT NOT NULL,
        uploader_certificate_id INTEGER NOT NULL,
        uploader_thumbprint BLOB NOT NULL,
        signing_certificate_id INTEGER NOT NULL,
        signing_thumbprint BLOB NOT NULL,
        uploaded_at TEXT NOT NULL,
        batch_id BLOB NULL,
        UNIQUE (country, upload_tag)
    )",
    "CREATE INDEX IF NOT EXISTS upload_batch ON upload (batch_id)",
    "CREATE TABLE IF NOT EXISTS diagnosis_key (
        upload_id INTEGER NOT NULL,
        position INTEGER NOT NULL,
        payload_hash BLOB NOT NULL UNIQUE,
        report_type INTEGER NOT NULL,
        payload BLOB NOT NULL,
        PRIMARY KEY (upload_id, position)
    ) WITHOUT ROWID",
    "CREATE TABLE IF NOT EXISTS batch (
        id BLOB NOT NULL PRIMARY KEY,
        day TEXT NOT NULL,
        sequence INTEGER NOT NULL,
        format_major INTEGER NOT NULL,
        amount INTEGER NOT NULL,
        formed_at TEXT NOT NULL,
        UNIQUE (day, sequence)
    )",
    "CREATE TABLE IF NOT EXISTS job (
        name TEXT NOT NULL PRIMARY KEY,
        owner TEXT NULL,
        token INTEGER NOT NULL,
        expires_at INTEGER NOT NULL,
        due_at INTEGER NOT NULL
    )",
    "INSERT OR IGNORE INTO job (name, owner, token, expires_at, due_at) VALUES ('batching', NULL, 0, 0, 0), ('expiry', NULL, 0, 0, 0)",
    "CREATE VIEW IF NOT EXISTS document AS
     SELECT k.payload AS payload, HEX(k.payload_hash) AS payload_hash, k.report_type AS diagnosis_type,
            u.format || '; version=' || u.format_major || '.' || u.format_minor AS format,
            u.country AS uploader_country, HEX(u.uploader_thumbprint) AS uploader_thumbprint,
            HEX(u.signing_thumbprint) AS uploader_signing_thumbprint, u.batch_signature AS uploader_batch_signature,
            CAST(u.upload_tag AS TEXT) AS uploader_batch_tag, u.uploaded_at AS uploaded_at,
            k.position AS position, LOWER(HEX(b.id)) AS batch_tag, b.day AS batch_day, b.sequence AS batch_sequence
     FROM diagnosis_key k
     JOIN upload u ON u.id = k.upload_id
     LEFT JOIN batch b ON b.id = u.batch_id",
];
