//! Storing uploads and reading their keys.

use std::{
    collections::HashSet,
    ops::Range,
    sync::atomic::{AtomicBool, Ordering},
};

use chrono::{DateTime, NaiveDate, Utc};
use efgs_intake::{SealedKey, Usage, VerifiedUpload};
use efgs_protocol::{batch_tag::ObjectId, country::Country};
use sea_orm::Value;

use super::{
    Store, StoreError,
    bulk::{self, Bulk, Lent},
    days::{self, BEFORE_DAYS},
    error::Failure,
    journal,
    row::{Bind, Table, Utf8, row, values},
    sql,
    tx::{Queries, Tx},
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

/// A row to insert, with its keys.
pub(super) struct NewRow<'a> {
    pub(super) upload: &'a VerifiedUpload,
    /// Its number, and its batch with the batch's day, when they are known from the journal.
    pub(super) known: Option<(i64, Option<(ObjectId, NaiveDate)>)>,
    /// Whether it has yet to be written to the journal.
    pub(super) pending: bool,
    /// What its country may have on its day, with it.
    pub(super) quota: Usage,
}

impl NewRow<'_> {
    /// The day of its keys.
    fn day(&self) -> NaiveDate {
        let batch = self.known.and_then(|(_, batch)| batch);
        batch.map_or_else(|| self.upload.uploaded_at().date_naive(), |(_, day)| day)
    }
}

row! {
    /// An upload's row, without its keys, as far as it never changes.
    #[derive(Clone, Debug, PartialEq, Eq)]
    pub struct JournalUpload in "upload" {
        /// Its number.
        id: i64,
        /// Whose it is.
        country: String,
        /// The country's name for it.
        tag: String as Utf8 = "upload_tag",
        /// `protobuf` or `json`.
        format: String,
        /// Major version of the format.
        format_major: u16,
        /// Minor version of the format.
        format_minor: u16,
        /// How many keys it has.
        amount: u32,
        /// SHA-256 of the signed bytes.
        content_hash: Vec<u8>,
        /// The signature, as received.
        batch_signature: String,
        /// Number of the certificate that let the caller in.
        uploader_certificate_id: i64,
        /// Thumbprint of the certificate that the caller showed.
        uploader_thumbprint: Vec<u8>,
        /// Number of the certificate that let the signer in.
        signing_certificate_id: i64,
        /// Thumbprint of the certificate that signed.
        signing_thumbprint: Vec<u8>,
        /// When it arrived.
        uploaded_at: DateTime<Utc>,
    }
}

impl JournalUpload {
    /// The row that an upload has, or will have, under a number.
    pub fn new(upload: &VerifiedUpload, id: i64) -> Self {
        Self {
            id,
            country: upload.country().to_string(),
            tag: upload.tag().to_string(),
            format: upload.format_name().to_owned(),
            format_major: upload.media().version.major,
            format_minor: upload.media().version.minor,
            amount: upload.keys().len() as u32,
            content_hash: upload.content_hash().to_vec(),
            batch_signature: upload.batch_signature().to_owned(),
            uploader_certificate_id: upload.uploader_certificate_id(),
            uploader_thumbprint: upload.uploader_thumbprint().as_bytes().to_vec(),
            signing_certificate_id: upload.signing_certificate_id(),
            signing_thumbprint: upload.signing_thumbprint().as_bytes().to_vec(),
            uploaded_at: upload.uploaded_at(),
        }
    }
}

/// All positions that a key can have in an upload.
pub const ALL_POSITIONS: Range<u32> = 0..i32::MAX as u32;

/// The other columns of the row: what the gateway keeps for itself.
const INTERNAL: &str = "payload_bytes, key_id, batch_id";

row! {
    /// A key as it is stored: encrypted.
    #[derive(Clone, Debug)]
    pub struct StoredPayload in "diagnosis_key" {
        /// The upload that it came with.
        upload_id: i64,
        /// SHA-256 of its key bytes (spec §4.2.4).
        payload_hash: Vec<u8>,
        /// The encrypted protobuf encoding.
        payload: Vec<u8>,
    }
}

/// All columns of a key. `day` is the one from which the retention counts: that of its batch; until it is in one, that
/// of its upload. Forming a batch moves the keys that were uploaded on another day.
const KEY: &str = "day, upload_id, position, payload_hash, report_type, payload";

/// As much of a key's hash as makes it unique.
type ShortHash = [u8; 16];

/// What makes a key unique: the day is a part of what is hashed, so uniqueness in each day is uniqueness altogether.
fn identity(key: &SealedKey) -> (u16, ShortHash) {
    let mut hash = ShortHash::default();
    hash.copy_from_slice(&key.payload_hash[..16]);
    (key.rolling_day, hash)
}

