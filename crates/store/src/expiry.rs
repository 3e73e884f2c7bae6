//! Deleting what is too old, in small steps (spec §4.2.6).

use chrono::{NaiveDate, NaiveDateTime, NaiveTime};
use sea_orm::{
    ColumnTrait, ConnectionTrait, DatabaseTransaction, EntityTrait, QueryFilter, QueryOrder, QuerySelect,
};

use super::{
    Lease, Store, StoreError,
    entity::{batch, diagnosis_key, upload},
    error::Failure,
};

/// Keys that one transaction deletes: few enough that nobody waits for its locks.
const STEP: i32 = 1000;
/// Uploads that wait for a batch and are looked at in one step, the first ones. Their times are nearly in the order of
/// their numbers: only clocks of instances that differ bring them out of it.
const WAITING: u64 = 1000;

/// What one step of expiry did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ExpiryStep {
    /// Keys deleted.
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
    /// Deletes some of what was formed (or, never having been in a batch, uploaded) before `oldest`. Call it
    /// until a step is empty. What it deletes is not served any more, so a half-deleted upload is never seen. Each step
    /// reads and deletes a bounded number of rows, also the empty one.
    pub async fn expire_step(&self, lease: &Lease, oldest: NaiveDate) -> Result<ExpiryStep, StoreError> {
        self.repeat("expire", || async {
            let tx = self.begin().await?;
            self.fence(&tx, lease).await?;
            let mut step = expire_waiting(&tx, oldest).await?;
            if step.is_empty() {
                step = self.expire_batched(&tx, oldest).await?;
            }
            if step.is_empty() {
                // A row for each country and day.
                tx.execute_raw(self.statement("DELETE FROM quota WHERE day < ?", [oldest.into()])).await?;
            }
            tx.commit().await?;
            Ok(step)
        })
        .await
    }

    /// Deletes some of the oldest batch, if it is too old, and the batch itself when nothing is left in it.
    async fn expire_batched(
        &self,
        tx: &DatabaseTransaction,
        oldest: NaiveDate,
    ) -> Result<ExpiryStep, Failure> {
        let mut step = ExpiryStep::default();
        let too_old: Option<Vec<u8>> = batch::Entity::find()
            .select_only()
            .column(batch::Column::Id)
            .filter(batch::Column::Day.lt(oldest))
            .order_by_asc(batch::Column::Day)
            .order_by_asc(batch::Column::Sequence)
            .into_tuple()
            .one(tx)
            .await?;
        let Some(batch) = too_old else { return Ok(step) };
        let first = || {
            upload::Entity::find()
                .select_only()
                .column(upload::Column::Id)
                .filter(upload::Column::BatchId.eq(batch.clone()))
                .order_by_asc(upload::Column::Id)
                .into_tuple::<i64>()
                .one(tx)
        };
        if let Some(id) = first().await? {
            // From the end, so that the first remaining position tells how much is left.
            let left = diagnosis_key::Entity::find()
                .select_only()
                .column_as(diagnosis_key::Column::Position.max(), "last")
                .filter(diagnosis_key::Column::UploadId.eq(id))
                .into_tuple::<Option<i32>>()
                .one(tx)
                .await?
                .flatten();
            let from = left.unwrap_or(0).saturating_sub(STEP - 1);
            step.keys = diagnosis_key::Entity::delete_many()
                .filter(diagnosis_key::Column::UploadId.eq(id))
                .filter(diagnosis_key::Column::Position.gte(from))
                .exec(tx)
                .await?
                .rows_affected;
            if from > 0 {
                return Ok(step);
            }
            step.uploads = upload::Entity::delete_by_id(id).exec(tx).await?.rows_affected;
            if first().await?.is_some() {
                return Ok(step);
            }
        }
        // The newest batch stays: the next one's tag must be greater.
        let newest: Option<Vec<u8>> = batch::Entity::find()
            .select_only()
            .column(batch::Column::Id)
            .order_by_desc(batch::Column::Id)
            .into_tuple()
            .one(tx)
            .await?;
        if newest.as_ref() != Some(&batch) {
            step.batches = batch::Entity::delete_by_id(batch.clone()).exec(tx).await?.rows_affected;
            // The queues are in the order of the batches, and all batches before this one are gone.
            let subscriptions = self.statement("SELECT id FROM callback_subscription", []);
            for row in tx.query_all_raw(subscriptions).await? {
                let sql = "DELETE FROM callback_notification WHERE subscription_id = ? AND batch_id <= ?";
                let values = [row.try_get::<i64>("", "id")?.into(), batch.clone().into()];
                tx.execute_raw(self.statement(sql, values)).await?;
            }
        }
        Ok(step)
    }
}

/// Deletes the first upload that waited too long for a batch.
async fn expire_waiting(tx: &DatabaseTransaction, oldest: NaiveDate) -> Result<ExpiryStep, Failure> {
    let waiting: Vec<(i64, NaiveDateTime)> = upload::Entity::find()
        .select_only()
        .columns([upload::Column::Id, upload::Column::UploadedAt])
        .filter(upload::Column::BatchId.is_null())
        .order_by_asc(upload::Column::Id)
        .limit(WAITING)
        .into_tuple()
        .all(tx)
        .await?;
    let oldest = oldest.and_time(NaiveTime::MIN);
    let Some((id, _)) = waiting.into_iter().find(|(_, uploaded_at)| *uploaded_at < oldest) else {
        return Ok(ExpiryStep::default());
    };
    // All at once, and only if no batch has taken it in the meantime: a batch never loses keys.
    let waiting = upload::Entity::delete_many()
        .filter(upload::Column::Id.eq(id))
        .filter(upload::Column::BatchId.is_null());
    let uploads = waiting.exec(tx).await?.rows_affected;
    if uploads == 0 {
        return Err(Failure::Transient("a batch took an upload that was to expire".into()));
    }
    let keys = diagnosis_key::Entity::delete_many().filter(diagnosis_key::Column::UploadId.eq(id));
    Ok(ExpiryStep { keys: keys.exec(tx).await?.rows_affected, uploads, batches: 0 })
}
