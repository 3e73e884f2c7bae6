//! A check value for each encryption key.

use sea_orm_migration::prelude::*;

/// Expands: a table that earlier versions do not use.
pub(crate) struct Migration;

impl MigrationName for Migration {
    fn name(&self) -> &str {
        "m0009_encryption_key"
    }
}

#[async_trait::async_trait]
impl MigrationTrait for Migration {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        crate::execute(manager, MYSQL, SQLITE).await
    }
}

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
