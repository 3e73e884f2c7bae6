//! Forming batches and reading the chain of them (spec §4.2.8).

use chrono::{DateTime, NaiveDate, NaiveDateTime, Utc};
use efgs_protocol::{batch_tag::ObjectId, country::Country};
use sea_orm::{
    ActiveValue::Set, ColumnTrait, ConnectionTrait, EntityTrait, QueryFilter, QueryOrder, QueryResult,
    QuerySelect, sea_query::Expr,
};

use super::{
    Lease, Store, StoreError,
    entity::{batch, upload},
    error::Failure,
    journal,
    withdrawals::withdrawn_ids,
};

/// Payload bytes in one batch, unless a single upload has more: keys with long lists of visited countries must not
/// make a batch that no instance has the memory for. Ordinary batches are far below.
const MAX_BYTES: i64 = 32 << 20;

/// Waiting uploads that are counted at most: more than form the largest batch that the settings allow, so it is always
/// known whether a batch is full.
const PENDING: u64 = 50_000;
/// Batches that one statement reads at most.
const PAGE_BATCHES: u64 = 1000;
/// Uploads that one statement reads at most, unless a single batch has more.
const PAGE_UPLOADS: i64 = 100_000;

/// A batch: its names, and the uploads in it in their order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BatchRecord {
    /// The ObjectId.
    pub id: ObjectId,
    /// The UTC day it was formed on.
    pub day: NaiveDate,
    /// Its number on that day, from 1.
    pub sequence: u32,
    /// Major version of its format.
    pub format_major: u16,
    /// The uploads, in the order of their keys in the download, without the withdrawn ones.
    pub uploads: Vec<BatchUpload>,
    /// How many were withdrawn.
    pub withdrawn: u32,
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
    /// Form a batch only if no further upload would fit.
    pub only_full: bool,
}

/// What an auditor may see of one upload (spec §5.7.2).
#[derive(Clone, Debug)]
pub struct AuditRow {
    /// The upload's row.
    pub upload_id: i64,
    /// Who uploaded it.
    pub country: String,
    /// When.
    pub uploaded_at: DateTime<Utc>,
    /// How many keys it has.
    pub amount: u32,
    /// The signature as it was received.
    pub batch_signature: String,
    /// PEM of the certificate that the caller showed.
    pub uploader_certificate: String,
    /// Its thumbprint.
    pub uploader_thumbprint: Vec<u8>,
    /// The trust anchor's signature over its PEM.
    pub uploader_operator_signature: String,
    /// PEM of the certificate that signed the keys.
    pub signing_certificate: String,
    /// Its thumbprint.
    pub signing_thumbprint: Vec<u8>,
    /// The trust anchor's signature over its PEM.
    pub signing_operator_signature: String,
}

impl Store {
    /// How much waits to be put into a batch; of very many uploads only the first are looked at, and counted.
    pub async fn pending(&self) -> Result<Pending, StoreError> {
        self.repeat("pending uploads", || async {
            let waiting: Vec<(i64, i32)> = upload::Entity::find()
                .select_only()
                .columns([upload::Column::Id, upload::Column::Amount])
                .filter(upload::Column::BatchId.is_null())
                .filter(upload::Column::Id.not_in_subquery(withdrawn_ids()))
                .order_by_asc(upload::Column::Id)
                .limit(PENDING)
                .into_tuple()
                .all(&self.db)
                .await?;
            let oldest: Option<NaiveDateTime> = match waiting.first() {
                // The numbers are given in the order of arrival.
                Some((id, _)) => {
                    upload::Entity::find_by_id(*id)
                        .select_only()
                        .column(upload::Column::UploadedAt)
                        .into_tuple()
                        .one(&self.db)
                        .await?
                }
                None => None,
            };
            Ok(Pending {
                uploads: waiting.len() as u64,
                keys: waiting.iter().map(|(_, amount)| u64::from(amount.unsigned_abs())).sum(),
                oldest: oldest.map(|oldest| oldest.and_utc()),
            })
        })
        .await
    }

    /// The newest batch that was ever formed and is still recorded.
    pub async fn newest_batch(&self) -> Result<Option<ObjectId>, StoreError> {
        self.repeat("newest batch", || async {
            let newest: Option<Vec<u8>> = batch::Entity::find()
                .select_only()
                .column(batch::Column::Id)
                .order_by_desc(batch::Column::Id)
                .into_tuple()
                .one(&self.db)
                .await?;
            newest.map(|id| parse_id(&id)).transpose()
        })
        .await
    }

