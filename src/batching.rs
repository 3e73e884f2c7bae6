//! Forming batches from uploads (spec §4.2.8).
//!
//! Every `batching.interval` all that waits is put into batches; in between, a batch is formed as soon as it
//! would be full. One instance at a time does it, under a lease; when the interval ends is kept in the
//! database, so it makes no difference how many instances there are.

use std::{sync::Arc, time::Duration};

use tracing::{Instrument as _, trace_span};

use crate::{
    app::App,
    health::{JobWatch, Waiting},
    jobs::{self, Shutdown, Steps},
    journal::{self, JournalError},
    store::{BatchRecord, Formation, Job, Lease},
    telemetry,
};

/// How often to look whether there is something to do; an upload to this instance is noticed at once.
const PACE: Duration = Duration::from_secs(1);

/// The job, until the gateway stops.
pub async fn run(app: Arc<App>, shutdown: Shutdown) {
    let pace = PACE.min(app.config.batching.interval);
    let interval = journal::interval(&app, app.config.batching.interval);
    let watch = app.health.watch(Job::Batching.name(), interval);
    let wake = || app.wake_batching.notified();
    jobs::repeat(watch.clone(), pace, shutdown, wake, || turn(&app, &watch)).await;
}

/// One look: forms full batches when enough keys wait, and all when the interval is over.
async fn turn(app: &App, watch: &JobWatch) -> Result<(), JournalError> {
    let pending = app.store.pending().await?;
    let overdue = app.store.overdue(Job::Batching).await?;
    app.health.set_waiting(Waiting {
        uploads: pending.uploads,
        keys: pending.keys,
        oldest: pending.oldest,
        newest_batch: app.store.newest_batch().await?.map(|id| id.timestamp()),
    });
    let full = pending.keys >= app.config.batching.max_keys as u64;
    if overdue.is_none() && !full {
        watch.set_overdue(None);
        return Ok(());
    }
    let formed = match journal::ready_for_batches(app) {
        Ok(()) => {
            watch.set_overdue(overdue);
            form_due(app, watch).await
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
async fn form_due(app: &App, watch: &JobWatch) -> Result<(), JournalError> {
    let Some(lease) = app.store.acquire_lease(Job::Batching).await? else {
        return Ok(());
    };
    let span = trace_span!(target: telemetry::SPANS, "form batches");
    let working = jobs::under_lease(&app.store, lease, async |lease| {
        // Asked again under the lease: another instance may have done it meanwhile.
        let due = app.store.is_due(Job::Batching).await?;
        form_all(app, lease, !due, Some(watch)).await?;
        if due {
            app.store.set_due(lease, app.config.batching.interval).await?;
            watch.set_overdue(None);
        }
        Ok(())
    });
    working.instrument(span).await
}

/// Forms batches now until nothing waits, as the command `batch form` does; waits for the lease.
pub async fn form_now(app: &App) -> Result<Vec<BatchRecord>, JournalError> {
    let lease = jobs::wait_for_lease(&app.store, Job::Batching).await?;
    jobs::under_lease(&app.store, lease, async |lease| form_all(app, lease, false, None).await).await
}

async fn form_all(
    app: &App,
    lease: &Lease,
    only_full: bool,
    watch: Option<&JobWatch>,
) -> Result<Vec<BatchRecord>, JournalError> {
    journal::ready_for_batches(app)?;
    let steps = Steps::new(&app.store, lease, watch);
    let mut formed = Vec::new();
    loop {
        let how =
            Formation { now: app.clock.now(), max_keys: app.config.batching.max_keys as u64, only_full };
        let Some(batch) = app.store.form_batch(lease, how).await? else {
            return Ok(formed);
        };
        // Before anybody is told of it.
        journal::catch_up(app, Some(&steps)).await?;
        metrics::counter!(telemetry::BATCHES_FORMED).increment(1);
        tracing::info!(
            batch = %batch.id, day = %batch.day, sequence = batch.sequence, uploads = batch.uploads.len(),
            keys = batch.amount(), "a batch was formed"
        );
        app.wake_callbacks.notify_one();
        formed.push(batch);
    }
}
