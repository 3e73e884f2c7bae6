//! A rate limit: a number of requests per second, and a burst after a pause.

use std::time::{Duration, Instant};

/// Assigns each request the time at which it may continue (the generic cell rate algorithm). Requests that come
/// too soon wait in the order of arrival, so that they need not retry and compete.
#[derive(Debug)]
pub(super) struct Pace {
    interval: Duration,
    slack: Duration,
    /// When all requests so far are paid for.
    until: Option<Instant>,
}

impl Pace {
    pub(super) fn new(per_second: f64, burst: u32) -> Self {
        let interval = Duration::from_secs_f64(per_second.recip());
        Self { interval, slack: interval.saturating_mul(burst.saturating_sub(1)), until: None }
    }

    /// Returns how long to wait. If that is longer than `patience`, the request is not counted and the wait is
    /// the error.
    pub(super) fn take(&mut self, now: Instant, patience: Duration) -> Result<Duration, Duration> {
        let until = self.until.map_or(now, |until| until.max(now));
        let wait = (until - now).saturating_sub(self.slack);
        if wait > patience {
            return Err(wait);
        }
        self.until = Some(until + self.interval);
        Ok(wait)
    }

    /// Whether it has the full burst again.
    pub(super) fn is_rested(&self, now: Instant) -> bool {
        self.until.is_none_or(|until| until <= now)
    }
}
