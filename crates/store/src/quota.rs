//! What was accepted of each country on each day.

use std::collections::BTreeMap;

use chrono::NaiveDate;

use super::{
    Store,
    error::Failure,
    row::values,
    sql,
    tx::{Queries, Tx},
};
use efgs_intake::{Usage, VerifiedUpload};

impl Tx<'_> {
    /// Counts an upload. If the day has more than the quota with it, returns what the day had before. One row per
    /// country and day is locked from here to the commit, so this is the last step of a transaction.
    pub(super) async fn count_in_quota(
        &mut self,
        upload: &VerifiedUpload,
        quota: Usage,
    ) -> Result<Option<Usage>, Failure> {
        let backend = self.store.backend();
        let (country, day, own) = (upload.country(), upload.uploaded_at().date_naive(), upload.usage());
        let sum = |column| format!("{column} = quota.{column} + {}", sql::inserted(backend, column));
        let sql = format!(
            "{} {} {}, {}",
            sql::insert("quota", "country, day, used_keys, used_bytes", 1),
            sql::on_conflict(backend, "country, day"),
            sum("used_keys"),
            sum("used_bytes")
        );
        self.run(&sql, values![country, day, own.keys, own.bytes]).await?;
        let sql = "SELECT used_keys, used_bytes FROM quota WHERE country = ? AND day = ?";
        let (keys, bytes): (u64, u64) = self
            .row(sql, values![country, day])
            .await?
            .ok_or_else(|| Failure::Permanent("the row of the quota is gone".into()))?;
        let before = Usage { keys: keys.saturating_sub(own.keys), bytes: bytes.saturating_sub(own.bytes) };
        Ok((!Usage { keys, bytes }.fits(quota)).then_some(before))
    }
}

impl Store {
    /// What was accepted on a day, by country.
    pub(super) async fn usage(&self, day: NaiveDate) -> Result<BTreeMap<String, Usage>, Failure> {
        let sql = "SELECT country, used_keys, used_bytes FROM quota WHERE day = ?";
        let rows: Vec<(String, u64, u64)> = self.db.rows(sql, values![day]).await?;
        Ok(rows.into_iter().map(|(country, keys, bytes)| (country, Usage { keys, bytes })).collect())
    }
}
