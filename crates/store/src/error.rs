//! What can go wrong with the database, and whether a retry helps.

use std::time::Duration;

use sea_orm::{DbErr, RuntimeErr, SqlxError, SqlxMySqlError, SqlxSqliteError};

/// What the rest of the gateway learns of a failure. Texts name the operation, never SQL or data.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The database is unreachable, too busy, or failing over.
    #[error("the database is not available for \"{operation}\": {reason}")]
    Unavailable {
        /// What was tried.
        operation: &'static str,
        /// What the driver said.
        reason: String,
    },
    /// The operation took too long, with its retries.
    #[error("the database did not finish \"{operation}\" within {after:?}")]
    Timeout {
        /// What was tried.
        operation: &'static str,
        /// The limit.
        after: Duration,
    },
    /// Another instance holds the lease now; nothing was changed.
    #[error("the lease of this job has passed to another instance")]
    LeaseLost,
    /// It cannot write: its disk is full, or fails.
    #[error("the database cannot write for \"{operation}\": {reason}; look at its disk")]
    CannotWrite {
        /// What was tried.
        operation: &'static str,
        /// What the driver said.
        reason: String,
    },
    /// The account may not do this.
    #[error(
        "the database denied \"{operation}\": {reason}; give the gateway's account the rights that docs/operations.md \
         lists, or have `efgs-gateway migrate` and `expire` run each day with an account that has them"
    )]
    Denied {
        /// What was tried.
        operation: &'static str,
        /// What the driver said.
        reason: String,
    },
    /// The schema is not the one that this version needs.
    #[error(
        "the database refused \"{operation}\": {reason}; bring its schema up to date with `efgs-gateway migrate`"
    )]
    Schema {
        /// What was tried.
        operation: &'static str,
        /// What the driver said.
        reason: String,
    },
    /// Anything else: a defect.
    #[error("the database refused \"{operation}\": {reason}")]
    Refused {
        /// What was tried.
        operation: &'static str,
        /// What the driver said.
        reason: String,
    },
}

impl StoreError {
    /// What an operation that is not tried, because the database is unreachable, ends with.
    pub fn no_connection(operation: &'static str) -> Self {
        Self::Unavailable { operation, reason: "there is no connection".into() }
    }

    /// Whether the database did not answer, in contrast to a refusal.
    pub fn is_unreachable(&self) -> bool {
        matches!(self, Self::Unavailable { .. } | Self::Timeout { .. })
    }

    /// Whether the same request may succeed a little later.
    pub fn is_temporary(&self) -> bool {
        self.is_unreachable() || self.refuses_writing()
    }

    /// Whether the database cannot or may not write what it is told to.
    pub fn refuses_writing(&self) -> bool {
        matches!(self, Self::CannotWrite { .. } | Self::Denied { .. })
    }
}

/// The outcome of one attempt.
#[derive(Debug)]
pub(super) enum Failure {
    /// A retry helps.
    Transient(String),
    /// There is no connection; a retry helps once there is one.
    Unreachable(String),
    /// A unique key is taken.
    Duplicate,
    /// The server ended a statement that took longer than an operation may.
    TooLong,
    /// See [`StoreError::LeaseLost`].
    LeaseLost,
    /// The day has no partition.
    NoPartition(String),
    /// A table whose definition is to change is in use. An immediate retry does not help.
    InUse(String),
    /// See [`StoreError::Denied`].
    Denied(String),
    /// See [`StoreError::CannotWrite`]. An immediate retry does not help.
    CannotWrite(String),
    /// See [`StoreError::Schema`].
    Schema(String),
    /// A retry does not help.
    Permanent(String),
}

/// Too many connections, shutdown, network, lock time-out, deadlock, record changed, commit failed, read-only (a primary
/// that was demoted), killed, NOWAIT, not ready (Galera, Group Replication); another instance has changed the partitions.
const TRANSIENT: [u16; 28] = [
    1020, 1040, 1047, 1053, 1158, 1159, 1160, 1161, 1180, 1203, 1205, 1213, 1226, 1290, 1317, 1412, 1493,
    1507, 1517, 1615, 1735, 1836, 1927, 3100, 3101, 3169, 3572, 4031,
];

impl Failure {
    pub(super) fn into_error(self, operation: &'static str) -> StoreError {
        match self {
            Self::Transient(reason) | Self::Unreachable(reason) | Self::InUse(reason) => {
                StoreError::Unavailable { operation, reason }
            }
            Self::Duplicate => StoreError::Refused { operation, reason: "a unique key is taken".into() },
            Self::TooLong => {
                StoreError::Unavailable { operation, reason: "a statement took too long".into() }
            }
            Self::LeaseLost => StoreError::LeaseLost,
            Self::NoPartition(reason) => StoreError::Refused { operation, reason },
            Self::Denied(reason) => StoreError::Denied { operation, reason },
            Self::CannotWrite(reason) => StoreError::CannotWrite { operation, reason },
            Self::Schema(reason) => StoreError::Schema { operation, reason },
            Self::Permanent(reason) => StoreError::Refused { operation, reason },
        }
    }

