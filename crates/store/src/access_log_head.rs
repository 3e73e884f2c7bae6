//! Statements about the access log.

use chrono::{DateTime, Utc};
use sea_orm::Value;

use super::{
    Lease, Store, StoreError,
    access_log::STEP,
    error::Failure,
    row::{Cells, Row, Table, values},
    tx::{Queries, unless_taken},
};
use efgs_access_log::{Hash, SignedStatement, Signer, Statement, digest, hex};

/// Where a statement is in the list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StatementPosition {
    /// Its number, from 1.
    pub number: i64,
    /// The hash by which the next one names it.
    pub digest: Hash,
}

/// What stood before a statement when it was put into the list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Appended {
    /// Where the statement is.
    pub place: StatementPosition,
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
        seen: Option<StatementPosition>,
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
                    before = Some(StatementPosition { number: end.max(seen.number), ..seen });
                }
            }
            let mut new = new.clone();
            new.number = 1;
            if let Some(before) = before {
                new.number = before.number + 1;
                new.previous = hex(&before.digest);
            }
            let text = new.text();
            let place = StatementPosition { number: new.number, digest: digest(&text) };
            let signed = match signer {
                Some(signer) => signer.sign(text).map_err(|e| Failure::Permanent(e.to_string()))?,
                None => SignedStatement { statement: text, key_id: None, signature: None },
            };
            let row = StoredStatement {
                number: new.number,
                instance: new.instance,
                sequence: new.sequence,
                kind: new.kind.as_str().to_owned(),
                at: Some(new.at.parse().unwrap_or_default()),
                signed,
            };
            let sql = StoredStatement::insert(1);
            match unless_taken(self.db.run(&sql, row.values()).await)? {
                Some(_) => Ok(Appended { place, behind_signed: newest.map(|(_, signed)| signed), broken }),
                None => Err(Failure::Transient("another instance has just taken that place".into())),
            }
        })
        .await
    }

    /// The last statement up to a number, and whether it is signed.
    async fn placed(&self, up_to: i64) -> Result<Option<(StatementPosition, bool)>, Failure> {
        let sql = "SELECT number, statement, key_id FROM access_log_head WHERE number <= ? ORDER BY number DESC LIMIT 1";
        let row: Option<(i64, String, Option<String>)> = self.db.row(sql, values![up_to]).await?;
        Ok(row.map(|(number, statement, key)| {
            (StatementPosition { number, digest: digest(&statement) }, key.is_some())
        }))
    }

    /// The next statements, from number `from` on.
    pub async fn statements_from(&self, from: i64, limit: u32) -> Result<Vec<StoredStatement>, StoreError> {
        let sql = "WHERE number >= ? ORDER BY number LIMIT ?";
        self.statements(sql, values![from, limit]).await
    }

    /// The next heads of an instance, of records from `from` on.
    pub async fn heads_of(
        &self,
        instance: &str,
        from: i64,
        after: i64,
        limit: u32,
    ) -> Result<Vec<StoredStatement>, StoreError> {
        let sql = "WHERE instance = ? AND kind IN ('head', 'end') AND \
                   (sequence > ? OR (sequence = ? AND number > ?)) ORDER BY sequence, number LIMIT ?";
        self.statements(sql, values![instance, from, from, after, limit]).await
    }

    /// The last cuts of an instance's chain, the one that goes furthest first.
    pub async fn newest_cuts(&self, instance: &str, limit: u32) -> Result<Vec<StoredStatement>, StoreError> {
        let sql = "WHERE instance = ? AND kind = 'cut' ORDER BY sequence DESC, number DESC LIMIT ?";
        self.statements(sql, values![instance, limit]).await
    }

    /// The last trims, the newest first.
    pub async fn newest_trims(&self, limit: u32) -> Result<Vec<StoredStatement>, StoreError> {
        let sql = "WHERE kind = 'trim' ORDER BY number DESC LIMIT ?";
        self.statements(sql, values![limit]).await
    }

    /// Whether a statement from number `from` on says that an instance's chain has begun or moved on.
    pub async fn is_named_from(&self, instance: &str, from: i64) -> Result<bool, StoreError> {
        let sql = "WHERE instance = ? AND number >= ? AND kind IN ('start', 'head', 'end') LIMIT 1";
        Ok(!self.statements(sql, values![instance, from]).await?.is_empty())
    }

    async fn statements(&self, sql: &str, values: Vec<Value>) -> Result<Vec<StoredStatement>, StoreError> {
        self.rows("read statements of the access log", &StoredStatement::select(sql), values).await
    }

    /// Deletes some of the statements before a number, the first ones first. Call it until it says 0.
    pub async fn forget_statements(&self, lease: &Lease, before: i64) -> Result<u64, StoreError> {
        self.tx("forget statements", |mut tx| async move {
            tx.fence(lease).await?;
            let first: Option<i64> =
                tx.row("SELECT MIN(number) FROM access_log_head", values![]).await?.flatten();
            let Some(first) = first.filter(|first| *first < before) else { return Ok(tx.commit(0)) };
            let sql = "DELETE FROM access_log_head WHERE number < ?";
            let deleted = tx.run(sql, values![before.min(first.saturating_add(STEP))]).await?;
            Ok(tx.commit(deleted))
        })
        .await
    }
}

impl Table for StoredStatement {
    const TABLE: &'static str = "access_log_head";
    fn columns() -> String {
        "number, instance, sequence, kind, at, statement, key_id, signature".to_owned()
    }

    fn values(self) -> Vec<Value> {
        let (at, signed) = (self.at.unwrap_or_default().timestamp_micros(), self.signed);
        let (text, key, signature) = (signed.statement, signed.key_id, signed.signature);
        values![self.number, self.instance, self.sequence, self.kind, at, text, key, signature]
    }
}

impl Row for StoredStatement {
    fn read(cells: &mut Cells) -> Result<Self, Failure> {
        Ok(Self {
            number: cells.next()?,
            instance: cells.next()?,
            sequence: cells.next()?,
            kind: cells.next()?,
            at: DateTime::from_timestamp_micros(cells.next()?),
            signed: SignedStatement {
                statement: cells.next()?,
                key_id: cells.next()?,
                signature: cells.next()?,
            },
        })
    }
}
