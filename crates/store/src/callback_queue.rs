//! The queues of callbacks, and who works on them (spec §5.6.4).
//!
//! Each subscription has a queue of its own, and a lease of its own: whoever delivers takes it with one
//! conditional UPDATE and proves it with every write. A notification is deleted after its call, so one that
//! was called is called again only when its caller died in between.

use std::time::Duration;

use chrono::{DateTime, NaiveDate, Utc};
use efgs_protocol::{batch_tag::ObjectId, country::Country};
use sea_orm::{ConnectionTrait, DatabaseBackend, DatabaseTransaction, QueryResult, Value};

use super::{
    Store, StoreError,
    batches::{parse_country, parse_id},
    error::Failure,
    sql,
};

/// A subscription that has something to be told, now.
#[derive(Clone, Copy, Debug)]
pub struct DueSubscription {
    /// Number of its row.
    pub id: i64,
    /// Whose it is.
    pub country: Country,
}

/// Leave to call a subscription, until it is released or expires.
#[derive(Debug)]
pub struct CallbackLease {
    subscription: i64,
    owner: String,
}

/// What to tell a subscription next.
#[derive(Clone, Debug)]
pub struct Notification {
    /// Where.
    pub url: String,
    /// The batch.
    pub batch: ObjectId,
    /// The day it was formed on.
    pub day: NaiveDate,
    /// Its number on that day.
    pub sequence: u32,
    /// Failures of this subscription since its last success.
    pub failures: u32,
}

/// For whose totals a call counts.
#[derive(Clone, Copy, Debug)]
pub struct Counted<'a> {
    /// Which instance called.
    pub instance: &'a str,
    /// Whom.
    pub country: Country,
    /// When.
    pub at: DateTime<Utc>,
}

/// What came of a failed call.
#[derive(Clone, Debug)]
pub struct FailedCall<'a> {
    /// What went wrong, for people.
    pub error: &'a str,
    /// When to try again, from now.
    pub retry_after: Duration,
    /// Whether this was the last attempt.
    pub pause: bool,
}

/// How the queues stand.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CallbackBacklog {
    /// Subscriptions that are not called because of failures.
    pub paused: u64,
    /// Subscriptions that are not called because the operator paused them.
    pub held: u64,
    /// Age of the oldest notification of those that are called.
    pub oldest: Duration,
}

impl Store {
    /// Queues a batch for every subscription, in the transaction that forms it. For one that is paused only
    /// the newest batch is kept; it is queued all the same, so that no batch is lost between the two when a
    /// subscription is resumed at this moment.
    pub(super) async fn queue_notifications(
        &self,
        tx: &DatabaseTransaction,
        batch: ObjectId,
    ) -> Result<(), Failure> {
        let batch = batch.as_bytes().to_vec();
        let sql = format!(
            "INSERT INTO callback_notification (subscription_id, batch_id, queued_at) \
             SELECT id, ?, {} FROM callback_subscription",
            sql::now_ms(self.backend())
        );
        tx.execute_raw(self.statement(&sql, [batch.clone().into()])).await?;
        let sql = "SELECT id FROM callback_subscription WHERE state <> 'active'";
        for row in tx.query_all_raw(self.statement(sql, [])).await? {
            let sql = "DELETE FROM callback_notification WHERE subscription_id = ? AND batch_id < ?";
            let values = [row.try_get::<i64>("", "id")?.into(), batch.clone().into()];
            tx.execute_raw(self.statement(sql, values)).await?;
        }
        Ok(())
    }

    /// Subscriptions that can be called now and have something to be told, those that wait longest first.
    pub async fn due_subscriptions(&self) -> Result<Vec<DueSubscription>, StoreError> {
        self.repeat("due callbacks", || async {
            let now = sql::now_ms(self.backend());
            let sql = format!(
                "SELECT s.id AS id, s.country AS country FROM callback_subscription s \
                 WHERE s.state = 'active' AND s.next_attempt_at <= {now} \
                 AND (s.owner IS NULL OR s.lease_expires_at <= {now}) \
                 AND EXISTS (SELECT 1 FROM callback_notification n JOIN batch b ON b.id = n.batch_id \
                 WHERE n.subscription_id = s.id{}) ORDER BY s.next_attempt_at, s.id",
                self.served_only()
            );
            let rows = self.db.query_all_raw(self.statement(&sql, [])).await?;
            let due = |row: &QueryResult| {
                let country = parse_country(&row.try_get::<String>("", "country")?)?;
                Ok(DueSubscription { id: row.try_get("", "id")?, country })
            };
            rows.iter().map(due).collect()
        })
        .await
    }

