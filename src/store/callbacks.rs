//! Callback subscriptions and their queues (spec §5.6).
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

/// Why a subscription is called, or not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SubscriptionState {
    /// It is called.
    Active,
    /// It failed too often in a row; the country's next registration of it, or the operator, resumes it.
    Paused,
    /// The operator paused it; only the operator resumes it.
    Held,
}

/// A subscription as it stands.
#[derive(Clone, Debug)]
pub struct Subscription {
    /// Whose it is.
    pub country: Country,
    /// The id that the country chose.
    pub name: String,
    /// As it was registered.
    pub url: String,
    /// Whether it is called.
    pub state: SubscriptionState,
    /// Failures since the last success.
    pub failures: u32,
    /// Of the last failure.
    pub last_error: Option<String>,
    /// When it was last called.
    pub last_attempt_at: Option<DateTime<Utc>>,
    /// When it last answered as it should.
    pub last_success_at: Option<DateTime<Utc>>,
    /// Notifications that wait.
    pub queued: u64,
}

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
    /// Subscriptions that are not called, whoever paused them.
    pub paused: u64,
    /// Age of the oldest notification of those that are.
    pub oldest: Duration,
}

const SUBSCRIPTION: &str = "SELECT s.country AS country, s.name AS name, s.url AS url, s.state AS state, \
     s.failures AS failures, s.last_error AS last_error, s.last_attempt_at AS last_attempt_at, \
     s.last_success_at AS last_success_at, \
     (SELECT COUNT(*) FROM callback_notification n WHERE n.subscription_id = s.id) AS queued \
     FROM callback_subscription s";

impl Store {
    /// Subscriptions of one country or of all, by country and id.
    pub async fn subscriptions(&self, country: Option<Country>) -> Result<Vec<Subscription>, StoreError> {
        self.repeat("list callbacks", || async {
            let (filter, values): (_, Vec<Value>) = match country {
                Some(country) => ("WHERE s.country = ?", vec![country.as_str().into()]),
                None => ("", vec![]),
            };
            let sql = format!("{SUBSCRIPTION} {filter} ORDER BY s.country, s.name");
            let rows = self.db.query_all_raw(self.statement(&sql, values)).await?;
            rows.iter().map(subscription).collect()
        })
        .await
    }

    /// Creates a subscription, or replaces its URL. Either way its failures are forgotten, and it is called
    /// again if it was paused because of them. A call to the former URL that is under way counts for nothing.
    pub async fn put_subscription(&self, country: Country, name: &str, url: &str) -> Result<(), StoreError> {
        self.repeat("put callback", || async {
            let tx = self.begin().await?;
            // Columns are compared before they are set: MySQL sets them one after the other.
            let updated = tx
                .execute_raw(self.statement(
                    "UPDATE callback_subscription SET owner = CASE WHEN url = ? THEN owner ELSE NULL END, \
                     url = ?, failures = 0, next_attempt_at = 0 WHERE country = ? AND name = ?",
                    [url.into(), url.into(), country.as_str().into(), name.as_bytes().to_vec().into()],
                ))
                .await?;
            if updated.rows_affected() == 0 {
                let inserted = tx
                    .execute_raw(self.statement(
                        "INSERT INTO callback_subscription (country, name, url, state, failures, \
                         next_attempt_at, lease_expires_at) VALUES (?, ?, ?, 'active', 0, 0, 0)",
                        [country.as_str().into(), name.as_bytes().to_vec().into(), url.into()],
                    ))
                    .await
                    .map_err(Failure::from);
                if let Err(Failure::Duplicate) = inserted {
                    return Err(Failure::Transient("the same callback was registered meanwhile".into()));
                }
                inserted?;
            } else {
                self.reactivate(&tx, country, name, &["paused"]).await?;
            }
            Ok(tx.commit().await?)
        })
        .await
    }

    /// Forgets a subscription and its queue; says whether there was one.
    pub async fn delete_subscription(&self, country: Country, name: &str) -> Result<bool, StoreError> {
        self.repeat("delete callback", || async {
            let key: [Value; 2] = [country.as_str().into(), name.as_bytes().to_vec().into()];
            let tx = self.begin().await?;
            tx.execute_raw(self.statement(
                "DELETE FROM callback_notification WHERE subscription_id IN \
                 (SELECT id FROM callback_subscription WHERE country = ? AND name = ?)",
                key.clone(),
            ))
            .await?;
            let sql = "DELETE FROM callback_subscription WHERE country = ? AND name = ?";
            let deleted = tx.execute_raw(self.statement(sql, key)).await?;
            tx.commit().await?;
            Ok(deleted.rows_affected() > 0)
        })
        .await
    }

