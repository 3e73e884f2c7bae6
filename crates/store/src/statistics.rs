//! Totals per country and day.

use std::collections::BTreeMap;

use chrono::{DateTime, NaiveDate, Utc};
use efgs_protocol::country::Country;
use sea_orm::DatabaseBackend;

use super::{
    CountedCall, Store, StoreError,
    error::Failure,
    row::{Bind, Cells, Row, values},
    sql,
    tx::Tx,
};
use efgs_access_log::{Entry, Tally, tallies};

/// Instead of an instance: batches are formed by one at a time.
const BATCHING: &str = "batching";
/// Times of which the last one is kept.
const LAST: [&str; 2] = ["last_upload_at", "last_download_at"];

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
    let columns = format!("day, country, instance, {}, {}", names.join(", "), LAST.join(", "));
    let mut values = Vec::new();
    let rows = tallies.len();
    for ((day, country), mut tally) in tallies {
        values.extend(values![day, country, instance]);
        values.extend(tally.counters().map(|(_, counter)| counter.bind()));
        values.extend(
            [tally.last_upload_at, tally.last_download_at]
                .map(|at| at.map(|at| at.timestamp_micros()).bind()),
        );
    }
    let new = |name: &str| sql::inserted(backend, name);
    let greatest = sql::greatest(backend);
    let sums = names.iter().map(|name| format!("{name} = statistic.{name} + {}", new(name)));
    let latest = LAST.iter().map(|name| {
        let new = new(name);
        format!("{name} = COALESCE({greatest}(statistic.{name}, {new}), statistic.{name}, {new})")
    });
    let sql = format!(
        "{} {} {}",
        sql::insert("statistic", &columns, rows),
        sql::on_conflict(backend, "day, country, instance"),
        sums.chain(latest).collect::<Vec<_>>().join(", ")
    );
    sql::inline(backend, &sql, values)
}

impl Tx<'_> {
    /// Counts a call to a country.
    pub(super) async fn count_callback(
        &mut self,
        call: CountedCall<'_>,
        delivered: bool,
    ) -> Result<(), Failure> {
        let one = u64::from(delivered);
        let tally = Tally { callbacks_delivered: one, callbacks_failed: 1 - one, ..Tally::default() };
        let row = (call.at.date_naive(), call.country.to_string());
        self.run_text(&add(self.store.backend(), call.instance, BTreeMap::from([(row, tally)]))).await
    }

    /// Counts a batch for the countries that have keys in it.
    pub(super) async fn count_batch(
        &mut self,
        day: NaiveDate,
        countries: impl Iterator<Item = Country>,
    ) -> Result<(), Failure> {
        let tally = || Tally { batches: 1, ..Tally::default() };
        let rows = countries.map(|country| ((day, country.to_string()), tally())).collect();
        self.run_text(&add(self.store.backend(), BATCHING, rows)).await
    }
}

impl Store {
    /// The totals of every country and day from `from` to `to`, both included, over all instances.
    pub async fn statistics(
        &self,
        from: NaiveDate,
        to: NaiveDate,
        country: Option<&str>,
    ) -> Result<BTreeMap<(NaiveDate, String), Tally>, StoreError> {
        let integer = sql::integer(self.backend());
        let sums = Tally::default().counters().map(|(name, _)| format!("CAST(SUM({name}) AS {integer})"));
        let mut sql = format!(
            "SELECT day, country, {}, MAX(last_upload_at), MAX(last_download_at) FROM statistic \
             WHERE day >= ? AND day <= ?",
            sums.join(", ")
        );
        let mut values = values![from, to];
        if let Some(country) = country {
            sql += " AND country = ?";
            values.push(country.bind());
        }
        sql += " GROUP BY day, country ORDER BY day, country";
        let rows: Vec<DayTally> = self.rows("statistics", &sql, values).await?;
        Ok(rows.into_iter().map(|row| (row.key, row.tally)).collect())
    }

    /// When each country last uploaded and downloaded.
    pub async fn last_seen(&self) -> Result<BTreeMap<String, LastSeen>, StoreError> {
        let sql =
            "SELECT country, MAX(last_upload_at), MAX(last_download_at) FROM statistic GROUP BY country";
        let rows = self.rows("last seen", sql, values![]).await?;
        let seen = |(country, upload, download)| {
            (country, LastSeen { upload: time(upload), download: time(download) })
        };
        Ok(rows.into_iter().map(seen).collect())
    }
}

/// The totals of a country and day.
struct DayTally {
    key: (NaiveDate, String),
    tally: Tally,
}

impl Row for DayTally {
    fn read(cells: &mut Cells) -> Result<Self, Failure> {
        let key = Row::read(cells)?;
        let mut tally = Tally::default();
        for (_, counter) in tally.counters() {
            *counter = cells.next()?;
        }
        tally.last_upload_at = time(cells.next()?);
        tally.last_download_at = time(cells.next()?);
        Ok(Self { key, tally })
    }
}

fn time(micros: Option<i64>) -> Option<DateTime<Utc>> {
    micros.and_then(DateTime::from_timestamp_micros)
}