    /// Takes the lease of a subscription for `term`, or says `None` when another instance has it or it is not
    /// to be called any more.
    pub async fn acquire_callback(
        &self,
        subscription: i64,
        term: Duration,
    ) -> Result<Option<CallbackLease>, StoreError> {
        self.repeat("acquire callback", || async {
            // The owner is new each time: it is also what fences off an earlier holder.
            let owner = format!("{:032x}", rand::random::<u128>());
            let now = sql::now_ms(self.backend());
            let sql = format!(
                "UPDATE callback_subscription SET owner = ?, lease_expires_at = {now} + ? \
                 WHERE id = ? AND state = 'active' AND next_attempt_at <= {now} \
                 AND (owner IS NULL OR lease_expires_at <= {now})"
            );
            let values = [owner.as_str().into(), millis(term), subscription.into()];
            let taken = self.db.execute_raw(self.statement(&sql, values)).await?;
            Ok((taken.rows_affected() > 0).then_some(CallbackLease { subscription, owner }))
        })
        .await
    }

    /// Prolongs the lease and says what to tell next, after forgetting what the country has downloaded already:
    /// all up to `downloaded`, or up to what another instance has recorded.
    pub async fn next_notification(
        &self,
        lease: &CallbackLease,
        term: Duration,
        downloaded: Option<ObjectId>,
    ) -> Result<Option<Notification>, StoreError> {
        self.repeat("next callback", || async {
            let tx = self.begin().await?;
            let sql = format!(
                "UPDATE callback_subscription SET lease_expires_at = {} + ? \
                 WHERE id = ? AND owner = ? AND state = 'active'",
                sql::now_ms(self.backend())
            );
            let values = [millis(term), lease.subscription.into(), lease.owner.as_str().into()];
            if tx.execute_raw(self.statement(&sql, values)).await?.rows_affected() == 0 {
                return Err(Failure::LeaseLost);
            }
            let known = downloaded.map_or(vec![0; 12], |id| id.as_bytes().to_vec());
            let sql = "DELETE FROM callback_notification WHERE subscription_id = ? AND (batch_id <= ? OR \
                 batch_id <= (SELECT d.batch_id FROM downloaded d JOIN callback_subscription s \
                 ON s.country = d.country WHERE s.id = ?))";
            let values = [lease.subscription.into(), known.into(), lease.subscription.into()];
            tx.execute_raw(self.statement(sql, values)).await?;
            let sql = format!(
                "SELECT s.url AS url, s.failures AS failures, b.id AS id, b.day AS day, \
                 b.sequence AS sequence FROM callback_notification n \
                 JOIN callback_subscription s ON s.id = n.subscription_id JOIN batch b ON b.id = n.batch_id \
                 WHERE n.subscription_id = ?{} ORDER BY n.batch_id LIMIT 1",
                self.served_only()
            );
            let row = tx.query_one_raw(self.statement(&sql, [lease.subscription.into()])).await?;
            tx.commit().await?;
            row.as_ref().map(notification).transpose()
        })
        .await
    }

    /// Records that a batch was announced.
    pub async fn callback_succeeded(
        &self,
        lease: &CallbackLease,
        batch: ObjectId,
        counted: Counted<'_>,
    ) -> Result<(), StoreError> {
        self.repeat("callback done", || async {
            let tx = self.begin().await?;
            let now = sql::now_ms(self.backend());
            let sql = format!(
                "UPDATE callback_subscription SET failures = 0, last_attempt_at = {now}, \
                 last_success_at = {now} WHERE id = ? AND owner = ?"
            );
            let values = [lease.subscription.into(), lease.owner.as_str().into()];
            if tx.execute_raw(self.statement(&sql, values)).await?.rows_affected() == 0 {
                return Err(Failure::LeaseLost);
            }
            let sql = "DELETE FROM callback_notification WHERE subscription_id = ? AND batch_id = ?";
            let values = [lease.subscription.into(), batch.as_bytes().to_vec().into()];
            tx.execute_raw(self.statement(sql, values)).await?;
            tx.execute_unprepared(&self.count_callback(counted, true)).await?;
            Ok(tx.commit().await?)
        })
        .await
    }