    fn from_mysql(code: u16, message: &str) -> Self {
        match code {
            // Duplicate entry.
            1062 | 1586 => Self::Duplicate,
            // Error writing a file, disk full, the same as a storage engine or a binary log says it, table full.
            3 | 1021 | 1026 | 1030 | 1114 => Self::CannotWrite(format!("error {code}: {message}")),
            // No partition for a value.
            1526 => Self::NoPartition(format!("error {code}: {message}")),
            // Access denied to a database, to a table.
            1044 | 1142 => Self::Denied(format!("error {code}: {message}")),
            // Unknown column, unknown table.
            1054 | 1146 => Self::Schema(format!("error {code}: {message}")),
            // MariaDB's max_statement_time, MySQL's max_execution_time.
            1969 | 3024 => Self::TooLong,
            code if TRANSIENT.contains(&code) => Self::Transient(format!("error {code}: {message}")),
            _ => Self::Permanent(format!("error {code}: {message}")),
        }
    }
}

impl From<DbErr> for Failure {
    fn from(error: DbErr) -> Self {
        match &error {
            DbErr::ConnectionAcquire(_) | DbErr::Conn(_) => Self::Unreachable(error.to_string()),
            DbErr::Exec(RuntimeErr::SqlxError(e)) | DbErr::Query(RuntimeErr::SqlxError(e)) => {
                match e.as_ref() {
                    SqlxError::Database(e) => {
                        if let Some(e) = e.try_downcast_ref::<SqlxMySqlError>() {
                            Self::from_mysql(e.number(), e.message())
                        } else if let Some(e) = e.try_downcast_ref::<SqlxSqliteError>() {
                            from_sqlite(e)
                        } else {
                            Self::Permanent(error.to_string())
                        }
                    }
                    SqlxError::Io(_)
                    | SqlxError::Tls(_)
                    | SqlxError::Protocol(_)
                    | SqlxError::PoolTimedOut
                    | SqlxError::PoolClosed
                    | SqlxError::WorkerCrashed => Self::Unreachable(error.to_string()),
                    _ => Self::Permanent(error.to_string()),
                }
            }
            _ => Self::Permanent(error.to_string()),
        }
    }
}

fn from_sqlite(error: &SqlxSqliteError) -> Failure {
    use sea_orm::sqlx::error::DatabaseError;
    let code: u32 = error.code().and_then(|code| code.parse().ok()).unwrap_or_default();
    match code & 0xff {
        // SQLITE_BUSY and SQLITE_LOCKED.
        5 | 6 => Failure::Transient(error.message().to_owned()),
        // SQLITE_READONLY, SQLITE_IOERR, SQLITE_FULL.
        8 | 10 | 13 => Failure::CannotWrite(error.message().to_owned()),
        // SQLITE_ERROR: only this text tells an unknown column or table.
        1 if error.message().contains("no such ") => Failure::Schema(error.message().to_owned()),
        _ if error.is_unique_violation() => Failure::Duplicate,
        _ => Failure::Permanent(error.message().to_owned()),
    }
}

impl From<mysql_async::Error> for Failure {
    fn from(error: mysql_async::Error) -> Self {
        use mysql_async::{DriverError, Error};
        match &error {
            Error::Server(e) => Self::from_mysql(e.code, &e.message),
            Error::Io(_) => Self::Unreachable(error.to_string()),
            Error::Driver(DriverError::ConnectionClosed | DriverError::PoolDisconnected) => {
                Self::Unreachable(error.to_string())
            }
            _ => Self::Permanent(error.to_string()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Failure;

    #[test]
    fn deadlocks_lock_timeouts_and_failovers_are_worth_another_attempt() {
        for code in [1213, 1205, 1020, 3572, 1047, 1180, 1290] {
            assert!(matches!(Failure::from_mysql(code, ""), Failure::Transient(_)), "{code}");
        }
        assert!(matches!(Failure::from_mysql(1062, ""), Failure::Duplicate));
        for code in [1969, 3024] {
            assert!(matches!(Failure::from_mysql(code, ""), Failure::TooLong), "{code}");
        }
        for code in [1114, 1030] {
            assert!(matches!(Failure::from_mysql(code, ""), Failure::CannotWrite(_)), "{code}");
        }
        assert!(matches!(Failure::from_mysql(1526, ""), Failure::NoPartition(_)));
        for code in [1044, 1142] {
            let error = Failure::from_mysql(code, "").into_error("upload");
            assert!(error.is_temporary() && error.refuses_writing(), "{code}: answered 503 and reported");
        }
        for code in [1064, 1406] {
            assert!(matches!(Failure::from_mysql(code, ""), Failure::Permanent(_)), "{code}");
        }
    }
}
