//! What is not in the journal yet.
//!
//! Whatever is stored while a journal is configured gets a row in a pending table, in the same transaction; the
//! row goes when the journal has it. So the journal never has what the database has not, and what crashed in
//! between is found.

use chrono::{DateTime, NaiveDate, NaiveDateTime, NaiveTime, Utc};
use efgs_protocol::batch_tag::ObjectId;
use sea_orm::{
    ColumnTrait, Condition, ConnectionTrait, EntityTrait, ExprTrait, QueryFilter, QueryOrder, QueryResult,
    QuerySelect, Value,
    sea_query::{Expr, Query, SelectStatement},
};

use super::{
    Lease, Store, StoreError,
    batches::parse_id,
    entity::{batch, upload, withdrawal},
    error::Failure,
    sql::placeholders,
};
use efgs_intake::VerifiedUpload;

pub(super) const PENDING_UPLOAD: &str =
    "INSERT INTO journal_pending_upload (upload_id, hold) VALUES (?, TRUE)";
pub(super) const PENDING_BATCH: &str = "INSERT INTO journal_pending_batch (batch_id, hold) VALUES (?, TRUE)";
pub(super) const PENDING_WITHDRAWAL: &str = "INSERT INTO journal_pending_withdrawal (upload_id) VALUES (?)";

/// An upload's row, without its keys.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JournalUpload {
    /// Its number.
    pub id: i64,
    /// Whose it is.
    pub country: String,
    /// The country's name for it.
    pub tag: String,
    /// `protobuf` or `json`.
    pub format: String,
    /// Major version of the format.
    pub format_major: u16,
    /// Minor version of the format.
    pub format_minor: u16,
    /// How many keys it has.
    pub amount: u32,
    /// SHA-256 of the signed bytes.
    pub content_hash: Vec<u8>,
    /// The signature, as received.
    pub batch_signature: String,
    /// Number of the certificate that let the caller in.
    pub uploader_certificate_id: i64,
    /// Thumbprint of the certificate that the caller showed.
    pub uploader_thumbprint: Vec<u8>,
    /// Number of the certificate that let the signer in.
    pub signing_certificate_id: i64,
    /// Thumbprint of the certificate that signed.
    pub signing_thumbprint: Vec<u8>,
    /// When it arrived.
    pub uploaded_at: DateTime<Utc>,
}

/// A batch's row, and what is in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PendingBatch {
    /// The ObjectId.
    pub id: ObjectId,
    /// The UTC day it was formed on.
    pub day: NaiveDate,
    /// Its number on that day.
    pub sequence: u32,
    /// Major version of its format.
    pub format_major: u16,
    /// How many keys it had when it was formed.
    pub amount: u32,
    /// When.
    pub formed_at: DateTime<Utc>,
    /// Number and content hash of each upload, withdrawn or not, in their order.
    pub uploads: Vec<(i64, Vec<u8>)>,
}

/// A withdrawal's row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PendingWithdrawal {
    /// Number of the upload.
    pub upload_id: i64,
    /// Whose upload it was.
    pub country: String,
    /// The country's name for it.
    pub tag: String,
    /// How many keys it had.
    pub amount: u32,
    /// When it was withdrawn.
    pub at: DateTime<Utc>,
    /// `country` or `operator`.
    pub by: String,
    /// Why.
    pub reason: String,
}

/// What has been written to the journal.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Journaled {
    /// Numbers of uploads.
    pub uploads: Vec<i64>,
    /// Batches.
    pub batches: Vec<ObjectId>,
    /// Numbers of uploads that were withdrawn.
    pub withdrawals: Vec<i64>,
}

