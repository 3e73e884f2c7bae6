//! Deleting what is too old, in small steps (spec §4.2.6).

use chrono::NaiveDate;
use sea_orm::{
    ColumnTrait, Condition, ConnectionTrait, EntityTrait, ExprTrait, QueryFilter, QueryOrder, QuerySelect,
};

use super::{
    Lease, Store, StoreError,
    entity::{batch, diagnosis_key, upload},
    error::Failure,
};

/// Keys that one transaction deletes: few enough that nobody waits for its locks.
const STEP: i32 = 1000;

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
    /// until a step is empty. What it deletes is not served any more, so a half-deleted upload is never seen.
    pub async fn expire_step(&self, lease: &Lease, oldest: NaiveDate) -> Result<ExpiryStep, StoreError> {
        self.repeat("expire", || async {
            let tx = self.begin().await?;
            self.fence(&tx, lease).await?;
            let too_old: Option<(i64, Option<Vec<u8>>)> = upload::Entity::find()
                .select_only()
                .columns([upload::Column::Id, upload::Column::BatchId])
                .filter(
                    Condition::any()
                        .add(
                            upload::Column::BatchId.in_subquery(
                                sea_orm::sea_query::Query::select()
                                    .column(batch::Column::Id)
                                    .from(batch::Entity)
                                    .and_where(batch::Column::Day.lt(oldest))
                                    .to_owned(),
                            ),
                        )
                        .add(
                            upload::Column::BatchId
                                .is_null()
                                .and(upload::Column::UploadedAt.lt(oldest.and_time(chrono::NaiveTime::MIN))),
                        ),
                )
                .order_by_asc(upload::Column::Id)
                .into_tuple()
                .one(&tx)
                .await?;
            let mut step = ExpiryStep::default();
            match too_old {
                Some((id, None)) => {
                    // All at once, and only if no batch has taken it in the meantime: a batch never loses keys.
                    let waiting = upload::Entity::delete_many()
                        .filter(upload::Column::Id.eq(id))
                        .filter(upload::Column::BatchId.is_null());
                    step.uploads = waiting.exec(&tx).await?.rows_affected;
                    if step.uploads == 0 {
                        return Err(Failure::Transient("a batch took an upload that was to expire".into()));
                    }
                    let keys =
                        diagnosis_key::Entity::delete_many().filter(diagnosis_key::Column::UploadId.eq(id));
                    step.keys = keys.exec(&tx).await?.rows_affected;
                }
                Some((id, Some(_))) => {
                    // From the end, so that the first remaining position tells how much is left.
                    let left = diagnosis_key::Entity::find()
                        .select_only()
                        .column_as(diagnosis_key::Column::Position.max(), "last")
                        .filter(diagnosis_key::Column::UploadId.eq(id))
                        .into_tuple::<Option<i32>>()
                        .one(&tx)
                        .await?
                        .flatten();
                    let from = left.unwrap_or(0).saturating_sub(STEP - 1);
                    step.keys = diagnosis_key::Entity::delete_many()
                        .filter(diagnosis_key::Column::UploadId.eq(id))
                        .filter(diagnosis_key::Column::Position.gte(from))
                        .exec(&tx)
                        .await?
                        .rows_affected;
                    if from <= 0 {
                        step.uploads = upload::Entity::delete_many()
                            .filter(upload::Column::Id.eq(id))
                            .exec(&tx)
                            .await?
                            .rows_affected;
                    }
                }
                None => {
                    // The newest batch stays: the next one's tag must be greater.
                    let newest: Option<Vec<u8>> = batch::Entity::find()
                        .select_only()
                        .column(batch::Column::Id)
                        .order_by_desc(batch::Column::Id)
                        .into_tuple()
                        .one(&tx)
                        .await?;
                    let deleted = batch::Entity::delete_many()
                        .filter(batch::Column::Day.lt(oldest))
                        .filter(batch::Column::Id.ne(newest.unwrap_or_default()))
                        .exec(&tx)
                        .await?;
                    step.batches = deleted.rows_affected;
                    tx.execute_raw(self.statement("DELETE FROM quota WHERE day < ?", [oldest.into()]))
                        .await?;
                    if step.batches > 0 {
                        let sql =
                            "DELETE FROM callback_notification WHERE batch_id NOT IN (SELECT id FROM batch)";
                        tx.execute_raw(self.statement(sql, [])).await?;
                    }
                }
            }
            tx.commit().await?;
            Ok(step)
        })
        .await
    }
}
