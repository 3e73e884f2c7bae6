//! What is not in the journal yet.
//!
//! Whatever is stored while a journal is configured gets a row in a pending table, in the same transaction; the
//! row goes when the journal has it. So the journal never has what the database has not, and what crashed in
//! between is found.

use chrono::{DateTime, NaiveDate, NaiveTime, Utc};
use efgs_intake::VerifiedUpload;
use efgs_protocol::batch_tag::ObjectId;

use super::{
    JournalUpload, Store, StoreError,
    error::Failure,
    row::{Bind, Table, Utf8, row, values},
    sql::{self, placeholders},
    tx::{Queries, Tx},
};

pub(super) const PENDING_UPLOAD: &str =
    "INSERT INTO journal_pending_upload (upload_id, hold) VALUES (?, TRUE)";
pub(super) const PENDING_BATCH: &str = "INSERT INTO journal_pending_batch (batch_id, hold) VALUES (?, TRUE)";
pub(super) const PENDING_WITHDRAWAL: &str = "INSERT INTO journal_pending_withdrawal (upload_id) VALUES (?)";

row! {
    /// A batch's row, and what is in it.
    #[derive(Clone, Debug, PartialEq, Eq)]
    pub struct PendingBatch in "batch" {
        /// The ObjectId.
        id: ObjectId,
        /// The UTC day it was formed on.
        day: NaiveDate,
        /// Its number on that day.
        sequence: u32,
        /// Major version of its format.
        format_major: u16,
        /// How many keys it had when it was formed.
        amount: u32,
        /// When.
        formed_at: DateTime<Utc>,
    } with {
        /// Number and content hash of each upload, withdrawn or not, in their order.
        uploads: Vec<(i64, Vec<u8>)>,
    }
}

