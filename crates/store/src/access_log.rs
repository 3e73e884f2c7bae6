//! Records of the access log.

use std::collections::HashMap;

use chrono::{DateTime, Utc};
use parking_lot::Mutex;
use sea_orm::{DatabaseBackend, Value};

use super::{
    Lease, Store, StoreError,
    bulk::{self, Bulk},
    error::Failure,
    row::{Bind, Cells, Row, Table, values},
    sql, statistics,
    tx::Queries,
};
use efgs_access_log::{ChainEnd, Entry, NOBODY, ORIGIN, Record, hex, unhex};

/// Rows that one statement of the retention deletes.
pub(super) const STEP: i64 = 5000;

/// A row of the log.
#[derive(Clone, Debug)]
pub struct StoredRecord {
    /// Whose chain it says it is in.
    pub instance: String,
    /// Where in it.
    pub sequence: i64,
    /// Microseconds since 1970 at which it says the request arrived.
    pub at: Option<i64>,
    /// The record; none when the row is not one that a gateway writes.
    pub record: Option<Record>,
}

/// Which records are wanted.
#[derive(Clone, Debug, Default)]
pub struct RecordFilter {
    /// Of requests that arrived at this time or later.
    pub from: Option<DateTime<Utc>>,
    /// Of requests that arrived before this time.
    pub to: Option<DateTime<Utc>>,
    /// Of this country only.
    pub country: Option<String>,
}

impl Store {
    /// Appends entries to an instance's chain, and adds them to the totals of their day, with one commit: all
    /// of it or nothing. `end` says where the chain ends and is moved on.
    pub async fn append_records(
        &self,
        instance: &str,
        end: &mut ChainEnd,
        entries: &[Entry],
    ) -> Result<(), StoreError> {
        let before = end.clone();
        let expected = chain(instance, &before, entries);
        let open = Mutex::new(before.open.clone());
        // Should this end in the middle, the next call has to look.
        end.open.extend(expected.last().map(|last| last.hash));
        let attempts = || open.lock().clone();
        let written = self
            .repeat("access log", || async {
                // An attempt whose outcome is not known may have been committed.
                let from = match &attempts()[..] {
                    [] => before.clone(),
                    open => before.or_what_was_written(self.chain_end(instance).await?, open),
                };
                let moved;
                let records = if (from.sequence, from.hash) == (before.sequence, before.hash) {
                    &expected
                } else if expected.last().is_some_and(|last| last.hash == from.hash) {
                    return Ok(from);
                } else {
                    moved = chain(instance, &from, entries);
                    &moved
                };
                if let Some(last) = records.last() {
                    let mut open = open.lock();
                    if !open.contains(&last.hash) {
                        open.push(last.hash);
                    }
                }
                let backend = self.backend();
                let sql = [insert(backend, records), statistics::upsert(backend, instance, entries)];
                match self.all_or_nothing(&sql).await {
                    Ok(()) => {}
                    // The attempt before was committed in the meantime.
                    Err(Failure::Duplicate) => {
                        return Err(Failure::Transient("the chain has moved on".into()));
                    }
                    Err(failure) => return Err(failure),
                }
                Ok(match records.last() {
                    Some(last) => ChainEnd::new(last.sequence, last.hash),
                    None => from,
                })
            })
            .await;
        match written {
            Ok(moved) => *end = moved,
            Err(error) => {
                end.open = attempts();
                return Err(error);
            }
        }
        Ok(())
    }

