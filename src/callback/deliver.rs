//! Delivering notifications of new batches: one queue per subscription, in order, at least once (spec §5.6.4).
//!
//! Every instance looks for subscriptions with queued notifications and takes a lease per subscription. So a
//! slow server delays only itself, and another instance continues when an instance dies and its lease ends. A
//! notification is removed from its queue after the call. A crash in between may deliver it twice, never zero
//! times.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::Duration,
};

use efgs_protocol::{batch_tag::DayName, country::Country, random};
use parking_lot::Mutex;
use tokio::{sync::Semaphore, task::JoinSet, time::Instant};
use tracing::{Instrument as _, trace_span};

use super::{CallError, Callbacks};
use crate::{
    config::Callback,
    jobs::{self, Shutdown},
    store::{CallbackLease, CountedCall, DueSubscription, FailedCall, Notification, StoreError},
    telemetry,
};

/// How often to look for notifications that other instances queued. A batch of this instance wakes the job at
/// once.
const PACE: Duration = Duration::from_millis(500);

/// How often downloads are recorded and the queues measured.
const RECORD: Duration = Duration::from_secs(1);

/// Concurrent calls to one country, so that servers that hang delay only that country's own calls.
const CONCURRENT: usize = 16;

impl Callbacks {
    /// Runs the job until the gateway stops.
    pub async fn run(self, shutdown: Shutdown) {
        let work = Work::new(&self, &shutdown);
        let watch = self.health.watch("callbacks", RECORD);
        jobs::repeat(watch, PACE, shutdown, || self.wake.notified(), || work.turn()).await;
        let mut calls = std::mem::take(&mut *work.calls.lock());
        while calls.join_next().await.is_some() {}
        if let Err(error) = self.downloaded.record(&self.store).await {
            tracing::warn!(%error, "the latest downloads could not be recorded; their batches may be announced again");
        }
    }
}

struct Work {
    callbacks: Callbacks,
    shutdown: Shutdown,
    calls: Mutex<JoinSet<()>>,
    /// Subscriptions in progress on this instance.
    busy: Arc<Mutex<HashSet<i64>>>,
    turns: Mutex<HashMap<Country, Arc<Semaphore>>>,
    recorded: Mutex<Option<Instant>>,
}

impl Work {
    fn new(callbacks: &Callbacks, shutdown: &Shutdown) -> Self {
        Self {
            callbacks: callbacks.clone(),
            shutdown: shutdown.clone(),
            calls: Mutex::default(),
            busy: Arc::default(),
            turns: Mutex::default(),
            recorded: Mutex::default(),
        }
    }

    async fn turn(&self) -> Result<(), StoreError> {
        self.record().await?;
        let Some(config) = &self.callbacks.config.callback else { return Ok(()) };
        for due in self.callbacks.store.due_subscriptions().await? {
            self.start(due, config.clone());
        }
        Ok(())
    }

    /// Once a second.
    async fn record(&self) -> Result<(), StoreError> {
        if self.recorded.lock().is_some_and(|at| at.elapsed() < RECORD) {
            return Ok(());
        }
        self.callbacks.downloaded.record(&self.callbacks.store).await?;
        let backlog = self.callbacks.store.callback_backlog().await?;
        metrics::gauge!(telemetry::CALLBACKS_PAUSED, "by" => "failures").set(backlog.paused as f64);
        metrics::gauge!(telemetry::CALLBACKS_PAUSED, "by" => "operator").set(backlog.held as f64);
        metrics::gauge!(telemetry::CALLBACK_OLDEST_SECONDS).set(backlog.oldest.as_secs_f64());
        *self.recorded.lock() = Some(Instant::now());
        Ok(())
    }

    /// Starts a task for a subscription, unless there is one.
    fn start(&self, due: DueSubscription, config: Callback) {
        let (mut calls, mut turns) = (self.calls.lock(), self.turns.lock());
        while calls.try_join_next().is_some() {}
        if !self.busy.lock().insert(due.id) {
            return;
        }
        let turns = turns.entry(due.country).or_insert_with(|| Arc::new(Semaphore::new(CONCURRENT))).clone();
        let (callbacks, shutdown, busy) = (self.callbacks.clone(), self.shutdown.clone(), self.busy.clone());
        calls.spawn(async move {
            let _busy = Busy { all: busy, id: due.id };
            if let Ok(_turn) = turns.acquire().await
                && let Err(error) = callbacks.deliver(due, &config, &shutdown).await
            {
                // The subscription is due again when the lease ends.
                tracing::warn!(country = %due.country, %error, "a callback could not be recorded");
            }
        });
    }
}

/// Removes a subscription from those in progress, however its task ends.
struct Busy {
    all: Arc<Mutex<HashSet<i64>>>,
    id: i64,
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.all.lock().remove(&self.id);
    }
}

