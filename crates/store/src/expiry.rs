//! Deleting what is too old, in small steps (spec §4.2.6). On MySQL and MariaDB, nearly all of it goes with a partition:
//! see `days`.

use chrono::{DateTime, NaiveDate, NaiveTime, Utc};
use efgs_protocol::batch_tag::ObjectId;
use sea_orm::DatabaseBackend;

use super::{Lease, Store, StoreError, batches::NEWEST_BATCH, days, error::Failure, row::values, tx::Tx};

/// Rows that one transaction deletes: few enough that nobody waits for its locks.
pub(super) const STEP: i64 = 1000;
/// Uploads that wait for a batch and are looked at in one step, the first ones. Their times are nearly in the order of
/// their numbers: only clocks of instances that differ bring them out of it.
const WAITING: u64 = 1000;

/// What one step of expiry did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ExpiryStep {
    /// Keys deleted; of those that went with a partition, what their uploads say.
    pub keys: u64,
    /// Uploads deleted.
    pub uploads: u64,
    /// Batches deleted.
    pub batches: u64,
}

impl ExpiryStep {
    /// Whether there was nothing left to do.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

impl Store {
    /// Deletes an upload that was made before `oldest` and was never in a batch. Call it until a step is empty.
    pub async fn expire_waiting(&self, lease: &Lease, oldest: NaiveDate) -> Result<ExpiryStep, StoreError> {
        self.tx("expire", |mut tx| async move {
            tx.fence(lease).await?;
            let step = tx.expire_waiting(oldest).await?;
            Ok(tx.commit(step))
        })
        .await
    }

    /// Deletes some of what was formed before `oldest`, after [`Self::expire_days`]. Call it until a step is empty.
    /// What it deletes is not served any more, so a half-deleted upload is never seen. Each step reads and deletes a
    /// bounded number of rows, also the empty one.
    pub async fn expire_batched(&self, lease: &Lease, oldest: NaiveDate) -> Result<ExpiryStep, StoreError> {
        self.tx("expire", |mut tx| async move {
            tx.fence(lease).await?;
            let mut step = ExpiryStep::default();
            for _ in 0..self.batches_in_step() {
                let more = tx.expire_batched(oldest).await?;
                step.keys += more.keys;
                step.uploads += more.uploads;
                step.batches += more.batches;
                if more.is_empty() || step.uploads >= STEP as u64 {
                    break;
                }
            }
            if step.is_empty() {
                // A row for each country and day.
                tx.run("DELETE FROM quota WHERE day < ?", values![oldest]).await?;
            }
            Ok(tx.commit(step))
        })
        .await
    }
}

impl Store {
    /// Batches of which one step deletes something. On SQLite that includes keys.
    fn batches_in_step(&self) -> usize {
        if self.backend() == DatabaseBackend::Sqlite { 1 } else { 50 }
    }
}

impl Tx<'_> {
    /// Deletes some of the oldest batch, if it is too old, and the batch itself when nothing is left in it.
    async fn expire_batched(&mut self, oldest: NaiveDate) -> Result<ExpiryStep, Failure> {
        let mut step = ExpiryStep::default();
        let sql = "SELECT id, day FROM batch WHERE day < ? ORDER BY day, sequence LIMIT 1";
        let Some::<(ObjectId, NaiveDate)>((batch, day)) = self.row(sql, values![oldest]).await? else {
            return Ok(step);
        };
        let sqlite = self.store.backend() == DatabaseBackend::Sqlite;
        let limit = if sqlite { 1 } else { STEP };
        let sql = "SELECT id, amount FROM upload WHERE batch_id = ? ORDER BY id LIMIT ?";
        let uploads: Vec<(i64, u32)> = self.rows(sql, values![batch, limit]).await?;
        if let Some((last, _)) = uploads.last() {
            if sqlite {
                // From the end, so that the first remaining position tells how much is left.
                let sql = "SELECT MAX(position) FROM diagnosis_key WHERE day = ? AND upload_id = ?";
                let highest: Option<i64> = self.row(sql, values![days::number(day), *last]).await?.flatten();
                let from = highest.unwrap_or(0) - (STEP - 1);
                let sql = "DELETE FROM diagnosis_key WHERE day = ? AND upload_id = ? AND position >= ?";
                step.keys = self.run(sql, values![days::number(day), *last, from]).await?;
                if from > 0 {
                    return Ok(step);
                }
            } else {
                // They went with their partition.
                step.keys = uploads.iter().map(|(_, amount)| u64::from(*amount)).sum();
            }
            step.uploads =
                self.run("DELETE FROM upload WHERE batch_id = ? AND id <= ?", values![batch, *last]).await?;
            if uploads.len() as i64 == limit {
                return Ok(step);
            }
        }
        // The newest batch stays: the next one's tag must be greater.
        let newest: Option<ObjectId> = self.row(NEWEST_BATCH, values![]).await?;
        if newest != Some(batch) {
            step.batches = self.run("DELETE FROM batch WHERE id = ?", values![batch]).await?;
            // The queues are in the order of the batches, and all batches before this one are gone.
            for id in self.rows::<i64>("SELECT id FROM callback_subscription", values![]).await? {
                let sql = "DELETE FROM callback_notification WHERE subscription_id = ? AND batch_id <= ?";
                self.run(sql, values![id, batch]).await?;
            }
        }
        Ok(step)
    }

    /// Deletes the first upload that waited too long for a batch.
    async fn expire_waiting(&mut self, oldest: NaiveDate) -> Result<ExpiryStep, Failure> {
        let sql = "SELECT id, uploaded_at FROM upload WHERE batch_id IS NULL ORDER BY id LIMIT ?";
        let waiting: Vec<(i64, DateTime<Utc>)> = self.rows(sql, values![WAITING]).await?;
        let oldest = oldest.and_time(NaiveTime::MIN).and_utc();
        let Some((id, at)) = waiting.into_iter().find(|(_, uploaded_at)| *uploaded_at < oldest) else {
            return Ok(ExpiryStep::default());
        };
        // All at once, and only if no batch has taken it in the meantime: a batch never loses keys.
        let sql = "DELETE FROM upload WHERE id = ? AND batch_id IS NULL";
        let uploads = self.run(sql, values![id]).await?;
        if uploads == 0 {
            return Err(Failure::Transient("a batch took an upload that was to expire".into()));
        }
        let sql = "DELETE FROM diagnosis_key WHERE day = ? AND upload_id = ?";
        let keys = self.run(sql, values![days::number(at.date_naive()), id]).await?;
        Ok(ExpiryStep { keys, uploads, batches: 0 })
    }
}
