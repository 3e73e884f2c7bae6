//! Filling an empty database from the journal.
//!
//! While that goes on, the table of jobs has a row more: a gateway does not start on such a database, and a second
//! attempt goes on where the first one stopped. All batches appear at the end, in one transaction.

use efgs_protocol::batch_tag::ObjectId;
use sea_orm::{ActiveValue::Set, ConnectionTrait, EntityTrait, PaginatorTrait};

use efgs_intake::{StoredCertificate, Usage, VerifiedUpload};

use super::{
    PendingBatch, PendingWithdrawal, Store, StoreError, UploadOutcome,
    entity::{batch, certificate, upload, withdrawal},
    error::Failure,
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
        let row = self.statement("SELECT 1 AS there FROM job WHERE name = ?", [UNFINISHED.into()]);
        Ok(self.db.query_one_raw(row).await?.is_some())
    }

    /// Whether there is anything that a journal would bring.
    pub async fn holds_anything(&self) -> Result<bool, StoreError> {
        self.repeat("look for rows", || async {
            Ok(upload::Entity::find().count(&self.db).await? > 0
                || batch::Entity::find().count(&self.db).await? > 0
                || withdrawal::Entity::find().count(&self.db).await? > 0
                || certificate::Entity::find().count(&self.db).await? > 0)
        })
        .await
    }

    /// Marks the database as one that is being filled, and stores the certificates under their numbers.
    pub async fn begin_replay(&self, certificates: &[StoredCertificate]) -> Result<(), StoreError> {
        self.repeat("begin replay", || async {
            let tx = self.begin().await?;
            let mark = "INSERT INTO job (name, owner, token, expires_at, due_at) VALUES (?, NULL, 0, 0, 0)";
            match tx.execute_raw(self.statement(mark, [UNFINISHED.into()])).await.map_err(Failure::from) {
                Ok(_) => {}
                Err(Failure::Duplicate) => {
                    tx.rollback().await?;
                    return Ok(());
                }
                Err(failure) => return Err(failure),
            }
            for row in certificates {
                let row = certificate::ActiveModel {
                    id: Set(row.id),
                    thumbprint: Set(row.thumbprint.clone()),
                    kind: Set(row.kind.clone()),
                    country: Set(row.country.clone()),
                    pem: Set(row.pem.clone()),
                    operator_signature: Set(row.operator_signature.clone()),
                    registration_signature: Set(row.registration_signature.clone()),
                    waived: Set(row.waived.clone()),
                    waived_by: Set(row.waived_by.clone()),
                    waived_because: Set(row.waived_because.clone()),
                    imported_at: Set(row.imported_at.naive_utc()),
                    revoked_at: Set(row.revoked_at.map(|t| t.naive_utc())),
                };
                certificate::Entity::insert(row).exec_without_returning(&tx).await?;
            }
            Ok(tx.commit().await?)
        })
        .await
    }

    /// Stores an upload under its number and in its batch.
    pub async fn restore_upload(
        &self,
        upload: &VerifiedUpload,
        id: i64,
        batch: Option<ObjectId>,
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
            match self.finish_once(batches, withdrawals, journal).await {
                // The connection broke when an earlier attempt was committed, and it was.
                Err(Failure::Duplicate) if !self.is_marked().await? => Ok(()),
                other => other,
            }
        })
        .await
    }

    async fn finish_once(
        &self,
        batches: &[PendingBatch],
        withdrawals: &[PendingWithdrawal],
        journal: bool,
    ) -> Result<(), Failure> {
        let tx = self.begin().await?;
        for some in batches.chunks(ROWS) {
            let rows = some.iter().map(|row| batch::ActiveModel {
                id: Set(row.id.as_bytes().to_vec()),
                day: Set(row.day),
                sequence: Set(row.sequence as i32),
                format_major: Set(row.format_major as i16),
                amount: Set(row.amount as i32),
                formed_at: Set(row.formed_at.naive_utc()),
            });
            batch::Entity::insert_many(rows).exec_without_returning(&tx).await?;
        }
        for some in withdrawals.chunks(ROWS) {
            let rows = some.iter().map(|row| withdrawal::ActiveModel {
                upload_id: Set(row.upload_id),
                country: Set(row.country.clone()),
                upload_tag: Set(row.tag.as_bytes().to_vec()),
                amount: Set(row.amount as i32),
                withdrawn_at: Set(row.at.naive_utc()),
                withdrawn_by: Set(row.by.clone()),
                reason: Set(row.reason.clone()),
            });
            withdrawal::Entity::insert_many(rows).exec_without_returning(&tx).await?;
        }
        if journal {
            self.await_everything(&tx).await?;
        }
        tx.execute_raw(self.statement("DELETE FROM job WHERE name = ?", [UNFINISHED.into()])).await?;
        Ok(tx.commit().await?)
    }
}