impl Callbacks {
    /// Delivers a subscription's notifications until none is left, a call fails, or the gateway stops.
    async fn deliver(
        &self,
        due: DueSubscription,
        config: &Callback,
        shutdown: &Shutdown,
    ) -> Result<(), StoreError> {
        // Covers the DNS lookup, the call, and a slow database afterwards.
        let term = config.timeout * 2 + self.config.database.timeout + Duration::from_secs(2);
        if shutdown.is_requested() {
            return Ok(());
        }
        let Some(lease) = self.store.acquire_callback(due.id, term).await? else { return Ok(()) };
        let outcome = self.deliver_all(due.country, config, shutdown, (&lease, term)).await;
        self.store.release_callback(lease).await?;
        match outcome {
            // It was registered again, deleted or paused meanwhile, or another instance has the lease.
            Err(StoreError::LeaseLost) => Ok(()),
            other => other,
        }
    }

    async fn deliver_all(
        &self,
        country: Country,
        config: &Callback,
        shutdown: &Shutdown,
        (lease, term): (&CallbackLease, Duration),
    ) -> Result<(), StoreError> {
        while !shutdown.is_requested() {
            // A stale registry may lack a revocation. Wait, and do not count it as a failure of the country.
            let Ok(registry) = self.trust.registry() else { return Ok(()) };
            let downloaded = self.downloaded.newest(country);
            let Some(next) = self.store.next_notification(lease, term, downloaded).await? else {
                return Ok(());
            };
            let query = self.query(country, &next);
            let calling = async {
                let target = self.guard.check(&next.url).await?;
                self.guard.call(&target, &query, country, registry, self.clock.now()).await
            };
            let span = trace_span!(
                target: telemetry::SPANS, "call", otel.name = "callback", otel.kind = "client", %country,
                failures = next.failures,
            );
            let called = calling.instrument(span).await;
            let outcome = if called.is_ok() { "delivered" } else { "failed" };
            metrics::counter!(telemetry::CALLBACKS, "country" => country.to_string(), "outcome" => outcome)
                .increment(1);
            match called {
                Ok(()) => {
                    self.store.callback_succeeded(lease, next.batch, self.counted(country)).await?;
                    tracing::info!(%country, url = next.url, batch = %next.batch, "a batch was announced");
                }
                Err(error) => return self.fail(country, config, lease, &next, &error).await,
            }
        }
        Ok(())
    }

    fn query(&self, country: Country, next: &Notification) -> String {
        let day_name = DayName { day: next.day, sequence: next.sequence };
        let tag = self.chain.name_for(country, next.batch, day_name);
        format!("batchTag={tag}&date={}", next.day)
    }

    async fn fail(
        &self,
        country: Country,
        config: &Callback,
        lease: &CallbackLease,
        next: &Notification,
        error: &CallError,
    ) -> Result<(), StoreError> {
        let failures = next.failures + 1;
        let pause = failures >= config.max_attempts;
        let reason = error.to_string();
        let retry_after = wait(config, failures).mul_f64(random::jitter(0.25));
        let call = FailedCall { error: &reason, retry_after, pause };
        self.store.callback_failed(lease, call, self.counted(country)).await?;
        let (url, batch) = (&next.url, next.batch);
        if pause {
            metrics::counter!(telemetry::CALLBACKS, "country" => country.to_string(), "outcome" => "paused")
                .increment(1);
            tracing::error!(
                %country, url, failures, reason,
                "a callback is paused: it failed too often in a row; `efgs-gateway callback resume` calls it again"
            );
        } else {
            tracing::warn!(%country, url, %batch, failures, ?retry_after, reason, "a callback failed");
        }
        Ok(())
    }

    fn counted(&self, country: Country) -> CountedCall<'_> {
        CountedCall { instance: &self.instance.id, country, at: self.clock.now() }
    }
}

/// Doubles after each failure, up to a limit.
fn wait(config: &Callback, failures: u32) -> Duration {
    let factor = 1 << failures.saturating_sub(1).min(20);
    config.retry_initial.saturating_mul(factor).min(config.retry_max)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_up_to_the_limit() {
        let config = Callback {
            retry_initial: Duration::from_secs(5),
            retry_max: Duration::from_secs(3600),
            ..Callback::new("certificate.pem", "private.key")
        };
        let seconds: Vec<u64> = (1..=12).map(|failures| wait(&config, failures).as_secs()).collect();
        assert_eq!(seconds, [5, 10, 20, 40, 80, 160, 320, 640, 1280, 2560, 3600, 3600]);
        assert_eq!(wait(&config, u32::MAX).as_secs(), 3600);
    }
}
