//! Forming batches from uploads (spec §4.2.8).
//!
//! Every `batching.interval` all waiting uploads are put into batches. In between, a batch is formed as soon as
//! it would be full. A lease ensures that one instance at a time does this. The end of the interval is in the
//! database, so the number of instances makes no difference.

use std::{sync::Arc, time::Duration};

use tokio::sync::Notify;
use tracing::{Instrument as _, trace_span};

use crate::{
    clock::Clock,
    config,
    health::{Health, JobWatch, Waiting},
    jobs::{self, Shutdown, Steps},
    journal::{JournalError, Recording},
    store::{BatchRecord, Formation, Job, Lease, Store},
    telemetry,
};

/// How often the job checks for work. An upload to this instance wakes it at once.
const PACE: Duration = Duration::from_secs(1);

/// Forms batches.
#[derive(Clone, Debug)]
pub struct Batching {
    /// The section `[batching]`.
    pub settings: config::Batching,
    /// The uploads.
    pub store: Store,
    /// The clock.
    pub clock: Clock,
    /// The job's health.
    pub health: Arc<Health>,
    /// The journal, if configured.
    pub journal: Recording,
    /// Wakes the job after an upload.
    pub wake: Arc<Notify>,
    /// Wakes the callbacks after a batch.
    pub formed: Arc<Notify>,
}

impl Batching {
    /// Runs the job until the gateway stops.
    pub async fn run(self, shutdown: Shutdown) {
        let pace = PACE.min(self.settings.interval);
        let interval = self.journal.interval(self.settings.interval);
        let watch = self.health.watch(Job::Batching.name(), interval);
        let wake = || self.wake.notified();
        jobs::repeat(watch.clone(), pace, shutdown, wake, || self.turn(&watch)).await;
    }

    /// One run: forms full batches if enough keys wait, and all batches if the interval is over.
    async fn turn(&self, watch: &JobWatch) -> Result<(), JournalError> {
        let pending = self.store.pending().await?;
        let overdue = self.store.overdue(Job::Batching).await?;
        self.health.set_waiting(Waiting {
            uploads: pending.uploads,
            keys: pending.keys,
            oldest: pending.oldest,
            newest_batch: self.store.newest_batch().await?.map(|id| id.timestamp()),
        });
        let full = pending.keys >= self.settings.max_keys as u64;
        if overdue.is_none() && !full {
            watch.set_overdue(None);
            return Ok(());
        }
        let formed = match self.journal.ready_for_batches() {
            Ok(()) => {
                watch.set_overdue(overdue);
                self.form_due(watch).await
            }
            failed => failed,
        };
        match formed {
            // `ready` already warns of it and downloads continue, so this instance must stay ready however long
            // no batch is formed.
            Err(JournalError::Write(_)) => {
                watch.set_overdue(None);
                Ok(())
            }
            other => other,
        }
    }

    /// Forms batches unless another instance holds the lease.
    async fn form_due(&self, watch: &JobWatch) -> Result<(), JournalError> {
        let Some(lease) = self.store.acquire_lease(Job::Batching).await? else {
            return Ok(());
        };
        let span = trace_span!(target: telemetry::SPANS, "form batches");
        let working = jobs::under_lease(&self.store, lease, async |lease| {
            // Checked again under the lease: another instance may have formed them meanwhile.
            let due = self.store.is_due(Job::Batching).await?;
            self.form_all(lease, !due, Some(watch)).await?;
            if due {
                self.store.set_due(lease, self.settings.interval).await?;
                watch.set_overdue(None);
            }
            Ok(())
        });
        working.instrument(span).await
    }

    /// Forms batches until no upload waits, for the command `batch form`. Waits for the lease.
    pub async fn form_now(&self) -> Result<Vec<BatchRecord>, JournalError> {
        let lease = jobs::wait_for_lease(&self.store, Job::Batching).await?;
        jobs::under_lease(&self.store, lease, async |lease| self.form_all(lease, false, None).await).await
    }

    async fn form_all(
        &self,
        lease: &Lease,
        only_full: bool,
        watch: Option<&JobWatch>,
    ) -> Result<Vec<BatchRecord>, JournalError> {
        self.journal.ready_for_batches()?;
        let steps = Steps::new(&self.store, lease, watch);
        let mut formed = Vec::new();
        loop {
            let how = Formation { now: self.clock.now(), max_keys: self.settings.max_keys as u64, only_full };
            let Some(batch) = self.store.form_batch(lease, how).await? else {
                return Ok(formed);
            };
            // The journal has the batch before any country learns of it.
            self.journal.catch_up(Some(&steps)).await?;
            metrics::counter!(telemetry::BATCHES_FORMED).increment(1);
            tracing::info!(
                batch = %batch.id, day = %batch.day, sequence = batch.sequence, uploads = batch.uploads.len(),
                keys = batch.amount(), "a batch was formed"
            );
            self.formed.notify_one();
            formed.push(batch);
        }
    }
}
