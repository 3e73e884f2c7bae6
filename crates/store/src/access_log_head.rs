//! Statements about the access log.

use chrono::{DateTime, Utc};
use sea_orm::{ConnectionTrait, QueryResult, Value};

use super::{Lease, Store, StoreError, access_log::STEP, error::Failure};
use efgs_access_log::{Hash, SignedStatement, Signer, Statement, digest, hex};

/// A statement's place in the list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// Its number, from 1.
    pub number: i64,
    /// The hash by which the next one names it.
    pub digest: Hash,
}

/// What stood before a statement when it was put into the list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Appended {
    /// Where the statement is.
    pub place: Place,
    /// Whether the one before it is signed; none when there is none.
    pub behind_signed: Option<bool>,
    /// Whether a statement that this instance has seen is not there any more.
    pub broken: bool,
}

/// A row of the statements.
#[derive(Clone, Debug)]
pub struct StoredStatement {
    /// Columns that repeat what the statement says.
    pub number: i64,
    /// See [`Self::number`].
    pub instance: String,
    /// See [`Self::number`].
    pub sequence: i64,
    /// See [`Self::number`].
    pub kind: String,
    /// See [`Self::number`].
    pub at: Option<DateTime<Utc>>,
    /// The statement.
    pub signed: SignedStatement,
}

impl Store {
    /// Puts a statement at the end of the list, signed if there is somebody to sign. When `seen`, a statement that was
    /// in the list, is not there any more, the new one follows that one all the same: with its number when the list ends
    /// before it now, and always with its hash, so that everybody sees the gap, or that others have filled it.
    pub async fn append_statement(
        &self,
        signer: Option<&Signer>,
        new: &Statement,
        seen: Option<Place>,
    ) -> Result<Appended, StoreError> {
        self.repeat("state of the access log", || async {
            let newest = self.placed(i64::MAX).await?;
            let mut before = newest.map(|(place, _)| place);
            let mut broken = false;
            if let Some(seen) = seen {
                let end = before.map_or(0, |before| before.number);
                // None is left up to there when the retention has been at work.
                let there = self.placed(seen.number).await?.is_none_or(|(place, _)| place == seen);
                broken = end < seen.number || !there;
                if broken {
                    before = Some(Place { number: end.max(seen.number), ..seen });
                }
            }
            let mut new = new.clone();
            new.number = 1;
            if let Some(before) = before {
                new.number = before.number + 1;
                new.previous = hex(&before.digest);
            }
            let text = new.text();
            let place = Place { number: new.number, digest: digest(&text) };
            let signed = match signer {
                Some(signer) => signer.sign(text).map_err(|e| Failure::Permanent(e.to_string()))?,
                None => SignedStatement { statement: text, key_id: None, signature: None },
            };
            let at: Option<DateTime<Utc>> = new.at.parse().ok();
            let sql = "INSERT INTO access_log_head (number, instance, sequence, kind, at, statement, key_id, signature) \
                       VALUES (?, ?, ?, ?, ?, ?, ?, ?)";
            let values = [
                new.number.into(),
                new.instance.as_str().into(),
                new.sequence.into(),
                new.kind.as_str().into(),
                at.map_or(0, |at| at.timestamp_micros()).into(),
                signed.statement.into(),
                signed.key_id.into(),
                signed.signature.into(),
            ];
            match self.db.execute_raw(self.statement(sql, values)).await.map_err(Failure::from) {
                Ok(_) => Ok(Appended { place, behind_signed: newest.map(|(_, signed)| signed), broken }),
                Err(Failure::Duplicate) => {
                    Err(Failure::Transient("another instance has just taken that place".into()))
                }
                Err(failure) => Err(failure),
            }
        })
        .await
    }

    /// The last statement up to a number, and whether it is signed.
    async fn placed(&self, up_to: i64) -> Result<Option<(Place, bool)>, Failure> {
        let sql = "SELECT number, statement, key_id FROM access_log_head WHERE number <= ? ORDER BY number DESC LIMIT 1";
        let row = self.db.query_one_raw(self.statement(sql, [up_to.into()])).await?;
        let read = |row: QueryResult| {
            let digest = digest(&row.try_get::<String>("", "statement")?);
            let signed = row.try_get::<Option<String>>("", "key_id")?.is_some();
            Ok((Place { number: row.try_get("", "number")?, digest }, signed))
        };
        row.map(read).transpose()
    }