impl Store {
    /// Some uploads that are not in the journal and arrived before `before`: those behind the number `after`, in the
    /// order of their numbers.
    pub async fn unjournaled_uploads(
        &self,
        before: DateTime<Utc>,
        after: i64,
        limit: u64,
    ) -> Result<Vec<JournalUpload>, StoreError> {
        self.repeat("uploads for the journal", || async {
            let rows = upload::Entity::find()
                .filter(upload::Column::Id.in_subquery(pending_uploads(false)))
                .filter(upload::Column::UploadedAt.lt(before.naive_utc()))
                .filter(upload::Column::Id.gt(after))
                .order_by_asc(upload::Column::Id)
                .limit(limit)
                .all(&self.db)
                .await?;
            Ok(rows.into_iter().map(JournalUpload::from).collect())
        })
        .await
    }

    /// An upload, unless the journal has it.
    pub async fn unjournaled_upload(&self, id: i64) -> Result<Option<JournalUpload>, StoreError> {
        self.repeat("upload for the journal", || async {
            let pending = upload::Column::Id.in_subquery(pending_uploads(false));
            let row = upload::Entity::find_by_id(id).filter(pending).one(&self.db).await?;
            Ok(row.map(JournalUpload::from))
        })
        .await
    }

    /// Whether an upload is there, has not been withdrawn, and has not expired: was uploaded or put into a batch on
    /// `oldest` or later.
    pub async fn is_wanted(&self, upload: i64, oldest: NaiveDate) -> Result<bool, StoreError> {
        self.repeat("look for an upload", || async {
            let sql = "SELECT 1 AS there FROM upload u LEFT JOIN batch b ON b.id = u.batch_id WHERE u.id = ? \
                       AND NOT EXISTS (SELECT 1 FROM withdrawal w WHERE w.upload_id = u.id) \
                       AND (b.day >= ? OR (u.batch_id IS NULL AND u.uploaded_at >= ?))";
            let values = [upload.into(), oldest.into(), oldest.and_time(NaiveTime::MIN).into()];
            Ok(self.db.query_one_raw(self.statement(sql, values)).await?.is_some())
        })
        .await
    }

    /// Puts payloads of the same keys, sealed anew, in the place of those of an upload; each is found by its hash.
    pub async fn mend_payloads(&self, upload: i64, sent: &VerifiedUpload) -> Result<(), StoreError> {
        let payloads: Vec<_> =
            sent.keys().iter().map(|key| (key.payload_hash.as_slice(), key.payload.as_slice())).collect();
        self.repeat("mend payloads", || async {
            let tx = self.begin().await?;
            self.replace_on(&tx, upload, sent.key_id(), &payloads).await?;
            Ok(tx.commit().await?)
        })
        .await
    }

    /// A step of a job that writes nothing to the database itself: proves that its lease still holds, and prolongs it.
    pub async fn prolong(&self, lease: &Lease) -> Result<(), StoreError> {
        self.repeat("prolong lease", || self.fence(&self.db, lease)).await
    }

    /// All batches that are not in the journal, in order, a limited number at a time.
    pub async fn unjournaled_batches(&self, limit: u64) -> Result<Vec<PendingBatch>, StoreError> {
        self.repeat("batches for the journal", || async {
            let pending = Query::select().column("batch_id").from("journal_pending_batch").to_owned();
            let rows = batch::Entity::find()
                .filter(batch::Column::Id.in_subquery(pending))
                .order_by_asc(batch::Column::Id)
                .limit(limit)
                .all(&self.db)
                .await?;
            let mut batches = Vec::with_capacity(rows.len());
            for row in rows {
                let uploads = upload::Entity::find()
                    .select_only()
                    .columns([upload::Column::Id, upload::Column::ContentHash])
                    .filter(upload::Column::BatchId.eq(row.id.clone()))
                    .order_by_asc(upload::Column::Id)
                    .into_tuple()
                    .all(&self.db)
                    .await?;
                batches.push(PendingBatch {
                    id: parse_id(&row.id)?,
                    day: row.day,
                    sequence: row.sequence as u32,
                    format_major: row.format_major as u16,
                    amount: row.amount as u32,
                    formed_at: row.formed_at.and_utc(),
                    uploads,
                });
            }
            Ok(batches)
        })
        .await
    }

