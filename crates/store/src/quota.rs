//! What was accepted of each country on each day.

use std::collections::BTreeMap;

use chrono::NaiveDate;
use sea_orm::ConnectionTrait;

use super::{Store, error::Failure};
use efgs_intake::{Usage, VerifiedUpload};

/// Adds to a day: one row per country and day, locked only from here to the commit, which follows at once.
pub(super) const ADD_MYSQL: &str = "INSERT INTO quota (country, day, used_keys, used_bytes) VALUES (?, ?, ?, ?) \
     ON DUPLICATE KEY UPDATE used_keys = used_keys + ?, used_bytes = used_bytes + ?";
const ADD_SQLITE: &str = "INSERT INTO quota (country, day, used_keys, used_bytes) VALUES (?, ?, ?, ?) \
     ON CONFLICT (country, day) DO UPDATE SET used_keys = used_keys + ?, used_bytes = used_bytes + ?";
pub(super) const READ: &str = "SELECT used_keys, used_bytes FROM quota WHERE country = ? AND day = ?";

/// What a day had before an upload was added, if with it the day has more than the quota.
pub(super) fn exceeded(now: (i64, i64), upload: &VerifiedUpload, quota: Usage) -> Option<Usage> {
    let (now, own) = (Usage { keys: now.0 as u64, bytes: now.1 as u64 }, upload.usage());
    let before =
        Usage { keys: now.keys.saturating_sub(own.keys), bytes: now.bytes.saturating_sub(own.bytes) };
    (!now.fits(quota)).then_some(before)
}

impl Store {
    /// Counts an upload in its transaction, on SQLite. The answer is as in [`exceeded`].
    pub(super) async fn count_on_sqlite(
        &self,
        tx: &impl ConnectionTrait,
        upload: &VerifiedUpload,
        quota: Usage,
    ) -> Result<Option<Usage>, Failure> {
        let country = upload.country();
        let country = country.as_str();
        let day = upload.uploaded_at().date_naive();
        let Usage { keys, bytes } = upload.usage();
        let [keys, bytes] = [keys as i64, bytes as i64];
        let values = [country.into(), day.into(), keys.into(), bytes.into(), keys.into(), bytes.into()];
        tx.execute_raw(self.statement(ADD_SQLITE, values)).await?;
        let row = tx.query_one_raw(self.statement(READ, [country.into(), day.into()])).await?;
        let row = row.ok_or_else(|| Failure::Permanent("the row of the quota is gone".into()))?;
        Ok(exceeded((row.try_get("", "used_keys")?, row.try_get("", "used_bytes")?), upload, quota))
    }

    /// What was accepted on a day, by country.
    pub(super) async fn usage(&self, day: NaiveDate) -> Result<BTreeMap<String, Usage>, Failure> {
        let sql = "SELECT country, used_keys, used_bytes FROM quota WHERE day = ?";
        let rows = self.db.query_all_raw(self.statement(sql, [day.into()])).await?;
        let row = |row: &sea_orm::QueryResult| {
            let [keys, bytes] = [row.try_get::<i64>("", "used_keys")?, row.try_get("", "used_bytes")?];
            Ok((row.try_get("", "country")?, Usage { keys: keys as u64, bytes: bytes as u64 }))
        };
        rows.iter().map(row).collect()
    }
}
