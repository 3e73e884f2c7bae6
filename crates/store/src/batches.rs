//! Forming batches and reading the chain of them (spec §4.2.8).

use std::collections::BTreeMap;

use chrono::{DateTime, Days, NaiveDate, NaiveTime, Utc};
use efgs_protocol::{batch_tag::ObjectId, country::Country};

use super::{
    Lease, PendingBatch, Store, StoreError, days,
    error::Failure,
    journal,
    row::{Bind, Cells, Row, row, values},
    sql,
    tx::{Queries, Tx},
    withdrawals::NOT_WITHDRAWN,
};

/// The newest batch that is still recorded.
pub(super) const NEWEST_BATCH: &str = "SELECT id FROM batch ORDER BY id DESC LIMIT 1";
/// Less than every id.
pub(super) const BEFORE_ALL: ObjectId = ObjectId::from_bytes([0; 12]);

/// Uploads in one batch: an audit has an entry for each.
const MAX_UPLOADS: usize = 1000;
/// Bytes of payloads, as stored before encryption, in one batch, unless a single upload has more: keys with long lists
/// of visited countries must not make a batch that no instance has the memory for. Ordinary batches are far below.
const MAX_BYTES: u64 = 32 << 20;
/// Bytes of signatures, as received, in one batch. They are the larger part of an audit.
const MAX_SIGNATURES: u64 = 4 << 20;

/// Waiting uploads that are counted at most.
const PENDING: u64 = 50_000;
/// Batches that one statement reads at most.
const PAGE_BATCHES: u64 = 1000;
/// Uploads that one statement reads at most.
const PAGE_UPLOADS: u64 = 50_000;

row! {
    /// A batch: its names, and the uploads in it in their order.
    #[derive(Clone, Debug, PartialEq, Eq)]
    pub struct BatchRecord {
        /// The ObjectId.
        id: ObjectId,
        /// The UTC day it was formed on.
        day: NaiveDate,
        /// Its number on that day, from 1.
        sequence: u32,
        /// Major version of its format.
        format_major: u16,
    } with {
        /// The uploads, in the order of their keys in the download, without the withdrawn ones.
        uploads: Vec<BatchUpload>,
        /// How many were withdrawn.
        withdrawn: u32,
    }
}

impl BatchRecord {
    /// How many keys it has.
    pub fn amount(&self) -> u64 {
        self.uploads.iter().map(|upload| u64::from(upload.amount)).sum()
    }
}

/// A part of the chain.
#[derive(Clone, Debug)]
pub struct ChainPage {
    /// The batches, in order.
    pub batches: Vec<BatchRecord>,
    /// Whether nothing can be read behind them now.
    pub is_last: bool,
}

/// An upload as a part of a batch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BatchUpload {
    /// The upload's row.
    pub id: i64,
    /// Who uploaded it.
    pub country: Country,
    /// How many keys it has.
    pub amount: u32,
}

/// What waits to be put into a batch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pending {
    /// Uploads.
    pub uploads: u64,
    /// Their keys.
    pub keys: u64,
    /// When the oldest of them arrived.
    pub oldest: Option<DateTime<Utc>>,
}

/// How the next batch is to be formed.
#[derive(Clone, Copy, Debug)]
pub struct Formation {
    /// The time now.
    pub now: DateTime<Utc>,
    /// Keys in one batch; an upload that has more alone forms a batch of its own.
    pub max_keys: u64,
    /// Form a batch only if it is full: a further upload would cross a limit (keys, uploads, bytes of payloads or of
    /// signatures).
    pub only_full: bool,
}

/// An upload that waits for a batch, with what counts in the limits of one.
struct WaitingUpload {
    id: i64,
    country: Country,
    amount: u32,
    payload_bytes: u64,
    signature_bytes: u64,
    format_major: u16,
}

row!(impl WaitingUpload {
    id: i64,
    country: Country,
    amount: u32,
    payload_bytes: u64,
    signature_bytes: u64,
    format_major: u16,
});

