//! Forgetting after 14 days (spec §4.2.6).
//!
//! What is too old is never served, from the first moment of the day after its last one; this job only takes
//! it out of the database, in steps so small that nobody notices.

use std::{sync::Arc, time::Duration};

use chrono::NaiveDate;
use tracing::{Instrument as _, trace_span};

use crate::{
    app::App,
    health::JobWatch,
    jobs::{self, Shutdown},
    store::{ExpiryStep, Job, Lease, StoreError},
    telemetry,
};

/// How often to look whether the interval is over.
const PACE: Duration = Duration::from_secs(60);

/// The job, until the gateway stops.
pub async fn run(app: Arc<App>, shutdown: Shutdown) {
    let pace = PACE.min(app.config.retention.interval);
    let watch = app.health.watch(Job::Expiry.name(), app.config.retention.interval);
    jobs::repeat(watch.clone(), pace, shutdown, std::future::pending, || turn(&app, &watch)).await;
}

async fn turn(app: &App, watch: &JobWatch) -> Result<(), StoreError> {
    // Of this instance's own memory, whoever has the lease.
    app.sealed.forget_before(app.chain.oldest()).await;
    let overdue = app.store.overdue(Job::Expiry).await?;
    watch.set_overdue(overdue);
    if overdue.is_none() {
        return Ok(());
    }
    let Some(lease) = app.store.acquire_lease(Job::Expiry).await? else {
        return Ok(());
    };
    let span = trace_span!(target: telemetry::SPANS, "expire");
    let working = jobs::under_lease(&app.store, lease, async |lease| {
        expire_all(app, lease, app.chain.oldest()).await?;
        app.store.set_due(lease, app.config.retention.interval).await?;
        watch.set_overdue(None);
        Ok(())
    });
    working.instrument(span).await
}

/// Deletes now all that is too old, as the command `expire` does; waits for the lease.
pub async fn expire_now(app: &App) -> Result<ExpiryStep, StoreError> {
    let lease = jobs::wait_for_lease(&app.store, Job::Expiry).await?;
    jobs::under_lease(&app.store, lease, async |lease| expire_all(app, lease, app.chain.oldest()).await).await
}

async fn expire_all(app: &App, lease: &Lease, oldest: NaiveDate) -> Result<ExpiryStep, StoreError> {
    let mut total = ExpiryStep::default();
    loop {
        let step = app.store.expire_step(lease, oldest).await?;
        if step.is_empty() {
            if !total.is_empty() {
                tracing::info!(keys = total.keys, uploads = total.uploads, batches = total.batches, %oldest, "what was too old was deleted");
            }
            return Ok(total);
        }
        metrics::counter!(telemetry::KEYS_EXPIRED).increment(step.keys);
        total.keys += step.keys;
        total.uploads += step.uploads;
        total.batches += step.batches;
    }
}
