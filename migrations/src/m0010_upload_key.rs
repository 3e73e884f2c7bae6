//! Which encryption key an upload is sealed with, and indexes by which uploads are found without reading all of them.

use sea_orm_migration::{
    prelude::*,
    sea_orm::{ConnectionTrait, DatabaseBackend, Statement},
};

/// The version before writes no key id, so its instances are stopped first: there, an upload without one is refused.
pub(crate) struct Migration;

/// Uploads that one statement fills in.
const STEP: usize = 1000;

impl MigrationName for Migration {
    fn name(&self) -> &str {
        "m0010_upload_key"
    }
}

#[async_trait::async_trait]
impl MigrationTrait for Migration {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        let mysql = manager.get_database_backend() == DatabaseBackend::MySql;
        // -1 says that the first payload has not been looked at yet; an upload that has none keeps it.
        let number = if mysql { "BIGINT" } else { "INTEGER" };
        let column = format!("ALTER TABLE upload ADD COLUMN key_id {number} NOT NULL DEFAULT -1");
        if !manager.has_column("upload", "key_id").await? {
            let added = manager.get_connection().execute_unprepared(&column).await;
            // Another instance may have been faster.
            if added.is_err() && !manager.has_column("upload", "key_id").await? {
                added?;
            }
        }
        fill(manager).await?;
        for (name, columns) in INDEXES {
            if manager.has_index("upload", name).await? {
                continue;
            }
            let index = format!("CREATE INDEX {name} ON upload ({columns})");
            let added = manager.get_connection().execute_unprepared(&index).await;
            if added.is_err() && !manager.has_index("upload", name).await? {
                added?;
            }
        }
        // Each statement can be repeated. SQLite cannot take a default away.
        crate::execute(manager, &["ALTER TABLE upload ALTER COLUMN key_id DROP DEFAULT"], &[]).await?;
        if manager.has_index("upload", OUTDATED).await? {
            let dropped = if mysql {
                format!("DROP INDEX {OUTDATED} ON upload")
            } else {
                format!("DROP INDEX IF EXISTS {OUTDATED}")
            };
            let dropped = manager.get_connection().execute_unprepared(&dropped).await;
            if dropped.is_err() && manager.has_index("upload", OUTDATED).await? {
                dropped?;
            }
        }
        Ok(())
    }
}

/// Each holds all that its queries ask for: an upload's own row is large, because of its signature.
const INDEXES: [(&str, &str); 3] = [
    // Which keys are needed, and the first upload that needs one.
    ("upload_key", "key_id, id, amount"),
    // What is in a batch, and what waits for one.
    ("upload_batch_content", "batch_id, id, country, amount"),
    // What came since a time.
    ("upload_uploaded_at", "uploaded_at, amount"),
];

/// `upload_batch_content` begins with its column.
const OUTDATED: &str = "upload_batch";

/// Takes the key ids over from the payloads: of each upload the first one says it for all.
async fn fill(manager: &SchemaManager<'_>) -> Result<(), DbErr> {
    let connection = manager.get_connection();
    let mut last = i64::MIN;
    loop {
        let sql = format!(
            "SELECT u.id AS id, HEX(SUBSTR(k.payload, 1, 4)) AS key_id FROM upload u \
             JOIN diagnosis_key k ON k.upload_id = u.id AND k.position = 0 \
             WHERE u.id > {last} AND u.key_id = -1 ORDER BY u.id LIMIT {STEP}"
        );
        let rows =
            connection.query_all_raw(Statement::from_string(manager.get_database_backend(), sql)).await?;
        let mut by_key = std::collections::BTreeMap::<u32, Vec<String>>::new();
        for row in &rows {
            let (id, key): (i64, String) = (row.try_get("", "id")?, row.try_get("", "key_id")?);
            last = id;
            // One that was cut short in the database names no key, and does not keep the gateway from starting.
            if let (8, Ok(key)) = (key.len(), u32::from_str_radix(&key, 16)) {
                by_key.entry(key).or_default().push(id.to_string());
            }
        }
        for (key, ids) in by_key {
            let ids = ids.join(", ");
            let sql = format!("UPDATE upload SET key_id = {key} WHERE key_id = -1 AND id IN ({ids})");
            connection.execute_unprepared(&sql).await?;
        }
        if rows.len() < STEP {
            return Ok(());
        }
    }
}
