//! What the database knows of each country's traffic.

use std::collections::BTreeMap;

use chrono::{DateTime, NaiveDate, NaiveDateTime, Utc};
use efgs_protocol::batch_tag::ObjectId;
use sea_orm::ConnectionTrait;

use efgs_intake::Usage;

use super::{Store, StoreError, batches::parse_id, sql};

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
            let integer = sql::integer(self.backend());
            let mut countries: BTreeMap<String, Traffic> = BTreeMap::new();
            let uploads = self
                .db
                .query_all_raw(self.statement(
                    &format!(
                        "SELECT country, MAX(uploaded_at) AS last_upload, CAST(SUM(amount) AS {integer}) AS total \
                         FROM upload GROUP BY country"
                    ),
                    [],
                ))
                .await?;
            for row in &uploads {
                let country = countries.entry(row.try_get("", "country")?).or_default();
                country.last_upload =
                    row.try_get::<Option<NaiveDateTime>>("", "last_upload")?.map(|at| at.and_utc());
                country.keys = row.try_get::<i64>("", "total")? as u64;
            }
            let downloads = self
                .db
                .query_all_raw(self.statement(
                    "SELECT d.country AS country, d.batch_id AS batch, \
                     (SELECT COUNT(*) FROM batch b WHERE b.id > d.batch_id) AS behind FROM downloaded d",
                    [],
                ))
                .await?;
            for row in &downloads {
                let country = countries.entry(row.try_get("", "country")?).or_default();
                country.downloaded = Some(parse_id(&row.try_get::<Vec<u8>>("", "batch")?)?);
                country.behind = row.try_get::<i64>("", "behind")? as u64;
            }
            for (country, usage) in self.usage(day).await? {
                countries.entry(country).or_default().today = usage;
            }
            Ok(countries)
        })
        .await
    }
}
