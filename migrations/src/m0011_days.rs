//! Divides the keys by day, so that a day is forgotten at once, and gives the hashes by which keys are unique a table of
//! their own (spec §4.2.4, §4.2.6).

use sea_orm_migration::{
    prelude::*,
    sea_orm::{ConnectionTrait, DatabaseBackend, QueryResult, Statement, TransactionTrait},
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
        let is_divided = async || manager.has_column("diagnosis_key", "day").await;
        let is_old_there = async || manager.has_table(OLD).await;
        // Wherever something fails, another instance may have been faster.
        if !is_divided().await? && !is_old_there().await? {
            let aside = put_aside(manager).await;
            if aside.is_err() && !is_divided().await? && !is_old_there().await? {
                aside?;
            }
        }
        if !is_divided().await? {
            create(manager).await?;
        }
        if is_old_there().await? {
            let copied = copy(manager).await;
            if copied.is_err() && is_old_there().await? {
                copied?;
            }
        }
        crate::execute(manager, MYSQL_AFTER, SQLITE_AFTER).await
    }
}

/// The keys that are not copied yet.
const OLD: &str = "diagnosis_key_old";

// `day` is the UTC day from which the retention counts, in days since 1970: that of the key's batch, before that the
// day of its upload. The days are partitions, so a statement names the day of each upload. The gateway adds partitions
// ahead and drops those that have expired. The first partition is replaced by the first days; it also holds the hashes
// of keys that were stored before this step, under day 0, because their own day is encrypted.
const MYSQL_KEYS: &str = "CREATE TABLE IF NOT EXISTS diagnosis_key (
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

const SQLITE_KEYS: &str = "CREATE TABLE IF NOT EXISTS diagnosis_key (
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

// Each of these fails if the table is the new one already. The index is of no use any more.
const MYSQL_ASIDE: &[&str] =
    &["ALTER TABLE diagnosis_key DROP INDEX diagnosis_key_payload_hash, RENAME TO diagnosis_key_old"];
const SQLITE_ASIDE: &[&str] = &[
    // A view that names the table would stop it.
    "DROP VIEW IF EXISTS document",
    "ALTER TABLE diagnosis_key ADD COLUMN day INTEGER",
    "ALTER TABLE diagnosis_key RENAME TO diagnosis_key_old",
];

const MYSQL_AFTER: &[&str] = &[
    "DROP TABLE IF EXISTS diagnosis_key_old",
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

/// Renames the table as it was. From then on, the version before cannot take uploads.
async fn put_aside(manager: &SchemaManager<'_>) -> Result<(), DbErr> {
    let connection = manager.get_connection();
    if manager.get_database_backend() == DatabaseBackend::MySql {
        return crate::execute(manager, MYSQL_ASIDE, &[]).await;
    }
    let tx = connection.begin().await?;
    for statement in SQLITE_ASIDE {
        tx.execute_unprepared(statement).await?;
    }
    tx.commit().await
}

/// The day of an upload's keys.
fn day(manager: &SchemaManager<'_>) -> &'static str {
    match manager.get_database_backend() {
        DatabaseBackend::MySql => "DATEDIFF(COALESCE(b.day, u.uploaded_at), '1970-01-01')",
        _ => "unixepoch(COALESCE(b.day, u.uploaded_at)) / 86400",
    }
}

const UPLOADS: &str = "FROM upload u LEFT JOIN batch b ON b.id = u.batch_id";

/// Makes the new tables, with a partition for each day of which there are uploads.
async fn create(manager: &SchemaManager<'_>) -> Result<(), DbErr> {
    let day = day(manager);
    let days = rows(manager, format!("SELECT MIN({day}), MAX({day}) {UPLOADS}")).await?;
    let mut partitions = Vec::new();
    for row in days {
        let first: Option<i64> = row.try_get_by_index(0)?;
        let last: Option<i64> = row.try_get_by_index(1)?;
        partitions = (first.unwrap_or(0)..=last.unwrap_or(0))
            .map(|day| format!("PARTITION p{day} VALUES LESS THAN ({})", day + 1))
            .collect();
    }
    let keys = format!("{MYSQL_KEYS} ({})", partitions.join(", "));
    crate::execute(manager, &[MYSQL_HASHES, &keys], &[SQLITE_HASHES, SQLITE_KEYS]).await
}

/// Copies the keys of each upload, after their hashes.
async fn copy(manager: &SchemaManager<'_>) -> Result<(), DbErr> {
    let (day, connection) = (day(manager), manager.get_connection());
    let ignore = match manager.get_database_backend() {
        DatabaseBackend::MySql => "INSERT IGNORE",
        _ => "INSERT OR IGNORE",
    };
    let mut done: i64 = -1;
    for row in rows(manager, "SELECT MAX(upload_id) FROM diagnosis_key".to_owned()).await? {
        done = row.try_get_by_index::<Option<i64>>(0)?.unwrap_or(done);
    }
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
        tracing::warn!(
            after = done,
            "stored keys are copied to the new table: no gateway takes uploads until this is done"
        );
        let hashes = format!(
            "{ignore} INTO key_hash (rolling_day, hash) SELECT 0, SUBSTR(payload_hash, 1, 16) FROM {OLD} \
             WHERE upload_id > {done} AND upload_id <= {end}"
        );
        let keys = format!(
            "{ignore} INTO diagnosis_key (day, upload_id, position, payload_hash, report_type, payload) \
             SELECT {day}, k.upload_id, k.position, k.payload_hash, k.report_type, k.payload \
             {UPLOADS} JOIN {OLD} k ON k.upload_id = u.id WHERE u.id > {done} AND u.id <= {end}"
        );
        connection.execute_unprepared(&hashes).await?;
        connection.execute_unprepared(&keys).await?;
        done = end;
    }
}

async fn rows(manager: &SchemaManager<'_>, sql: String) -> Result<Vec<QueryResult>, DbErr> {
    let statement = Statement::from_string(manager.get_database_backend(), sql);
    manager.get_connection().query_all_raw(statement).await
}