    /// Inserts records of one instance as they are, and adds them to the totals of their day, with one commit. Those that
    /// are there already are left out, so that it can be repeated. Returns the numbers at which there is another record:
    /// what is there stays.
    pub async fn ship_records(&self, records: &[Record]) -> Result<Vec<i64>, StoreError> {
        let (Some(first), Some(last)) = (records.first(), records.last()) else { return Ok(Vec::new()) };
        let looked = Mutex::new(false);
        self.repeat("access log", || async {
            let mut others = Vec::new();
            let mut missing = records.to_vec();
            // An attempt whose outcome is not known may have been committed.
            if std::mem::replace(&mut *looked.lock(), true) {
                let sql =
                    "SELECT sequence, hash FROM access_log WHERE instance = ? AND sequence BETWEEN ? AND ?";
                let values = values![first.instance.as_str(), first.sequence, last.sequence];
                let there: HashMap<i64, Vec<u8>> = self.db.rows(sql, values).await?.into_iter().collect();
                missing.retain(|record| !there.contains_key(&record.sequence));
                let differs =
                    |record: &&Record| there.get(&record.sequence).is_some_and(|hash| *hash != record.hash);
                others.extend(records.iter().filter(differs).map(|record| record.sequence));
            }
            if missing.is_empty() {
                return Ok(others);
            }
            let backend = self.backend();
            let entries = missing.iter().map(|record| &record.entry);
            let sql = [insert(backend, &missing), statistics::upsert(backend, &first.instance, entries)];
            match self.all_or_nothing(&sql).await {
                Ok(()) => Ok(others),
                Err(Failure::Duplicate) => Err(Failure::Transient("some of the records are there".into())),
                Err(failure) => Err(failure),
            }
        })
        .await
    }

    /// Tries whether records can be written: writes one, and takes it and its total away again with the same commit.
    pub async fn try_log(&self, instance: &str) -> Result<(), StoreError> {
        let (backend, entry) = (self.backend(), Entry::default());
        let delete = |table: &str, key: &str| {
            let sql = format!("DELETE FROM {table} WHERE {key} AND instance = ?");
            sql::inline(backend, &sql, values![instance])
        };
        let sql = [
            insert(backend, &[Record::new(instance, 0, ORIGIN, entry.clone())]),
            delete("access_log", "sequence = 0"),
            statistics::upsert(backend, instance, [&entry]),
            delete("statistic", &format!("day = '{}' AND country = '{NOBODY}'", entry.at.date_naive())),
        ];
        self.repeat("try the access log", || self.all_or_nothing(&sql)).await
    }

    /// Carries out statements in one transaction; on MySQL and MariaDB in one round trip.
    async fn all_or_nothing(&self, statements: &[String]) -> Result<(), Failure> {
        match &self.log {
            Bulk::MySql { pool, .. } => bulk::transaction(pool, statements).await,
            Bulk::Sqlite => {
                self.tx_once(|mut tx| async move {
                    for statement in statements {
                        tx.run_text(statement).await?;
                    }
                    Ok(tx.commit(()))
                })
                .await
            }
        }
    }

    async fn chain_end(&self, instance: &str) -> Result<ChainEnd, Failure> {
        let sql = "SELECT sequence, hash FROM access_log WHERE instance = ? ORDER BY sequence DESC LIMIT 1";
        let end = self.db.row(sql, values![instance]).await?;
        Ok(end.map(|(sequence, hash)| ChainEnd::new(sequence, hash)).unwrap_or_default())
    }

    /// Every instance that has records.
    pub async fn logged_instances(&self) -> Result<Vec<String>, StoreError> {
        self.repeat("instances in the access log", || async {
            let mut all: Vec<String> = Vec::new();
            loop {
                // One look into the index for each, instead of a walk through all records. The first has no bound: some
                // names are not greater than the empty one, which is a name too.
                let mut sql = "SELECT MIN(instance) FROM access_log".to_owned();
                if all.last().is_some() {
                    sql += " WHERE instance > ?";
                }
                let last = all.last().map(|last| last.as_str().bind());
                match self.db.row(&sql, Vec::from_iter(last)).await?.flatten() {
                    Some(next) => all.push(next),
                    None => return Ok(all),
                }
            }
        })
        .await
    }

    /// The next records of an instance's chain, from number `from` on.
    pub async fn records_of(
        &self,
        instance: &str,
        from: i64,
        limit: u32,
    ) -> Result<Vec<StoredRecord>, StoreError> {
        let sql = Record::select("WHERE instance = ? AND sequence >= ? ORDER BY sequence LIMIT ?");
        self.rows("read the access log", &sql, values![instance, from, limit]).await
    }

