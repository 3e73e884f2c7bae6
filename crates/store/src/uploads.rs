//! Storing uploads and reading their keys.

use std::{
    collections::HashSet,
    sync::atomic::{AtomicBool, Ordering},
};

use efgs_protocol::batch_tag::ObjectId;
use sea_orm::{
    ActiveModelTrait,
    ActiveValue::{NotSet, Set},
    ColumnTrait, ConnectionTrait, EntityTrait, QueryFilter, QueryOrder, QuerySelect,
};

use efgs_intake::{Usage, VerifiedUpload};

use super::{
    Store, StoreError,
    bulk::{self, Bulk},
    entity::{diagnosis_key, upload, withdrawal},
    error::Failure,
    journal,
};

/// What became of an upload.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum UploadOutcome {
    /// All its keys are stored, under this number of its row.
    Stored(i64),
    /// The same upload had been stored before, under this number; nothing was changed.
    Repeated(i64),
    /// Its tag is taken by another upload of the country; nothing was stored.
    TagTaken,
    /// The same upload had been stored before and was withdrawn; it stays withdrawn.
    Withdrawn,
    /// Some of its keys are stored already or repeat inside it; nothing was stored. Positions in the order of
    /// the request, ascending.
    Conflicts(Vec<usize>),
    /// Its country has used this much of the day's quota, and with the upload it would be too much; nothing was
    /// stored.
    OverQuota(Usage),
}

/// One attempt's result; the transaction is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Attempt {
    Stored(i64),
    TagTaken,
    KeyTaken,
    OverQuota(Usage),
}

/// A row to insert.
pub(super) struct NewRow<'a> {
    pub(super) upload: &'a VerifiedUpload,
    /// Its number and its batch, when they are known from the journal.
    pub(super) known: Option<(i64, Option<ObjectId>)>,
    /// Whether it has yet to be written to the journal.
    pub(super) pending: bool,
    /// What its country may have on its day, with it.
    pub(super) quota: Usage,
}

/// A key as it is stored: encrypted.
#[derive(Clone, Debug)]
pub struct StoredPayload {
    /// The upload that it came with.
    pub upload_id: i64,
    /// SHA-256 of its key bytes (spec §4.2.4).
    pub payload_hash: Vec<u8>,
    /// The encrypted protobuf encoding.
    pub payload: Vec<u8>,
}

impl Store {
    /// Stores an upload in one transaction: all of it or nothing, under every failure. Repeating the call, or
    /// the request, is safe: when a connection broke during the commit, the upload is found by its tag. What is
    /// stored counts in the quota of its country and day, exactly, over all instances.
    pub async fn insert_upload(
        &self,
        upload: &VerifiedUpload,
        quota: Usage,
    ) -> Result<UploadOutcome, StoreError> {
        // After an attempt whose outcome is not known, what stands under the tag may be this very upload.
        let unsure = AtomicBool::new(false);
        self.repeat("upload", || async {
            if !upload.repeats().is_empty() {
                // It cannot be stored; what is left to say is which of its keys are in the way.
                return match self.same_tag(upload, false).await? {
                    Some(outcome) => Ok(outcome),
                    None => Ok(UploadOutcome::Conflicts(self.conflicts(upload).await?)),
                };
            }
            let earlier = unsure.swap(true, Ordering::Relaxed);
            match self.insert_row(&NewRow { upload, known: None, pending: self.journal, quota }).await? {
                Attempt::Stored(id) => Ok(UploadOutcome::Stored(id)),
                Attempt::OverQuota(used) => Ok(UploadOutcome::OverQuota(used)),
                Attempt::TagTaken => self.same_tag(upload, earlier).await?.ok_or_else(vanished),
                Attempt::KeyTaken => match self.conflicts(upload).await? {
                    conflicts if conflicts.is_empty() => Err(vanished()),
                    conflicts => Ok(UploadOutcome::Conflicts(conflicts)),
                },
            }
        })
        .await
    }

    /// One attempt, on whichever database.
    pub(super) async fn insert_row(&self, row: &NewRow<'_>) -> Result<Attempt, Failure> {
        match &self.bulk {
            Bulk::MySql { pool, .. } => bulk::insert(pool, row).await,
            Bulk::Sqlite => self.insert_on_sqlite(row).await,
        }
    }

    /// What stands under this upload's tag already.
    pub async fn find_upload(&self, new: &VerifiedUpload) -> Result<Option<UploadOutcome>, StoreError> {
        self.repeat("find upload", || self.same_tag(new, false)).await
    }

    /// What stands under this upload's tag; it itself, if it `may_be` stored already and came at the same microsecond.
    pub(super) async fn same_tag(
        &self,
        new: &VerifiedUpload,
        may_be: bool,
    ) -> Result<Option<UploadOutcome>, Failure> {
        let _lookup = self.lookups.acquire().await;
        let there = upload::Entity::find()
            .filter(upload::Column::Country.eq(new.country().as_str()))
            .filter(upload::Column::UploadTag.eq(new.tag().as_str().as_bytes().to_vec()))
            .one(&self.db)
            .await?;
        let Some(there) = there else { return Ok(None) };
        let same = there.content_hash == new.content_hash()
            && there.signing_thumbprint == new.signing_thumbprint().as_bytes();
        if !same {
            return Ok(Some(UploadOutcome::TagTaken));
        }
        let withdrawn = withdrawal::Entity::find_by_id(there.id).one(&self.db).await?;
        Ok(Some(if withdrawn.is_some() {
            UploadOutcome::Withdrawn
        } else if may_be && there.uploaded_at == new.uploaded_at().naive_utc() {
            UploadOutcome::Stored(there.id)
        } else {
            UploadOutcome::Repeated(there.id)
        }))
    }