/// How many of the first uploads, in their order, form the next batch, and whether that batch is full: whether no
/// further upload fits. A single upload above a limit forms a batch of its own.
fn next_batch(waiting: &[WaitingUpload], max_keys: u64) -> (usize, bool) {
    let (mut keys, mut bytes, mut signatures) = (0, 0, 0);
    for (before, upload) in waiting.iter().enumerate() {
        keys += u64::from(upload.amount);
        bytes += upload.payload_bytes;
        signatures += upload.signature_bytes;
        let fits =
            before < MAX_UPLOADS && keys <= max_keys && bytes <= MAX_BYTES && signatures <= MAX_SIGNATURES;
        if before > 0 && !fits {
            return (before, true);
        }
    }
    let full = waiting.len() >= MAX_UPLOADS
        || keys >= max_keys
        || bytes >= MAX_BYTES
        || signatures >= MAX_SIGNATURES;
    (waiting.len(), full)
}

row! {
    /// What an auditor may see of one upload (spec §5.7.2).
    #[derive(Clone, Debug)]
    pub struct AuditRow {
        /// The upload's row.
        upload_id: i64,
        /// Who uploaded it.
        country: String,
        /// When.
        uploaded_at: DateTime<Utc>,
        /// How many keys it has.
        amount: u32,
        /// The signature as it was received.
        batch_signature: String,
        /// PEM of the certificate that the caller showed.
        uploader_certificate: String,
        /// Its thumbprint.
        uploader_thumbprint: Vec<u8>,
        /// The trust anchor's signature over its PEM.
        uploader_operator_signature: String,
        /// PEM of the certificate that signed the keys.
        signing_certificate: String,
        /// Its thumbprint.
        signing_thumbprint: Vec<u8>,
        /// The trust anchor's signature over its PEM.
        signing_operator_signature: String,
    }
}

impl Store {
    /// How much waits to be put into a batch; of very many uploads only the first are looked at, and counted.
    pub async fn pending(&self) -> Result<Pending, StoreError> {
        let sql = format!(
            "SELECT id, amount FROM upload WHERE batch_id IS NULL AND {NOT_WITHDRAWN} ORDER BY id LIMIT ?"
        );
        self.repeat("pending uploads", || async {
            let waiting: Vec<(i64, u32)> = self.db.rows(&sql, values![PENDING]).await?;
            let oldest = match waiting.first() {
                // The numbers are given in the order of arrival.
                Some((id, _)) => {
                    self.db.row("SELECT uploaded_at FROM upload WHERE id = ?", values![*id]).await?
                }
                None => None,
            };
            Ok(Pending {
                uploads: waiting.len() as u64,
                keys: waiting.iter().map(|(_, amount)| u64::from(*amount)).sum(),
                oldest,
            })
        })
        .await
    }

    /// Whether the waiting uploads form a full batch: see [`Formation::only_full`].
    pub async fn batch_is_full(&self, max_keys: u64) -> Result<bool, StoreError> {
        let waiting = self.rows("next batch", &self.first_waiting(), values![MAX_UPLOADS as u64 + 1]).await?;
        Ok(next_batch(&one_format(waiting), max_keys).1)
    }

    /// When the newest batch was formed, by the clock of the instance that formed it.
    pub async fn last_formed(&self) -> Result<Option<DateTime<Utc>>, StoreError> {
        self.row("newest batch", "SELECT formed_at FROM batch ORDER BY id DESC LIMIT 1", values![]).await
    }

    /// The first waiting uploads in the order in which they were stored.
    fn first_waiting(&self) -> String {
        format!(
            "SELECT id, country, amount, payload_bytes, LENGTH(batch_signature), format_major FROM upload \
             WHERE batch_id IS NULL AND {NOT_WITHDRAWN}{} ORDER BY id LIMIT ?",
            self.journaled_only()
        )
    }

    /// Puts the oldest waiting uploads into the next batch, or says `None` when there is nothing (or no full
    /// batch) to form. Uploads are taken whole and in the order in which they were stored; all in a batch have
    /// the same major version. Neither the ObjectId nor the day ever goes back, whatever the clock does.
    pub async fn form_batch(&self, lease: &Lease, how: Formation) -> Result<Option<BatchRecord>, StoreError> {
        self.repeat("form batch", || async {
            let formed = self.tx_once(|mut tx| async move {
                tx.fence(lease).await?;
                let Some((format_major, uploads)) = tx.uploads_for_batch(how).await? else {
                    return Ok(tx.discard(None));
                };
                let batch = tx.insert_batch(how.now, format_major, uploads).await?;
                tx.move_keys(&batch).await?;
                if self.journal {
                    tx.await_journal(journal::PENDING_BATCH, batch.id).await?;
                    tx.journal_old_uploads(batch.id, batch.day).await?;
                }
                tx.queue_notifications(batch.id).await?;
                tx.count_batch(batch.day, batch.uploads.iter().map(|upload| upload.country)).await?;
                Ok(tx.commit(Some(batch)))
            });
            self.with_day(how.now.date_naive(), formed.await).await
        })
        .await
    }