    /// All withdrawals that are not in the journal, a limited number at a time.
    pub async fn unjournaled_withdrawals(&self, limit: u64) -> Result<Vec<PendingWithdrawal>, StoreError> {
        self.repeat("withdrawals for the journal", || async {
            let pending = Query::select().column("upload_id").from("journal_pending_withdrawal").to_owned();
            let rows = withdrawal::Entity::find()
                .filter(withdrawal::Column::UploadId.in_subquery(pending))
                .order_by_asc(withdrawal::Column::UploadId)
                .limit(limit)
                .all(&self.db)
                .await?;
            Ok(rows.into_iter().map(PendingWithdrawal::from).collect())
        })
        .await
    }

    /// Whether anything waits for the journal.
    pub async fn awaits_journal(&self) -> Result<bool, StoreError> {
        self.repeat("journal backlog", || async {
            let sql = "SELECT EXISTS(SELECT 1 FROM journal_pending_upload) + EXISTS(SELECT 1 FROM journal_pending_batch) \
                       + EXISTS(SELECT 1 FROM journal_pending_withdrawal) AS waits";
            let row = self.db.query_one_raw(self.statement(sql, [])).await?;
            Ok(row.map(|row| row.try_get::<i64>("", "waits")).transpose()?.is_some_and(|waits| waits > 0))
        })
        .await
    }

    /// Notes that these are in the journal.
    pub async fn journaled(&self, done: &Journaled) -> Result<(), StoreError> {
        self.repeat("journaled", || async {
            let numbers = |ids: &[i64]| ids.iter().map(|id| Value::from(*id)).collect::<Vec<_>>();
            let batches = done.batches.iter().map(|id| Value::from(id.as_bytes().to_vec())).collect();
            for (table, column, ids) in [
                ("journal_pending_upload", "upload_id", numbers(&done.uploads)),
                ("journal_pending_batch", "batch_id", batches),
                ("journal_pending_withdrawal", "upload_id", numbers(&done.withdrawals)),
            ] {
                for ids in ids.chunks(1000) {
                    let sql = format!("DELETE FROM {table} WHERE {column} IN ({})", placeholders(ids.len()));
                    self.db.execute_raw(self.statement(&sql, ids.to_vec())).await?;
                }
            }
            Ok(())
        })
        .await
    }

    /// Has everything that is stored written to the journal (again, if it is in it); none of it is held back.
    pub async fn journal_everything(&self) -> Result<u64, StoreError> {
        self.repeat("journal everything", || async {
            let tx = self.begin().await?;
            let rows = self.await_everything(&tx).await?;
            tx.commit().await?;
            Ok(rows)
        })
        .await
    }

    pub(super) async fn await_everything(&self, on: &impl ConnectionTrait) -> Result<u64, Failure> {
        let mut rows = 0;
        for what in [
            "journal_pending_upload (upload_id, hold) SELECT id, FALSE FROM upload",
            "journal_pending_batch (batch_id, hold) SELECT id, FALSE FROM batch",
            "journal_pending_withdrawal (upload_id) SELECT upload_id FROM withdrawal",
        ] {
            let sql = format!("{} INTO {what}", self.insert_ignore());
            rows += on.execute_raw(self.statement(&sql, [])).await?.rows_affected();
        }
        Ok(rows)
    }

    /// Has those uploads of a batch written to the journal again whose files would be forgotten before the batch is:
    /// a file is kept for a day more than the batches of its day.
    pub(super) async fn journal_old_uploads(
        &self,
        on: &impl ConnectionTrait,
        batch: ObjectId,
        day: NaiveDate,
    ) -> Result<(), Failure> {
        let sql = format!(
            "{} INTO journal_pending_upload (upload_id, hold) SELECT id, FALSE FROM upload \
             WHERE batch_id = ? AND uploaded_at < ?",
            self.insert_ignore()
        );
        let yesterday = day.pred_opt().unwrap_or(day).and_time(NaiveTime::MIN);
        let values = [batch.as_bytes().to_vec().into(), yesterday.into()];
        on.execute_raw(self.statement(&sql, values)).await?;
        Ok(())
    }

