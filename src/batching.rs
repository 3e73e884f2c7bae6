//! Forming batches from uploads (spec §4.2.8).
//!
//! Waiting uploads form a batch at once when it is full. Otherwise they form one `batching.linger` after the first of
//! them arrived, but not within `batching.spacing` of the batch before: uploads are downloadable within seconds, and
//! steady small uploads do not make thousands of tiny batches. `batching.interval` is the same for instances whose
//! clocks are wrong: its end is in the database and counted by the database's clock.
//!
//! Each instance looks once per second. A lease ensures that one at a time forms batches.

use std::{sync::Arc, time::Duration};

use chrono::{DateTime, Utc};
use tokio::sync::Notify;
use tracing::{Instrument as _, trace_span};

use crate::{
    clock::Clock,
    config,
    health::{Health, JobWatch, Waiting},
    jobs::{self, Shutdown, Steps},
    journal::{JournalError, Recording},
    store::{BatchRecord, Formation, Job, Lease, Store, StoreError},
    telemetry,
};

/// How often the job checks for work.
const PACE: Duration = Duration::from_secs(1);

/// Which batches are to be formed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Due {
    /// Full ones.
    Full,
    /// The next one, and full ones.
    Next,
    /// Everything that waits.
    All,
}

/// What the database says.
struct Look {
    due: Option<Due>,
    /// For how long the interval has been over without any instance having formed what waits.
    overdue: Option<Duration>,
}

/// Whether a batch is to be formed although it may not be full. `first` is when its first upload arrived,
/// `last_formed` when the batch before was formed. Both are by the clocks of other instances: a time that is as far in
/// the future means that one of the clocks is wrong, and nothing waits for it to be reached.
fn is_time(
    settings: &config::Batching,
    now: DateTime<Utc>,
    first: Option<DateTime<Utc>>,
    last_formed: Option<DateTime<Utc>>,
    interval_is_over: bool,
) -> bool {
    let is_over =
        |since: DateTime<Utc>, time: Duration| (now - since).abs().to_std().is_ok_and(|it| it >= time);
    let Some(first) = first else { return interval_is_over };
    let spaced = last_formed.is_none_or(|at| is_over(at, settings.spacing()));
    spaced && (interval_is_over || is_over(first, settings.linger()))
}

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
    /// Wakes the callbacks after a batch.
    pub formed: Arc<Notify>,
}

impl Batching {
    /// Runs the job until the gateway stops.
    pub async fn run(self, shutdown: Shutdown) {
        let pace = PACE.min(self.settings.interval);
        let interval = self.journal.interval(self.settings.interval);
        let watch = self.health.watch(Job::Batching.name(), interval);
        if let Err(error) = self.store.shorten_due(Job::Batching, self.settings.interval).await {
            tracing::warn!(%error, "a shortened `batching.interval` may not hold for the next batch yet");
        }
        jobs::repeat(watch.clone(), pace, shutdown, std::future::pending, || self.turn(&watch)).await;
    }

