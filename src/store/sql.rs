//! SQL that differs between the databases, side by side.

use sea_orm::DatabaseBackend;

/// Milliseconds since 1970 by the clock of the database.
pub(super) fn now_ms(backend: DatabaseBackend) -> &'static str {
    match backend {
        DatabaseBackend::Sqlite => "CAST(unixepoch('subsec') * 1000 AS INTEGER)",
        _ => "CAST(UNIX_TIMESTAMP(NOW(6)) * 1000 AS SIGNED)",
    }
}

/// The type that sums are cast to: MySQL's are decimals.
pub(super) fn integer(backend: DatabaseBackend) -> &'static str {
    match backend {
        DatabaseBackend::Sqlite => "INTEGER",
        _ => "SIGNED",
    }
}

/// What every connection to MySQL or MariaDB is set to, because the drivers start with different settings:
/// no value is truncated or rounded silently, times are UTC, and a statement sees what is committed. (The
/// variable for the isolation has another name on MariaDB 10.11, so it is a statement of its own.)
pub(super) const MYSQL_SESSION: [&str; 2] = [
    "SET SESSION sql_mode = 'STRICT_ALL_TABLES,NO_ZERO_DATE,NO_ZERO_IN_DATE,ERROR_FOR_DIVISION_BY_ZERO,NO_ENGINE_SUBSTITUTION', \
     time_zone = '+00:00', innodb_lock_wait_timeout = 5",
    "SET SESSION TRANSACTION ISOLATION LEVEL READ COMMITTED",
];

/// `?, ?, …`, `n` times.
pub(super) fn placeholders(n: usize) -> String {
    vec!["?"; n].join(", ")
}
