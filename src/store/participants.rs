//! What the database knows of each country's traffic.

use std::collections::BTreeMap;

use chrono::{DateTime, NaiveDateTime, Utc};
use efgs_protocol::batch_tag::ObjectId;
use sea_orm::ConnectionTrait;

use super::{Store, StoreError, batches::parse_id, sql};

/// A country's traffic, as far as it has not expired.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Traffic {
    /// Its last upload.
    pub last_upload: Option<DateTime<Utc>>,
    /// Keys that are stored.
    pub keys: u64,
    /// Of these, uploaded since the time that was asked for.
    pub recent_keys: u64,
    /// The newest batch that it has downloaded.
    pub downloaded: Option<ObjectId>,
    /// Batches that were formed after that one.
    pub behind: u64,
}

impl Store {
    /// The traffic of every country that has uploaded or downloaded, with the keys since `since`.
    pub async fn traffic(&self, since: DateTime<Utc>) -> Result<BTreeMap<String, Traffic>, StoreError> {
        self.repeat("traffic", || async {
            let integer = sql::integer(self.backend());
            let mut countries: BTreeMap<String, Traffic> = BTreeMap::new();
            let uploads = self
                .db
                .query_all_raw(self.statement(
                    &format!(
                        "SELECT country, MAX(uploaded_at) AS last_upload, CAST(SUM(amount) AS {integer}) AS total, \
                         CAST(SUM(CASE WHEN uploaded_at >= ? THEN amount ELSE 0 END) AS {integer}) AS recent \
                         FROM upload GROUP BY country"
                    ),
                    [since.naive_utc().into()],
                ))
                .await?;
            for row in &uploads {
                let country = countries.entry(row.try_get("", "country")?).or_default();
                country.last_upload =
                    row.try_get::<Option<NaiveDateTime>>("", "last_upload")?.map(|at| at.and_utc());
                country.keys = row.try_get::<i64>("", "total")? as u64;
                country.recent_keys = row.try_get::<i64>("", "recent")? as u64;
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
            Ok(countries)
        })
        .await
    }
}
