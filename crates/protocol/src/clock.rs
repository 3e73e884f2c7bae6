//! The only source of wall-clock time.
//!
//! Everything that decides by the time of day (validity, days, retention, tags) asks a [`Clock`], so that a
//! test can stand at midnight without waiting for it. Leases are the exception: they use the clock of the
//! database, so that instances with different clocks agree. It is here because the gateway and its clients share it.

use std::sync::{
    Arc,
    atomic::{AtomicI64, Ordering},
};

use chrono::{DateTime, Utc};

/// Tells the time, in UTC, to the microsecond (what the databases keep).
#[derive(Clone, Debug, Default)]
pub struct Clock(Option<Arc<AtomicI64>>);

impl Clock {
    /// The machine's clock.
    pub fn system() -> Self {
        Self(None)
    }

    /// A clock that stands still at `time` until [`Clock::set`]; clones show the same time.
    pub fn manual(time: DateTime<Utc>) -> Self {
        Self(Some(Arc::new(AtomicI64::new(time.timestamp_micros()))))
    }

    /// Moves a manual clock, backwards too; the machine's clock is left alone.
    pub fn set(&self, time: DateTime<Utc>) {
        if let Some(micros) = &self.0 {
            micros.store(time.timestamp_micros(), Ordering::SeqCst);
        }
    }

    /// The time now.
    pub fn now(&self) -> DateTime<Utc> {
        let micros = match &self.0 {
            Some(micros) => micros.load(Ordering::SeqCst),
            None => system_micros(),
        };
        DateTime::from_timestamp_micros(micros).unwrap_or(DateTime::UNIX_EPOCH)
    }
}

#[expect(clippy::disallowed_methods, reason = "this is the one place that asks the machine for the time")]
fn system_micros() -> i64 {
    Utc::now().timestamp_micros()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_manual_clock_shows_the_time_that_it_and_its_clones_were_set_to() {
        let at = |micros| DateTime::from_timestamp_micros(micros).unwrap_or_default();
        let clock = Clock::manual(at(5));
        let clone = clock.clone();
        assert_eq!((clock.now(), clone.now()), (at(5), at(5)));
        clone.set(at(-7));
        assert_eq!((clock.now(), clone.now()), (at(-7), at(-7)));
    }

    #[test]
    #[expect(clippy::disallowed_methods, reason = "this is the clock's own test")]
    fn the_system_clock_shows_the_machines_time_and_cannot_be_set() {
        let clock = Clock::system();
        let before = Utc::now().timestamp_micros();
        clock.set(DateTime::UNIX_EPOCH);
        let shown = clock.now().timestamp_micros();
        assert!((before..=Utc::now().timestamp_micros()).contains(&shown), "{shown} {before}");
    }
}
