//! Making up for what is not in the journal yet.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use chrono::{DateTime, TimeDelta, Utc};

use super::{
    Journal, JournalError, lock,
    record::{Event, UploadRecord},
};
use crate::{
    health::{Health, JobWatch},
    intake::{EncryptionError, VerifiedUpload},
    jobs::{self, Shutdown, Steps},
    store::{Job, JournalUpload, Journaled, StoreError, StoredPayload},
};

/// An upload that is not in the journal after this long has been left behind by its instance.
const LEFT_BEHIND: TimeDelta = TimeDelta::seconds(10);
/// Uploads that are read at once to make up for it.
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
    /// By their numbers: which one, why, and what helps.
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

    /// Writes an upload that has just been stored; its sender is answered afterwards. Does nothing without a journal.
    pub async fn upload(&self, upload: &VerifiedUpload, id: i64) -> Result<(), JournalError> {
        let Some(journal) = &self.0 else { return Ok(()) };
        let payloads = upload.keys().iter().map(|key| {
            let (payload_hash, payload) = (key.payload_hash.to_vec(), key.payload.clone());
            (key.position, StoredPayload { upload_id: id, payload_hash, payload })
        });
        let row = JournalUpload::new(upload, id);
        let record = UploadRecord::new(row, payloads.collect(), &journal.sources.keyring)
            .map_err(|e| JournalError::Write(e.to_string()))?;
        let marks = Journaled { uploads: vec![id], ..Journaled::default() };
        journal.append(vec![Event::Upload(record).into()], marks).await
    }

    /// Writes an upload that was stored by an earlier request and has been sent again, unless the journal has it. What is
    /// written is what the database has, whose keys may stand in another order under another signature; if that cannot be
    /// read, it is mended with the keys in hand.
    pub async fn ensure_upload(&self, sent: &VerifiedUpload, id: i64) -> Result<(), JournalError> {
        let Some(journal) = &self.0 else { return Ok(()) };
        let Some(row) = journal.sources.store.unjournaled_upload(id).await? else { return Ok(()) };
        let record = match journal.read(row.clone()).await? {
            Ok(record) => record,
            Err(reason) => {
                tracing::warn!(upload = id, reason, "an upload is mended with what was sent again");
                journal.sources.store.repair_payloads(id, sent).await?;
                journal.read(row).await?.map_err(JournalError::Contents)?
            }
        };
        let marks = Journaled { uploads: vec![id], ..Journaled::default() };
        journal.append(vec![Event::Upload(record).into()], marks).await
    }

    /// Before batches are formed: an error when the journal could not be written at the last attempt. The journal's own job
    /// tries again; nobody else waits for a disk that is known to hang.
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
            let records =
                records.chain(withdrawals.into_iter().map(|row| Event::Withdrawal(row.into()).into()));
            journal.append(records.collect(), marks).await?;
        }
    }

    /// The job, until the gateway stops.
    pub async fn run(self, health: Arc<Health>, shutdown: Shutdown) {
        let Some(journal) = &self.0 else { return };
        let watch = health.watch(Job::Journal.name(), self.interval(PACE));
        let turn = async || match journal.turn(&self, &watch).await {
            // It has been said, `ready` warns of it, and downloads go on: no reason to take the instance away.
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

impl Journal {
    /// Reads an upload from the database for the journal, or says which one it is, why it cannot be read and what helps.
    async fn read(&self, row: JournalUpload) -> Result<Result<UploadRecord, String>, StoreError> {
        let (id, country, tag) = (row.id, row.country.clone(), row.tag.clone());
        let (payloads, amount) = (self.sources.store.payloads(&[id]).await?, row.amount);
        let what = format!("upload {id}, {tag} of {country}");
        let helps = format!(
            "when {country} sends it again under the same tag, it is mended; or withdraw it: `efgs-gateway upload withdraw \
             --config FILE --country {country} --tag {tag} --reason TEXT`"
        );
        if payloads.len() != amount as usize {
            let there = payloads.len();
            return Ok(Err(format!("{what}: {there} of its {amount} keys are in the database; {helps}")));
        }
        Ok(match UploadRecord::new(row, (0..).zip(payloads).collect(), &self.sources.keyring) {
            Ok(record) => Ok(record),
            Err(error @ EncryptionError::UnknownKey(_)) => {
                Err(format!("{what}: {error}: add it there; or {helps}"))
            }
            Err(error) => Err(format!("{what}: {error}; {helps}")),
        })
    }

    /// How many uploads wait for the journal and cannot be read.
    pub fn unreadable(&self) -> usize {
        lock(&self.unreadable).uploads.len()
    }

    /// What the operator should know although uploads are accepted.
    pub fn warnings(&self) -> Vec<String> {
        let unreadable = lock(&self.unreadable);
        let of_uploads = unreadable.uploads.values().next().map(|first| {
            format!(
                "{} uploads cannot be written to the journal and are held back; the first: {first}",
                unreadable.uploads.len()
            )
        });
        self.keeping().into_iter().chain(of_uploads).collect()
    }

    /// Writes uploads that were left behind. Those that cannot be read keep waiting, so that they get into no batch, and
    /// keep no others from the journal.
    async fn missing_uploads(&self, steps: &Steps<'_>) -> Result<(), JournalError> {
        let now = self.sources.clock.now();
        // Each look reads all keys of each.
        let known = {
            let unreadable = lock(&self.unreadable);
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
                    None => match self.read(row).await? {
                        Ok(record) => {
                            records.push(Event::Upload(record).into());
                            marks.uploads.push(id);
                            continue;
                        }
                        // It expired meanwhile, or was withdrawn because it could not be read.
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
        let mut unreadable = lock(&self.unreadable);
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
