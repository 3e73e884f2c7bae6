//! Making up for what is not in the journal yet.

use std::{sync::Arc, time::Duration};

use chrono::TimeDelta;

use super::{
    Journal, JournalError,
    record::{Event, UploadRecord},
};
use crate::{
    app::App,
    health::JobWatch,
    jobs::{self, Shutdown},
    store::{Job, JournalUpload, Journaled, StoredPayload},
    upload::VerifiedUpload,
};

/// An upload that is not in the journal after this long has been left behind by its instance.
const LEFT_BEHIND: TimeDelta = TimeDelta::seconds(10);
/// Uploads that are read at once to make up for it.
const UPLOADS: u64 = 8;
/// Batches and withdrawals that are read at once.
const ROWS: u64 = 200;
/// How often to look for what is missing.
const PACE: Duration = Duration::from_secs(1);

/// Writes an upload that has just been stored; its sender is answered afterwards. Does nothing without a journal.
pub async fn upload(app: &App, upload: &VerifiedUpload, id: i64) -> Result<(), JournalError> {
    let Some(journal) = &app.journal else { return Ok(()) };
    let payloads = upload.keys().iter().map(|key| {
        let (payload_hash, payload) = (key.payload_hash.to_vec(), key.payload.clone());
        (key.position, StoredPayload { upload_id: id, payload_hash, payload })
    });
    let row = JournalUpload {
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
    };
    let record = UploadRecord::new(row, payloads.collect(), &app.keyring)
        .map_err(|e| JournalError::Write(e.to_string()))?;
    let marks = Journaled { uploads: vec![id], ..Journaled::default() };
    journal.append(app, vec![Event::Upload(record).into()], marks).await
}

/// Writes an upload that was stored by an earlier request, unless the journal has it.
pub async fn ensure_upload(app: &App, id: i64) -> Result<(), JournalError> {
    let Some(journal) = &app.journal else { return Ok(()) };
    journal.missing_uploads(app, Some(id)).await.map(drop)
}

/// Before batches are formed: an error when the journal cannot be written.
pub async fn ready_for_batches(app: &App) -> Result<(), JournalError> {
    match &app.journal {
        Some(journal) if journal.failing().is_some() => {
            journal.append(app, Vec::new(), Journaled::default()).await
        }
        _ => Ok(()),
    }
}

/// Writes the batches and withdrawals that the journal has not yet. Does nothing without a journal.
pub async fn catch_up(app: &App) -> Result<(), JournalError> {
    let Some(journal) = &app.journal else { return Ok(()) };
    loop {
        let withdrawals = app.store.unjournaled_withdrawals(ROWS).await?;
        let batches = app.store.unjournaled_batches(ROWS).await?;
        if withdrawals.is_empty() && batches.is_empty() {
            return Ok(());
        }
        let marks = Journaled {
            batches: batches.iter().map(|batch| batch.id).collect(),
            withdrawals: withdrawals.iter().map(|row| row.upload_id).collect(),
            ..Journaled::default()
        };
        let records = batches.into_iter().map(|batch| Event::Batch(batch.into()).into());
        let records = records.chain(withdrawals.into_iter().map(|row| Event::Withdrawal(row.into()).into()));
        journal.append(app, records.collect(), marks).await?;
    }
}

impl Journal {
    /// Writes uploads that were left behind (or one); says whether there were any.
    async fn missing_uploads(&self, app: &App, only: Option<i64>) -> Result<bool, JournalError> {
        let rows = app.store.unjournaled_uploads(app.clock.now() - LEFT_BEHIND, only, UPLOADS).await?;
        if rows.is_empty() {
            return Ok(false);
        }
        let mut marks = Journaled::default();
        let mut records = Vec::new();
        for row in rows {
            let id = row.id;
            let payloads = app.store.payloads(&[id]).await?;
            if payloads.len() != row.amount as usize {
                return Err(JournalError::Contents(format!(
                    "upload {id} has {} keys in the database instead of {}",
                    payloads.len(),
                    row.amount
                )));
            }
            let record = UploadRecord::new(row, (0..).zip(payloads).collect(), &app.keyring)
                .map_err(|e| JournalError::Contents(format!("upload {id}: {e}")))?;
            records.push(Event::Upload(record).into());
            marks.uploads.push(id);
        }
        self.append(app, records, marks).await?;
        Ok(true)
    }

    async fn turn(&self, app: &App, watch: &JobWatch) -> Result<(), JournalError> {
        let certificates_are_new = {
            let mut writer = self.writer.lock().await;
            let today = app.clock.now().date_naive();
            !self.certificates(app, &mut writer, today).await?.is_empty()
        };
        if self.failing().is_some() || certificates_are_new {
            self.append(app, Vec::new(), Journaled::default()).await?;
        }
        if app.store.awaits_journal().await?
            && let Some(lease) = app.store.acquire_lease(Job::Journal).await?
        {
            jobs::under_lease(&app.store, lease, async |_| {
                while self.missing_uploads(app, None).await? {}
                catch_up(app).await
            })
            .await?;
        }
        self.prune(app, watch).await
    }
}

/// The job, until the gateway stops.
pub async fn run(app: Arc<App>, shutdown: Shutdown) {
    let Some(journal) = &app.journal else { return };
    let watch = app.health.watch(Job::Journal.name(), PACE);
    let turn = async || match journal.turn(&app, &watch).await {
        // It has been said, `ready` warns of it, and downloads go on: no reason to take the instance away.
        Err(JournalError::Write(_)) => Ok(()),
        other => other,
    };
    jobs::repeat(watch.clone(), PACE, shutdown, std::future::pending, turn).await;
}
