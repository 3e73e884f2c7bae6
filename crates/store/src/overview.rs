//! What an operator sees at a glance: instances, jobs, traffic by the hour, last downloads.

use chrono::{DateTime, NaiveDateTime, TimeDelta, Utc};
use serde::Serialize;

use super::{Store, StoreError, row::values, sql, tx::Queries};
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
        let sql = "SELECT at, country, operation, status, error FROM \
                   (SELECT at, country, operation, status, error FROM access_log WHERE at >= ? \
                   ORDER BY at DESC LIMIT ?) newest \
                   WHERE operation = 'upload' OR status >= 500 ORDER BY at DESC";
        let rows = self.rows("endings", sql, values![since.timestamp_micros(), NEWEST]).await?;
        let ending = |(at, country, operation, status, error): (i64, _, String, _, _)| Ending {
            at: DateTime::from_timestamp_micros(at).unwrap_or_default(),
            country,
            upload: operation == "upload",
            status,
            error,
        };
        Ok(rows.into_iter().map(ending).collect())
    }

    /// Records that an instance is alive, and forgets those that have been silent for a day.
    pub async fn beat(&self, instance: &Instance) -> Result<(), StoreError> {
        self.repeat("sign of life", || async {
            let now = sql::now_ms(self.backend());
            let (id, host) = (instance.id.as_str(), instance.host.as_str());
            let sql = format!("UPDATE instance SET seen_at = {now} WHERE id = ?");
            // 0 means that there is none, because found rows are counted.
            if self.db.run(&sql, values![id]).await? == 0 {
                let sql = format!(
                    "INSERT INTO instance (id, host, version, started_at, seen_at) VALUES (?, ?, ?, {now}, {now})"
                );
                self.db.run(&sql, values![id, host, env!("CARGO_PKG_VERSION")]).await?;
            }
            let sql = format!("DELETE FROM instance WHERE seen_at < {now} - ?");
            self.db.run(&sql, values![FORGET_AFTER.num_milliseconds()]).await?;
            Ok(())
        })
        .await
    }

    /// Forgets an instance that has stopped.
    pub async fn forget_instance(&self, instance: &Instance) -> Result<(), StoreError> {
        let sql = "DELETE FROM instance WHERE id = ?";
        self.run("end of an instance", sql, values![instance.id.as_str()]).await?;
        Ok(())
    }

    /// The instances that run, or were killed within the last day, the oldest first.
    pub async fn instances(&self) -> Result<Vec<KnownInstance>, StoreError> {
        let sql = format!(
            "SELECT id, host, version, {now} - started_at, {now} - seen_at FROM instance ORDER BY started_at, id",
            now = sql::now_ms(self.backend())
        );
        let rows = self.rows("instances", &sql, values![]).await?;
        let known = |(id, host, version, uptime, silent)| KnownInstance {
            instance: Instance { id, host },
            version,
            uptime: TimeDelta::milliseconds(uptime),
            silent: TimeDelta::milliseconds(silent),
        };
        Ok(rows.into_iter().map(known).collect())
    }

    /// Uploads by the hour since `since`; hours without any are left out.
    pub async fn keys_by_hour(&self, since: DateTime<Utc>) -> Result<Vec<Hour>, StoreError> {
        let sql = format!(
            "SELECT SUBSTR(uploaded_at, 1, 13) AS hour, COUNT(*), CAST(SUM(amount) AS {}) FROM upload \
             WHERE uploaded_at >= ? GROUP BY hour ORDER BY hour",
            sql::integer(self.backend())
        );
        let rows: Vec<(String, u64, u64)> = self.rows("keys by hour", &sql, values![since]).await?;
        let hour = |(hour, uploads, keys): (String, _, _)| {
            let at = NaiveDateTime::parse_from_str(&format!("{hour}:00"), "%Y-%m-%d %H:%M").ok()?;
            Some(Hour { at: at.and_utc(), uploads, keys })
        };
        Ok(rows.into_iter().filter_map(hour).collect())
    }
}
