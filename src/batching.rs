//! Forming batches from uploads (spec §4.2.8).
//!
//! Every `batching.interval` all that waits is put into batches; in between, a batch is formed as soon as it
//! would be full. One instance at a time does it, under a lease; when the interval ends is kept in the
//! database, so it makes no difference how many instances there are.

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

/// How often to look whether there is something to do; an upload to this instance is noticed at once.
const PACE: Duration = Duration::from_secs(1);

/// What forms batches.
#[derive(Clone, Debug)]
pub struct Batching {
    /// `[batching]`.
    pub settings: config::Batching,
    /// The uploads.
    pub store: Store,
    /// The time.
    pub clock: Clock,
    /// How the job stands.
    pub health: Arc<Health>,
    /// What is recorded outside the database.
    pub journal: Recording,
    /// Tells the job that an upload has come.
    pub wake: Arc<Notify>,
    /// Tells others that a batch has been formed.
    pub formed: Arc<Notify>,
}

impl Batching {
    /// The job, until the gateway stops.
    pub async fn run(self, shutdown: Shutdown) {
        let pace = PACE.min(self.settings.interval);
        let interval = self.journal.interval(self.settings.interval);
        let watch = self.health.watch(Job::Batching.name(), interval);
        let wake = || self.wake.notified();
        jobs::repeat(watch.clone(), pace, shutdown, wake, || self.turn(&watch)).await;
    }

    /// One look: forms full batches when enough keys wait, and all when the interval is over.
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
            // It has been said, `ready` warns of it, and downloads go on: no reason to take the instance away, however
            // long nothing is formed.
            Err(JournalError::Write(_)) => {
                watch.set_overdue(None);
                Ok(())
            }
            other => other,
        }
    }

    /// Forms what is due, unless another instance does.
    async fn form_due(&self, watch: &JobWatch) -> Result<(), JournalError> {
        let Some(lease) = self.store.acquire_lease(Job::Batching).await? else {
            return Ok(());
        };
        let span = trace_span!(target: telemetry::SPANS, "form batches");
        let working = jobs::under_lease(&self.store, lease, async |lease| {
            // Asked again under the lease: another instance may have done it meanwhile.
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

    /// Forms batches now until nothing waits, as the command `batch form` does; waits for the lease.
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
            // Before anybody is told of it.
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
