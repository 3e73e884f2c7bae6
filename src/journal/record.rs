//! What the journal records, as protobuf messages. Fields are added, never changed: a journal is read by later
//! versions, and fields that this version does not know are skipped.

use std::fmt;

use chrono::{DateTime, Datelike, NaiveDate, Utc};
use efgs_protocol::batch_tag::ObjectId;
use prost::Message;

use crate::{
    intake::StoredCertificate,
    store::{JournalUpload, PendingBatch, PendingWithdrawal},
};

/// What is written at once: one frame.
#[derive(Clone, PartialEq, Message)]
pub(super) struct Group {
    #[prost(message, repeated, tag = "1")]
    pub(super) records: Vec<JournalRecord>,
    /// In the first group of a segment the day of the one before it, in days since the beginning of year 1; else 0. It
    /// decides whether that one must still exist.
    #[prost(int32, tag = "2")]
    pub(super) after_day: i32,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct JournalRecord {
    #[prost(oneof = "Event", tags = "1, 2, 3, 4, 5")]
    pub(super) event: Option<Event>,
}

#[derive(Clone, PartialEq, prost::Oneof)]
pub(super) enum Event {
    #[prost(message, tag = "1")]
    Upload(UploadRecord),
    #[prost(message, tag = "2")]
    Batch(BatchRecord),
    #[prost(message, tag = "3")]
    Withdrawal(WithdrawalRecord),
    #[prost(message, tag = "4")]
    Certificate(CertificateRecord),
    /// The file was closed; nothing follows in it.
    #[prost(message, tag = "5")]
    End(EndRecord),
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct EndRecord {}

/// An upload, whole.
#[derive(Clone, PartialEq, Message)]
#[prost(skip_debug)]
pub(super) struct UploadRecord {
    #[prost(int64, tag = "1")]
    id: i64,
    #[prost(string, tag = "2")]
    country: String,
    #[prost(string, tag = "3")]
    tag: String,
    #[prost(string, tag = "4")]
    format: String,
    #[prost(uint32, tag = "5")]
    format_major: u32,
    #[prost(uint32, tag = "6")]
    format_minor: u32,
    #[prost(bytes = "vec", tag = "7")]
    content_hash: Vec<u8>,
    #[prost(string, tag = "8")]
    batch_signature: String,
    #[prost(int64, tag = "9")]
    uploader_certificate_id: i64,
    #[prost(bytes = "vec", tag = "10")]
    uploader_thumbprint: Vec<u8>,
    #[prost(int64, tag = "11")]
    signing_certificate_id: i64,
    #[prost(bytes = "vec", tag = "12")]
    signing_thumbprint: Vec<u8>,
    #[prost(int64, tag = "13")]
    uploaded_at: i64,
    #[prost(uint32, tag = "14")]
    amount: u32,
    /// The keys in the order of the request: a `DiagnosisKeyBatch`.
    #[prost(bytes = "vec", tag = "15")]
    pub(super) keys: Vec<u8>,
}

// Without the keys.
impl fmt::Debug for UploadRecord {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("UploadRecord")
            .field("id", &self.id)
            .field("country", &self.country)
            .finish_non_exhaustive()
    }
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct BatchRecord {
    #[prost(bytes = "vec", tag = "1")]
    id: Vec<u8>,
    #[prost(int32, tag = "2")]
    day: i32,
    #[prost(uint32, tag = "3")]
    sequence: u32,
    #[prost(uint32, tag = "4")]
    format_major: u32,
    #[prost(uint32, tag = "5")]
    amount: u32,
    #[prost(int64, tag = "6")]
    formed_at: i64,
    #[prost(message, repeated, tag = "7")]
    uploads: Vec<BatchedUpload>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct BatchedUpload {
    #[prost(int64, tag = "1")]
    id: i64,
    #[prost(bytes = "vec", tag = "2")]
    content_hash: Vec<u8>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct WithdrawalRecord {
    #[prost(int64, tag = "1")]
    upload_id: i64,
    #[prost(string, tag = "2")]
    country: String,
    #[prost(string, tag = "3")]
    tag: String,
    #[prost(uint32, tag = "4")]
    amount: u32,
    #[prost(int64, tag = "5")]
    at: i64,
    #[prost(string, tag = "6")]
    by: String,
    #[prost(string, tag = "7")]
    reason: String,
}

/// A row of the registry, as it was at that moment.
#[derive(Clone, PartialEq, Message)]
pub(super) struct CertificateRecord {
    #[prost(int64, tag = "1")]
    id: i64,
    #[prost(bytes = "vec", tag = "2")]
    thumbprint: Vec<u8>,
    #[prost(string, tag = "3")]
    kind: String,
    #[prost(string, tag = "4")]
    country: String,
    #[prost(string, tag = "5")]
    pem: String,
    #[prost(string, tag = "6")]
    operator_signature: String,
    #[prost(string, tag = "7")]
    registration_signature: String,
    #[prost(string, tag = "8")]
    waived: String,
    #[prost(string, tag = "9")]
    waived_by: String,
    #[prost(string, tag = "10")]
    waived_because: String,
    #[prost(int64, tag = "11")]
    imported_at: i64,
    #[prost(int64, optional, tag = "12")]
    revoked_at: Option<i64>,
    /// When this was read from the database: the newest record of a certificate counts.
    #[prost(int64, tag = "13")]
    pub(super) read_at: i64,
}

impl From<Event> for JournalRecord {
    fn from(event: Event) -> Self {
        Self { event: Some(event) }
    }
}

/// Makes records from rows and rows from records. The fields have the same names: `same` have one type in both, `times`
/// and `optional_times` are microseconds in the record, `numbers` are smaller in the row, and `beside` are not in the row.
macro_rules! record_of_row {
    (
        $record:ident, $row:ident, same: $($same:ident)*, times: $($time:ident)*, optional_times: $($optional:ident)*,
        numbers: $($number:ident)*, beside: $($beside:ident: $type:ty)*
    ) => {
        impl $record {
            /// The record of a row, and what is beside it.
            pub(super) fn new(row: $row $(, $beside: $type)*) -> Self {
                Self {
                    $($same: row.$same,)*
                    $($time: row.$time.timestamp_micros(),)*
                    $($optional: row.$optional.map(|time| time.timestamp_micros()),)*
                    $($number: row.$number.into(),)*
                    $($beside,)*
                }
            }

            /// The row; `None` when a value is out of its range.
            pub(super) fn row(self) -> Option<$row> {
                Some($row {
                    $($same: self.$same,)*
                    $($time: time(self.$time)?,)*
                    $($optional: match self.$optional {
                        Some(micros) => Some(time(micros)?),
                        None => None,
                    },)*
                    $($number: self.$number.try_into().ok()?,)*
                })
            }
        }
    };
}

record_of_row!(
    UploadRecord, JournalUpload,
    same: id country tag format amount content_hash batch_signature uploader_certificate_id uploader_thumbprint
        signing_certificate_id signing_thumbprint,
    times: uploaded_at, optional_times: , numbers: format_major format_minor, beside: keys: Vec<u8>
);

record_of_row!(
    WithdrawalRecord, PendingWithdrawal,
    same: upload_id country tag amount by reason,
    times: at, optional_times: , numbers: , beside:
);

record_of_row!(
    CertificateRecord, StoredCertificate,
    same: id thumbprint kind country pem operator_signature registration_signature waived waived_by waived_because,
    times: imported_at, optional_times: revoked_at, numbers: , beside: read_at: i64
);

impl From<PendingBatch> for BatchRecord {
    fn from(batch: PendingBatch) -> Self {
        let upload = |(id, content_hash)| BatchedUpload { id, content_hash };
        Self {
            id: batch.id.as_bytes().to_vec(),
            day: batch.day.num_days_from_ce(),
            sequence: batch.sequence,
            format_major: batch.format_major.into(),
            amount: batch.amount,
            formed_at: batch.formed_at.timestamp_micros(),
            uploads: batch.uploads.into_iter().map(upload).collect(),
        }
    }
}

impl BatchRecord {
    /// The batch's row; `None` when a value is out of its range.
    pub(super) fn row(self) -> Option<PendingBatch> {
        Some(PendingBatch {
            id: ObjectId::from_bytes(self.id.try_into().ok()?),
            day: NaiveDate::from_num_days_from_ce_opt(self.day)?,
            sequence: self.sequence,
            format_major: u16::try_from(self.format_major).ok()?,
            amount: self.amount,
            formed_at: time(self.formed_at)?,
            uploads: self.uploads.into_iter().map(|upload| (upload.id, upload.content_hash)).collect(),
        })
    }
}

fn time(micros: i64) -> Option<DateTime<Utc>> {
    DateTime::from_timestamp_micros(micros)
}