    fn insert_ignore(&self) -> &'static str {
        match self.backend() {
            sea_orm::DatabaseBackend::Sqlite => "INSERT OR IGNORE",
            _ => "INSERT IGNORE",
        }
    }

    /// Forgets what waited for the journal until it expired.
    pub async fn forget_unjournaled(&self) -> Result<(), StoreError> {
        self.repeat("journal clean-up", || async {
            for sql in [
                "DELETE FROM journal_pending_upload WHERE upload_id NOT IN (SELECT id FROM upload)",
                "DELETE FROM journal_pending_batch WHERE batch_id NOT IN (SELECT id FROM batch)",
            ] {
                self.db.execute_raw(self.statement(sql, [])).await?;
            }
            Ok(())
        })
        .await
    }

    /// For the uploads that a batch may take in: with a journal, only what is in it.
    pub(super) fn journaled_only(&self) -> Condition {
        let all = Condition::all();
        match self.journal {
            true => all.add(upload::Column::Id.not_in_subquery(pending_uploads(true))),
            false => all,
        }
    }

    /// For the notifications `n` that may be sent: a country that is called must find the batch.
    pub(super) fn served_only(&self) -> &'static str {
        match self.journal {
            true => {
                " AND NOT EXISTS (SELECT 1 FROM journal_pending_batch p WHERE p.hold = TRUE AND p.batch_id <= n.batch_id)"
            }
            false => "",
        }
    }

    /// The first batch that must not be served yet.
    pub(super) async fn first_held_batch(&self) -> Result<Option<ObjectId>, Failure> {
        if !self.journal {
            return Ok(None);
        }
        let sql = "SELECT MIN(batch_id) AS id FROM journal_pending_batch WHERE hold = TRUE";
        let row = self.db.query_one_raw(self.statement(sql, [])).await?;
        let id: Option<Vec<u8>> =
            row.as_ref().map(|row: &QueryResult| row.try_get("", "id")).transpose()?.flatten();
        id.as_deref().map(parse_id).transpose()
    }
}

fn pending_uploads(held_only: bool) -> SelectStatement {
    let mut select = Query::select();
    select.column("upload_id").from("journal_pending_upload");
    if held_only {
        select.and_where(Expr::col("hold").eq(true));
    }
    select
}

fn text(bytes: Vec<u8>) -> String {
    String::from_utf8_lossy(&bytes).into_owned()
}

impl From<upload::Model> for JournalUpload {
    fn from(row: upload::Model) -> Self {
        Self {
            id: row.id,
            country: row.country,
            tag: text(row.upload_tag),
            format: row.format,
            format_major: row.format_major as u16,
            format_minor: row.format_minor as u16,
            amount: row.amount as u32,
            content_hash: row.content_hash,
            batch_signature: row.batch_signature,
            uploader_certificate_id: row.uploader_certificate_id,
            uploader_thumbprint: row.uploader_thumbprint,
            signing_certificate_id: row.signing_certificate_id,
            signing_thumbprint: row.signing_thumbprint,
            uploaded_at: utc(row.uploaded_at),
        }
    }
}

impl From<withdrawal::Model> for PendingWithdrawal {
    fn from(row: withdrawal::Model) -> Self {
        Self {
            upload_id: row.upload_id,
            country: row.country,
            tag: text(row.upload_tag),
            amount: row.amount as u32,
            at: utc(row.withdrawn_at),
            by: row.withdrawn_by,
            reason: row.reason,
        }
    }
}

fn utc(time: NaiveDateTime) -> DateTime<Utc> {
    time.and_utc()
}
