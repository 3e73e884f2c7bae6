//! Divides the keys by day, so that a day is forgotten at once, and gives the hashes by which keys are unique a table of
//! their own (spec §4.2.4, §4.2.6).

use sea_orm_migration::{
    prelude::*,
    sea_orm::{ConnectionTrait, DatabaseBackend, QueryResult, Statement},
};

/// The version before cannot read or write the new table: its instances are stopped first. On an empty database this is
/// done at once. Else the keys are copied in steps; interrupted, it goes on where it was.
pub(crate) struct Migration;

/// Keys that one statement copies, unless a single upload has more.
const STEP: i64 = 50_000;

impl MigrationName for Migration {
    fn name(&self) -> &str {
        "m0011_days"
    }
}

#[async_trait::async_trait]
impl MigrationTrait for Migration {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        if !manager.has_column("diagnosis_key", "day").await? {
            let divided = divide(manager).await;
            // Another instance may have been faster.
            if divided.is_err() && !manager.has_column("diagnosis_key", "day").await? {
                divided?;
            }
        }
        crate::execute(manager, MYSQL_AFTER, SQLITE_AFTER).await
    }
}

// `day` is the UTC day from which the retention counts, in days since 1970: that of the key's batch, before that the
// day of its upload. The days are partitions, so a statement names the day of each upload. The gateway adds partitions
// ahead and drops those that have expired. The first partition is replaced by the first days; it also holds the hashes
// of keys that were stored before this step, under day 0, because their own day is encrypted.
const MYSQL_KEYS: &str = "CREATE TABLE IF NOT EXISTS diagnosis_key_new (
        day SMALLINT UNSIGNED NOT NULL,
        upload_id BIGINT NOT NULL,
        position INT NOT NULL,
        payload_hash BINARY(32) NOT NULL,
        report_type SMALLINT NOT NULL,
        payload MEDIUMBLOB NOT NULL,
        PRIMARY KEY (day, upload_id, position),
        KEY diagnosis_key_report_type (report_type, day)
    ) ENGINE=InnoDB DEFAULT CHARSET=utf8mb4 PARTITION BY RANGE (day)";
const MYSQL_HASHES: &str = "CREATE TABLE IF NOT EXISTS key_hash (
        rolling_day SMALLINT UNSIGNED NOT NULL,
        hash BINARY(16) NOT NULL,
        PRIMARY KEY (rolling_day, hash)
    ) ENGINE=InnoDB DEFAULT CHARSET=utf8mb4 PARTITION BY RANGE (rolling_day) (PARTITION p0 VALUES LESS THAN (1))";

const SQLITE_KEYS: &str = "CREATE TABLE IF NOT EXISTS diagnosis_key_new (
        day INTEGER NOT NULL,
        upload_id INTEGER NOT NULL,
        position INTEGER NOT NULL,
        payload_hash BLOB NOT NULL,
        report_type INTEGER NOT NULL,
        payload BLOB NOT NULL,
        PRIMARY KEY (day, upload_id, position)
    ) WITHOUT ROWID";
const SQLITE_HASHES: &str = "CREATE TABLE IF NOT EXISTS key_hash (
        rolling_day INTEGER NOT NULL,
        hash BLOB NOT NULL,
        PRIMARY KEY (rolling_day, hash)
    ) WITHOUT ROWID";

const MYSQL_SWAP: &[&str] =
    &["RENAME TABLE diagnosis_key TO diagnosis_key_old, diagnosis_key_new TO diagnosis_key"];
