//! The journal: accepted uploads, batches, withdrawals and certificates, on a disk or in an S3-compatible store
//! outside the database, so that an empty database can be filled from it with the same batches, tags and order.
//!
//! **Never more than the database has**: a record is written after the transaction that it describes. **Never less
//! than a caller was told**: an upload is answered 201, a batch is served, and a withdrawal is answered 200 only
//! when the journal has them. Tables of the database (`store/journal.rs`) list what the journal lacks, and the job
//! here writes it. While the journal cannot be written, uploads are refused with 503 and no batch is formed.
//! Downloads continue.

use std::{
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering},
    },
    time::Duration,
};

use chrono::{Datelike, NaiveDate};
use parking_lot::Mutex;
use prost::Message;
use tokio::sync::oneshot;

use efgs_protocol::random;

use crate::{
    chain::Chain,
    clock::Clock,
    config::{self, ConfigError},
    http::{Code, Problem},
    instance::Instance,
    intake::Keyring,
    store::{Journaled, Store, StoreError},
    telemetry,
    trust::{Registry, Trust},
};

mod check;
mod medium;
mod pending;
mod prune;
mod read;
mod record;
mod replay;
mod s3;
mod segment;
#[cfg(test)]
mod tests;

pub use pending::Recording;
pub use read::{Contents, Progress, SegmentInfo};
pub use replay::{Replayed, replay};

use medium::{Appending, Disk, Medium};
use record::{CertificateRecord, Event, Group, JournalRecord};
use segment::{FIRST, Header, SegmentWriter};

/// A file is closed when it has grown beyond this, so that one can be read at once.
const SEGMENT_BYTES: u64 = 64 << 20;

/// Why the journal cannot be used.
#[derive(Clone, Debug, thiserror::Error)]
pub enum JournalError {
    /// It cannot be written.
    #[error("the journal cannot be written: {0}")]
    Write(String),
    /// It cannot be read.
    #[error("the journal cannot be read: {0}")]
    Read(String),
    /// The database failed.
    #[error(transparent)]
    Store(Arc<StoreError>),
    /// Its contents are damaged or incomplete; every text names the file.
    #[error("{0}")]
    Contents(String),
    /// Files that are too old could not be deleted.
    #[error("files of the journal that are too old are not deleted: {0}")]
    Prune(String),
}

impl Problem for JournalError {
    fn code(&self) -> Code {
        // The job here writes what is missing; a retry then succeeds.
        Code::Unavailable
    }
}

impl From<StoreError> for JournalError {
    fn from(error: StoreError) -> Self {
        Self::Store(Arc::new(error))
    }
}

/// What the journal is written from, and compared with when it is read.
#[derive(Clone, Debug)]
pub struct Sources {
    /// `[journal]`, if it is configured.
    pub settings: Option<config::Journal>,
    /// The database.
    pub store: Store,
    /// The time.
    pub clock: Clock,
    /// The certificates.
    pub trust: Arc<Trust>,
    /// What opens stored payloads and seals what is written.
    pub keyring: Arc<Keyring>,
    /// What is kept.
    pub chain: Arc<Chain>,
}

impl Sources {
    /// The first day whose files must exist. Files are kept a day longer than batches, because the last uploads of a day
    /// are in a batch of the next day.
    fn kept_since(&self) -> NaiveDate {
        self.chain.oldest().pred_opt().unwrap_or(NaiveDate::MIN)
    }
}

/// The journal of one instance.
#[derive(Debug)]
pub struct Journal {
    sources: Sources,
    /// The longest that one write may take.
    timeout: Duration,
    medium: Medium,
    instance: u64,
    waiting: Mutex<Vec<WaitingRecords>>,
    writer: tokio::sync::Mutex<WriterState>,
    disk: Disk,
    failing: Mutex<Option<JournalError>>,
    keeping: Mutex<Option<String>>,
    unreadable: Mutex<pending::Unreadable>,
    /// In seconds since 1970; 0 before the first one.
    last_write: AtomicI64,
}

/// Records that wait to be written, and the caller that waits for them.
#[derive(Debug)]
struct WaitingRecords {
    records: Vec<JournalRecord>,
    marks: Journaled,
    done: oneshot::Sender<Result<(), JournalError>>,
}

#[derive(Debug)]
struct WriterState {
    /// Of the newest segment.
    number: u64,
    /// The last one that was written.
    last: Option<LastSegment>,
    open: Option<OpenSegment>,
    /// The certificates that the journal has of this instance, and since when.
    certificates: Option<(NaiveDate, Option<Arc<Registry>>)>,
    pruned: Option<chrono::DateTime<chrono::Utc>>,
}

#[derive(Clone, Copy, Debug)]
struct LastSegment {
    number: u64,
    day: NaiveDate,
    hash: [u8; 32],
}

/// A file that is written to.
struct OpenSegment {
    day: NaiveDate,
    file: Appending,
    writing: SegmentWriter,
    bytes: u64,
}