    /// The operator pauses a subscription; says whether there is one.
    pub async fn hold_subscription(&self, country: Country, name: &str) -> Result<bool, StoreError> {
        self.repeat("pause callback", || async {
            let sql = "UPDATE callback_subscription SET state = 'held' WHERE country = ? AND name = ?";
            let values = [country.as_str().into(), name.as_bytes().to_vec().into()];
            Ok(self.db.execute_raw(self.statement(sql, values)).await?.rows_affected() > 0)
        })
        .await
    }

    /// The operator resumes a subscription, whoever paused it; says whether there is one.
    pub async fn resume_subscription(&self, country: Country, name: &str) -> Result<bool, StoreError> {
        self.repeat("resume callback", || async {
            let tx = self.begin().await?;
            let updated = tx
                .execute_raw(self.statement(
                    "UPDATE callback_subscription SET failures = 0, next_attempt_at = 0 \
                     WHERE country = ? AND name = ?",
                    [country.as_str().into(), name.as_bytes().to_vec().into()],
                ))
                .await?;
            self.reactivate(&tx, country, name, &["paused", "held"]).await?;
            tx.commit().await?;
            Ok(updated.rows_affected() > 0)
        })
        .await
    }

    /// Of what was queued while it was paused only the newest batch is announced: from there the country
    /// follows the chain.
    async fn reactivate(
        &self,
        tx: &DatabaseTransaction,
        country: Country,
        name: &str,
        from: &[&str],
    ) -> Result<(), Failure> {
        let sql = format!(
            "SELECT s.id AS id, MAX(n.batch_id) AS newest FROM callback_subscription s \
             LEFT JOIN callback_notification n ON n.subscription_id = s.id \
             WHERE s.country = ? AND s.name = ? AND s.state IN ({}) GROUP BY s.id",
            sql::placeholders(from.len())
        );
        let mut values: Vec<Value> = vec![country.as_str().into(), name.as_bytes().to_vec().into()];
        values.extend(from.iter().map(|state| Value::from(*state)));
        let Some(row) = tx.query_one_raw(self.statement(&sql, values)).await? else { return Ok(()) };
        let id: i64 = row.try_get("", "id")?;
        if let Some(newest) = row.try_get::<Option<Vec<u8>>>("", "newest")? {
            let sql = "DELETE FROM callback_notification WHERE subscription_id = ? AND batch_id < ?";
            tx.execute_raw(self.statement(sql, [id.into(), newest.into()])).await?;
        }
        let sql = "UPDATE callback_subscription SET state = 'active' WHERE id = ?";
        tx.execute_raw(self.statement(sql, [id.into()])).await?;
        Ok(())
    }

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
                 WHERE n.subscription_id = s.id) ORDER BY s.next_attempt_at, s.id"
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
            let row = tx
                .query_one_raw(self.statement(
                    "SELECT s.url AS url, s.failures AS failures, b.id AS id, b.day AS day, \
                     b.sequence AS sequence FROM callback_notification n \
                     JOIN callback_subscription s ON s.id = n.subscription_id JOIN batch b ON b.id = n.batch_id \
                     WHERE n.subscription_id = ? ORDER BY n.batch_id LIMIT 1",
                    [lease.subscription.into()],
                ))
                .await?;
            tx.commit().await?;
            row.as_ref().map(notification).transpose()
        })
        .await
    }

    /// Records that a batch was announced.
    pub async fn callback_succeeded(&self, lease: &CallbackLease, batch: ObjectId) -> Result<(), StoreError> {
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
            Ok(tx.commit().await?)
        })
        .await
    }

    /// Records that a call failed, and when to try again.
    pub async fn callback_failed(
        &self,
        lease: &CallbackLease,
        call: FailedCall<'_>,
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
            match self.db.execute_raw(self.statement(&sql, values)).await?.rows_affected() {
                0 => Err(Failure::LeaseLost),
                _ => Ok(()),
            }
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
                "SELECT (SELECT COUNT(*) FROM callback_subscription WHERE state <> 'active') AS paused, \
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

fn subscription(row: &QueryResult) -> Result<Subscription, Failure> {
    let time = |column| -> Result<Option<DateTime<Utc>>, Failure> {
        Ok(row.try_get::<Option<i64>>("", column)?.and_then(DateTime::from_timestamp_millis))
    };
    let state = match row.try_get::<String>("", "state")?.as_str() {
        "active" => SubscriptionState::Active,
        "paused" => SubscriptionState::Paused,
        "held" => SubscriptionState::Held,
        other => return Err(Failure::Permanent(format!("a callback has the unknown state {other:?}"))),
    };
    Ok(Subscription {
        country: parse_country(&row.try_get::<String>("", "country")?)?,
        name: String::from_utf8_lossy(&row.try_get::<Vec<u8>>("", "name")?).into_owned(),
        url: row.try_get("", "url")?,
        state,
        failures: row.try_get::<i32>("", "failures")? as u32,
        last_error: row.try_get("", "last_error")?,
        last_attempt_at: time("last_attempt_at")?,
        last_success_at: time("last_success_at")?,
        queued: row.try_get::<i64>("", "queued")? as u64,
    })
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
