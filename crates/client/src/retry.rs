//! Whether and when to try again.

use std::time::Duration;

use chrono::{DateTime, Utc};
use efgs_protocol::clock::Clock;

use crate::{Error, RetryAfter};

/// The longest time that a gateway may ask to be left alone for.
const LONGEST_ASKED: Duration = Duration::from_mins(10);

/// How often, and after which waits, a call is repeated that may succeed later.
#[derive(Clone, Copy, Debug)]
pub struct Retry {
    /// How many times one call is repeated before it is given up.
    pub limit: u32,
    /// The wait before the first repetition; each further one is twice as long.
    pub first: Duration,
    /// The longest wait, unless the gateway asks for a longer one.
    pub longest: Duration,
}

impl Default for Retry {
    /// Eight times, within about three minutes.
    fn default() -> Self {
        Self { limit: 8, first: Duration::from_secs(1), longest: Duration::from_secs(60) }
    }
}

impl Retry {
    /// How long to wait before a call is repeated that has failed; `failures` counts how often.
    ///
    /// # Errors
    /// The call's own, when repeating it does not help or it has failed too often.
    pub(crate) fn after(
        &self,
        error: Error,
        failures: &mut u32,
        clock: &Clock,
    ) -> Result<(Error, Duration), Error> {
        *failures += 1;
        if !error.is_temporary() || *failures > self.limit {
            return Err(error);
        }
        let asked = match &error {
            Error::Refused(refusal) => refusal.retry_after,
            _ => None,
        };
        let wait = self.wait(*failures, asked, clock.now(), efgs_protocol::random::unit());
        Ok((error, wait))
    }

    /// How long to wait after this many failures of one call, counted from 1. `jitter`, between 0 and 1, spreads
    /// what failed at the same moment. What the gateway asks for is never cut short, except for a wait of more
    /// than ten minutes.
    fn wait(&self, failures: u32, asked: Option<RetryAfter>, now: DateTime<Utc>, jitter: f64) -> Duration {
        let doubled = 2_u32.saturating_pow(failures.saturating_sub(1));
        let own = self.first.saturating_mul(doubled).min(self.longest);
        let asked = match asked {
            Some(RetryAfter::In(wait)) => wait,
            // A time that has passed.
            Some(RetryAfter::At(time)) => (time - now).to_std().unwrap_or_default(),
            None => Duration::ZERO,
        };
        let half = own / 2;
        half.max(asked.min(LONGEST_ASKED)) + half.mul_f64(jitter)
    }
}

#[cfg(test)]
mod tests {
    use chrono::{TimeDelta, TimeZone};

    use super::*;

    const RETRY: Retry = Retry { limit: 3, first: Duration::from_secs(2), longest: Duration::from_secs(10) };

    fn now() -> DateTime<Utc> {
        Utc.with_ymd_and_hms(2026, 11, 22, 10, 0, 0).unwrap()
    }

    #[test]
    fn waits_grow_up_to_the_longest() {
        let waits = [1, 2, 3, 4, 99].map(|failures| RETRY.wait(failures, None, now(), 1.0).as_secs());
        assert_eq!(waits, [2, 4, 8, 10, 10]);
        assert_eq!(RETRY.wait(1, None, now(), 0.0), Duration::from_secs(1));
    }

    #[test]
    fn the_gateway_is_never_asked_earlier_than_it_wants() {
        let seconds = |asked, jitter| RETRY.wait(1, Some(asked), now(), jitter).as_secs_f64();
        assert_eq!(seconds(RetryAfter::In(Duration::from_secs(30)), 0.0), 30.0);
        assert_eq!(seconds(RetryAfter::In(Duration::from_secs(30)), 0.5), 30.5);
        assert_eq!(seconds(RetryAfter::At(now() + TimeDelta::seconds(20)), 0.0), 20.0);
        assert_eq!(seconds(RetryAfter::At(now() - TimeDelta::days(1)), 0.0), 1.0);
        assert_eq!(seconds(RetryAfter::In(Duration::MAX), 0.0), 600.0);
        assert_eq!(seconds(RetryAfter::At(DateTime::<Utc>::MAX_UTC), 0.0), 600.0);
    }
}
