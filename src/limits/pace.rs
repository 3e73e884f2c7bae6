//! So many in a second, with so many at once after a pause.

use std::time::{Duration, Instant};

/// Gives each comer the moment at which it may go on (the generic cell rate algorithm). Whoever comes too soon
/// has a place in the order of arrival, instead of being told to try again and race with the others.
#[derive(Debug)]
pub(super) struct Pace {
    interval: Duration,
    slack: Duration,
    /// When the comers so far are used up.
    until: Option<Instant>,
}

impl Pace {
    pub(super) fn new(per_second: f64, burst: u32) -> Self {
        let interval = Duration::from_secs_f64(per_second.recip());
        Self { interval, slack: interval.saturating_mul(burst.saturating_sub(1)), until: None }
    }

    /// How long to wait. When that is longer than `patience` nothing is taken, and the error is the wait.
    pub(super) fn take(&mut self, now: Instant, patience: Duration) -> Result<Duration, Duration> {
        let until = self.until.map_or(now, |until| until.max(now));
        let wait = (until - now).saturating_sub(self.slack);
        if wait > patience {
            return Err(wait);
        }
        self.until = Some(until + self.interval);
        Ok(wait)
    }

    /// Whether it is as good as new.
    pub(super) fn is_rested(&self, now: Instant) -> bool {
        self.until.is_none_or(|until| until <= now)
    }
}