row! {
    /// A withdrawal's row.
    #[derive(Clone, Debug, PartialEq, Eq)]
    pub struct PendingWithdrawal in "withdrawal" {
        /// Number of the upload.
        upload_id: i64,
        /// Whose upload it was.
        country: String,
        /// The country's name for it.
        tag: String as Utf8 = "upload_tag",
        /// How many keys it had.
        amount: u32,
        /// When it was withdrawn.
        at: DateTime<Utc> = "withdrawn_at",
        /// `country` or `operator`.
        by: String = "withdrawn_by",
        /// Why.
        reason: String,
    }
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
        let sql = JournalUpload::select(
            "WHERE id IN (SELECT upload_id FROM journal_pending_upload) AND uploaded_at < ? AND id > ? \
             ORDER BY id LIMIT ?",
        );
        self.rows("uploads for the journal", &sql, values![before, after, limit]).await
    }

    /// An upload, unless the journal has it.
    pub async fn unjournaled_upload(&self, id: i64) -> Result<Option<JournalUpload>, StoreError> {
        let sql =
            JournalUpload::select("WHERE id = ? AND id IN (SELECT upload_id FROM journal_pending_upload)");
        self.row("upload for the journal", &sql, values![id]).await
    }

    /// Whether an upload is there, has not been withdrawn, and has not expired: was uploaded or put into a batch on
    /// `oldest` or later.
    pub async fn is_wanted(&self, upload: i64, oldest: NaiveDate) -> Result<bool, StoreError> {
        let sql = "SELECT u.id FROM upload u LEFT JOIN batch b ON b.id = u.batch_id WHERE u.id = ? \
                   AND NOT EXISTS (SELECT 1 FROM withdrawal w WHERE w.upload_id = u.id) \
                   AND (b.day >= ? OR (u.batch_id IS NULL AND u.uploaded_at >= ?))";
        let values = values![upload, oldest, oldest.and_time(NaiveTime::MIN)];
        Ok(self.row::<i64>("look for an upload", sql, values).await?.is_some())
    }

    /// Replaces the payloads of an upload by those of the same keys, sealed again; each is found by its hash.
    pub async fn repair_payloads(&self, upload: i64, sent: &VerifiedUpload) -> Result<(), StoreError> {
        let payloads: Vec<_> =
            sent.keys().iter().map(|key| (key.payload_hash.as_slice(), key.payload.as_slice())).collect();
        let payloads = &payloads;
        self.tx("mend payloads", |mut tx| async move {
            tx.replace_payloads(upload, sent.key_id(), payloads).await?;
            Ok(tx.commit(()))
        })
        .await
    }

    /// All batches that are not in the journal, in order, a limited number at a time.
    pub async fn unjournaled_batches(&self, limit: u64) -> Result<Vec<PendingBatch>, StoreError> {
        let sql = PendingBatch::select(
            "WHERE id IN (SELECT batch_id FROM journal_pending_batch) ORDER BY id LIMIT ?",
        );
        let uploads = "SELECT id, content_hash FROM upload WHERE batch_id = ? ORDER BY id";
        self.repeat("batches for the journal", || async {
            let mut batches: Vec<PendingBatch> = self.db.rows(&sql, values![limit]).await?;
            for batch in &mut batches {
                batch.uploads = self.db.rows(uploads, values![batch.id]).await?;
            }
            Ok(batches)
        })
        .await
    }

    /// All withdrawals that are not in the journal, a limited number at a time.
    pub async fn unjournaled_withdrawals(&self, limit: u64) -> Result<Vec<PendingWithdrawal>, StoreError> {
        let sql = PendingWithdrawal::select(
            "WHERE upload_id IN (SELECT upload_id FROM journal_pending_withdrawal) ORDER BY upload_id LIMIT ?",
        );
        self.rows("withdrawals for the journal", &sql, values![limit]).await
    }

    /// Whether anything waits for the journal.
    pub async fn awaits_journal(&self) -> Result<bool, StoreError> {
        let sql = "SELECT EXISTS(SELECT 1 FROM journal_pending_upload) + EXISTS(SELECT 1 FROM journal_pending_batch) \
                   + EXISTS(SELECT 1 FROM journal_pending_withdrawal)";
        Ok(self.row::<i64>("journal backlog", sql, values![]).await?.is_some_and(|waits| waits > 0))
    }

    /// Notes that these are in the journal.
    pub async fn journaled(&self, done: &Journaled) -> Result<(), StoreError> {
        self.repeat("journaled", || async {
            let numbers = |ids: &[i64]| ids.iter().map(|id| id.bind()).collect::<Vec<_>>();
            let batches = done.batches.iter().map(|id| id.bind()).collect();
            for (table, column, ids) in [
                ("journal_pending_upload", "upload_id", numbers(&done.uploads)),
                ("journal_pending_batch", "batch_id", batches),
                ("journal_pending_withdrawal", "upload_id", numbers(&done.withdrawals)),
            ] {
                for ids in ids.chunks(1000) {
                    let sql = format!("DELETE FROM {table} WHERE {column} IN ({})", placeholders(ids.len()));
                    self.db.run(&sql, ids.to_vec()).await?;
                }
            }
            Ok(())
        })
        .await
    }

    /// Has everything that is stored written to the journal (again, if it is in it); none of it is held back.
    pub async fn journal_everything(&self) -> Result<u64, StoreError> {
        self.tx("journal everything", |mut tx| async move {
            let rows = tx.journal_everything().await?;
            Ok(tx.commit(rows))
        })
        .await
    }

    /// Forgets what waited for the journal until it expired.
    pub async fn forget_unjournaled(&self) -> Result<(), StoreError> {
        self.repeat("journal clean-up", || async {
            for sql in [
                "DELETE FROM journal_pending_upload WHERE upload_id NOT IN (SELECT id FROM upload)",
                "DELETE FROM journal_pending_batch WHERE batch_id NOT IN (SELECT id FROM batch)",
            ] {
                self.db.run(sql, values![]).await?;
            }
            Ok(())
        })
        .await
    }

    /// Condition for the uploads that a batch may take in: with a journal, only those that are in it.
    pub(super) fn journaled_only(&self) -> &'static str {
        match self.journal {
            true => " AND id NOT IN (SELECT upload_id FROM journal_pending_upload WHERE hold = TRUE)",
            false => "",
        }
    }

    /// Condition for the notifications `n` that may be sent: a country that is called must find the batch.
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
        Ok(self.db.row(sql, values![]).await?.flatten())
    }
}

impl Tx<'_> {
    /// Marks what has been stored as not in the journal yet; until it is there, it is held back.
    pub(super) async fn await_journal(&mut self, mark: &str, id: impl Bind) -> Result<(), Failure> {
        self.run(mark, values![id]).await?;
        Ok(())
    }

    /// Marks everything that is stored, without holding any of it back.
    pub(super) async fn journal_everything(&mut self) -> Result<u64, Failure> {
        let mut rows = 0;
        for what in [
            "journal_pending_upload (upload_id, hold) SELECT id, FALSE FROM upload",
            "journal_pending_batch (batch_id, hold) SELECT id, FALSE FROM batch",
            "journal_pending_withdrawal (upload_id) SELECT upload_id FROM withdrawal",
        ] {
            rows +=
                self.run(&format!("{} {what}", sql::insert_ignore(self.store.backend())), values![]).await?;
        }
        Ok(rows)
    }

    /// Marks those uploads of a batch whose files would be deleted before the batch is: a file is kept for a day more
    /// than the batches of its day.
    pub(super) async fn journal_old_uploads(
        &mut self,
        batch: ObjectId,
        day: NaiveDate,
    ) -> Result<(), Failure> {
        let sql = format!(
            "{} journal_pending_upload (upload_id, hold) SELECT id, FALSE FROM upload \
             WHERE batch_id = ? AND uploaded_at < ?",
            sql::insert_ignore(self.store.backend())
        );
        let yesterday = day.pred_opt().unwrap_or(day).and_time(NaiveTime::MIN);
        self.run(&sql, values![batch, yesterday]).await?;
        Ok(())
    }
}
