//! Replicas of the database, which give the keys of batches that are known from the primary (spec §4.2.3).
//!
//! A replica can lag behind and has no say in anything: which uploads are in a batch, and how many keys they have, is
//! known from the primary. Keys never change, so that a replica either has them all or the primary is asked.

use std::{
    ops::Range,
    sync::atomic::{AtomicUsize, Ordering},
    time::Duration,
};

use chrono::NaiveDate;
use mysql_async::Pool;
use parking_lot::Mutex;
use tokio::time::Instant;

use efgs_kit::{
    config::{ConfigError, Database, Secret},
    telemetry,
};

use super::{Store, StoreError, StoredPayload, bulk::Lent, connect, error::Failure, uploads::payloads_query};

/// A replica that does not answer within this time is not waited for.
const PATIENCE: Duration = Duration::from_secs(2);
/// For how long a replica that failed is left alone.
const REST: Duration = Duration::from_secs(10);

/// All of them. They are used in turn.
#[derive(Default)]
pub(super) struct Replicas {
    all: Vec<Replica>,
    next: AtomicUsize,
}

struct Replica {
    /// Host and port.
    name: String,
    pool: Pool,
    failed: Mutex<Option<Instant>>,
}

impl Store {
    /// Reads the keys of known batches from these replicas. They need MySQL or MariaDB.
    pub fn with_replicas(self, config: &Database, urls: &[Secret]) -> Result<Self, ConfigError> {
        if urls.is_empty() {
            return Ok(self);
        }
        let super::bulk::Bulk::MySql { max, .. } = self.bulk else {
            return Err(ConfigError::Invalid(
                "`database.read_urls` goes with MySQL and MariaDB only: remove it".into(),
            ));
        };
        let replica = |url| {
            let (pool, name) = connect::replica(config, url, max)?;
            Ok(Replica { name, pool, failed: Mutex::default() })
        };
        let all = urls.iter().map(replica).collect::<Result<_, ConfigError>>()?;
        Ok(Self { replicas: Replicas { all, next: AtomicUsize::new(0) }.into(), ..self })
    }

    /// Like [`Store::payloads`], from a replica if one has all `keys` of them; and whether they are from a replica.
    pub async fn batch_payloads(
        &self,
        day: NaiveDate,
        uploads: &[i64],
        positions: Range<u32>,
        keys: usize,
    ) -> Result<(Vec<StoredPayload>, bool), StoreError> {
        let count = |outcome: &'static str| {
            metrics::counter!(telemetry::REPLICA_READS, "outcome" => outcome).increment(1);
        };
        if let Some(replica) = self.replicas.pick() {
            match replica.payloads(day, uploads, positions.clone()).await {
                Ok(rows) if rows.len() == keys => {
                    count("read");
                    return Ok((rows, true));
                }
                Ok(_) => count("behind"),
                Err(failure) => {
                    count("failed");
                    *replica.failed.lock() = Some(Instant::now());
                    let error = failure.into_error("read replica");
                    tracing::warn!(replica = replica.name, %error, "a replica failed; the primary is asked instead");
                }
            }
        }
        Ok((self.payloads(day, uploads, positions).await?, false))
    }
}

impl Replicas {
    /// The next one that has not just failed.
    fn pick(&self) -> Option<&Replica> {
        let start = self.next.fetch_add(1, Ordering::Relaxed);
        let rests = |replica: &Replica| replica.failed.lock().is_some_and(|at| at.elapsed() < REST);
        let all = (0..self.all.len()).map(|i| &self.all[start.wrapping_add(i) % self.all.len()]);
        all.into_iter().find(|replica| !rests(replica))
    }

    pub(super) async fn close(&self) {
        for replica in &self.all {
            if let Err(error) = replica.pool.clone().disconnect().await {
                tracing::debug!(%error, "a connection to a replica did not close cleanly");
            }
        }
    }
}

impl Replica {
    /// One attempt.
    async fn payloads(
        &self,
        day: NaiveDate,
        uploads: &[i64],
        positions: Range<u32>,
    ) -> Result<Vec<StoredPayload>, Failure> {
        let (sql, values) = payloads_query(day, uploads, positions);
        let read = async {
            let mut lent = Lent::from(&self.pool).await?;
            let rows = lent.rows(&sql, values).await?;
            lent.give_back();
            Ok(rows)
        };
        tokio::time::timeout(PATIENCE, read).await.unwrap_or(Err(Failure::TooLong))
    }
}
