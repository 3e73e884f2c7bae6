//! Work that is done again and again beside the requests, by one instance at a time. Knows no feature.

use std::{fmt::Display, future::Future, panic::AssertUnwindSafe, time::Duration};

use futures_util::FutureExt as _;
use tokio::sync::watch;

use crate::{
    health::JobWatch,
    store::{Job, Lease, Store, StoreError},
    telemetry,
};

/// Says when the gateway is told to stop.
#[derive(Clone, Debug)]
pub struct Shutdown(watch::Receiver<bool>);

impl Shutdown {
    /// A switch, and the ear that hears it.
    pub fn new() -> (watch::Sender<bool>, Self) {
        let (sender, receiver) = watch::channel(false);
        (sender, Self(receiver))
    }

    /// Returns when it is time to stop.
    pub async fn requested(&mut self) {
        // A sender that is gone means the same.
        drop(self.0.wait_for(|stop| *stop).await);
    }

    /// Whether it is.
    pub fn is_requested(&self) -> bool {
        *self.0.borrow()
    }
}

/// Calls `step` every `pace`, and when `wake` completes, until the gateway stops. A failed step is logged and
/// tried again at the next turn; a step under way is brought to its end. `watch` is told of each.
pub async fn repeat<F, Fut, E, W>(
    watch: JobWatch,
    pace: Duration,
    mut shutdown: Shutdown,
    wake: impl Fn() -> W,
    mut step: F,
) where
    F: FnMut() -> Fut,
    Fut: Future<Output = Result<(), E>>,
    E: Display,
    W: Future<Output = ()>,
{
    let name = watch.name();
    let mut failing = false;
    loop {
        // A panic is a defect, and has been logged; it must not end the job for good.
        let outcome = match AssertUnwindSafe(async { step().await }).catch_unwind().await {
            Ok(outcome) => outcome.map_err(|error| error.to_string()),
            Err(_) => Err("a panic: please report it".to_owned()),
        };
        match &outcome {
            Ok(()) => watch.progressed(),
            Err(error) => watch.failed(error.clone()),
        }
        metrics::counter!(telemetry::JOB_RUNS, "job" => name, "outcome" => if outcome.is_ok() { "ok" } else { "failed" }).increment(1);
        match outcome {
            Ok(()) if failing => {
                failing = false;
                tracing::info!(job = name, "the job works again");
            }
            Ok(()) => {}
            // One message when it begins to fail: the database may be away for long.
            Err(error) if !failing => {
                failing = true;
                tracing::error!(job = name, %error, "the job failed; it is tried again");
            }
            Err(error) => tracing::debug!(job = name, %error, "the job failed again"),
        }
        tokio::select! {
            () = shutdown.requested() => return,
            () = tokio::time::sleep(pace) => {}
            () = wake() => {}
        }
    }
}

/// Waits for the lease of a job, for commands that must do it now.
pub async fn wait_for_lease(store: &Store, job: Job) -> Result<Lease, StoreError> {
    loop {
        if let Some(lease) = store.acquire_lease(job).await? {
            return Ok(lease);
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// Runs `work` under a lease and gives the lease back at the end, whatever the end is.
pub async fn under_lease<T, E>(
    store: &Store,
    lease: Lease,
    work: impl AsyncFnOnce(&Lease) -> Result<T, E>,
) -> Result<T, E> {
    let result = work(&lease).await;
    if let Err(error) = store.release_lease(lease).await {
        // It is taken again once the database answers, or ends by itself.
        tracing::warn!(%error, "a lease could not be given back");
    }
    result
}

/// Work under a lease that takes many steps.
#[derive(Debug)]
pub struct Steps<'a> {
    store: &'a Store,
    lease: &'a Lease,
    watch: Option<&'a JobWatch>,
}

impl<'a> Steps<'a> {
    /// Work under this lease; `watch`, if anybody watches it, is told of each step.
    pub fn new(store: &'a Store, lease: &'a Lease, watch: Option<&'a JobWatch>) -> Self {
        Self { store, lease, watch }
    }

    /// Before each step: prolongs the lease, or fails when another instance has it.
    pub async fn next(&self) -> Result<(), StoreError> {
        self.store.prolong(self.lease).await?;
        if let Some(watch) = self.watch {
            watch.progressed();
        }
        Ok(())
    }
}

#[cfg(test)]
#[expect(clippy::panic, reason = "it is what is tested")]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;
    use crate::{clock::Clock, health::Health};

    #[tokio::test(start_paused = true)]
    async fn a_panic_does_not_end_a_job() {
        let health = Health::new(Clock::system(), Duration::from_secs(1));
        let watch = health.watch("expiry", Duration::from_secs(1));
        let (stop, shutdown) = Shutdown::new();
        let turns = AtomicU32::new(0);
        repeat(watch, Duration::from_secs(1), shutdown, std::future::pending::<()>, || async {
            match turns.fetch_add(1, Ordering::Relaxed) {
                0 => panic!("a defect"),
                1 => {
                    let error = health.jobs().pop().and_then(|job| job.last_error);
                    assert_eq!(error.as_deref(), Some("a panic: please report it"));
                    stop.send_replace(true);
                    Ok::<(), StoreError>(())
                }
                _ => Ok(()),
            }
        })
        .await;
        assert_eq!(turns.load(Ordering::Relaxed), 2);
    }
}
