//! Forgetting after 14 days (spec §4.2.6).
//!
//! What is too old is never served, from the first moment of the day after its last one; this job only takes
//! it out of the database, in steps so small that nobody notices.

use std::{sync::Arc, time::Duration};

use chrono::NaiveDate;
use tracing::{Instrument as _, trace_span};

use crate::{
    body_cache::BodyCache,
    chain::Chain,
    health::{Health, JobWatch},
    jobs::{self, Shutdown},
    store::{ExpiryStep, Job, Lease, Store, StoreError},
    telemetry,
};

/// How often to look whether the interval is over.
const PACE: Duration = Duration::from_secs(60);

/// What forgets.
#[derive(Clone, Debug)]
pub struct Expiry {
    /// How often.
    pub interval: Duration,
    /// What is kept.
    pub store: Store,
    /// From which day on it is kept.
    pub chain: Arc<Chain>,
    /// The bodies of batches.
    pub body_cache: BodyCache,
    /// How the job stands.
    pub health: Arc<Health>,
}

impl Expiry {
    /// The job, until the gateway stops.
    pub async fn run(self, shutdown: Shutdown) {
        let pace = PACE.min(self.interval);
        let watch = self.health.watch(Job::Expiry.name(), self.interval);
        jobs::repeat(watch.clone(), pace, shutdown, std::future::pending, || self.turn(&watch)).await;
    }

    async fn turn(&self, watch: &JobWatch) -> Result<(), StoreError> {
        // Of this instance's own memory, whoever has the lease.
        self.body_cache.forget_before(self.chain.oldest()).await;
        let overdue = self.store.overdue(Job::Expiry).await?;
        watch.set_overdue(overdue);
        if overdue.is_none() {
            return Ok(());
        }
        let Some(lease) = self.store.acquire_lease(Job::Expiry).await? else {
            return Ok(());
        };
        let span = trace_span!(target: telemetry::SPANS, "expire");
        let working = jobs::under_lease(&self.store, lease, async |lease| {
            self.expire_all(lease, self.chain.oldest()).await?;
            self.store.set_due(lease, self.interval).await?;
            watch.set_overdue(None);
            Ok(())
        });
        working.instrument(span).await
    }

    /// Deletes now all that is too old, as the command `expire` does; waits for the lease.
    pub async fn expire_now(&self) -> Result<ExpiryStep, StoreError> {
        let lease = jobs::wait_for_lease(&self.store, Job::Expiry).await?;
        jobs::under_lease(&self.store, lease, async |lease| self.expire_all(lease, self.chain.oldest()).await)
            .await
    }

    async fn expire_all(&self, lease: &Lease, oldest: NaiveDate) -> Result<ExpiryStep, StoreError> {
        let mut total = ExpiryStep::default();
        loop {
            let step = self.store.expire_step(lease, oldest).await?;
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
}