impl std::fmt::Debug for OpenSegment {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Open").field("day", &self.day).field("bytes", &self.bytes).finish_non_exhaustive()
    }
}

impl Journal {
    /// Prepares; nothing is written yet.
    pub fn open(
        config: &config::Journal,
        instance: &Instance,
        sources: Sources,
    ) -> Result<Self, ConfigError> {
        Ok(Self {
            sources,
            timeout: config.timeout,
            medium: Medium::open(config)?,
            instance: u64::from_str_radix(&instance.id, 16)
                .unwrap_or_else(|_| u64::from_ne_bytes(random::bytes())),
            waiting: Mutex::default(),
            writer: tokio::sync::Mutex::new(WriterState {
                number: 0,
                last: None,
                open: None,
                certificates: None,
                pruned: None,
            }),
            disk: Disk::new(config.timeout),
            failing: Mutex::default(),
            keeping: Mutex::default(),
            unreadable: Mutex::default(),
            last_write: AtomicI64::new(0),
        })
    }

    /// When it was last written, in seconds since 1970; 0 before that.
    pub fn last_write(&self) -> i64 {
        self.last_write.load(Ordering::Relaxed)
    }

    /// Why nothing could be written at the last attempt.
    pub fn failing(&self) -> Option<JournalError> {
        self.failing.lock().clone()
    }

    /// Why files that are too old were not deleted at the last attempt.
    pub fn keeping(&self) -> Option<String> {
        self.keeping.lock().clone()
    }

    /// Writes records, then notes that in the database; returns when both is done. What arrives during a write is
    /// written as one group after it.
    async fn append(&self, records: Vec<JournalRecord>, marks: Journaled) -> Result<(), JournalError> {
        let (done, outcome) = oneshot::channel();
        self.waiting.lock().push(WaitingRecords { records, marks, done });
        {
            let mut writer = self.writer.lock().await;
            let mut group = std::mem::take(&mut *self.waiting.lock());
            if !group.is_empty() {
                let result = self.write(&mut writer, &mut group).await;
                self.note(&result);
                for entry in group {
                    // The caller may have stopped waiting.
                    drop(entry.done.send(result.clone()));
                }
            }
        }
        outcome.await.unwrap_or_else(|_| Err(JournalError::Write("the write was abandoned".into())))
    }

    fn note(&self, result: &Result<(), JournalError>) {
        let mut failing = self.failing.lock();
        match result {
            Ok(()) => {
                if failing.take().is_some() {
                    tracing::info!("the journal can be written again");
                }
            }
            // A failure of the database is reported elsewhere and says nothing about the journal.
            Err(error) if !matches!(error, JournalError::Write(_)) => {}
            Err(error) => {
                metrics::counter!(telemetry::JOURNAL_FAILURES).increment(1);
                if failing.replace(error.clone()).is_none() {
                    tracing::error!(%error, "the journal cannot be written: uploads are refused with 503 until it can");
                }
            }
        }
    }

    async fn write(
        &self,
        writer: &mut WriterState,
        entries: &mut [WaitingRecords],
    ) -> Result<(), JournalError> {
        let today = self.sources.clock.now().date_naive();
        if writer.open.as_ref().is_some_and(|open| open.day != today || open.bytes > SEGMENT_BYTES) {
            self.finish(writer).await?;
        }
        if matches!(self.medium, Medium::Folder(_)) && writer.open.is_none() {
            // A new file begins with the certificates: the failure before it may have lost the earlier ones.
            writer.certificates = None;
        }
        // Taken before its rows are read, so that a later change is written later.
        let registry = self.sources.trust.registry().ok();
        let mut records = self.certificates(writer, today).await?;
        let mut marks = Journaled::default();
        for entry in entries {
            records.append(&mut entry.records);
            marks.uploads.append(&mut entry.marks.uploads);
            marks.batches.append(&mut entry.marks.batches);
            marks.withdrawals.append(&mut entry.marks.withdrawals);
        }
        let bytes = match &self.medium {
            Medium::Folder(folder) => self.write_file(writer, folder, today, records).await?,
            Medium::Bucket(bucket) => self.write_object(writer, bucket, today, records).await?,
        };
        if writer.certificates.is_none() {
            writer.certificates = Some((today, registry));
        }
        metrics::counter!(telemetry::JOURNAL_BYTES).increment(bytes as u64);
        self.last_write.store(self.sources.clock.now().timestamp(), Ordering::Relaxed);
        Ok(self.sources.store.journaled(&marks).await?)
    }

    /// The certificates, if they have changed since this instance last wrote them, or if that was on another day, whose
    /// files may be deleted. A registry that is read again and has not changed is the same object.
    async fn certificates(
        &self,
        writer: &mut WriterState,
        today: NaiveDate,
    ) -> Result<Vec<JournalRecord>, JournalError> {
        if let Some((day, known)) = &writer.certificates
            && *day == today
            && match (known, self.sources.trust.registry()) {
                (Some(known), Ok(now)) => Arc::ptr_eq(known, &now),
                (None, Ok(_)) => false,
                (_, Err(_)) => true,
            }
        {
            return Ok(Vec::new());
        }
        writer.certificates = None;
        let at = self.sources.clock.now().timestamp_micros();
        let rows = self.sources.store.certificates().await?;
        Ok(rows.into_iter().map(|row| Event::Certificate(CertificateRecord::new(row, at)).into()).collect())
    }