    /// The next batches behind `after` (from the first on when `None`) that were formed on or after `since`, in order:
    /// as many as are read in a moment, each with all its uploads.
    pub async fn batches_after(
        &self,
        after: Option<ObjectId>,
        since: NaiveDate,
    ) -> Result<ChainPage, StoreError> {
        self.repeat("read chain", || async {
            let after = after.unwrap_or(BEFORE_ALL);
            let (Some(end), mut is_last) = self.end_of_page(after, since).await? else {
                return Ok(ChainPage { batches: Vec::new(), is_last: true });
            };
            // In one statement, so that a batch is never seen without its uploads, whichever server answers.
            let sql = "SELECT b.id, b.day, b.sequence, b.format_major, u.id, u.country, u.amount, w.upload_id \
                       FROM batch b LEFT JOIN upload u ON u.batch_id = b.id \
                       LEFT JOIN withdrawal w ON w.upload_id = u.id \
                       WHERE b.id > ? AND b.id <= ? AND b.day >= ? ORDER BY b.id, u.id";
            let rows: Vec<ChainRow> = self.db.rows(sql, values![after, end, since]).await?;
            let mut batches: Vec<BatchRecord> = Vec::new();
            for ChainRow { batch, upload, withdrawn } in rows {
                if batches.last().is_none_or(|last| last.id != batch.id) {
                    batches.push(batch);
                }
                if let (Some(batch), Some(upload)) = (batches.last_mut(), upload) {
                    match withdrawn {
                        true => batch.withdrawn += 1,
                        false => batch.uploads.push(upload),
                    }
                }
            }
            // Asked after the batches, so that none that is held slips through.
            if let Some(held) = self.first_held_batch().await? {
                let read = batches.len();
                batches.retain(|batch| batch.id < held);
                is_last |= batches.len() < read;
            }
            // Of a server that does not have them yet there is nothing more to learn now.
            is_last |= batches.is_empty();
            Ok(ChainPage { batches, is_last })
        })
        .await
    }

    /// Where a page of [`Self::batches_after`] ends, and whether it is the last one. A batch has at most [`MAX_UPLOADS`],
    /// and each has at least one key.
    async fn end_of_page(
        &self,
        after: ObjectId,
        since: NaiveDate,
    ) -> Result<(Option<ObjectId>, bool), Failure> {
        let sql = "SELECT id, amount FROM batch WHERE id > ? AND day >= ? ORDER BY id LIMIT ?";
        let batches: Vec<(ObjectId, u32)> = self.db.rows(sql, values![after, since, PAGE_BATCHES]).await?;
        let is_last = (batches.len() as u64) < PAGE_BATCHES;
        let (mut end, mut amount) = (None, 0);
        for (id, keys) in batches {
            amount += u64::from(keys).min(MAX_UPLOADS as u64);
            if end.is_some() && amount > PAGE_UPLOADS {
                return Ok((end, false));
            }
            end = Some(id);
        }
        Ok((end, is_last))
    }

    /// What an auditor may see of the next uploads of a batch behind the upload `after`, in the order of their keys
    /// (spec §5.7.2). None are left when there are fewer than `limit`.
    pub async fn audit_rows(
        &self,
        batch: ObjectId,
        after: i64,
        limit: u32,
    ) -> Result<Vec<AuditRow>, StoreError> {
        let sql = "SELECT u.id, u.country, u.uploaded_at, u.amount, u.batch_signature, \
                   a.pem, a.thumbprint, a.operator_signature, s.pem, s.thumbprint, s.operator_signature \
                   FROM upload u JOIN certificate a ON a.id = u.uploader_certificate_id \
                   JOIN certificate s ON s.id = u.signing_certificate_id \
                   WHERE u.batch_id = ? AND u.id > ? ORDER BY u.id LIMIT ?";
        self.rows("audit", sql, values![batch, after, limit]).await
    }
}

