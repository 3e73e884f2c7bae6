//! SQL that differs between the databases, side by side.

use sea_orm::DatabaseBackend;

/// Milliseconds since 1970 by the clock of the database.
pub(super) fn now_ms(backend: DatabaseBackend) -> &'static str {
    match backend {
        DatabaseBackend::Sqlite => "CAST(unixepoch('subsec') * 1000 AS INTEGER)",
        _ => "CAST(UNIX_TIMESTAMP(NOW(6)) * 1000 AS SIGNED)",
    }
}

/// What every connection to MySQL or MariaDB is set to, because the drivers start with different settings:
/// no value is truncated or rounded silently, times are UTC, and a statement sees what is committed.
pub(super) const MYSQL_SESSION: &str = "SET SESSION sql_mode = 'STRICT_ALL_TABLES,NO_ZERO_DATE,NO_ZERO_IN_DATE,ERROR_FOR_DIVISION_BY_ZERO,NO_ENGINE_SUBSTITUTION', \
     time_zone = '+00:00', transaction_isolation = 'READ-COMMITTED', innodb_lock_wait_timeout = 5";

/// `?, ?, …`, `n` times.
pub(super) fn placeholders(n: usize) -> String {
    vec!["?"; n].join(", ")
}
