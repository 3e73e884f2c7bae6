//! The bulk path on MySQL and MariaDB: an upload's transaction and reading payloads.
//!
//! Here the rows of 5,000 keys are nearly all of a request's time, so this file uses `mysql_async` directly:
//! prepared multi-row inserts, no object per row.

use chrono::{Datelike, NaiveDateTime, NaiveTime, Timelike};
use futures_util::FutureExt;
use mysql_async::{Conn, Params, Pool, TxOpts, Value, prelude::Queryable};

use efgs_intake::{SealedKey, Usage};

use super::{
    StoredPayload,
    error::Failure,
    journal, quota,
    sql::placeholders,
    uploads::{Attempt, NewRow},
};

/// Rows in one INSERT.
pub(super) const ROWS: usize = 1000;
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

/// A connection that returns to the pool only when its operation came to its end. In every other case, also
/// when the operation is cancelled by its time limit, an answer may still be on its way, and the next user of
/// the connection would take it for its own: such a connection is closed.
struct Lent(Option<Conn>);

impl Lent {
    async fn from(pool: &Pool) -> Result<Self, Failure> {
        Ok(Self(Some(pool.get_conn().await?)))
    }

    /// Runs an operation on the connection.
    async fn run<T>(
        mut self,
        operation: impl AsyncFnOnce(&mut Conn) -> Result<T, Failure>,
    ) -> Result<T, Failure> {
        let Some(connection) = &mut self.0 else { return Err(Failure::Transient("no connection".into())) };
        let result = operation(connection).await;
        if result.is_ok() {
            drop(self.0.take());
        }
        result
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

/// One attempt to store an upload: all of it in one transaction, or nothing.
pub(super) async fn insert(pool: &Pool, row: &NewRow<'_>) -> Result<Attempt, Failure> {
    Lent::from(pool).await?.run(async |connection| insert_on(connection, row).await).await
}

async fn insert_on(connection: &mut Conn, row: &NewRow<'_>) -> Result<Attempt, Failure> {
    let NewRow { upload, known, pending, quota } = *row;
    let mut tx = connection.start_transaction(TxOpts::default()).await?;
    let row: Vec<Value> = vec![
        upload.country().as_str().into(),
        upload.tag().as_str().as_bytes().into(),
        upload.format_name().into(),
        upload.media().version.major.into(),
        upload.media().version.minor.into(),
        (upload.keys().len() as u64).into(),
        upload.payload_bytes().into(),
        upload.content_hash().as_slice().into(),
        upload.batch_signature().into(),
        upload.uploader_certificate_id().into(),
        upload.uploader_thumbprint().as_bytes().as_slice().into(),
        upload.signing_certificate_id().into(),
        upload.signing_thumbprint().as_bytes().as_slice().into(),
        datetime(upload.uploaded_at().naive_utc()),
        // NULL: the next number.
        known.map(|(id, _)| id).into(),
        known.and_then(|(_, batch)| batch).map(|batch| batch.as_bytes().to_vec()).into(),
        upload.key_id().into(),
    ];
    let inserted = tx
        .exec_drop(
            "INSERT INTO upload (country, upload_tag, format, format_major, format_minor, amount, payload_bytes, content_hash, \
             batch_signature, uploader_certificate_id, uploader_thumbprint, signing_certificate_id, \
             signing_thumbprint, uploaded_at, id, batch_id, key_id) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            Params::Positional(row),
        )
        .await;
    match inserted.map_err(Failure::from) {
        Ok(()) => {}
        Err(Failure::Duplicate) => {
            tx.rollback().await?;
            return Ok(Attempt::TagTaken);
        }
        Err(failure) => return Err(failure),
    }
    let id = known.map(|(id, _)| id).or_else(|| tx.last_insert_id().and_then(|id| i64::try_from(id).ok()));
    let Some(id) = id else {
        return Err(Failure::Permanent("the database gave the upload no number".into()));
    };
    for rows in chunks(upload.keys()) {
        let mut values = Vec::with_capacity(rows.len() * 5);
        for key in rows {
            values.extend([
                id.into(),
                key.position.into(),
                key.payload_hash.as_slice().into(),
                key.report_type.into(),
                key.payload.as_slice().into(),
            ]);
        }
        let rows = vec!["(?,?,?,?,?)"; rows.len()].join(",");
        let sql = format!(
            "INSERT INTO diagnosis_key (upload_id, position, payload_hash, report_type, payload) VALUES {rows}"
        );
        match tx.exec_drop(sql, Params::Positional(values)).await.map_err(Failure::from) {
            Ok(()) => {}
            Err(Failure::Duplicate) => {
                tx.rollback().await?;
                return Ok(Attempt::KeyTaken);
            }
            Err(failure) => return Err(failure),
        }
    }
    if pending {
        tx.exec_drop(journal::PENDING_UPLOAD, (id,)).await?;
    }
    // Last, so that uploads of one country wait for each other's commit only.
    let country = upload.country();
    let country = country.as_str();
    let day = datetime(upload.uploaded_at().date_naive().and_time(NaiveTime::MIN));
    let Usage { keys, bytes } = upload.usage();
    tx.exec_drop(quota::ADD_MYSQL, (country, &day, keys, bytes, keys, bytes)).await?;
    let used = tx.exec_first(quota::READ, (country, &day)).await?;
    let used = used.ok_or_else(|| Failure::Permanent("the row of the quota is gone".into()))?;
    if let Some(before) = quota::exceeded(used, upload, quota) {
        tx.rollback().await?;
        return Ok(Attempt::OverQuota(before));
    }
    tx.commit().await?;
    Ok(Attempt::Stored(id))
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

/// The payloads of some uploads, in the order of upload and position.
pub(super) async fn payloads(pool: &Pool, uploads: &[i64]) -> Result<Vec<StoredPayload>, Failure> {
    let sql = format!(
        "SELECT upload_id, payload_hash, payload FROM diagnosis_key WHERE upload_id IN ({}) ORDER BY upload_id, position",
        placeholders(uploads.len())
    );
    let ids = Params::Positional(uploads.iter().map(|id| Value::from(*id)).collect());
    let row = |(upload_id, payload_hash, payload)| StoredPayload { upload_id, payload_hash, payload };
    Lent::from(pool).await?.run(async |connection| Ok(connection.exec_map(sql, ids, row).await?)).await
}

/// Carries out statements in one transaction and one round trip.
pub(super) async fn transaction(pool: &Pool, statements: &[String]) -> Result<(), Failure> {
    let sql = format!("BEGIN;{};COMMIT", statements.join(";"));
    Lent::from(pool).await?.run(async |connection| Ok(connection.query_drop(sql).await?)).await
}

/// A DATETIME(6).
fn datetime(t: NaiveDateTime) -> Value {
    Value::Date(
        u16::try_from(t.year()).unwrap_or(0),
        t.month() as u8,
        t.day() as u8,
        t.hour() as u8,
        t.minute() as u8,
        t.second() as u8,
        t.nanosecond() / 1000,
    )
}