    /// The next records in the order of their arrival, behind `after` (time, instance, number).
    pub async fn records_between(
        &self,
        filter: &RecordFilter,
        after: Option<(i64, &str, i64)>,
        limit: u32,
    ) -> Result<Vec<StoredRecord>, StoreError> {
        let mut sql = Record::select("WHERE at >= ? AND at <= ?");
        let micros = |at: DateTime<Utc>| at.timestamp_micros();
        let from = after.map(|(at, ..)| at).or(filter.from.map(micros)).unwrap_or(i64::MIN);
        let to = filter.to.map_or(i64::MAX, |to| micros(to) - 1);
        let mut values = values![from, to];
        if let Some(country) = &filter.country {
            sql += " AND country = ?";
            values.push(country.as_str().bind());
        }
        if let Some((at, instance, sequence)) = after {
            sql += " AND (at > ? OR instance > ? OR (instance = ? AND sequence > ?))";
            values.extend(values![at, instance, instance, sequence]);
        }
        sql += " ORDER BY at, instance, sequence LIMIT ?";
        values.push(limit.bind());
        self.rows("export the access log", &sql, values).await
    }

    /// The last record of an instance that is older than `before` together with all records in front of it;
    /// none when the chain has no such record.
    pub async fn last_outdated(
        &self,
        instance: &str,
        before: DateTime<Utc>,
    ) -> Result<Option<ChainEnd>, StoreError> {
        let mut last = None;
        loop {
            let from = last.as_ref().map_or(i64::MIN, |end: &ChainEnd| end.sequence.saturating_add(1));
            let sql = "SELECT sequence, at, hash FROM access_log WHERE instance = ? AND sequence >= ? \
                       ORDER BY sequence LIMIT ?";
            let page: Vec<(i64, i64, Vec<u8>)> =
                self.rows("outdated records", sql, values![instance, from, STEP]).await?;
            let read = page.len();
            let outdated = page.into_iter().take_while(|(_, at, _)| *at < before.timestamp_micros());
            let (mut taken, mut newest) = (0, None);
            for (sequence, _, hash) in outdated {
                taken += 1;
                newest = hash.try_into().ok().map(|hash| ChainEnd::new(sequence, hash));
            }
            last = newest.or(last);
            if taken < read || read < STEP as usize {
                return Ok(last);
            }
        }
    }

    /// Deletes some of an instance's records up to a number, the first ones first. Call it until it says 0.
    pub async fn forget_records(&self, lease: &Lease, instance: &str, up_to: i64) -> Result<u64, StoreError> {
        self.tx("forget records", |mut tx| async move {
            tx.fence(lease).await?;
            let sql = "SELECT MIN(sequence) FROM access_log WHERE instance = ?";
            let first: Option<i64> = tx.row(sql, values![instance]).await?.flatten();
            let Some(first) = first.filter(|first| *first <= up_to) else { return Ok(tx.commit(0)) };
            let sql = "DELETE FROM access_log WHERE instance = ? AND sequence <= ?";
            let deleted = tx.run(sql, values![instance, up_to.min(first.saturating_add(STEP - 1))]).await?;
            Ok(tx.commit(deleted))
        })
        .await
    }
}

fn chain(instance: &str, end: &ChainEnd, entries: &[Entry]) -> Vec<Record> {
    let mut records: Vec<Record> = Vec::with_capacity(entries.len());
    for (sequence, entry) in (end.sequence + 1..).zip(entries) {
        let previous = records.last().map_or(end.hash, |last| last.hash);
        records.push(Record::new(instance, sequence, previous, entry.clone()));
    }
    records
}

fn insert(backend: DatabaseBackend, records: &[Record]) -> String {
    let sql = Record::insert(records.len());
    sql::inline(backend, &sql, records.iter().cloned().flat_map(Record::values))
}

impl Row for StoredRecord {
    fn read(cells: &mut Cells) -> Result<Self, Failure> {
        let (instance, sequence) = (cells.next()?, cells.next()?);
        let at = cells.next().ok();
        cells.rewind();
        Ok(Self { instance, sequence, at, record: Record::read(cells).ok() })
    }
}