    fn header(&self, writer: &mut WriterState, day: NaiveDate) -> Header {
        writer.number += 1;
        let (after, previous) = writer.last.map_or((0, FIRST), |last| (last.number, last.hash));
        Header { instance: self.instance, number: writer.number, day, after, previous }
    }

    async fn write_file(
        &self,
        writer: &mut WriterState,
        folder: &std::path::Path,
        today: NaiveDate,
        records: Vec<JournalRecord>,
    ) -> Result<usize, JournalError> {
        let mut group = Group { records, after_day: 0 };
        // After a failure no file is open, and the next attempt begins a new one.
        let mut open = match writer.open.take() {
            Some(open) => open,
            None => {
                self.replace_lost(writer, folder).await?;
                group.after_day = after_day(writer);
                let header = self.header(writer, today);
                let bytes = header.to_bytes();
                let size = bytes.len() as u64;
                let file = Appending::create(&self.disk, folder.join(header.name()), bytes).await?;
                let writing = SegmentWriter::new(&header);
                writer.last = Some(LastSegment { number: writer.number, day: today, hash: writing.hash() });
                OpenSegment { day: today, file, writing, bytes: size }
            }
        };
        let frame;
        (open.writing, frame) = self.seal(open.writing, group).await?;
        let bytes = frame.len();
        open.file = open.file.append(&self.disk, frame).await?;
        open.bytes += bytes as u64;
        writer.last = Some(LastSegment { number: writer.number, day: open.day, hash: open.writing.hash() });
        writer.open = Some(open);
        Ok(bytes)
    }

    /// Encodes and encrypts a group of records on a thread of its own: with uploads in it that takes milliseconds. As only
    /// one group is written at a time, it is never more than one thread.
    async fn seal(
        &self,
        mut writing: SegmentWriter,
        group: Group,
    ) -> Result<(SegmentWriter, Vec<u8>), JournalError> {
        let keyring = self.sources.keyring.clone();
        let seal = move || writing.seal(&group.encode_to_vec(), &keyring).map(|frame| (writing, frame));
        let sealed =
            tokio::task::spawn_blocking(seal).await.map_err(|e| JournalError::Write(e.to_string()))?;
        sealed.map_err(|e| JournalError::Write(e.to_string()))
    }

    /// If this instance's last file was deleted too early, the journal has lost records that the database has. Then
    /// everything in the database is written again, and the next file has no predecessor.
    async fn replace_lost(
        &self,
        writer: &mut WriterState,
        folder: &std::path::Path,
    ) -> Result<(), JournalError> {
        let Some(last) = writer.last.filter(|last| last.day >= self.sources.kept_since()) else {
            return Ok(());
        };
        let name = segment::name(last.day, self.instance, last.number);
        if self.disk.has(folder.join(&name)).await? {
            return Ok(());
        }
        let rows = self.sources.store.journal_everything().await?;
        tracing::error!(
            name,
            rows,
            "a file of the journal is missing: everything that the database holds is written to the journal again"
        );
        writer.last = None;
        Ok(())
    }

    async fn write_object(
        &self,
        writer: &mut WriterState,
        bucket: &s3::Bucket,
        today: NaiveDate,
        records: Vec<JournalRecord>,
    ) -> Result<usize, JournalError> {
        let group = Group { records, after_day: after_day(writer) };
        let header = self.header(writer, today);
        let (writing, frame) = self.seal(SegmentWriter::new(&header), group).await?;
        let mut object = header.to_bytes();
        object.extend_from_slice(&frame);
        let bytes = object.len();
        bucket.put(&header.name(), object).await?;
        writer.last = Some(LastSegment { number: writer.number, day: today, hash: writing.hash() });
        Ok(bytes)
    }

    /// Closes the open file.
    async fn finish(&self, writer: &mut WriterState) -> Result<(), JournalError> {
        if let (Medium::Folder(folder), Some(open)) = (&self.medium, &writer.open) {
            let day = open.day;
            let end = vec![Event::End(record::EndRecord {}).into()];
            self.write_file(writer, folder, day, end).await?;
            writer.open = None;
        }
        Ok(())
    }

    /// Closes the open file, at the end of the program.
    pub async fn close(&self) {
        let mut writer = self.writer.lock().await;
        if let Err(error) = self.finish(&mut writer).await {
            tracing::warn!(%error, "the journal's file was not closed properly");
        }
    }
}

/// [`Group::after_day`] of the first group of a new segment.
fn after_day(writer: &WriterState) -> i32 {
    writer.last.map_or(0, |last| last.day.num_days_from_ce())
}