    /// Puts the oldest waiting uploads into the next batch, or says `None` when there is nothing (or no full
    /// batch) to form. Uploads are taken whole and in the order in which they were stored; all in a batch have
    /// the same major version. Neither the ObjectId nor the day ever goes back, whatever the clock does.
    pub async fn form_batch(&self, lease: &Lease, how: Formation) -> Result<Option<BatchRecord>, StoreError> {
        self.repeat("form batch", || async {
            let tx = self.begin().await?;
            self.fence(&tx, lease).await?;
            let waiting: Vec<(i64, String, i32, i64, i16)> = upload::Entity::find()
                .select_only()
                .columns([
                    upload::Column::Id,
                    upload::Column::Country,
                    upload::Column::Amount,
                    upload::Column::PayloadBytes,
                    upload::Column::FormatMajor,
                ])
                .filter(upload::Column::BatchId.is_null())
                .filter(upload::Column::Id.not_in_subquery(withdrawn_ids()))
                .filter(self.journaled_only())
                .order_by_asc(upload::Column::Id)
                // An upload has at least one key, so more cannot fit; one further tells whether the batch is full.
                .limit(how.max_keys + 1)
                .into_tuple()
                .all(&tx)
                .await?;
            let Some(&(.., format_major)) = waiting.first() else {
                tx.rollback().await?;
                return Ok(None);
            };
            let (mut keys, mut bytes) = (0, 0);
            let mut full = false;
            let mut uploads = Vec::new();
            for (id, country, amount, payload_bytes, _) in
                waiting.iter().filter(|(.., major)| *major == format_major)
            {
                let amount = *amount as u32;
                let fits = keys + u64::from(amount) <= how.max_keys && bytes + payload_bytes <= MAX_BYTES;
                if !uploads.is_empty() && !fits {
                    full = true;
                    break;
                }
                keys += u64::from(amount);
                bytes += payload_bytes;
                uploads.push(BatchUpload { id: *id, country: parse_country(country)?, amount });
            }
            if how.only_full && !full && keys < how.max_keys {
                tx.rollback().await?;
                return Ok(None);
            }
            let last = batch::Entity::find().order_by_desc(batch::Column::Id).one(&tx).await?;
            let last_id = last.as_ref().map(|last| parse_id(&last.id)).transpose()?;
            let today = how.now.date_naive();
            let (day, sequence) = match &last {
                Some(last) if last.day >= today => (last.day, last.sequence + 1),
                _ => (today, 1),
            };
            let id = ObjectId::next(last_id, how.now, rand::random());
            let row = batch::ActiveModel {
                id: Set(id.as_bytes().to_vec()),
                day: Set(day),
                sequence: Set(sequence),
                format_major: Set(format_major),
                amount: Set(keys as i32),
                formed_at: Set(how.now.naive_utc()),
            };
            batch::Entity::insert(row).exec_without_returning(&tx).await?;
            let marked = upload::Entity::update_many()
                .col_expr(upload::Column::BatchId, Expr::value(id.as_bytes().to_vec()))
                .filter(upload::Column::Id.is_in(uploads.iter().map(|upload| upload.id)))
                .filter(upload::Column::BatchId.is_null())
                .exec(&tx)
                .await?;
            if marked.rows_affected != uploads.len() as u64 {
                return Err(Failure::Transient("an upload went away while its batch was formed".into()));
            }
            if self.journal {
                let pending = self.statement(journal::PENDING_BATCH, [id.as_bytes().to_vec().into()]);
                tx.execute_raw(pending).await?;
                self.journal_old_uploads(&tx, id, day).await?;
            }
            self.queue_notifications(&tx, id).await?;
            let countries = uploads.iter().map(|upload| upload.country);
            tx.execute_unprepared(&self.count_batch(day, countries)).await?;
            tx.commit().await?;
            Ok(Some(BatchRecord {
                id,
                day,
                sequence: sequence as u32,
                format_major: format_major as u16,
                uploads,
                withdrawn: 0,
            }))
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
            let after = after.map_or(vec![0; 12], |id| id.as_bytes().to_vec());
            let (Some(end), mut is_last) = self.end_of_page(&after, since).await? else {
                return Ok(ChainPage { batches: Vec::new(), is_last: true });
            };
            // In one statement, so that a batch is never seen without its uploads, whichever server answers.
            let rows = self
                .db
                .query_all_raw(self.statement(
                    "SELECT b.id AS id, b.day AS day, b.sequence AS sequence, b.format_major AS format_major, \
                     u.id AS upload_id, u.country AS country, u.amount AS amount, w.upload_id AS withdrawn \
                     FROM batch b LEFT JOIN upload u ON u.batch_id = b.id \
                     LEFT JOIN withdrawal w ON w.upload_id = u.id \
                     WHERE b.id > ? AND b.id <= ? AND b.day >= ? ORDER BY b.id, u.id",
                    [after.into(), end.into(), since.into()],
                ))
                .await?;
            let mut batches: Vec<BatchRecord> = Vec::new();
            for row in &rows {
                let id = parse_id(&row.try_get::<Vec<u8>>("", "id")?)?;
                if batches.last().is_none_or(|last| last.id != id) {
                    batches.push(batch_of(id, row)?);
                }
                let withdrawn: Option<i64> = row.try_get("", "withdrawn")?;
                if let (Some(batch), Some(upload_id)) = (batches.last_mut(), row.try_get("", "upload_id")?) {
                    if withdrawn.is_some() {
                        batch.withdrawn += 1;
                        continue;
                    }
                    batch.uploads.push(BatchUpload {
                        id: upload_id,
                        country: parse_country(&row.try_get::<String>("", "country")?)?,
                        amount: row.try_get::<i32>("", "amount")? as u32,
                    });
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

    /// Where a page of [`Self::batches_after`] ends, and whether it is the last one. An upload has at least one key, so
    /// the amounts say how many uploads there are at most.
    async fn end_of_page(&self, after: &[u8], since: NaiveDate) -> Result<(Option<Vec<u8>>, bool), Failure> {
        let batches: Vec<(Vec<u8>, i32)> = batch::Entity::find()
            .select_only()
            .columns([batch::Column::Id, batch::Column::Amount])
            .filter(batch::Column::Id.gt(after))
            .filter(batch::Column::Day.gte(since))
            .order_by_asc(batch::Column::Id)
            .limit(PAGE_BATCHES)
            .into_tuple()
            .all(&self.db)
            .await?;
        let is_last = (batches.len() as u64) < PAGE_BATCHES;
        let (mut end, mut amount) = (None, 0_i64);
        for (id, keys) in batches {
            amount += i64::from(keys);
            if end.is_some() && amount > PAGE_UPLOADS {
                return Ok((end, false));
            }
            end = Some(id);
        }
        Ok((end, is_last))
    }

    /// What an auditor may see of a batch, in the order of its keys (spec §5.7.2).
    pub async fn audit_rows(&self, batch: ObjectId) -> Result<Vec<AuditRow>, StoreError> {
        self.repeat("audit", || async {
            let rows = self
                .db
                .query_all_raw(self.statement(
                    "SELECT u.id AS upload_id, u.country AS country, u.uploaded_at AS uploaded_at, u.amount AS amount, \
                     u.batch_signature AS batch_signature, a.pem AS a_pem, a.thumbprint AS a_thumbprint, \
                     a.operator_signature AS a_signature, s.pem AS s_pem, s.thumbprint AS s_thumbprint, \
                     s.operator_signature AS s_signature \
                     FROM upload u JOIN certificate a ON a.id = u.uploader_certificate_id \
                     JOIN certificate s ON s.id = u.signing_certificate_id WHERE u.batch_id = ? ORDER BY u.id",
                    [batch.as_bytes().to_vec().into()],
                ))
                .await?;
            rows.iter().map(audit_row).collect()
        })
        .await
    }
}

fn batch_of(id: ObjectId, row: &QueryResult) -> Result<BatchRecord, Failure> {
    Ok(BatchRecord {
        id,
        day: row.try_get("", "day")?,
        sequence: row.try_get::<i32>("", "sequence")? as u32,
        format_major: row.try_get::<i16>("", "format_major")? as u16,
        uploads: Vec::new(),
        withdrawn: 0,
    })
}

fn audit_row(row: &QueryResult) -> Result<AuditRow, Failure> {
    Ok(AuditRow {
        upload_id: row.try_get("", "upload_id")?,
        country: row.try_get("", "country")?,
        uploaded_at: row.try_get::<chrono::NaiveDateTime>("", "uploaded_at")?.and_utc(),
        amount: row.try_get::<i32>("", "amount")? as u32,
        batch_signature: row.try_get("", "batch_signature")?,
        uploader_certificate: row.try_get("", "a_pem")?,
        uploader_thumbprint: row.try_get("", "a_thumbprint")?,
        uploader_operator_signature: row.try_get("", "a_signature")?,
        signing_certificate: row.try_get("", "s_pem")?,
        signing_thumbprint: row.try_get("", "s_thumbprint")?,
        signing_operator_signature: row.try_get("", "s_signature")?,
    })
}

pub(super) fn parse_id(bytes: &[u8]) -> Result<ObjectId, Failure> {
    let bytes = bytes.try_into().map_err(|_| Failure::Permanent("a batch's id has not 12 bytes".into()))?;
    Ok(ObjectId::from_bytes(bytes))
}

pub(super) fn parse_country(text: &str) -> Result<Country, Failure> {
    Country::new(text)
        .map_err(|_| Failure::Permanent("an upload's country is not two capital letters".into()))
}
