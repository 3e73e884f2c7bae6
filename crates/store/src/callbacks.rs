//! Callback subscriptions (spec §5.6).

use chrono::{DateTime, Utc};
use efgs_protocol::country::Country;
use sea_orm::Value;

use super::{
    Store, StoreError,
    error::Failure,
    row::{Cell, Utf8, row, values},
    tx::Tx,
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

row! {
    /// A subscription as it stands.
    #[derive(Clone, Debug)]
    pub struct Subscription {
        /// Whose it is.
        country: Country,
        /// The id that the country chose.
        name: String as Utf8,
        /// As it was registered.
        url: String,
        /// Whether it is called.
        state: SubscriptionState,
        /// Failures since the last success.
        failures: u32,
        /// Of the last failure.
        last_error: Option<String>,
        /// When it was last called.
        last_attempt_at: Option<DateTime<Utc>> as Millis,
        /// When it last answered as it should.
        last_success_at: Option<DateTime<Utc>> as Millis,
        /// Notifications that wait.
        queued: u64,
    }
}

impl Cell for SubscriptionState {
    type Raw = String;
    fn read(raw: String) -> Result<Self, Failure> {
        Ok(match raw.as_str() {
            "active" => Self::Active,
            "paused" => Self::Paused,
            "held" => Self::Held,
            other => return Err(Failure::Permanent(format!("a callback has the unknown state {other:?}"))),
        })
    }
}

/// A time in milliseconds since 1970.
struct Millis(Option<i64>);

impl Cell for Millis {
    type Raw = Option<i64>;
    fn read(raw: Self::Raw) -> Result<Self, Failure> {
        Ok(Self(raw))
    }
}

impl From<Millis> for Option<DateTime<Utc>> {
    fn from(millis: Millis) -> Self {
        millis.0.and_then(DateTime::from_timestamp_millis)
    }
}

/// What a registration did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Put {
    /// It is there now.
    Stored,
    /// The country has as many as it may have; nothing was changed.
    TooMany,
}

impl Store {
    /// Subscriptions of one country or of all, by country and id.
    pub async fn subscriptions(&self, country: Option<Country>) -> Result<Vec<Subscription>, StoreError> {
        let (filter, values) = match country {
            Some(country) => ("WHERE s.country = ?", values![country]),
            None => ("", values![]),
        };
        let sql = format!(
            "SELECT s.country, s.name, s.url, s.state, s.failures, s.last_error, s.last_attempt_at, \
             s.last_success_at, (SELECT COUNT(*) FROM callback_notification n WHERE n.subscription_id = s.id) \
             FROM callback_subscription s {filter} ORDER BY s.country, s.name"
        );
        self.rows("list callbacks", &sql, values).await
    }

    /// Creates a subscription, unless the country has `limit` of them, or replaces its URL. Either way its failures are
    /// forgotten, and it is called again if it was paused because of them. A call to the former URL that is under way
    /// does not count.
    pub async fn put_subscription(
        &self,
        country: Country,
        name: &str,
        url: &str,
        limit: usize,
    ) -> Result<Put, StoreError> {
        let key = move || values![country, name.as_bytes()];
        self.tx("put callback", |mut tx| async move {
            // Columns are compared before they are set: MySQL sets them one after the other.
            let sql = "UPDATE callback_subscription SET owner = CASE WHEN url = ? THEN owner ELSE NULL END, \
                       url = ?, failures = 0, next_attempt_at = 0 WHERE country = ? AND name = ?";
            if tx.run(sql, [values![url, url], key()].concat()).await? > 0 {
                tx.reactivate(key(), "'paused'").await?;
                return Ok(tx.commit(Put::Stored));
            }
            let sql = "SELECT COUNT(*) FROM callback_subscription WHERE country = ?";
            if tx.row::<u64>(sql, values![country]).await?.unwrap_or(0) >= limit as u64 {
                return Ok(tx.discard(Put::TooMany));
            }
            let sql = "INSERT INTO callback_subscription (country, name, url, state, failures, next_attempt_at, \
                       lease_expires_at) VALUES (?, ?, ?, 'active', 0, 0, 0)";
            match tx.insert(sql, [key(), values![url]].concat()).await? {
                Some(_) => Ok(tx.commit(Put::Stored)),
                None => Err(Failure::Transient("the same callback was registered meanwhile".into())),
            }
        })
        .await
    }

    /// Forgets a subscription and its queue; says whether there was one.
    pub async fn delete_subscription(&self, country: Country, name: &str) -> Result<bool, StoreError> {
        let key = move || values![country, name.as_bytes()];
        self.tx("delete callback", |mut tx| async move {
            let sql = "DELETE FROM callback_notification WHERE subscription_id IN \
                       (SELECT id FROM callback_subscription WHERE country = ? AND name = ?)";
            tx.run(sql, key()).await?;
            let sql = "DELETE FROM callback_subscription WHERE country = ? AND name = ?";
            let deleted = tx.run(sql, key()).await?;
            Ok(tx.commit(deleted > 0))
        })
        .await
    }

    /// The operator pauses a subscription; says whether there is one.
    pub async fn hold_subscription(&self, country: Country, name: &str) -> Result<bool, StoreError> {
        let sql = "UPDATE callback_subscription SET state = 'held' WHERE country = ? AND name = ?";
        Ok(self.run("pause callback", sql, values![country, name.as_bytes()]).await? > 0)
    }

    /// The operator resumes a subscription, whoever paused it; says whether there is one.
    pub async fn resume_subscription(&self, country: Country, name: &str) -> Result<bool, StoreError> {
        let key = move || values![country, name.as_bytes()];
        self.tx("resume callback", |mut tx| async move {
            let sql = "UPDATE callback_subscription SET failures = 0, next_attempt_at = 0 \
                       WHERE country = ? AND name = ?";
            let updated = tx.run(sql, key()).await?;
            tx.reactivate(key(), "'paused', 'held'").await?;
            Ok(tx.commit(updated > 0))
        })
        .await
    }
}

impl Tx<'_> {
    /// Calls a subscription again, if it is in one of these states. Of what was queued meanwhile, only the newest batch
    /// is announced: from there the country follows the chain.
    async fn reactivate(&mut self, key: Vec<Value>, states: &str) -> Result<(), Failure> {
        let sql = format!(
            "SELECT s.id, MAX(n.batch_id) FROM callback_subscription s \
             LEFT JOIN callback_notification n ON n.subscription_id = s.id \
             WHERE s.country = ? AND s.name = ? AND s.state IN ({states}) GROUP BY s.id"
        );
        let Some::<(i64, _)>((id, newest)) = self.row(&sql, key).await? else { return Ok(()) };
        if let Some(newest) = newest {
            self.drop_notifications(id, newest).await?;
        }
        self.run("UPDATE callback_subscription SET state = 'active' WHERE id = ?", values![id]).await?;
        Ok(())
    }
}
