//! What an operator sees at a glance: instances, jobs, traffic by the hour, last downloads.

use chrono::{DateTime, NaiveDateTime, TimeDelta, Utc};
use sea_orm::ConnectionTrait;
use serde::Serialize;

use super::{Store, StoreError, sql};
use efgs_kit::instance::Instance;

/// An instance without a sign of life for this long is forgotten.
const FORGET_AFTER: TimeDelta = TimeDelta::days(1);

/// An instance of the gateway, as the database knows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KnownInstance {
    /// Which.
    pub instance: Instance,
    /// The version that it runs.
    pub version: String,
    /// How long it has been running.
    pub uptime: TimeDelta,
    /// How long ago its last sign of life was.
    pub silent: TimeDelta,
}

/// Uploads within one hour.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Hour {
    /// The beginning of the hour.
    pub at: DateTime<Utc>,
    /// Uploads that were stored.
    pub uploads: u64,
    /// Their keys.
    pub keys: u64,
}

/// How a request ended that was an upload, or that failed (5xx).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ending {
    /// When the request arrived.
    pub at: DateTime<Utc>,
    /// The caller, if it was let in.
    pub country: Option<String>,
    /// Whether it was an upload.
    pub upload: bool,
    /// Of the answer.
    pub status: u16,
    /// Code of the error.
    pub error: Option<String>,
}

/// [`Store::endings`] looks at the newest so many requests of all kinds, at most: a look must not cost much.
const NEWEST: i64 = 20_000;

impl Store {
    /// How uploads and requests that failed ended since `since`, on every instance, the newest first.
    pub async fn endings(&self, since: DateTime<Utc>) -> Result<Vec<Ending>, StoreError> {
        self.repeat("endings", || async {
            let sql = "SELECT at, country, operation, status, error FROM \
                       (SELECT at, country, operation, status, error FROM access_log WHERE at >= ? \
                       ORDER BY at DESC LIMIT ?) newest \
                       WHERE operation = 'upload' OR status >= 500 ORDER BY at DESC";
            let values = [since.timestamp_micros().into(), NEWEST.into()];
            let mut endings = Vec::new();
            for row in self.db.query_all_raw(self.statement(sql, values)).await? {
                let at: i64 = row.try_get("", "at")?;
                let status: i16 = row.try_get("", "status")?;
                endings.push(Ending {
                    at: DateTime::from_timestamp_micros(at).unwrap_or_default(),
                    country: row.try_get("", "country")?,
                    upload: row.try_get::<String>("", "operation")? == "upload",
                    status: status.unsigned_abs(),
                    error: row.try_get("", "error")?,
                });
            }
            Ok(endings)
        })
        .await
    }

    /// Records that an instance is alive, and forgets those that have been silent for a day.
    pub async fn beat(&self, instance: &Instance) -> Result<(), StoreError> {
        self.repeat("sign of life", || async {
            let now = sql::now_ms(self.backend());
            let known = self
                .db
                .execute_raw(self.statement(
                    &format!("UPDATE instance SET seen_at = {now} WHERE id = ?"),
                    [instance.id.as_str().into()],
                ))
                .await?;
            // Counted are found rows on SQLite and through sea-orm on MySQL, so 0 means that there is none.
            if known.rows_affected() == 0 {
                let sql = format!(
                    "INSERT INTO instance (id, host, version, started_at, seen_at) VALUES (?, ?, ?, {now}, {now})"
                );
                let values = [
                    instance.id.as_str().into(),
                    instance.host.as_str().into(),
                    env!("CARGO_PKG_VERSION").into(),
                ];
                self.db.execute_raw(self.statement(&sql, values)).await?;
            }
            let sql = format!("DELETE FROM instance WHERE seen_at < {now} - ?");
            self.db.execute_raw(self.statement(&sql, [FORGET_AFTER.num_milliseconds().into()])).await?;
            Ok(())
        })
        .await
    }

    /// Forgets an instance that has stopped.
    pub async fn forget_instance(&self, instance: &Instance) -> Result<(), StoreError> {
        self.repeat("end of an instance", || async {
            let sql = "DELETE FROM instance WHERE id = ?";
            self.db.execute_raw(self.statement(sql, [instance.id.as_str().into()])).await?;
            Ok(())
        })
        .await
    }

    /// The instances that run, or were killed within the last day, the oldest first.
    pub async fn instances(&self) -> Result<Vec<KnownInstance>, StoreError> {
        self.repeat("instances", || async {
            let now = sql::now_ms(self.backend());
            let sql = format!(
                "SELECT id, host, version, {now} - started_at AS uptime, {now} - seen_at AS silent FROM instance \
                 ORDER BY started_at, id"
            );
            let rows = self.db.query_all_raw(self.statement(&sql, [])).await?;
            let known = rows.iter().map(|row| {
                Ok(KnownInstance {
                    instance: Instance { id: row.try_get("", "id")?, host: row.try_get("", "host")? },
                    version: row.try_get("", "version")?,
                    uptime: TimeDelta::milliseconds(row.try_get("", "uptime")?),
                    silent: TimeDelta::milliseconds(row.try_get("", "silent")?),
                })
            });
            known.collect()
        })
        .await
    }

    /// Uploads by the hour since `since`; hours without any are left out.
    pub async fn keys_by_hour(&self, since: DateTime<Utc>) -> Result<Vec<Hour>, StoreError> {
        self.repeat("keys by hour", || async {
            let integer = sql::integer(self.backend());
            let sql = format!(
                "SELECT SUBSTR(uploaded_at, 1, 13) AS hour, COUNT(*) AS uploads, \
                 CAST(SUM(amount) AS {integer}) AS amount FROM upload WHERE uploaded_at >= ? GROUP BY hour ORDER BY hour"
            );
            let mut hours = Vec::new();
            for row in self.db.query_all_raw(self.statement(&sql, [since.naive_utc().into()])).await? {
                let hour: String = row.try_get("", "hour")?;
                let Ok(at) = NaiveDateTime::parse_from_str(&format!("{hour}:00"), "%Y-%m-%d %H:%M") else { continue };
                hours.push(Hour {
                    at: at.and_utc(),
                    uploads: row.try_get::<i64>("", "uploads")?.unsigned_abs(),
                    keys: row.try_get::<i64>("", "amount")?.unsigned_abs(),
                });
            }
            Ok(hours)
        })
        .await
    }
}