impl Tx<'_> {
    /// Inserts an upload's row, without its keys; its number, or none when its tag or number is taken.
    async fn insert_upload(&mut self, row: &NewRow<'_>) -> Result<Option<i64>, Failure> {
        let upload = row.upload;
        let (known, batch) =
            row.known.map_or((None, None), |(id, batch)| (Some(id), batch.map(|(id, _)| id)));
        let mut values = JournalUpload::new(upload, known.unwrap_or_default()).values();
        if known.is_none() {
            // NULL: the next number.
            values[0] = known.bind();
        }
        values.extend(values![upload.payload_bytes(), upload.key_id(), batch]);
        let columns = format!("{}, {INTERNAL}", JournalUpload::columns());
        let given = self.insert(&sql::insert(JournalUpload::TABLE, &columns, 1), values).await?;
        Ok(given.map(|given| known.unwrap_or(given)))
    }

    /// Takes the keys' hashes; says whether all of them were free.
    async fn take_hashes(&mut self, keys: &[SealedKey]) -> Result<bool, Failure> {
        // In the same order for all uploads, so that those that share keys wait for each other and do not deadlock.
        let mut hashes: Vec<_> = keys.iter().map(identity).collect();
        hashes.sort_unstable();
        for hashes in hashes.chunks(bulk::HASHES) {
            let values = hashes.iter().flat_map(|(day, hash)| values![*day, hash.as_slice()]).collect();
            let sql = sql::insert("key_hash", "rolling_day, hash", hashes.len());
            if self.insert(&sql, values).await?.is_none() {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Inserts an upload's keys.
    async fn insert_keys(&mut self, day: NaiveDate, id: i64, keys: &[SealedKey]) -> Result<(), Failure> {
        let day = days::number(day);
        for keys in bulk::chunks(keys) {
            let mut values = Vec::with_capacity(keys.len() * 6);
            for key in keys {
                let (hash, payload) = (key.payload_hash.as_slice(), key.payload.as_slice());
                values.extend(values![day, id, key.position, hash, key.report_type, payload]);
            }
            self.run(&sql::insert("diagnosis_key", KEY, keys.len()), values).await?;
        }
        Ok(())
    }
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
        // After an attempt whose outcome is not known, what is found under the tag may be this very upload.
        let unsure = AtomicBool::new(false);
        self.repeat("upload", || async {
            if !upload.repeats().is_empty() {
                // It cannot be stored; what is left to say is which of its keys conflict.
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

    /// One attempt.
    pub(super) async fn insert_row(&self, row: &NewRow<'_>) -> Result<Attempt, Failure> {
        let attempt = self.bulk_tx_once(|mut tx| async move {
            let Some(id) = tx.insert_upload(row).await? else { return Ok(tx.discard(Attempt::TagTaken)) };
            let keys = row.upload.keys();
            if !tx.take_hashes(keys).await? || self.some_are_older(&mut tx, keys).await? {
                return Ok(tx.discard(Attempt::KeyTaken));
            }
            tx.insert_keys(row.day(), id, keys).await?;
            if row.pending {
                tx.await_journal(journal::PENDING_UPLOAD, id).await?;
            }
            // Last, so that uploads of one country wait for each other's commit only.
            Ok(match tx.count_in_quota(row.upload, row.quota).await? {
                Some(before) => tx.discard(Attempt::OverQuota(before)),
                None => tx.commit(Attempt::Stored(id)),
            })
        });
        self.with_day(row.day(), attempt.await).await
    }

    /// What is stored under this upload's tag already.
    pub async fn find_upload(&self, new: &VerifiedUpload) -> Result<Option<UploadOutcome>, StoreError> {
        self.repeat("find upload", || self.same_tag(new, false)).await
    }

    /// What is stored under this upload's tag: the upload itself, if it `may_be` stored already and came at the same
    /// microsecond.
    pub(super) async fn same_tag(
        &self,
        new: &VerifiedUpload,
        may_be: bool,
    ) -> Result<Option<UploadOutcome>, Failure> {
        let _lookup = self.lookups.acquire().await;
        let there = self.upload_of(new.country(), new.tag().as_str()).await?;
        let Some(there) = there else { return Ok(None) };
        let same = there.content_hash == new.content_hash()
            && there.signing_thumbprint == new.signing_thumbprint().as_bytes();
        if !same {
            return Ok(Some(UploadOutcome::TagTaken));
        }
        Ok(Some(if self.withdrawal_of(there.id).await?.is_some() {
            UploadOutcome::Withdrawn
        } else if may_be && there.uploaded_at == new.uploaded_at() {
            UploadOutcome::Stored(there.id)
        } else {
            UploadOutcome::Repeated(there.id)
        }))
    }

    /// The upload of a country under a tag.
    pub(super) async fn upload_of(
        &self,
        country: Country,
        tag: &str,
    ) -> Result<Option<JournalUpload>, Failure> {
        let sql = JournalUpload::select("WHERE country = ? AND upload_tag = ?");
        self.db.row(&sql, values![country, tag.as_bytes()]).await
    }

    /// Positions of keys that are stored already or repeat inside the upload.
    async fn conflicts(&self, upload: &VerifiedUpload) -> Result<Vec<usize>, Failure> {
        let _lookup = self.lookups.acquire().await;
        let mut hashes: Vec<_> = upload.keys().iter().map(identity).collect();
        hashes.sort_unstable();
        let mut there = HashSet::new();
        for of_day in hashes.chunk_by(|(one, _), (other, _)| one == other) {
            for hashes in of_day.chunks(bulk::ROWS) {
                let (sql, values) = find_hashes(hashes[0].0, hashes);
                there.extend(self.db.rows::<Vec<u8>>(&sql, values).await?);
            }
        }
        if self.keys_before_days.load(Ordering::Relaxed) {
            for hashes in hashes.chunks(bulk::ROWS) {
                let (sql, values) = find_hashes(BEFORE_DAYS, hashes);
                there.extend(self.db.rows::<Vec<u8>>(&sql, values).await?);
            }
        }
        let stored = upload.keys().iter().filter(|key| there.contains(identity(key).1.as_slice()));
        let mut conflicts: Vec<usize> =
            stored.map(|key| key.position as usize).chain(upload.repeats().iter().copied()).collect();
        conflicts.sort_unstable();
        conflicts.dedup();
        Ok(conflicts)
    }

    /// Whether some of these keys were stored before the hashes were divided by day. The last of those hashes is
    /// forgotten after some days, and no new one comes; from then on this asks nothing.
    async fn some_are_older(&self, tx: &mut Tx<'_>, keys: &[SealedKey]) -> Result<bool, Failure> {
        if !self.keys_before_days.load(Ordering::Relaxed) {
            return Ok(false);
        }
        let sql = "SELECT 1 FROM key_hash WHERE rolling_day = ? LIMIT 1";
        if tx.row::<i64>(sql, values![BEFORE_DAYS]).await?.is_none() {
            self.keys_before_days.store(false, Ordering::Relaxed);
            return Ok(false);
        }
        for keys in keys.chunks(bulk::ROWS) {
            let hashes: Vec<_> = keys.iter().map(identity).collect();
            let (sql, values) = find_hashes(BEFORE_DAYS, &hashes);
            if tx.row::<Vec<u8>>(&sql, values).await?.is_some() {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// The encrypted keys of some uploads that are in a batch of this day, at these positions in them, in the order of
    /// upload and of the request.
    pub async fn payloads(
        &self,
        day: NaiveDate,
        uploads: &[i64],
        positions: Range<u32>,
    ) -> Result<Vec<StoredPayload>, StoreError> {
        if uploads.is_empty() {
            // All of a batch were withdrawn; MySQL has no empty list.
            return Ok(Vec::new());
        }
        let (sql, values) = payloads_query(day, uploads, positions);
        self.read_payloads(&sql, values).await
    }

    /// The encrypted keys of one upload, in the order of the request.
    pub async fn payloads_of(&self, upload: i64) -> Result<Vec<StoredPayload>, StoreError> {
        // In one statement: the day changes when a batch takes the upload.
        let day = sql::day_of_upload(self.backend());
        let sql = StoredPayload::select(&format!("WHERE day = {day} AND upload_id = ? ORDER BY position"));
        self.read_payloads(&sql, values![upload, upload]).await
    }

    async fn read_payloads(&self, sql: &str, values: Vec<Value>) -> Result<Vec<StoredPayload>, StoreError> {
        self.repeat("read payloads", || async {
            let values = values.clone();
            let Bulk::MySql { pool, .. } = &self.bulk else { return self.db.rows(sql, values).await };
            let mut lent = Lent::from(pool).await?;
            let payloads = lent.rows(sql, values).await?;
            lent.give_back();
            Ok(payloads)
        })
        .await
    }
}

/// The query of [`Store::payloads`].
pub(super) fn payloads_query(day: NaiveDate, uploads: &[i64], positions: Range<u32>) -> (String, Vec<Value>) {
    let sql = StoredPayload::select(&format!(
        "WHERE day = ? AND upload_id IN ({}) AND position >= ? AND position < ? ORDER BY upload_id, position",
        sql::placeholders(uploads.len())
    ));
    let ids = uploads.iter().map(|id| id.bind());
    let day = std::iter::once(days::number(day).bind());
    (sql, day.chain(ids).chain(values![positions.start, positions.end]).collect())
}

/// The query for those of some hashes that are stored under a day.
fn find_hashes(day: u16, hashes: &[(u16, ShortHash)]) -> (String, Vec<Value>) {
    let sql = format!(
        "SELECT hash FROM key_hash WHERE rolling_day = ? AND hash IN ({})",
        sql::placeholders(hashes.len())
    );
    let hashes = hashes.iter().map(|(_, hash)| hash.as_slice().bind());
    (sql, std::iter::once(day.bind()).chain(hashes).collect())
}

/// The conflicting row is gone again (expired just now): worth another attempt.
fn vanished() -> Failure {
    Failure::Transient("what was in the way has gone in the meantime".into())
}
