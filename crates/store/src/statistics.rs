//! Totals per country and day.

use std::collections::BTreeMap;

use chrono::{DateTime, NaiveDate, Utc};
use efgs_protocol::country::Country;
use sea_orm::{ConnectionTrait, DatabaseBackend, Value};

use super::{
    Store, StoreError,
    callback_queue::Counted,
    error::Failure,
    sql::{self, Literals},
};
use efgs_access_log::{Entry, Tally, tallies};

/// Instead of an instance: batches are formed by one at a time.
const BATCHING: &str = "batching";

/// When a country was last served.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LastSeen {
    /// Its last upload that was stored.
    pub upload: Option<DateTime<Utc>>,
    /// Its last download, or answer that it has the batch already.
    pub download: Option<DateTime<Utc>>,
}

/// Adds entries to the totals.
pub(super) fn upsert<'a>(
    backend: DatabaseBackend,
    instance: &str,
    entries: impl IntoIterator<Item = &'a Entry>,
) -> String {
    add(backend, instance, tallies(entries))
}

/// Adds to the totals of an instance.
fn add(backend: DatabaseBackend, instance: &str, tallies: BTreeMap<(NaiveDate, String), Tally>) -> String {
    let names = Tally::default().counters().map(|(name, _)| name);
    let mut sql = Literals::new(
        backend,
        &format!(
            "INSERT INTO statistic (day, country, instance, {}, last_upload_at, last_download_at) VALUES ",
            names.join(", ")
        ),
    );
    for ((day, country), mut tally) in tallies {
        sql.open_row();
        sql.date(day);
        sql.text(&country);
        sql.text(instance);
        for (_, counter) in tally.counters() {
            sql.integer(*counter as i64);
        }
        for at in [tally.last_upload_at, tally.last_download_at] {
            sql.optional(at, |sql, at| sql.integer(at.timestamp_micros()));
        }
        sql.close_row();
    }
    let sqlite = backend == DatabaseBackend::Sqlite;
    let new = |name: &str| if sqlite { format!("excluded.{name}") } else { format!("VALUES({name})") };
    let greatest = if sqlite { "MAX" } else { "GREATEST" };
    let mut updates = names.map(|name| format!("{name} = statistic.{name} + {}", new(name))).to_vec();
    for name in ["last_upload_at", "last_download_at"] {
        let new = new(name);
        updates
            .push(format!("{name} = COALESCE({greatest}(statistic.{name}, {new}), statistic.{name}, {new})"));
    }
    let conflict =
        if sqlite { "ON CONFLICT (day, country, instance) DO UPDATE SET" } else { "ON DUPLICATE KEY UPDATE" };
    format!("{} {conflict} {}", sql.into_text(), updates.join(", "))
}

impl Store {
    /// Statement that counts a call to a country.
    pub(super) fn count_callback(&self, call: Counted<'_>, delivered: bool) -> String {
        let one = u64::from(delivered);
        let tally = Tally { callbacks_delivered: one, callbacks_failed: 1 - one, ..Tally::default() };
        let row = (call.at.date_naive(), call.country.to_string());
        add(self.backend(), call.instance, BTreeMap::from([(row, tally)]))
    }

    /// Statement that counts a batch for the countries that have keys in it.
    pub(super) fn count_batch(&self, day: NaiveDate, countries: impl IntoIterator<Item = Country>) -> String {
        let tally = || Tally { batches: 1, ..Tally::default() };
        let rows = countries.into_iter().map(|country| ((day, country.to_string()), tally())).collect();
        add(self.backend(), BATCHING, rows)
    }

    /// The totals of every country and day from `from` to `to`, both included, over all instances.
    pub async fn statistics(
        &self,
        from: NaiveDate,
        to: NaiveDate,
        country: Option<&str>,
    ) -> Result<BTreeMap<(NaiveDate, String), Tally>, StoreError> {
        self.repeat("statistics", || async {
            let integer = sql::integer(self.backend());
            let sums = Tally::default()
                .counters()
                .map(|(name, _)| format!("CAST(SUM({name}) AS {integer}) AS {name}"));
            let mut sql = format!(
                "SELECT day, country, {}, MAX(last_upload_at) AS last_upload_at, \
                 MAX(last_download_at) AS last_download_at FROM statistic WHERE day >= ? AND day <= ?",
                sums.join(", ")
            );
            let mut values: Vec<Value> = vec![from.into(), to.into()];
            if let Some(country) = country {
                sql += " AND country = ?";
                values.push(country.into());
            }
            sql += " GROUP BY day, country ORDER BY day, country";
            let mut all = BTreeMap::new();
            for row in self.db.query_all_raw(self.statement(&sql, values)).await? {
                let mut tally = Tally::default();
                for (name, counter) in tally.counters() {
                    *counter = row.try_get::<i64>("", name)? as u64;
                }
                tally.last_upload_at = time(row.try_get("", "last_upload_at")?);
                tally.last_download_at = time(row.try_get("", "last_download_at")?);
                all.insert((row.try_get("", "day")?, row.try_get("", "country")?), tally);
            }
            Ok::<_, Failure>(all)
        })
        .await
    }

    /// When each country last uploaded and downloaded.
    pub async fn last_seen(&self) -> Result<BTreeMap<String, LastSeen>, StoreError> {
        self.repeat("last seen", || async {
            let sql = "SELECT country, MAX(last_upload_at) AS upload, MAX(last_download_at) AS download \
                       FROM statistic GROUP BY country";
            let mut all = BTreeMap::new();
            for row in self.db.query_all_raw(self.statement(sql, [])).await? {
                let seen = LastSeen {
                    upload: time(row.try_get("", "upload")?),
                    download: time(row.try_get("", "download")?),
                };
                all.insert(row.try_get("", "country")?, seen);
            }
            Ok::<_, Failure>(all)
        })
        .await
    }
}

fn time(micros: Option<i64>) -> Option<DateTime<Utc>> {
    micros.and_then(DateTime::from_timestamp_micros)
}