// A view that names a renamed table would stop it.
const SQLITE_SWAP: &[&str] = &["BEGIN IMMEDIATE;
     DROP VIEW IF EXISTS document;
     ALTER TABLE diagnosis_key RENAME TO diagnosis_key_old;
     ALTER TABLE diagnosis_key_new RENAME TO diagnosis_key;
     COMMIT"];

const MYSQL_AFTER: &[&str] = &[
    "DROP TABLE IF EXISTS diagnosis_key_old, diagnosis_key_new",
    "CREATE OR REPLACE VIEW document AS
     SELECT k.payload AS payload, HEX(k.payload_hash) AS payload_hash, k.report_type AS diagnosis_type,
            CONCAT(u.format, '; version=', u.format_major, '.', u.format_minor) AS format,
            u.country AS uploader_country, HEX(u.uploader_thumbprint) AS uploader_thumbprint,
            HEX(u.signing_thumbprint) AS uploader_signing_thumbprint, u.batch_signature AS uploader_batch_signature,
            CAST(u.upload_tag AS CHAR) AS uploader_batch_tag, u.uploaded_at AS uploaded_at,
            k.position AS position, LOWER(HEX(b.id)) AS batch_tag, b.day AS batch_day, b.sequence AS batch_sequence
     FROM upload u
     LEFT JOIN batch b ON b.id = u.batch_id
     JOIN diagnosis_key k ON k.day = DATEDIFF(COALESCE(b.day, u.uploaded_at), '1970-01-01') AND k.upload_id = u.id",
];
const SQLITE_AFTER: &[&str] = &[
    "DROP TABLE IF EXISTS diagnosis_key_old",
    "DROP TABLE IF EXISTS diagnosis_key_new",
    "CREATE INDEX IF NOT EXISTS diagnosis_key_report_type ON diagnosis_key (report_type, day)",
    "CREATE VIEW IF NOT EXISTS document AS
     SELECT k.payload AS payload, HEX(k.payload_hash) AS payload_hash, k.report_type AS diagnosis_type,
            u.format || '; version=' || u.format_major || '.' || u.format_minor AS format,
            u.country AS uploader_country, HEX(u.uploader_thumbprint) AS uploader_thumbprint,
            HEX(u.signing_thumbprint) AS uploader_signing_thumbprint, u.batch_signature AS uploader_batch_signature,
            CAST(u.upload_tag AS TEXT) AS uploader_batch_tag, u.uploaded_at AS uploaded_at,
            k.position AS position, LOWER(HEX(b.id)) AS batch_tag, b.day AS batch_day, b.sequence AS batch_sequence
     FROM upload u
     LEFT JOIN batch b ON b.id = u.batch_id
     JOIN diagnosis_key k ON k.day = unixepoch(COALESCE(b.day, u.uploaded_at)) / 86400 AND k.upload_id = u.id",
];

/// Makes the new tables, fills them, and puts them into their place.
async fn divide(manager: &SchemaManager<'_>) -> Result<(), DbErr> {
    let mysql = manager.get_database_backend() == DatabaseBackend::MySql;
    let day = if mysql {
        "DATEDIFF(COALESCE(b.day, u.uploaded_at), '1970-01-01')"
    } else {
        "unixepoch(COALESCE(b.day, u.uploaded_at)) / 86400"
    };
    let from = "FROM upload u LEFT JOIN batch b ON b.id = u.batch_id";
    let days = row(manager, format!("SELECT MIN({day}), MAX({day}), COUNT(*) {from}")).await?;
    let (first, last, uploads): (Option<i64>, Option<i64>, i64) = match &days {
        Some(row) => (row.try_get_by_index(0)?, row.try_get_by_index(1)?, row.try_get_by_index(2)?),
        None => (None, None, 0),
    };
    let days = match (first, last) {
        (Some(first), Some(last)) => first..=last,
        _ => 0..=0,
    };
    let partitions: Vec<_> =
        days.map(|day| format!("PARTITION p{day} VALUES LESS THAN ({})", day + 1)).collect();
    let keys = format!("{MYSQL_KEYS} ({})", partitions.join(", "));
    crate::execute(manager, &[MYSQL_HASHES, &keys], &[SQLITE_HASHES, SQLITE_KEYS]).await?;
    if uploads > 0 {
        tracing::warn!(
            uploads,
            "the stored keys are being copied to another table: no gateway may take uploads until this is done"
        );
    }
    copy(manager, mysql, day, from).await?;
    crate::execute(manager, MYSQL_SWAP, SQLITE_SWAP).await
}

/// Copies the keys of each upload, after their hashes.
async fn copy(manager: &SchemaManager<'_>, mysql: bool, day: &str, from: &str) -> Result<(), DbErr> {
    let ignore = if mysql { "INSERT IGNORE" } else { "INSERT OR IGNORE" };
    let newest = "SELECT MAX(upload_id) FROM diagnosis_key_new".to_owned();
    let mut done = match row(manager, newest).await? {
        Some(row) => row.try_get_by_index::<Option<i64>>(0)?.unwrap_or(-1),
        None => -1,
    };
    loop {
        let next = format!("SELECT id, amount FROM upload WHERE id > {done} ORDER BY id LIMIT 1000");
        let (mut end, mut keys) = (None, 0);
        for upload in rows(manager, next).await? {
            keys += i64::from(upload.try_get_by_index::<i32>(1)?);
            if end.is_some() && keys > STEP {
                break;
            }
            end = Some(upload.try_get_by_index::<i64>(0)?);
        }
        let Some(end) = end else { return Ok(()) };
        let keys = format!(
            "{ignore} INTO diagnosis_key_new (day, upload_id, position, payload_hash, report_type, payload) \
             SELECT {day}, k.upload_id, k.position, k.payload_hash, k.report_type, k.payload \
             {from} JOIN diagnosis_key k ON k.upload_id = u.id WHERE u.id > {done} AND u.id <= {end}"
        );
        let hashes = format!(
            "{ignore} INTO key_hash (rolling_day, hash) SELECT 0, SUBSTR(payload_hash, 1, 16) FROM diagnosis_key \
             WHERE upload_id > {done} AND upload_id <= {end}"
        );
        for sql in [hashes, keys] {
            manager.get_connection().execute_unprepared(&sql).await?;
        }
        tracing::warn!(upload = end, "keys are copied up to this upload");
        done = end;
    }
}

async fn row(manager: &SchemaManager<'_>, sql: String) -> Result<Option<QueryResult>, DbErr> {
    Ok(rows(manager, sql).await?.into_iter().next())
}

async fn rows(manager: &SchemaManager<'_>, sql: String) -> Result<Vec<QueryResult>, DbErr> {
    let statement = Statement::from_string(manager.get_database_backend(), sql);
    manager.get_connection().query_all_raw(statement).await
}
