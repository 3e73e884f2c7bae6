//! Writing what is in the database and not yet in the journal.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use chrono::{DateTime, TimeDelta, Utc};
use efgs_protocol::wire;

use super::{
    Journal, JournalError,
    record::{Event, UploadRecord, WithdrawalRecord},
};
use crate::{
    health::{Health, JobWatch},
    http,
    intake::{EncryptionError, Keyring, VerifiedUpload},
    jobs::{self, Shutdown, Steps},
    limits::Kind,
    store::{Job, JournalUpload, Journaled, StoreError, StoredPayload},
    workers::Workers,
};

/// An upload that is not in the journal after this time was left behind by its instance.
const LEFT_BEHIND: TimeDelta = TimeDelta::seconds(10);
/// Uploads that were left behind and are read at once.
const UPLOADS: u64 = 8;
/// Batches and withdrawals that are read at once.
const ROWS: u64 = 200;
/// How often to try again what cannot be read.
const AGAIN: TimeDelta = TimeDelta::minutes(1);
/// How often to look for what is missing.
const PACE: Duration = Duration::from_secs(1);

/// Uploads that wait for the journal and cannot be read from the database.
#[derive(Debug, Default)]
pub(super) struct Unreadable {
    /// When all that waited was last tried.
    tried: Option<DateTime<Utc>>,
    /// By their numbers: which upload it is, why it cannot be read, and what helps.
    uploads: BTreeMap<i64, String>,
}

/// The journal for those who store: does nothing where none is configured.
#[derive(Clone, Debug, Default)]
pub struct Recording(Option<Arc<Journal>>);

impl Recording {
    /// Through this journal, if there is one.
    pub fn new(journal: Option<Arc<Journal>>) -> Self {
        Self(journal)
    }

    /// The journal, if there is one.
    pub fn journal(&self) -> Option<&Journal> {
        self.0.as_deref()
    }

    /// Writes an upload that has just been stored, before its sender is answered. Does nothing without a journal.
    pub async fn upload(&self, upload: &mut VerifiedUpload, id: i64) -> Result<(), JournalError> {
        let Some(journal) = &self.0 else { return Ok(()) };
        let keys = upload.take_encoding();
        let keys = keys.ok_or_else(|| JournalError::Write("the upload's encoding was not kept".into()))?;
        let row = JournalUpload::new(upload, id);
        journal.append_upload(id, UploadRecord::new(row, keys)).await
    }

    /// Writes an upload that was stored by an earlier request and has been sent again, unless the journal has it. It
    /// writes what the database has, whose keys may be in another order under another signature. If that cannot be
    /// read, the keys that were sent replace it. Keys are decrypted within the country's limits on computation.
    pub async fn ensure_upload(
        &self,
        workers: &Workers,
        sent: &VerifiedUpload,
        id: i64,
    ) -> Result<(), http::Error> {
        let Some(journal) = &self.0 else { return Ok(()) };
        let store = &journal.sources.store;
        let Some(row) = store.unjournaled_upload(id).await? else { return Ok(()) };
        let read = async |row| workers.compute(sent.country(), Kind::Uploads, journal.read(row).await?).await;
        let record = match read(row.clone()).await? {
            Ok(record) => record,
            Err(reason) => {
                tracing::warn!(
                    upload = id,
                    reason,
                    "the stored keys of an upload are replaced by those sent again"
                );
                store.repair_payloads(id, sent).await?;
                read(row).await?.map_err(JournalError::Contents)?
            }
        };
        Ok(journal.append_upload(id, record).await?)
    }

    /// Before batches are formed: an error when the journal could not be written at the last attempt. Only the journal's
    /// own job retries, so that nothing else waits for a disk that hangs.
    pub fn ready_for_batches(&self) -> Result<(), JournalError> {
        self.0.as_ref().and_then(|journal| journal.failing()).map_or(Ok(()), Err)
    }

    /// How often a job that writes to the journal has to make progress, if it is `interval` without one: a write may wait for
    /// another one, and both may take as long as the disk or the store may.
    pub fn interval(&self, interval: Duration) -> Duration {
        self.0.as_ref().map_or(interval, |journal| interval.max(journal.timeout * 2))
    }

