//! Running statements, and transactions that are composed of steps.
//!
//! [`Store::tx`] begins, runs the steps, commits, and repeats all of it when the database asks for that. A step is a
//! method of [`Tx`], beside the queries of its table, so that several operations use it.

use std::future::Future;

use mysql_async::{Params, prelude::Queryable};
use sea_orm::{
    ConnectionTrait, DatabaseTransaction, SqliteTransactionMode, Statement, TransactionOptions,
    TransactionTrait, Value,
};

use super::{
    Store, StoreError,
    bulk::{Bulk, Lent},
    error::Failure,
    row::{Row, Table},
};

/// Statements on the connections of sea-orm.
pub(super) trait Queries: ConnectionTrait {
    fn statement(&self, sql: &str, values: Vec<Value>) -> Statement {
        Statement::from_sql_and_values(self.get_database_backend(), sql, values)
    }

    /// How many rows it changed; on MySQL, an UPDATE counts the rows that it found.
    async fn run(&self, sql: &str, values: Vec<Value>) -> Result<u64, Failure> {
        Ok(self.execute_raw(self.statement(sql, values)).await?.rows_affected())
    }

    async fn rows<T: Row>(&self, sql: &str, values: Vec<Value>) -> Result<Vec<T>, Failure> {
        let rows = self.query_all_raw(self.statement(sql, values)).await?;
        rows.into_iter().map(|row| T::read(&mut row.into())).collect()
    }

    /// The first row.
    async fn row<T: Row>(&self, sql: &str, values: Vec<Value>) -> Result<Option<T>, Failure> {
        let row = self.query_one_raw(self.statement(sql, values)).await?;
        row.map(|row| T::read(&mut row.into())).transpose()
    }
}

impl<C: ConnectionTrait> Queries for C {}

/// A transaction that is open. Dropping it rolls it back.
pub(super) struct Tx<'a> {
    pub(super) store: &'a Store,
    on: Driver,
}

enum Driver {
    SeaOrm(DatabaseTransaction),
    MySql(Lent),
}

/// The end of a transaction's steps: its outcome, and whether what they did is kept.
pub(super) struct Finished<'a, T> {
    tx: Tx<'a>,
    value: T,
    keep: bool,
}

impl<'a> Tx<'a> {
    /// The steps are done: what they did is to be committed.
    pub(super) fn commit<T>(self, value: T) -> Finished<'a, T> {
        Finished { tx: self, value, keep: true }
    }

    /// The steps are done: nothing of what they did is to be kept.
    pub(super) fn discard<T>(self, value: T) -> Finished<'a, T> {
        Finished { tx: self, value, keep: false }
    }
}

impl Tx<'_> {
    /// Carries out a statement; how many rows it changed.
    pub(super) async fn run(&mut self, sql: &str, values: Vec<Value>) -> Result<u64, Failure> {
        Ok(self.execute(sql, values).await?.0)
    }

    /// Inserts a row, unless its key is taken; the number that the database gave it.
    pub(super) async fn insert(&mut self, sql: &str, values: Vec<Value>) -> Result<Option<i64>, Failure> {
        Ok(unless_taken(self.execute(sql, values).await)?.map(|(_, id)| id as i64))
    }

    /// Inserts rows of a table.
    pub(super) async fn insert_all<T: Table>(
        &mut self,
        rows: impl ExactSizeIterator<Item = T>,
    ) -> Result<(), Failure> {
        let sql = T::insert(rows.len());
        self.run(&sql, rows.flat_map(T::values).collect()).await?;
        Ok(())
    }

    /// How many rows it changed, and the number of the row that it inserted.
    async fn execute(&mut self, sql: &str, values: Vec<Value>) -> Result<(u64, u64), Failure> {
        match &mut self.on {
            Driver::SeaOrm(tx) => {
                let done = tx.execute_raw(tx.statement(sql, values)).await?;
                Ok((done.rows_affected(), done.last_insert_id()))
            }
            Driver::MySql(tx) => {
                let tx = tx.connection()?;
                tx.exec_drop(sql, parameters(values)).await?;
                Ok((tx.affected_rows(), tx.last_insert_id().unwrap_or_default()))
            }
        }
    }

    /// Carries out a statement that has no placeholders, without preparing it.
    pub(super) async fn run_text(&mut self, sql: &str) -> Result<(), Failure> {
        match &mut self.on {
            Driver::SeaOrm(tx) => tx.execute_unprepared(sql).await.map(|_| ())?,
            Driver::MySql(tx) => tx.connection()?.query_drop(sql).await?,
        }
        Ok(())
    }

    pub(super) async fn rows<T: Row>(&mut self, sql: &str, values: Vec<Value>) -> Result<Vec<T>, Failure> {
        match &mut self.on {
            Driver::SeaOrm(tx) => tx.rows(sql, values).await,
            Driver::MySql(tx) => tx.rows(sql, values).await,
        }
    }

    /// The first row.
    pub(super) async fn row<T: Row>(&mut self, sql: &str, values: Vec<Value>) -> Result<Option<T>, Failure> {
        match &mut self.on {
            Driver::SeaOrm(tx) => tx.row(sql, values).await,
            Driver::MySql(_) => Ok(self.rows(sql, values).await?.into_iter().next()),
        }
    }
}

