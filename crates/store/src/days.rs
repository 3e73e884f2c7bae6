//! The days that the two large tables are divided into.
//!
//! On MySQL and MariaDB, `diagnosis_key` has a partition for each day from which the retention counts, and `key_hash`
//! one for each day in which keys begin. So expiry drops a partition instead of deleting millions of rows, and the index
//! that decides whether a key is new is no larger than what is uploaded now. A day without a partition cannot be written
//! to: partitions are added a week ahead. The first one also holds what is older. SQLite deletes rows.

use chrono::{Days, NaiveDate, NaiveTime};
use efgs_protocol::key::OLDEST_DAYS;
use sea_orm::{ConnectionTrait, DatabaseBackend};

use super::{Lease, Store, StoreError, error::Failure, expiry::STEP, row::values, tx::Queries};

/// Days behind today that have a partition.
const AHEAD: u64 = 7;
/// Hashes are kept for a day longer than keys of their day are accepted: clocks of instances differ.
const HASH_DAYS: u64 = OLDEST_DAYS + 1;
/// In place of the day, in the hashes of keys that were stored before there were days.
pub(super) const BEFORE_DAYS: u16 = 0;
/// The step of the schema that divided the tables.
const STEP_OF_SCHEMA: &str = "m0011_days";

const KEYS: &str = "diagnosis_key";
const HASHES: &str = "key_hash";

/// A day's number: days since 1970.
pub(super) fn number(day: NaiveDate) -> u16 {
    u16::try_from((day - NaiveDate::default()).num_days()).unwrap_or_default()
}

/// The first day whose hashes are needed.
fn first_hashes(today: NaiveDate) -> NaiveDate {
    today.checked_sub_days(Days::new(HASH_DAYS)).unwrap_or_default()
}

impl Store {
    /// Adds the partitions that are missing up to a week after `today`, the first of a new table for `oldest`. Any
    /// number of instances may do so at once.
    pub async fn add_days(&self, oldest: NaiveDate, today: NaiveDate) -> Result<(), StoreError> {
        self.repeat("add partitions", || self.add_partitions(oldest, today)).await
    }

    async fn add_partitions(&self, oldest: NaiveDate, today: NaiveDate) -> Result<(), Failure> {
        if self.backend() == DatabaseBackend::Sqlite {
            return Ok(());
        }
        for (table, first) in [(KEYS, oldest), (HASHES, first_hashes(today))] {
            let next = self.partitions(table).await?.last().map_or(0, |last| last + 1);
            let days: Vec<_> = (next.max(number(first))..=number(today) + AHEAD as u16)
                .map(|day| format!("PARTITION p{day} VALUES LESS THAN ({})", day + 1))
                .collect();
            if !days.is_empty() {
                self.alter(&format!("ALTER TABLE {table} ADD PARTITION ({})", days.join(", "))).await?;
            }
        }
        Ok(())
    }

    /// The last day of each partition of a table, ascending.
    async fn partitions(&self, table: &str) -> Result<Vec<u16>, Failure> {
        let sql = "SELECT CAST(partition_description AS SIGNED) - 1 FROM information_schema.partitions \
                   WHERE table_schema = DATABASE() AND table_name = ? ORDER BY partition_ordinal_position";
        self.db.rows(sql, values![table]).await
    }

    /// Changes a table's definition. While it waits for a long statement, all others on the table wait behind it, so it
    /// does not wait long and is not repeated at once.
    async fn alter(&self, sql: &str) -> Result<(), Failure> {
        match self.patient.execute_unprepared(sql).await.map_err(Failure::from) {
            Ok(_) => Ok(()),
            Err(Failure::Transient(reason)) if reason.starts_with("error 1205") => {
                let why = "a long statement, such as a dump, uses the table; this is tried again later";
                Err(Failure::InUse(format!("{reason}: {why}")))
            }
            Err(failure) => Err(failure),
        }
    }

    /// How many days after `today` keys can be stored in: less than 0 when today they cannot. SQLite has no limit, which
    /// counts as a week.
    pub async fn days_ahead(&self, today: NaiveDate) -> Result<i64, StoreError> {
        if self.backend() == DatabaseBackend::Sqlite {
            return Ok(AHEAD as i64);
        }
        self.repeat("look at partitions", || async {
            let mut last = u16::MAX;
            for table in [KEYS, HASHES] {
                last = last.min(self.partitions(table).await?.last().copied().unwrap_or_default());
            }
            Ok(i64::from(last) - i64::from(number(today)))
        })
        .await
    }