    /// Records that a call failed, and when to try again.
    pub async fn callback_failed(
        &self,
        lease: &CallbackLease,
        call: FailedCall<'_>,
        counted: Counted<'_>,
    ) -> Result<(), StoreError> {
        self.repeat("callback failed", || async {
            let now = sql::now_ms(self.backend());
            let sql = format!(
                "UPDATE callback_subscription SET failures = failures + 1, last_error = ?, \
                 last_attempt_at = {now}, next_attempt_at = {now} + ?, \
                 state = CASE WHEN ? = 1 AND state = 'active' THEN 'paused' ELSE state END \
                 WHERE id = ? AND owner = ?"
            );
            let values = [
                call.error.chars().take(1000).collect::<String>().into(),
                millis(call.retry_after),
                i32::from(call.pause).into(),
                lease.subscription.into(),
                lease.owner.as_str().into(),
            ];
            let tx = self.begin().await?;
            if tx.execute_raw(self.statement(&sql, values)).await?.rows_affected() == 0 {
                return Err(Failure::LeaseLost);
            }
            tx.execute_unprepared(&self.count_callback(counted, false)).await?;
            Ok(tx.commit().await?)
        })
        .await
    }

    /// Gives the lease back.
    pub async fn release_callback(&self, lease: CallbackLease) -> Result<(), StoreError> {
        self.repeat("release callback", || async {
            let sql = "UPDATE callback_subscription SET owner = NULL WHERE id = ? AND owner = ?";
            let values = [lease.subscription.into(), lease.owner.as_str().into()];
            self.db.execute_raw(self.statement(sql, values)).await?;
            Ok(())
        })
        .await
    }

    /// How the queues stand.
    pub async fn callback_backlog(&self) -> Result<CallbackBacklog, StoreError> {
        self.repeat("callback backlog", || async {
            let sql = format!(
                "SELECT (SELECT COUNT(*) FROM callback_subscription WHERE state = 'paused') AS paused, \
                 (SELECT COUNT(*) FROM callback_subscription WHERE state = 'held') AS held, \
                 {} - (SELECT MIN(n.queued_at) FROM callback_notification n JOIN callback_subscription s \
                 ON s.id = n.subscription_id WHERE s.state = 'active') AS age",
                sql::now_ms(self.backend())
            );
            let Some(row) = self.db.query_one_raw(self.statement(&sql, [])).await? else {
                return Ok(CallbackBacklog::default());
            };
            let age: Option<i64> = row.try_get("", "age")?;
            Ok(CallbackBacklog {
                paused: row.try_get::<i64>("", "paused")? as u64,
                held: row.try_get::<i64>("", "held")? as u64,
                oldest: Duration::from_millis(age.unwrap_or(0).max(0) as u64),
            })
        })
        .await
    }

    /// Records the newest batch that countries have downloaded; an older one than is known changes nothing.
    pub async fn record_downloads(&self, newest: &[(Country, ObjectId)]) -> Result<(), StoreError> {
        self.repeat("record downloads", || async {
            let sql = match self.backend() {
                DatabaseBackend::Sqlite => {
                    "INSERT INTO downloaded (country, batch_id) VALUES (?, ?) \
                     ON CONFLICT (country) DO UPDATE SET batch_id = MAX(batch_id, excluded.batch_id)"
                }
                _ => {
                    "INSERT INTO downloaded (country, batch_id) VALUES (?, ?) \
                     ON DUPLICATE KEY UPDATE batch_id = GREATEST(batch_id, VALUES(batch_id))"
                }
            };
            for (country, batch) in newest {
                let values = [country.as_str().into(), batch.as_bytes().to_vec().into()];
                self.db.execute_raw(self.statement(sql, values)).await?;
            }
            Ok(())
        })
        .await
    }
}

fn millis(duration: Duration) -> Value {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX / 2).into()
}

fn notification(row: &QueryResult) -> Result<Notification, Failure> {
    Ok(Notification {
        url: row.try_get("", "url")?,
        batch: parse_id(&row.try_get::<Vec<u8>>("", "id")?)?,
        day: row.try_get("", "day")?,
        sequence: row.try_get::<i32>("", "sequence")? as u32,
        failures: row.try_get::<i32>("", "failures")? as u32,
    })
}
