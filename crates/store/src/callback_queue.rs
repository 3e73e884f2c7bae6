//! The queues of callbacks, and who works on them (spec §5.6.4).
//!
//! Each subscription has a queue of its own, and a lease of its own: whoever delivers takes it with one
//! conditional UPDATE and proves it with every write. A notification is deleted after its call, so one that
//! was called is called again only when its caller died in between.

use std::time::Duration;

use chrono::{DateTime, NaiveDate, Utc};
use efgs_protocol::{batch_tag::ObjectId, country::Country};
use sea_orm::Value;

use super::{
    Store, StoreError,
    batches::BEFORE_ALL,
    error::Failure,
    row::{row, values},
    sql,
    tx::{Queries, Tx},
};

row! {
    /// A subscription that has something to be told, now.
    #[derive(Clone, Copy, Debug)]
    pub struct DueSubscription {
        /// Number of its row.
        id: i64,
        /// Whose it is.
        country: Country,
    }
}

/// Permission to call a subscription, until it is released or expires.
#[derive(Debug)]
pub struct CallbackLease {
    subscription: i64,
    owner: String,
}

impl CallbackLease {
    /// What proves it: the values of `id = ? AND owner = ?`.
    fn key(&self) -> Vec<Value> {
        values![self.subscription, &*self.owner]
    }
}

row! {
    /// What to tell a subscription next.
    #[derive(Clone, Debug)]
    pub struct Notification {
        /// Where.
        url: String,
        /// Failures of this subscription since its last success.
        failures: u32,
        /// The batch.
        batch: ObjectId,
        /// The day it was formed on.
        day: NaiveDate,
        /// Its number on that day.
        sequence: u32,
    }
}

/// For whose totals a call counts.
#[derive(Clone, Copy, Debug)]
pub struct CountedCall<'a> {
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

row! {
    /// How the queues stand.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub struct CallbackBacklog {
        /// Subscriptions that are not called because of failures.
        paused: u64,
        /// Subscriptions that are not called because the operator paused them.
        held: u64,
        /// Age of the oldest notification of those that are called.
        oldest: Duration,
    }
}

impl Tx<'_> {
    /// Queues a batch for every subscription, in the transaction that forms it. For one that is paused only
    /// the newest batch is kept; it is queued all the same, so that no batch is lost between the two when a
    /// subscription is resumed at this moment.
    pub(super) async fn queue_notifications(&mut self, batch: ObjectId) -> Result<(), Failure> {
        let sql = format!(
            "INSERT INTO callback_notification (subscription_id, batch_id, queued_at) \
             SELECT id, ?, {} FROM callback_subscription",
            sql::now_ms(self.store.backend())
        );
        self.run(&sql, values![batch]).await?;
        let sql = "SELECT id FROM callback_subscription WHERE state <> 'active'";
        for id in self.rows(sql, values![]).await? {
            self.drop_notifications(id, batch).await?;
        }
        Ok(())
    }

    /// Deletes the notifications of a subscription that are older than a batch.
    pub(super) async fn drop_notifications(&mut self, id: i64, before: ObjectId) -> Result<(), Failure> {
        let sql = "DELETE FROM callback_notification WHERE subscription_id = ? AND batch_id < ?";
        self.run(sql, values![id, before]).await?;
        Ok(())
    }

    /// An UPDATE of the subscription of a lease, which proves that the lease still holds.
    async fn update_leased(&mut self, sql: &str, values: Vec<Value>) -> Result<(), Failure> {
        match self.run(sql, values).await? {
            0 => Err(Failure::LeaseLost),
            _ => Ok(()),
        }
    }
}

