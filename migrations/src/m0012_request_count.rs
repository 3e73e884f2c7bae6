//! Records of the access log that stand for several requests.

use sea_orm_migration::{
    prelude::*,
    sea_orm::{ConnectionTrait, DatabaseBackend},
};

/// Records that are there stand for one request each.
pub(crate) struct Migration;

impl MigrationName for Migration {
    fn name(&self) -> &str {
        "m0012_request_count"
    }
}

#[async_trait::async_trait]
impl MigrationTrait for Migration {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        if manager.has_column("access_log", "request_count").await? {
            return Ok(());
        }
        let mysql = manager.get_database_backend() == DatabaseBackend::MySql;
        let number = if mysql { "BIGINT" } else { "INTEGER" };
        let column = format!("ALTER TABLE access_log ADD COLUMN request_count {number} NULL");
        let added = manager.get_connection().execute_unprepared(&column).await;
        // Another instance may have been faster.
        if added.is_err() && !manager.has_column("access_log", "request_count").await? {
            added?;
        }
        Ok(())
    }
}
