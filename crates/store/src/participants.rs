//! What the database knows of each country's traffic.

use std::collections::BTreeMap;

use chrono::{DateTime, NaiveDate, Utc};
use efgs_protocol::batch_tag::ObjectId;

use efgs_intake::Usage;

use super::{Store, StoreError, row::values, sql, tx::Queries};

/// A country's traffic, as far as it has not expired.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Traffic {
    /// Its last upload.
    pub last_upload: Option<DateTime<Utc>>,
    /// Keys that are stored.
    pub keys: u64,
    /// What counts in the quota of the day that was asked for: all that was accepted, withdrawn since or not.
    pub today: Usage,
    /// The newest batch that it has downloaded.
    pub downloaded: Option<ObjectId>,
    /// Batches that were formed after that one.
    pub behind: u64,
}

impl Store {
    /// The traffic of every country that has uploaded or downloaded, with its use of a day's quota.
    pub async fn traffic(&self, day: NaiveDate) -> Result<BTreeMap<String, Traffic>, StoreError> {
        self.repeat("traffic", || async {
            let mut countries: BTreeMap<String, Traffic> = BTreeMap::new();
            let sql = format!(
                "SELECT country, MAX(uploaded_at), CAST(SUM(amount) AS {}) FROM upload GROUP BY country",
                sql::integer(self.backend())
            );
            for (country, last_upload, keys) in self.db.rows(&sql, values![]).await? {
                *countries.entry(country).or_default() = Traffic { last_upload, keys, ..Traffic::default() };
            }
            let sql = "SELECT d.country, d.batch_id, (SELECT COUNT(*) FROM batch b WHERE b.id > d.batch_id) \
                       FROM downloaded d";
            for (country, downloaded, behind) in self.db.rows(sql, values![]).await? {
                let country = countries.entry(country).or_default();
                (country.downloaded, country.behind) = (Some(downloaded), behind);
            }
            for (country, usage) in self.usage(day).await? {
                countries.entry(country).or_default().today = usage;
            }
            Ok(countries)
        })
        .await
    }
}
