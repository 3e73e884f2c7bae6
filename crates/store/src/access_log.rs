//! Records of the access log.

use std::sync::Mutex;

use chrono::{DateTime, Utc};
use sea_orm::{ConnectionTrait, DatabaseBackend, QueryResult, Value};

use super::{
    Lease, Store, StoreError,
    bulk::{self, Bulk},
    error::Failure,
    sql::Literals,
    statistics,
};
use efgs_access_log::{ChainEnd, Entry, NOBODY, ORIGIN, Record, hex};

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
        let attempts = || open.lock().map(|open| open.clone()).unwrap_or_default();
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
                if let (Ok(mut open), Some(last)) = (open.lock(), records.last())
                    && !open.contains(&last.hash)
                {
                    open.push(last.hash);
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

    /// Tries whether records can be written: writes one, and takes it and its total away again with the same commit.
    pub async fn try_log(&self, instance: &str) -> Result<(), StoreError> {
        let (backend, entry) = (self.backend(), Entry::default());
        let delete = |table: &str, key: &str| {
            let mut sql = Literals::new(backend, &format!("DELETE FROM {table} WHERE {key} AND instance = "));
            sql.text(instance);
            sql.into_text()
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
                let tx = self.begin().await?;
                for statement in statements {
                    tx.execute_unprepared(statement).await?;
                }
                Ok(tx.commit().await?)
            }
        }
    }

    async fn chain_end(&self, instance: &str) -> Result<ChainEnd, Failure> {
        let sql = "SELECT sequence, hash FROM access_log WHERE instance = ? ORDER BY sequence DESC LIMIT 1";
        match self.db.query_one_raw(self.statement(sql, [instance.into()])).await? {
            None => Ok(ChainEnd::default()),
            Some(row) => {
                let hash: Vec<u8> = row.try_get("", "hash")?;
                let hash =
                    hash.try_into().map_err(|_| Failure::Permanent("a hash has another length".into()))?;
                Ok(ChainEnd::new(row.try_get("", "sequence")?, hash))
            }
        }
    }

    /// Every instance that has records.
    pub async fn logged_instances(&self) -> Result<Vec<String>, StoreError> {
        self.repeat("instances in the access log", || async {
            let mut all: Vec<String> = Vec::new();
            loop {
                // One look into the index for each, instead of a walk through all records. The first has no bound: some
                // names are not greater than the empty one, which is a name too.
                let mut sql = "SELECT MIN(instance) AS instance FROM access_log".to_owned();
                if all.last().is_some() {
                    sql += " WHERE instance > ?";
                }
                let last = all.last().map(|last| last.as_str().into());
                let row = self.db.query_one_raw(self.statement(&sql, last)).await?;
                match row.map(|row| row.try_get::<Option<String>>("", "instance")).transpose()?.flatten() {
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
        self.repeat("read the access log", || async {
            let sql =
                "SELECT * FROM access_log WHERE instance = ? AND sequence >= ? ORDER BY sequence LIMIT ?";
            let values = [instance.into(), from.into(), limit.into()];
            let rows = self.db.query_all_raw(self.statement(sql, values)).await?;
            rows.iter().map(stored).collect()
        })
        .await
    }

    /// The next records in the order of their arrival, behind `after` (time, instance, number).
    pub async fn records_between(
        &self,
        filter: &RecordFilter,
        after: Option<(i64, &str, i64)>,
        limit: u32,
    ) -> Result<Vec<StoredRecord>, StoreError> {
        self.repeat("export the access log", || async {
            let mut sql = "SELECT * FROM access_log WHERE at >= ? AND at <= ?".to_owned();
            let micros = |at: DateTime<Utc>| at.timestamp_micros();
            let from = after.map(|(at, ..)| at).or(filter.from.map(micros)).unwrap_or(i64::MIN);
            let to = filter.to.map_or(i64::MAX, |to| micros(to) - 1);
            let mut values: Vec<Value> = vec![from.into(), to.into()];
            if let Some(country) = &filter.country {
                sql += " AND country = ?";
                values.push(country.as_str().into());
            }
            if let Some((at, instance, sequence)) = after {
                sql += " AND (at > ? OR instance > ? OR (instance = ? AND sequence > ?))";
                values.extend([at.into(), instance.into(), instance.into(), sequence.into()]);
            }
            sql += " ORDER BY at, instance, sequence LIMIT ?";
            values.push(limit.into());
            let rows = self.db.query_all_raw(self.statement(&sql, values)).await?;
            rows.iter().map(stored).collect()
        })
        .await
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
            let page = self
                .repeat("outdated records", || async {
                    let sql = "SELECT sequence, at, hash FROM access_log WHERE instance = ? AND sequence >= ? ORDER BY sequence LIMIT ?";
                    let values = [instance.into(), from.into(), STEP.into()];
                    let rows = self.db.query_all_raw(self.statement(sql, values)).await?;
                    let row = |row: &QueryResult| -> Result<(i64, i64, Vec<u8>), Failure> {
                        Ok((row.try_get("", "sequence")?, row.try_get("", "at")?, row.try_get("", "hash")?))
                    };
                    rows.iter().map(row).collect::<Result<Vec<_>, _>>()
                })
                .await?;
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
        self.repeat("forget records", || async {
            let tx = self.begin().await?;
            self.fence(&tx, lease).await?;
            let sql = "SELECT MIN(sequence) AS first FROM access_log WHERE instance = ?";
            let row = tx.query_one_raw(self.statement(sql, [instance.into()])).await?;
            let first: Option<i64> = row.map(|row| row.try_get("", "first")).transpose()?.flatten();
            let mut deleted = 0;
            if let Some(first) = first.filter(|first| *first <= up_to) {
                let sql = "DELETE FROM access_log WHERE instance = ? AND sequence <= ?";
                let end = up_to.min(first.saturating_add(STEP - 1));
                deleted =
                    tx.execute_raw(self.statement(sql, [instance.into(), end.into()])).await?.rows_affected();
            }
            tx.commit().await?;
            Ok(deleted)
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
    let mut sql = Literals::new(
        backend,
        "INSERT INTO access_log (instance, sequence, at, request_id, country, thumbprint, operation, method, path, \
         tag, asked_date, status, error, key_count, origins, request_bytes, response_bytes, duration_us, previous, \
         hash) VALUES ",
    );
    for record in records {
        let entry = &record.entry;
        let origins =
            entry.origins.as_ref().map(|origins| serde_json::to_string(origins).unwrap_or_default());
        sql.open_row();
        sql.text(&record.instance);
        sql.integer(record.sequence);
        sql.integer(entry.at.timestamp_micros());
        sql.text(&entry.request_id);
        sql.optional(entry.country.as_deref(), Literals::text);
        sql.optional(entry.thumbprint.as_deref(), Literals::hex);
        sql.text(&entry.operation);
        sql.text(&entry.method);
        sql.optional(entry.path.as_deref(), Literals::text);
        sql.optional(entry.tag.as_deref(), |sql, tag| sql.bytes(tag.as_bytes()));
        sql.optional(entry.date.as_deref(), Literals::text);
        sql.integer(i64::from(entry.status));
        sql.optional(entry.error.as_deref(), Literals::text);
        sql.optional(entry.keys, |sql, keys| sql.integer(i64::from(keys)));
        sql.optional(origins.as_deref(), Literals::text);
        sql.integer(entry.request_bytes as i64);
        sql.integer(entry.response_bytes as i64);
        sql.integer(entry.duration_micros as i64);
        sql.bytes(&record.previous);
        sql.bytes(&record.hash);
        sql.close_row();
    }
    sql.into_text()
}

fn stored(row: &QueryResult) -> Result<StoredRecord, Failure> {
    Ok(StoredRecord {
        instance: row.try_get("", "instance")?,
        sequence: row.try_get("", "sequence")?,
        at: row.try_get("", "at").ok(),
        record: record(row),
    })
}

/// Reads a row strictly: what is not exactly as a gateway writes it is no record.
fn record(row: &QueryResult) -> Option<Record> {
    let text = |column| row.try_get::<Option<String>>("", column).ok();
    let bytes = |column| row.try_get::<Option<Vec<u8>>>("", column).ok();
    let number = |column| row.try_get::<i64>("", column).ok();
    let hash = |column| bytes(column)??.try_into().ok();
    let origins = match text("origins")? {
        None => None,
        Some(text) => {
            let read = serde_json::from_str(&text).ok();
            Some(read.filter(|read| serde_json::to_string(read).is_ok_and(|again| again == text))?)
        }
    };
    let thumbprint = bytes("thumbprint")?;
    if thumbprint.as_ref().is_some_and(|thumbprint| thumbprint.len() != 32) {
        return None;
    }
    let keys = row.try_get::<Option<i32>>("", "key_count").ok()?;
    Some(Record {
        instance: text("instance")??,
        sequence: number("sequence")?,
        previous: hash("previous")?,
        hash: hash("hash")?,
        entry: Entry {
            at: DateTime::from_timestamp_micros(number("at")?)?,
            request_id: text("request_id")??,
            country: text("country")?,
            thumbprint: thumbprint.map(|thumbprint| hex(&thumbprint)),
            operation: text("operation")??.into(),
            method: text("method")??.into(),
            path: text("path")?.map(Into::into),
            tag: bytes("tag")?.map(String::from_utf8).transpose().ok()?,
            date: text("asked_date")?,
            status: u16::try_from(row.try_get::<i16>("", "status").ok()?).ok()?,
            error: text("error")?.map(Into::into),
            keys: keys.map(u32::try_from).transpose().ok()?,
            origins,
            request_bytes: u64::try_from(number("request_bytes")?).ok()?,
            response_bytes: u64::try_from(number("response_bytes")?).ok()?,
            duration_micros: u64::try_from(number("duration_us")?).ok()?,
        },
    })
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
