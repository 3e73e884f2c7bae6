//! Recurring background work that one instance at a time does. Depends on no feature.

use std::{fmt::Display, future::Future, panic::AssertUnwindSafe, time::Duration};

use futures_util::FutureExt as _;
use tokio::sync::watch;

use crate::{
    health::JobWatch,
    store::{Job, Lease, Store, StoreError},
    telemetry,
};

/// Tells tasks that the gateway is to stop.
#[derive(Clone, Debug)]
pub struct Shutdown(watch::Receiver<bool>);

impl Shutdown {
    /// The sender that requests the stop, and the receiver that sees it.
    pub fn new() -> (watch::Sender<bool>, Self) {
        let (sender, receiver) = watch::channel(false);
        (sender, Self(receiver))
    }

    /// Returns when the gateway is to stop.
    pub async fn requested(&mut self) {
        // A dropped sender also means stop.
        drop(self.0.wait_for(|stop| *stop).await);
    }

    /// Whether the gateway is to stop.
    pub fn is_requested(&self) -> bool {
        *self.0.borrow()
    }
}

/// Calls `step` every `pace` and whenever `wake` completes, until the gateway stops. A failed step is logged
/// and retried at the next turn. A started step runs to completion. Reports each result to `watch`.
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
        // The panic has been logged. The job goes on.
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
            // Logged at this level once, when the failures begin: the database may be unreachable for long.
            Err(error) if !failing => {
                failing = true;
                tracing::error!(job = name, %error, "the job failed; it will be retried");
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

/// Waits for the lease of a job, for commands that have to run it now.
pub async fn wait_for_lease(store: &Store, job: Job) -> Result<Lease, StoreError> {
    loop {
        if let Some(lease) = store.acquire_lease(job).await? {
            return Ok(lease);
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// Runs `work` under a lease and releases the lease afterwards, also when `work` fails.
pub async fn under_lease<T, E>(
    store: &Store,
    lease: Lease,
    work: impl AsyncFnOnce(&Lease) -> Result<T, E>,
) -> Result<T, E> {
    let result = work(&lease).await;
    if let Err(error) = store.release_lease(lease).await {
        // The lease expires by itself.
        tracing::warn!(%error, "a lease could not be released");
    }
    result
}

/// Work of many steps under a lease.
#[derive(Debug)]
pub struct Steps<'a> {
    store: &'a Store,
    lease: &'a Lease,
    watch: Option<&'a JobWatch>,
}

impl<'a> Steps<'a> {
    /// Work under this lease. Reports each step to `watch`, if there is one.
    pub fn new(store: &'a Store, lease: &'a Lease, watch: Option<&'a JobWatch>) -> Self {
        Self { store, lease, watch }
    }

    /// To be called before each step: renews the lease. Fails if another instance has taken it.
    pub async fn next(&self) -> Result<(), StoreError> {
        self.store.prolong(self.lease).await?;
        if let Some(watch) = self.watch {
            watch.progressed();
        }
        Ok(())
    }
}

#[cfg(test)]
#[expect(clippy::panic, reason = "the test is about panics")]
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
