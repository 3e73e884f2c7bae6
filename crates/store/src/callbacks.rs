//! Callback subscriptions (spec §5.6).

use chrono::{DateTime, Utc};
use efgs_protocol::country::Country;
use sea_orm::{ConnectionTrait, DatabaseTransaction, QueryResult, Value};

use super::{Store, StoreError, batches::parse_country, error::Failure, sql};

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

/// What a registration did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Put {
    /// It is there now.
    Stored,
    /// The country has as many as it may have; nothing was changed.
    TooMany,
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

    /// Creates a subscription, unless the country has `limit` of them, or replaces its URL. Either way its failures are forgotten, and it is called
    /// again if it was paused because of them. A call to the former URL that is under way counts for nothing.
    pub async fn put_subscription(
        &self,
        country: Country,
        name: &str,
        url: &str,
        limit: usize,
    ) -> Result<Put, StoreError> {
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
                let sql = "SELECT COUNT(*) AS amount FROM callback_subscription WHERE country = ?";
                let row = tx.query_one_raw(self.statement(sql, [country.as_str().into()])).await?;
                let amount = row.map(|row| row.try_get::<i64>("", "amount")).transpose()?;
                if amount.unwrap_or(0) >= limit as i64 {
                    tx.rollback().await?;
                    return Ok(Put::TooMany);
                }
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
            tx.commit().await?;
            Ok(Put::Stored)
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