impl Store {
    /// Subscriptions that can be called now and have something to be told, those that wait longest first.
    pub async fn due_subscriptions(&self) -> Result<Vec<DueSubscription>, StoreError> {
        let sql = format!(
            "SELECT s.id, s.country FROM callback_subscription s \
             WHERE s.state = 'active' AND s.next_attempt_at <= {now} \
             AND (s.owner IS NULL OR s.lease_expires_at <= {now}) \
             AND EXISTS (SELECT 1 FROM callback_notification n JOIN batch b ON b.id = n.batch_id \
             WHERE n.subscription_id = s.id{}) ORDER BY s.next_attempt_at, s.id",
            self.served_only(),
            now = sql::now_ms(self.backend())
        );
        self.rows("due callbacks", &sql, values![]).await
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
            let owner = efgs_protocol::random::hex::<16>();
            let now = sql::now_ms(self.backend());
            let sql = format!(
                "UPDATE callback_subscription SET owner = ?, lease_expires_at = {now} + ? \
                 WHERE id = ? AND state = 'active' AND next_attempt_at <= {now} \
                 AND (owner IS NULL OR lease_expires_at <= {now})"
            );
            let taken = self.db.run(&sql, values![&*owner, term, subscription]).await?;
            Ok((taken > 0).then_some(CallbackLease { subscription, owner }))
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
        let prolong = format!(
            "UPDATE callback_subscription SET lease_expires_at = {} + ? WHERE id = ? AND owner = ? AND state = 'active'",
            sql::now_ms(self.backend())
        );
        let next = format!(
            "SELECT s.url, s.failures, b.id, b.day, b.sequence FROM callback_notification n \
             JOIN callback_subscription s ON s.id = n.subscription_id JOIN batch b ON b.id = n.batch_id \
             WHERE n.subscription_id = ?{} ORDER BY n.batch_id LIMIT 1",
            self.served_only()
        );
        let (id, downloaded) = (lease.subscription, downloaded.unwrap_or(BEFORE_ALL));
        let (prolong, next) = (&prolong, &next);
        self.tx("next callback", |mut tx| async move {
            tx.update_leased(prolong, [values![term], lease.key()].concat()).await?;
            let sql = "DELETE FROM callback_notification WHERE subscription_id = ? AND (batch_id <= ? OR \
                 batch_id <= (SELECT d.batch_id FROM downloaded d JOIN callback_subscription s \
                 ON s.country = d.country WHERE s.id = ?))";
            tx.run(sql, values![id, downloaded, id]).await?;
            let notification = tx.row(next, values![id]).await?;
            Ok(tx.commit(notification))
        })
        .await
    }

    /// Records that a batch was announced.
    pub async fn callback_succeeded(
        &self,
        lease: &CallbackLease,
        batch: ObjectId,
        counted: CountedCall<'_>,
    ) -> Result<(), StoreError> {
        let sql = format!(
            "UPDATE callback_subscription SET failures = 0, last_attempt_at = {now}, last_success_at = {now} \
             WHERE id = ? AND owner = ?",
            now = sql::now_ms(self.backend())
        );
        let sql = &sql;
        self.tx("callback done", |mut tx| async move {
            tx.update_leased(sql, lease.key()).await?;
            let sql = "DELETE FROM callback_notification WHERE subscription_id = ? AND batch_id = ?";
            tx.run(sql, values![lease.subscription, batch]).await?;
            tx.count_callback(counted, true).await?;
            Ok(tx.commit(()))
        })
        .await
    }

    /// Records that a call failed, and when to try again.
    pub async fn callback_failed(
        &self,
        lease: &CallbackLease,
        call: FailedCall<'_>,
        counted: CountedCall<'_>,
    ) -> Result<(), StoreError> {
        let sql = format!(
            "UPDATE callback_subscription SET failures = failures + 1, last_error = ?, \
             last_attempt_at = {now}, next_attempt_at = {now} + ?, \
             state = CASE WHEN ? = 1 AND state = 'active' THEN 'paused' ELSE state END \
             WHERE id = ? AND owner = ?",
            now = sql::now_ms(self.backend())
        );
        let error: String = call.error.chars().take(1000).collect();
        let values = [values![error, call.retry_after, u8::from(call.pause)], lease.key()].concat();
        let (sql, values) = (&sql, &values);
        self.tx("callback failed", |mut tx| async move {
            tx.update_leased(sql, values.clone()).await?;
            tx.count_callback(counted, false).await?;
            Ok(tx.commit(()))
        })
        .await
    }

    /// Gives the lease back.
    pub async fn release_callback(&self, lease: CallbackLease) -> Result<(), StoreError> {
        let sql = "UPDATE callback_subscription SET owner = NULL WHERE id = ? AND owner = ?";
        self.run("release callback", sql, lease.key()).await?;
        Ok(())
    }

    /// How the queues stand.
    pub async fn callback_backlog(&self) -> Result<CallbackBacklog, StoreError> {
        let sql = format!(
            "SELECT (SELECT COUNT(*) FROM callback_subscription WHERE state = 'paused'), \
             (SELECT COUNT(*) FROM callback_subscription WHERE state = 'held'), \
             {} - (SELECT MIN(n.queued_at) FROM callback_notification n JOIN callback_subscription s \
             ON s.id = n.subscription_id WHERE s.state = 'active')",
            sql::now_ms(self.backend())
        );
        Ok(self.row("callback backlog", &sql, values![]).await?.unwrap_or_default())
    }

    /// Records the newest batch that countries have downloaded; an older one than is known changes nothing.
    pub async fn record_downloads(&self, newest: &[(Country, ObjectId)]) -> Result<(), StoreError> {
        let backend = self.backend();
        let sql = format!(
            "{} {} batch_id = {}(downloaded.batch_id, {})",
            sql::insert("downloaded", "country, batch_id", 1),
            sql::on_conflict(backend, "country"),
            sql::greatest(backend),
            sql::inserted(backend, "batch_id")
        );
        self.repeat("record downloads", || async {
            for (country, batch) in newest {
                self.db.run(&sql, values![*country, *batch]).await?;
            }
            Ok(())
        })
        .await
    }
}