impl Tx<'_> {
    /// The oldest waiting uploads that are to form a batch, and their major version; none when there are none, or not
    /// enough.
    async fn uploads_for_batch(
        &mut self,
        how: Formation,
    ) -> Result<Option<(u16, Vec<BatchUpload>)>, Failure> {
        let sql = self.store.first_waiting();
        let mut waiting = one_format(self.rows(&sql, values![MAX_UPLOADS as u64 + 1]).await?);
        let Some(format_major) = waiting.first().map(|upload| upload.format_major) else { return Ok(None) };
        let (amount, full) = next_batch(&waiting, how.max_keys);
        waiting.truncate(amount);
        let upload = |WaitingUpload { id, country, amount, .. }| BatchUpload { id, country, amount };
        let wanted = full || !how.only_full;
        Ok(wanted.then(|| (format_major, waiting.into_iter().map(upload).collect())))
    }

    /// Inserts the next batch, and puts these uploads into it.
    async fn insert_batch(
        &mut self,
        now: DateTime<Utc>,
        format_major: u16,
        uploads: Vec<BatchUpload>,
    ) -> Result<BatchRecord, Failure> {
        let sql = "SELECT id, day, sequence FROM batch ORDER BY id DESC LIMIT 1";
        let last: Option<(ObjectId, NaiveDate, u32)> = self.row(sql, values![]).await?;
        let today = now.date_naive();
        let (day, sequence) = match last {
            Some((_, day, sequence)) if day >= today => (day, sequence + 1),
            _ => (today, 1),
        };
        let id = ObjectId::next(last.map(|(id, ..)| id), now, efgs_protocol::random::bytes());
        let batch = BatchRecord { id, day, sequence, format_major, uploads, withdrawn: 0 };
        let row = PendingBatch {
            id,
            day,
            sequence,
            format_major,
            amount: batch.amount() as u32,
            formed_at: now,
            uploads: Vec::new(),
        };
        self.insert_all([row].into_iter()).await?;
        let sql = format!(
            "UPDATE upload SET batch_id = ? WHERE id IN ({}) AND batch_id IS NULL",
            sql::placeholders(batch.uploads.len())
        );
        let ids = batch.uploads.iter().map(|upload| upload.id.bind());
        let marked = self.run(&sql, std::iter::once(id.bind()).chain(ids).collect()).await?;
        if marked != batch.uploads.len() as u64 {
            return Err(Failure::Transient("an upload was deleted while its batch was formed".into()));
        }
        Ok(batch)
    }
}

/// Those of the first one's major version: a batch has one.
fn one_format(mut waiting: Vec<WaitingUpload>) -> Vec<WaitingUpload> {
    let major = waiting.first().map(|upload| upload.format_major);
    waiting.retain(|upload| Some(upload.format_major) == major);
    waiting
}

impl Tx<'_> {
    /// Moves the keys of a new batch that were uploaded on another day to the batch's day, so that expiry can forget a
    /// day as a whole. That is what waited at midnight, and no more than a batch holds.
    async fn move_keys(&mut self, batch: &BatchRecord) -> Result<(), Failure> {
        let sql =
            "SELECT id, uploaded_at FROM upload WHERE batch_id = ? AND (uploaded_at < ? OR uploaded_at >= ?)";
        let begin = batch.day.and_time(NaiveTime::MIN);
        let others: Vec<(i64, DateTime<Utc>)> =
            self.rows(sql, values![batch.id, begin, begin + Days::new(1)]).await?;
        let mut by_day = BTreeMap::<NaiveDate, Vec<i64>>::new();
        for (id, uploaded_at) in others {
            by_day.entry(uploaded_at.date_naive()).or_default().push(id);
        }
        for (day, ids) in by_day {
            let sql = format!(
                "UPDATE diagnosis_key SET day = ? WHERE day = ? AND upload_id IN ({})",
                sql::placeholders(ids.len())
            );
            let values = values![days::number(batch.day), days::number(day)];
            self.run(&sql, values.into_iter().chain(ids.into_iter().map(Bind::bind)).collect()).await?;
        }
        Ok(())
    }
}

