//! Deleting data after 14 days (spec §4.2.6).
//!
//! Expired data is not served from the first moment of the day after its last one. This job only deletes it
//! from the database, in steps small enough not to disturb requests.

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

/// How often the job checks whether the interval is over.
const PACE: Duration = Duration::from_secs(60);

/// Deletes expired data.
#[derive(Clone, Debug)]
pub struct Expiry {
    /// The interval.
    pub interval: Duration,
    /// The database.
    pub store: Store,
    /// The batches in memory. They know the first day that is kept.
    pub chain: Arc<Chain>,
    /// The download bodies.
    pub body_cache: BodyCache,
    /// The job's health.
    pub health: Arc<Health>,
}

impl Expiry {
    /// Runs the job until the gateway stops.
    pub async fn run(self, shutdown: Shutdown) {
        let pace = PACE.min(self.interval);
        let watch = self.health.watch(Job::Expiry.name(), self.interval);
        jobs::repeat(watch.clone(), pace, shutdown, std::future::pending, || self.turn(&watch)).await;
    }

    async fn turn(&self, watch: &JobWatch) -> Result<(), StoreError> {
        // This instance's own memory: needs no lease.
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

    /// Deletes all expired data now, for the command `expire`. Waits for the lease.
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
                    tracing::info!(keys = total.keys, uploads = total.uploads, batches = total.batches, %oldest, "expired data was deleted");
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
