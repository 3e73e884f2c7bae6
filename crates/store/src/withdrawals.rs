//! Withdrawing uploads, and what an operator may see of them.

use std::{
    collections::HashSet,
    sync::atomic::{AtomicBool, Ordering},
};

use super::{
    PendingWithdrawal, Store, StoreError,
    error::Failure,
    journal,
    row::{Bind, Cells, Row, Table, Utf8, values},
    sql,
    tx::{Queries, unless_taken},
};
use chrono::{DateTime, Utc};
use efgs_protocol::country::Country;

/// Condition for the uploads that a batch may take in: not the withdrawn ones.
pub(super) const NOT_WITHDRAWN: &str = "id NOT IN (SELECT upload_id FROM withdrawal)";

/// Who withdraws an upload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WithdrawnBy {
    /// The country that made it, through the API.
    Country,
    /// The operator, by a command.
    Operator,
}

impl WithdrawnBy {
    fn as_str(self) -> &'static str {
        match self {
            Self::Country => "country",
            Self::Operator => "operator",
        }
    }
}

/// What became of a withdrawal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Withdrawal {
    /// The upload is withdrawn now.
    Done {
        /// Keys in it.
        keys: u32,
    },
    /// It had been withdrawn before; nothing was changed.
    Already,
    /// The country has no upload with this tag.
    Unknown,
}

/// An upload as an operator sees it; no keys.
#[derive(Clone, Debug)]
pub struct ListedUpload {
    /// The upload's row.
    pub id: i64,
    /// Whose upload it is.
    pub country: String,
    /// The country's name for it.
    pub tag: String,
    /// How many keys it has.
    pub amount: u32,
    /// When it came.
    pub uploaded_at: DateTime<Utc>,
    /// ObjectId of its batch, in hexadecimal, once it is in one.
    pub batch: Option<String>,
    /// When it was withdrawn, by whom, and why.
    pub withdrawn: Option<(DateTime<Utc>, String, String)>,
}

impl Store {
    /// Withdraws an upload. Its tag and its keys stay taken until they expire.
    pub async fn withdraw(
        &self,
        country: Country,
        tag: &str,
        by: WithdrawnBy,
        reason: &str,
        now: DateTime<Utc>,
    ) -> Result<Withdrawal, StoreError> {
        // After an attempt whose outcome is not known, what is found may be this very withdrawal.
        let unsure = AtomicBool::new(false);
        self.repeat("withdraw", || async {
            let earlier = unsure.swap(true, Ordering::Relaxed);
            let Some(found) = self.upload_of(country, tag).await? else { return Ok(Withdrawal::Unknown) };
            let keys = found.amount;
            let row = PendingWithdrawal {
                upload_id: found.id,
                country: found.country,
                tag: found.tag,
                amount: keys,
                at: now,
                by: by.as_str().to_owned(),
                reason: reason.to_owned(),
            };
            let done = self.tx_once(|mut tx| async move {
                if unless_taken(tx.insert_all([row].into_iter()).await)?.is_none() {
                    return Ok(tx.discard(false));
                }
                if self.journal {
                    tx.await_journal(journal::PENDING_WITHDRAWAL, found.id).await?;
                }
                Ok(tx.commit(true))
            });
            if done.await? {
                return Ok(Withdrawal::Done { keys });
            }
            let ours = earlier && self.withdrawal_of(found.id).await?.is_some_and(|there| there.at == now);
            Ok(if ours { Withdrawal::Done { keys } } else { Withdrawal::Already })
        })
        .await
    }

    /// The withdrawal of an upload, if it was withdrawn.
    pub(super) async fn withdrawal_of(&self, upload: i64) -> Result<Option<PendingWithdrawal>, Failure> {
        self.db.row(&PendingWithdrawal::select("WHERE upload_id = ?"), values![upload]).await
    }

    /// All uploads that are stored but withdrawn: few.
    pub async fn withdrawn_uploads(&self) -> Result<HashSet<i64>, StoreError> {
        let sql = "SELECT w.upload_id FROM withdrawal w JOIN upload u ON u.id = w.upload_id";
        Ok(self.rows("list withdrawals", sql, values![]).await?.into_iter().collect())
    }

    /// Those of these uploads that are stored.
    pub async fn existing_uploads(&self, uploads: &[i64]) -> Result<Vec<i64>, StoreError> {
        if uploads.is_empty() {
            return Ok(Vec::new());
        }
        let sql = format!("SELECT id FROM upload WHERE id IN ({})", sql::placeholders(uploads.len()));
        self.rows("find uploads", &sql, uploads.iter().map(|id| id.bind()).collect()).await
    }

    /// The newest uploads of a country (or of all), with the tag given only that one.
    pub async fn uploads(
        &self,
        country: Option<Country>,
        tag: Option<&str>,
        limit: u32,
    ) -> Result<Vec<ListedUpload>, StoreError> {
        let mut sql = "SELECT u.id, u.country, u.upload_tag, u.amount, u.uploaded_at, u.batch_id, w.withdrawn_at, \
                       w.withdrawn_by, w.reason FROM upload u LEFT JOIN withdrawal w ON w.upload_id = u.id WHERE 1 = 1"
            .to_owned();
        let mut values = Vec::new();
        if let Some(country) = country {
            sql += " AND u.country = ?";
            values.push(country.bind());
        }
        if let Some(tag) = tag {
            sql += " AND u.upload_tag = ?";
            values.push(tag.as_bytes().bind());
        }
        sql += " ORDER BY u.id DESC LIMIT ?";
        values.push(limit.bind());
        self.rows("list uploads", &sql, values).await
    }
}

impl Row for ListedUpload {
    fn read(cells: &mut Cells) -> Result<Self, Failure> {
        Ok(Self {
            id: cells.next()?,
            country: cells.next()?,
            tag: cells.next::<Utf8>()?.into(),
            amount: cells.next()?,
            uploaded_at: cells.next()?,
            batch: cells.next::<Option<Vec<u8>>>()?.map(|id| efgs_access_log::hex(&id)),
            withdrawn: match cells.next()? {
                Some(at) => Some((at, cells.next()?, cells.next()?)),
                None => None,
            },
        })
    }
}