    /// The outcome of an operation that writes keys of this day. If the day has no partition, because the gateway was
    /// not running in the days before, it is added and another attempt asked for.
    pub(super) async fn with_day<T>(
        &self,
        day: NaiveDate,
        outcome: Result<T, Failure>,
    ) -> Result<T, Failure> {
        match outcome {
            Err(Failure::NoPartition(reason)) => match self.add_partitions(day, day).await {
                Ok(()) | Err(Failure::InUse(_)) => Err(Failure::Transient(reason)),
                Err(failure) => Err(failure),
            },
            outcome => outcome,
        }
    }

    /// Forgets the keys of the days before `oldest`, on MySQL and MariaDB, and the hashes of keys that are too old to
    /// be uploaded again. Call it when no upload waits that is older than `oldest`.
    pub async fn expire_days(
        &self,
        lease: &Lease,
        oldest: NaiveDate,
        today: NaiveDate,
    ) -> Result<(), StoreError> {
        let first_hashes = first_hashes(today);
        if self.backend() == DatabaseBackend::Sqlite {
            while self.expire_hashes(lease, first_hashes).await? > 0 {}
            return Ok(());
        }
        for (table, first) in [(KEYS, oldest), (HASHES, first_hashes)] {
            self.repeat("drop partitions", || async {
                let partitions = self.partitions(table).await?;
                // The first day's partition is there, unless the clock goes wrong: the last one stays in any case.
                let last = partitions.last().copied();
                let mut old: Vec<_> =
                    partitions.into_iter().filter(|day| *day < number(first) && Some(*day) != last).collect();
                if table == HASHES && old.contains(&BEFORE_DAYS) && !self.before_days_is_over(first).await? {
                    old.retain(|day| *day != BEFORE_DAYS);
                }
                if old.is_empty() {
                    return Ok(());
                }
                self.prove(lease).await?;
                if table == KEYS && self.some_wait(oldest).await? {
                    return Err(Failure::Transient("an upload that is to expire waits for a batch".into()));
                }
                let names: Vec<_> = old.iter().map(|day| format!("p{day}")).collect();
                self.alter(&format!("ALTER TABLE {table} DROP PARTITION {}", names.join(", "))).await
            })
            .await?;
        }
        Ok(())
    }

    /// Whether an upload from before `oldest` waits for a batch: its keys must not go without it.
    async fn some_wait(&self, oldest: NaiveDate) -> Result<bool, Failure> {
        let sql = "SELECT id FROM upload WHERE batch_id IS NULL AND uploaded_at < ? LIMIT 1";
        Ok(self.db.row::<i64>(sql, values![oldest.and_time(NaiveTime::MIN)]).await?.is_some())
    }

    /// Whether all keys that were stored before the tables were divided are too old to be uploaded again.
    async fn before_days_is_over(&self, first_hashes: NaiveDate) -> Result<bool, Failure> {
        let sql = "SELECT applied_at FROM seaql_migrations WHERE version = ?";
        let divided: Option<i64> = self.db.row(sql, values![STEP_OF_SCHEMA]).await?;
        Ok(divided.is_none_or(|seconds| seconds / 86_400 < i64::from(number(first_hashes))))
    }

    /// On SQLite: deletes some hashes; how many.
    async fn expire_hashes(&self, lease: &Lease, first: NaiveDate) -> Result<u64, StoreError> {
        let over = self.repeat("expire hashes", || self.before_days_is_over(first)).await?;
        let from = if over { BEFORE_DAYS } else { BEFORE_DAYS + 1 };
        self.tx("expire hashes", |mut tx| async move {
            tx.fence(lease).await?;
            let sql = "DELETE FROM key_hash WHERE (rolling_day, hash) IN (SELECT rolling_day, hash FROM key_hash \
                       WHERE rolling_day >= ? AND rolling_day < ? LIMIT ?)";
            let deleted = tx.run(sql, values![from, number(first), STEP]).await?;
            Ok(tx.commit(deleted))
        })
        .await
    }
}