    /// The next statements, from number `from` on.
    pub async fn statements_from(&self, from: i64, limit: u32) -> Result<Vec<StoredStatement>, StoreError> {
        let sql = "SELECT * FROM access_log_head WHERE number >= ? ORDER BY number LIMIT ?";
        self.statements(sql, &[from.into(), limit.into()]).await
    }

    /// The next heads of an instance, of records from `from` on.
    pub async fn heads_of(
        &self,
        instance: &str,
        from: i64,
        after: i64,
        limit: u32,
    ) -> Result<Vec<StoredStatement>, StoreError> {
        let sql = "SELECT * FROM access_log_head WHERE instance = ? AND kind = 'head' AND \
                   (sequence > ? OR (sequence = ? AND number > ?)) ORDER BY sequence, number LIMIT ?";
        self.statements(sql, &[instance.into(), from.into(), from.into(), after.into(), limit.into()]).await
    }

    /// The last cuts of an instance's chain, the one that goes furthest first.
    pub async fn newest_cuts(&self, instance: &str, limit: u32) -> Result<Vec<StoredStatement>, StoreError> {
        let sql = "SELECT * FROM access_log_head WHERE instance = ? AND kind = 'cut' ORDER BY sequence DESC, number DESC LIMIT ?";
        self.statements(sql, &[instance.into(), limit.into()]).await
    }

    /// The last trims, the newest first.
    pub async fn newest_trims(&self, limit: u32) -> Result<Vec<StoredStatement>, StoreError> {
        let sql = "SELECT * FROM access_log_head WHERE kind = 'trim' ORDER BY number DESC LIMIT ?";
        self.statements(sql, &[limit.into()]).await
    }

    /// Whether a statement from number `from` on says that an instance's chain has begun or moved on.
    pub async fn is_named_from(&self, instance: &str, from: i64) -> Result<bool, StoreError> {
        let sql = "SELECT * FROM access_log_head WHERE instance = ? AND number >= ? AND kind IN ('start', 'head') LIMIT 1";
        Ok(!self.statements(sql, &[instance.into(), from.into()]).await?.is_empty())
    }

    async fn statements(&self, sql: &str, values: &[Value]) -> Result<Vec<StoredStatement>, StoreError> {
        self.repeat("read statements of the access log", || async {
            let rows = self.db.query_all_raw(self.statement(sql, values.to_vec())).await?;
            let row = |row: &QueryResult| {
                Ok::<_, Failure>(StoredStatement {
                    number: row.try_get("", "number")?,
                    instance: row.try_get("", "instance")?,
                    sequence: row.try_get("", "sequence")?,
                    kind: row.try_get("", "kind")?,
                    at: DateTime::from_timestamp_micros(row.try_get("", "at")?),
                    signed: SignedStatement {
                        statement: row.try_get("", "statement")?,
                        key_id: row.try_get("", "key_id")?,
                        signature: row.try_get("", "signature")?,
                    },
                })
            };
            rows.iter().map(row).collect()
        })
        .await
    }

    /// Deletes some of the statements before a number, the first ones first. Call it until it says 0.
    pub async fn forget_statements(&self, lease: &Lease, before: i64) -> Result<u64, StoreError> {
        self.repeat("forget statements", || async {
            let tx = self.begin().await?;
            self.fence(&tx, lease).await?;
            let row = tx
                .query_one_raw(self.statement("SELECT MIN(number) AS first FROM access_log_head", []))
                .await?;
            let first: Option<i64> = row.map(|row| row.try_get("", "first")).transpose()?.flatten();
            let mut deleted = 0;
            if let Some(first) = first.filter(|first| *first < before) {
                let sql = "DELETE FROM access_log_head WHERE number < ?";
                let end = before.min(first.saturating_add(STEP));
                deleted = tx.execute_raw(self.statement(sql, [end.into()])).await?.rows_affected();
            }
            tx.commit().await?;
            Ok(deleted)
        })
        .await
    }
}
