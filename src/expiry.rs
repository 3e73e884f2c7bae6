//! Deleting data after 14 days (spec §4.2.6).
//!
//! Expired data is not served from the first moment of the day after its last one. This job only deletes it
//! from the database, in steps small enough not to disturb requests. It also adds the days to come (`Store::add_days`).

use std::{sync::Arc, time::Duration};

use tracing::{Instrument as _, trace_span};

use crate::{
    body_cache::BodyCache,
    chain::Chain,
    clock::Clock,
    health::{DatabaseState, Health, JobWatch},
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
    /// The clock.
    pub clock: Clock,
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
        self.look_at_database().await?;
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
            self.expire_all(lease).await?;
            // It may have added days.
            self.look_at_database().await?;
            self.store.set_due(lease, self.interval).await?;
            watch.set_overdue(None);
            Ok(())
        });
        working.instrument(span).await
    }

    /// Notes for `ready` how many days ahead can be stored, and whether the server's memory is large enough.
    pub async fn look_at_database(&self) -> Result<(), StoreError> {
        let days_ahead = self.store.days_ahead(self.clock.now().date_naive()).await?;
        let sizing = self.store.sizing().await?;
        let too_small = sizing.map(|sizing| sizing.too_small()).unwrap_or_default();
        self.health.set_database(DatabaseState { days_ahead: Some(days_ahead), too_small });
        Ok(())
    }

    /// Deletes all expired data now, for the command `expire`. Waits for the lease.
    pub async fn expire_now(&self) -> Result<ExpiryStep, StoreError> {
        let lease = jobs::wait_for_lease(&self.store, Job::Expiry).await?;
        jobs::under_lease(&self.store, lease, async |lease| self.expire_all(lease).await).await
    }

    async fn expire_all(&self, lease: &Lease) -> Result<ExpiryStep, StoreError> {
        let (store, oldest, today) = (&self.store, self.chain.oldest(), self.clock.now().date_naive());
        store.add_days(oldest, today).await?;
        let mut total = ExpiryStep::default();
        repeat(&mut total, || store.expire_waiting(lease, oldest)).await?;
        store.expire_days(lease, oldest, today).await?;
        repeat(&mut total, || store.expire_batched(lease, oldest)).await?;
        if !total.is_empty() {
            tracing::info!(keys = total.keys, uploads = total.uploads, batches = total.batches, %oldest, "expired data was deleted");
        }
        Ok(total)
    }
}

/// Repeats a step until there is nothing left to do.
async fn repeat<Fut>(total: &mut ExpiryStep, step: impl Fn() -> Fut) -> Result<(), StoreError>
where
    Fut: Future<Output = Result<ExpiryStep, StoreError>>,
{
    loop {
        let done = step().await?;
        if done.is_empty() {
            return Ok(());
        }
        metrics::counter!(telemetry::KEYS_EXPIRED).increment(done.keys);
        total.keys += done.keys;
        total.uploads += done.uploads;
        total.batches += done.batches;
    }
}
