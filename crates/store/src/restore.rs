//! Filling an empty database from the journal.
//!
//! While that goes on, the table of jobs has a row more: a gateway does not start on such a database, and a second
//! attempt goes on where the first one stopped. All batches appear at the end, in one transaction.

use chrono::NaiveDate;
use efgs_intake::{StoredCertificate, Usage, VerifiedUpload};
use efgs_protocol::batch_tag::ObjectId;

use super::{
    PendingBatch, PendingWithdrawal, Store, StoreError, UploadOutcome,
    error::Failure,
    row::values,
    tx::Queries,
    uploads::{Attempt, NewRow},
};

/// The row that says that a database is being filled.
const UNFINISHED: &str = "journal-replay";
/// Rows in one INSERT.
const ROWS: usize = 500;

/// What became of an upload from the journal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Restored {
    /// It is stored.
    Stored,
    /// It had been stored by an earlier attempt.
    AlreadyThere,
    /// Its tag, its number or one of its keys is taken by another upload.
    Conflict,
}

impl Store {
    /// Whether the database is being filled from the journal.
    pub async fn replay_is_unfinished(&self) -> Result<bool, StoreError> {
        self.repeat("replay state", || self.is_marked()).await
    }

    async fn is_marked(&self) -> Result<bool, Failure> {
        let sql = "SELECT token FROM job WHERE name = ?";
        Ok(self.db.row::<i64>(sql, values![UNFINISHED]).await?.is_some())
    }

    /// Whether there is anything that a journal would bring.
    pub async fn holds_anything(&self) -> Result<bool, StoreError> {
        let sql = "SELECT EXISTS(SELECT 1 FROM upload) + EXISTS(SELECT 1 FROM batch) + EXISTS(SELECT 1 FROM withdrawal) \
                   + EXISTS(SELECT 1 FROM certificate)";
        Ok(self.row::<i64>("look for rows", sql, values![]).await?.is_some_and(|there| there > 0))
    }

    /// Marks the database as one that is being filled, and stores the certificates under their numbers.
    pub async fn begin_replay(&self, certificates: &[StoredCertificate]) -> Result<(), StoreError> {
        self.tx("begin replay", |mut tx| async move {
            let mark = "INSERT INTO job (name, owner, token, expires_at, due_at) VALUES (?, NULL, 0, 0, 0)";
            if tx.insert(mark, values![UNFINISHED]).await?.is_none() {
                return Ok(tx.discard(()));
            }
            for certificate in certificates {
                tx.insert_all([certificate.clone()].into_iter()).await?;
            }
            Ok(tx.commit(()))
        })
        .await
    }

    /// Stores an upload under its number and in its batch, which has this day.
    pub async fn restore_upload(
        &self,
        upload: &VerifiedUpload,
        id: i64,
        batch: Option<(ObjectId, NaiveDate)>,
    ) -> Result<Restored, StoreError> {
        self.repeat("restore upload", || async {
            let row = NewRow { upload, known: Some((id, batch)), pending: false, quota: Usage::UNLIMITED };
            match self.insert_row(&row).await? {
                Attempt::Stored(_) => Ok(Restored::Stored),
                Attempt::TagTaken => match self.same_tag(upload, false).await? {
                    Some(UploadOutcome::Repeated(there)) if there == id => Ok(Restored::AlreadyThere),
                    _ => Ok(Restored::Conflict),
                },
                Attempt::KeyTaken | Attempt::OverQuota(_) => Ok(Restored::Conflict),
            }
        })
        .await
    }

    /// Stores batches and withdrawals, and takes the mark away: from here on it is an ordinary database. With
    /// `journal` everything in it waits to be written to the journal.
    pub async fn finish_replay(
        &self,
        batches: &[PendingBatch],
        withdrawals: &[PendingWithdrawal],
        journal: bool,
    ) -> Result<(), StoreError> {
        self.repeat("finish replay", || async {
            let finish = self.tx_once(|mut tx| async move {
                for rows in batches.chunks(ROWS) {
                    tx.insert_all(rows.iter().cloned()).await?;
                }
                for rows in withdrawals.chunks(ROWS) {
                    tx.insert_all(rows.iter().cloned()).await?;
                }
                if journal {
                    tx.journal_everything().await?;
                }
                tx.run("DELETE FROM job WHERE name = ?", values![UNFINISHED]).await?;
                Ok(tx.commit(()))
            });
            match finish.await {
                // The connection broke when an earlier attempt was committed, and it was.
                Err(Failure::Duplicate) if !self.is_marked().await? => Ok(()),
                other => other,
            }
        })
        .await
    }
}