impl Table for Record {
    const TABLE: &'static str = "access_log";
    fn columns() -> String {
        "instance, sequence, at, request_id, country, thumbprint, operation, method, path, tag, asked_date, status, \
         error, key_count, origins, request_bytes, response_bytes, duration_us, request_count, previous, hash"
            .to_owned()
    }

    fn values(self) -> Vec<Value> {
        let entry = self.entry;
        let origins = entry.origins.map(|origins| serde_json::to_string(&origins).unwrap_or_default());
        values![
            self.instance,
            self.sequence,
            entry.at.timestamp_micros(),
            entry.request_id,
            entry.country,
            entry.thumbprint.and_then(|digits| unhex(&digits)),
            entry.operation,
            entry.method,
            entry.path,
            entry.tag.map(String::into_bytes),
            entry.date,
            entry.status,
            entry.error,
            entry.keys,
            origins,
            entry.request_bytes,
            entry.response_bytes,
            entry.duration_micros,
            entry.requests,
            self.previous,
            self.hash,
        ]
    }
}

/// Reads a row strictly: what is not exactly as a gateway writes it is no record.
impl Row for Record {
    fn read(cells: &mut Cells) -> Result<Self, Failure> {
        let malformed = || Failure::Permanent("a gateway does not write such a record".into());
        let (instance, sequence) = (cells.next()?, cells.next()?);
        let text = |text: String| text.into();
        let entry = Entry {
            at: DateTime::from_timestamp_micros(cells.next()?).ok_or_else(malformed)?,
            request_id: cells.next()?,
            country: cells.next()?,
            thumbprint: cells.next::<Option<[u8; 32]>>()?.map(|thumbprint| hex(&thumbprint)),
            operation: text(cells.next()?),
            method: text(cells.next()?),
            path: cells.next::<Option<_>>()?.map(text),
            tag: cells.next::<Option<_>>()?.map(String::from_utf8).transpose().map_err(|_| malformed())?,
            date: cells.next()?,
            status: u16::try_from(cells.next::<i64>()?).map_err(|_| malformed())?,
            error: cells.next::<Option<_>>()?.map(text),
            keys: cells.next::<Option<i64>>()?.map(u32::try_from).transpose().map_err(|_| malformed())?,
            origins: match cells.next::<Option<String>>()? {
                None => None,
                Some(text) => {
                    let read = serde_json::from_str(&text).ok();
                    let same = |read: &_| serde_json::to_string(read).is_ok_and(|again| again == text);
                    Some(read.filter(same).ok_or_else(malformed)?)
                }
            },
            request_bytes: u64::try_from(cells.next::<i64>()?).map_err(|_| malformed())?,
            response_bytes: u64::try_from(cells.next::<i64>()?).map_err(|_| malformed())?,
            duration_micros: u64::try_from(cells.next::<i64>()?).map_err(|_| malformed())?,
            requests: cells.next::<Option<i64>>()?.map(u32::try_from).transpose().map_err(|_| malformed())?,
        };
        Ok(Self { instance, sequence, entry, previous: cells.next()?, hash: cells.next()? })
    }
}

#[cfg(test)]
mod tests {
    use super::ChainEnd;

    #[test]
    fn only_what_was_written_here_is_built_upon() {
        let before = ChainEnd::new(10, [1; 32]);
        let end = |sequence, hash: u8| ChainEnd::new(sequence, [hash; 32]);
        let resume = |found: ChainEnd| before.or_what_was_written(found, &[[2; 32], [3; 32]]);
        // Nothing has come of the attempts, or one of them has succeeded.
        assert_eq!(resume(end(10, 1)), end(10, 1));
        assert_eq!(resume(end(12, 3)), end(12, 3));
        // Others have put something there: it keeps its numbers, and nothing follows it.
        assert_eq!(resume(end(12, 9)), end(12, 1));
        assert_eq!(resume(end(10, 9)), end(10, 1));
        // The end is missing, or everything.
        assert_eq!(resume(end(7, 9)), end(10, 1));
        assert_eq!(resume(ChainEnd::default()), end(10, 1));
    }
}