    /// Positions of keys that are stored already or repeat inside the upload.
    async fn conflicts(&self, upload: &VerifiedUpload) -> Result<Vec<usize>, Failure> {
        let _lookup = self.lookups.acquire().await;
        let mut there: HashSet<Vec<u8>> = HashSet::new();
        for keys in upload.keys().chunks(bulk::ROWS) {
            let hashes = keys.iter().map(|key| key.payload_hash.to_vec());
            let found: Vec<Vec<u8>> = diagnosis_key::Entity::find()
                .select_only()
                .column(diagnosis_key::Column::PayloadHash)
                .filter(diagnosis_key::Column::PayloadHash.is_in(hashes))
                .into_tuple()
                .all(&self.db)
                .await?;
            there.extend(found);
        }
        let stored = upload.keys().iter().filter(|key| there.contains(key.payload_hash.as_slice()));
        let mut conflicts: Vec<usize> =
            stored.map(|key| key.position as usize).chain(upload.repeats().iter().copied()).collect();
        conflicts.sort_unstable();
        conflicts.dedup();
        Ok(conflicts)
    }

    /// The same steps as [`bulk::insert`].
    async fn insert_on_sqlite(&self, row: &NewRow<'_>) -> Result<Attempt, Failure> {
        let (new, pending, quota) = (row.upload, row.pending, row.quota);
        let (id, batch) = row.known.map_or((NotSet, None), |(id, batch)| (Set(id), batch));
        let tx = self.begin().await?;
        let row = upload::ActiveModel {
            id,
            country: Set(new.country().as_str().to_owned()),
            upload_tag: Set(new.tag().as_str().as_bytes().to_vec()),
            format: Set(new.format_name().to_owned()),
            format_major: Set(new.media().version.major as i16),
            format_minor: Set(new.media().version.minor as i16),
            amount: Set(new.keys().len() as i32),
            payload_bytes: Set(new.payload_bytes() as i64),
            content_hash: Set(new.content_hash().to_vec()),
            batch_signature: Set(new.batch_signature().to_owned()),
            uploader_certificate_id: Set(new.uploader_certificate_id()),
            uploader_thumbprint: Set(new.uploader_thumbprint().as_bytes().to_vec()),
            signing_certificate_id: Set(new.signing_certificate_id()),
            signing_thumbprint: Set(new.signing_thumbprint().as_bytes().to_vec()),
            uploaded_at: Set(new.uploaded_at().naive_utc()),
            batch_id: Set(batch.map(|batch| batch.as_bytes().to_vec())),
            key_id: Set(new.key_id().into()),
        };
        let id = match row.insert(&tx).await.map_err(Failure::from) {
            Ok(row) => row.id,
            Err(Failure::Duplicate) => {
                tx.rollback().await?;
                return Ok(Attempt::TagTaken);
            }
            Err(failure) => return Err(failure),
        };
        for keys in bulk::chunks(new.keys()) {
            let rows = keys.iter().map(|key| diagnosis_key::ActiveModel {
                upload_id: Set(id),
                position: Set(key.position as i32),
                payload_hash: Set(key.payload_hash.to_vec()),
                report_type: Set(i16::from(key.report_type)),
                payload: Set(key.payload.clone()),
            });
            let inserted = diagnosis_key::Entity::insert_many(rows).exec_without_returning(&tx).await;
            match inserted.map_err(Failure::from) {
                Ok(_) => {}
                Err(Failure::Duplicate) => {
                    tx.rollback().await?;
                    return Ok(Attempt::KeyTaken);
                }
                Err(failure) => return Err(failure),
            }
        }
        if pending {
            tx.execute_raw(self.statement(journal::PENDING_UPLOAD, [id.into()])).await?;
        }
        if let Some(before) = self.count_on_sqlite(&tx, new, quota).await? {
            tx.rollback().await?;
            return Ok(Attempt::OverQuota(before));
        }
        tx.commit().await?;
        Ok(Attempt::Stored(id))
    }

    /// The encrypted keys of some uploads, in the order of upload and of the request.
    pub async fn payloads(&self, uploads: &[i64]) -> Result<Vec<StoredPayload>, StoreError> {
        if uploads.is_empty() {
            // All of a batch were withdrawn; MySQL has no empty list.
            return Ok(Vec::new());
        }
        self.repeat("read payloads", || async {
            match &self.bulk {
                Bulk::MySql { pool, .. } => bulk::payloads(pool, uploads).await,
                Bulk::Sqlite => {
                    let rows = diagnosis_key::Entity::find()
                        .filter(diagnosis_key::Column::UploadId.is_in(uploads.iter().copied()))
                        .order_by_asc(diagnosis_key::Column::UploadId)
                        .order_by_asc(diagnosis_key::Column::Position)
                        .all(&self.db)
                        .await?;
                    Ok(rows
                        .into_iter()
                        .map(|row| StoredPayload {
                            upload_id: row.upload_id,
                            payload_hash: row.payload_hash,
                            payload: row.payload,
                        })
                        .collect())
                }
            }
        })
        .await
    }
}

/// What stood in the way is gone again (expired just now): worth another attempt.
fn vanished() -> Failure {
    Failure::Transient("what was in the way has gone in the meantime".into())
}
