//! The bulk path on MySQL and MariaDB: the connections on which uploads are stored and payloads are read.
//!
//! There the rows of 5,000 keys take nearly all of a request's time, so these connections are of `mysql_async`.

use futures_util::FutureExt;
use mysql_async::{Conn, Pool, prelude::Queryable};
use sea_orm::Value;

use efgs_intake::SealedKey;

use super::{error::Failure, row::Row, tx::parameters};

/// Rows in one INSERT: more take longer, measured on MySQL with the hashes beside.
pub(super) const ROWS: usize = 500;
/// Hashes in one INSERT.
pub(super) const HASHES: usize = 2500;
/// Bytes in one INSERT, so that it fits a packet of every server.
pub(super) const BYTES: usize = 1 << 20;

/// Which driver does the bulk work.
#[derive(Clone)]
pub(super) enum Bulk {
    MySql {
        pool: Pool,
        /// Connections that there may be.
        max: usize,
    },
    /// The same connections as everything else.
    Sqlite,
}

impl Bulk {
    pub(super) async fn close(self) {
        if let Self::MySql { pool, .. } = self
            && let Err(error) = pool.disconnect().await
        {
            tracing::debug!(%error, "a database connection did not close cleanly");
        }
    }
}

/// A connection that returns to the pool only when it is given back, which is the end of a successful operation. In
/// every other case, also when the operation is cancelled by its time limit, an answer may still be on its way, and the
/// next user of the connection would take it for its own: such a connection is closed.
pub(super) struct Lent(Option<Conn>);

impl Lent {
    pub(super) async fn from(pool: &Pool) -> Result<Self, Failure> {
        Ok(Self(Some(pool.get_conn().await?)))
    }

    pub(super) fn give_back(mut self) {
        drop(self.0.take());
    }

    pub(super) fn connection(&mut self) -> Result<&mut Conn, Failure> {
        self.0.as_mut().ok_or_else(|| Failure::Transient("no connection".into()))
    }

    /// The rows of a query, each read as it comes.
    pub(super) async fn rows<T: Row>(&mut self, sql: &str, values: Vec<Value>) -> Result<Vec<T>, Failure> {
        let read = |row: mysql_async::Row| T::read(&mut row.into());
        self.connection()?.exec_map(sql, parameters(values), read).await?.into_iter().collect()
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        if let Some(connection) = self.0.take() {
            // The first step of it, which is all that can be done here, marks it as unusable.
            drop(connection.disconnect().now_or_never());
        }
    }
}

/// Cuts rows into pieces of at most [`ROWS`] rows and about [`BYTES`] bytes; a larger row goes alone.
pub(super) fn chunks(mut keys: &[SealedKey]) -> impl Iterator<Item = &[SealedKey]> {
    std::iter::from_fn(move || {
        let mut bytes = 0;
        let fits = keys.iter().take(ROWS).take_while(|key| {
            bytes += key.payload.len() + 64;
            bytes <= BYTES
        });
        let (chunk, rest) = keys.split_at(fits.count().max(1).min(keys.len()));
        keys = rest;
        (!chunk.is_empty()).then_some(chunk)
    })
}

/// Carries out statements in one transaction and one round trip.
pub(super) async fn transaction(pool: &Pool, statements: &[String]) -> Result<(), Failure> {
    let sql = format!("BEGIN;{};COMMIT", statements.join(";"));
    let mut lent = Lent::from(pool).await?;
    lent.connection()?.query_drop(sql).await?;
    lent.give_back();
    Ok(())
}