impl Store {
    /// Carries out the steps in one transaction: commits when they say [`Tx::commit`], rolls back when they fail or say
    /// [`Tx::discard`]. All of it is repeated as [`Store::repeat`] does, so the steps can run more than once.
    pub(super) async fn tx<'a, T, Fut>(
        &'a self,
        name: &'static str,
        steps: impl Fn(Tx<'a>) -> Fut,
    ) -> Result<T, StoreError>
    where
        Fut: Future<Output = Result<Finished<'a, T>, Failure>>,
    {
        self.repeat(name, || self.tx_once(&steps)).await
    }

    /// One attempt of [`Self::tx`]. SQLite takes its write lock at once: a transaction that begins with a read and then
    /// writes could be refused half-way.
    pub(super) async fn tx_once<'a, T, Fut>(&'a self, steps: impl FnOnce(Tx<'a>) -> Fut) -> Result<T, Failure>
    where
        Fut: Future<Output = Result<Finished<'a, T>, Failure>>,
    {
        let options = TransactionOptions {
            sqlite_transaction_mode: Some(SqliteTransactionMode::Immediate),
            ..Default::default()
        };
        let on = Driver::SeaOrm(self.db.begin_with_options(options).await?);
        steps(Tx { store: self, on }).await?.end().await
    }

    /// One attempt of a transaction on the bulk path.
    pub(super) async fn bulk_tx_once<'a, T, Fut>(
        &'a self,
        steps: impl FnOnce(Tx<'a>) -> Fut,
    ) -> Result<T, Failure>
    where
        Fut: Future<Output = Result<Finished<'a, T>, Failure>>,
    {
        let Bulk::MySql { pool, .. } = &self.bulk else { return self.tx_once(steps).await };
        let mut connection = Lent::from(pool).await?;
        connection.connection()?.query_drop("START TRANSACTION").await?;
        steps(Tx { store: self, on: Driver::MySql(connection) }).await?.end().await
    }

    /// An operation of one statement; how many rows it changed.
    pub(super) async fn run(
        &self,
        name: &'static str,
        sql: &str,
        values: Vec<Value>,
    ) -> Result<u64, StoreError> {
        self.repeat(name, || self.db.run(sql, values.clone())).await
    }

    /// An operation of one query.
    pub(super) async fn rows<T: Row>(
        &self,
        name: &'static str,
        sql: &str,
        values: Vec<Value>,
    ) -> Result<Vec<T>, StoreError> {
        self.repeat(name, || self.db.rows(sql, values.clone())).await
    }

    /// An operation of one query for one row.
    pub(super) async fn row<T: Row>(
        &self,
        name: &'static str,
        sql: &str,
        values: Vec<Value>,
    ) -> Result<Option<T>, StoreError> {
        self.repeat(name, || self.db.row(sql, values.clone())).await
    }
}

impl<T> Finished<'_, T> {
    async fn end(self) -> Result<T, Failure> {
        match (self.tx.on, self.keep) {
            (Driver::SeaOrm(tx), true) => tx.commit().await?,
            (Driver::SeaOrm(tx), false) => tx.rollback().await?,
            (Driver::MySql(mut tx), keep) => {
                tx.connection()?.query_drop(if keep { "COMMIT" } else { "ROLLBACK" }).await?;
                tx.give_back();
            }
        }
        Ok(self.value)
    }
}

/// What an INSERT returned, or none when a unique key is taken.
pub(super) fn unless_taken<T>(inserted: Result<T, Failure>) -> Result<Option<T>, Failure> {
    match inserted {
        Err(Failure::Duplicate) => Ok(None),
        other => other.map(Some),
    }
}

/// The same values for `mysql_async`.
pub(super) fn parameters(values: Vec<Value>) -> Params {
    let value = |value| match value {
        Value::BigInt(number) => number.into(),
        Value::Bytes(bytes) => bytes.into(),
        Value::String(text) => text.into(),
        Value::ChronoDate(day) => day.into(),
        Value::ChronoDateTime(time) => time.into(),
        // No other kind is ever bound: see `Bind`.
        _ => mysql_async::Value::NULL,
    };
    match values.is_empty() {
        true => Params::Empty,
        false => Params::Positional(values.into_iter().map(value).collect()),
    }
}
