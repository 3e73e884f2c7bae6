//! The gateway's database schema, for MySQL, MariaDB and SQLite.
//!
//! Each step is a module with both dialects side by side. Every step follows these rules:
//!
//! * **Repeatable.** MySQL commits each DDL statement by itself, so a step can be interrupted, and two
//!   instances can start at once: a statement that has already been carried out must not fail.
//! * **Expand, then contract.** The version before must run on the schema after: add in one release, remove
//!   in a later one.
//! * **A primary key on every table** (Group Replication refuses others); no cascading foreign keys, because
//!   expiry deletes millions of rows in small steps of its own.

pub use sea_orm_migration::prelude::{MigratorTrait, SchemaManager};
use sea_orm_migration::{prelude::*, sea_orm::DatabaseBackend};

mod m0001_initial;
mod m0002_callbacks;
mod m0003_withdrawal;
mod m0004_access_log;
mod m0005_quota;
mod m0006_journal;
mod m0007_rotation;
mod m0008_instance;
mod m0009_encryption_key;
mod m0010_upload_key;
mod m0011_days;
mod m0012_request_count;

/// All steps, oldest first.
#[derive(Debug)]
pub struct Migrator;

#[async_trait::async_trait]
impl MigratorTrait for Migrator {
    fn migrations() -> Vec<Box<dyn MigrationTrait>> {
        vec![
            Box::new(m0001_initial::STEP),
            Box::new(m0002_callbacks::STEP),
            Box::new(m0003_withdrawal::STEP),
            Box::new(m0004_access_log::STEP),
            Box::new(m0005_quota::STEP),
            Box::new(m0006_journal::STEP),
            Box::new(m0007_rotation::STEP),
            Box::new(m0008_instance::STEP),
            Box::new(m0009_encryption_key::STEP),
            Box::new(m0010_upload_key::Migration),
            Box::new(m0011_days::Migration),
            Box::new(m0012_request_count::Migration),
        ]
    }
}

/// A step that only carries out statements, each of which can be repeated.
struct Step {
    name: &'static str,
    mysql: &'static [&'static str],
    sqlite: &'static [&'static str],
}

impl MigrationName for Step {
    fn name(&self) -> &str {
        self.name
    }
}

#[async_trait::async_trait]
impl MigrationTrait for Step {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        execute(manager, self.mysql, self.sqlite).await
    }
}

/// Executes the statements of one step for the current database.
async fn execute(manager: &SchemaManager<'_>, mysql: &[&str], sqlite: &[&str]) -> Result<(), DbErr> {
    let statements = match manager.get_database_backend() {
        DatabaseBackend::MySql => mysql,
        DatabaseBackend::Sqlite => sqlite,
        other => return Err(DbErr::Custom(format!("there is no schema for {other:?}"))),
    };
    for statement in statements {
        manager.get_connection().execute_unprepared(statement).await?;
    }
    Ok(())
}
