//! SQL that differs between the databases, side by side.

use std::time::Duration;

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

/// Seconds that a statement waits for the lock of a row, or for a table whose definition somebody changes.
pub(super) const LOCK_WAIT: u64 = 5;

/// What every connection to MySQL or MariaDB is set to, because the drivers start with different settings:
/// no value is truncated or rounded silently, times are UTC, and a statement sees what is committed. (The
/// variable for the isolation has another name on MariaDB 10.11, so it is a statement of its own.) The server ends
/// statements that take longer than `limit`: reads on MySQL, all on MariaDB, each of which takes the other's comment
/// for a comment.
pub(super) fn mysql_session(limit: Option<Duration>) -> [String; 2] {
    // 0: no limit.
    let limit = limit.unwrap_or_default();
    [
        format!(
            "SET SESSION sql_mode = 'STRICT_ALL_TABLES,NO_ZERO_DATE,NO_ZERO_IN_DATE,ERROR_FOR_DIVISION_BY_ZERO,NO_ENGINE_SUBSTITUTION', \
             time_zone = '+00:00', innodb_lock_wait_timeout = {LOCK_WAIT}, lock_wait_timeout = {LOCK_WAIT} \
             /*!80000 , max_execution_time = {} */ /*M! , max_statement_time = {:.3} */",
            limit.as_millis(),
            limit.as_secs_f64()
        ),
        "SET SESSION TRANSACTION ISOLATION LEVEL READ COMMITTED".to_owned(),
    ]
}

/// `?, ?, …`, `n` times.
pub(super) fn placeholders(n: usize) -> String {
    vec!["?"; n].join(", ")
}

/// Writes rows of literals: many rows go to the database as one text, in one round trip and without preparing
/// a statement for each number of rows. Texts and bytes become hexadecimal digits, so that nothing in them can
/// be taken for SQL.
pub(super) struct Literals {
    text: String,
    sqlite: bool,
    rows: usize,
    values: usize,
}

impl Literals {
    pub(super) fn new(backend: DatabaseBackend, head: &str) -> Self {
        Self { text: head.to_owned(), sqlite: backend == DatabaseBackend::Sqlite, rows: 0, values: 0 }
    }

    pub(super) fn open_row(&mut self) {
        self.text += if self.rows == 0 { "(" } else { ",(" };
        self.rows += 1;
        self.values = 0;
    }

    pub(super) fn close_row(&mut self) {
        self.text.push(')');
    }

    fn separate(&mut self) {
        if self.values > 0 {
            self.text.push(',');
        }
        self.values += 1;
    }

    pub(super) fn integer(&mut self, value: i64) {
        self.separate();
        self.text += &value.to_string();
    }

    pub(super) fn bytes(&mut self, value: &[u8]) {
        self.separate();
        self.text += "x'";
        self.text += &efgs_access_log::hex(value);
        self.text.push('\'');
    }

    /// Bytes that are hexadecimal digits already; anything else is written as nothing.
    pub(super) fn hex(&mut self, digits: &str) {
        self.separate();
        self.text += "x'";
        self.text.extend(digits.chars().filter(char::is_ascii_hexdigit));
        self.text.push('\'');
    }

    pub(super) fn text(&mut self, value: &str) {
        if !self.sqlite {
            return self.bytes(value.as_bytes());
        }
        // There a hexadecimal literal is never a text by itself.
        self.separate();
        self.text += "CAST(x'";
        self.text += &efgs_access_log::hex(value.as_bytes());
        self.text += "' AS TEXT)";
    }

    pub(super) fn date(&mut self, day: chrono::NaiveDate) {
        self.separate();
        self.text += &format!("'{day}'");
    }

    pub(super) fn optional<T>(&mut self, value: Option<T>, write: impl FnOnce(&mut Self, T)) {
        match value {
            Some(value) => write(self, value),
            None => {
                self.separate();
                self.text += "NULL";
            }
        }
    }

    pub(super) fn into_text(self) -> String {
        self.text
    }
}