    /// Writes the batches and withdrawals that the journal has not yet. Does nothing without a journal.
    pub async fn catch_up(&self, steps: Option<&Steps<'_>>) -> Result<(), JournalError> {
        let Some(journal) = &self.0 else { return Ok(()) };
        loop {
            if let Some(steps) = steps {
                steps.next().await?;
            }
            let withdrawals = journal.sources.store.unjournaled_withdrawals(ROWS).await?;
            let batches = journal.sources.store.unjournaled_batches(ROWS).await?;
            if withdrawals.is_empty() && batches.is_empty() {
                return Ok(());
            }
            let marks = Journaled {
                batches: batches.iter().map(|batch| batch.id).collect(),
                withdrawals: withdrawals.iter().map(|row| row.upload_id).collect(),
                ..Journaled::default()
            };
            let records = batches.into_iter().map(|batch| Event::Batch(batch.into()).into());
            let records = records.chain(
                withdrawals.into_iter().map(|row| Event::Withdrawal(WithdrawalRecord::new(row)).into()),
            );
            journal.append(records.collect(), marks).await?;
        }
    }

    /// The job, until the gateway stops.
    pub async fn run(self, health: Arc<Health>, shutdown: Shutdown) {
        let Some(journal) = &self.0 else { return };
        let watch = health.watch(Job::Journal.name(), self.interval(PACE));
        let turn = async || match journal.turn(&self, &watch).await {
            // It is logged, `ready` warns of it, and downloads continue: the instance stays ready.
            Err(JournalError::Write(_)) => Ok(()),
            other => other,
        };
        jobs::repeat(watch.clone(), PACE, shutdown, std::future::pending, turn).await;
    }

    /// Closes the open file, at the end of the program.
    pub async fn close(&self) {
        if let Some(journal) = &self.0 {
            journal.close().await;
        }
    }
}

/// Decrypts the keys of an upload; returns them as a `DiagnosisKeyBatch`.
fn open(mut payloads: Vec<StoredPayload>, keyring: &Keyring) -> Result<Vec<u8>, EncryptionError> {
    let mut keys = Vec::new();
    for StoredPayload { payload_hash, payload, .. } in &mut payloads {
        wire::append_protobuf_field(keyring.open(payload_hash, payload)?, &mut keys);
    }
    Ok(keys)
}

impl Journal {
    /// Writes one upload.
    async fn append_upload(&self, id: i64, record: UploadRecord) -> Result<(), JournalError> {
        let marks = Journaled { uploads: vec![id], ..Journaled::default() };
        self.append(vec![Event::Upload(record).into()], marks).await
    }

