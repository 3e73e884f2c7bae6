//! SQL that differs between the databases, side by side.

use std::time::Duration;

use sea_orm::{DatabaseBackend, Value};

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

/// The number of a day, as `days::number` counts it, from a date or a time.
pub(super) fn day_number(backend: DatabaseBackend, time: &str) -> String {
    match backend {
        DatabaseBackend::Sqlite => format!("unixepoch({time}) / 86400"),
        _ => format!("DATEDIFF({time}, '1970-01-01')"),
    }
}

/// The day of the keys of an upload, whose number is the placeholder.
pub(super) fn day_of_upload(backend: DatabaseBackend) -> String {
    let day = day_number(backend, "COALESCE(b.day, u.uploaded_at)");
    format!("(SELECT {day} FROM upload u LEFT JOIN batch b ON b.id = u.batch_id WHERE u.id = ?)")
}

/// Seconds that a statement waits for the lock of a row, or for a table whose definition somebody changes.
pub(super) const LOCK_WAIT: u64 = 5;
/// Seconds that a change of a table's definition waits for those who use the table: all who come after it wait too.
pub(super) const DEFINITION_WAIT: u64 = 1;

/// What every connection to MySQL or MariaDB is set to, because the drivers start with different settings:
/// no value is truncated or rounded silently, times are UTC, and a statement sees what is committed. (The
/// variable for the isolation has another name on MariaDB 10.11, so it is a statement of its own.) The server ends
/// statements that take longer than `limit`: reads on MySQL, all on MariaDB, each of which takes the other's comment
/// for a comment.
/// Without a limit, the connection is one that changes tables.
pub(super) fn mysql_session(limit: Option<Duration>) -> [String; 2] {
    let definition_wait = if limit.is_some() { LOCK_WAIT } else { DEFINITION_WAIT };
    // 0: no limit.
    let limit = limit.unwrap_or_default();
    [
        format!(
            "SET SESSION sql_mode = 'STRICT_ALL_TABLES,NO_ZERO_DATE,NO_ZERO_IN_DATE,ERROR_FOR_DIVISION_BY_ZERO,NO_ENGINE_SUBSTITUTION', \
             time_zone = '+00:00', innodb_lock_wait_timeout = {LOCK_WAIT}, lock_wait_timeout = {definition_wait} \
             /*!80000 , max_execution_time = {} */ /*M! , max_statement_time = {:.3} */",
            limit.as_millis(),
            limit.as_secs_f64()
        ),
        "SET SESSION TRANSACTION ISOLATION LEVEL READ COMMITTED".to_owned(),
    ]
}

/// What comes between the rows of an INSERT and the assignments for a row that is there already.
pub(super) fn on_conflict(backend: DatabaseBackend, key: &str) -> String {
    match backend {
        DatabaseBackend::Sqlite => format!("ON CONFLICT ({key}) DO UPDATE SET"),
        _ => "ON DUPLICATE KEY UPDATE".to_owned(),
    }
}

/// The value that the INSERT has for a column, in those assignments.
pub(super) fn inserted(backend: DatabaseBackend, column: &str) -> String {
    match backend {
        DatabaseBackend::Sqlite => format!("excluded.{column}"),
        _ => format!("VALUES({column})"),
    }
}

/// The function that returns the greatest of its arguments.
pub(super) fn greatest(backend: DatabaseBackend) -> &'static str {
    match backend {
        DatabaseBackend::Sqlite => "MAX",
        _ => "GREATEST",
    }
}

/// An INSERT that skips rows that are there already.
pub(super) fn insert_ignore(backend: DatabaseBackend) -> &'static str {
    match backend {
        DatabaseBackend::Sqlite => "INSERT OR IGNORE INTO",
        _ => "INSERT IGNORE INTO",
    }
}

/// `?,?,…`, `n` times.
pub(super) fn placeholders(n: usize) -> String {
    vec!["?"; n].join(",")
}

/// An INSERT of `rows` rows, with a placeholder for each value.
pub(super) fn insert(table: &str, columns: &str, rows: usize) -> String {
    let row = format!("({})", placeholders(columns.split(',').count()));
    format!("INSERT INTO {table} ({columns}) VALUES {}", vec![row; rows].join(","))
}

/// Replaces the placeholders by literals: many rows go to the database as one text, in one round trip and without
/// preparing a statement for each number of rows. Texts and bytes become hexadecimal digits, so that nothing in them
/// can be taken for SQL.
pub(super) fn inline(backend: DatabaseBackend, sql: &str, values: impl IntoIterator<Item = Value>) -> String {
    let mut pieces = sql.split('?');
    let mut text = pieces.next().unwrap_or_default().to_owned();
    for (piece, value) in pieces.zip(values) {
        text += &literal(backend, &value);
        text += piece;
    }
    text
}

fn literal(backend: DatabaseBackend, value: &Value) -> String {
    let bytes = |bytes: &[u8]| format!("x'{}'", efgs_access_log::hex(bytes));
    match value {
        Value::BigInt(Some(number)) => number.to_string(),
        Value::Bytes(Some(value)) => bytes(value),
        // There, a hexadecimal literal is never a text by itself.
        Value::String(Some(text)) if backend == DatabaseBackend::Sqlite => {
            format!("CAST({} AS TEXT)", bytes(text.as_bytes()))
        }
        Value::String(Some(text)) => bytes(text.as_bytes()),
        Value::ChronoDate(Some(day)) => format!("'{day}'"),
        Value::ChronoDateTime(Some(time)) => format!("'{}'", time.format("%F %T%.6f")),
        // No other kind is ever bound: see `Bind`.
        _ => "NULL".to_owned(),
    }
}
