//! The lease of the rotation, which re-encrypts stored payloads with another encryption key (spec §8.2).

use sea_orm_migration::prelude::*;

/// Expands: a row that earlier versions do not use.
pub(crate) struct Migration;

impl MigrationName for Migration {
    fn name(&self) -> &str {
        "m0007_rotation"
    }
}

#[async_trait::async_trait]
impl MigrationTrait for Migration {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        crate::execute(manager, MYSQL, SQLITE).await
    }
}

const MYSQL: &[&str] =
    &["INSERT INTO job (name, owner, token, expires_at, due_at) VALUES ('rotation', NULL, 0, 0, 0)
     ON DUPLICATE KEY UPDATE name = VALUES(name)"];

const SQLITE: &[&str] = &[
    "INSERT OR IGNORE INTO job (name, owner, token, expires_at, due_at) VALUES ('rotation', NULL, 0, 0, 0)",
];