    /// Reads the keys of an upload from the database. The function that is returned decrypts them, which takes long. It
    /// gives the record, or says which upload it is, why it cannot be read, and what helps.
    async fn read(
        &self,
        row: JournalUpload,
    ) -> Result<impl FnOnce() -> Result<UploadRecord, String> + Send + 'static, StoreError> {
        let payloads = self.sources.store.payloads_of(row.id).await?;
        let keyring = self.sources.keyring.clone();
        Ok(move || {
            let JournalUpload { id, country, tag, amount, .. } = &row;
            let what = format!("upload {id}, {tag} of {country}");
            let helps = format!(
                "when {country} sends it again under the same tag, it is fixed; or withdraw it: `efgs-gateway upload \
                 withdraw --config FILE --country {country} --tag {tag} --reason TEXT`"
            );
            if payloads.len() != *amount as usize {
                let there = payloads.len();
                return Err(format!("{what}: {there} of its {amount} keys are in the database; {helps}"));
            }
            match open(payloads, &keyring) {
                Ok(keys) => Ok(UploadRecord::new(row, keys)),
                Err(error @ EncryptionError::UnknownKey(_)) => {
                    Err(format!("{what}: {error}: add it there; or {helps}"))
                }
                Err(error) => Err(format!("{what}: {error}; {helps}")),
            }
        })
    }

    async fn read_on_own_thread(
        &self,
        row: JournalUpload,
    ) -> Result<Result<UploadRecord, String>, JournalError> {
        let read = tokio::task::spawn_blocking(self.read(row).await?);
        read.await.map_err(|e| JournalError::Read(e.to_string()))
    }

    /// How many uploads wait for the journal and cannot be read.
    pub fn unreadable(&self) -> usize {
        self.unreadable.lock().uploads.len()
    }

    /// Warnings for the operator while uploads are accepted.
    pub fn warnings(&self) -> Vec<String> {
        let unreadable = self.unreadable.lock();
        let of_uploads = unreadable.uploads.values().next().map(|first| {
            format!(
                "{} uploads cannot be written to the journal and are held back; the first: {first}",
                unreadable.uploads.len()
            )
        });
        self.keeping().into_iter().chain(of_uploads).collect()
    }

    /// Writes uploads that were left behind. Those that cannot be read keep waiting: they get into no batch, and do not
    /// delay other uploads.
    async fn missing_uploads(&self, steps: &Steps<'_>) -> Result<(), JournalError> {
        let now = self.sources.clock.now();
        // Each attempt reads all keys of each of them.
        let known = {
            let unreadable = self.unreadable.lock();
            let fresh = unreadable.tried.is_some_and(|tried| now - tried < AGAIN);
            if fresh { unreadable.uploads.clone() } else { BTreeMap::new() }
        };
        let mut unreadable = BTreeMap::new();
        let mut after = i64::MIN;
        loop {
            steps.next().await?;
            let rows = self.sources.store.unjournaled_uploads(now - LEFT_BEHIND, after, UPLOADS).await?;
            let Some(last) = rows.last() else { break };
            after = last.id;
            let (mut records, mut marks) = (Vec::new(), Journaled::default());
            for row in rows {
                let id = row.id;
                let reason = match known.get(&id) {
                    Some(reason) => reason.clone(),
                    None => match self.read_on_own_thread(row).await? {
                        Ok(record) => {
                            records.push(Event::Upload(record).into());
                            marks.uploads.push(id);
                            continue;
                        }
                        // It has expired, or was withdrawn because it could not be read.
                        Err(_) if !self.sources.store.is_wanted(id, self.sources.chain.oldest()).await? => {
                            marks.uploads.push(id);
                            continue;
                        }
                        Err(reason) => reason,
                    },
                };
                unreadable.insert(id, reason);
            }
            if !marks.uploads.is_empty() {
                self.append(records, marks).await?;
            }
        }
        self.note_unreadable(unreadable, known.is_empty().then_some(now));
        Ok(())
    }

    /// `tried` is when all were tried, unless some were known.
    fn note_unreadable(&self, uploads: BTreeMap<i64, String>, tried: Option<DateTime<Utc>>) {
        let mut unreadable = self.unreadable.lock();
        for (id, reason) in &uploads {
            if !unreadable.uploads.contains_key(id) {
                tracing::error!("an upload cannot be written to the journal and is held back: {reason}");
            }
        }
        unreadable.tried = tried.or(unreadable.tried);
        unreadable.uploads = uploads;
    }

    async fn turn(&self, recording: &Recording, watch: &JobWatch) -> Result<(), JournalError> {
        let certificates_are_new = {
            let mut writer = self.writer.lock().await;
            let today = self.sources.clock.now().date_naive();
            !self.certificates(&mut writer, today).await?.is_empty()
        };
        if self.failing().is_some() || certificates_are_new {
            self.append(Vec::new(), Journaled::default()).await?;
        }
        if !self.sources.store.awaits_journal().await? {
            self.note_unreadable(BTreeMap::new(), None);
        } else if let Some(lease) = self.sources.store.acquire_lease(Job::Journal).await? {
            jobs::under_lease(&self.sources.store, lease, async |lease| {
                let steps = Steps::new(&self.sources.store, lease, Some(watch));
                self.missing_uploads(&steps).await?;
                recording.catch_up(Some(&steps)).await
            })
            .await?;
        }
        self.prune(watch).await
    }
}