/// A batch with one of its uploads.
struct ChainRow {
    batch: BatchRecord,
    upload: Option<BatchUpload>,
    withdrawn: bool,
}

impl Row for ChainRow {
    fn read(cells: &mut Cells) -> Result<Self, Failure> {
        let batch = BatchRecord::read(cells)?;
        let upload = match cells.next()? {
            Some(id) => Some(BatchUpload { id, country: cells.next()?, amount: cells.next()? }),
            None => return Ok(Self { batch, upload: None, withdrawn: false }),
        };
        Ok(Self { batch, upload, withdrawn: cells.next::<Option<i64>>()?.is_some() })
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

    use proptest::prelude::*;

    use super::*;

    fn upload(id: usize, amount: u32, payload_bytes: u64, signature_bytes: u64) -> WaitingUpload {
        let country = Country::new("DE").unwrap();
        WaitingUpload { id: id as i64, country, amount, payload_bytes, signature_bytes, format_major: 1 }
    }

    #[test]
    fn each_limit_makes_a_batch_full_at_the_upload_that_would_cross_it() {
        let all = |amount, bytes, signatures| {
            let uploads: Vec<_> = (0..1001).map(|id| upload(id, amount, bytes, signatures)).collect();
            next_batch(&uploads, 5000)
        };
        assert_eq!(all(10, 1, 1), (500, true), "keys");
        assert_eq!(all(1, MAX_BYTES / 10, 1), (10, true), "payloads");
        assert_eq!(all(1, 1, MAX_SIGNATURES / 20), (20, true), "signatures");
        assert_eq!(all(1, 1, 1), (1000, true), "uploads");
        for (one, full) in [
            (upload(0, 4999, MAX_BYTES - 1, MAX_SIGNATURES - 1), false),
            (upload(0, 5000, 1, 1), true),
            (upload(0, 1, MAX_BYTES, 1), true),
            (upload(0, 1, 1, MAX_SIGNATURES), true),
        ] {
            assert_eq!(next_batch(&[one], 5000), (1, full));
        }
        assert_eq!(next_batch(&[], 5000), (0, false));
    }

    proptest! {
        #[test]
        fn batches_are_whole_uploads_in_order_within_the_limits(
            sizes in prop::collection::vec((1u32..12_000, 1u64..(MAX_BYTES * 5 / 4), 1u64..(MAX_SIGNATURES * 5 / 4), 0u32..4), 0..40),
            small in 0usize..2500,
            max_keys in 1u64..=30_000,
        ) {
            // Small uploads with a few of any size between them.
            let mut waiting: Vec<_> = (0..small).map(|id| upload(id, 1 + id as u32 % 7, 100, 4000)).collect();
            for (i, (amount, bytes, signatures, scale)) in sizes.into_iter().enumerate() {
                let at = (i * 61) % (waiting.len() + 1);
                let one = upload(0, (amount >> (3 * scale)).max(1), bytes >> (3 * scale), signatures >> (3 * scale));
                waiting.insert(at, one);
            }
            for (id, upload) in waiting.iter_mut().enumerate() {
                upload.id = id as i64;
            }
            let mut rest = waiting.as_slice();
            while !rest.is_empty() {
                let (amount, full) = next_batch(&rest[..rest.len().min(MAX_UPLOADS + 1)], max_keys);
                let sum = |of: &[WaitingUpload]| {
                    let mut sums = (0, 0, 0);
                    for one in of {
                        sums.0 += u64::from(one.amount);
                        sums.1 += one.payload_bytes;
                        sums.2 += one.signature_bytes;
                    }
                    of.len() <= MAX_UPLOADS && sums.0 <= max_keys && sums.1 <= MAX_BYTES && sums.2 <= MAX_SIGNATURES
                };
                prop_assert!(amount >= 1 && amount <= rest.len());
                prop_assert!(amount == 1 || sum(&rest[..amount]), "a batch of several is within the limits");
                prop_assert!(amount == rest.len() || !sum(&rest[..=amount]), "as much as fits");
                prop_assert!(amount == rest.len() || full, "what is left opens the next batch");
                rest = &rest[amount..];
            }
        }
    }
}