    /// One run: forms what is due.
    async fn turn(&self, watch: &JobWatch) -> Result<(), JournalError> {
        let look = self.look().await?;
        let Some(due) = look.due else {
            watch.set_overdue(None);
            return Ok(());
        };
        let formed = match self.journal.ready_for_batches() {
            Ok(()) => {
                watch.set_overdue(look.overdue);
                self.form_due(watch, due).await
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

    /// Asks the database what waits and whether a batch is to be formed.
    async fn look(&self) -> Result<Look, StoreError> {
        let pending = self.store.pending().await?;
        let overdue = self.store.overdue(Job::Batching).await?;
        let last_formed = self.store.last_formed().await?;
        self.health.set_waiting(Waiting {
            uploads: pending.uploads,
            keys: pending.keys,
            oldest: pending.oldest,
            newest_batch: last_formed,
        });
        let due = if is_time(&self.settings, self.clock.now(), pending.oldest, last_formed, overdue.is_some())
        {
            Some(Due::Next)
        } else if pending.uploads > 0 && self.store.batch_is_full(self.settings.max_keys as u64).await? {
            Some(Due::Full)
        } else {
            None
        };
        Ok(Look { due, overdue })
    }

    /// Forms batches unless another instance holds the lease.
    async fn form_due(&self, watch: &JobWatch, due: Due) -> Result<(), JournalError> {
        let Some(lease) = self.store.acquire_lease(Job::Batching).await? else {
            return Ok(());
        };
        let span = trace_span!(target: telemetry::SPANS, "form batches");
        let working = jobs::under_lease(&self.store, lease, async |lease| {
            // Checked again under the lease: another instance may have formed them meanwhile.
            if self.look().await?.due != Some(due) {
                return Ok(());
            }
            self.form(lease, due, Some(watch)).await?;
            if due == Due::Next {
                self.store.set_due(lease, self.settings.interval).await?;
                watch.set_overdue(None);
            }
            Ok(())
        });
        working.instrument(span).await
    }

    /// Forms batches of all uploads that wait, for the command `batch form`. Waits for the lease.
    pub async fn form_now(&self) -> Result<Vec<BatchRecord>, JournalError> {
        let lease = jobs::wait_for_lease(&self.store, Job::Batching).await?;
        jobs::under_lease(&self.store, lease, async |lease| self.form(lease, Due::All, None).await).await
    }

    async fn form(
        &self,
        lease: &Lease,
        due: Due,
        watch: Option<&JobWatch>,
    ) -> Result<Vec<BatchRecord>, JournalError> {
        self.journal.ready_for_batches()?;
        let steps = Steps::new(&self.store, lease, watch);
        let mut formed: Vec<BatchRecord> = Vec::new();
        loop {
            let only_full = match due {
                Due::Full => true,
                // What is left after the first batch is within its spacing.
                Due::Next => !formed.is_empty(),
                Due::All => false,
            };
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

#[cfg(test)]
mod tests {
    use chrono::TimeDelta;

    use super::*;

    #[test]
    fn a_batch_that_is_not_full_waits_for_linger_and_for_spacing() {
        let settings = config::Batching::default();
        let now = DateTime::UNIX_EPOCH + TimeDelta::days(20_000);
        let ago = |ms: i64| Some(now - TimeDelta::milliseconds(ms));
        let time = |first, last, interval| is_time(&settings, now, first, last, interval);
        // Nothing waits: the turn only says when the next interval ends.
        assert!(!time(None, ago(600_000), false) && time(None, ago(0), true));
        // No batch before, or one long ago.
        for last in [None, ago(60_000)] {
            assert!(!time(ago(0), last, false) && !time(ago(4999), last, false));
            assert!(time(ago(5000), last, false));
            assert!(time(ago(0), last, true));
        }
        // Within the spacing of the batch before, whatever waits.
        for last in [ago(0), ago(59_999)] {
            assert!(!time(ago(59_000), last, false) && !time(ago(0), last, true));
        }
        // An instance whose clock is behind: a little changes little, and much keeps nobody waiting.
        assert!(!time(ago(6000), ago(-200), false) && !time(ago(-200), None, false));
        assert!(time(ago(-3_600_000), ago(-3_600_000), false));
    }

    #[test]
    fn linger_and_spacing_are_at_most_the_interval() {
        let settings = config::Batching { interval: Duration::from_secs(3), ..Default::default() };
        let now = DateTime::UNIX_EPOCH + TimeDelta::days(20_000);
        let ago = |seconds| Some(now - TimeDelta::seconds(seconds));
        assert!(is_time(&settings, now, ago(3), ago(3), false));
        assert!(!is_time(&settings, now, ago(2), ago(3), false));
        assert!(!is_time(&settings, now, ago(3), ago(2), false));
        let at_once =
            config::Batching { linger: Duration::ZERO, spacing: Duration::ZERO, ..Default::default() };
        assert!(is_time(&at_once, now, ago(0), ago(0), false));
    }
}
